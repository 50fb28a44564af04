/* Recurrent layers, with a state of fixed size: causal convolutions over time, the gated delta rule, and Mamba-2.
 *
 * Tokens are processed one after another. The state is divided into independent blocks of columns (or rows); a task
 * carries one block, which stays in L1, through all tokens. A token's result does not depend on how many tokens one
 * call computes. The loops are plain C, compiled for each instruction set. */
#include "recurrent.h"
#include "thread_pool.h"

enum { WIDTH = 32, MOST_KEYS = 256, CHANNELS = 512, HEAD_ROWS = 16 };

/* ---- convolution ---- */

INLINE const void *row_of(const Convolution *c, int64_t t, int64_t first) {
    int64_t size = item_bytes(c->type);
    if (t >= 0) return (const uint8_t *)c->x + (t * c->stride + first) * size;
    if (t + c->kept_rows >= 0) return (const uint8_t *)c->kept + ((t + c->kept_rows) * c->channels + first) * size;
    return NULL;
}

static void keep_last(const Convolution *c) {
    int64_t a_row = c->channels * item_bytes(c->type), moved = c->rows < c->kept_rows ? c->kept_rows - c->rows : 0;
    uint8_t *kept = c->kept;
    if (moved) memmove(kept, kept + c->rows * a_row, (size_t)(moved * a_row));
    for (int64_t row = moved; row < c->kept_rows; row++)
        memcpy(kept + row * a_row, row_of(c, c->rows - c->kept_rows + row, 0), (size_t)a_row);
}

INLINE void convolve(const Convolution *c, int64_t block, const int type) {
    int64_t first = block * CHANNELS, count = c->channels - first < CHANNELS ? c->channels - first : CHANNELS;
    float sum[CHANNELS];
    for (int64_t t = 0; t < c->rows; t++) {
        for (int64_t i = 0; i < count; i++) sum[i] = c->bias ? c->bias[first + i] : 0;
        for (int64_t tap = 0; tap < c->taps; tap++) {
            const void *x = row_of(c, t - c->taps + 1 + tap, first);
            const float *weight = c->weight + tap * c->channels + first;
            if (!x) continue;
            SIMD
            for (int64_t i = 0; i < count; i++) sum[i] += weight[i] * widened(x, i, type);
        }
        void *out = (uint8_t *)c->out + (t * c->channels + first) * item_bytes(type);
        if (c->silu) {
            SIMD
            for (int64_t i = 0; i < count; i++) store(out, i, activated(rounded(sum[i], type), SILU), type);
        } else {
            SIMD
            for (int64_t i = 0; i < count; i++) store(out, i, sum[i], type);
        }
    }
}

/* ---- gated delta rule ---- */

/* Normalise q and k to unit length, and divide q by sqrt(key_dim). */
INLINE void normalise(const Delta *d, int64_t row, const int type) {
    int64_t n = d->key_dim;
    for (int64_t head = 0; head < d->key_heads; head++) {
        float *q = d->keys + (row * d->key_heads + head) * 2 * n, *k = q + n, q_sum = 0, k_sum = 0;
        int64_t q_at = row * d->q_stride + head * n, k_at = row * d->k_stride + head * n;
        SIMD_SUM(q_sum)
        for (int64_t i = 0; i < n; i++) q[i] = widened(d->q, q_at + i, type), q_sum += q[i] * q[i];
        SIMD_SUM(k_sum)
        for (int64_t i = 0; i < n; i++) k[i] = widened(d->k, k_at + i, type), k_sum += k[i] * k[i];
        float q_by = 1.0f / (sqrtf(q_sum + 1e-6f) * sqrtf((float)n)), k_by = 1.0f / sqrtf(k_sum + 1e-6f);
        SIMD
        for (int64_t i = 0; i < n; i++) q[i] *= q_by, k[i] *= k_by;
    }
}

