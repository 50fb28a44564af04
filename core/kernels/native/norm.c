/* RMS norms, and layer norms without a bias, row by row: two or three passes over a row that is in the cache, where torch
 * makes seven. */
#include "attention.h"
#include "calls.h"
#include "thread_pool.h"

enum { STRIP = 256 };

typedef struct {
    const void *x;
    int type, isa;
    int64_t columns;
    const float *gain;
    float eps;
    int rounded; /* round to the type of x before the gain */
    int centred; /* subtract the mean first */
    void *out;
} Norm;

/* The mean of a row that is centred, otherwise 0. */
INLINE float middle(const Norm *n, int64_t row, const int type) {
    float total = 0, wide[STRIP];
    for (int64_t start = 0; n->centred && start < n->columns; start += STRIP) {
        int64_t count = n->columns - start < STRIP ? n->columns - start : STRIP;
        float sum = 0;
        widen_row(n->x, row * n->columns + start, count, type, wide);
        SIMD_SUM(sum)
        for (int64_t i = 0; i < count; i++) sum += wide[i];
        total += sum;
    }
    return total / (float)n->columns;
}

INLINE float squares(const Norm *n, int64_t row, float mean, const int type) {
    float total = 0, wide[STRIP];
    for (int64_t start = 0; start < n->columns; start += STRIP) {
        int64_t count = n->columns - start < STRIP ? n->columns - start : STRIP;
        float sum = 0;
        widen_row(n->x, row * n->columns + start, count, type, wide);
        SIMD_SUM(sum)
        for (int64_t i = 0; i < count; i++) sum += (wide[i] - mean) * (wide[i] - mean);
        total += sum;
    }
    return total;
}

INLINE void norm_row(const Norm *n, int64_t row, const int type) {
    float wide[STRIP], mean = middle(n, row, type);
    float by = 1.0f / sqrtf(squares(n, row, mean, type) / (float)n->columns + n->eps);
    for (int64_t start = 0; start < n->columns; start += STRIP) {
        int64_t at = row * n->columns + start, count = n->columns - start < STRIP ? n->columns - start : STRIP;
        const float *gain = n->gain + start;
        widen_row(n->x, at, count, type, wide);
        if (type == TYPE_F32) {
            float *out = (float *)n->out + at;
            SIMD
            for (int64_t i = 0; i < count; i++) out[i] = (wide[i] - mean) * by * gain[i];
        } else if (n->rounded) {
            uint16_t *out = (uint16_t *)n->out + at;
            SIMD
            for (int64_t i = 0; i < count; i++) out[i] = round_bf16(bf16_to_float(round_bf16((wide[i] - mean) * by)) * gain[i]);
        } else {
            uint16_t *out = (uint16_t *)n->out + at;
            SIMD
            for (int64_t i = 0; i < count; i++) out[i] = round_bf16((wide[i] - mean) * by * gain[i]);
        }
    }
}

#define ROWS(name, isa)                                         \
    isa static void name(const Norm *n, int64_t row) {          \
        if (n->type == TYPE_F32) norm_row(n, row, TYPE_F32);    \
        else norm_row(n, row, TYPE_BF16);                       \
    }
#include "rows.h"

static void do_row(const void *context, int64_t row, int64_t thread) {
    const Norm *n = context;
    (void)thread;
    if (n->isa == ISA_AVX512) row_avx512(n, row);
    else if (takes_avx2(n->isa)) row_avx2(n, row);
    else row_plain(n, row);
}

/* x, out: [rows][columns] of `type` (fp32 or bf16); gain: [columns]. */
EXPORT void hetegen_rms_norm(int isa, const void *x, int type, int64_t rows, int64_t columns, const float *gain,
                             float eps, int rounded, int centred, void *out, int threads) {
    Norm norm = {x, type, isa, columns, gain, eps, rounded, centred, out};
    pool_run(do_row, &norm, rows, threads);
}
