/* AVX2: products of unsigned codes (at most 3) and signed ones (at most 128 large) add up in 16 bits, widened rarely. */
#if defined(__x86_64__)
#include "arrange.h"

#include <immintrin.h>

#define TARGET __attribute__((target("avx2")))

/* ---- rounding: also for the other paths of x86 ---------------------------------------------------------------------- */

TARGET static void extremes(const float *x, int64_t count, int both, float *least, float *most, uint32_t *largest) {
    const __m256i unsign = _mm256_set1_epi32(0x7fffffff);
    __m256i size = _mm256_setzero_si256(), other = size;
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) { /* as whole numbers: NaN is above infinity */
        size = _mm256_max_epi32(size, _mm256_and_si256(unsign, _mm256_loadu_si256((const __m256i *)(x + i))));
        other = _mm256_max_epi32(other, _mm256_and_si256(unsign, _mm256_loadu_si256((const __m256i *)(x + i + 8))));
    }
    uint32_t found[8], top = 0;
    _mm256_storeu_si256((__m256i *)found, _mm256_max_epi32(size, other));
    for (; i < count; i++) {
        uint32_t word;
        memcpy(&word, x + i, sizeof word);
        word &= 0x7fffffffu;
        top = word > top ? word : top;
    }
    for (int lane = 0; lane < 8; lane++) top = found[lane] > top ? found[lane] : top;
    *largest = top;
    if (!both) return;
    __m256 low = _mm256_setzero_ps(), high = low; /* zero is within the range anyway */
    for (i = 0; i + 8 <= count; i += 8) {
        const __m256 value = _mm256_loadu_ps(x + i);
        low = _mm256_min_ps(low, value), high = _mm256_max_ps(high, value);
    }
    float lows[8], highs[8], bottom = 0, peak = 0;
    _mm256_storeu_ps(lows, low), _mm256_storeu_ps(highs, high);
    for (; i < count; i++) bottom = x[i] < bottom ? x[i] : bottom, peak = x[i] > peak ? x[i] : peak;
    for (int lane = 0; lane < 8; lane++) {
        bottom = lows[lane] < bottom ? lows[lane] : bottom;
        peak = highs[lane] > peak ? highs[lane] : peak;
    }
    *least = bottom, *most = peak;
}

TARGET LB_INLINE __m256i rounded(__m256 x, __m256 scale, __m256 zero, __m256 floor, __m256 top, __m256i shift) {
    __m256 code = _mm256_round_ps(_mm256_div_ps(x, scale), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    code = _mm256_min_ps(_mm256_max_ps(_mm256_add_ps(code, zero), floor), top);
    return _mm256_sub_epi32(_mm256_cvtps_epi32(code), shift);
}

TARGET static int32_t round_block(
    const float *x, int64_t count, int64_t room, float scale, float zero, float floor, float top, int shift, int8_t *codes
) {
    const __m256 s = _mm256_set1_ps(scale), z = _mm256_set1_ps(zero), f = _mm256_set1_ps(floor), t = _mm256_set1_ps(top);
    const __m256i less = _mm256_set1_epi32(shift), order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i sum = _mm256_setzero_si256();
    int64_t i = 0;
    for (; i + 32 <= count; i += 32) {
        const __m256i a = rounded(_mm256_loadu_ps(x + i), s, z, f, t, less);
        const __m256i b = rounded(_mm256_loadu_ps(x + i + 8), s, z, f, t, less);
        const __m256i c = rounded(_mm256_loadu_ps(x + i + 16), s, z, f, t, less);
        const __m256i d = rounded(_mm256_loadu_ps(x + i + 24), s, z, f, t, less);
        sum = _mm256_add_epi32(sum, _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d)));
        const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
        _mm256_storeu_si256((__m256i *)(codes + i), _mm256_permutevar8x32_epi32(bytes, order));
    }
    int32_t lanes[8], total = 0;
    _mm256_storeu_si256((__m256i *)lanes, sum);
    for (int lane = 0; lane < 8; lane++) total += lanes[lane];
    for (; i < count; i++) {
        float code = rintf(x[i] / scale) + zero;
        code = code < floor ? floor : code > top ? top : code;
        codes[i] = (int8_t)(int)(code - (float)shift);
        total += codes[i];
    }
    if (i < room) memset(codes + i, 0, (size_t)(room - i));
    return total;
}

