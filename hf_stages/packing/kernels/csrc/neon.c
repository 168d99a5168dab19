/* NEON with dot products (ARMv8.2 and later): 128 bits, signed codes of both sides. */
#if defined(__aarch64__)
#include "arrange.h"

#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif

#ifdef __clang__
#define TARGET __attribute__((target("dotprod")))
#else
#define TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#endif

typedef int32x4_t V;
#define BYTES 16
#define ROWS 4
#define VECTORS 4
#define TILE_CODES 1024
#define WEAVE 4
#define ENOUGH_1 (1 << 30)
#define ENOUGH_2 (1 << 30)

TARGET LB_INLINE V load(const void *p) { return vreinterpretq_s32_s8(vld1q_s8(p)); }
TARGET LB_INLINE void store(void *p, V v) { vst1q_s8(p, vreinterpretq_s8_s32(v)); }
TARGET LB_INLINE V none(void) { return vdupq_n_s32(0); }
TARGET LB_INLINE V mac(V acc, V u, V s) { /* vdotq_s32, which older clangs hide from functions with a target of their own */
    __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(acc) : "w"(u), "w"(s));
    return acc;
}
TARGET LB_INLINE V spread(const int8_t *codes) {
    int32_t four;
    memcpy(&four, codes, sizeof four);
    return vdupq_n_s32(four);
}
TARGET LB_INLINE void weave(const uint8_t *from, uint8_t *into) {
    V r[4], out[4];
    for (int i = 0; i < 4; i++) r[i] = load(from + i * 256);
    const int64x2_t a = vreinterpretq_s64_s32(vtrn1q_s32(r[0], r[1])), b = vreinterpretq_s64_s32(vtrn2q_s32(r[0], r[1]));
    const int64x2_t c = vreinterpretq_s64_s32(vtrn1q_s32(r[2], r[3])), d = vreinterpretq_s64_s32(vtrn2q_s32(r[2], r[3]));
    out[0] = vreinterpretq_s32_s64(vtrn1q_s64(a, c)), out[1] = vreinterpretq_s32_s64(vtrn1q_s64(b, d));
    out[2] = vreinterpretq_s32_s64(vtrn2q_s64(a, c)), out[3] = vreinterpretq_s32_s64(vtrn2q_s64(b, d));
    for (int i = 0; i < 4; i++) vst1q_s32((int32_t *)(void *)(into + i * VECTORS * BYTES), out[i]);
}
TARGET LB_INLINE V widen(V sum, V acc) { return vaddq_s32(sum, acc); }

TARGET LB_INLINE void expand(const uint8_t *w, int bits, int bytes, V *codes) {
    const uint8x16_t mask = vdupq_n_u8(bits == 1 ? 1 : 3);
    for (int t = 0; t < 8 / bits; t++) {
        const int8x16_t shift = vdupq_n_s8((int8_t)(-t * bits));
        for (int part = 0; part < bytes / 16; part++)
            *codes++ = vreinterpretq_s32_u8(vandq_u8(vshlq_u8(vld1q_u8(w + 16 * part), shift), mask));
    }
}

TARGET LB_INLINE void total4(const V *v, int32_t *into) {
    V four = vpaddq_s32(vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3]));
    vst1q_s32(into, four);
}

#include "body.h"

/* Plain loops, which the compiler turns into NEON. */
static void extremes(const float *x, int64_t count, int both, float *least, float *most, uint32_t *largest) {
    uint32_t top = 0;
    float low = 0, high = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t word;
        memcpy(&word, x + i, sizeof word);
        word &= 0x7fffffffu;
        top = word > top ? word : top;
    }
    if (both)
        for (int64_t i = 0; i < count; i++) low = x[i] < low ? x[i] : low, high = x[i] > high ? x[i] : high;
    *largest = top, *least = low, *most = high;
}

static int32_t round_block(
    const float *x, int64_t count, int64_t room, float scale, float zero, float floor, float top, int shift, int8_t *codes
) {
    int32_t sum = 0;
    for (int64_t i = 0; i < count; i++) {
        float code = rintf(x[i] / scale) + zero;
        code = code < floor ? floor : code > top ? top : code;
        codes[i] = (int8_t)((int)code - shift);
        sum += codes[i];
    }
    memset(codes + count, 0, (size_t)(room - count));
    return sum;
}

static void arrange(const int8_t *codes, int bits, int8_t *planes) {
    const int each = 8 / bits;
    for (int t = 0; t < each; t++)
        for (int j = 0; j < LB_BLOCK; j++) planes[t * LB_BLOCK + j] = codes[each * j + t];
}

static void prepare(const lb_job *job, int64_t row) { lb_prepare_row(job, row, extremes, round_block, arrange); }

static int usable(void) {
#if defined(__linux__)
    return getauxval(AT_HWCAP) >> 20 & 1; /* HWCAP_ASIMDDP */
#else
    return 1; /* every Apple processor of this architecture */
#endif
}

const lb_backend lb_neon_dot = {"neon-dot", 0, usable, prepare, few, many, 3, COLUMNS, lb_exact_scalar};
#endif
