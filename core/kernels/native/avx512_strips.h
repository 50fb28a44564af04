/* Products of a strip of 512 columns: eight blocks of 64 columns or sixteen groups of 32, whose sums are the lanes of
 * one register. With several input rows, a row's values are transposed so that register i holds the i-th four columns
 * of every group: all products of a group accumulate in its lane, and its scale is applied once. With one input row,
 * transposing would take longer than the products; their sums are reduced across lanes instead. Both give the same
 * integer sums. Included in avx512.c. */

enum { STRIP_BLOCKS = 8, STRIP_PAIRS = 4, STRIP_LANES = 16 };

/* The group of the strip that each lane belongs to. */
AVX512 INLINE __m512i groups_by_lane(void) { return _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15); }

/* Transpose the dwords of four registers within each 128 bits: out[i] holds the i-th dword of each. */
AVX512 INLINE void turn_four(__m512i a, __m512i b, __m512i c, __m512i d, __m512i out[4]) {
    __m512i low = _mm512_unpacklo_epi32(a, b), high = _mm512_unpackhi_epi32(a, b);
    __m512i next_low = _mm512_unpacklo_epi32(c, d), next_high = _mm512_unpackhi_epi32(c, d);
    out[0] = _mm512_unpacklo_epi64(low, next_low);
    out[1] = _mm512_unpackhi_epi64(low, next_low);
    out[2] = _mm512_unpacklo_epi64(high, next_high);
    out[3] = _mm512_unpackhi_epi64(high, next_high);
}

/* Transpose a strip of arranged pairs: registers i and 4 + i then hold the i-th four columns of all first and all second
 * halves. */
AVX512 INLINE void turn_strip(__m512i w[STRIP_BLOCKS]) {
    __m512i first[4], second[4];
    turn_four(w[0], w[2], w[4], w[6], first);
    turn_four(w[1], w[3], w[5], w[7], second);
    UNROLL for (int i = 0; i < 4; i++) {
        w[i] = first[i];
        w[4 + i] = second[i];
    }
}

/* Sum the dwords of each of four registers within each 128 bits. */
AVX512 INLINE __m512i add_four(__m512i a, __m512i b, __m512i c, __m512i d) {
    __m512i first = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    __m512i second = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(first, second), _mm512_unpackhi_epi64(first, second));
}

/* The same where no dword exceeds what eight products of values of 4 bits add up to (15 x 127 x 8): in words, pairs are
 * added by one instruction. */
AVX512 INLINE __m512i add_pairs(__m512i a, __m512i b) {
    return _mm512_madd_epi16(_mm512_packs_epi32(a, b), _mm512_set1_epi16(1));
}

AVX512 INLINE __m512i add_four_small(__m512i a, __m512i b, __m512i c, __m512i d) {
    return add_pairs(add_pairs(a, b), add_pairs(c, d));
}

/* ---- products ---- */

/* The products of the first (half 0) or second halves of a strip's groups with one input row at x, `step` bytes between
 * blocks, added to dot. */
AVX512 INLINE void half_products(const __m512i w[STRIP_BLOCKS], const int8_t *x, int64_t step, const int half, __m512i dot[STRIP_PAIRS]) {
    UNROLL for (int i = 0; i < STRIP_PAIRS; i++)
        dot[i] = _mm512_dpbusd_epi32(dot[i], w[i * 2 + half], _mm512_loadu_si512(x + (i * 2 + half) * step));
}

AVX512 INLINE void clear(__m512i dot[STRIP_PAIRS]) {
    UNROLL for (int i = 0; i < STRIP_PAIRS; i++) dot[i] = _mm512_setzero_si512();
}

/* Multiply a strip of arranged pairs (transposed if M > 1) with M input rows at x, `step` bytes between blocks. half[0]
 * holds the sums of the groups' first halves, half[1] those of their second halves. */
