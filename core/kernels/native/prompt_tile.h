/* The loops of one task of prompt_attention.h. The including file defines its instruction set VECTOR; Vec, a register of
 * LANES floats; ROW_VECTORS and AT_ONCE, whose product is the number of registers that hold sums; PAIRED; the functions
 * load, store, set, add, subtract, multiply, divide, larger, power (of two), quick_exponential, keep, add_products; and pair_of if
 * PAIRED, otherwise round_short. */

enum { GROUP_ROWS = LANES * ROW_VECTORS };

/* `count` keys from `key` on; `padded`: rounded up to AT_ONCE. */
typedef struct {
    int64_t key, count, padded;
} Span;

/* Where the rows of a step's keys or values begin, and the bytes from one to the next. */
typedef struct {
    const uint8_t *at;
    int64_t bytes;
} Rows;

VECTOR INLINE Span span_at(int64_t key, int64_t end, int64_t most) {
    Span s = {key, end - key < most ? end - key : most, 0};
    s.padded = (s.count + AT_ONCE - 1) / AT_ONCE * AT_ONCE;
    return s;
}

/* ---- keys and values of a step ---- */

INLINE float as_cell(uint32_t bits) {
    float cell;
    memcpy(&cell, &bits, 4);
    return cell;
}

/* Widen `count` rows of bf16, `stride` apart, to floats. */
VECTOR static void widen_rows(const uint16_t *bits, int64_t stride, int64_t count, int64_t dim, float *to) {
    for (int64_t i = 0; i < count; i++, bits += stride, to += dim)
        for (int64_t d = 0; d < dim; d++) to[d] = as_cell((uint32_t)bits[d] << 16);
}

/* Lay each column of two rows of bf16 side by side; an odd last row is paired with zeros. */
VECTOR static void pair_rows(const uint16_t *bits, int64_t stride, int64_t count, int64_t dim, float *to) {
    for (; count > 1; count -= 2, bits += 2 * stride, to += dim)
        for (int64_t d = 0; d < dim; d++) to[d] = as_cell(bits[d] | (uint32_t)bits[stride + d] << 16);
    if (count) for (int64_t d = 0; d < dim; d++) to[d] = as_cell(bits[d]);
}

VECTOR INLINE Rows take_keys(const Block *b, const Span *step) {
    const Shape *n = &b->a->n;
    int64_t at = b->b * n->k_batch + b->kv_head * n->k_head + step->key * n->k_row;
    int64_t size = b->a->type == TYPE_F32 ? 4 : 2;
    Rows rows = {(const uint8_t *)b->a->k + at * size, n->k_row * size};
    if (PAIRED || b->a->type == TYPE_F32) return rows;
    widen_rows((const uint16_t *)rows.at, n->k_row, step->count, n->dim, b->tile);
    return (Rows){(const uint8_t *)b->tile, n->dim * 4};
}

VECTOR INLINE Rows take_values(const Block *b, const Span *step) {
    const Shape *n = &b->a->n;
    int64_t at = b->b * n->v_batch + b->kv_head * n->v_head + step->key * n->v_row;
    if (b->a->type == TYPE_F32) return (Rows){(const uint8_t *)b->a->v + at * 4, n->v_row * 4};
    const uint16_t *bits = (const uint16_t *)b->a->v + at;
    if (PAIRED) pair_rows(bits, n->v_row, step->count, n->value_dim, b->tile);
    else widen_rows(bits, n->v_row, step->count, n->value_dim, b->tile);
    return (Rows){(const uint8_t *)b->tile, n->value_dim * 4};
}

/* ---- scores ---- */

