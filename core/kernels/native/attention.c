/* Attention of few query rows over a long KV cache: each key and value is read once for all query heads that share it.
 *
 * The work is split into one task per KV head and split of the keys. Each task keeps its own maximum score, sum and
 * weighted values (online softmax), which are merged at the end. The loops are plain C, compiled per instruction
 * set. */
#include "attention.h"
#include "calls.h"
#include "thread_pool.h"

INLINE float score_row(const Attention *a, const Task *t, int64_t row, const uint8_t *seen, int64_t count) {
    const float *q = t->q + row * a->n.dim;
    float *scores = t->scores + row * TILE_KEYS;
    for (int64_t i = 0; i < count; i++) {
        const float *k = t->tile + i * a->n.dim;
        float dot = 0;
        SIMD_SUM(dot)
        for (int64_t d = 0; d < a->n.dim; d++) dot += q[d] * k[d];
        scores[i] = dot;
    }
    return finish_scores(a, scores, seen, count);
}

INLINE void add_values(const Attention *a, const Task *t, int64_t row, int64_t count) {
    float *values = t->values + row * a->n.value_dim;
    const float *weights = t->scores + row * TILE_KEYS;
    for (int64_t i = 0; i < count; i++) {
        const float *v = t->tile + i * a->n.value_dim;
        float weight = weights[i];
        SIMD
        for (int64_t d = 0; d < a->n.value_dim; d++) values[d] += weight * v[d];
    }
}

INLINE void run_task(const Attention *a, int64_t index, const int type) {
    const Shape *n = &a->n;
    Task t = task_at(a, index);
    Stretch s = stretch_of(a, index);
    int64_t rows = task_rows(n);
    start_task(a, &t, &s);
    for (int64_t key = s.begin; key < s.end; key += TILE_KEYS) {
        int64_t count = s.end - key < TILE_KEYS ? s.end - key : TILE_KEYS;
        int64_t k = s.b * n->k_batch + s.kv_head * n->k_head, v = s.b * n->v_batch + s.kv_head * n->v_head;
        for (int64_t i = 0; i < count; i++)
            widen_row(a->k, k + (key - a->first + i) * n->k_row, n->dim, type, t.tile + i * n->dim);
        for (int64_t row = 0; row < rows; row++)
            weigh_row(a, &t, row, score_row(a, &t, row, seen_by(a, s.b, row, key), count));
        for (int64_t i = 0; i < count; i++)
            widen_row(a->v, v + (key - a->first + i) * n->v_row, n->value_dim, type, t.tile + i * n->value_dim);
        for (int64_t row = 0; row < rows; row++) add_values(a, &t, row, count);
    }
}

/* total = values * share, or total += values * share. */
INLINE void add_stretch(const float *values, float share, int64_t dim, int adds, float *total) {
    SIMD
    for (int64_t d = 0; d < dim; d++) total[d] = (adds ? total[d] : 0.0f) + values[d] * share;
}

/* Write a row of the result at offset `at`: total / sum, or zeros where every key is masked. */
INLINE void put_row(const Attention *a, int64_t at, const float *total, float sum) {
    int64_t dim = a->n.value_dim;
    float *floats = (float *)a->out + at;
    uint16_t *bits = (uint16_t *)a->out + at;
    if (a->type == TYPE_F32) {
        SIMD
        for (int64_t d = 0; d < dim; d++) floats[d] = sum == 0.0f ? 0.0f : total[d] / sum;
    } else {
        SIMD
        for (int64_t d = 0; d < dim; d++) bits[d] = round_bf16(sum == 0.0f ? 0.0f : total[d] / sum);
    }
}

/* Merge the splits of one query row in the memory of the first split, and write the result. */
static void finish_row(const Attention *a, int64_t b, int64_t kv_head, int64_t row) {
    const Shape *n = &a->n;
    int64_t first = (b * n->kv_heads + kv_head) * n->splits, head = kv_head * (n->heads / n->kv_heads) + row / n->queries;
    float sink = a->sinks ? a->sinks[head] : -INFINITY, top = sink, sum = 0;
    float *total = task_at(a, first).values + row * n->value_dim;
    for (int64_t s = 0; s < n->splits; s++) {
        Task t = task_at(a, first + s);
        top = t.top[row] > top ? t.top[row] : top;
    }
    float base = top == -INFINITY ? 0.0f : top;
    if (a->sinks) sum = exponential(sink - base);
    for (int64_t s = 0; s < n->splits; s++) {
        Task t = task_at(a, first + s);
        float share = exponential(t.top[row] - base);
        sum += t.sum[row] * share;
        add_stretch(t.values + row * n->value_dim, share, n->value_dim, s > 0, total);
    }
    put_row(a, ((b * n->queries + row % n->queries) * n->heads + head) * n->value_dim, total, sum);
}

#define TASKS(name, isa)                                                \
    isa static void name(const Attention *a, int64_t index) {           \
        if (a->n.packed) run_task(a, index, TYPE_PACKED);               \
        else if (a->type == TYPE_F32) run_task(a, index, TYPE_F32);     \
        else run_task(a, index, TYPE_BF16);                             \
    }
TASKS(task_plain, )
#if defined(HETEGEN_X86)
TASKS(task_avx2, TARGET("avx2,fma"))
#else
#define task_avx2 task_plain
#endif

/* `recent`: the call for the last split of each head, which reads the unpacked recent states. */
typedef struct {
    Attention a, recent;
    int isa;
} Work;

static void do_task(const void *context, int64_t index, int64_t thread) {
    const Work *w = context;
    const Shape *n = &w->a.n;
    const Attention *a = n->recent && index % n->splits == n->splits - 1 ? &w->recent : &w->a;
    (void)thread;
    if (w->isa == ISA_AVX512 && attention_suits_avx512(n)) attention_task_avx512(a, index);
    else if (takes_avx2(w->isa) && attention_suits_avx2(n)) attention_task_avx2(a, index);
    else if (takes_avx2(w->isa)) task_avx2(a, index);
    else task_plain(a, index);
}

static Attention over_recent(Attention a, const void *k, const void *v) {
    Shape *n = &a.n;
    a.k = k;
    a.v = v;
    a.first = n->keys - n->recent;
    n->packed = 0;
    n->k_head = n->recent_k_head;
    n->k_row = n->recent_k_row;
    n->v_head = n->recent_v_head;
    n->v_row = n->recent_v_row;
    return a;
}

EXPORT int64_t hetegen_attention_bytes(const int64_t *shape) {
    const Shape *n = (const Shape *)shape;
    return task_floats(n) * n->batch * n->kv_heads * n->splits * (int64_t)sizeof(float);
}

/* `shape`: the fields of Shape in order; type: fp32 or bf16; scratch: hetegen_attention_bytes. */
EXPORT void hetegen_attention(int isa, const int64_t *shape, const void *q, const States *states, const void *mask,
                              const void *sinks, float scale, float softcap, void *out, int type, void *scratch,
                              int threads) {
    Attention a = {*(const Shape *)shape, q, states->k, states->v, 0, (const uint8_t *)mask, (const float *)sinks, scale,
                   softcap, out, type, (float *)scratch};
    Work work = {a, over_recent(a, states->recent_k, states->recent_v), isa};
    pool_run(do_task, &work, a.n.batch * a.n.kv_heads * a.n.splits, threads);
    for (int64_t b = 0; b < a.n.batch; b++)
        for (int64_t kv_head = 0; kv_head < a.n.kv_heads; kv_head++)
            for (int64_t row = 0; row < task_rows(&a.n); row++) finish_row(&a, b, kv_head, row);
}
