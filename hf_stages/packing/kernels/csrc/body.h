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
 *   spread            four codes of activations in every 32-bit lane
 *   WEAVE, weave      so many rows of as many 32-bit words, 256 bytes apart -> as many rows, COLUMNS words apart: transposed
 *   ROWS, VECTORS     a tile's kernel multiplies so many rows of activations with so many vectors of columns
 *   TILE_CODES        codes along the inputs of a tile
 */

#define COLUMNS (VECTORS * BYTES / 4) /* of a tile */
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
    EACH(r, rows) total4(sum + r * 4, dots + r * apart);
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

/* `bytes` bytes of WEAVE weight rows -> codes of a byte each, four of a row side by side, then four of the next row: so
 * that a lane of 32 bits is a column of the result. Returns how many codes of a row these were. */
TARGET LB_INLINE int weave_block(int bits, int bytes, const uint8_t *const *w, uint8_t *into) {
    __attribute__((aligned(64))) uint8_t codes[WEAVE * 256];
    EACH(i, WEAVE) unpack(bits, bytes, w[i], codes + i * 256);
    EACH(v, bytes * (8 / bits) / (4 * WEAVE)) weave(codes + v * 4 * WEAVE, into + v * WEAVE * COLUMNS * 4);
    return bytes * (8 / bits);
}

/* Blocks [block, stop) of the columns' rows, and the rest of their group where they are the last, as a tile. */
TARGET LB_INLINE void fill_tile(
    const lb_job *job, int bits, int64_t column, int64_t end, int64_t g, int h, int64_t block, int64_t stop, uint8_t *tile
) {
    for (int64_t c = column; c < end; c += WEAVE, tile += WEAVE * 4) {
        const uint8_t *row[WEAVE], *at[WEAVE];
        uint8_t copy[WEAVE][LB_BLOCK], *into = tile;
        EACH(i, WEAVE) row[i] = segment_of(job, lb_min(c + i, end - 1), g, h);
        for (int64_t b = block; b < stop; b++) {
            EACH(i, WEAVE) at[i] = row[i] + b * LB_BLOCK;
            into += weave_block(bits, LB_BLOCK, at, into) * COLUMNS;
        }
        if (stop < job->full || !job->tail) continue;
        EACH(i, WEAVE) at[i] = rest_of(job, row[i], copy[i]);
        if (job->tail == LB_BLOCK) weave_block(bits, LB_BLOCK, at, into);
        else weave_block(bits, LB_BLOCK / 2, at, into);
    }
}

/* `rows` rows of activations times a tile, whose length is a multiple of four steps of four codes above 0. */
TARGET LB_INLINE void tile_rows(
    int rows, const int8_t *const *x, const uint8_t *tile, int64_t steps, int64_t enough, int32_t *dots, int more
) {
    const int8_t *row[ROWS];
    EACH(r, rows) row[r] = x[r];
    for (int64_t s = 0; s < steps; more = 1) {
        const int64_t stop = lb_min(steps, s + enough);
        V acc[ROWS * VECTORS];
        EACH(i, rows * VECTORS) acc[i] = none();
        for (; s < stop; s += 4)
            EACH(q, 4) {
                V u[VECTORS];
                EACH(v, VECTORS) u[v] = load(tile + (s + q) * COLUMNS * 4 + v * BYTES);
                EACH(r, rows) {
                    const V codes = spread(row[r] + (s + q) * 4);
                    EACH(v, VECTORS) acc[r * VECTORS + v] = mac(acc[r * VECTORS + v], u[v], codes);
                }
            }
        EACH(r, rows) EACH(v, VECTORS) {
            int32_t *into = dots + r * COLUMNS + v * (BYTES / 4);
            store(into, widen(more ? load(into) : none(), acc[r * VECTORS + v]));
        }
    }
}

TARGET static __attribute__((noinline)) void tile_many(
    const int8_t *const *x, const uint8_t *tile, int64_t steps, int64_t enough, int32_t *dots, int more
) {
    tile_rows(ROWS, x, tile, steps, enough, dots, more);
}

TARGET static __attribute__((noinline)) void tile_two(
    const int8_t *const *x, const uint8_t *tile, int64_t steps, int64_t enough, int32_t *dots, int more
) {
    tile_rows(2, x, tile, steps, enough, dots, more);
}

/* One group and no zero point, in whole tiles: by far the most frequent. On its own, so that it is vectors throughout. */
TARGET static __attribute__((noinline)) void finish_whole(
    const lb_job *job, int64_t row, int64_t row_end, int64_t column, const int32_t *restrict dots
) {
    const int32_t times = job->bits == 1 ? 2 : 1;
    float scale[COLUMNS], bias[COLUMNS]; /* copies, which nothing that is written can overlap */
    memcpy(scale, job->scale + column, sizeof scale);
    if (job->bias) memcpy(bias, job->bias + column, sizeof bias);
    for (; row < row_end; row++, dots += COLUMNS) {
        const int32_t less = (job->bits == 1 ? 1 : 2) * job->code_sums[row];
        const float of_row = job->row_scale[row];
        float *restrict y = job->y + row * job->n + column;
        if (job->bias) EACH(i, COLUMNS) y[i] = (float)(times * dots[i] - less) * scale[i] * of_row + bias[i];
        else EACH(i, COLUMNS) y[i] = (float)(times * dots[i] - less) * scale[i] * of_row;
    }
}

TARGET LB_INLINE void finish(
    const lb_job *job, int64_t row, int64_t row_end, int64_t g, int h, int64_t column, int64_t end, const int32_t *dots
) {
    if (end - column == COLUMNS && job->groups * job->halves == 1 && !job->sums) finish_whole(job, row, row_end, column, dots);
    else
        for (; row < row_end; row++, dots += COLUMNS) lb_finish(job, row, g, h, dots, column, end - column);
}

TARGET LB_INLINE void many_of(const lb_job *job, int bits, int64_t row, int64_t row_end, int64_t column, int64_t end) {
    __attribute__((aligned(64))) uint8_t tile[COLUMNS * (TILE_CODES + 256)];
    __attribute__((aligned(64))) int32_t dots[(LB_TILE_ROWS + ROWS) * COLUMNS];
    const int64_t codes = LB_BLOCK * (8 / bits), enough = (bits == 1 ? ENOUGH_1 : ENOUGH_2) * (int64_t)(8 / bits);
    for (int64_t g = 0; g < job->groups; g++)
        EACH(h, job->halves) {
            int64_t block = 0;
            do {
                const int64_t stop = lb_min(job->full, block + TILE_CODES / codes);
                const int64_t steps = ((stop - block) * codes + (stop == job->full ? job->tail * (8 / bits) : 0)) / 4;
                fill_tile(job, bits, column, end, g, h, block, stop, tile);
                for (int64_t r = row, count; r < row_end; r += count) {
                    const int8_t *x[ROWS];
                    int32_t *found = dots + (r - row) * COLUMNS;
                    EACH(i, ROWS) x[i] = job->codes + lb_min(r + i, row_end - 1) * job->stride + g * job->segment + block * codes;
                    count = row_end - r > 2 ? ROWS : 2;
                    if (count > 2) tile_many(x, tile, steps, enough, found, block > 0);
                    else tile_two(x, tile, steps, enough, found, block > 0);
                }
                block = stop;
            } while (block < job->full);
            finish(job, row, row_end, g, h, column, end, dots);
        }
}

TARGET static void many(const lb_job *job, int64_t row, int64_t row_end, int64_t column, int64_t end) {
    if (job->bits == 1) many_of(job, 1, row, row_end, column, end);
    else many_of(job, 2, row, row_end, column, end);
}
