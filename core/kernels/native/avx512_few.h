/* Few rows of input on AVX-512: decoding, and verifying drafted tokens. Rows of weights are read one at a time: four
 * concurrent streams reached only two thirds of the memory bandwidth of one. Each row is unpacked once for all input
 * rows, the scales of 512 columns fill one register, and the partial sums of sixteen rows are reduced together. An
 * input row gives the same bits whatever the other rows are. Included in avx512.c. */

enum { ROWS_IN_CACHE = 64 };

/* Multiply weight rows [row, row + 16), at most up to `end`, with input rows [m0, m0 + M). */
#define SIXTEEN_FOR(isa, name, kernel, format, finish)                                                                   \
    isa INLINE void name##_sixteen(const Job *job, int64_t row, int64_t end, int64_t m0, const int M) {                \
        __m512 sums[FEW_ROWS][16];                                                                                     \
        for (int i = 0; i < 16; i++) {                                                                                 \
            __m512 sum[FEW_ROWS];                                                                                      \
            UNROLL for (int m = 0; m < M; m++) sum[m] = _mm512_setzero_ps();                                           \
            if (row + i < end) kernel(job, row + i, format, m0, M, sum);                                               \
            UNROLL for (int m = 0; m < M; m++) sums[m][i] = sum[m];                                                    \
        }                                                                                                              \
        for (int m = 0; m < M; m++) put_sixteen(job, m0 + m, row, end, finish(job, row, end, m0 + m, add_across(sums[m]))); \
    }
#define FEW_CASE(name, M) \
    case M: for (int64_t r = row; r < stop; r += 16) name##_sixteen(job, r, stop, m0, M); break;
/* All rows [begin, end) of a format that is a compile-time constant, so that the loops have no format branches, times
 * all input rows, at most FEW_ROWS at a time. */
