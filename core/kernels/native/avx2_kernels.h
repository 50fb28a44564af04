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

/* ---- at most MOST_FEW input rows, in turns of at most FEW_ROWS ---- */

/* Rows of weights that stay in the cache between two turns, and the most turns. */
enum { ROWS_IN_CACHE = 16, MOST_TURNS = (MOST_FEW + FEW_ROWS - 1) / FEW_ROWS };

/* A job for some of the input rows: its input and output begin with the first of them. */
typedef struct {
    Job job;
    Input input;
    int64_t rows;
} Turn;

INLINE Turn turn_from(const Job *job, int64_t m0, int64_t rows) {
    Turn t = {*job, *job->input, rows};
    Input *in = &t.input;
    t.job.out = (uint8_t *)job->out + m0 * job->out_stride * (job->out_type == TYPE_F32 ? 4 : 2);
    if (in->floats) {
        in->floats += m0 * 16;
        return t;
    }
    in->q += m0 * BLOCK;
    in->by_row += m0 * in->blocks * 2;
    in->offsets += m0 * in->blocks * 2;
    in->sixteens += m0 * in->blocks * 4;
    in->totals += m0;
    return t;
}

/* Divide the input rows among turns of nearly equal size; return their number. */
INLINE int64_t turns_of(const Job *job, Turn turns[MOST_TURNS]) {
    int64_t all = job->input->m, count = (all + FEW_ROWS - 1) / FEW_ROWS;
    for (int64_t t = 0; t < count; t++) {
        int64_t m0 = all * t / count;
        turns[t] = turn_from(job, m0, all * (t + 1) / count - m0);
        turns[t].job.input = &turns[t].input;
    }
    return count;
}

/* Evaluate `call` for each row r of weights in [begin, end) and each turn: `own` is its job, M its number of input rows,
 * which is a compile-time constant. */
#define TURN_CASE(count, call)                                    \
    case count: {                                                 \
        enum { M = count };                                       \
        for (int64_t r = row; r < stop; r++) call;                \
        break;                                                    \
    }
#define IN_TURNS(call)                                                                                      \
    Turn turns[MOST_TURNS];                                                                                 \
    const int64_t count = turns_of(job, turns);                                                             \
    for (int64_t row = begin; row < end; row += ROWS_IN_CACHE) {                                            \
        const int64_t stop = row + ROWS_IN_CACHE < end ? row + ROWS_IN_CACHE : end;                         \
        for (int64_t t = 0; t < count; t++) {                                                               \
            const Job *own = &turns[t].job;                                                                 \
            switch (turns[t].rows) {                                                                        \
                TURN_CASE(1, call) TURN_CASE(2, call) TURN_CASE(3, call) TURN_CASE(4, call)                 \
                TURN_CASE(5, call) TURN_CASE(6, call) TURN_CASE(7, call) TURN_CASE(8, call)                 \
            }                                                                                               \
        }                                                                                                   \
    }

#include "avx2_scales.h"
#include "avx2_few.h"
#include "avx2_panels.h"
#include "avx2_float8.h"
#include "avx2_sixes.h"
#include "avx2_grouped.h"

/* All rows [begin, end), by the number of input rows. */
#define ROWS(name, kernel, format)                                                       \
    ISA static void name(const Job *job, int64_t begin, int64_t end, uint8_t *scratch) { \
        if (job->input->m > MOST_FEW) {                                                  \
            panels(job, begin, end, scratch, format);                                    \
            return;                                                                      \
        }                                                                                \
        IN_TURNS(kernel(own, r, end, M))                                                 \
    }
ROWS(int8_rows, int8_few, INT8)
ROWS(bf16_rows, bf16_few, BF16)
ROWS(f16_rows, f16_few, F16)

const Kernels *KERNELS(void) {
    static const Kernels kernels = {{int8_rows, bf16_rows, f16_rows, grouped_rows}, quantize, widen_block, words, 0, arrange};
    return &kernels;
}