AVX512 INLINE void strip_dots(const __m512i w[STRIP_BLOCKS], const int8_t *x, int64_t step, const int M, __m512i half[2][FEW_ROWS]) {
    if (M == 1) {
        UNROLL for (int h = 0; h < 2; h++) {
            __m512i dot[STRIP_PAIRS];
            clear(dot);
            half_products(w, x, step, h, dot);
            half[h][0] = add_four(dot[0], dot[1], dot[2], dot[3]);
        }
        return;
    }
    UNROLL for (int m = 0; m < M; m++) half[0][m] = half[1][m] = _mm512_setzero_si512();
    UNROLL for (int i = 0; i < STRIP_BLOCKS; i++) UNROLL for (int m = 0; m < M; m++)
        half[i / 4][m] = _mm512_dpbusd_epi32(half[i / 4][m], w[i], _mm512_loadu_si512(x + i * step + m * BLOCK));
}

/* The same for whole groups of `values`. */
AVX512 INLINE void strip_sums(const __m512i w[STRIP_BLOCKS], const enum Values values, const int8_t *x, int64_t step,
                              const int M, __m512i all[FEW_ROWS]) {
    if (M == 1) {
        __m512i dot[STRIP_PAIRS];
        clear(dot);
        UNROLL for (int half = 0; half < 2; half++) half_products(w, x, step, half, dot);
        all[0] = values == HALVES ? add_four_small(dot[0], dot[1], dot[2], dot[3]) : add_four(dot[0], dot[1], dot[2], dot[3]);
        return;
    }
    UNROLL for (int m = 0; m < M; m++) all[m] = _mm512_setzero_si512();
    UNROLL for (int i = 0; i < STRIP_BLOCKS; i++) UNROLL for (int m = 0; m < M; m++)
        all[m] = _mm512_dpbusd_epi32(all[m], w[i], _mm512_loadu_si512(x + i * step + m * BLOCK));
}

/* ---- input ---- */

/* Write the sums of each 16 columns of a strip, times their scales, to to[32], in order. */
AVX512 INLINE void add_sixteens(const __m512i x[STRIP_BLOCKS], const float *scales, float *to) {
    const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    UNROLL for (int half = 0; half < 2; half++) {
        __m512i dot[4];
        UNROLL for (int i = 0; i < 4; i++)
            dot[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), x[half * 4 + i]);
        __m512i sums = _mm512_permutexvar_epi32(groups_by_lane(), add_four(dot[0], dot[1], dot[2], dot[3]));
        __m512 each = _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(_mm256_loadu_ps(scales + half * 8)));
        _mm512_storeu_ps(to + half * 16, _mm512_mul_ps(_mm512_cvtepi32_ps(sums), each));
    }
}

/* Reorder the strip of an input row that begins at block b. */
AVX512 INLINE void arrange_strip(const Input *in, int64_t row, int64_t b) {
    int8_t *at = (int8_t *)in->q + (b * in->m + row) * BLOCK;
    float *scales = (float *)in->by_row + (row * in->blocks + b) * 2;
    __m512i x[STRIP_BLOCKS];
    UNROLL for (int i = 0; i < STRIP_BLOCKS; i++) x[i] = _mm512_loadu_si512(at + i * in->m * BLOCK);
    add_sixteens(x, scales, (float *)in->sixteens + (row * in->blocks + b) * 4);
    _mm512_storeu_ps(scales, _mm512_permutexvar_ps(groups_by_lane(), _mm512_loadu_ps(scales)));
    UNROLL for (int i = 0; i < STRIP_BLOCKS; i += 2) arrange_pair(x + i);
    if (in->m > 1) turn_strip(x);
    UNROLL for (int i = 0; i < STRIP_BLOCKS; i++) _mm512_storeu_si512(at + i * in->m * BLOCK, x[i]);
}

/* Reorder an input row for the kernels that take few rows. */
AVX512 static void arrange(const Input *in, int64_t row) {
    int64_t b = 0;
    for (; b + STRIP_BLOCKS <= in->blocks; b += STRIP_BLOCKS) arrange_strip(in, row, b);
    for (; b < in->blocks; b += 2) {
        int8_t *at = (int8_t *)in->q + (b * in->m + row) * BLOCK, *next = at + in->m * BLOCK;
        __m512i x[2] = {_mm512_loadu_si512(at), _mm512_loadu_si512(next)};
        arrange_pair(x);
        _mm512_storeu_si512(at, x[0]);
        _mm512_storeu_si512(next, x[1]);
    }
}