#define FEW_FOR(isa, name)                                                                                             \
    isa static void name(const Job *job, int64_t begin, int64_t end) {                                                 \
        const int64_t all = job->input->m, turns = (all + FEW_ROWS - 1) / FEW_ROWS;                                    \
        for (int64_t row = begin; row < end; row += ROWS_IN_CACHE) {                                                   \
            int64_t stop = row + ROWS_IN_CACHE < end ? row + ROWS_IN_CACHE : end;                                      \
            for (int64_t t = 0; t < turns; t++) {                                                                      \
                int64_t m0 = all * t / turns, next = all * (t + 1) / turns;                                            \
                switch (next - m0) {                                                                                   \
                    FEW_CASE(name, 1) FEW_CASE(name, 2) FEW_CASE(name, 3) FEW_CASE(name, 4)                            \
                    FEW_CASE(name, 5) FEW_CASE(name, 6) FEW_CASE(name, 7) FEW_CASE(name, 8)                            \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }
#define SIXTEEN(name, kernel, format, finish) SIXTEEN_FOR(AVX512, name, kernel, format, finish)
#define FEW(name) FEW_FOR(AVX512, name)

AVX512 INLINE __m512 as_it_is(const Job *job, int64_t row, int64_t end, int64_t m, __m512 sums) {
    (void)job, (void)row, (void)end, (void)m;
    return sums;
}

/* ---- groups ---- */

/* A row of weights and its groups' scales and minimums. */
typedef struct {
    const uint8_t *at;
    RowScales scales, minimums;
} OneRow;

AVX512 INLINE OneRow one_row(const Job *job, int64_t row, const Layout *l) {
    OneRow r = {job->weights + row * job->stride, row_scales(job, l, row, 0), row_scales(job, l, row, 1)};
    return r;
}

AVX512 INLINE void ask_for_pair(const uint8_t *row, int64_t pair, const Layout *l, const int M) {
    for (int64_t i = 0; i < pair_bytes(l); i += 64) {
        const uint8_t *at = row + pair * pair_bytes(l) + i;
        if (l->values == SIGNED_BYTES) ask_ahead_for_bytes(at, M);
        else ask_ahead(at);
    }
}

/* Unpack the strip that begins with pair `first`, transposed if M > 1. */
AVX512 INLINE void unpack_strip(const uint8_t *row, int64_t first, const Layout l, __m512i book, const int M, __m512i w[STRIP_BLOCKS]) {
    UNROLL for (int i = 0; i < STRIP_PAIRS; i++) ask_for_pair(row, first + i, &l, M);
    if (M == 1 || l.values == SIGNED_BYTES || l.values == SIXES) {
        UNROLL for (int i = 0; i < STRIP_PAIRS; i++) unpack_pair(row, first + i, l.values, book, w + i * 2);
        if (M > 1) turn_strip(w);
        return;
    }
    const uint8_t *at = row + first * 64;
    __m512i both[4], halves[2];
    turn_four(_mm512_loadu_si512(at), _mm512_loadu_si512(at + 64), _mm512_loadu_si512(at + 128), _mm512_loadu_si512(at + 192), both);
    UNROLL for (int i = 0; i < 4; i++) {
        unpack_halves(both[i], l.values, book, halves);
        w[i] = halves[0];
        w[4 + i] = halves[1];
    }
}

/* Multiply a strip in groups of 32 columns with M input rows. */
AVX512 INLINE void strip_of_32(const Input *in, const Layout l, const __m512i book, int64_t g, const OneRow *r, int64_t m0,
                               const int M, __m512 sum[FEW_ROWS]) {
    const __m512 own = sixteen_scales(&r->scales, &l, g, 0xffff), shifts = sixteen_shifts(&r->minimums, &l, g, 0xffff, own);
    const __m512 by_lane = _mm512_permutexvar_ps(groups_by_lane(), own);
    __m512i w[STRIP_BLOCKS], all[FEW_ROWS];
    unpack_strip(r->at, g >> 2, l, book, M, w);
    strip_sums(w, l.values, in->q + ((g >> 1) * in->m + m0) * BLOCK, in->m * BLOCK, M, all);
    UNROLL for (int m = 0; m < M; m++) {
        int64_t at = (m0 + m) * in->blocks * 2 + g;
        const __m512 scale = _mm512_mul_ps(by_lane, _mm512_loadu_ps(in->by_row + at));
        sum[m] = _mm512_fmadd_ps(shifts, _mm512_loadu_ps(in->offsets + at), sum[m]);
        sum[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(all[m]), scale, sum[m]);
    }
}

/* Lane indices that broadcast the first four of sixteen scales to four lanes each. */
AVX512 INLINE __m512i four_by_four(void) { return _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3); }

/* Multiply a pair of blocks with values w with M input rows; `lanes` selects their scales in `scale`. */
AVX512 INLINE void pair_of_32(const Input *in, int64_t pair, int64_t m0, const __m512i w[2], const __m512 scale[FEW_ROWS],
                              __m512i lanes, const int M, __m512 sum[FEW_ROWS]) {
    const int8_t *x = in->q + (pair * 2 * in->m + m0) * BLOCK, *next = x + in->m * BLOCK;
    UNROLL for (int m = 0; m < M; m++) {
        __m512i dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w[0], _mm512_loadu_si512(x + m * BLOCK));
        dot = _mm512_dpbusd_epi32(dot, w[1], _mm512_loadu_si512(next + m * BLOCK));
        sum[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_permutexvar_ps(lanes, scale[m]), sum[m]);
    }
}

/* Multiply the last `groups` groups from g on, fewer than a strip, with M input rows. */
AVX512 INLINE void rest_of_32(const Input *in, const Layout l, const __m512i book, int64_t g, const int64_t groups,
                              const OneRow *r, int64_t m0, const int M, __m512 sum[FEW_ROWS]) {
    const __mmask16 valid = (__mmask16)((1u << groups) - 1);
    const __m512 own = sixteen_scales(&r->scales, &l, g, valid), shifts = sixteen_shifts(&r->minimums, &l, g, valid, own);
    __m512 scale[FEW_ROWS];
    UNROLL for (int m = 0; m < M; m++) {
        int64_t at = (m0 + m) * in->blocks * 2 + g;
        scale[m] = _mm512_mul_ps(own, _mm512_maskz_loadu_ps(valid, in->by_row + at));
        sum[m] = _mm512_fmadd_ps(shifts, _mm512_maskz_loadu_ps(valid, in->offsets + at), sum[m]);
    }
    __m512i lanes = four_by_four();
    for (int i = 0; i < groups >> 2; i++, lanes = _mm512_add_epi32(lanes, _mm512_set1_epi32(4))) {
        const int64_t pair = (g >> 2) + i;
        __m512i w[2];
        ask_for_pair(r->at, pair, &l, M);
        unpack_pair(r->at, pair, l.values, book, w);
        pair_of_32(in, pair, m0, w, scale, lanes, M, sum);
    }
}

AVX512 INLINE void grouped32(const Job *job, int64_t row, const int format, int64_t m0, const int M, __m512 sum[FEW_ROWS]) {
    const Layout l = layout_of(format);
    const int64_t groups = job->input->blocks * 2;
    const __m512i book = book_of(&l);
    const OneRow r = one_row(job, row, &l);
    int64_t g = 0;
    for (; g + STRIP_LANES <= groups; g += STRIP_LANES) strip_of_32(job->input, l, book, g, &r, m0, M, sum);
    if (g < groups) rest_of_32(job->input, l, book, g, groups - g, &r, m0, M, sum);
}

/* Multiply four groups of 16 with M input rows. Shifts are multiplied with sums of 16 input columns, computed here. */
AVX512 INLINE void four_of_16(const int8_t *x, __m512i w, const __m512 scale[FEW_ROWS], const __m512 shift[FEW_ROWS],
                              __m512i lanes, const int M, __m512 sum[FEW_ROWS]) {
    UNROLL for (int m = 0; m < M; m++) {
        __m512i own = _mm512_loadu_si512(x + m * BLOCK);
        __m512i dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w, own);
        __m512i all = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), own);
        sum[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_permutexvar_ps(lanes, scale[m]), sum[m]);
        sum[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(all), _mm512_permutexvar_ps(lanes, shift[m]), sum[m]);
    }
}

