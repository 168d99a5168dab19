/* The kernels, once for all instruction sets: the including file defines what a vector is and how it multiplies.
 *
 *   TARGET            attribute that lets the compiler use the instructions
 *   V, BYTES          a vector, and how many bytes it has
 *   load, store, none reading, writing, zero
 *   mac(acc, u, s)    acc + products of unsigned codes and signed codes, in whatever lanes
 *   widen(sum, acc)   sum (32-bit lanes) + what acc holds
 *   ENOUGH_1, _2      blocks of 1-bit and 2-bit weights after which acc must be widened
 *   expand            32 (or 16) bytes of weights -> vectors of codes, plane by plane
 *   total4            the sums of the lanes of four vectors
 *   ROWS              rows of activations in a tile's kernel
 */

#define EACH(i, count) for (int i = 0; i < (count); i++)

/* Activation codes lie plane by plane: plane t of a block of 32 bytes holds what its 32 bytes' t-th codes multiply.
 * After the last whole block of a group, the rest of it in a block of 32 or of 16 bytes, filled up with zeros. */

/* Where the rest of a weight row's group is read: in place, or from a copy where that would go beyond the last byte. */
LB_INLINE const uint8_t *rest_of(const lb_job *job, const uint8_t *segment, uint8_t *copy) {
    const uint8_t *end = job->w + job->halves * job->n * job->row_bytes, *rest = segment + job->full * LB_BLOCK;
    if (!job->tail || end - rest >= job->tail) return rest;
    memset(copy, 0, LB_BLOCK);
    memcpy(copy, rest, (size_t)(job->group_bytes - job->full * LB_BLOCK));
    return copy;
}

LB_INLINE const uint8_t *segment_of(const lb_job *job, int64_t column, int64_t g, int h) {
    return job->w + (h * job->n + column) * job->row_bytes + g * job->group_bytes;
}

TARGET LB_INLINE void add_block(int rows, int bits, int bytes, const uint8_t *w, const int8_t *const *x, int64_t at, V *acc) {
    const int vectors = bytes * (8 / bits) / BYTES;
    V codes[LB_BLOCK * 8 / BYTES];
    expand(w, bits, bytes, codes);
    EACH(v, vectors) EACH(r, rows) acc[r * 4] = mac(acc[r * 4], codes[v], load(x[r] + at + v * BYTES));
}

/* Dots of one or two rows of activations with four rows of weights, which are unpacked in registers. */
TARGET LB_INLINE void few_dots(
    const lb_job *job, int rows, int bits, const uint8_t *const *w, const uint8_t *const *rest, const int8_t *const *x,
    int32_t *dots, int64_t apart
) {
    const int64_t enough = bits == 1 ? ENOUGH_1 : ENOUGH_2, codes = LB_BLOCK * (8 / bits);
    /* Rows follow each other in memory, so that what comes 4 KiB later, in whole fours of rows, is wanted soon. */
    const int far = job->n * job->row_bytes > 1 << 20; /* less than that is in the cache, maybe */
    const int64_t ahead = (1 + 1024 / job->row_bytes) * 4 * job->row_bytes;
    V sum[8], acc[8];
    EACH(i, rows * 4) sum[i] = none();
    for (int64_t b = 0; b < job->full;) {
        const int64_t stop = lb_min(job->full, b + enough);
        EACH(i, rows * 4) acc[i] = none();
        for (; b < stop; b++)
            EACH(c, 4) {
                if (far && b % 2 == 0) __builtin_prefetch((const void *)((uintptr_t)(w[c] + b * LB_BLOCK) + (uintptr_t)ahead));
                add_block(rows, bits, LB_BLOCK, w[c] + b * LB_BLOCK, x, b * codes, acc + c);
            }
        EACH(i, rows * 4) sum[i] = widen(sum[i], acc[i]);
    }
    if (job->tail) {
        EACH(i, rows * 4) acc[i] = none();
        if (job->tail == LB_BLOCK) EACH(c, 4) add_block(rows, bits, LB_BLOCK, rest[c], x, job->full * codes, acc + c);
        else EACH(c, 4) add_block(rows, bits, LB_BLOCK / 2, rest[c], x, job->full * codes, acc + c);
        EACH(i, rows * 4) sum[i] = widen(sum[i], acc[i]);
    }
    EACH(r, rows) total4(sum + r * 4, dots + r * apart, 0);
}

TARGET LB_INLINE void few_columns(const lb_job *job, int64_t row, int rows, int bits, int64_t column, int64_t end) {
    int32_t dots[2 * LB_FEW_COLUMNS];
    for (int64_t g = 0; g < job->groups; g++)
        EACH(h, job->halves) {
            const int8_t *x[2];
            EACH(r, rows) x[r] = job->codes + (row + r) * job->stride + g * job->segment;
            for (int64_t c = column; c < end; c += 4) {
                const uint8_t *w[4], *rest[4];
                uint8_t copy[4][LB_BLOCK];
                EACH(i, 4) { /* beyond the last column the last one again, for nothing */
                    w[i] = segment_of(job, lb_min(c + i, end - 1), g, h);
                    rest[i] = rest_of(job, w[i], copy[i]);
                }
                few_dots(job, rows, bits, w, rest, x, dots + (c - column), LB_FEW_COLUMNS);
            }
            EACH(r, rows) lb_finish(job, row + r, g, h, dots + r * LB_FEW_COLUMNS, column, end - column);
        }
}

