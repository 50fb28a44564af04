/* float8 weights on AVX2: widened to floats as they are read for few rows of input, and once into a panel for more.
 * Included in avx2_kernels.h. */

/* Widen sixteen weights to floats, too small by the factor FLOAT8_UNIT. */
ISA INLINE void widen_float8(const uint8_t *at, __m256 w[2]) {
    __m256i words = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)at));
    __m256i bits = _mm256_and_si256(_mm256_slli_epi16(words, 7), _mm256_set1_epi16((short)0xbf80));
    w[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(bits));
    w[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(bits, 1));
}

ISA INLINE void float8_few(const Job *job, int64_t row, const int M) {
    const Input *in = job->input;
    const uint8_t *at = job->weights + row * job->stride;
    __m256 low[FEW_ROWS], high[FEW_ROWS];
    UNROLL for (int m = 0; m < M; m++) low[m] = high[m] = _mm256_setzero_ps();
    for (int64_t b = 0; b < job->row_bytes / 16; b++) {
        const float *x = in->floats + b * in->m * 16;
        __m256 scale = _mm256_set1_ps(float8_scale(job, row, b * 16 / FLOAT8_GROUP)), w[2];
        if (b % 4 == 0) _mm_prefetch((const char *)at + b * 16 + AHEAD, _MM_HINT_T1);
        widen_float8(at + b * 16, w);
        w[0] = _mm256_mul_ps(w[0], scale);
        w[1] = _mm256_mul_ps(w[1], scale);
        UNROLL for (int m = 0; m < M; m++) {
            low[m] = _mm256_fmadd_ps(w[0], _mm256_loadu_ps(x + m * 16), low[m]);
            high[m] = _mm256_fmadd_ps(w[1], _mm256_loadu_ps(x + m * 16 + 8), high[m]);
        }
    }
    UNROLL for (int m = 0; m < M; m++) put(job, m, row, add_lanes(_mm256_add_ps(low[m], high[m])));
}

/* Pack `steps` columns of 16 rows from column `start` on into a float panel; steps is a multiple of 16. */
ISA static void pack_float8(const Job *job, int64_t row, int64_t end, int64_t start, int64_t steps, uint8_t *panel) {
    for (int half = 0; half < PANEL_ROWS; half += 8)
        for (int64_t step = 0; step < steps; step += 16) {
            __m256i low[8], high[8];
            UNROLL for (int i = 0; i < 8; i++) {
                const int64_t own = row + half + i < end ? row + half + i : end - 1;
                const uint8_t *from = job->weights + own * job->stride + start + step;
                __m256 scale = _mm256_set1_ps(float8_scale(job, own, (start + step) / FLOAT8_GROUP)), w[2];
                if (step % 64 == 0) _mm_prefetch((const char *)from + STEPS, _MM_HINT_T1);
                widen_float8(from, w);
                low[i] = _mm256_castps_si256(_mm256_mul_ps(w[0], scale));
                high[i] = _mm256_castps_si256(_mm256_mul_ps(w[1], scale));
            }
            store_steps(low, panel + step * STEP_BYTES + half * 4);
            store_steps(high, panel + (step + 8) * STEP_BYTES + half * 4);
        }
}

/* Multiply 16 rows of weights with all rows of input. */
ISA static void multiply_float8(const Job *job, int64_t row, int64_t end, Scratch *s) {
    float by[PANEL_ROWS];
    for (int i = 0; i < PANEL_ROWS; i++) by[i] = 1.0f;
    for (int64_t m0 = 0; m0 < job->input->m; m0 += PANEL_SUMS) {
        int64_t left = job->input->m - m0, count = left < PANEL_SUMS ? left : PANEL_SUMS;
        memset(s->sums, 0, (size_t)count * sizeof s->sums[0]);
        for (int64_t start = 0; start < job->row_bytes; start += STEPS) {
            int64_t steps = job->row_bytes - start < STEPS ? job->row_bytes - start : STEPS;
            pack_float8(job, row, end, start, steps, s->panel);
            float_tiles(job->input, start, steps, s, m0, count);
        }
        put_sums(job, row, end, m0, count, s, by);
    }
}

ISA static void float8_rows(const Job *job, int64_t begin, int64_t end, uint8_t *scratch) {
    if (job->input->m > MOST_FEW) {
        for (int64_t row = begin; row < end; row += PANEL_ROWS) multiply_float8(job, row, end, (Scratch *)scratch);
        return;
    }
    IN_TURNS(float8_few(own, r, M))
}
