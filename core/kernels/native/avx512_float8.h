/* Floats of eight bits on AVX-512: widened to floats while they are read. Included in avx512.c. */

/* Sixteen weights, FLOAT8_UNIT times too small. */
AVX512 INLINE __m512 widen_float8(const uint8_t *at) {
    __m256i words = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)at));
    return _mm512_cvtph_ps(_mm256_and_si256(_mm256_slli_epi16(words, 7), _mm256_set1_epi16((short)0xbf80)));
}

AVX512 INLINE void float8_group(const Job *job, int64_t row, int64_t m0, int64_t g, const int R, const int M,
                                __m512 even[2][FEW_ROWS], __m512 odd[2][FEW_ROWS]) {
    const Input *in = job->input;
    __m512 scale[2];
    UNROLL for (int r = 0; r < R; r++) scale[r] = _mm512_set1_ps(float8_scale(job, row + r, g));
    UNROLL for (int i = 0; i < FLOAT8_GROUP / 16; i++) {
        const float *x = in->floats + ((g * FLOAT8_GROUP / 16 + i) * in->m + m0) * 16;
        __m512 w[2];
        UNROLL for (int r = 0; r < R; r++) {
            const uint8_t *at = job->weights + (row + r) * job->row_bytes + g * FLOAT8_GROUP + i * 16;
            if (i % 4 == 0) ask_ahead_for_bytes(at, job->row_bytes, R);
            w[r] = _mm512_mul_ps(widen_float8(at), scale[r]);
        }
        UNROLL for (int m = 0; m < M; m++) {
            __m512 own = _mm512_loadu_ps(x + m * 16);
            UNROLL for (int r = 0; r < R; r++) {
                __m512 *to = R * M > 4 || i % 2 == 0 ? &even[r][m] : &odd[r][m];
                *to = _mm512_fmadd_ps(w[r], own, *to);
            }
        }
    }
}

AVX512 INLINE void float8_few(const Job *job, int64_t row, int64_t m0, const int R, const int M, const float *unused) {
    __m512 even[2][FEW_ROWS], odd[2][FEW_ROWS];
    (void)unused;
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int m = 0; m < M; m++) even[r][m] = odd[r][m] = _mm512_setzero_ps();
    for (int64_t g = 0; g < job->input->blocks / 2; g++) float8_group(job, row, m0, g, R, M, even, odd);
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int m = 0; m < M; m++)
        if (R * M <= 4) even[r][m] = _mm512_add_ps(even[r][m], odd[r][m]);
    float total[2 * FEW_ROWS];
    add_lanes(even, R, M, total);
    UNROLL for (int m = 0; m < M; m++) UNROLL for (int r = 0; r < R; r++) put(job, m0 + m, row + r, total[r * M + m]);
}
FEW(float8_rows_few, float8_few)
