/* Grouped weights for AVX2, one loop for all of their layouts: included in avx2_kernels.h. Scales of any type are widened
 * to floats for a strip of columns at a time; what a row's values are shifted by is taken back with its minimums, as one
 * product of two numbers a group. */

enum { STRIP_GROUPS = SCALE_STRIP / 16, ROWS_IN_CACHE = 16 };

typedef struct {
    float scales[STRIP_GROUPS], shifts[STRIP_GROUPS]; /* shift: minimum - zero x scale */
} Strip;

/* Eight scales from group g on as floats, zeros past the end: where fine, they share one factor. */
ISA INLINE __m256 eight_scales(const RowScales *s, const Layout *l, int64_t g) {
    static const int SIZES[4] = {2, 2, 4, 1};
    uint8_t last[32] = {0};
    if (l->spread > 1) {
        const float *two = (const float *)s->each + g / l->spread;
        return _mm256_set_m128(_mm_set1_ps(s->groups - g / l->spread > 1 ? two[1] : 0), _mm_set1_ps(two[0]));
    }
    const uint8_t *from = s->each + g * SIZES[l->scale];
    if (s->groups - g < 8) from = memcpy(last, from, (size_t)((s->groups - g) * SIZES[l->scale]));
    if (l->scale == SCALE_F32) return _mm256_loadu_ps((const float *)from);
    if (l->scale != SCALE_FINE) return widen((const uint16_t *)from, l->scale == SCALE_F16 ? F16 : BF16);
    uint16_t factor;
    memcpy(&factor, s->coarse + g * l->group / COARSE * 2, 2);
    __m256 fine = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)));
    return _mm256_mul_ps(fine, _mm256_set1_ps(f16_to_float(factor)));
}

/* What the multiplier's values are shifted by. */
INLINE int shifted_by(const Layout *l) { return l->values == HALVES ? l->zero : SHIFTED ? 128 : 0; }

ISA INLINE void widen_strip(const Job *job, const Layout *l, int64_t row, int64_t g, Strip *strip) {
    RowScales scales = row_scales(job, l, row, 0), minimums = row_scales(job, l, row, 1);
    __m256 zero = _mm256_set1_ps((float)shifted_by(l));
    for (int64_t i = 0; i < SCALE_STRIP / l->group && g + i < scales.groups * l->spread; i += 8) {
        __m256 scale = eight_scales(&scales, l, g + i);
        __m256 low = l->minimum ? eight_scales(&minimums, l, g + i) : _mm256_setzero_ps();
        _mm256_storeu_ps(strip->scales + i, scale);
        _mm256_storeu_ps(strip->shifts + i, _mm256_fnmadd_ps(zero, scale, low));
    }
}

/* The four groups of 32 columns of pair p of a row, as the multiplier takes them. */
ISA INLINE void unpack_pair(const uint8_t *row, int64_t p, const Layout *l, __m256i w[4]) {
    const __m256i nibble = _mm256_set1_epi8(15), flip = _mm256_set1_epi8((char)0x80);
    if (l->values == SIGNED_BYTES) {
        UNROLL for (int q = 0; q < 4; q++) {
            w[q] = _mm256_loadu_si256((const __m256i *)(row + p * 128 + q * 32));
            if (SHIFTED) w[q] = _mm256_xor_si256(w[q], flip);
        }
        return;
    }
    UNROLL for (int q = 0; q < 2; q++) {
        __m256i both = _mm256_loadu_si256((const __m256i *)(row + p * 64 + q * 32));
        w[q] = _mm256_and_si256(both, nibble);
        w[q + 2] = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
    }
    if (l->values == HALVES) return;
    __m256i book = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)CODE_BOOKS[l->book]));
    if (!SHIFTED) book = _mm256_xor_si256(book, flip);
    UNROLL for (int q = 0; q < 4; q++) w[q] = _mm256_shuffle_epi8(book, w[q]);
}

/* The numbers of one or two groups in the lanes of 32 columns. */
ISA INLINE __m256 to_lanes(const float *numbers, const int group) {
    if (group == 32) return _mm256_broadcast_ss(numbers);
    return _mm256_set_m128(_mm_broadcast_ss(numbers + 1), _mm_broadcast_ss(numbers));
}

ISA INLINE void add_shifts(const Input *in, int64_t g, const Strip *strip, int64_t m, __m256 *sum) {
    const float *offsets = in->offsets + m * in->blocks * 2 + g;
    int64_t count = in->blocks * 2 - g < SCALE_STRIP / GROUP ? in->blocks * 2 - g : SCALE_STRIP / GROUP;
    __m128 all = _mm_setzero_ps();
    for (int64_t i = 0; i < count; i += 4)
        all = _mm_fmadd_ps(_mm_loadu_ps(strip->shifts + i), _mm_loadu_ps(offsets + i), all);
    *sum = _mm256_add_ps(*sum, _mm256_zextps128_ps256(all));
}

