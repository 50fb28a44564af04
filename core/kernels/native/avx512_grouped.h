/* Grouped weights on AVX-512, one loop for all of their layouts: included in avx512.c. Scales of any type are widened to
 * floats for a strip of columns at a time; what a row's values are shifted by is taken back with its minimums, as one
 * product of two numbers a group. */

enum { STRIP_GROUPS = SCALE_STRIP / 16 };

typedef struct {
    float scales[STRIP_GROUPS], shifts[STRIP_GROUPS]; /* shift: minimum - zero x scale */
} Strip;

/* The first 8 lanes take the first of two numbers, the others the second. */
AVX512 INLINE __m512i two_by_eight(void) { return _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi32(1), 1); }

/* Sixteen fine scales from group g on, of which `valid` are there: 8 bits each, times a factor for COARSE columns. */
AVX512 INLINE __m512 sixteen_fine(const RowScales *s, const int group, int64_t g, __mmask16 valid) {
    const int each = COARSE / 32; /* a copy of variable length would be made byte by byte */
    __mmask8 there = group == 32 && valid >> each ? 3 : 1;
    __m128i bits = _mm_maskz_loadu_epi16(there, s->coarse + (group == 32 ? g >> 3 : g >> 4) * 2);
    __m512 factors = _mm512_castps128_ps512(_mm_cvtph_ps(bits));
    __m512 fine = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(valid, s->each + g)));
    if (group == 16) return _mm512_mul_ps(fine, _mm512_broadcastss_ps(_mm512_castps512_ps128(factors)));
    return _mm512_mul_ps(fine, _mm512_permutexvar_ps(two_by_eight(), factors));
}

/* Which of the sixteen groups from g on are there. */
AVX512 INLINE __mmask16 sixteen_of(int64_t groups, int64_t g) {
    return groups - g >= 16 ? 0xffff : (__mmask16)((1u << (groups - g)) - 1);
}

/* Sixteen scales from group g on as floats, zeros past the end. */
AVX512 INLINE __m512 sixteen_scales(const RowScales *s, const Layout *l, int64_t g, __mmask16 valid) {
    if (l->spread > 1) {
        const __m512i each = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
        __mmask16 own = sixteen_of(s->groups, g >> 2) & 15;
        return _mm512_permutexvar_ps(each, _mm512_maskz_loadu_ps(own, (const float *)s->each + (g >> 2)));
    }
    if (l->scale == SCALE_F32) return _mm512_maskz_loadu_ps(valid, (const float *)s->each + g);
    if (l->scale != SCALE_FINE) return widen((const uint16_t *)s->each + g, valid, l->scale == SCALE_F16 ? F16 : BF16);
    return sixteen_fine(s, l->group, g, valid);
}

/* What a row's values are shifted by in sixteen groups, given their scales: minimum - zero x scale. */
AVX512 INLINE __m512 sixteen_shifts(const RowScales *minimums, const Layout *l, int64_t g, __mmask16 valid, __m512 scales) {
    __m512 low = l->minimum ? sixteen_scales(minimums, l, g, valid) : _mm512_setzero_ps();
    return l->zero ? _mm512_fnmadd_ps(_mm512_set1_ps((float)l->zero), scales, low) : low;
}

/* The scales of a row for the columns from group g on. */
AVX512 INLINE void widen_strip(const Job *job, const Layout *l, int64_t row, int64_t g, Strip *strip) {
    RowScales scales = row_scales(job, l, row, 0), minimums = row_scales(job, l, row, 1);
    for (int64_t i = 0; i < SCALE_STRIP / l->group && g + i < scales.groups * l->spread; i += 16) {
        __mmask16 valid = sixteen_of(scales.groups * l->spread, g + i);
        __m512 scale = sixteen_scales(&scales, l, g + i, valid);
        _mm512_storeu_ps(strip->scales + i, scale);
        _mm512_storeu_ps(strip->shifts + i, sixteen_shifts(&minimums, l, g + i, valid, scale));
    }
}

/* Both halves of the 128 columns of pair p of a row, as unsigned bytes. */
AVX512 INLINE void unpack_pair(const uint8_t *row, int64_t p, enum Values values, __m512i book, __m512i out[2]) {
    const __m512i nibble = _mm512_set1_epi8(15), flip = _mm512_set1_epi8((char)0x80);
    if (values == SIGNED_BYTES) {
        out[0] = _mm512_xor_si512(_mm512_loadu_si512(row + p * 128), flip);
        out[1] = _mm512_xor_si512(_mm512_loadu_si512(row + p * 128 + 64), flip);
        return;
    }
    const uint8_t *from = row + p * (values == SIXES ? 96 : 64);
    __m512i both = _mm512_loadu_si512(from);
    out[0] = _mm512_and_si512(both, nibble);
    out[1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
    if (values == CODES) {
        out[0] = _mm512_shuffle_epi8(book, out[0]);
        out[1] = _mm512_shuffle_epi8(book, out[1]);
    } else if (values == SIXES) {
        const __m512i upper = _mm512_set1_epi8(0x30);
        __m256i four = _mm256_loadu_si256((const __m256i *)(from + 64));
        __m512i all = _mm512_inserti64x4(_mm512_castsi256_si512(four), _mm256_srli_epi16(four, 2), 1);
        out[0] = _mm512_or_si512(out[0], _mm512_and_si512(_mm512_slli_epi16(all, 4), upper));
        out[1] = _mm512_or_si512(out[1], _mm512_and_si512(all, upper));
    }
}

AVX512 INLINE __m512i book_of(const Layout *l) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)CODE_BOOKS[l->book]));
}