/* Multiply a strip in groups of 16 with M input rows; even and odd groups have separate scale registers. */
AVX512 INLINE void strip_of_16(const Input *in, const Layout l, const __m512i book, int64_t first, const OneRow *r, int64_t m0,
                               const int M, __m512 sum[FEW_ROWS]) {
    const __m512i evens = _mm512_slli_epi32(groups_by_lane(), 1), odds = _mm512_or_si512(evens, _mm512_set1_epi32(1));
    __m512 own[2], shifts[2];
    __m512i w[STRIP_BLOCKS], dot[2][FEW_ROWS];
    UNROLL for (int h = 0; h < 2; h++) {
        own[h] = sixteen_scales(&r->scales, &l, first * 8 + h * 16, 0xffff);
        shifts[h] = sixteen_shifts(&r->minimums, &l, first * 8 + h * 16, 0xffff, own[h]);
    }
    const __m512 by_lane[2] = {_mm512_permutex2var_ps(own[0], evens, own[1]), _mm512_permutex2var_ps(own[0], odds, own[1])};
    unpack_strip(r->at, first, l, book, M, w);
    strip_dots(w, in->q + (first * 2 * in->m + m0) * BLOCK, in->m * BLOCK, M, dot);
    UNROLL for (int m = 0; m < M; m++) {
        const int64_t at = (m0 + m) * in->blocks * 2 + first * 4;
        const __m512 scale = _mm512_loadu_ps(in->by_row + at);
        UNROLL for (int h = 0; h < 2; h++) {
            sum[m] = _mm512_fmadd_ps(shifts[h], _mm512_loadu_ps(in->sixteens + at * 2 + h * 16), sum[m]);
            sum[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[h][m]), _mm512_mul_ps(by_lane[h], scale), sum[m]);
        }
    }
}