/* to[c] = sum of by[i] s[i][c], with two accumulators to shorten the dependency chain. */
INLINE void weigh_rows(const float *s, const float *by, int64_t n, float *to) {
    float odd[WIDTH];
    for (int c = 0; c < WIDTH; c++) to[c] = odd[c] = 0;
    for (int64_t i = 0; i + 1 < n; i += 2) {
        SIMD
        for (int c = 0; c < WIDTH; c++) to[c] += by[i] * s[i * WIDTH + c], odd[c] += by[i + 1] * s[(i + 1) * WIDTH + c];
    }
    for (int c = 0; c < WIDTH; c++) to[c] += odd[c] + (n % 2 ? by[n - 1] * s[(n - 1) * WIDTH + c] : 0);
}

/* s[i][c] = decay s[i][c] + k[i] added[c], and to[c] = sum of q[i] s[i][c]. */
INLINE void change_rows(float *s, const float *k, const float *q, const float *added, float decay, int64_t n, float *to) {
    for (int c = 0; c < WIDTH; c++) to[c] = 0;
    for (int64_t i = 0; i < n; i++) {
        SIMD
        for (int c = 0; c < WIDTH; c++) {
            float value = decay * s[i * WIDTH + c] + k[i] * added[c];
            s[i * WIDTH + c] = value;
            to[c] += q[i] * value;
        }
    }
}

INLINE void delta_row(const Delta *d, float *s, int64_t row, int64_t head, int64_t first, int64_t count, const int type) {
    int64_t n = d->key_dim, at = row * d->value_heads + head;
    const float *q = d->keys + (row * d->key_heads + head / (d->value_heads / d->key_heads)) * 2 * n, *k = q + n;
    float seen[WIDTH], out[WIDTH], added[WIDTH] = {0};
    weigh_rows(s, k, n, seen);
    for (int64_t c = 0; c < count; c++) {
        float v = widened(d->v, row * d->v_stride + head * d->value_dim + first + c, type);
        added[c] = (v - d->decay[at] * seen[c]) * d->beta[at];
    }
    change_rows(s, k, q, added, d->decay[at], n, out);
    for (int64_t c = 0; c < count; c++) store(d->out, at * d->value_dim + first + c, out[c], type);
}

INLINE void delta_block(const Delta *d, int64_t index, const int type) {
    int64_t blocks = (d->value_dim + WIDTH - 1) / WIDTH, head = index / blocks, first = index % blocks * WIDTH;
    int64_t count = d->value_dim - first < WIDTH ? d->value_dim - first : WIDTH;
    int64_t at = head * d->key_dim * d->value_dim + first;
    float s[MOST_KEYS * WIDTH];
    memset(s, 0, sizeof(float) * (size_t)(d->key_dim * WIDTH));
    for (int64_t i = 0; d->before && i < d->key_dim; i++)
        memcpy(s + i * WIDTH, d->before + at + i * d->value_dim, sizeof(float) * (size_t)count);
    for (int64_t row = 0; row < d->rows; row++) delta_row(d, s, row, head, first, count, type);
    for (int64_t i = 0; i < d->key_dim; i++)
        memcpy(d->after + at + i * d->value_dim, s + i * WIDTH, sizeof(float) * (size_t)count);
}

/* ---- Mamba-2 ---- */

INLINE void widen_states(const Scan *s, int64_t row, const int type) {
    for (int64_t group = 0; group < s->groups; group++) {
        float *b = s->wide + (row * s->groups + group) * 2 * s->states, *c = b + s->states;
        for (int64_t i = 0; i < s->states; i++) {
            b[i] = widened(s->b, row * s->b_stride + group * s->states + i, type);
            c[i] = widened(s->c, row * s->c_stride + group * s->states + i, type);
        }
    }
}