ISA INLINE void grouped_few(const Job *job, int64_t row, int64_t m0, const int M, const int group, const int halves) {
    const Input *in = job->input;
    const Layout l = layout_of(job->format);
    const uint8_t *at = job->weights + row * job->row_bytes;
    const int64_t step = l.values == SIGNED_BYTES ? 128 : 64;
    Strip strip;
    __m256 sum[2][FEW_ROWS]; /* where registers suffice: one chain of sums would be too slow */
    UNROLL for (int m = 0; m < M; m++) sum[0][m] = sum[1][m] = _mm256_setzero_ps();
    for (int64_t pair = 0; pair < in->blocks / 2; pair++) {
        __m256i w[4];
        if (pair % (SCALE_STRIP / 128) == 0) {
            int64_t g = pair * 128 / group;
            widen_strip(job, &l, row, g, &strip);
            if (group == 32)
                for (int m = 0; m < M; m++) add_shifts(in, g, &strip, m0 + m, sum[0] + m);
        }
        for (int64_t i = 0; i < step; i += 64) _mm_prefetch((const char *)at + pair * step + i + AHEAD, _MM_HINT_T0);
        unpack_pair(at, pair, &l, w);
        UNROLL for (int q = 0; q < 4; q++) {
            int64_t first = (pair % (SCALE_STRIP / 128) * 4 + q) * (GROUP / group), cell = (pair * 2 + q / 2) * in->m + m0;
            __m256 scale = to_lanes(strip.scales + first, group), shift = to_lanes(strip.shifts + first, group);
            UNROLL for (int m = 0; m < M; m++) {
                __m256i x = _mm256_loadu_si256((const __m256i *)(in->q + (cell + m) * BLOCK + q % 2 * GROUP));
                __m256 by = _mm256_broadcast_ss(in->scales + (cell + m) * 2 + q % 2);
                __m256 dot = _mm256_cvtepi32_ps(halves ? DOT(w[q], x) : DOT_SIGNED(w[q], x));
                if (group == 16) {
                    __m256 all = _mm256_cvtepi32_ps(DOT(_mm256_set1_epi8(1), x));
                    dot = _mm256_fmadd_ps(all, shift, _mm256_mul_ps(dot, scale));
                } else by = _mm256_mul_ps(by, scale);
                __m256 *to = &sum[M <= 4 ? q % 2 : 0][m];
                *to = _mm256_fmadd_ps(dot, by, *to);
            }
        }
    }
    UNROLL for (int m = 0; m < M; m++) put(job, m0 + m, row, add_lanes(_mm256_add_ps(sum[0][m], sum[1][m])));
}

#define GROUPED_CASE(M, group, halves) \
    case M: for (int64_t r = row; r < stop; r++) grouped_few(job, r, m0, M, group, halves); break;
#define GROUPED_ROWS(name, group, halves)                                                                            \
    ISA static void name(const Job *job, int64_t begin, int64_t end) {                                               \
        for (int64_t row = begin; row < end; row += ROWS_IN_CACHE) {                                                 \
            int64_t stop = row + ROWS_IN_CACHE < end ? row + ROWS_IN_CACHE : end;                                    \
            for (int64_t m0 = 0; m0 < job->input->m; m0 += FEW_ROWS) {                                               \
                int64_t left = job->input->m - m0;                                                                   \
                switch (left < FEW_ROWS ? left : FEW_ROWS) {                                                         \
                    GROUPED_CASE(1, group, halves) GROUPED_CASE(2, group, halves) GROUPED_CASE(3, group, halves)     \
                    GROUPED_CASE(4, group, halves) GROUPED_CASE(5, group, halves) GROUPED_CASE(6, group, halves)     \
                    GROUPED_CASE(7, group, halves) GROUPED_CASE(8, group, halves)                                    \
                }                                                                                                    \
            }                                                                                                        \
        }                                                                                                            \
    }
GROUPED_ROWS(halves32_rows, 32, 1)
GROUPED_ROWS(halves16_rows, 16, 1)
GROUPED_ROWS(bytes32_rows, 32, 0)
GROUPED_ROWS(bytes16_rows, 16, 0)

ISA static void grouped_rows(const Job *job, int64_t begin, int64_t end, uint8_t *scratch) {
    const Layout l = layout_of(job->format);
    (void)scratch;
    if (l.values == HALVES) (l.group == 16 ? halves16_rows : halves32_rows)(job, begin, end);
    else (l.group == 16 ? bytes16_rows : bytes32_rows)(job, begin, end);
}
