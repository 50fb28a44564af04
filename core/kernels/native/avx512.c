/* Kernels for AVX-512 with VNNI. Few rows of input: every row of weights is read once, in order, and multiplied with all
 * of them (the memory's rate decides). More rows: 32 rows of weights are repacked into a panel that stays in the cache,
 * four columns of sixteen rows to a register, and used for all rows of input (the multipliers decide). */
#include "kernels.h"

#if defined(HETEGEN_X86)
#include "avx512.h"

/* ---- input ---- */

/* Sixteen weights as floats; `valid` of them are there. */
AVX512 INLINE __m512 widen(const uint16_t *w, __mmask16 valid, const enum Format format) {
    __m256i bits = _mm256_maskz_loadu_epi16(valid, w);
    if (format == F16) return _mm512_cvtph_ps(bits);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

AVX512 static void widen_block(const uint16_t *bits, int type, float *to) {
    for (int i = 0; i < BLOCK; i += 16)
        _mm512_storeu_ps(to + i, widen(bits + i, 0xffff, type == TYPE_F16 ? F16 : BF16));
}

AVX512 static void quantize(const float *x, int8_t *q, float *scales, int32_t *sums) {
    for (int h = 0; h < 2; h++, x += GROUP, q += GROUP) {
        __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
        __m512 rest = _mm512_add_ps(_mm512_sub_ps(a, a), _mm512_sub_ps(b, b)); /* NaN where NaN or infinite */
        float top = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
        int broken = _mm512_cmp_ps_mask(rest, rest, _CMP_UNORD_Q) != 0;
        __m512 factor = _mm512_set1_ps(!broken && top > SMALLEST ? 127.0f / top : 0.0f);
        __m128i low = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(a, factor)));
        __m128i high = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(b, factor)));
        __m256i both = broken ? _mm256_set1_epi8(1) : _mm256_set_m128i(high, low);
        __m256i four = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), both);
        _mm256_storeu_si256((__m256i *)q, both);
        scales[h] = broken ? NAN : top > SMALLEST ? top / 127.0f : 0.0f;
        sums[h] = _mm512_reduce_add_epi32(_mm512_zextsi256_si512(four));
    }
}

/* ---- few rows of input ---- */

/* Bytes that are asked of the memory ahead of use. */
enum { AHEAD = 8192 };

/* One row after the other is one stream, which the memory serves best; with several rows of input, two rows of weights
 * share each load of the input. */
INLINE int64_t ahead_by(int64_t row_bytes, const int R) {
    return R > 1 && R * row_bytes > AHEAD ? R * row_bytes : AHEAD;
}

AVX512 INLINE void ask_ahead(const uint8_t *at, int64_t row_bytes, const int R) {
    _mm_prefetch((const char *)at + ahead_by(row_bytes, R), _MM_HINT_T0);
}

/* For weights that are hardly unpacked, so that the memory decides: on a Zen 5 it gave a sixth less into the innermost
 * cache than into the second one. */
AVX512 INLINE void ask_ahead_for_bytes(const uint8_t *at, int64_t row_bytes, const int R) {
    _mm_prefetch((const char *)at + ahead_by(row_bytes, R), _MM_HINT_T1);
}

/* The sums over the lanes of R x M registers, at [r * M + m]. */
AVX512 INLINE void add_lanes(__m512 sum[2][FEW_ROWS], const int R, const int M, float out[2 * FEW_ROWS]) {
    if (M < 4) {
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int m = 0; m < M; m++)
            out[r * M + m] = _mm512_reduce_add_ps(sum[r][m]);
        return;
    }
    __m512 all[16];
    UNROLL for (int i = 0; i < 16; i++) all[i] = i < R * M ? sum[i / M][i % M] : _mm512_setzero_ps();
    _mm512_storeu_ps(out, add_across(all));
}

