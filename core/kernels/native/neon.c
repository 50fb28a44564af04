/* Kernels for 64-bit ARM with the dot product instructions (Apple silicon, Snapdragon X, Neoverse, Cortex-A76 on). */
#include "kernels.h"

#if defined(HETEGEN_ARM)
#include <arm_neon.h>

#define ISA TARGET("arch=armv8.2-a+dotprod")

enum { ROWS_IN_CACHE = 32 };

/* Four sums of eight products each, over 32 bytes with a common scale. */
ISA INLINE int32x4_t dot(int8x16_t w0, int8x16_t w1, const int8_t *x) {
    return vdotq_s32(vdotq_s32(vdupq_n_s32(0), w0, vld1q_s8(x)), w1, vld1q_s8(x + 16));
}

ISA static void quantize(const float *x, int8_t *q, float *scales, int32_t *sums) {
    for (int h = 0; h < 2; h++, x += GROUP, q += GROUP) {
        float top = 0, rest = 0;
        for (int i = 0; i < GROUP; i++) {
            float size = fabsf(x[i]);
            top = size > top ? size : top;
            rest += x[i] - x[i]; /* NaN if any is NaN or infinite */
        }
        int broken = rest != rest;
        float factor = !broken && top > SMALLEST ? 127.0f / top : 0.0f;
        sums[h] = 0;
        for (int i = 0; i < GROUP; i++) {
            q[i] = broken ? 1 : (int8_t)vcvtns_s32_f32(x[i] * factor);
            sums[h] += q[i];
        }
        scales[h] = broken ? NAN : top > SMALLEST ? top / 127.0f : 0.0f;
    }
}

ISA INLINE void int8_few(const Job *job, int64_t row, int64_t m0, const int M) {
    const Input *in = job->input;
    const int8_t *w = (const int8_t *)job->weights + row * job->stride;
    float32x4_t sum[FEW_ROWS];
    for (int m = 0; m < M; m++) sum[m] = vdupq_n_f32(0);
    for (int64_t g = 0; g < job->row_bytes / GROUP; g++) {
        int8x16_t w0 = vld1q_s8(w + g * GROUP), w1 = vld1q_s8(w + g * GROUP + 16);
        for (int m = 0; m < M; m++) {
            int64_t at = g / 2 * in->m + m0 + m;
            int32x4_t four = dot(w0, w1, in->q + at * BLOCK + g % 2 * GROUP);
            sum[m] = vfmaq_n_f32(sum[m], vcvtq_f32_s32(four), in->scales[at * 2 + g % 2]);
        }
    }
    for (int m = 0; m < M; m++) put(job, m0 + m, row, vaddvq_f32(sum[m]) * ((const float *)job->scales)[row]);
}

ISA INLINE float32x4_t widen(const uint16_t *w, const enum Format format) {
    uint16x4_t bits = vld1_u16(w);
    if (format == F16) return vcvt_f32_f16(vreinterpret_f16_u16(bits));
    return vreinterpretq_f32_u32(vshll_n_u16(bits, 16));
}

ISA static void widen_block(const uint16_t *bits, int type, float *to) {
    for (int i = 0; i < BLOCK; i += 4) vst1q_f32(to + i, widen(bits + i, type == TYPE_F16 ? F16 : BF16));
}

ISA INLINE void float_step(const Input *in, const uint16_t *w, int64_t b, int64_t m0, const int M, const enum Format format,
                       float32x4_t sum[FEW_ROWS]) {
    const float *x = in->floats + (b * in->m + m0) * 16;
    for (int i = 0; i < 4; i++) {
        float32x4_t four = widen(w + i * 4, format);
        for (int m = 0; m < M; m++) sum[m] = vfmaq_f32(sum[m], four, vld1q_f32(x + m * 16 + i * 4));
    }
}

ISA INLINE void float_few(const Job *job, int64_t row, int64_t m0, const int M, const enum Format format) {
    const Input *in = job->input;
    const uint16_t *w = (const uint16_t *)(job->weights + row * job->stride);
    int64_t b = 0;
    float32x4_t even[FEW_ROWS], odd[FEW_ROWS];
    for (int m = 0; m < M; m++) even[m] = odd[m] = vdupq_n_f32(0);
    for (; (b + 2) * 16 <= in->columns; b += 2) {
        float_step(in, w + b * 16, b, m0, M, format, even);
        float_step(in, w + b * 16 + 16, b + 1, m0, M, format, odd);
    }
    for (; b * 16 < in->columns; b++) {
        uint16_t last[16] = {0};
        int64_t left = in->columns - b * 16;
        memcpy(last, w + b * 16, (size_t)(left < 16 ? left : 16) * 2);
        float_step(in, last, b, m0, M, format, even);
    }
    for (int m = 0; m < M; m++) put(job, m0 + m, row, vaddvq_f32(vaddq_f32(even[m], odd[m])));
}

ISA INLINE void bf16_few(const Job *job, int64_t row, int64_t m0, const int M) { float_few(job, row, m0, M, BF16); }

ISA INLINE void f16_few(const Job *job, int64_t row, int64_t m0, const int M) { float_few(job, row, m0, M, F16); }

#include "neon_float8.h"
#include "neon_grouped.h"

#define FEW_CASE(kernel, M) \
    case M: for (int64_t r = row; r < stop; r++) kernel(job, r, m0, M); break;
#define FEW(name, kernel)                                                                             \
    ISA static void name(const Job *job, int64_t begin, int64_t end, uint8_t *panel) {                    \
        (void)panel;                                                                                  \
        for (int64_t row = begin; row < end; row += ROWS_IN_CACHE) {                                  \
            int64_t stop = row + ROWS_IN_CACHE < end ? row + ROWS_IN_CACHE : end;                     \
            for (int64_t m0 = 0; m0 < job->input->m; m0 += FEW_ROWS) {                                \
                int64_t left = job->input->m - m0;                                                    \
                switch (left < FEW_ROWS ? left : FEW_ROWS) {                                          \
                    FEW_CASE(kernel, 1) FEW_CASE(kernel, 2) FEW_CASE(kernel, 3) FEW_CASE(kernel, 4)   \
                    FEW_CASE(kernel, 5) FEW_CASE(kernel, 6) FEW_CASE(kernel, 7) FEW_CASE(kernel, 8)   \
                }                                                                                     \
            }                                                                                         \
        }                                                                                             \
    }
FEW(int8_rows, int8_few)
FEW(bf16_rows, bf16_few)
FEW(f16_rows, f16_few)
FEW(float8_rows, float8_few)
FEW(few_groups_rows, grouped_few)

ISA static void grouped_rows(const Job *job, int64_t begin, int64_t end, uint8_t *panel) {
    (job->format == FLOAT8 ? float8_rows : few_groups_rows)(job, begin, end, panel);
}

const Kernels *kernels_neon(void) {
    static const Kernels kernels = {{int8_rows, bf16_rows, f16_rows, grouped_rows}, quantize, widen_block, NULL, 0, NULL};
    return &kernels;
}

#else
const Kernels *kernels_neon(void) { return NULL; }
#endif
