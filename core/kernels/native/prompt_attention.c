/* Attention of many query rows, as in prompts: tasks of BLOCK_ROWS rows of one KV head, with all heads that share it. */
#include "prompt_attention.h"
#include "calls.h"
#include "dispatch.h"
#include "processor.h"
#include "thread_pool.h"

typedef void (*BlockKernel)(const Block *block);

typedef struct {
    const Attention *a;
    const int32_t *seen; /* [batch][queries][2]: the first key that a query sees, and the end */
    int64_t blocks;      /* per KV head */
    BlockKernel kernel;
    uint32_t *scratch;
    int paired;
} Prompt;

/* ---- which keys a query sees ---- */

/* Find the keys that a row of the mask shows; return whether they are adjacent. */
static int find_seen(const uint8_t *mask, int64_t keys, int32_t *seen) {
    const uint8_t *first = memchr(mask, 1, (size_t)keys);
    int64_t begin = first ? first - mask : keys, end = keys, count = 0;
    while (end > begin && !mask[end - 1]) end--;
    SIMD_SUM(count)
    for (int64_t key = begin; key < end; key++) count += mask[key];
    seen[0] = (int32_t)begin;
    seen[1] = (int32_t)end;
    return count == end - begin;
}

/* Without a mask, all keys are seen, or (`causal`) those up to the query's own. */
static int find_all_seen(const Attention *a, int causal, int32_t *seen) {
    const Shape *n = &a->n;
    for (int64_t b = 0; b < n->batch; b++)
        for (int64_t query = 0; query < n->queries; query++, seen += 2) {
            seen[0] = 0;
            seen[1] = (int32_t)(causal ? n->keys - n->queries + query + 1 : n->keys);
            if (a->mask && !find_seen(a->mask + b * n->mask_batch + query * n->mask_row, n->keys, seen)) return 0;
        }
    return 1;
}

/* ---- one task ---- */

/* Set the rows' limits, and the block's; rows past the end are computed like others and never written. */
static void limit_rows(Block *b, const int32_t *seen) {
    const Shape *n = &b->a->n;
    int64_t shared = n->heads / n->kv_heads;
    b->from = b->first_end = n->keys;
    b->to = b->last_begin = 0;
    for (int64_t row = 0; row < BLOCK_ROWS; row++) {
        const int32_t *own = seen + (b->b * n->queries + (b->first + row) / shared) * 2;
        int64_t begin = row < b->rows ? own[0] : 0, end = row < b->rows ? own[1] : n->keys;
        b->begin[row] = (int32_t)begin;
        b->end[row] = (int32_t)end;
        if (row >= b->rows) continue;
        b->last_begin = begin > b->last_begin ? begin : b->last_begin;
        b->first_end = end < b->first_end ? end : b->first_end;
        if (begin < end && begin < b->from) b->from = begin;
        if (begin < end && end > b->to) b->to = end;
    }
}

/* The column pair (or column) `cell` of a query row. */
static uint32_t query_cell(const Attention *a, int64_t at, int64_t cell, int paired) {
    const uint16_t *bits = (const uint16_t *)a->q + at;
    uint32_t value;
    if (paired) memcpy(&value, bits + cell * 2, 4);
    else if (a->type == TYPE_F32) memcpy(&value, (const float *)a->q + at + cell, 4);
    else value = (uint32_t)bits[cell] << 16;
    return value;
}

static void take_queries(const Block *b, int paired) {
    const Shape *n = &b->a->n;
    int64_t shared = n->heads / n->kv_heads, cells = paired ? n->dim / 2 : n->dim;
    for (int64_t row = 0; row < BLOCK_ROWS; row++) {
        int64_t query = (b->first + row) / shared, head = b->kv_head * shared + (b->first + row) % shared;
        int64_t at = b->b * n->q_batch + head * n->q_head + query * n->q_row;
        for (int64_t cell = 0; cell < cells; cell++)
            b->q[cell * BLOCK_ROWS + row] = row < b->rows ? query_cell(b->a, at, cell, paired) : 0;
    }
}

