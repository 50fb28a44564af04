/* Quantises weights to int8, int6 and int4, row by row. core/kernels/quantize.py documents the method. */
#include "attention.h"
#include "calls.h"
#include "thread_pool.h"

enum { PAIR = 128, TASK_ROWS = 16, TRIED = 16, SHARING = COARSE / GROUP };
#define FINEST 127.0f

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

/* The value farthest from zero; `broken` is set if any is NaN or infinite. */
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

/* A group's values are scale * q + minimum. */
typedef struct {
    float scale, minimum;
} Fit;

INLINE float clamped(float value, float least, float most) { return value < least ? least : value > most ? most : value; }

/* Error weights sqrt(mean(x^2) + x^2): errors of large weights count more, those of small ones still count. */
INLINE void importance(const float *x, float *w) {
    float square = 0;
    SIMD_SUM(square)
    for (int i = 0; i < GROUP; i++) square += x[i] * x[i];
    SIMD
    for (int i = 0; i < GROUP; i++) w[i] = sqrtf(square / GROUP + x[i] * x[i]);
}

/* The fit with the largest gain; `none` if no gain is valid. */
INLINE Fit best_of(const float *scales, const float *minimums, const float *gains, Fit none) {
    float most = -1;
    int best = -1;
    SIMD_MAX(most)
    for (int t = 0; t < TRIED; t++) most = gains[t] > most ? gains[t] : most;
    for (int t = TRIED - 1; t >= 0; t--) best = gains[t] == most && most > -1 ? t : best;
    if (best < 0) return none;
    Fit fit = {scales[best], minimums[best]};
    return fit;
}

/* Sums over a group's q for all tried roundings side by side, so that no sum crosses lanes. */
typedef struct {
    float q[TRIED], square[TRIED], product[TRIED];
} Tries;

INLINE void try_shifted(const float *x, const float *w, float low, const float *inverse, Tries *sums) {
    for (int i = 0; i < GROUP; i++) {
        const float above = x[i] - low, weight = w[i], weighted = w[i] * x[i];
        SIMD
        for (int t = 0; t < TRIED; t++) {
            float q = round_even(above * inverse[t]);
            q = q > 15.0f ? 15.0f : q;
            sums->q[t] += weight * q;
            sums->square[t] += weight * q * q;
            sums->product[t] += weighted * q;
        }
    }
}

/* The scale and minimum of least weighted error for a group x in units of its extreme. Its q, 0..15, are rounded in
 * TRIED ways: as if 14 to 15.5 steps spanned the range from lowest to highest value. */
INLINE Fit fit_shifted(const float *x) {
    float w[GROUP], inverse[TRIED], scales[TRIED], minimums[TRIED], gains[TRIED], low = x[0], high = x[0], all = 0, sum = 0;
    Tries sums = {{0}, {0}, {0}};
    importance(x, w);
    SIMD_MIN(low)
    for (int i = 0; i < GROUP; i++) low = x[i] < low ? x[i] : low;
    SIMD_MAX(high)
    for (int i = 0; i < GROUP; i++) high = x[i] > high ? x[i] : high;
    SIMD_SUM(all, sum)
    for (int i = 0; i < GROUP; i++) {
        all += w[i];
        sum += w[i] * x[i];
    }
    Fit rounded = {(high - low) / 15.0f, low};
    if (!(high > low)) return rounded;
    for (int t = 0; t < TRIED; t++) inverse[t] = (14.0f + 0.1f * (float)t) / (high - low);
    try_shifted(x, w, low, inverse, &sums);
    SIMD
    for (int t = 0; t < TRIED; t++) {
        float determinant = all * sums.square[t] - sums.q[t] * sums.q[t], least = 1e-6f * all * sums.square[t];
        float scale = (all * sums.product[t] - sum * sums.q[t]) / determinant;
        float minimum = (sums.square[t] * sum - sums.q[t] * sums.product[t]) / determinant;
        scales[t] = scale;
        minimums[t] = minimum;
        gains[t] = determinant > least ? scale * sums.product[t] + minimum * sum : -1.0f;
    }
    return best_of(scales, minimums, gains, rounded);
}