/* Write the dot products of a group's rows with AT_ONCE keys; past the last one it is repeated. */
VECTOR INLINE void score_keys(const Block *b, const Rows *keys, int64_t first, int64_t last, int64_t row, float *scores) {
    int64_t cells = PAIRED ? b->a->n.dim / 2 : b->a->n.dim;
    const float *key[AT_ONCE];
    Vec dots[AT_ONCE * ROW_VECTORS];
    UNROLL for (int j = 0; j < AT_ONCE; j++)
        key[j] = (const float *)(keys->at + (first + j < last ? first + j : last) * keys->bytes);
    UNROLL for (int i = 0; i < AT_ONCE * ROW_VECTORS; i++) dots[i] = set(0);
    for (int64_t cell = 0; cell < cells; cell++) {
        Vec q[ROW_VECTORS];
        UNROLL for (int r = 0; r < ROW_VECTORS; r++) q[r] = load((const float *)b->q + cell * BLOCK_ROWS + row + r * LANES);
        UNROLL for (int j = 0; j < AT_ONCE; j++) {
            const Vec k = set(key[j][cell]);
            UNROLL for (int r = 0; r < ROW_VECTORS; r++)
                dots[j * ROW_VECTORS + r] = add_products(dots[j * ROW_VECTORS + r], q[r], k);
        }
    }
    UNROLL for (int j = 0; j < AT_ONCE; j++) UNROLL for (int r = 0; r < ROW_VECTORS; r++)
        store(scores + (first + j) * BLOCK_ROWS + row + r * LANES, dots[j * ROW_VECTORS + r]);
}

VECTOR static void score_span(const Block *b, const Span *s) {
    for (int64_t from = 0; from < s->count; from += STEP) {
        Span step = span_at(s->key + from, s->key + s->count, STEP);
        Rows keys = take_keys(b, &step);
        for (int64_t row = 0; row < BLOCK_ROWS; row += GROUP_ROWS)
            for (int64_t first = 0; first < step.count; first += AT_ONCE)
                score_keys(b, &keys, first, step.count - 1, row, b->scores + from * BLOCK_ROWS);
    }
}

/* Bound scores by tanh. */
VECTOR static void cap_scores(const Block *b, int64_t count) {
    const Vec cap = set(b->a->softcap), steep = set(2 * LOG2_E * b->a->scale / b->a->softcap), one = set(1), two = set(-2);
    for (int64_t i = 0; i < count * BLOCK_ROWS; i += LANES) {
        float *at = b->scores + i;
        Vec grown = add(power(multiply(load(at), steep)), one);
        store(at, multiply(cap, add(divide(two, grown), one)));
    }
}

/* Mask the keys that a row does not see. */
VECTOR static void mask_scores(const Block *b, const Span *s) {
    for (int64_t i = 0; i < s->padded; i++) for (int64_t row = 0; row < BLOCK_ROWS; row += LANES) {
        float *at = b->scores + i * BLOCK_ROWS + row;
        store(at, keep(load(at), (int)(s->key + i), b->begin + row, b->end + row));
    }
}

/* ---- weights ---- */

/* Turn scores into weights; update each row's maximum, and its sum and values for the new maximum. */
VECTOR INLINE void weigh_span(const Block *b, int64_t row, int64_t padded, const int exact) {
    const Vec scale = set(b->scale), turn = set(LOG2_E);
    float *scores = b->scores + row;
    Vec top[ROW_VECTORS], sum[ROW_VECTORS];
    UNROLL for (int r = 0; r < ROW_VECTORS; r++) top[r] = set(LOWEST);
    for (int64_t i = 0; i < padded; i++) UNROLL for (int r = 0; r < ROW_VECTORS; r++)
        top[r] = larger(load(scores + i * BLOCK_ROWS + r * LANES), top[r]);
    UNROLL for (int r = 0; r < ROW_VECTORS; r++) {
        int64_t at = row + r * LANES;
        Vec before = load(b->top + at);
        top[r] = larger(multiply(top[r], scale), before);
        Vec shrink = power(multiply(subtract(before, top[r]), turn));
        sum[r] = multiply(load(b->sum + at), shrink);
        for (int64_t c = 0; c < b->a->n.value_dim; c++)
            store(b->values + c * BLOCK_ROWS + at, multiply(load(b->values + c * BLOCK_ROWS + at), shrink));
        store(b->top + at, top[r]);
    }
    for (int64_t i = 0; i < padded; i += 1 + PAIRED) UNROLL for (int r = 0; r < ROW_VECTORS; r++) {
        float *at = scores + i * BLOCK_ROWS + r * LANES;
        Vec one = subtract(multiply(load(at), scale), top[r]);
#if PAIRED
        Vec next = subtract(multiply(load(at + BLOCK_ROWS), scale), top[r]);
        one = pair_of(quick_exponential(one), quick_exponential(next), sum + r);
        store(scores + i / 2 * BLOCK_ROWS + r * LANES, one);
#else
        one = exact ? power(multiply(one, turn)) : quick_exponential(one);
        sum[r] = add(sum[r], one);
        store(at, exact ? one : round_short(one));
#endif
    }
    UNROLL for (int r = 0; r < ROW_VECTORS; r++) store(b->sum + row + r * LANES, sum[r]);
}