/* Weights are shifted to unsigned bytes for the multiplier; what that adds is taken back at the end of the row. */
AVX512 INLINE void int8_few(const Job *job, int64_t row, int64_t m0, const int R, const int M, const float *shift) {
    const Input *in = job->input;
    const uint8_t *w = job->weights + row * job->row_bytes;
    __m512 sum[2][FEW_ROWS];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int m = 0; m < M; m++) sum[r][m] = _mm512_setzero_ps();
    const int8_t *x = in->q + m0 * BLOCK;
    const float *lanes = in->lanes + m0 * 16;
    for (int64_t b = 0; b < job->row_bytes / BLOCK; b++, x += in->m * BLOCK, lanes += in->m * 16) {
        __m512i wide[2];
        UNROLL for (int r = 0; r < R; r++) {
            const uint8_t *at = w + r * job->row_bytes + b * BLOCK;
            ask_ahead_for_bytes(at, job->row_bytes, R);
            wide[r] = _mm512_xor_si512(_mm512_loadu_si512(at), _mm512_set1_epi8((char)0x80));
        }
        UNROLL for (int m = 0; m < M; m++) {
            __m512i four = _mm512_loadu_si512(x + m * BLOCK);
            __m512 scale = _mm512_loadu_ps(lanes + m * 16);
            UNROLL for (int r = 0; r < R; r++) {
                __m512i dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), wide[r], four);
                sum[r][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, sum[r][m]);
            }
        }
    }
    float total[2 * FEW_ROWS];
    add_lanes(sum, R, M, total);
    UNROLL for (int m = 0; m < M; m++) UNROLL for (int r = 0; r < R; r++)
        put(job, m0 + m, row + r, (total[r * M + m] - shift[m]) * ((const float *)job->scales)[row + r]);
}

AVX512 INLINE void float_step(const Job *job, int64_t row, int64_t m0, int64_t b, __mmask16 valid, const int R, const int M,
                           const enum Format format, __m512 sum[2][FEW_ROWS]) {
    const Input *in = job->input;
    const float *x = in->floats + (b * in->m + m0) * 16;
    __m512 w[2];
    UNROLL for (int r = 0; r < R; r++) {
        const uint8_t *at = job->weights + (row + r) * job->row_bytes + b * 32;
        if (b % 2 == 0) ask_ahead_for_bytes(at, job->row_bytes, R);
        w[r] = widen((const uint16_t *)at, valid, format);
    }
    UNROLL for (int m = 0; m < M; m++) {
        __m512 own = _mm512_loadu_ps(x + m * 16);
        UNROLL for (int r = 0; r < R; r++) sum[r][m] = _mm512_fmadd_ps(w[r], own, sum[r][m]);
    }
}

AVX512 INLINE void float_few(const Job *job, int64_t row, int64_t m0, const int R, const int M, const enum Format format) {
    int64_t columns = job->input->columns, b = 0;
    __m512 even[2][FEW_ROWS], odd[2][FEW_ROWS];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int m = 0; m < M; m++) even[r][m] = odd[r][m] = _mm512_setzero_ps();
    for (; (b + 2) * 16 <= columns; b += 2) {
        float_step(job, row, m0, b, 0xffff, R, M, format, even);
        float_step(job, row, m0, b + 1, 0xffff, R, M, format, R * M > 4 ? even : odd);
    }
    for (; b * 16 < columns; b++) {
        int64_t left = columns - b * 16;
        float_step(job, row, m0, b, left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1), R, M, format, even);
    }
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int m = 0; m < M; m++)
        if (R * M <= 4) even[r][m] = _mm512_add_ps(even[r][m], odd[r][m]);
    float total[2 * FEW_ROWS];
    add_lanes(even, R, M, total);
    UNROLL for (int m = 0; m < M; m++) UNROLL for (int r = 0; r < R; r++) put(job, m0 + m, row + r, total[r * M + m]);
}

AVX512 INLINE void bf16_few(const Job *job, int64_t row, int64_t m0, const int R, const int M, const float *unused) {
    (void)unused;
    float_few(job, row, m0, R, M, BF16);
}

AVX512 INLINE void f16_few(const Job *job, int64_t row, int64_t m0, const int R, const int M, const float *unused) {
    (void)unused;
    float_few(job, row, m0, R, M, F16);
}

