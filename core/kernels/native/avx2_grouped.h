/* Grouped weights on AVX2, one loop for all layouts. Included in avx2_kernels.h. The offset that makes values unsigned
 * is corrected together with the minimums, as one product per group. */

enum { ROWS_IN_CACHE = 16 };

/* Unpack the four groups of 32 columns of pair p of a row as operands for the multiplier. */
ISA INLINE void unpack_pair(const uint8_t *row, int64_t p, const Layout *l, __m256i w[4]) {
    const __m256i nibble = _mm256_set1_epi8(15), flip = _mm256_set1_epi8((char)0x80);
    if (l->values == SIGNED_BYTES) {
        UNROLL for (int q = 0; q < 4; q++) {
            w[q] = _mm256_loadu_si256((const __m256i *)(row + p * 128 + q * 32));
            if (SHIFTED) w[q] = _mm256_xor_si256(w[q], flip);
        }
        return;
    }
    const uint8_t *from = row + p * (l->values == SIXES ? 96 : 64);
    UNROLL for (int q = 0; q < 2; q++) {
        __m256i both = _mm256_loadu_si256((const __m256i *)(from + q * 32));
        w[q] = _mm256_and_si256(both, nibble);
        w[q + 2] = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
    }
    if (l->values == HALVES) return;
    if (l->values == SIXES) {
        const __m256i upper = _mm256_set1_epi8(0x30);
        __m256i four = _mm256_loadu_si256((const __m256i *)(from + 64));
        w[0] = _mm256_or_si256(w[0], _mm256_and_si256(_mm256_slli_epi16(four, 4), upper));
        w[1] = _mm256_or_si256(w[1], _mm256_and_si256(_mm256_slli_epi16(four, 2), upper));
        w[2] = _mm256_or_si256(w[2], _mm256_and_si256(four, upper));
        w[3] = _mm256_or_si256(w[3], _mm256_and_si256(_mm256_srli_epi16(four, 2), upper));
        return;
    }
    __m256i book = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)CODE_BOOKS[l->book]));
    if (!SHIFTED) book = _mm256_xor_si256(book, flip);
    UNROLL for (int q = 0; q < 4; q++) w[q] = _mm256_shuffle_epi8(book, w[q]);
}

/* Broadcast the scales of one group of 32 or two groups of 16 to the lanes of 32 columns. */
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

/* Add 32 columns of one row; their scale is the first lane of `by`. */
ISA INLINE __m256 add_group(__m256i values, const int8_t *x, __m128 by, __m256 sum, const int is_unsigned) {
    __m256i own = _mm256_loadu_si256((const __m256i *)x);
    __m256 dot = _mm256_cvtepi32_ps(is_unsigned ? DOT(values, own) : DOT_SIGNED(values, own));
    return _mm256_fmadd_ps(dot, _mm256_broadcastss_ps(by), sum);
}

/* Four scales from group g on; fine ones are multiplied with their shared factor. */
ISA INLINE __m128 four_scales(const RowScales *s, const Layout *l, int64_t g, __m128 factor) {
    int32_t bytes;
    if (l->scale == SCALE_F32) return _mm_loadu_ps((const float *)s->each + g);
    if (l->scale == SCALE_FINE) {
        memcpy(&bytes, s->each + g, 4);
        return _mm_mul_ps(_mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(bytes))), factor);
    }
    __m128i bits = _mm_loadl_epi64((const __m128i *)(s->each + g * 2));
    return l->scale == SCALE_F16 ? _mm_cvtph_ps(bits) : _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(bits), 16));
}

INLINE int takes_unsigned(const Layout *l) { return l->values == HALVES || l->values == SIXES; }

