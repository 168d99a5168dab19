/* From natural order to planes, for instruction sets without a path of their own; and the frame of `prepare`. */
#ifndef ARRANGE_H
#define ARRANGE_H
#include "lowbit.h"

/* Rounds `count` activations of a block, with zeros after them; returns the codes' sum. */
typedef int32_t lb_round(const float *x, int64_t count, int64_t room, float scale, float zero, float floor, float top, int shift, int8_t *codes);
/* Brings a whole block's codes into planes. */
typedef void lb_arrange(const int8_t *codes, int bits, int8_t *planes);
typedef void lb_extremes(const float *x, int64_t count, int both, float *least, float *most, uint32_t *largest);

LB_INLINE void lb_prepare_row(const lb_job *job, int64_t row, lb_extremes *extremes, lb_round *round, lb_arrange *arrange) {
    const lb_rounding *how = &job->rounding;
    const float *x = job->x + row * job->k;
    const int64_t block = lb_block_codes(job);
    float least = 0, most = 0, scale, zero;
    uint32_t largest;
    extremes(x, job->k, !how->symmetric && !how->learned, &least, &most, &largest);
    const int sound = lb_range(how, least, most, largest, &scale, &zero);
    const float floor = how->symmetric ? -(float)how->top : 0, top = (float)how->top;
    int8_t *into = job->codes + row * job->stride;
    job->row_scale[row] = sound ? scale : NAN;
    job->zero[row] = sound ? job->shift - (int32_t)zero : 0;
    if (!sound) { /* the scale alone makes the row NaN */
        memset(into, 0, (size_t)job->stride);
        memset(job->code_sums + row * job->groups, 0, (size_t)job->groups * sizeof *job->code_sums);
        return;
    }
    for (int64_t g = 0; g < job->groups; g++) {
        __attribute__((aligned(64))) int8_t codes[256], planes[256];
        int32_t sum = 0;
        int64_t at = 0;
        for (int64_t b = 0; b < job->full; b++, at += block, into += block) {
            sum += round(x + at, lb_min(block, job->group - at), block, scale, zero, floor, top, job->shift, codes);
            arrange(codes, job->bits, into);
        }
        if (job->tail) {
            sum += round(x + at, job->group - at, block, scale, zero, floor, top, job->shift, codes);
            arrange(codes, job->bits, planes);
            for (int t = 0; t < lb_per_byte(job); t++, into += job->tail) memcpy(into, planes + t * LB_BLOCK, (size_t)job->tail);
        }
        job->code_sums[row * job->groups + g] = sum;
        x += job->group;
    }
}
#endif
