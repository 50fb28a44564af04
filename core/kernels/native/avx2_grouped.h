/* Grouped weights on AVX2 with more than MOST_FEW input rows, one loop for all layouts without panels. Included in
 * avx2_kernels.h. */

/* Unpack the four groups of 32 columns of pair p of a row as operands for the multiplier. */
ISA INLINE void unpack_pair(const uint8_t *row, int64_t p, const Layout *l, __m256i w[4]) {
    const uint8_t *from = row + p * pair_bytes(l);
    if (l->values == SIXES) {
        unpack_sixes(from, w);
        return;
    }
    UNROLL for (int q = 0; q < 4; q++)
        w[q] = operand(l->values == SIGNED_BYTES ? _mm256_loadu_si256((const __m256i *)from + q) : group_of_halves(from + q * 16), l);
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

INLINE int takes_unsigned(const Layout *l) { return l->values == HALVES || l->values == SIXES; }

ISA INLINE void grouped_many(const Job *job, int64_t row, int64_t m0, const int M, const int group, const int halves) {
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
    case M: for (int64_t r = row; r < stop; r++) grouped_many(job, r, m0, M, group, halves); break;
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
    else if (job->input->m <= MOST_FEW) few_kernel(job->format)(job, begin, end);
    else if (l.values == HALVES && l.group == 32) panels(job, begin, end, scratch, GROUPED);
    else if (l.values == SIXES && l.group == 32) six_panels(job, begin, end, scratch);
    else if (takes_unsigned(&l)) (l.group == 16 ? halves16_rows : halves32_rows)(job, begin, end);
    else (l.group == 16 ? bytes16_rows : bytes32_rows)(job, begin, end);
}
