/* AVX-VNNI: 256 bits, four products added up in 32 bits by one instruction. */
#if defined(__x86_64__)
#include "lowbit.h"

#if __GNUC__ >= 11 || __clang_major__ >= 12 || defined(LB_EMULATED)
#include <cpuid.h>

#ifdef LB_EMULATED
#define TARGET __attribute__((target("avx2")))
#else
#define TARGET __attribute__((target("avx2,avxvnni")))
#endif
#define ENOUGH_1 (1 << 30)
#define ENOUGH_2 (1 << 30)
#include "avx2_ops.h"
#ifdef LB_EMULATED
#include "emulated.h"
TARGET LB_INLINE V mac(V acc, V u, V s) {
    lb_emulated_dot(&acc, &u, &s, sizeof acc);
    return acc;
}
#else
TARGET LB_INLINE V mac(V acc, V u, V s) { return _mm256_dpbusd_avx_epi32(acc, u, s); }
#endif
TARGET LB_INLINE V widen(V sum, V acc) { return _mm256_add_epi32(sum, acc); }

#include "body.h"

static int usable(void) {
#ifndef LB_EMULATED
    unsigned a = 0, b, c, d;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 4 & 1)) return 0;
#endif
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

const lb_backend lb_avx_vnni = {"avx-vnni", 0, usable, lb_prepare_avx2, few, many, 3, COLUMNS, lb_exact_avx2};
#else
static int usable(void) { return 0; }
const lb_backend lb_avx_vnni = {"avx-vnni", 0, usable, 0, 0, 0, 0, 0, 0};
#endif
#endif