/* Two times 16 codes: of the first and of the second half of a block, so that no result crosses lanes. */
TARGET LB_INLINE __m256i halves(const int8_t *codes, int half) {
    const __m128i low = _mm_loadu_si128((const __m128i *)codes), high = _mm_loadu_si128((const __m128i *)(codes + half));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

TARGET LB_INLINE void put(int8_t *into, __m256i value) { _mm256_storeu_si256((__m256i *)into, value); }

TARGET LB_INLINE void planes_of_4(const int8_t *codes, int8_t *planes) {
    const __m256i pick = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    __m256i v[4];
    for (int i = 0; i < 4; i++) v[i] = _mm256_shuffle_epi8(halves(codes + 16 * i, 64), pick);
    const __m256i a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpacklo_epi32(v[2], v[3]);
    const __m256i c = _mm256_unpackhi_epi32(v[0], v[1]), d = _mm256_unpackhi_epi32(v[2], v[3]);
    put(planes, _mm256_unpacklo_epi64(a, b)), put(planes + 32, _mm256_unpackhi_epi64(a, b));
    put(planes + 64, _mm256_unpacklo_epi64(c, d)), put(planes + 96, _mm256_unpackhi_epi64(c, d));
}

TARGET LB_INLINE void planes_of_8(const int8_t *codes, int8_t *planes) {
    const __m256i pick = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15));
    __m256i v[8], a[8], b[8];
    for (int i = 0; i < 8; i++) v[i] = _mm256_shuffle_epi8(halves(codes + 16 * i, 128), pick);
    for (int i = 0; i < 4; i++) { /* pairs of vectors: planes 0..3, then 4..7 */
        a[i] = _mm256_unpacklo_epi16(v[2 * i], v[2 * i + 1]);
        a[4 + i] = _mm256_unpackhi_epi16(v[2 * i], v[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) { /* fours: planes 0 and 1, 2 and 3, and so on */
        b[2 * i] = _mm256_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm256_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        const __m256i low = b[(i / 2) * 4 + i % 2], high = b[(i / 2) * 4 + 2 + i % 2];
        put(planes + 64 * i, _mm256_unpacklo_epi64(low, high)), put(planes + 64 * i + 32, _mm256_unpackhi_epi64(low, high));
    }
}

TARGET static void arrange(const int8_t *codes, int bits, int8_t *planes) {
    if (bits == 1) planes_of_8(codes, planes);
    else planes_of_4(codes, planes);
}

TARGET void lb_prepare_avx2(const lb_job *job, int64_t row) { lb_prepare_row(job, row, extremes, round_block, arrange); }

/* ---- products ------------------------------------------------------------------------------------------------------ */

#include "avx2_ops.h"

/* maddubs gives at most 2 * 3 * 128 (two bits) or 2 * 128 (one bit); a block adds 4 or 8 of them. */
#define ENOUGH_1 15
#define ENOUGH_2 10

TARGET LB_INLINE V mac(V acc, V u, V s) {
    acc = _mm256_add_epi16(acc, _mm256_maddubs_epi16(u, s));
    __asm__("" : "+x"(acc)); /* or gcc sums up in another order, and runs out of registers */
    return acc;
}
TARGET LB_INLINE V widen(V sum, V acc) { return _mm256_add_epi32(sum, _mm256_madd_epi16(acc, _mm256_set1_epi16(1))); }

#include "body.h"

static int usable(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

const lb_backend lb_avx2 = {"avx2", 0, usable, lb_prepare_avx2, few, many, 3, COLUMNS, lb_exact_avx2};
#endif
