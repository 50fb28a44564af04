/* Stored weights into int8 and int4, row by row; the same arithmetic as core/kernels/quantize.py, which explains it. */
#include "attention.h"
#include "calls.h"
#include "thread_pool.h"

enum { LEVELS = 5, PAIR = 128, TASK_ROWS = 16 };
static const float INT4_LEVELS[LEVELS] = {-8.0f, -7.5f, -7.0f, -8.5f, -6.5f};

typedef struct {
    const void *weights;
    int type;
    int64_t columns, stride;
    uint8_t *data;
    int64_t row_bytes;
    void *scales;
    int64_t scale_stride;
} Encoding;

INLINE float round_even(float x) { return (x + 12582912.0f) - 12582912.0f; }

INLINE float inverse_of(float x) {
    float inverse = 1.0f / x;
    return inverse - inverse == 0.0f ? inverse : 0.0f;
}

INLINE void load_columns(const Encoding *e, int64_t row, int64_t start, int64_t count, float *to) {
    int64_t at = row * e->stride + start;
    if (e->type == TYPE_F16) for (int64_t i = 0; i < count; i++) to[i] = f16_to_float(((const uint16_t *)e->weights)[at + i]);
    else if (e->type == TYPE_BF16) widen_row(e->weights, at, count, TYPE_BF16, to);
    else widen_row(e->weights, at, count, TYPE_F32, to);
}

/* The value farthest from zero, and in `broken` whether any is NaN or infinite. */
INLINE float extreme_of(const float *x, int64_t count, int *broken) {
    float most = 0, least = 0, rest = 0;
    SIMD_MAX(most)
    for (int64_t i = 0; i < count; i++) most = x[i] > most ? x[i] : most;
    SIMD_MIN(least)
    for (int64_t i = 0; i < count; i++) least = x[i] < least ? x[i] : least;
    SIMD_SUM(rest)
    for (int64_t i = 0; i < count; i++) rest += x[i] - x[i];
    *broken = rest != rest;
    return most > -least ? most : least;
}

INLINE void round_int4(const float *x, float inverse, float *values) {
    SIMD
    for (int i = 0; i < GROUP; i++) {
        float value = round_even(x[i] * inverse);
        values[i] = value < -8.0f ? -8.0f : value > 7.0f ? 7.0f : value;
    }
}

/* The least-squares scale for the values that `inverse` rounds to, in units of the extreme, and what it explains. */
INLINE float refit(const float *x, float inverse, float by_extreme, float *gain) {
    float values[GROUP], square = 0, product = 0;
    round_int4(x, inverse, values);
    SIMD_SUM(square)
    for (int i = 0; i < GROUP; i++) square += values[i] * values[i];
    SIMD_SUM(product)
    for (int i = 0; i < GROUP; i++) product += x[i] * by_extreme * values[i];
    float fitted = square > 0 ? product / square : 0.0f;
    *gain = fitted * product;
    return fitted;
}

INLINE uint16_t encode_group(const float *x, uint8_t *values) {
    int broken;
    float rounded[GROUP], extreme = extreme_of(x, GROUP, &broken), by_extreme = inverse_of(extreme);
    float best = 0, best_gain = -1, gain;
    for (int l = 0; l < LEVELS && !broken; l++) {
        float fitted = refit(x, INT4_LEVELS[l] * by_extreme, by_extreme, &gain);
        if (gain > best_gain) {
            best_gain = gain;
            best = fitted;
        }
    }
    best = refit(x, inverse_of(best * extreme), by_extreme, &gain) * extreme;
    uint16_t scale = float_to_bf16(broken ? NAN : best);
    float inverse = broken ? 0.0f : inverse_of(bf16_to_float(scale));
    round_int4(x, inverse, rounded);
    for (int i = 0; i < GROUP; i++) values[i] = broken ? 8 : (uint8_t)((int)rounded[i] + 8);
    return scale;
}

INLINE void encode_int4(const Encoding *e, int64_t row) {
    for (int64_t pair = 0; pair < e->row_bytes / (PAIR / 2); pair++) {
        float x[PAIR];
        uint8_t values[PAIR], *to = e->data + row * e->row_bytes + pair * (PAIR / 2);
        int64_t left = e->columns - pair * PAIR, count = left < PAIR ? left : PAIR;
        if (count < PAIR) memset(x, 0, sizeof x);
        load_columns(e, row, pair * PAIR, count, x);
        for (int g = 0; g < PAIR / GROUP; g++)
            ((uint16_t *)e->scales)[row * e->scale_stride + pair * (PAIR / GROUP) + g] =
                encode_group(x + g * GROUP, values + g * GROUP);
        for (int i = 0; i < PAIR / 2; i++) to[i] = (uint8_t)(values[i] | values[i + PAIR / 2] << 4);
    }
}

INLINE void encode_int8(const Encoding *e, int64_t row) {
    float x[PAIR], top = 0;
    int any = 0, broken;
    int8_t *to = (int8_t *)e->data + row * e->row_bytes;
    for (int64_t start = 0; start < e->columns; start += PAIR) {
        int64_t count = e->columns - start < PAIR ? e->columns - start : PAIR;
        load_columns(e, row, start, count, x);
        float size = fabsf(extreme_of(x, count, &broken));
        top = size > top ? size : top;
        any |= broken;
    }
    float scale = any ? NAN : top / 127.0f, inverse = any ? 0.0f : inverse_of(scale);
    ((float *)e->scales)[row] = scale;
    memset(to, 0, (size_t)e->row_bytes);
    for (int64_t start = 0; start < e->columns && !any; start += PAIR) {
        int64_t count = e->columns - start < PAIR ? e->columns - start : PAIR;
        load_columns(e, row, start, count, x);
        SIMD
        for (int64_t i = 0; i < count; i++) {
            float value = round_even(x[i] * inverse);
            to[start + i] = (int8_t)(value < -127.0f ? -127.0f : value > 127.0f ? 127.0f : value);
        }
    }
}

#define ROWS(name, isa)                                          \
    isa static void name(const Encoding *e, int format, int64_t row) { \
        if (format == INT8) encode_int8(e, row);                 \
        else encode_int4(e, row);                                \
    }
ROWS(row_plain, )
#if defined(HETEGEN_X86)
ROWS(row_avx2, TARGET("avx2,fma"))
ROWS(row_avx512, TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq"))
#else
#define row_avx2 row_plain
#define row_avx512 row_plain
#endif

typedef struct {
    const Encoding *e;
    int isa, format;
    int64_t rows;
} Conversion;

static void encode_rows(const void *context, int64_t task, int64_t thread) {
    const Conversion *c = context;
    (void)thread;
    for (int64_t row = task * TASK_ROWS; row < (task + 1) * TASK_ROWS && row < c->rows; row++) {
        if (c->isa == 3) row_avx512(c->e, c->format, row);
        else if (c->isa == 1 || c->isa == 2) row_avx2(c->e, c->format, row);
        else row_plain(c->e, c->format, row);
    }
}

/* weights: [rows][stride] of `type`; data and scales as kernels.h says. */
EXPORT void hetegen_encode(int isa, int format, const void *weights, int type, int64_t rows, int64_t columns,
                           int64_t stride, void *data, int64_t row_bytes, void *scales, int64_t scale_stride,
                           int threads) {
    Encoding e = {weights, type, columns, stride, (uint8_t *)data, row_bytes, scales, scale_stride};
    Conversion conversion = {&e, isa, format, rows};
    pool_run(encode_rows, &conversion, (rows + TASK_ROWS - 1) / TASK_ROWS, threads);
}
