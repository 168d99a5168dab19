/* What the kernels of 256 bits share. TARGET is the includer's. */
#include <immintrin.h>

typedef __m256i V;
#define BYTES 32
#define ROWS 6 /* times two vectors, two vectors of weights, one of activations, one product: all 16 registers */
#define VECTORS 2
#define TILE_CODES 1024

#include "weave256.h"

TARGET LB_INLINE V load(const void *p) { return _mm256_loadu_si256(p); }
TARGET LB_INLINE void store(void *p, V v) { _mm256_storeu_si256(p, v); }
TARGET LB_INLINE V none(void) { return _mm256_setzero_si256(); }

TARGET LB_INLINE void expand(const uint8_t *w, int bits, int bytes, V *codes) {
    const V mask = _mm256_set1_epi8(bits == 1 ? 1 : 3);
    if (bytes == LB_BLOCK) {
        const V v = load(w);
        for (int t = 0; t < 8 / bits; t++) codes[t] = _mm256_and_si256(_mm256_srli_epi16(v, t * bits), mask);
    } else { /* two planes of 16 bytes in a vector */
        const V v = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)w));
        const V shift = _mm256_setr_epi32(0, 0, 0, 0, bits, bits, bits, bits);
        for (int t = 0; t < 4 / bits; t++)
            codes[t] = _mm256_and_si256(_mm256_srlv_epi32(_mm256_srli_epi16(v, 2 * t * bits), shift), mask);
    }
}

/* (a, b, c, d) -> each lane's sums of a, b, c, d; phaddd would take twice as long. */
TARGET LB_INLINE V sums4(const V *v) {
    const V a = _mm256_add_epi32(_mm256_unpacklo_epi32(v[0], v[1]), _mm256_unpackhi_epi32(v[0], v[1]));
    const V b = _mm256_add_epi32(_mm256_unpacklo_epi32(v[2], v[3]), _mm256_unpackhi_epi32(v[2], v[3]));
    return _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
}

TARGET LB_INLINE void total4(const V *v, int32_t *into) {
    const V sums = sums4(v);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    _mm_storeu_si128((__m128i *)into, four);
}

TARGET LB_INLINE V spread(const int8_t *codes) {
    int32_t four;
    memcpy(&four, codes, sizeof four);
    return _mm256_set1_epi32(four);
}