INLINE void try_even(const float *x, const float *inverse, Tries *sums) {
    for (int i = 0; i < GROUP; i++) {
        const float value = x[i];
        SIMD
        for (int t = 0; t < TRIED; t++) {
            float q = clamped(round_even(value * inverse[t]), -32.0f, 31.0f);
            sums->square[t] += q * q;
            sums->product[t] += q * value;
        }
    }
}

/* As fit_shifted, without a minimum and for -32..31. The extreme, here 1 or -1, maps to about -32. */
INLINE Fit fit_even(const float *x) {
    float inverse[TRIED], scales[TRIED], gains[TRIED], extreme = extreme_of(x, GROUP, &(int){0});
    const float minimums[TRIED] = {0};
    const Fit none = {0, 0};
    Tries sums = {{0}, {0}, {0}};
    for (int t = 0; t < TRIED; t++) inverse[t] = -(30.5f + 0.2f * (float)t) * extreme;
    try_even(x, inverse, &sums);
    SIMD
    for (int t = 0; t < TRIED; t++) {
        scales[t] = sums.product[t] / sums.square[t];
        gains[t] = sums.square[t] > 0 ? sums.product[t] * scales[t] : -1.0f;
    }
    return best_of(scales, minimums, gains, none);
}

/* The fp16 factor, rounded up so that no number exceeds FINEST steps. */
INLINE uint16_t factor_for(float largest) {
    uint16_t bits = float_to_f16(largest / FINEST);
    return f16_to_float(bits) * FINEST < largest ? (uint16_t)(bits + 1) : bits;
}

/* Replace the numbers of `count` groups by their fine approximations; return the factor's bits. */
INLINE uint16_t make_fine(float *numbers, int64_t count, int broken, int8_t *fine) {
    float largest = 0;
    for (int64_t g = 0; g < count; g++) largest = fabsf(numbers[g]) > largest ? fabsf(numbers[g]) : largest;
    uint16_t bits = broken ? 0x7e00 : factor_for(largest);
    float factor = f16_to_float(bits), inverse = broken ? 0.0f : inverse_of(factor);
    for (int64_t g = 0; g < count; g++) {
        fine[g] = (int8_t)clamped(round_even(numbers[g] * inverse), -FINEST, FINEST);
        numbers[g] = factor * (float)fine[g];
    }
    return bits;
}

/* Fit scales and minimums for `count` groups from x on; return whether any weight is NaN or infinite. */
INLINE int fit_groups(const float *x, int64_t count, const int shifted, float *scales, float *minimums) {
    int any = 0, broken;
    for (int64_t g = 0; g < count; g++) {
        float extreme = fabsf(extreme_of(x + g * GROUP, GROUP, &broken)), inverse = inverse_of(extreme), own[GROUP];
        any |= broken;
        for (int i = 0; i < GROUP; i++) own[i] = x[g * GROUP + i] * inverse;
        Fit fit = {0, 0};
        if (!broken && inverse != 0.0f) fit = shifted ? fit_shifted(own) : fit_even(own);
        scales[g] = fit.scale * extreme;
        minimums[g] = fit.minimum * extreme;
    }
    return any;
}

/* Pack 128 values of 4 or 6 bits as described in kernels.h. */
INLINE void pack_pair(const uint8_t *values, const int shifted, uint8_t *to) {
    for (int g = 0; g < PAIR; g += GROUP)
        for (int i = 0; i < GROUP / 2; i++)
            to[g / 2 + i] = (uint8_t)((values[g + i] & 15) | values[g + GROUP / 2 + i] << 4);
    for (int i = 0; i < PAIR / 4 && !shifted; i++)
        to[PAIR / 2 + i] = (uint8_t)(values[i] >> 4 | (values[i + 32] >> 4) << 2 | (values[i + 64] >> 4) << 4 |
                                     (values[i + 96] >> 4) << 6);
}

