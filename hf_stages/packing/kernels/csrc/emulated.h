/* For tests on processors without VNNI (-DLB_EMULATED): its instructions in plain C, under the names used here. */
#ifndef EMULATED_H
#define EMULATED_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline void lb_emulated_dot(void *acc, const void *u, const void *s, size_t bytes) {
    int32_t lanes[16];
    memcpy(lanes, acc, bytes);
    for (size_t i = 0; i < bytes; i++) lanes[i / 4] += ((const uint8_t *)u)[i] * ((const int8_t *)s)[i];
    memcpy(acc, lanes, bytes);
}

#ifdef LB_EMULATED_512
typedef union {
    uint8_t u8[64];
    uint16_t u16[32];
    uint32_t u32[16];
    uint64_t u64[8];
} lb_512;
#define EMULATE static inline lb_512
#define LANES(type, count, what) \
    lb_512 out;                  \
    for (int i = 0; i < count; i++) out.type[i] = what; \
    return out

EMULATE op_load(const void *p) {
    lb_512 out;
    memcpy(&out, p, 64);
    return out;
}
static inline void op_store(void *p, lb_512 v) { memcpy(p, &v, 64); }
EMULATE op_none(void) { LANES(u64, 8, 0); }
EMULATE op_twice(const void *p) { LANES(u8, 64, ((const uint8_t *)p)[i % 32]); }
EMULATE op_fourfold(const void *p) { LANES(u8, 64, ((const uint8_t *)p)[i % 16]); }
EMULATE op_all8(int value) { LANES(u8, 64, (uint8_t)value); }
EMULATE op_all32(const void *p) { LANES(u8, 64, ((const uint8_t *)p)[i % 4]); }
EMULATE op_quarters16(int a, int b, int c, int d) { LANES(u16, 32, (uint16_t)(i < 8 ? a : i < 16 ? b : i < 24 ? c : d)); }
EMULATE op_shift16(lb_512 v, lb_512 by) { LANES(u16, 32, by.u16[i] > 15 ? 0 : (uint16_t)(v.u16[i] >> by.u16[i])); }
EMULATE op_and(lb_512 a, lb_512 b) { LANES(u64, 8, a.u64[i] & b.u64[i]); }
EMULATE op_add32(lb_512 a, lb_512 b) { LANES(u32, 16, a.u32[i] + b.u32[i]); }
EMULATE op_dot(lb_512 acc, lb_512 u, lb_512 s) {
    lb_emulated_dot(&acc, &u, &s, 64);
    return acc;
}
EMULATE op_low32(lb_512 a, lb_512 b) { LANES(u32, 16, (i % 2 ? b : a).u32[i / 4 * 4 + i % 4 / 2]); }
EMULATE op_high32(lb_512 a, lb_512 b) { LANES(u32, 16, (i % 2 ? b : a).u32[i / 4 * 4 + 2 + i % 4 / 2]); }
EMULATE op_low64(lb_512 a, lb_512 b) { LANES(u64, 8, (i % 2 ? b : a).u64[i / 2 * 2]); }
EMULATE op_high64(lb_512 a, lb_512 b) { LANES(u64, 8, (i % 2 ? b : a).u64[i / 2 * 2 + 1]); }
static inline __m128i op_quarters(lb_512 v) {
    uint32_t four[4] = {0, 0, 0, 0};
    for (int i = 0; i < 16; i++) four[i % 4] += v.u32[i];
    __m128i out;
    memcpy(&out, four, 16);
    return out;
}
#endif
#endif