/* A sink is a key that is scored already and has no value. */
static void start_rows(const Block *b) {
    const Shape *n = &b->a->n;
    int64_t shared = n->heads / n->kv_heads;
    memset(b->values, 0, (size_t)(n->value_dim * BLOCK_ROWS) * sizeof(float));
    for (int64_t row = 0; row < BLOCK_ROWS; row++) {
        const float *sinks = b->a->sinks;
        b->top[row] = sinks ? sinks[b->kv_head * shared + (b->first + row) % shared] : LOWEST;
        b->sum[row] = sinks ? 1.0f : 0.0f;
    }
}

/* Lay out a task's scratch memory. */
static void lay_out_block(Block *b, uint32_t *at) {
    const Shape *n = &b->a->n;
    b->begin = (int32_t *)at;
    b->end = b->begin + BLOCK_ROWS;
    b->top = (float *)at + 2 * BLOCK_ROWS;
    b->sum = b->top + BLOCK_ROWS;
    b->q = at + 4 * BLOCK_ROWS;
    b->scores = (float *)(b->q + n->dim * BLOCK_ROWS);
    b->values = b->scores + SPAN * BLOCK_ROWS;
    b->tile = b->values + n->value_dim * BLOCK_ROWS;
}

/* Head after head, so that its keys stay in the cache; of each, the last rows first: they may see the most keys, and the
 * threads end together. */
static void do_block(const void *context, int64_t index, int64_t worker) {
    const Prompt *p = context;
    const Shape *n = &p->a->n;
    int64_t head = index / p->blocks, rows = task_rows(n);
    Block b = {p->a, head / n->kv_heads, head % n->kv_heads, (p->blocks - 1 - index % p->blocks) * BLOCK_ROWS};
    b.rows = rows - b.first < BLOCK_ROWS ? rows - b.first : BLOCK_ROWS;
    b.scale = p->a->softcap > 0 ? 1.0f : p->a->scale;
    lay_out_block(&b, p->scratch + worker * block_cells(n));
    limit_rows(&b, p->seen);
    take_queries(&b, p->paired);
    start_rows(&b);
    p->kernel(&b);
}

/* ---- entry points ---- */

static int64_t seen_cells(const Shape *n) { return (n->batch * n->queries * 2 + 15) / 16 * 16; }

EXPORT int64_t hetegen_prompt_attention_bytes(const int64_t *shape, int threads) {
    const Shape *n = (const Shape *)shape;
    return (seen_cells(n) + threads * block_cells(n)) * (int64_t)sizeof(uint32_t);
}

/* As hetegen_attention, for many query rows; keys and values are not packed; dim is even, value_dim a multiple of 4, and
 * the scale positive. `causal`: without a mask, a query sees the keys up to its own, which is the last one's for the last.
 * Returns 0, having computed nothing, if some query sees keys that are not adjacent. */
EXPORT int hetegen_prompt_attention(int isa, const int64_t *shape, const void *q, const States *states, const void *mask,
                                    int causal, const void *sinks, float scale, float softcap, void *out, int type,
                                    void *scratch, int threads) {
    Attention a = {*(const Shape *)shape, q, states->k, states->v, 0, (const uint8_t *)mask, (const float *)sinks, scale,
                   softcap, out, type, NULL};
    int paired = isa == ISA_AVX512 && type == TYPE_BF16 && has_short_products();
    BlockKernel kernel = paired ? prompt_block_pairs : isa == ISA_AVX512 ? prompt_block_avx512 : prompt_block_avx2;
    Prompt p = {&a, (int32_t *)scratch, (task_rows(&a.n) + BLOCK_ROWS - 1) / BLOCK_ROWS, kernel,
                (uint32_t *)scratch + seen_cells(&a.n), paired};
    if (!find_all_seen(&a, causal, (int32_t *)scratch)) return 0;
    pool_run(do_block, &p, a.n.batch * a.n.kv_heads * p.blocks, threads);
    return 1;
}