/* Multiply `pairs` pairs of blocks (at most two) in groups of 16, from pair `first` on, with M input rows. */
AVX512 INLINE void pairs_of_16(const Input *in, const Layout l, const __m512i book, int64_t first, const int64_t pairs,
                               const OneRow *r, int64_t m0, const int M, __m512 sum[FEW_ROWS]) {
    const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    const __mmask16 valid = (__mmask16)((1u << pairs * 8) - 1), halves = (__mmask16)((1u << pairs * 4) - 1);
    const __m512 own = sixteen_scales(&r->scales, &l, first * 8, valid);
    const __m512 shifts = sixteen_shifts(&r->minimums, &l, first * 8, valid, own);
    __m512 scale[FEW_ROWS], shift[FEW_ROWS];
    UNROLL for (int m = 0; m < M; m++) {
        __m512 eight = _mm512_maskz_loadu_ps(halves, in->by_row + (m0 + m) * in->blocks * 2 + first * 4);
        scale[m] = _mm512_mul_ps(own, _mm512_permutexvar_ps(twice, eight));
        shift[m] = _mm512_mul_ps(shifts, _mm512_permutexvar_ps(twice, eight));
    }
    const int arranged = in->m <= MOST_FEW; /* then a block holds every second group of the pair */
    __m512i lanes = arranged ? _mm512_add_epi32(four_by_four(), four_by_four()) : four_by_four();
    const __m512i second = _mm512_set1_epi32(arranged ? 1 : 4);
    for (int64_t pair = first; pair < first + pairs; pair++, lanes = _mm512_add_epi32(lanes, _mm512_set1_epi32(8))) {
        const int8_t *x = in->q + (pair * 2 * in->m + m0) * BLOCK;
        __m512i w[2];
        ask_for_pair(r->at, pair, &l, M);
        unpack_pair(r->at, pair, l.values, book, w);
        if (!arranged) restore_pair(w);
        four_of_16(x, w[0], scale, shift, lanes, M, sum);
        four_of_16(x + in->m * BLOCK, w[1], scale, shift, _mm512_add_epi32(lanes, second), M, sum);
    }
}

AVX512 INLINE void grouped16(const Job *job, int64_t row, const int format, int64_t m0, const int M, __m512 sum[FEW_ROWS]) {
    const Layout l = layout_of(format);
    const int64_t pairs = job->input->blocks / 2;
    const __m512i book = book_of(&l);
    const OneRow r = one_row(job, row, &l);
    int64_t pair = 0;
    for (; pair + STRIP_PAIRS <= pairs && job->input->m <= MOST_FEW; pair += STRIP_PAIRS)
        strip_of_16(job->input, l, book, pair, &r, m0, M, sum);
    for (; pair + 2 <= pairs; pair += 2) pairs_of_16(job->input, l, book, pair, 2, &r, m0, M, sum);
    if (pair < pairs) pairs_of_16(job->input, l, book, pair, 1, &r, m0, M, sum);
}

SIXTEEN(int4_few, grouped32, INT4, as_it_is)
FEW(int4_few)
SIXTEEN(int6_few, grouped32, INT6, as_it_is)
FEW(int6_few)
SIXTEEN(int4g32_few, grouped32, INT4_G32, as_it_is)
FEW(int4g32_few)
SIXTEEN(int4g32m_few, grouped32, INT4_G32M, as_it_is)
FEW(int4g32m_few)
SIXTEEN(int8g32_few, grouped32, INT8_G32, as_it_is)
FEW(int8g32_few)
SIXTEEN(int6k16_few, grouped16, INT6_K16, as_it_is)
FEW(int6k16_few)
SIXTEEN(grouped32_few, grouped32, job->format, as_it_is)
FEW(grouped32_few)
SIXTEEN(grouped16_few, grouped16, job->format, as_it_is)
FEW(grouped16_few)

static void grouped_few(const Job *job, int64_t begin, int64_t end) {
    if (layout_of(job->format).group == 16) grouped16_few(job, begin, end);
    else grouped32_few(job, begin, end);
}

