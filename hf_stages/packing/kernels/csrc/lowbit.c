/* The calls from outside: layout, buffers, which instructions, and who computes which chunk. */
#include "lowbit.h"

#include <stdlib.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#define VERSION 2           /* of these functions' arguments; _library.py compares it */
#define ROOM (4 << 20)      /* bytes of rounded activations at a time */
#define LARGE (4 << 20)     /* bytes of a result that is worth asking for huge pages */
#define SMALL (3 << 19)     /* fewer products than these (tens of microseconds) are not worth a second thread */

static const lb_backend *const backends[] = {
#if defined(__x86_64__)
    &lb_avx512_vnni, &lb_avx_vnni, &lb_avx2,
#elif defined(__aarch64__)
    &lb_neon_dot,
#endif
    &lb_scalar,
};
enum { BACKENDS = sizeof backends / sizeof *backends };

LB_EXPORT int lb_version(void) { return VERSION; }

/* Names of what this processor can run, best first; "" after the last. */
LB_EXPORT const char *lb_name(int number) {
    for (int i = 0; i < BACKENDS; i++)
        if (backends[i]->usable() && number-- == 0) return backends[i]->name;
    return "";
}

static const lb_backend *named(const char *name) {
    for (int i = 0; i < BACKENDS; i++)
        if (!strcmp(backends[i]->name, name)) return backends[i]->usable() ? backends[i] : 0;
    return 0;
}

/* A large result is mostly fresh memory, and its pages' first touch takes longer than its numbers: 26 ms for 4096 x 3072,
 * 6.5 ms in huge pages (Zen 3). Only advice: where it is not taken, nothing changes. */
static void large_pages(const float *y, int64_t count) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t page = 2 << 20, begin = ((uintptr_t)y + page - 1) & ~(page - 1);
    const uintptr_t end = ((uintptr_t)y + (uintptr_t)count * sizeof *y) & ~(page - 1);
    if (count * (int64_t)sizeof *y >= LARGE && end > begin) madvise((void *)begin, end - begin, MADV_HUGEPAGE);
#else
    (void)y, (void)count;
#endif
}

static void lay_out(lb_job *job, const lb_backend **backend) {
    const int per_byte = lb_per_byte(job);
    job->row_bytes = (job->k + per_byte - 1) / per_byte;
    job->group = job->k / job->groups;
    if (job->groups > 1 && job->group % per_byte) *backend = &lb_scalar; /* groups begin within bytes */
    job->group_bytes = (job->group + per_byte - 1) / per_byte;
    job->full = job->group_bytes / LB_BLOCK;
    const int64_t left = job->group_bytes % LB_BLOCK;
    job->tail = left == 0 ? 0 : left > LB_BLOCK / 2 ? LB_BLOCK : LB_BLOCK / 2;
    job->segment = (*backend)->natural ? job->group : (job->full * LB_BLOCK + job->tail) * per_byte;
    job->stride = job->segment * job->groups;
    job->shift = job->rounding.top > 127 ? 128 : 0;
}

typedef struct {
    lb_job job;
    const lb_backend *backend;
    int64_t rows, by; /* of a chunk */
    int64_t column_chunks;
} lb_run;

static void prepare_chunk(void *about, int64_t chunk) {
    const lb_run *run = about;
    for (int64_t r = chunk * run->by; r < lb_min((chunk + 1) * run->by, run->job.m); r++) run->backend->prepare(&run->job, r);
}

static void few_chunk(void *about, int64_t chunk) {
    const lb_run *run = about;
    const int64_t column = chunk * run->by;
    run->backend->few(&run->job, 0, (int)run->job.m, column, lb_min(column + run->by, run->job.n));
}

static void many_chunk(void *about, int64_t chunk) {
    const lb_run *run = about;
    const int64_t row = chunk / run->column_chunks * run->rows, column = chunk % run->column_chunks * run->by;
    run->backend->many(&run->job, row, lb_min(row + run->rows, run->job.m), column, lb_min(column + run->by, run->job.n));
}