/* ---- values ---- */

/* Add the weighted values of AT_ONCE columns of `count` rows of cells to a group's rows. */
VECTOR INLINE void add_columns(const Block *b, const Rows *cells, int64_t count, int64_t row, int64_t column,
                               const float *weights) {
    float *values = b->values + column * BLOCK_ROWS + row;
    Vec sums[AT_ONCE * ROW_VECTORS];
    UNROLL for (int c = 0; c < AT_ONCE; c++) UNROLL for (int r = 0; r < ROW_VECTORS; r++)
        sums[c * ROW_VECTORS + r] = load(values + c * BLOCK_ROWS + r * LANES);
    for (int64_t i = 0; i < count; i++) {
        const float *cell = (const float *)(cells->at + i * cells->bytes) + column;
        Vec weight[ROW_VECTORS];
        UNROLL for (int r = 0; r < ROW_VECTORS; r++) weight[r] = load(weights + i * BLOCK_ROWS + row + r * LANES);
        UNROLL for (int c = 0; c < AT_ONCE; c++) {
            const Vec value = set(cell[c]);
            UNROLL for (int r = 0; r < ROW_VECTORS; r++)
                sums[c * ROW_VECTORS + r] = add_products(sums[c * ROW_VECTORS + r], weight[r], value);
        }
    }
    UNROLL for (int c = 0; c < AT_ONCE; c++) UNROLL for (int r = 0; r < ROW_VECTORS; r++)
        store(values + c * BLOCK_ROWS + r * LANES, sums[c * ROW_VECTORS + r]);
}

VECTOR static void add_span(const Block *b, const Span *s) {
    for (int64_t from = 0; from < s->count; from += STEP) {
        Span step = span_at(s->key + from, s->key + s->count, STEP);
        Rows cells = take_values(b, &step);
        int64_t count = PAIRED ? (step.count + 1) / 2 : step.count;
        for (int64_t row = 0; row < BLOCK_ROWS; row += GROUP_ROWS)
            for (int64_t column = 0; column < b->a->n.value_dim; column += AT_ONCE)
                add_columns(b, &cells, count, row, column, b->scores + from / (1 + PAIRED) * BLOCK_ROWS);
    }
}

/* Divide the values by the sums of their weights, and write them; rows that see no key become zeros. */
VECTOR static void finish_rows(const Block *b) {
    int64_t columns = b->a->n.value_dim;
    for (int64_t row = 0; row < BLOCK_ROWS; row += LANES) {
        for (int r = 0; r < LANES; r++) b->sum[row + r] = b->sum[row + r] == 0 ? 0 : 1 / b->sum[row + r];
        const Vec share = load(b->sum + row);
        for (int64_t c = 0; c < columns; c += 1 + PAIRED) {
            float *at = b->values + c * BLOCK_ROWS + row;
            Vec value = multiply(load(at), share);
#if PAIRED
            Vec unused = set(0);
            value = pair_of(value, multiply(load(at + BLOCK_ROWS), share), &unused);
#endif
            store(b->values + c / (1 + PAIRED) * BLOCK_ROWS + row, value);
        }
    }
    put_rows(b, (const uint32_t *)b->values, PAIRED);
}

VECTOR static void run_block(const Block *b) {
    /* Spans end at multiples of SPAN, so that a row's result is the same in every block. */
    for (int64_t key = b->from / STEP * STEP; key < b->to; key = key / SPAN * SPAN + SPAN) {
        Span s = span_at(key, b->to, SPAN - key % SPAN);
        score_span(b, &s);
        if (b->a->softcap > 0) cap_scores(b, s.padded);
        if (b->last_begin > key || b->first_end < key + s.padded) mask_scores(b, &s);
        for (int64_t row = 0; row < BLOCK_ROWS; row += GROUP_ROWS)
            if (b->a->type == TYPE_F32) weigh_span(b, row, s.padded, 1);
            else weigh_span(b, row, s.padded, 0);
        add_span(b, &s);
    }
    finish_rows(b);
}