/* The numbers of a block's 4 groups of 16, each in the lanes that hold its columns' products. */
AVX512 INLINE __m512 to_lanes(const float *numbers) {
    const __m512i each = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    return _mm512_permutexvar_ps(each, _mm512_castps128_ps512(_mm_loadu_ps(numbers)));
}

AVX512 INLINE void add_shifts(const Input *in, int64_t g, __m512 shifts, int64_t m, __m512 *sum) {
    int64_t left = in->blocks * 2 - g;
    const float *from = in->offsets + m * in->blocks * 2 + g;
    __m512 offsets = left >= 16 ? _mm512_loadu_ps(from) : _mm512_maskz_loadu_ps((__mmask16)((1u << left) - 1), from);
    *sum = _mm512_fmadd_ps(shifts, offsets, *sum); /* past the end both are zero */
}

/* The rows of weights and of input that are multiplied at a time: R and M, with sums by half where registers suffice,
 * for one chain of sums would be too slow. */
#define FEW_SUMS                                                                    \
    __m512 sum[2][2][FEW_ROWS];                                                     \
    const int odd = R * M <= 4;                                                     \
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int m = 0; m < M; m++)           \
        sum[0][r][m] = sum[1][r][m] = _mm512_setzero_ps();
#define PUT_FEW_SUMS                                                                \
    if (odd)                                                                        \
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int m = 0; m < M; m++)       \
            sum[0][r][m] = _mm512_add_ps(sum[0][r][m], sum[1][r][m]);               \
    float total[2 * FEW_ROWS];                                                      \
    add_lanes(sum[0], R, M, total);                                                 \
    UNROLL for (int m = 0; m < M; m++) UNROLL for (int r = 0; r < R; r++) put(job, m0 + m, row + r, total[r * M + m]);

/* 128 columns of R rows times M rows of input; `place`: which of a strip's scales the lanes of the first half take. */
AVX512 INLINE void pair_of_32(const Input *in, int64_t pair, int64_t m0, __m512i w[2][2], const __m512 scale[2],
                              __m512i place, const int odd, const int R, const int M, __m512 sum[2][2][FEW_ROWS]) {
    UNROLL for (int h = 0; h < 2; h++) {
        int64_t cell = (pair * 2 + h) * in->m + m0;
        __m512 own[2];
        UNROLL for (int r = 0; r < R; r++) own[r] = _mm512_permutexvar_ps(place, scale[r]);
        place = _mm512_add_epi32(place, _mm512_set1_epi32(2));
        UNROLL for (int m = 0; m < M; m++) {
            __m512i x = _mm512_loadu_si512(in->q + (cell + m) * BLOCK);
            __m512 lanes = _mm512_loadu_ps(in->lanes + (cell + m) * 16);
            UNROLL for (int r = 0; r < R; r++) {
                __m512 dot = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), w[r][h], x));
                __m512 *to = &sum[odd ? h : 0][r][m];
                *to = _mm512_fmadd_ps(dot, _mm512_mul_ps(own[r], lanes), *to);
            }
        }
    }
}

/* Groups of 32: the scales of a strip of 512 columns are one register. */
AVX512 INLINE void grouped32(const Job *job, int64_t row, int64_t m0, const int R, const int M, const Layout l) {
    const Input *in = job->input;
    const __m512i book = book_of(&l);
    const int64_t step = pair_bytes(&l), pairs = in->blocks / 2;
    RowScales scales[2], minimums[2];
    FEW_SUMS
    UNROLL for (int r = 0; r < R; r++) {
        scales[r] = row_scales(job, &l, row + r, 0);
        minimums[r] = row_scales(job, &l, row + r, 1);
    }
    for (int64_t first = 0; first < pairs; first += SCALE_STRIP / 128) {
        __m512 scale[2];
        UNROLL for (int r = 0; r < R; r++) {
            _mm_prefetch((const char *)scales[r].each + first * 4 + AHEAD / 4, _MM_HINT_T0);
            __mmask16 valid = sixteen_of(in->blocks * 2, first * 4);
            scale[r] = sixteen_scales(scales + r, &l, first * 4, valid);
            __m512 shifts = sixteen_shifts(minimums + r, &l, first * 4, valid, scale[r]);
            UNROLL for (int m = 0; m < M; m++) add_shifts(in, first * 4, shifts, m0 + m, &sum[0][r][m]);
        }
        __m512i place = two_by_eight();
        for (int64_t pair = first; pair < first + SCALE_STRIP / 128 && pair < pairs; pair++) {
            __m512i w[2][2];
            UNROLL for (int r = 0; r < R; r++) {
                const uint8_t *at = job->weights + (row + r) * job->row_bytes;
                for (int64_t i = 0; i < step; i += 64) ask_ahead(at + pair * step + i, job->row_bytes, R);
                unpack_pair(at, pair, l.values, book, w[r]);
            }
            pair_of_32(in, pair, m0, w, scale, place, odd, R, M, sum);
            place = _mm512_add_epi32(place, _mm512_set1_epi32(4));
        }
    }
    PUT_FEW_SUMS
}

