/* Plain C, for any processor and any group size; what the other paths are measured against. */
#include "lowbit.h"

static int usable(void) { return 1; }

static void prepare(const lb_job *job, int64_t row) {
    const float *x = job->x + row * job->k;
    const lb_rounding *how = &job->rounding;
    float least = INFINITY, most = -INFINITY, scale, zero;
    uint32_t largest = 0;
    for (int64_t i = 0; i < job->k; i++) {
        uint32_t word;
        memcpy(&word, x + i, sizeof word);
        word &= 0x7fffffffu;
        largest = word > largest ? word : largest;
        least = x[i] < least ? x[i] : least;
        most = x[i] > most ? x[i] : most;
    }
    const int sound = lb_range(how, least, most, largest, &scale, &zero);
    const float floor = how->symmetric ? -(float)how->top : 0, top = (float)how->top;
    int8_t *codes = job->codes + row * job->stride;
    job->row_scale[row] = sound ? scale : NAN;
    job->zero[row] = sound ? job->shift - (int32_t)zero : 0;
    for (int64_t g = 0; g < job->groups; g++) {
        int32_t sum = 0;
        for (int64_t i = g * job->group; i < (g + 1) * job->group; i++) {
            float code = 0;
            if (sound) {
                code = rintf(x[i] / scale) + zero;
                code = code < floor ? floor : code > top ? top : code;
                code -= (float)job->shift;
            }
            codes[i] = (int8_t)code;
            sum += codes[i];
        }
        job->code_sums[row * job->groups + g] = sum;
    }
}

static int32_t dot(const lb_job *job, const uint8_t *w, const int8_t *codes, int64_t begin) {
    const int64_t end = begin + job->group;
    int32_t sum = 0;
    if (job->bits == 1)
        for (int64_t i = begin; i < end; i++) sum += (w[i >> 3] >> (i & 7) & 1) * codes[i];
    else
        for (int64_t i = begin; i < end; i++) sum += (w[i >> 2] >> 2 * (i & 3) & 3) * codes[i];
    return sum;
}

static void few(const lb_job *job, int64_t row, int rows, int64_t column, int64_t end) {
    for (int r = 0; r < rows; r++)
        for (int64_t g = 0; g < job->groups; g++)
            for (int h = 0; h < job->halves; h++) {
                int32_t dots[LB_FEW_COLUMNS];
                for (int64_t c = column; c < end; c++)
                    dots[c - column] = dot(job, job->w + (h * job->n + c) * job->row_bytes,
                                           job->codes + (row + r) * job->stride, g * job->group);
                lb_finish(job, row + r, g, h, dots, column, end - column);
            }
}

static void many(const lb_job *job, int64_t row, int64_t row_end, int64_t column, int64_t end) {
    few(job, row, (int)(row_end - row), column, end);
}

const lb_backend lb_scalar = {"scalar", 1, usable, prepare, few, many, 1, 16, lb_exact_scalar};
