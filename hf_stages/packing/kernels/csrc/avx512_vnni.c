/* AVX512-VNNI: 512 bits, two planes of a block in a vector. */
#if defined(__x86_64__)
#include "lowbit.h"

#include <immintrin.h>

#define BYTES 64
#define ROWS 8 /* times two vectors: two products a cycle, five cycles each, want ten sums at least */
#define VECTORS 2
#define TILE_CODES 512
#define ENOUGH_1 (1 << 30)
#define ENOUGH_2 (1 << 30)

#ifdef LB_EMULATED
#define TARGET __attribute__((target("avx2")))
#define LB_EMULATED_512
#include "emulated.h"
typedef lb_512 V;
#else
#define TARGET __attribute__((target("avx2,avx512f,avx512bw,avx512vl,avx512vnni")))
typedef __m512i V;

TARGET LB_INLINE V op_load(const void *p) { return _mm512_loadu_si512(p); }
TARGET LB_INLINE void op_store(void *p, V v) { _mm512_storeu_si512(p, v); }
TARGET LB_INLINE V op_none(void) { return _mm512_setzero_si512(); }
TARGET LB_INLINE V op_twice(const void *p) { return _mm512_broadcast_i64x4(_mm256_loadu_si256(p)); }
TARGET LB_INLINE V op_fourfold(const void *p) { return _mm512_broadcast_i32x4(_mm_loadu_si128(p)); }
TARGET LB_INLINE V op_all8(int value) { return _mm512_set1_epi8((char)value); }
TARGET LB_INLINE V op_quarters16(int a, int b, int c, int d) { /* 16-bit lanes, those of a quarter alike */
    const int64_t each = 0x0001000100010001;
    return _mm512_setr_epi64(a * each, a * each, b * each, b * each, c * each, c * each, d * each, d * each);
}
TARGET LB_INLINE V op_shift16(V v, V by) { return _mm512_srlv_epi16(v, by); }
TARGET LB_INLINE V op_all32(const void *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return _mm512_set1_epi32(four);
}
TARGET LB_INLINE V op_and(V a, V b) { return _mm512_and_si512(a, b); }
TARGET LB_INLINE V op_add32(V a, V b) { return _mm512_add_epi32(a, b); }
TARGET LB_INLINE V op_dot(V acc, V u, V s) { return _mm512_dpbusd_epi32(acc, u, s); }
TARGET LB_INLINE V op_low32(V a, V b) { return _mm512_unpacklo_epi32(a, b); }
TARGET LB_INLINE V op_high32(V a, V b) { return _mm512_unpackhi_epi32(a, b); }
TARGET LB_INLINE V op_low64(V a, V b) { return _mm512_unpacklo_epi64(a, b); }
TARGET LB_INLINE V op_high64(V a, V b) { return _mm512_unpackhi_epi64(a, b); }
TARGET LB_INLINE __m128i op_quarters(V v) { /* their sum */
    const __m256i two = _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(two), _mm256_extracti128_si256(two, 1));
}
#endif

#include "weave256.h"

TARGET LB_INLINE V load(const void *p) { return op_load(p); }
TARGET LB_INLINE void store(void *p, V v) { op_store(p, v); }
TARGET LB_INLINE V none(void) { return op_none(); }
TARGET LB_INLINE V spread(const int8_t *codes) { return op_all32(codes); }
TARGET LB_INLINE V mac(V acc, V u, V s) { return op_dot(acc, u, s); }
TARGET LB_INLINE V widen(V sum, V acc) { return op_add32(sum, acc); }

TARGET LB_INLINE void expand(const uint8_t *w, int bits, int bytes, V *codes) {
    const V mask = op_all8(bits == 1 ? 1 : 3);
    if (bytes == LB_BLOCK) {
        const V v = op_twice(w);
        for (int t = 0; t < 4 / bits; t++) {
            const int low = 2 * t * bits, high = low + bits;
            codes[t] = op_and(op_shift16(v, op_quarters16(low, low, high, high)), mask);
        }
    } else { /* four planes of 16 bytes */
        const V v = op_fourfold(w);
        for (int t = 0; t < 2 / bits; t++) {
            const int low = 4 * t * bits;
            codes[t] = op_and(op_shift16(v, op_quarters16(low, low + bits, low + 2 * bits, low + 3 * bits)), mask);
        }
    }
}

TARGET LB_INLINE void total4(const V *v, int32_t *into) {
    const V a = op_add32(op_low32(v[0], v[1]), op_high32(v[0], v[1]));
    const V b = op_add32(op_low32(v[2], v[3]), op_high32(v[2], v[3]));
    __m128i four = op_quarters(op_add32(op_low64(a, b), op_high64(a, b)));
    _mm_storeu_si128((__m128i *)into, four);
}

#include "body.h"

static int usable(void) {
#ifndef LB_EMULATED
    if (!__builtin_cpu_supports("avx512vnni") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl"))
        return 0;
#endif
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

const lb_backend lb_avx512_vnni = {"avx512-vnni", 0, usable, lb_prepare_avx2, few, many, 3, COLUMNS, lb_exact_avx2};
#endif
