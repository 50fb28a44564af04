/* The tile loop of one attention task. The including file defines its instruction set VECTOR, the number of keys per
 * score_block SCORED_KEYS, and score_block, finish_scores, weigh_row and add_tile. */
/* Prefetch rows of keys or values: the splits are too short for the hardware prefetcher. */
VECTOR INLINE void ask_for(const void *from, int64_t at, int64_t stride, int64_t rows, int64_t dim, const int type) {
    int64_t size = type == TYPE_F32 ? 4 : type == TYPE_BF16 ? 2 : 1;
    int64_t bytes = type == TYPE_PACKED ? packed_bytes(dim) : dim * size;
    for (int64_t row = 0; row < rows; row++)
        for (int64_t byte = 0; byte < bytes; byte += 64)
            _mm_prefetch((const char *)from + (at + row * stride) * size + byte, _MM_HINT_T0);
}

/* Clamp a number of keys to one block. */
VECTOR INLINE int64_t some(int64_t keys) { return keys < SCORED_KEYS ? keys : SCORED_KEYS; }

VECTOR INLINE void run_task(const Attention *a, int64_t index, const int type) {
    const Shape *n = &a->n;
    Task t = task_at(a, index);
    Stretch s = stretch_of(a, index);
    int64_t rows = task_rows(n);
    start_task(a, &t, &s);
    for (int64_t key = s.begin; key < s.end; key += TILE_KEYS) {
        int64_t count = s.end - key < TILE_KEYS ? s.end - key : TILE_KEYS;
        int64_t k = s.b * n->k_batch + s.kv_head * n->k_head + (key - a->first) * n->k_row;
        int64_t v = s.b * n->v_batch + s.kv_head * n->v_head + (key - a->first) * n->v_row;
        for (int64_t first = 0; first < count; first += SCORED_KEYS) {
            ask_for(a->v, v + first * n->v_row, n->v_row, some(count - first), n->value_dim, type);
            ask_for(a->k, k + (TILE_KEYS + first) * n->k_row, n->k_row, some(s.end - key - TILE_KEYS - first), n->dim, type);
            for (int64_t row = 0; row < rows; row += 4) score_block(a, &t, row, k, count, first, type);
        }
        for (int64_t row = 0; row < rows; row++) {
            float top = finish_scores(a, t.scores + row * TILE_KEYS, seen_by(a, s.b, row, key), count);
            weigh_row(a, &t, row, top);
        }
        add_tile(a, &t, v, count, type);
    }
}
