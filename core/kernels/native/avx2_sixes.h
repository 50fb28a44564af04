/* Many input rows with six-bit weights in groups of 32 on AVX2: panels as for halves, but 16 bits hold the sum of only
 * two pairs of products with values up to 63. Half of a panel's rows at a time, so that the sums stay in registers.
 * Included in avx2_kernels.h. Requires
 *   ADD_TWO(sum, u0, x0, u1, x1)   sum + eight sums of eight byte products, u at most 63 */

enum { SIXES_RUN = 96 }; /* bytes per 128 columns: 64 of lower bits, 32 of upper bits */

/* Unpack 128 columns of one row into groups of 32; each group's upper bits are two other bits of the same 32 bytes. */
ISA INLINE void unpack_sixes(const uint8_t *from, __m256i w[4]) {
    const __m256i four = _mm256_loadu_si256((const __m256i *)(from + 64));
    UNROLL for (int q = 0; q < 4; q++) w[q] = with_upper(group_of_halves(from + q * 16), four, q);
}

/* Pack `steps` steps of four columns from column `start` on; whole runs of 128 columns. */
ISA static void pack_sixes(const Job *job, int64_t row, int64_t end, int64_t start, int64_t steps, uint8_t *panel) {
    for (int half = 0; half < PANEL_ROWS; half += 8)
        for (int64_t step = 0; step < steps; step += 32) {
            __m256i r[4][8];
            UNROLL for (int i = 0; i < 8; i++) {
                const uint8_t *from = panel_row(job, row, end, half + i) + (start / 128 + step / 32) * SIXES_RUN;
                __m256i w[4];
                _mm_prefetch((const char *)from + STEPS * 3, _MM_HINT_T1);
                unpack_sixes(from, w);
                UNROLL for (int q = 0; q < 4; q++) r[q][i] = w[q];
            }
            UNROLL for (int q = 0; q < 4; q++) store_steps(r[q], panel + (step + q * GROUP_STEPS) * STEP_BYTES + half * 4);
        }
}

/* A tile: M input rows times one group of columns for eight panel rows; `panel` and `sum` point to theirs. */
#define SIXES_SUMS(r) __m256i a##r = _mm256_setzero_si256();
#define SIXES_STEP(r)                                                                                        \
    if (r < M) a##r = ADD_TWO(a##r, w0, four_bytes(x + r * BLOCK + i * 4), w1, four_bytes(x + r * BLOCK + i * 4 + 4));
#define SIXES_END(r)                                                                                         \
    if (r < M) {                                                                                             \
        int64_t own = (at + r) * 2 + group % 2;                                                              \
        __m256 all = _mm256_set1_ps((float)in->sums[own]);                                                   \
        __m256 value = _mm256_fmadd_ps(_mm256_cvtepi32_ps(a##r), scale, _mm256_mul_ps(all, shift));          \
        add_to(sum[r], value, _mm256_set1_ps(in->scales[own]));                                              \
    }
ISA INLINE void six_group(const Input *in, int64_t group, const uint8_t *panel, __m256 scale, __m256 shift, int64_t m0,
                          const int M, float (*sum)[PANEL_ROWS]) {
    int64_t at = group / 2 * in->m + m0;
    const int8_t *x = in->q + at * BLOCK + group % 2 * GROUP;
    ALL_ROWS(SIXES_SUMS)
    UNROLL for (int i = 0; i < GROUP_STEPS; i += 2) {
        __m256i w0 = _mm256_load_si256((const __m256i *)(panel + i * STEP_BYTES));
        __m256i w1 = _mm256_load_si256((const __m256i *)(panel + (i + 1) * STEP_BYTES));
        ALL_ROWS(SIXES_STEP)
    }
    ALL_ROWS(SIXES_END)
}

ISA INLINE void tile_sixes(const Input *in, int64_t start, int64_t steps, const Scratch *s, int64_t m0, const int M,
                           float (*sum)[PANEL_ROWS]) {
    for (int64_t g = 0; g < steps / GROUP_STEPS; g++)
        for (int half = 0; half < PANEL_ROWS; half += 8)
            six_group(in, start / GROUP + g, s->panel + g * GROUP_STEPS * STEP_BYTES + half * 4, _mm256_loadu_ps(s->scales[g] + half),
                      _mm256_loadu_ps(s->shifts[g] + half), m0, M, (float (*)[PANEL_ROWS])(sum[0] + half));
}
TILES(sixes_tiles, tile_sixes)

/* Multiply 16 rows of weights with all rows of input. */
ISA static void multiply_sixes(const Job *job, int64_t row, int64_t end, Scratch *s) {
    float by[PANEL_ROWS];
    int64_t columns = job->row_bytes / SIXES_RUN * 128;
    for (int i = 0; i < PANEL_ROWS; i++) by[i] = 1.0f;
    for (int64_t m0 = 0; m0 < job->input->m; m0 += PANEL_SUMS) {
        int64_t left = job->input->m - m0, count = left < PANEL_SUMS ? left : PANEL_SUMS;
        memset(s->sums, 0, (size_t)count * sizeof s->sums[0]);
        for (int64_t start = 0; start < columns; start += STEPS * 4) {
            int64_t steps = columns - start < STEPS * 4 ? (columns - start) / 4 : STEPS;
            pack_sixes(job, row, end, start, steps, s->panel);
            pack_scales(job, row, end, start / GROUP, steps / GROUP_STEPS, s);
            sixes_tiles(job->input, start, steps, s, m0, count);
        }
        put_sums(job, row, end, m0, count, s, by);
    }
}

ISA static void six_panels(const Job *job, int64_t begin, int64_t end, uint8_t *scratch) {
    for (int64_t row = begin; row < end; row += PANEL_ROWS) multiply_sixes(job, row, end, (Scratch *)scratch);
}