TARGET static void few(const lb_job *job, int64_t row, int rows, int64_t column, int64_t end) {
    for (; rows > 1; row += 2, rows -= 2) {
        if (job->bits == 1) few_columns(job, row, 2, 1, column, end);
        else few_columns(job, row, 2, 2, column, end);
    }
    if (rows && job->bits == 1) few_columns(job, row, 1, 1, column, end);
    else if (rows) few_columns(job, row, 1, 2, column, end);
}

TARGET LB_INLINE void unpack(int bits, int bytes, const uint8_t *w, uint8_t *into) {
    V codes[LB_BLOCK * 8 / BYTES];
    expand(w, bits, bytes, codes);
    EACH(v, bytes * (8 / bits) / BYTES) store(into + v * BYTES, codes[v]);
}

/* Blocks [block, stop) of one weight row, and the rest of its group where they are the last: codes of a byte each. */
TARGET LB_INLINE void unpack_row(const lb_job *job, int bits, const uint8_t *segment, int64_t block, int64_t stop, uint8_t *into) {
    for (; block < stop; block++, into += LB_BLOCK * (8 / bits)) unpack(bits, LB_BLOCK, segment + block * LB_BLOCK, into);
    if (stop < job->full || !job->tail) return;
    uint8_t copy[LB_BLOCK];
    const uint8_t *rest = rest_of(job, segment, copy);
    if (job->tail == LB_BLOCK) unpack(bits, LB_BLOCK, rest, into);
    else unpack(bits, LB_BLOCK / 2, rest, into);
}

/* ROWS rows of activations times four unpacked rows of weights. A tile is short enough for acc never to be widened, and
 * its length is a multiple of 64 above 0. */
TARGET static __attribute__((noinline)) void tile_dots(
    const int8_t *const *x, const uint8_t *tile, int64_t length, int32_t *dots, int more
) {
    V acc[ROWS * 4];
    EACH(i, ROWS * 4) acc[i] = none();
    const uint8_t *w[4];
    const int8_t *row[ROWS];
    EACH(c, 4) w[c] = tile + (c + 1) * length;
    EACH(r, ROWS) row[r] = x[r] + length;
    int64_t at = -length;
    do {
        EACH(half, 64 / BYTES) {
            V s[ROWS];
            EACH(r, ROWS) s[r] = load(row[r] + at + half * BYTES);
            EACH(c, 4) {
                const V u = load(w[c] + at + half * BYTES);
                EACH(r, ROWS) acc[r * 4 + c] = mac(acc[r * 4 + c], u, s[r]);
            }
        }
        at += 64;
    } while (at);
    EACH(i, ROWS * 4) acc[i] = widen(none(), acc[i]);
    EACH(r, ROWS) total4(acc + r * 4, dots + r * LB_TILE_COLUMNS, more);
}

TARGET LB_INLINE void many_of(const lb_job *job, int bits, int64_t row, int64_t row_end, int64_t column, int64_t end) {
    __attribute__((aligned(64))) uint8_t tile[LB_TILE_COLUMNS * (LB_TILE_BYTES + 256)];
    int32_t dots[(LB_TILE_ROWS + ROWS) * LB_TILE_COLUMNS];
    const int64_t codes = LB_BLOCK * (8 / bits), count = end - column;
    for (int64_t g = 0; g < job->groups; g++)
        EACH(h, job->halves) {
            int64_t block = 0;
            do {
                const int64_t stop = lb_min(job->full, block + LB_TILE_BYTES / codes);
                int64_t length = (stop - block) * codes;
                if (stop == job->full) length += job->tail * (8 / bits);
                for (int64_t c = 0; c < (count + 3) / 4 * 4; c++)
                    unpack_row(job, bits, segment_of(job, lb_min(column + c, end - 1), g, h), block, stop, tile + c * length);
                for (int64_t r = row; r < row_end; r += ROWS) {
                    const int8_t *x[ROWS];
                    EACH(i, ROWS) x[i] = job->codes + lb_min(r + i, row_end - 1) * job->stride + g * job->segment + block * codes;
                    for (int64_t c = 0; c < count; c += 4)
                        tile_dots(x, tile + c * length, length, dots + (r - row) * LB_TILE_COLUMNS + c, block > 0);
                }
                block = stop;
            } while (block < job->full);
            for (int64_t r = row; r < row_end; r++)
                lb_finish(job, r, g, h, dots + (r - row) * LB_TILE_COLUMNS, column, count);
        }
}

TARGET static void many(const lb_job *job, int64_t row, int64_t row_end, int64_t column, int64_t end) {
    if (job->bits == 1) many_of(job, 1, row, row_end, column, end);
    else many_of(job, 2, row, row_end, column, end);
}
