/* Grouped weights on AVX-512, one loop for all of their layouts: included in avx512.c. Scales of any type are widened to
 * floats for a strip of columns at a time; what a row's values are shifted by is taken back with its minimums, as one
 * product of two numbers a group. */

enum { STRIP_GROUPS = SCALE_STRIP / 16 };

typedef struct {
    float scales[STRIP_GROUPS], shifts[STRIP_GROUPS]; /* shift: minimum - zero x scale */
} Strip;

/* Sixteen scales from group g on as floats, zeros past the end. */
AVX512 INLINE __m512 sixteen_scales(const RowScales *s, const Layout *l, int64_t g) {
    int64_t left = s->groups - g / l->spread;
    __mmask16 valid = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
    if (l->spread > 1) {
        const __m512i each = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
        return _mm512_permutexvar_ps(each, _mm512_maskz_loadu_ps(valid & 15, (const float *)s->each + g / l->spread));
    }
    if (l->scale == SCALE_F32) return _mm512_maskz_loadu_ps(valid, (const float *)s->each + g);
    if (l->scale != SCALE_FINE) return widen((const uint16_t *)s->each + g, valid, l->scale == SCALE_F16 ? F16 : BF16);
    __m512 fine = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(valid, s->each + g)));
    int64_t first = g * l->group / COARSE, last = (s->groups * l->group - 1) / COARSE;
    uint16_t two[2];
    memcpy(two, s->coarse + first * 2, 2);
    memcpy(two + 1, s->coarse + (l->group == 32 && first < last ? first + 1 : first) * 2, 2);
    __m512 low = _mm512_set1_ps(f16_to_float(two[0])), high = _mm512_set1_ps(f16_to_float(two[1]));
    return _mm512_mul_ps(fine, _mm512_mask_blend_ps(0xff00, low, high));
}

/* The scales of a row for the columns from group g on. */
AVX512 INLINE void widen_strip(const Job *job, const Layout *l, int64_t row, int64_t g, Strip *strip) {
    RowScales scales = row_scales(job, l, row, 0), minimums = row_scales(job, l, row, 1);
    for (int64_t i = 0; i < SCALE_STRIP / l->group && g + i < scales.groups * l->spread; i += 16) {
        __m512 scale = sixteen_scales(&scales, l, g + i);
        __m512 low = l->minimum ? sixteen_scales(&minimums, l, g + i) : _mm512_setzero_ps();
        _mm512_storeu_ps(strip->scales + i, scale);
        _mm512_storeu_ps(strip->shifts + i, _mm512_fnmadd_ps(_mm512_set1_ps((float)l->zero), scale, low));
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
    __m512i both = _mm512_loadu_si512(row + p * 64);
    out[0] = _mm512_and_si512(both, nibble);
    out[1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
    if (values == HALVES) return;
    out[0] = _mm512_shuffle_epi8(book, out[0]);
    out[1] = _mm512_shuffle_epi8(book, out[1]);
}

AVX512 INLINE __m512i book_of(const Layout *l) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)CODE_BOOKS[l->book]));
}

/* The numbers of a block's 2 or 4 groups, each in the lanes that hold its columns' products. */
AVX512 INLINE __m512 to_lanes(const float *numbers, const int group) {
    if (group == 32)
        return _mm512_mask_broadcastss_ps(_mm512_set1_ps(numbers[0]), 0xff00, _mm_load_ss(numbers + 1));
    const __m512i each = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    return _mm512_permutexvar_ps(each, _mm512_castps128_ps512(_mm_loadu_ps(numbers)));
}

AVX512 INLINE void add_shifts(const Input *in, int64_t g, const Strip *strip, int64_t m, __m512 *sum) {
    int64_t left = in->blocks * 2 - g;
    __mmask16 valid = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
    __m512 offsets = _mm512_maskz_loadu_ps(valid, in->offsets + m * in->blocks * 2 + g);
    *sum = _mm512_mask3_fmadd_ps(_mm512_loadu_ps(strip->shifts), offsets, *sum, valid);
}