INLINE float change_state(const float *from, float *to, const float *b, const float *c, float decay, float x, int64_t n) {
    float sum = 0;
    SIMD_SUM(sum)
    for (int64_t i = 0; i < n; i++) {
        float value = decay * from[i] + x * b[i];
        to[i] = value;
        sum += value * c[i];
    }
    return sum;
}

INLINE void scan_block(const Scan *s, int64_t index, const int type) {
    int64_t blocks = (s->dim + HEAD_ROWS - 1) / HEAD_ROWS, head = index / blocks, first = index % blocks * HEAD_ROWS;
    int64_t last = first + HEAD_ROWS < s->dim ? first + HEAD_ROWS : s->dim, at = head * s->dim;
    float *after = s->after + at * s->states;
    const float *from = s->before ? s->before + at * s->states : after;
    if (!s->before) memset(after + first * s->states, 0, sizeof(float) * (size_t)((last - first) * s->states));
    for (int64_t row = 0; row < s->rows; row++, from = after) {
        const float *b = s->wide + (row * s->groups + head / (s->heads / s->groups)) * 2 * s->states, *c = b + s->states;
        float step = s->step[row * s->heads + head], decay = s->decay[row * s->heads + head];
        for (int64_t p = first; p < last; p++) {
            float x = widened(s->x, row * s->x_stride + at + p, type);
            float y = change_state(from + p * s->states, after + p * s->states, b, c, decay, step * x, s->states);
            store(s->out, (row * s->heads + head) * s->dim + p, s->skip ? y + s->skip[head] * x : y, s->out_type);
        }
    }
}

/* ---- specialisation by instruction set and type ---- */

typedef struct {
    PoolTask convolve, normalise, delta, widen, scan;
} Steps;

#define STEP(name, isa, call, Kind)                                              \
    isa static void name(const void *context, int64_t index, int64_t worker) {   \
        const Kind *of = context;                                                \
        (void)worker;                                                            \
        if (of->type == TYPE_F32) call(of, index, TYPE_F32);                     \
        else call(of, index, TYPE_BF16);                                         \
    }
#define STEPS(name, isa)                                        \
    STEP(name##_convolve, isa, convolve, Convolution)           \
    STEP(name##_normalise, isa, normalise, Delta)               \
    STEP(name##_delta, isa, delta_block, Delta)                 \
    STEP(name##_widen, isa, widen_states, Scan)                 \
    STEP(name##_scan, isa, scan_block, Scan)                    \
    static const Steps name = {name##_convolve, name##_normalise, name##_delta, name##_widen, name##_scan};
#if defined(HETEGEN_X86)
STEPS(avx2, TARGET("avx2,fma"))
#if defined(__clang__)
STEPS(avx512, TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq"))
#else
STEPS(avx512, TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512"))
#endif
static const Steps *steps_of(int isa) { return isa == ISA_AVX512 ? &avx512 : &avx2; }
#else
STEPS(plain, )
static const Steps *steps_of(int isa) {
    (void)isa;
    return &plain;
}
#endif

EXPORT void hetegen_convolve(int isa, const Convolution *c, int threads) {
    pool_run(steps_of(isa)->convolve, c, (c->channels + CHANNELS - 1) / CHANNELS, threads);
    keep_last(c);
}

/* key_dim is at most MOST_KEYS. */
EXPORT void hetegen_delta_rule(int isa, const Delta *d, int threads) {
    pool_run(steps_of(isa)->normalise, d, d->rows, d->rows > FEW_ROWS ? threads : 1);
    pool_run(steps_of(isa)->delta, d, d->value_heads * ((d->value_dim + WIDTH - 1) / WIDTH), threads);
}

EXPORT void hetegen_state_scan(int isa, const Scan *s, int threads) {
    pool_run(steps_of(isa)->widen, s, s->rows, s->rows > FEW_ROWS ? threads : 1);
    pool_run(steps_of(isa)->scan, s, s->heads * ((s->dim + HEAD_ROWS - 1) / HEAD_ROWS), threads);
}
