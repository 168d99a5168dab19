/* Linear layers with packed 1-bit and 2-bit weights: what the files of this library share. */
#ifndef LOWBIT_H
#define LOWBIT_H

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { LB_OK = 0, LB_NO_MEMORY = 1, LB_UNAVAILABLE = 2 };

#define LB_INLINE static inline __attribute__((always_inline))
#define LB_EXPORT __attribute__((visibility("default")))

/* Weights are read 32 bytes at a time (a block); what is left of a group, 16 or 32 bytes at a time. */
#define LB_BLOCK 32
/* Rows of activations that one tile of unpacked weights is multiplied with. */
#define LB_TILE_ROWS 128
/* Columns of one call of the few-row kernels. */
#define LB_FEW_COLUMNS 64

/* How activations are rounded. */
typedef struct {
    int top, symmetric, learned;
    float low, high; /* the learned range */
} lb_rounding;

/* One call. Weights are [halves, n, row_bytes], scales [halves, n, groups], activations [m, k], the result [m, n]. */
typedef struct {
    const float *x;
    const uint8_t *w;
    const float *scale, *bias; /* bias may be NULL */
    const int32_t *sums;       /* [halves, n, groups]: sums of levels; NULL where codes have no zero point */
    float *y;
    int64_t m, n, k, groups;
    int bits, halves;
    lb_rounding rounding;

    int64_t row_bytes, group, group_bytes;
    int64_t full; /* whole blocks of a group */
    int tail;     /* 0, 16 or 32: bytes read after them */
    int64_t segment, stride; /* bytes of activation codes: of a group, of a row */
    int shift;               /* subtracted from codes, so that they fit int8 */

    /* Rounded activations of the rows at hand, arranged as the kernel wants them. */
    int8_t *codes;
    float *row_scale;
    int32_t *zero;      /* shift minus zero point */
    int32_t *code_sums; /* [m, groups] */
} lb_job;

typedef struct {
    const char *name;
    int natural; /* codes in their natural order, any group size */
    int (*usable)(void);
    void (*prepare)(const lb_job *job, int64_t row);
    void (*few)(const lb_job *job, int64_t row, int rows, int64_t column, int64_t end);
    void (*many)(const lb_job *job, int64_t row, int64_t row_end, int64_t column, int64_t end);
    int few_rows; /* up to so many rows `few` is used */
    int columns;  /* of one call of `many` */
    /* Full-precision activations. */
    void (*exact)(const lb_job *job, int64_t column, int64_t end);
} lb_backend;

extern const lb_backend lb_scalar;
#if defined(__x86_64__)
extern const lb_backend lb_avx2, lb_avx_vnni, lb_avx512_vnni;
#elif defined(__aarch64__)
extern const lb_backend lb_neon_dot;
#endif

void lb_exact_scalar(const lb_job *job, int64_t column, int64_t end);
#if defined(__x86_64__)
void lb_exact_avx2(const lb_job *job, int64_t column, int64_t end);
void lb_prepare_avx2(const lb_job *job, int64_t row);
#endif
void lb_parallel(int threads, int64_t chunks, void (*work)(void *, int64_t), void *about);

LB_INLINE int64_t lb_min(int64_t a, int64_t b) { return a < b ? a : b; }

/* Positions in a byte. */
LB_INLINE int lb_per_byte(const lb_job *job) { return 8 / job->bits; }

/* Bytes of activation codes that belong to a block of weights. */
LB_INLINE int64_t lb_block_codes(const lb_job *job) { return LB_BLOCK * lb_per_byte(job); }

/* Scale and zero point of a row; false where it has NaN or infinity in it, or a range that float32 cannot hold. */
LB_INLINE int lb_range(const lb_rounding *how, float least, float most, uint32_t largest, float *scale, float *zero) {
    float low, high, found;
    if (how->learned) {
        low = how->low, high = how->high;
    } else if (how->symmetric) {
        memcpy(&high, &largest, sizeof high);
        low = -high;
    } else {
        low = least < 0 ? least : 0, high = most > 0 ? most : 0;
    }
    found = (how->symmetric ? high : high - low) / (float)how->top;
    if (found < 1e-12f) found = 1e-12f;
    *scale = found;
    *zero = how->symmetric ? 0 : rintf(-low / found);
    return largest < 0x7f800000u && isfinite(found);
}

/* The part of the result that one group of one half gives: whole dots become floats here, in one order everywhere. */
LB_INLINE void lb_finish(const lb_job *job, int64_t row, int64_t g, int h, const int32_t *dots, int64_t column, int64_t count) {
    const int64_t G = job->groups, at = h * job->n + column;
    const int32_t times = job->bits == 1 ? 2 : 1;
    const int32_t less = (job->bits == 1 ? 1 : 2) * job->code_sums[row * G + g];
    const int32_t zero = job->zero[row];
    const float *scale = job->scale + at * G + g, *bias = job->bias ? job->bias + column : 0;
    const int32_t *sums = job->sums ? job->sums + at * G + g : 0;
    const float of_row = job->row_scale[row];
    float *y = job->y + row * job->n + column;
    const int first = g == 0 && h == 0, last = g == G - 1 && h == job->halves - 1;
    if (G == 1 && first && last && !sums) { /* by far the most frequent */
        for (int64_t i = 0; i < count; i++) y[i] = (float)(times * dots[i] - less) * scale[i] * of_row;
    } else {
        for (int64_t i = 0; i < count; i++) {
            const int32_t dot = times * dots[i] - less + (sums ? zero * sums[i * G] : 0);
            const float part = (float)dot * scale[i * G];
            y[i] = first ? part : y[i] + part;
        }
        if (!last) return;
        for (int64_t i = 0; i < count; i++) y[i] *= of_row;
    }
    if (bias)
        for (int64_t i = 0; i < count; i++) y[i] += bias[i];
}

#endif
