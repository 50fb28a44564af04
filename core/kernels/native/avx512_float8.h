/* float8 weights on AVX-512, widened to floats as they are read. Included in avx512.c. */

/* Widen sixteen weights to floats, too small by the factor FLOAT8_UNIT. */
AVX512 INLINE __m512 widen_float8(const uint8_t *at) {
    __m256i words = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)at));
    return _mm512_cvtph_ps(_mm256_and_si256(_mm256_slli_epi16(words, 7), _mm256_set1_epi16((short)0xbf80)));
}

AVX512 INLINE void float8_row(const Job *job, int64_t row, const int unused, int64_t m0, const int M, __m512 sum[FEW_ROWS]) {
    const Input *in = job->input;
    (void)unused;
    for (int64_t g = 0; g < in->blocks / 2; g++) {
        const __m512 scale = _mm512_set1_ps(float8_scale(job, row, g));
        UNROLL for (int i = 0; i < FLOAT8_GROUP / 16; i++) {
            const float *x = in->floats + ((g * FLOAT8_GROUP / 16 + i) * in->m + m0) * 16;
            const uint8_t *at = job->weights + row * job->stride + g * FLOAT8_GROUP + i * 16;
            if (i % 4 == 0) ask_ahead_for_bytes(at, M);
            __m512 w = _mm512_mul_ps(widen_float8(at), scale);
            UNROLL for (int m = 0; m < M; m++) sum[m] = _mm512_fmadd_ps(w, _mm512_loadu_ps(x + m * 16), sum[m]);
        }
    }
}
SIXTEEN(float8_few, float8_row, FLOAT8, as_it_is)
FEW(float8_few)