INLINE void round_groups(const float *x, int64_t count, const int shifted, const float *scales, const float *minimums,
                         int broken, uint8_t *to) {
    float least = shifted ? 0.0f : -32.0f, most = shifted ? 15.0f : 31.0f;
    uint8_t values[COARSE];
    for (int64_t g = 0; g < count; g++) {
        float inverse = broken ? 0.0f : inverse_of(scales[g]);
        for (int i = 0; i < GROUP; i++) {
            float q = broken ? 0.0f : round_even((x[g * GROUP + i] - minimums[g]) * inverse);
            values[g * GROUP + i] = (uint8_t)(clamped(q, least, most) - least);
        }
    }
    for (int64_t pair = 0; pair < count * GROUP / PAIR; pair++)
        pack_pair(values + pair * PAIR, shifted, to + pair * (shifted ? PAIR / 2 : PAIR * 3 / 4));
}

/* Encode a row as int4 (`shifted`: with minimums) or int6, COARSE columns at a time, whose scales share a factor. */
INLINE void encode_fine(const Encoding *e, int64_t row, const int shifted) {
    int64_t groups = e->row_bytes / (shifted ? PAIR / 2 : PAIR * 3 / 4) * (PAIR / GROUP);
    int64_t factors = (groups + SHARING - 1) / SHARING, parts = shifted ? 2 : 1;
    uint8_t *to = e->data + row * e->row_bytes, *own = (uint8_t *)e->scales + row * e->scale_stride;
    for (int64_t first = 0; first < groups; first += SHARING) {
        int64_t count = groups - first < SHARING ? groups - first : SHARING, left = e->columns - first * GROUP;
        float x[COARSE], scales[SHARING], minimums[SHARING];
        int8_t unused[SHARING];
        memset(x, 0, sizeof x);
        if (left > 0) load_columns(e, row, first * GROUP, left < COARSE ? left : COARSE, x);
        int broken = fit_groups(x, count, shifted, scales, minimums);
        uint16_t factor[2];
        factor[0] = make_fine(scales, count, broken, (int8_t *)own + first);
        factor[1] = make_fine(minimums, count, broken, shifted ? (int8_t *)own + groups + first : unused);
        for (int64_t i = 0; i < parts; i++)
            memcpy(own + groups * parts + (factors * i + first / SHARING) * 2, factor + i, 2);
        round_groups(x, count, shifted, scales, minimums, broken, to + first * GROUP * (shifted ? 4 : 6) / 8);
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
        else if (format == INT4) encode_fine(e, row, 1);         \
        else encode_fine(e, row, 0);                             \
    }
#include "rows.h"

typedef struct {
    const Encoding *e;
    int isa, format;
    int64_t rows;
} Conversion;

static void encode_rows(const void *context, int64_t task, int64_t thread) {
    const Conversion *c = context;
    (void)thread;
    for (int64_t row = task * TASK_ROWS; row < (task + 1) * TASK_ROWS && row < c->rows; row++) {
        if (c->isa == ISA_AVX512) row_avx512(c->e, c->format, row);
        else if (takes_avx2(c->isa)) row_avx2(c->e, c->format, row);
        else row_plain(c->e, c->format, row);
    }
}

/* weights: [rows][stride] of `type`; data and scales as described in kernels.h. */
EXPORT void hetegen_encode(int isa, int format, const void *weights, int type, int64_t rows, int64_t columns,
                           int64_t stride, void *data, int64_t row_bytes, void *scales, int64_t scale_stride,
                           int threads) {
    Encoding e = {weights, type, columns, stride, (uint8_t *)data, row_bytes, scales, scale_stride};
    Conversion conversion = {&e, isa, format, rows};
    pool_run(encode_rows, &conversion, (rows + TASK_ROWS - 1) / TASK_ROWS, threads);
}
