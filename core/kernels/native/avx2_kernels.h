/* Kernels for AVX2, compiled twice: with and without AVX-VNNI's multiplier. The including file defines ISA, the name
 * KERNELS of the table, and for 32 bytes each:
 *   DOT(u, x)          eight sums of four products, u unsigned (at most 63), x signed
 *   DOT_SIGNED(w, x)   the same for signed w, or for w + 128 if SHIFTED is 1 */
#include "kernels.h"

#include <immintrin.h>

/* Prefetch distance in bytes. Weights that need little unpacking are prefetched into L2: memory-bound kernels were a
 * sixth slower when prefetching into L1. With one input row, bytes and floats are left to the hardware prefetcher, which
 * was 7 % faster. */
enum { AHEAD = 8192 };

ISA INLINE float add_lanes(__m256 v) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

ISA INLINE float largest(__m256 v) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

ISA INLINE int32_t add_integers(__m256i v) {
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

ISA static void quantize(const float *x, int8_t *q, float *scales, int32_t *sums) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    for (int h = 0; h < 2; h++, x += GROUP, q += GROUP) {
        __m256 v[4], top = _mm256_setzero_ps(), rest = _mm256_setzero_ps();
        UNROLL for (int i = 0; i < 4; i++) {
            v[i] = _mm256_loadu_ps(x + i * 8);
            top = _mm256_max_ps(top, _mm256_andnot_ps(sign, v[i]));
            rest = _mm256_add_ps(rest, _mm256_sub_ps(v[i], v[i])); /* NaN if any is NaN or infinite */
        }
        int broken = _mm256_movemask_ps(_mm256_cmp_ps(rest, rest, _CMP_UNORD_Q)) != 0;
        float most = largest(top);
        __m256 factor = _mm256_set1_ps(!broken && most > SMALLEST ? 127.0f / most : 0.0f);
        __m256i n[4];
        UNROLL for (int i = 0; i < 4; i++) n[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], factor));
        __m256i all = _mm256_packs_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
        all = _mm256_permutevar8x32_epi32(all, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        if (broken) all = _mm256_set1_epi8(1);
        _mm256_storeu_si256((__m256i *)q, all);
        scales[h] = broken ? NAN : most > SMALLEST ? most / 127.0f : 0.0f;
        sums[h] = add_integers(DOT(_mm256_set1_epi8(1), all));
    }
}

ISA static float words(const float *x, int64_t blocks, int16_t *q, int64_t stride) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 top = _mm256_setzero_ps(), rest = _mm256_setzero_ps();
    for (int64_t i = 0; i < blocks * BLOCK; i += 8) {
        __m256 v = _mm256_loadu_ps(x + i);
        top = _mm256_max_ps(top, _mm256_andnot_ps(sign, v));
        rest = _mm256_add_ps(rest, _mm256_sub_ps(v, v));
    }
    int broken = _mm256_movemask_ps(_mm256_cmp_ps(rest, rest, _CMP_UNORD_Q)) != 0;
    float most = largest(top);
    __m256 factor = _mm256_set1_ps(!broken && most > SMALLEST ? 32767.0f / most : 0.0f);
    for (int64_t i = 0; i < blocks * BLOCK; i += 16) {
        __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), factor));
        __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i + 8), factor));
        __m256i all = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
        if (broken) all = _mm256_set1_epi16(1);
        _mm256_storeu_si256((__m256i *)(q + i / BLOCK * stride + i % BLOCK), all);
    }
    return broken ? NAN : most > SMALLEST ? most / 32767.0f : 0.0f;
}

ISA INLINE __m256 widen(const uint16_t *w, const enum Format format) {
    __m128i bits = _mm_loadu_si128((const __m128i *)w);
    if (format == F16) return _mm256_cvtph_ps(bits);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

ISA static void widen_block(const uint16_t *bits, int type, float *to) {
    for (int i = 0; i < BLOCK; i += 8) _mm256_storeu_ps(to + i, widen(bits + i, type == TYPE_F16 ? F16 : BF16));
}

ISA INLINE void float_step(const Input *in, const uint16_t *w, int64_t b, const int M,
                           const enum Format format, __m256 sum[FEW_ROWS]) {
    const float *x = in->floats + b * in->m * 16;
    __m256 low = widen(w, format), high = widen(w + 8, format);
    UNROLL for (int m = 0; m < M; m++) {
        sum[m] = _mm256_fmadd_ps(low, _mm256_loadu_ps(x + m * 16), sum[m]);
        sum[m] = _mm256_fmadd_ps(high, _mm256_loadu_ps(x + m * 16 + 8), sum[m]);
    }
}

ISA INLINE void float_few(const Job *job, int64_t row, const int M, const enum Format format) {
    const Input *in = job->input;
    const uint16_t *w = (const uint16_t *)(job->weights + row * job->stride);
    int64_t b = 0;
    __m256 even[FEW_ROWS], odd[FEW_ROWS];
    UNROLL for (int m = 0; m < M; m++) even[m] = odd[m] = _mm256_setzero_ps();
    for (; (b + 2) * 16 <= in->columns; b += 2) {
        if (M > 1) _mm_prefetch((const char *)(w + b * 16) + AHEAD, _MM_HINT_T1);
        float_step(in, w + b * 16, b, M, format, even);
        float_step(in, w + b * 16 + 16, b + 1, M, format, odd);
    }
    for (; b * 16 < in->columns; b++) {
        uint16_t last[16] = {0};
        int64_t left = in->columns - b * 16;
        memcpy(last, w + b * 16, (size_t)(left < 16 ? left : 16) * 2);
        float_step(in, last, b, M, format, even);
    }
    UNROLL for (int m = 0; m < M; m++) put(job, m, row, add_lanes(_mm256_add_ps(even[m], odd[m])));
}

ISA INLINE void bf16_few(const Job *job, int64_t row, int64_t end, const int M) { (void)end, float_few(job, row, M, BF16); }

ISA INLINE void f16_few(const Job *job, int64_t row, int64_t end, const int M) { (void)end, float_few(job, row, M, F16); }

#include "avx2_scales.h"
#include "avx2_few.h"
#include "avx2_panels.h"
#include "avx2_float8.h"
#include "avx2_sixes.h"
#include "avx2_grouped.h"

/* All rows [begin, end), by the number of input rows. */
#define FEW_CASE(kernel, M) \
    case M: for (int64_t row = begin; row < end; row++) kernel(job, row, end, M); break;
#define ROWS(name, kernel, format)                                                            \
    ISA static void name(const Job *job, int64_t begin, int64_t end, uint8_t *scratch) {      \
        if (job->input->m > FEW_ROWS) {                                                       \
            panels(job, begin, end, scratch, format);                                         \
            return;                                                                           \
        }                                                                                     \
        switch (job->input->m) {                                                              \
            FEW_CASE(kernel, 1) FEW_CASE(kernel, 2) FEW_CASE(kernel, 3) FEW_CASE(kernel, 4)   \
            FEW_CASE(kernel, 5) FEW_CASE(kernel, 6) FEW_CASE(kernel, 7) FEW_CASE(kernel, 8)   \
        }                                                                                     \
    }
ROWS(int8_rows, int8_few, INT8)
ROWS(bf16_rows, bf16_few, BF16)
ROWS(f16_rows, f16_few, F16)

const Kernels *KERNELS(void) {
    static const Kernels kernels = {{int8_rows, bf16_rows, f16_rows, grouped_rows}, quantize, widen_block, words, 0, arrange};
    return &kernels;
}
