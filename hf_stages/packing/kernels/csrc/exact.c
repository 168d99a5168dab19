/* Full-precision activations, few rows: sums of x and -x. Many rows are left to a matrix product of unpacked weights. */
#include "lowbit.h"

LB_INLINE float level(const uint8_t *w, int64_t i, int bits) {
    return bits == 1 ? (float)(2 * (w[i >> 3] >> (i & 7) & 1) - 1) : (float)((w[i >> 2] >> 2 * (i & 3) & 3) - 2);
}

/* Positions [from, to) of one group. */
LB_INLINE float plain_dot(const float *x, const uint8_t *w, int64_t from, int64_t to, int bits) {
    float sum = 0;
    for (int64_t i = from; i < to; i++) sum += level(w, i, bits) * x[i];
    return sum;
}

LB_INLINE void end_column(const lb_job *job, int64_t row, int64_t column, float sum) {
    job->y[row * job->n + column] = job->bias ? sum + job->bias[column] : sum;
}

void lb_exact_scalar(const lb_job *job, int64_t column, int64_t end) {
    for (int64_t r = 0; r < job->m; r++)
        for (int64_t c = column; c < end; c++) {
            float sum = 0;
            for (int h = 0; h < job->halves; h++) {
                const int64_t at = h * job->n + c;
                for (int64_t g = 0; g < job->groups; g++)
                    sum += job->scale[at * job->groups + g] * plain_dot(job->x + r * job->k, job->w + at * job->row_bytes,
                                                                        g * job->group, (g + 1) * job->group, job->bits);
            }
            end_column(job, r, c, sum);
        }
}

#if defined(__x86_64__)
#include <immintrin.h>

#define TARGET __attribute__((target("avx2,fma")))

/* acc + the products of 32 bits of weights with as many x as they have codes. */
TARGET LB_INLINE void add_word(int rows, int bits, const uint8_t *w, const float *x, int64_t apart, __m256 *acc) {
    int32_t word;
    memcpy(&word, w, sizeof word);
    const __m256i all = _mm256_set1_epi32(word);
    const __m256 levels = _mm256_setr_ps(-2, -1, 0, 1, -2, -1, 0, 1), sign = _mm256_set1_ps(-0.0f);
    for (int part = 0; part < 4 / bits; part++) {
        if (bits == 2) { /* the two lowest bits of a lane choose among four floats */
            const __m256i shift = _mm256_add_epi32(_mm256_set1_epi32(16 * part), _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
            const __m256 value = _mm256_permutevar_ps(levels, _mm256_srlv_epi32(all, shift));
            for (int r = 0; r < rows; r++)
                acc[r] = _mm256_fmadd_ps(value, _mm256_loadu_ps(x + r * apart + part * 8), acc[r]);
        } else { /* a bit that is 0 turns the sign */
            const __m256i shift = _mm256_sub_epi32(_mm256_set1_epi32(31 - 8 * part), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
            const __m256 turn = _mm256_andnot_ps(_mm256_castsi256_ps(_mm256_sllv_epi32(all, shift)), sign);
            for (int r = 0; r < rows; r++)
                acc[r] = _mm256_add_ps(acc[r], _mm256_xor_ps(turn, _mm256_loadu_ps(x + r * apart + part * 8)));
        }
    }
}

TARGET LB_INLINE float lanes(__m256 v) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
}

/* `rows` rows from `row` on; four columns at a time, so that additions need not wait for each other. */
TARGET LB_INLINE void exact_rows(const lb_job *job, int rows, int bits, int64_t row, int64_t column, int64_t end) {
    const int64_t codes = 32 / bits, whole = job->group / codes, k = job->k;
    const float *x = job->x + row * k;
    for (int64_t c = column; c < end; c += 4) {
        const int columns = (int)lb_min(4, end - c);
        float sum[4][4] = {{0}};
        for (int h = 0; h < job->halves; h++)
            for (int64_t g = 0; g < job->groups; g++) {
                const int64_t begin = g * job->group;
                const uint8_t *w[4];
                __m256 acc[4][4];
                for (int i = 0; i < 4; i++) { /* beyond the last column the last one again, for nothing */
                    w[i] = job->w + (h * job->n + lb_min(c + i, end - 1)) * job->row_bytes + begin / (8 / bits);
                    for (int r = 0; r < rows; r++) acc[i][r] = _mm256_setzero_ps();
                }
                for (int64_t b = 0; b < whole; b++)
                    for (int i = 0; i < 4; i++) add_word(rows, bits, w[i] + 4 * b, x + begin + b * codes, k, acc[i]);
                for (int i = 0; i < columns; i++) {
                    const int64_t at = h * job->n + c + i;
                    for (int r = 0; r < rows; r++) {
                        const float rest = plain_dot(x + r * k, job->w + at * job->row_bytes, begin + whole * codes,
                                                     begin + job->group, bits);
                        sum[i][r] += job->scale[at * job->groups + g] * (lanes(acc[i][r]) + rest);
                    }
                }
            }
        for (int i = 0; i < columns; i++)
            for (int r = 0; r < rows; r++) end_column(job, row + r, c + i, sum[i][r]);
    }
}

TARGET void lb_exact_avx2(const lb_job *job, int64_t column, int64_t end) {
    int64_t row = 0;
    for (; row + 1 < job->m; row += 2) {
        if (job->bits == 1) exact_rows(job, 2, 1, row, column, end);
        else exact_rows(job, 2, 2, row, column, end);
    }
    if (row < job->m && job->bits == 1) exact_rows(job, 1, 1, row, column, end);
    else if (row < job->m) exact_rows(job, 1, 2, row, column, end);
}
#endif