#include "few_kernel.h"

/* ---- int8 ---- */

/* Load a block of weights, offset to unsigned bytes for the multiplier. */
AVX512 INLINE __m512i int8_block(const uint8_t *row, int64_t block, const int M) {
    ask_ahead_for_bytes(row + block * BLOCK, M);
    return _mm512_xor_si512(_mm512_loadu_si512(row + block * BLOCK), _mm512_set1_epi8((char)0x80));
}

/* A row of weights may end one block before the input, which is zero there. */
AVX512 INLINE void int8_strip(const Job *job, const uint8_t *at, int64_t b, int64_t m0, const int M, __m512 sum[FEW_ROWS]) {
    const Input *in = job->input;
    const int whole = (b + STRIP_BLOCKS) * BLOCK <= job->row_bytes;
    __m512i w[STRIP_BLOCKS], all[FEW_ROWS];
    UNROLL for (int i = 0; i < STRIP_BLOCKS - 1; i++) w[i] = int8_block(at, b + i, M);
    w[STRIP_BLOCKS - 1] = whole ? int8_block(at, b + STRIP_BLOCKS - 1, M) : _mm512_setzero_si512();
    UNROLL for (int i = 0; i < STRIP_BLOCKS; i += 2) arrange_pair(w + i);
    if (M > 1) turn_strip(w);
    strip_sums(w, SIGNED_BYTES, in->q + (b * in->m + m0) * BLOCK, in->m * BLOCK, M, all);
    UNROLL for (int m = 0; m < M; m++) {
        const __m512 scale = _mm512_loadu_ps(in->by_row + ((m0 + m) * in->blocks + b) * 2);
        sum[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(all[m]), scale, sum[m]);
    }
}

AVX512 INLINE void int8_pair(const Job *job, const uint8_t *at, int64_t b, int64_t m0, const int M, __m512 sum[FEW_ROWS]) {
    const Input *in = job->input;
    __m512 scale[FEW_ROWS];
    __m512i w[2] = {int8_block(at, b, M), _mm512_setzero_si512()};
    if ((b + 1) * BLOCK < job->row_bytes) w[1] = int8_block(at, b + 1, M);
    UNROLL for (int m = 0; m < M; m++)
        scale[m] = _mm512_castps128_ps512(_mm_loadu_ps(in->by_row + ((m0 + m) * in->blocks + b) * 2));
    arrange_pair(w);
    pair_of_32(in, b / 2, m0, w, scale, four_by_four(), M, sum);
}

AVX512 INLINE void int8_row(const Job *job, int64_t row, const int unused, int64_t m0, const int M, __m512 sum[FEW_ROWS]) {
    const uint8_t *at = job->weights + row * job->stride;
    const int64_t blocks = job->input->blocks;
    int64_t b = 0;
    (void)unused;
    for (; b + STRIP_BLOCKS <= blocks; b += STRIP_BLOCKS) int8_strip(job, at, b, m0, M, sum);
    for (; b < blocks; b += 2) int8_pair(job, at, b, m0, M, sum);
}

/* Subtract the contribution of the offset and multiply with the rows' scales. */
AVX512 INLINE __m512 int8_scaled(const Job *job, int64_t row, int64_t end, int64_t m, __m512 sums) {
    const __mmask16 valid = end - row >= 16 ? 0xffff : (__mmask16)((1u << (end - row)) - 1);
    __m512 scales = _mm512_maskz_loadu_ps(valid, (const float *)job->scales + row);
    return _mm512_mul_ps(_mm512_sub_ps(sums, _mm512_set1_ps(128 * job->input->totals[m])), scales);
}
SIXTEEN(int8_few, int8_row, INT8, int8_scaled)
FEW(int8_few)

/* ---- floats ---- */

/* From SHARED_FROM input rows on, two weight rows share each input load, for STRIP_OF_FLOATS columns at a time, because
 * the input no longer fits in L1. */
