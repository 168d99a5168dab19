/* 8 x 8 words of 32 bits, transposed with AVX2. TARGET, VECTORS and BYTES are the includer's. */
#include <immintrin.h>

#define WEAVE 8

TARGET LB_INLINE void weave(const uint8_t *from, uint8_t *into) {
    const int64_t apart = VECTORS * BYTES;
    __m256i r[8], a[8], b[8];
    for (int i = 0; i < 8; i++) r[i] = _mm256_load_si256((const __m256i *)(from + i * 256));
    for (int i = 0; i < 4; i++) {
        a[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++) {
            b[4 * i + 2 * j] = _mm256_unpacklo_epi64(a[4 * i + j], a[4 * i + 2 + j]);
            b[4 * i + 2 * j + 1] = _mm256_unpackhi_epi64(a[4 * i + j], a[4 * i + 2 + j]);
        }
    for (int i = 0; i < 4; i++) {
        _mm256_store_si256((__m256i *)(into + i * apart), _mm256_permute2x128_si256(b[i], b[4 + i], 0x20));
        _mm256_store_si256((__m256i *)(into + (4 + i) * apart), _mm256_permute2x128_si256(b[i], b[4 + i], 0x31));
    }
}
