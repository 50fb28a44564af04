/* Definitions that the attention kernels share: one call, and one task's part of the scratch memory. */
#ifndef HETEGEN_ATTENTION_H
#define HETEGEN_ATTENTION_H

#include "kernels.h"
#include "packed_states.h"

#if defined(_MSC_VER)
#define SIMD
#define SIMD_SUM(...)
#define SIMD_MAX(x)
#define SIMD_MIN(x)
#else
#define SIMD _Pragma("omp simd")
#define SIMD_SUM(...) PRAGMA(omp simd reduction(+ : __VA_ARGS__))
#define SIMD_MAX(x) PRAGMA(omp simd reduction(max : x))
#define SIMD_MIN(x) PRAGMA(omp simd reduction(min : x))
#define PRAGMA(x) _Pragma(#x)
#endif

enum { TILE_KEYS = 32 };

/* Strides are in elements; the last dimension of q, k and v is contiguous; mask bytes are 1 where a key is visible. If
 * `packed`, keys and values are rows of packed_states.h with strides in bytes; the last `recent` of them form a split
 * of their own and are read as floats with the recent_* strides. */
typedef struct {
    int64_t batch, heads, kv_heads, queries, keys, dim, value_dim;
    int64_t q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, mask_batch, mask_row, splits, packed;
    int64_t recent, recent_k_head, recent_k_row, recent_v_head, recent_v_row;
} Shape;

typedef struct {
    Shape n;
    const void *q, *k, *v;
    int64_t first; /* index of the key at which k and v begin */
    const uint8_t *mask; /* NULL = all keys are visible */
    const float *sinks;  /* one per head, NULL = none: an extra score without a value */
    float scale, softcap; /* softcap 0 = none */
    void *out; /* [batch][queries][heads][value_dim] */
    int type;
    float *scratch;
} Attention;

/* One task's scratch memory: queries, weighted values, maximum scores, sums, a tile's scores, a tile of keys or
 * values. */
typedef struct {
    float *q, *values, *top, *sum, *scores, *tile;
} Task;

INLINE int64_t task_rows(const Shape *n) { return n->heads / n->kv_heads * n->queries; }

INLINE int64_t task_floats(const Shape *n) {
    int64_t widest = n->dim > n->value_dim ? n->dim : n->value_dim;
    int64_t floats = task_rows(n) * (n->dim + n->value_dim + 2 + TILE_KEYS) + TILE_KEYS * widest;
    return (floats + 15) / 16 * 16;
}

INLINE Task task_at(const Attention *a, int64_t index) {
    int64_t rows = task_rows(&a->n);
    Task t;
    t.tile = a->scratch + index * task_floats(&a->n);
    t.q = t.tile + TILE_KEYS * (a->n.dim > a->n.value_dim ? a->n.dim : a->n.value_dim);
    t.values = t.q + rows * a->n.dim;
    t.scores = t.values + rows * a->n.value_dim;
    t.top = t.scores + rows * TILE_KEYS;
    t.sum = t.top + rows;
    return t;
}

/* e^x within two units in the last place; 0 for x < -87. */
INLINE float exponential(float x) {
    float clamped = x > 88.0f ? 88.0f : x < -87.0f ? -87.0f : x;
    float n = (clamped * 1.44269504f + 12582912.0f) - 12582912.0f;
    float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return x < -87.0f ? 0.0f : p * power;
}

/* Branch-free, so that the compiler vectorises it; NaN stays NaN. */
INLINE uint16_t round_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)(value == value ? nearest : (bits >> 16) | 0x40);
}

/* The type of keys and values: that of the queries, or packed. */
INLINE int states_type(const Attention *a) { return a->n.packed ? TYPE_PACKED : a->type; }

INLINE void widen_row(const void *from, int64_t at, int64_t count, const int type, float *to) {
    if (type == TYPE_PACKED) widen_packed((const int8_t *)from + at, count, to);
    else if (type == TYPE_F32) memcpy(to, (const float *)from + at, (size_t)count * sizeof(float));
    else {
        const uint16_t *bits = (const uint16_t *)from + at;
        SIMD
        for (int64_t i = 0; i < count; i++) to[i] = bf16_to_float(bits[i]);
    }
}