enum { SHARED_FROM = 4, STRIP_OF_FLOATS = 512 };

/* Multiply sixteen columns of R weight rows with M input rows. */
AVX512 INLINE void float_step(const Input *in, const uint8_t *const row[2], int64_t m0, int64_t b, __mmask16 valid,
                              const int format, const int R, const int M, __m512 sum[2][FEW_ROWS]) {
    const float *x = in->floats + (b * in->m + m0) * 16;
    __m512 w[2];
    UNROLL for (int r = 0; r < R; r++) w[r] = widen((const uint16_t *)(row[r] + b * 32), valid, (enum Format)format);
    UNROLL for (int m = 0; m < M; m++) {
        __m512 own = _mm512_loadu_ps(x + m * 16);
        UNROLL for (int r = 0; r < R; r++) sum[r][m] = _mm512_fmadd_ps(w[r], own, sum[r][m]);
    }
}

/* Multiply columns [from, to) of R weight rows. `ahead`: the address to prefetch, as many bytes as are used. */
AVX512 INLINE void float_strip(const Input *in, const uint8_t *const row[2], int64_t from, int64_t to, int64_t m0,
                               const int format, const int R, const int M, const uint8_t *ahead, __m512 sum[2][FEW_ROWS]) {
    int64_t b = from / 16;
    for (; (b + 2) * 16 <= to; b += 2, ahead += R * 64) {
        UNROLL for (int r = 0; r < R; r++) _mm_prefetch((const char *)ahead + r * 64, _MM_HINT_T1);
        float_step(in, row, m0, b, 0xffff, format, R, M, sum);
        float_step(in, row, m0, b + 1, 0xffff, format, R, M, sum);
    }
    for (; b * 16 < to; b++) {
        int64_t left = to - b * 16;
        float_step(in, row, m0, b, left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1), format, R, M, sum);
    }
}

/* Multiply weight rows [row, row + 16), at most up to `end`, with input rows [m0, m0 + M). */
AVX512 INLINE void float_sixteen(const Job *job, int64_t row, int64_t end, int64_t m0, const int M, const int format) {
    const Input *in = job->input;
    const int R = M < SHARED_FROM ? 1 : 2;
    const int64_t strip = R == 1 ? in->columns : STRIP_OF_FLOATS, count = end - row < 16 ? end - row : 16;
    const uint8_t *at = job->weights + row * job->stride, *ahead = R == 1 ? at + AHEAD : at + 16 * job->stride;
    __m512 sums[FEW_ROWS][16];
    for (int m = 0; m < M; m++) for (int i = 0; i < 16; i++) sums[m][i] = _mm512_setzero_ps();
    for (int64_t from = 0; from < in->columns; from += strip) {
        const int64_t to = from + strip < in->columns ? from + strip : in->columns;
        for (int64_t i = 0; i < count; i += R, ahead += R * (to - from) * 2) {
            const uint8_t *rows[2] = {at + i * job->stride, at + (i + 1 < count ? i + 1 : i) * job->stride};
            __m512 sum[2][FEW_ROWS];
            UNROLL for (int r = 0; r < R; r++) UNROLL for (int m = 0; m < M; m++) sum[r][m] = sums[m][i + r];
            float_strip(in, rows, from, to, m0, format, R, M, ahead, sum);
            UNROLL for (int r = 0; r < R; r++) UNROLL for (int m = 0; m < M; m++) sums[m][i + r] = sum[r][m];
        }
    }
    for (int m = 0; m < M; m++) put_sixteen(job, m0 + m, row, end, add_across(sums[m]));
}

AVX512 INLINE void bf16_few_sixteen(const Job *job, int64_t row, int64_t end, int64_t m0, const int M) {
    float_sixteen(job, row, end, m0, M, BF16);
}

AVX512 INLINE void f16_few_sixteen(const Job *job, int64_t row, int64_t end, int64_t m0, const int M) {
    float_sixteen(job, row, end, m0, M, F16);
}
FEW(bf16_few)
FEW(f16_few)
