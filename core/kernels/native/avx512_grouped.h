/* Grouped weights on AVX-512, one loop for all layouts. Included in avx512.c. Scales of any type are widened to floats
 * for one strip of columns at a time. The offset that makes values unsigned is corrected together with the minimums, as
 * one product per group. */

/* Lane indices: 0 for the first eight lanes, 1 for the others. */
AVX512 INLINE __m512i two_by_eight(void) { return _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi32(1), 1); }

/* Sixteen fine scales (int8 times a factor per COARSE columns) from group g on; lanes outside `valid` are zero. */
AVX512 INLINE __m512 sixteen_fine(const RowScales *s, const int group, int64_t g, __mmask16 valid) {
    const int each = COARSE / 32; /* a memcpy of variable length would be compiled to a byte loop */
    __mmask8 there = group == 32 && valid >> each ? 3 : 1;
    __m128i bits = _mm_maskz_loadu_epi16(there, s->coarse + (group == 32 ? g >> 3 : g >> 4) * 2);
    __m512 factors = _mm512_castps128_ps512(_mm_cvtph_ps(bits));
    __m512 fine = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(valid, s->each + g)));
    if (group == 16) return _mm512_mul_ps(fine, _mm512_broadcastss_ps(_mm512_castps512_ps128(factors)));
    return _mm512_mul_ps(fine, _mm512_permutexvar_ps(two_by_eight(), factors));
}

/* The lane mask of the sixteen groups from g on. */
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

/* The shifts of sixteen groups, given their scales: minimum - zero * scale. */
AVX512 INLINE __m512 sixteen_shifts(const RowScales *minimums, const Layout *l, int64_t g, __mmask16 valid, __m512 scales) {
    __m512 low = l->minimum ? sixteen_scales(minimums, l, g, valid) : _mm512_setzero_ps();
    return l->zero ? _mm512_fnmadd_ps(_mm512_set1_ps((float)l->zero), scales, low) : low;
}

/* Reorder a pair of blocks: the first half of the columns of each of its four groups, then the second halves. */
AVX512 INLINE void arrange_pair(__m512i w[2]) {
    __m512i first = _mm512_shuffle_i32x4(w[0], w[1], 0x88);
    w[1] = _mm512_shuffle_i32x4(w[0], w[1], 0xdd);
    w[0] = first;
}

/* Undo arrange_pair. */
AVX512 INLINE void restore_pair(__m512i w[2]) {
    __m512i first = _mm512_shuffle_i32x4(w[0], w[1], 0x44), second = _mm512_shuffle_i32x4(w[0], w[1], 0xee);
    w[0] = _mm512_shuffle_i32x4(first, first, 0xd8);
    w[1] = _mm512_shuffle_i32x4(second, second, 0xd8);
}

/* Split bytes into low and high nibbles, looked up in the code book if there is one. */
AVX512 INLINE void unpack_halves(__m512i both, enum Values values, __m512i book, __m512i out[2]) {
    const __m512i nibble = _mm512_set1_epi8(15);
    out[0] = _mm512_and_si512(both, nibble);
    out[1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
    if (values != CODES) return;
    out[0] = _mm512_shuffle_epi8(book, out[0]);
    out[1] = _mm512_shuffle_epi8(book, out[1]);
}

/* Sixteen bytes with the upper bits of a column of each of four groups, moved to their place in the values: group q's
 * in 128-bit lane q. */
AVX512 INLINE __m512i upper_bits(const uint8_t *from) {
    const __m512i by_group = _mm512_setr_epi32(4, 4, 4, 4, 2, 2, 2, 2, 0, 0, 0, 0, 30, 30, 30, 30);
    __m512i four = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)from));
    return _mm512_and_si512(_mm512_rolv_epi32(four, by_group), _mm512_set1_epi8(0x30));
}

/* Unpack the 128 columns of pair p of a row as unsigned bytes, as arrange_pair orders them: the first halves of the
 * pair's four groups, then the second halves. */
AVX512 INLINE void unpack_pair(const uint8_t *row, int64_t p, enum Values values, __m512i book, __m512i out[2]) {
    const __m512i flip = _mm512_set1_epi8((char)0x80);
    if (values == SIGNED_BYTES) {
        out[0] = _mm512_xor_si512(_mm512_loadu_si512(row + p * 128), flip);
        out[1] = _mm512_xor_si512(_mm512_loadu_si512(row + p * 128 + 64), flip);
        arrange_pair(out);
        return;
    }
    const uint8_t *from = row + p * (values == SIXES ? 96 : 64);
    unpack_halves(_mm512_loadu_si512(from), values, book, out);
    if (values != SIXES) return;
    out[0] = _mm512_or_si512(out[0], upper_bits(from + 64));
    out[1] = _mm512_or_si512(out[1], upper_bits(from + 80));
}

AVX512 INLINE __m512i book_of(const Layout *l) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)CODE_BOOKS[l->book]));
}

#define GROUPED_WAY(values) \
    case values: multiply_panel(job, row, end, panel, (Way){values, BY_GROUP, l.zero, l.book}); break;
#define SHIFTED_WAY(values) \
    case values: multiply_panel(job, row, end, panel, (Way){values, WITH_SHIFTS, 0, l.book}); break;