INLINE void load_queries(const Attention *a, int64_t b, int64_t kv_head, float *q) {
    int64_t shared = a->n.heads / a->n.kv_heads;
    for (int64_t row = 0; row < task_rows(&a->n); row++) {
        int64_t head = kv_head * shared + row / a->n.queries, query = row % a->n.queries;
        float *to = q + row * a->n.dim;
        widen_row(a->q, b * a->n.q_batch + head * a->n.q_head + query * a->n.q_row, a->n.dim, a->type, to);
        if (a->n.packed) mix(to, a->n.dim);
        for (int64_t i = 0; i < a->n.dim; i++) to[i] *= a->scale;
    }
}

/* Turn a row's scores into softmax weights, rescaling the running sum and values if the maximum grows. */
INLINE void weigh_row(const Attention *a, const Task *t, int64_t row, float tile_top) {
    float *scores = t->scores + row * TILE_KEYS, *values = t->values + row * a->n.value_dim;
    float top = tile_top > t->top[row] ? tile_top : t->top[row];
    float base = top == -INFINITY ? 0.0f : top, sum = 0;
    if (top > t->top[row]) {
        float shrink = exponential(t->top[row] - base);
        t->sum[row] *= shrink;
        SIMD
        for (int64_t d = 0; d < a->n.value_dim; d++) values[d] *= shrink;
        t->top[row] = top;
    }
    SIMD
    for (int i = 0; i < TILE_KEYS; i++) scores[i] = exponential(scores[i] - base);
    SIMD_SUM(sum)
    for (int i = 0; i < TILE_KEYS; i++) sum += scores[i];
    t->sum[row] += sum;
}

/* Apply soft cap and mask to one row's dot products with `count` keys; return the maximum. The rest of the tile
 * becomes -infinity, so that later loops cover whole tiles without a scalar tail. */
INLINE float finish_scores(const Attention *a, float *scores, const uint8_t *seen, int64_t count) {
    for (int64_t i = count; i < TILE_KEYS; i++) scores[i] = -INFINITY;
    if (a->softcap > 0) {
        SIMD
        for (int64_t i = 0; i < count; i++)
            scores[i] = a->softcap * (1.0f - 2.0f / (exponential(2.0f * scores[i] / a->softcap) + 1.0f));
    }
    if (seen) {
        for (int64_t i = 0; i < count; i++) scores[i] = seen[i] ? scores[i] : -INFINITY;
    }
    float top = -INFINITY;
    SIMD_MAX(top)
    for (int i = 0; i < TILE_KEYS; i++) top = scores[i] > top ? scores[i] : top;
    return top;
}

/* The mask of a query row from key `key` on; NULL = none. */
INLINE const uint8_t *seen_by(const Attention *a, int64_t b, int64_t row, int64_t key) {
    return a->mask ? a->mask + b * a->n.mask_batch + row % a->n.queries * a->n.mask_row + key : NULL;
}

/* The keys [begin, end) of a task, its batch element and KV head. */
typedef struct {
    int64_t b, kv_head, begin, end;
} Stretch;

INLINE Stretch stretch_of(const Attention *a, int64_t index) {
    const Shape *n = &a->n;
    int64_t split = index % n->splits, rest = index / n->splits;
    int64_t older = n->keys - n->recent, splits = n->recent ? n->splits - 1 : n->splits;
    Stretch s = {rest / n->kv_heads, rest % n->kv_heads, older, n->keys};
    if (split < splits) s.begin = older * split / splits, s.end = older * (split + 1) / splits;
    return s;
}

INLINE void start_task(const Attention *a, const Task *t, const Stretch *s) {
    int64_t rows = task_rows(&a->n);
    load_queries(a, s->b, s->kv_head, t->q);
    memset(t->values, 0, (size_t)(rows * a->n.value_dim) * sizeof(float));
    for (int64_t row = 0; row < rows; row++) {
        t->top[row] = -INFINITY;
        t->sum[row] = 0;
    }
}

int attention_suits_avx512(const Shape *n);
void attention_task_avx512(const Attention *a, int64_t index);
int attention_suits_avx2(const Shape *n);
void attention_task_avx2(const Attention *a, int64_t index);

#endif
