/* Kernels for AVX-512 with VNNI. Few rows of input (memory-bound): each row of weights is read once, in order, and
 * multiplied with all of them. More rows (compute-bound): 32 rows of weights are repacked into a panel that stays in
 * the cache, four columns of sixteen rows per register, and used for all rows of input. */
#include "kernels.h"
#include "processor.h"

#if defined(HETEGEN_X86)
#include "avx512.h"

/* ---- input ---- */

/* Sixteen weights as floats; lanes outside `valid` are zero. */
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
        __m512 rest = _mm512_add_ps(_mm512_sub_ps(a, a), _mm512_sub_ps(b, b)); /* NaN if any is NaN or infinite */
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

/* Prefetch distance in bytes. Prefetching into L2 is up to a sixth faster than prefetching into L1, and 8,192 bytes than
 * 4,096. */
enum { AHEAD = 8192 };

AVX512 INLINE void ask_ahead(const uint8_t *at) { _mm_prefetch((const char *)at + AHEAD, _MM_HINT_T1); }

/* For weights that need little unpacking, where memory is the limit. With one input row the hardware prefetcher alone
 * reads 5 to 20 % faster; with more it stays too close behind the loads. */
AVX512 INLINE void ask_ahead_for_bytes(const uint8_t *at, const int M) {
    if (M > 1) ask_ahead(at);
}

#include "avx512_grouped.h"
#include "avx512_panels.h"
#include "avx512_strips.h"
#include "avx512_few.h"
#include "avx512_float8.h"
#include "avx512_shorts.h"

AVX512 static void int8_rows(const Job *job, int64_t begin, int64_t end, uint8_t *panel) {
    const Way way = {SIGNED_BYTES, BY_ROW, 128, 0};
    if (job->input->m <= MOST_FEW) int8_few(job, begin, end);
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
        else float8_few(job, begin, end);
        return;
    }
    if (job->input->m <= MOST_FEW || l.group == 16) {
        few_kernel(job->format)(job, begin, end);
        return;
    }
    for (int64_t row = begin; row < end; row += PANEL) {
        pack_scales(job, l, row, end, scales_at(panel));
        if (l.minimum) switch (l.values) { SHIFTED_WAY(HALVES) SHIFTED_WAY(SIXES) default: break; }
        else switch (l.values) { GROUPED_WAY(SIGNED_BYTES) GROUPED_WAY(HALVES) GROUPED_WAY(CODES) GROUPED_WAY(SIXES) }
    }
}

static void bf16_rows(const Job *job, int64_t begin, int64_t end, uint8_t *panel) {
    (void)panel;
    if (job->input->given) given_few(job, begin, end);
    else bf16_few(job, begin, end);
}

static void f16_rows(const Job *job, int64_t begin, int64_t end, uint8_t *panel) {
    (void)panel;
    f16_few(job, begin, end);
}

const Kernels *kernels_avx512(void) {
    static const Kernels kernels[2] = {
        {{int8_rows, bf16_rows, f16_rows, grouped_rows}, quantize, widen_block, NULL, 0, arrange},
        {{int8_rows, bf16_rows, f16_rows, grouped_rows}, quantize, widen_block, NULL, 1, arrange},
    };
    return kernels + takes_shorts();
}

#else
const Kernels *kernels_avx512(void) { return NULL; }
#endif
