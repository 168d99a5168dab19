/* Random calls of the library against a naive reference: `fuzz calls seed [path...]`, all paths by default.
 *
 * Each buffer is as long as it must be and no longer, so that a sanitizer sees what is read beyond. The reference adds up
 * whole numbers in 64 bits and then rounds in the order that the library promises: results must be equal bit by bit. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *lb_name(int number);
int lb_linear(const char *, int, const float *, const uint8_t *, const float *, const float *, const int32_t *, float *,
              int64_t, int64_t, int64_t, int64_t, int, int, int, int, int, float, float);
int lb_exact(const char *, int, const float *, const uint8_t *, const float *, const float *, float *, int64_t, int64_t,
             int64_t, int64_t, int, int);
void lb_dense(int, const uint8_t *, const float *, float *, int64_t, int64_t, int64_t, int64_t, int64_t, int, int);
void lb_sums(const uint8_t *, int64_t, int64_t, int64_t, int, int32_t *);

static uint64_t state;
static uint32_t chance(void) { return (uint32_t)((state = state * 6364136223846793005u + 1442695040888963407u) >> 33); }
static int64_t below(int64_t end) { return (int64_t)(chance() % (uint64_t)end); }
static float uniform(void) { return (float)below(1 << 24) / (1 << 23) - 1; }
static void *room(int64_t bytes) { /* a byte where none is needed: malloc(0) may be NULL */
    void *found = malloc((size_t)(bytes ? bytes : 1));
    if (!found) abort();
    return found;
}

typedef struct {
    int64_t m, n, k, groups, group, row_bytes;
    int bits, halves, top, symmetric, learned;
    float low, high, *x, *scale, *bias, *y, *wanted;
    uint8_t *w;
    int32_t *sums;
} task;

static int level(const task *t, int h, int64_t c, int64_t i) {
    const uint8_t *row = t->w + (h * t->n + c) * t->row_bytes;
    return t->bits == 1 ? 2 * (row[i / 8] >> (i % 8) & 1) - 1 : (row[i / 4] >> 2 * (i % 4) & 3) - 2;
}

/* Codes less their zero point; the scale, NaN for a row that cannot be rounded. */
static float codes_of(const task *t, int64_t row, int64_t *codes) {
    const float *x = t->x + row * t->k;
    float low = 0, high = 0, size = 0;
    int sound = 1;
    for (int64_t i = 0; i < t->k; i++) {
        sound &= isfinite(x[i]) != 0;
        low = fminf(low, x[i]), high = fmaxf(high, x[i]), size = fmaxf(size, fabsf(x[i]));
    }
    if (t->learned) low = t->low, high = t->high;
    else if (t->symmetric) low = -size, high = size;
    float scale = (t->symmetric ? high : high - low) / (float)t->top;
    scale = fmaxf(scale, 1e-12f);
    sound &= isfinite(scale) != 0;
    const float zero = t->symmetric ? 0 : nearbyintf(-low / scale), floor = t->symmetric ? -(float)t->top : 0;
    for (int64_t i = 0; i < t->k; i++)
        codes[i] = sound ? (int64_t)fminf(fmaxf(nearbyintf(x[i] / scale) + zero, floor), (float)t->top) - (int64_t)zero : 0;
    return sound ? scale : NAN;
}

static void refer(const task *t) {
    int64_t *codes = room(t->k * 8);
    for (int64_t r = 0; r < t->m; r++) {
        const float scale = codes_of(t, r, codes);
        for (int64_t c = 0; c < t->n; c++) {
            float sum = 0;
            for (int64_t g = 0; g < t->groups; g++)
                for (int h = 0; h < t->halves; h++) {
                    int64_t dot = 0;
                    for (int64_t i = g * t->group; i < (g + 1) * t->group; i++) dot += codes[i] * level(t, h, c, i);
                    const float part = (float)dot * t->scale[(h * t->n + c) * t->groups + g];
                    sum = g || h ? sum + part : part;
                }
            sum *= scale;
            t->wanted[r * t->n + c] = t->bias ? sum + t->bias[c] : sum;
        }
    }
    free(codes);
}

static int same(const task *t, const char *path, const char *what, double tolerance) {
    for (int64_t i = 0; i < t->m * t->n; i++) {
        const float a = t->y[i], b = t->wanted[i];
        if ((isnan(a) && isnan(b)) || a == b || fabs((double)a - b) <= tolerance) continue;
        printf("%s %s: m %lld n %lld k %lld groups %lld bits %d halves %d top %d symmetric %d learned %d: [%lld] is %.9g, not %.9g\n",
               path, what, (long long)t->m, (long long)t->n, (long long)t->k, (long long)t->groups, t->bits, t->halves, t->top,
               t->symmetric, t->learned, (long long)i, (double)a, (double)b);
        return 0;
    }
    return 1;
}