/* Multiply one row of weights with one row of input, for groups of 32 columns with a scale each. */
ISA INLINE void grouped32_one(const Job *job, int64_t row, const Layout l) {
    const Input *in = job->input;
    const uint8_t *at = job->weights + row * job->stride;
    const RowScales scales = row_scales(job, &l, row, 0), minimums = row_scales(job, &l, row, 1);
    const __m128 zero = _mm_set1_ps((float)shifted_by(&l));
    const int is_unsigned = takes_unsigned(&l);
    __m256 even = _mm256_setzero_ps(), odd = _mm256_setzero_ps();
    __m128 shift = _mm_setzero_ps(), factor = shift, low_factor = shift;
    for (int64_t pair = 0; pair < in->blocks / 2; pair++) {
        const int8_t *x = in->q + pair * 2 * BLOCK;
        __m256i w[4];
        if (l.scale == SCALE_FINE && pair % (COARSE / 128) == 0) {
            factor = coarse_factor(&scales, &l, pair * 4);
            if (l.minimum) low_factor = coarse_factor(&minimums, &l, pair * 4);
        }
        for (int64_t i = 0; i < pair_bytes(&l); i += 64)
            _mm_prefetch((const char *)at + pair * pair_bytes(&l) + i + AHEAD, _MM_HINT_T0);
        __m128 four = four_scales(&scales, &l, pair * 4, factor);
        __m128 by = _mm_mul_ps(four, _mm_loadu_ps(in->scales + pair * 4));
        __m128 low = l.minimum ? four_scales(&minimums, &l, pair * 4, low_factor) : _mm_setzero_ps();
        shift = _mm_fmadd_ps(_mm_fnmadd_ps(zero, four, low), _mm_loadu_ps(in->offsets + pair * 4), shift);
        unpack_pair(at, pair, &l, w);
        even = add_group(w[0], x, by, even, is_unsigned);
        odd = add_group(w[1], x + 32, _mm_shuffle_ps(by, by, 0x55), odd, is_unsigned);
        even = add_group(w[2], x + 64, _mm_shuffle_ps(by, by, 0xaa), even, is_unsigned);
        odd = add_group(w[3], x + 96, _mm_shuffle_ps(by, by, 0xff), odd, is_unsigned);
    }
    put(job, 0, row, add_lanes(_mm256_add_ps(_mm256_add_ps(even, odd), _mm256_zextps128_ps256(shift))));
}

/* All rows [row, end) of a layout that is a compile-time constant, so that the loop has no layout branches. */
#define ONE_WAY(name, layout)                                               \
    ISA static void name(const Job *job, int64_t row, int64_t end) {        \
        const Layout l = layout;                                            \
        for (; row < end; row++) grouped32_one(job, row, l);                \
    }
ONE_WAY(int4_one, layout_of(INT4))
ONE_WAY(int6_one, layout_of(INT6))
ONE_WAY(int4g32_one, layout_of(INT4_G32))
ONE_WAY(int4g32m_one, layout_of(INT4_G32M))
ONE_WAY(int8g32_one, layout_of(INT8_G32))
ONE_WAY(grouped32_rows_one, layout_of(job->format))

/* Select the kernel for one row of input; common formats have a specialised one. */
typedef void (*OneKernel)(const Job *job, int64_t begin, int64_t end);
static OneKernel one_kernel(int format) {
    switch (format) {
        case INT4: return int4_one;
        case INT6: return int6_one;
        case INT4_G32: return int4g32_one;
        case INT4_G32M: return int4g32m_one;
        case INT8_G32: return int8g32_one;
        default: return grouped32_rows_one;
    }
}

ISA INLINE void grouped_few(const Job *job, int64_t row, int64_t m0, const int M, const int group, const int halves) {
    const Input *in = job->input;
    const Layout l = layout_of(job->format);
    const uint8_t *at = job->weights + row * job->stride;
    const int64_t step = pair_bytes(&l);
    Strip strip;
    __m256 sum[2][FEW_ROWS]; /* two accumulators where registers suffice: a single dependency chain would be too slow */
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
    if (job->format == FLOAT8) float8_rows(job, begin, end, scratch);
    else if (job->input->m == 1 && l.group == 32 && l.spread == 1) one_kernel(job->format)(job, begin, end);
    else if (l.values == HALVES && l.group == 32 && job->input->m > FEW_ROWS) panels(job, begin, end, scratch, GROUPED);
    else if (l.values == SIXES && l.group == 32 && job->input->m > FEW_ROWS) six_panels(job, begin, end, scratch);
    else if (takes_unsigned(&l)) (l.group == 16 ? halves16_rows : halves32_rows)(job, begin, end);
    else (l.group == 16 ? bytes16_rows : bytes32_rows)(job, begin, end);
}