/* All rows [begin, end), with at most FEW_ROWS rows of input at a time. */
#define FEW_CASE(kernel, M, R)                                                                              \
    case M:                                                                                                 \
        for (; row + R <= end; row += R) kernel(job, row, m0, R, M, shift);                                 \
        for (; row < end; row++) kernel(job, row, m0, 1, M, shift);                                         \
        break;
#define FEW_FOR(instructions, name, kernel)                                                                 \
    instructions static void name(const Job *job, int64_t begin, int64_t end) {                             \
        for (int64_t m0 = 0; m0 < job->input->m; m0 += FEW_ROWS) {                                          \
            int64_t row = begin, left = job->input->m - m0;                                                 \
            float shift[FEW_ROWS];                                                                          \
            int8_shifts(job->input, m0, shift);                                                             \
            switch (left < FEW_ROWS ? left : FEW_ROWS) {                                                    \
                FEW_CASE(kernel, 1, 1) FEW_CASE(kernel, 2, 1) FEW_CASE(kernel, 3, 1)                        \
                FEW_CASE(kernel, 4, 2) FEW_CASE(kernel, 5, 2) FEW_CASE(kernel, 6, 2)                        \
                FEW_CASE(kernel, 7, 2) FEW_CASE(kernel, 8, 2)                                               \
            }                                                                                               \
        }                                                                                                   \
    }
#define FEW(name, kernel) FEW_FOR(AVX512, name, kernel)
FEW(int8_rows_few, int8_few)
FEW(bf16_rows_few, bf16_few)
FEW(f16_rows_few, f16_few)

#include "avx512_panels.h"
#include "avx512_grouped.h"
#include "avx512_one.h"
#include "avx512_float8.h"
#include "avx512_shorts.h"

AVX512 static void int8_rows(const Job *job, int64_t begin, int64_t end, uint8_t *panel) {
    const Way way = {SIGNED_BYTES, BY_ROW, 128, 0};
    if (job->input->m == 1) int8_rows_one(job, begin, end);
    else if (is_few(job, panel)) int8_rows_few(job, begin, end);
    else
        for (int64_t row = begin; row < end; row += PANEL) {
            for (int i = 0; i < PANEL; i++) scales_at(panel)[i] = ((const float *)job->scales)[panel_row(row, i, end)];
            multiply_panel(job, row, end, panel, way);
        }
}

AVX512 static void grouped_rows(const Job *job, int64_t begin, int64_t end, uint8_t *panel) {
    const Layout l = layout_of(job->format);
    if (job->format == FLOAT8) {
        if (job->input->shorts) short_rows(job, begin, end, panel);
        else float8_rows_few(job, begin, end);
        return;
    }
    if (job->input->m == 1) {
        one_kernel(job->format)(job, begin, end);
        return;
    }
    if (is_few(job, panel) || l.group == 16) {
        (l.group == 16 ? grouped16_rows_few
         : job->format == INT4 ? int4_rows_few
         : job->format == INT6 ? int6_rows_few : grouped32_rows_few)(job, begin, end);
        return;
    }
    for (int64_t row = begin; row < end; row += PANEL) {
        pack_strips(job, &l, row, end, scales_at(panel));
        switch (l.values) { GROUPED_WAY(SIGNED_BYTES) GROUPED_WAY(HALVES) GROUPED_WAY(CODES) GROUPED_WAY(SIXES) }
    }
}

static void bf16_rows(const Job *job, int64_t begin, int64_t end, uint8_t *panel) {
    (void)panel;
    bf16_rows_few(job, begin, end);
}

static void f16_rows(const Job *job, int64_t begin, int64_t end, uint8_t *panel) {
    (void)panel;
    f16_rows_few(job, begin, end);
}

const Kernels *kernels_avx512(void) {
    static const Kernels kernels[2] = {
        {{int8_rows, bf16_rows, f16_rows, grouped_rows}, quantize, widen_block, NULL, 0},
        {{int8_rows, bf16_rows, f16_rows, grouped_rows}, quantize, widen_block, NULL, 1},
    };
    return kernels + takes_shorts();
}

#else
const Kernels *kernels_avx512(void) { return NULL; }
#endif