static int check_exact(const task *t, const char *path) {
    float *dense = room(t->n * t->k * 4);
    const int64_t cut = below(t->n + 1); /* in two calls */
    lb_dense(2, t->w, t->scale, dense, t->n, 0, cut, t->k, t->groups, t->bits, t->halves);
    lb_dense(1, t->w, t->scale, dense + cut * t->k, t->n, cut, t->n - cut, t->k, t->groups, t->bits, t->halves);
    for (int64_t r = 0; r < t->m; r++)
        for (int64_t c = 0; c < t->n; c++) {
            double sum = t->bias ? t->bias[c] : 0;
            for (int64_t i = 0; i < t->k; i++) sum += (double)dense[c * t->k + i] * t->x[r * t->k + i];
            t->wanted[r * t->n + c] = (float)sum;
        }
    free(dense);
    if (lb_exact(path, 2, t->x, t->w, t->scale, t->bias, t->y, t->m, t->n, t->k, t->groups, t->bits, t->halves)) return 0;
    return same(t, path, "exact", 1e-4 * (double)t->k);
}

static void draw(task *t) {
    static const int64_t lengths[] = {1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 33, 60, 64, 100, 127, 128, 192, 256, 300, 511, 513, 640, 1030, 2300};
    *t = (task){.m = below(3) ? below(6) : below(40), .n = 1 + (below(3) ? below(20) : below(140)), .groups = below(3) ? 1 : 1 + below(4)};
    t->group = lengths[below(sizeof lengths / sizeof *lengths)];
    t->k = t->group * t->groups;
    t->bits = 1 + (int)below(2);
    t->halves = t->bits == 1 ? 1 + (int)below(2) : 1;
    t->symmetric = below(2) != 0;
    t->top = t->symmetric ? (below(2) ? 127 : 7) : (below(2) ? 255 : 15);
    t->learned = !below(3);
    t->high = 0.3f + (float)below(3), t->low = t->symmetric ? -t->high : -(float)below(2);
    t->row_bytes = (t->k * t->bits + 7) / 8;
    const int64_t rows = t->halves * t->n;
    t->w = room(rows * t->row_bytes), t->scale = room(rows * t->groups * 4), t->sums = room(rows * t->groups * 4);
    t->x = room(t->m * t->k * 4), t->y = room(t->m * t->n * 4), t->wanted = room(t->m * t->n * 4);
    t->bias = below(2) ? room(t->n * 4) : 0;
    for (int64_t i = 0; i < rows * t->row_bytes; i++) t->w[i] = (uint8_t)chance();
    for (int64_t i = 0; i < rows * t->groups; i++) t->scale[i] = uniform();
    for (int64_t i = 0; i < t->m * t->k; i++) t->x[i] = uniform();
    if (!below(4)) { /* the largest sums that there can be */
        memset(t->w, below(2) ? 0xff : chance() & 0xff, (size_t)(rows * t->row_bytes));
        const float all = below(2) ? 1 : -1;
        for (int64_t i = 0; i < t->m * t->k; i++) t->x[i] = all;
    }
    for (int64_t i = 0; t->bias && i < t->n; i++) t->bias[i] = uniform();
}

static int check(const char *path) {
    task t;
    draw(&t);
    int sound = check_exact(&t, path);
    if (t.m && !below(4)) /* somewhere a value that no code stands for */
        t.x[below(t.m * t.k)] = (const float[]){NAN, INFINITY, -INFINITY, 3e38f, 0, 1e-30f}[below(6)];
    lb_sums(t.w, t.halves * t.n, t.k, t.groups, t.bits, t.sums);
    refer(&t);
    for (int threads = 1; sound && threads < 4; threads += 2) {
        memset(t.y, 0xff, (size_t)(t.m * t.n * 4));
        sound = !lb_linear(path, threads, t.x, t.w, t.scale, t.bias, t.symmetric ? 0 : t.sums, t.y, t.m, t.n, t.k, t.groups,
                           t.bits, t.halves, t.top, t.symmetric, t.learned, t.low, t.high) &&
                same(&t, path, "linear", 0);
    }
    free(t.w), free(t.scale), free(t.sums), free(t.x), free(t.y), free(t.wanted), free(t.bias);
    return sound;
}

int main(int count, char **words) {
    const int calls = count > 1 ? atoi(words[1]) : 1000;
    state = count > 2 ? (uint64_t)atoll(words[2]) : 1;
    for (int i = 0; i < calls; i++)
        for (int p = 0; count > 3 ? p + 3 < count : *lb_name(p); p++)
            if (!check(count > 3 ? words[p + 3] : lb_name(p))) return printf("call %d failed\n", i), 1;
    for (int p = 0; *lb_name(p); p++) printf("%s ", lb_name(p));
    return printf("equal\n"), 0;
}