/* All rows of run->job, whose activations have room. */
static void multiply(lb_run *run, int threads) {
    lb_job *job = &run->job;
    if (job->m * job->k >= 1 << 17) {
        run->by = 1 + (1 << 14) / job->k;
        lb_parallel(threads, (job->m + run->by - 1) / run->by, prepare_chunk, run);
    } else {
        run->by = job->m;
        prepare_chunk(run, 0);
    }
    if (job->m * job->n * job->k < SMALL) threads = 1;
    if (job->m <= run->backend->few_rows) {
        run->by = LB_FEW_COLUMNS;
        while (run->by > 8 && job->n < run->by * threads * 4) run->by /= 2;
        if (threads == 1) run->by = LB_FEW_COLUMNS;
        lb_parallel(threads, (job->n + run->by - 1) / run->by, few_chunk, run);
    } else {
        run->rows = LB_TILE_ROWS;
        run->by = run->backend->columns;
        run->column_chunks = (job->n + run->by - 1) / run->by;
        lb_parallel(threads, run->column_chunks * ((job->m + run->rows - 1) / run->rows), many_chunk, run);
    }
}

/* y = rounded x times weights, as lb_job says it; sums of levels are needed where there is a zero point. */
LB_EXPORT int lb_linear(
    const char *name, int threads, const float *x, const uint8_t *w, const float *scale, const float *bias,
    const int32_t *sums, float *y, int64_t m, int64_t n, int64_t k, int64_t groups, int bits, int halves, int top,
    int symmetric, int learned, float low, float high
) {
    lb_run run = {.backend = named(name)};
    if (!run.backend) return LB_UNAVAILABLE;
    if (!m || !n) return LB_OK;
    run.job = (lb_job){.x = x, .w = w, .scale = scale, .bias = bias, .sums = sums, .y = y, .m = m, .n = n, .k = k,
                       .groups = groups, .bits = bits, .halves = halves, .rounding = {top, symmetric, learned, low, high}};
    lb_job *job = &run.job;
    lay_out(job, &run.backend);
    large_pages(y, m * n);
    const int64_t rows = lb_min(m, 64 + ROOM / job->stride);
    const size_t codes = ((size_t)(rows * job->stride) + 63) & ~(size_t)63;
    const size_t room = codes + (size_t)rows * (8 + 4 * (size_t)groups);
    __attribute__((aligned(64))) char near[24 << 10]; /* a row or two of activations need no allocation */
    char *memory = near, *far = 0;
    if (room > sizeof near) {
        far = malloc(room + 64);
        if (!far) return LB_NO_MEMORY;
        memory = (char *)(((uintptr_t)far + 63) & ~(uintptr_t)63);
    }
    job->codes = (int8_t *)memory;
    job->row_scale = (float *)(memory + codes);
    job->zero = (int32_t *)(job->row_scale + rows);
    job->code_sums = job->zero + rows;
    for (int64_t row = 0; row < m; row += rows) {
        job->m = lb_min(rows, m - row);
        job->x = x + row * k, job->y = y + row * n;
        multiply(&run, threads);
    }
    free(far);
    return LB_OK;
}

/* What a layer has: _call.py knows it by this order. */
typedef struct {
    const char *name;
    const uint8_t *w;
    const float *scale, *bias;
    int64_t n, k, groups;
    int bits, halves, top;
} lb_layer;

/* lb_linear with symmetric ranges of each row, for a layer whose numbers need not be handed over each time. */
LB_EXPORT int lb_call(const lb_layer *layer, int threads, const float *x, float *y, int64_t m) {
    return lb_linear(layer->name, threads, x, layer->w, layer->scale, layer->bias, 0, y, m, layer->n, layer->k,
                     layer->groups, layer->bits, layer->halves, layer->top, 1, 0, 0, 0);
}

static void exact_chunk(void *about, int64_t chunk) {
    const lb_run *run = about;
    const int64_t column = chunk * run->by;
    run->backend->exact(&run->job, column, lb_min(column + run->by, run->job.n));
}