/* One block of R rows, in groups of 16, times M rows of input. */
AVX512 INLINE void block_of_16(const Input *in, int64_t b, int64_t m0, const Strip strip[2], __m512i w[2][2], int half,
                               const int R, const int M, __m512 sum[2][FEW_ROWS]) {
    const __m512i first = two_by_eight();
    int64_t at = b % (SCALE_STRIP / BLOCK) * (BLOCK / 16);
    __m512 scale[2], shift[2];
    UNROLL for (int r = 0; r < R; r++) {
        scale[r] = to_lanes(strip[r].scales + at);
        shift[r] = to_lanes(strip[r].shifts + at);
    }
    UNROLL for (int m = 0; m < M; m++) {
        int64_t cell = b * in->m + m0 + m;
        double two; /* the block's scales: kept in lanes only for few rows of input */
        memcpy(&two, in->scales + cell * 2, 8);
        __m512i x = _mm512_loadu_si512(in->q + cell * BLOCK);
        __m512 lanes = _mm512_permutexvar_ps(first, _mm512_castpd_ps(_mm512_set1_pd(two)));
        __m512 all = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), x));
        UNROLL for (int r = 0; r < R; r++) {
            __m512 dot = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), w[r][half], x));
            dot = _mm512_fmadd_ps(all, shift[r], _mm512_mul_ps(dot, scale[r]));
            sum[r][m] = _mm512_fmadd_ps(dot, lanes, sum[r][m]);
        }
    }
}

AVX512 INLINE void grouped16_few(const Job *job, int64_t row, int64_t m0, const int R, const int M, const float *unused) {
    const Input *in = job->input;
    const Layout l = layout_of(job->format);
    const int64_t step = pair_bytes(&l);
    const __m512i book = book_of(&l);
    Strip strip[2];
    FEW_SUMS
    (void)unused;
    for (int64_t pair = 0; pair < in->blocks / 2; pair++) {
        __m512i w[2][2];
        UNROLL for (int r = 0; r < R; r++) {
            const uint8_t *at = job->weights + (row + r) * job->row_bytes;
            if (pair % (SCALE_STRIP / 128) == 0) widen_strip(job, &l, row + r, pair * 8, strip + r);
            for (int64_t i = 0; i < step; i += 64) ask_ahead(at + pair * step + i, job->row_bytes, R);
            unpack_pair(at, pair, l.values, book, w[r]);
        }
        block_of_16(in, pair * 2, m0, strip, w, 0, R, M, sum[0]);
        block_of_16(in, pair * 2 + 1, m0, strip, w, 1, R, M, sum[odd]);
    }
    PUT_FEW_SUMS
}

/* Compiled for a known layout, a kernel tests nothing in its loop. */
#define GROUPED_FEW(name, layout)                                                                                   \
    AVX512 INLINE void name(const Job *job, int64_t row, int64_t m0, const int R, const int M, const float *unused) { \
        (void)unused;                                                                                               \
        grouped32(job, row, m0, R, M, layout);                                                                      \
    }
GROUPED_FEW(int4_few, layout_of(INT4))
GROUPED_FEW(int6_few, layout_of(INT6))
GROUPED_FEW(grouped32_few, layout_of(job->format))
FEW(int4_rows_few, int4_few)
FEW(int6_rows_few, int6_few)
FEW(grouped32_rows_few, grouped32_few)
FEW(grouped16_rows_few, grouped16_few)

/* ---- more rows of input ---- */

/* Scales and shifts of a panel: [groups][2][PANEL]. */
AVX512 static void pack_strips(const Job *job, const Layout *l, int64_t row, int64_t last, float *out) {
    Strip strip;
    int64_t groups = groups_of(job->input, l), some = SCALE_STRIP / l->group;
    for (int i = 0; i < PANEL; i++)
        for (int64_t g = 0; g < groups; g += some) {
            widen_strip(job, l, row + i < last ? row + i : last - 1, g, &strip);
            for (int64_t k = 0; k < some && g + k < groups; k++) {
                out[(g + k) * 2 * PANEL + i] = strip.scales[k];
                out[((g + k) * 2 + 1) * PANEL + i] = strip.shifts[k];
            }
        }
}

#define GROUPED_WAY(values) \
    case values: multiply_panel(job, row, end, panel, (Way){values, WITH_SHIFTS, 0, l.book}); break;