/* One block of R rows times M rows of input. */
AVX512 INLINE void grouped_block(const Input *in, int64_t b, int64_t m0, const Strip strip[2], __m512i w[2][2], int half,
                                 const int group, const int R, const int M, __m512 sum[2][FEW_ROWS]) {
    int64_t at = b % (SCALE_STRIP / BLOCK) * (BLOCK / group);
    __m512 scale[2], shift[2];
    UNROLL for (int r = 0; r < R; r++) {
        scale[r] = to_lanes(strip[r].scales + at, group);
        if (group == 16) shift[r] = to_lanes(strip[r].shifts + at, group);
    }
    UNROLL for (int m = 0; m < M; m++) {
        __m512i x = _mm512_loadu_si512(in->q + (b * in->m + m0 + m) * BLOCK), all;
        /* kept in lanes only for few rows of input; groups of 16 serve any number of them */
        int64_t cell = b * in->m + m0 + m;
        __m512 lanes = group == 16 ? to_lanes(in->scales + cell * 2, 32) : _mm512_loadu_ps(in->lanes + cell * 16);
        if (group == 16) all = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), x);
        UNROLL for (int r = 0; r < R; r++) {
            __m512 dot = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), w[r][half], x));
            if (group == 16) dot = _mm512_fmadd_ps(_mm512_cvtepi32_ps(all), shift[r], _mm512_mul_ps(dot, scale[r]));
            sum[r][m] = _mm512_fmadd_ps(dot, group == 16 ? lanes : _mm512_mul_ps(scale[r], lanes), sum[r][m]);
        }
    }
}

AVX512 INLINE void grouped_few(const Job *job, int64_t row, int64_t m0, const int R, const int M, const int group) {
    const Input *in = job->input;
    const Layout l = layout_of(job->format);
    const int64_t step = l.values == SIGNED_BYTES ? 128 : 64;
    const __m512i book = book_of(&l);
    Strip strip[2];
    __m512 sum[2][2][FEW_ROWS];
    const int odd = R * M <= 4;
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int m = 0; m < M; m++)
        sum[0][r][m] = sum[1][r][m] = _mm512_setzero_ps();
    for (int64_t pair = 0; pair < in->blocks / 2; pair++) {
        __m512i w[2][2];
        UNROLL for (int r = 0; r < R; r++) {
            const uint8_t *at = job->weights + (row + r) * job->row_bytes;
            if (pair % (SCALE_STRIP / 128) == 0) {
                int64_t g = pair * 128 / group;
                widen_strip(job, &l, row + r, g, strip + r);
                if (group == 32)
                    UNROLL for (int m = 0; m < M; m++) add_shifts(in, g, strip + r, m0 + m, &sum[0][r][m]);
            }
            ask_ahead(at + pair * step, job->row_bytes, R);
            if (step == 128) ask_ahead(at + pair * step + 64, job->row_bytes, R);
            unpack_pair(at, pair, l.values, book, w[r]);
        }
        grouped_block(in, pair * 2, m0, strip, w, 0, group, R, M, sum[0]);
        grouped_block(in, pair * 2 + 1, m0, strip, w, 1, group, R, M, sum[odd]);
    }
    if (odd)
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int m = 0; m < M; m++)
            sum[0][r][m] = _mm512_add_ps(sum[0][r][m], sum[1][r][m]);
    float total[2 * FEW_ROWS];
    add_lanes(sum[0], R, M, total);
    UNROLL for (int m = 0; m < M; m++) UNROLL for (int r = 0; r < R; r++) put(job, m0 + m, row + r, total[r * M + m]);
}

AVX512 INLINE void grouped32_few(const Job *job, int64_t row, int64_t m0, const int R, const int M, const float *unused) {
    (void)unused;
    grouped_few(job, row, m0, R, M, 32);
}

AVX512 INLINE void grouped16_few(const Job *job, int64_t row, int64_t m0, const int R, const int M, const float *unused) {
    (void)unused;
    grouped_few(job, row, m0, R, M, 16);
}

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
AVX512 static void grouped_rows(const Job *job, int64_t begin, int64_t end, uint8_t *panel) {
    const Layout l = layout_of(job->format);
    if (is_few(job, panel) || l.group == 16) {
        (l.group == 16 ? grouped16_rows_few : grouped32_rows_few)(job, begin, end);
        return;
    }
    for (int64_t row = begin; row < end; row += PANEL) {
        pack_strips(job, &l, row, end, scales_at(panel));
        switch (l.values) { GROUPED_WAY(SIGNED_BYTES) GROUPED_WAY(HALVES) GROUPED_WAY(CODES) }
    }
}