/* y = x times weights, full-precision x; made for a few rows. */
LB_EXPORT int lb_exact(
    const char *name, int threads, const float *x, const uint8_t *w, const float *scale, const float *bias, float *y,
    int64_t m, int64_t n, int64_t k, int64_t groups, int bits, int halves
) {
    lb_run run = {.backend = named(name), .by = LB_FEW_COLUMNS};
    if (!run.backend) return LB_UNAVAILABLE;
    run.job = (lb_job){.x = x, .w = w, .scale = scale, .bias = bias, .y = y, .m = m, .n = n, .k = k,
                       .groups = groups, .bits = bits, .halves = halves};
    lay_out(&run.job, &run.backend);
    while (run.by > 8 && n < run.by * threads * 4) run.by /= 2;
    if (m * n * k < SMALL / 4) threads = 1;
    if (m) lb_parallel(threads, (n + run.by - 1) / run.by, exact_chunk, &run);
    return LB_OK;
}

typedef struct {
    const uint8_t *w;
    const float *scale;
    float *into;
    int64_t all, row, rows, k, groups;
    int bits, halves;
    int64_t by;
} lb_unpacking;

/* One weight row, one half: byte by byte, what is left of them and odd groups one by one. */
static void unpack_into(const uint8_t *w, const float *scale, int64_t k, int64_t group, int bits, int more, float *into) {
    const int each = 8 / bits;
    for (int64_t g = 0; g * group < k; g++) {
        const float s = scale[g], of[4] = {bits == 1 ? -s : -2 * s, bits == 1 ? s : -s, 0, s};
        int64_t i = g * group, end = i + group;
        while (i < end) {
            const int wide = i % each == 0 && i + each <= end;
            const unsigned byte = w[i / each] >> (i % each * bits);
            for (int t = 0; t < (wide ? each : 1); t++, i++) {
                const float value = of[byte >> (t * bits) & ((1 << bits) - 1)];
                into[i] = more ? into[i] + value : value;
            }
        }
    }
}

static void unpack_chunk(void *about, int64_t chunk) {
    const lb_unpacking *u = about;
    const int64_t row_bytes = (u->k + 8 / u->bits - 1) / (8 / u->bits);
    for (int64_t r = chunk * u->by; r < lb_min((chunk + 1) * u->by, u->rows); r++)
        for (int h = 0; h < u->halves; h++) {
            const int64_t at = h * u->all + u->row + r;
            unpack_into(u->w + at * row_bytes, u->scale + at * u->groups, u->k, u->k / u->groups, u->bits, h, u->into + r * u->k);
        }
}

/* Rows [row, row + rows) of the effective weight, of `all`. */
LB_EXPORT void lb_dense(
    int threads, const uint8_t *w, const float *scale, float *into, int64_t all, int64_t row, int64_t rows, int64_t k,
    int64_t groups, int bits, int halves
) {
    lb_unpacking about = {w, scale, into, all, row, rows, k, groups, bits, halves, 1 + (1 << 14) / k};
    lb_parallel(threads, (rows + about.by - 1) / about.by, unpack_chunk, &about);
}

static int64_t code_sum(const uint8_t *w, int64_t begin, int64_t end, int bits) {
    int64_t sum = 0;
    for (int64_t i = begin; i < end; i++) /* up to a whole byte, then bytes */
        if (i * bits % 8 == 0 && i + 8 / bits <= end) {
            const unsigned byte = w[i * bits / 8];
            sum += bits == 1 ? __builtin_popcount(byte) : __builtin_popcount(byte) + __builtin_popcount(byte & 0xaa);
            i += 8 / bits - 1;
        } else {
            sum += w[i * bits / 8] >> (i * bits % 8) & ((1 << bits) - 1);
        }
    return sum;
}

/* Sums of levels, [rows, groups]. */
LB_EXPORT void lb_sums(const uint8_t *w, int64_t rows, int64_t k, int64_t groups, int bits, int32_t *sums) {
    const int64_t group = k / groups, row_bytes = (k + 8 / bits - 1) / (8 / bits);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t g = 0; g < groups; g++) {
            const int64_t sum = code_sum(w + r * row_bytes, g * group, (g + 1) * group, bits);
            sums[r * groups + g] = (int32_t)(bits == 1 ? 2 * sum - group : sum - 2 * group);
        }
}
