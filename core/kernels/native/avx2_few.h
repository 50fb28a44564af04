/* Few rows of input times weights of eight or fewer bits on AVX2, one strip of 256 columns at a time:
 * eight groups of 32, one per lane of a register. A row's values are transposed so that register i holds the i-th four
 * columns of every group; inputs are stored in that order. All products of a group thus accumulate in its lane, and its
 * scale is applied once. An input row gives the same bits whatever the other rows are. The last strip of a row may have
 * four groups, with zeros in the other lanes. The offset that makes values unsigned is corrected together with the
 * minimums, as one product per group. Included in avx2_kernels.h. Requires
 *   ADD_BYTES, ADD_TWO, WIDE   as in avx2_panels.h
 *   ADD_SIGNED(sum, w, x)      sum + eight sums of four products, w as for DOT_SIGNED */

enum { STRIP_BLOCKS = 4, STRIP_PAIRS = 2, STRIP_BYTES = STRIP_BLOCKS * BLOCK };

/* Load 16 bytes from each of two addresses. */
ISA INLINE __m256i two_of(const void *first, const void *second) {
    __m128i low = _mm_loadu_si128((const __m128i *)first), high = _mm_loadu_si128((const __m128i *)second);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

/* Transpose the dwords of four registers within each 128 bits. */
ISA INLINE void turn_four(__m256i w[4]) {
    __m256i a = _mm256_unpacklo_epi32(w[0], w[1]), b = _mm256_unpackhi_epi32(w[0], w[1]);
    __m256i c = _mm256_unpacklo_epi32(w[2], w[3]), d = _mm256_unpackhi_epi32(w[2], w[3]);
    w[0] = _mm256_unpacklo_epi64(a, c);
    w[1] = _mm256_unpackhi_epi64(a, c);
    w[2] = _mm256_unpacklo_epi64(b, d);
    w[3] = _mm256_unpackhi_epi64(b, d);
}

/* ---- weights ---- */

/* The low (half 0) or high nibbles. */
ISA INLINE __m256i nibbles(__m256i both, const int half) {
    return _mm256_and_si256(half ? _mm256_srli_epi16(both, 4) : both, _mm256_set1_epi8(15));
}

/* The lower bits of a group of 32 columns, from 16 bytes. */
ISA INLINE __m256i group_of_halves(const uint8_t *from) {
    __m128i both = _mm_loadu_si128((const __m128i *)from);
    return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(both, 4), both), _mm256_set1_epi8(15));
}

/* Add to the lower bits of group q of four those that share bytes with the other groups' upper bits. */
ISA INLINE __m256i with_upper(__m256i low, __m256i four, const int q) {
    __m256i moved = q == 3 ? _mm256_srli_epi16(four, 2) : _mm256_slli_epi16(four, 4 - q * 2);
    return _mm256_or_si256(low, _mm256_and_si256(moved, _mm256_set1_epi8(0x30)));
}

/* The operands of the multiplier for bytes or codes; other values are operands themselves. */
ISA INLINE __m256i operand(__m256i w, const Layout *l) {
    const __m256i flip = _mm256_set1_epi8((char)0x80);
    if (l->values == SIGNED_BYTES) return SHIFTED ? _mm256_xor_si256(w, flip) : w;
    if (l->values != CODES) return w;
    __m256i book = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)CODE_BOOKS[l->book]));
    return _mm256_shuffle_epi8(SHIFTED ? book : _mm256_xor_si256(book, flip), w);
}

/* The addresses of two pairs of blocks in a row; the same address twice if there is only one. */
typedef struct {
    const uint8_t *first, *second;
} Pairs;

/* Load the first (half 0) or second (half 1) 16 columns of each of a strip's groups, transposed. */
ISA INLINE void half_strip(Pairs at, const int half, const Layout *l, __m256i w[4]) {
    const int bytes = l->values == SIGNED_BYTES, step = bytes ? 32 : 16, from = bytes ? half * 16 : 0;
    UNROLL for (int q = 0; q < 4; q++) w[q] = two_of(at.first + q * step + from, at.second + q * step + from);
    if (l->values == SIXES) {
        const __m256i four = two_of(at.first + 64 + half * 16, at.second + 64 + half * 16);
        UNROLL for (int q = 0; q < 4; q++) w[q] = with_upper(nibbles(w[q], half), four, q);
        turn_four(w);
        return;
    }
    turn_four(w);
    UNROLL for (int q = 0; q < 4; q++) w[q] = operand(bytes ? w[q] : nibbles(w[q], half), l);
}

/* ---- products ---- */

#if defined(__GNUC__) || defined(__clang__)
#define KEEP(w) __asm__("" : "+x"(w[0]), "+x"(w[1]), "+x"(w[2]), "+x"(w[3])) /* computed once, before the products */
#else
#define KEEP(w)
#endif

/* Register i of half a strip of an input row at x, `step` bytes between blocks. */
ISA INLINE __m256i input_of(const int8_t *x, int64_t step, const int i, const int last) {
    if (last) return _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *)(x + i * 16)));
    return _mm256_loadu_si256((const __m256i *)(x + i / 2 * step + i % 2 * 32));
}

/* Add the products of half a strip with M input rows. `last`: four groups instead of eight. */
ISA INLINE void add_half(const Input *in, int64_t pair, Pairs at, const int half, const Layout *l, const int last, const int M,
                         __m256i sum[FEW_ROWS]) {
    const int64_t step = in->m * BLOCK;
    const int8_t *x = in->q + (pair * 2 + (last ? half : half * 2)) * step;
    __m256i w[4];
    half_strip(at, half, l, w);
    KEEP(w);
    UNROLL for (int i = 0; i < 4; i += 2) UNROLL for (int m = 0; m < M; m++) {
        __m256i x0 = input_of(x + m * BLOCK, step, i, last), x1 = input_of(x + m * BLOCK, step, i + 1, last);
        if (l->values == HALVES) sum[m] = ADD_BYTES(ADD_BYTES(sum[m], w[i], x0), w[i + 1], x1);
        else if (l->values == SIXES) sum[m] = ADD_TWO(sum[m], w[i], x0, w[i + 1], x1);
        else sum[m] = ADD_SIGNED(ADD_SIGNED(sum[m], w[i], x0), w[i + 1], x1);
    }
}

ISA INLINE __m256 as_floats(__m256i sum, const Layout *l) { return _mm256_cvtepi32_ps(l->values == HALVES ? WIDE(sum) : sum); }

/* Load eight floats, or four and zeros. */
ISA INLINE __m256 load_lanes(const float *from, const int last) {
    return last ? _mm256_zextps128_ps256(_mm_loadu_ps(from)) : _mm256_loadu_ps(from);
}

/* Four scales from group g on, and zeros. Not eight_scales, whose bytewise copy at the end of a row would stall the
 * load. */
ISA INLINE __m256 four_scales(const RowScales *s, const Layout *l, int64_t g) {
    __m128 found;
    int32_t bytes;
    if (l->spread > 1) return _mm256_zextps128_ps256(_mm_set1_ps(((const float *)s->each)[g / l->spread]));
    if (l->scale == SCALE_F32) found = _mm_loadu_ps((const float *)s->each + g);
    else if (l->scale == SCALE_FINE) {
        memcpy(&bytes, s->each + g, 4);
        found = _mm_mul_ps(_mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(bytes))), coarse_factor(s, l, g));
    } else {
        __m128i bits = _mm_loadl_epi64((const __m128i *)(s->each + g * 2));
        found = l->scale == SCALE_F16 ? _mm_cvtph_ps(bits) : _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(bits), 16));
    }
    return _mm256_zextps128_ps256(found);
}

/* The scales and shifts (minimum - zero * scale) of eight groups from group g on, or of `four`. */
ISA INLINE void scales_of(const RowScales scales[2], const Layout *l, int64_t g, const int four, __m256 *scale, __m256 *shift) {
    __m256 low = _mm256_setzero_ps();
    if (l->minimum) low = four ? four_scales(scales + 1, l, g) : eight_scales(scales + 1, l, g);
    *scale = four ? four_scales(scales, l, g) : eight_scales(scales, l, g);
    *shift = _mm256_fnmadd_ps(_mm256_set1_ps((float)shifted_by(l)), *scale, low);
}

INLINE int has_shifts(const Layout *l) { return l->minimum || shifted_by(l); }

/* Multiply a strip in groups of 32 with M input rows. */
ISA INLINE void strip_of_32(const Input *in, int64_t pair, Pairs at, const RowScales scales[2], const Layout *l, const int last,
                            const int M, __m256 sum[FEW_ROWS]) {
    __m256i all[FEW_ROWS];
    __m256 scale, shift;
    scales_of(scales, l, pair * 4, last, &scale, &shift);
    UNROLL for (int m = 0; m < M; m++) all[m] = _mm256_setzero_si256();
    UNROLL for (int half = 0; half < 2; half++) add_half(in, pair, at, half, l, last, M, all);
    UNROLL for (int m = 0; m < M; m++) {
        const int64_t cell = (m * in->blocks + pair * 2) * 2;
        __m256 by = _mm256_mul_ps(scale, load_lanes(in->by_row + cell, last));
        sum[m] = _mm256_fmadd_ps(as_floats(all[m], l), by, sum[m]);
        if (has_shifts(l)) sum[m] = _mm256_fmadd_ps(shift, load_lanes(in->offsets + cell, last), sum[m]);
    }
}

/* The even or odd elements of sixteen, in order. */
ISA INLINE __m256 every_second(__m256 low, __m256 high, const int odd) {
    __m256 mixed = odd ? _mm256_shuffle_ps(low, high, 0xdd) : _mm256_shuffle_ps(low, high, 0x88);
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(mixed), 0xd8));
}

/* Multiply a strip in groups of 16, which are halves of the strip's groups of 32, with M input rows. */
ISA INLINE void strip_of_16(const Input *in, int64_t pair, Pairs at, const RowScales scales[2], const Layout *l, const int last,
                            const int M, __m256 sum[FEW_ROWS]) {
    __m256 scale[2], shift[2];
    scale[1] = shift[1] = _mm256_setzero_ps();
    scales_of(scales, l, pair * 8, 0, scale, shift);
    if (!last) scales_of(scales, l, pair * 8 + 8, 0, scale + 1, shift + 1);
    UNROLL for (int half = 0; half < 2; half++) {
        const __m256 own = every_second(scale[0], scale[1], half), less = every_second(shift[0], shift[1], half);
        __m256i all[FEW_ROWS];
        UNROLL for (int m = 0; m < M; m++) all[m] = _mm256_setzero_si256();
        add_half(in, pair, at, half, l, last, M, all);
        UNROLL for (int m = 0; m < M; m++) {
            const int64_t cell = m * in->blocks + pair * 2;
            __m256 by = _mm256_mul_ps(own, load_lanes(in->by_row + cell * 2, last));
            sum[m] = _mm256_fmadd_ps(as_floats(all[m], l), by, sum[m]);
            const float *sixteens = in->sixteens + cell * 4 + half * (last ? 4 : 8);
            if (has_shifts(l)) sum[m] = _mm256_fmadd_ps(less, load_lanes(sixteens, last), sum[m]);
        }
    }
}

ISA INLINE void strip_of(const Input *in, int64_t pair, Pairs at, const RowScales scales[2], const Layout *l, const int last,
                         const int M, __m256 sum[FEW_ROWS]) {
    if (l->group == 16) strip_of_16(in, pair, at, scales, l, last, M, sum);
    else strip_of_32(in, pair, at, scales, l, last, M, sum);
}

/* Multiply a row of grouped weights with M input rows. */
ISA INLINE void few_row(const Job *job, int64_t row, const Layout l, const int M) {
    const int64_t pairs = job->input->blocks / 2, bytes = pair_bytes(&l);
    const uint8_t *at = job->weights + row * job->stride;
    const RowScales scales[2] = {row_scales(job, &l, row, 0), row_scales(job, &l, row, 1)};
    __m256 sum[FEW_ROWS];
    int64_t pair = 0;
    UNROLL for (int m = 0; m < M; m++) sum[m] = _mm256_setzero_ps();
    for (; pair + STRIP_PAIRS <= pairs; pair += STRIP_PAIRS, at += STRIP_PAIRS * bytes) {
        for (int64_t i = 0; i < STRIP_PAIRS * bytes; i += 64) _mm_prefetch((const char *)at + i + AHEAD, _MM_HINT_T0);
        strip_of(job->input, pair, (Pairs){at, at + bytes}, scales, &l, 0, M, sum);
    }
    if (pair < pairs) strip_of(job->input, pair, (Pairs){at, at}, scales, &l, 1, M, sum);
    UNROLL for (int m = 0; m < M; m++) put(job, m, row, add_lanes(sum[m]));
}

/* All rows [begin, end) of a layout that is a compile-time constant, so that the loop has no layout branches. */
#define FEW(name, layout)                                             \
    ISA static void name(const Job *job, int64_t begin, int64_t end) { \
        const Layout l = layout;                                      \
        IN_TURNS(few_row(own, r, l, M))                               \
    }
FEW(int4_few, layout_of(INT4))
FEW(int6_few, layout_of(INT6))
FEW(int4g32_few, layout_of(INT4_G32))
FEW(int4g32m_few, layout_of(INT4_G32M))
FEW(int8g32_few, layout_of(INT8_G32))
FEW(int6k16_few, layout_of(INT6_K16))
FEW(grouped_few, layout_of(job->format))

#include "few_kernel.h"

/* ---- int8 ---- */

ISA INLINE void int8_strip(const Input *in, int64_t pair, const uint8_t *at, const int last, const int M, __m256 sum[FEW_ROWS]) {
    const Layout l = {SIGNED_BYTES, SCALE_F32, 32, 0, 0, 0, 1};
    __m256i all[FEW_ROWS];
    UNROLL for (int m = 0; m < M; m++) all[m] = _mm256_setzero_si256();
    UNROLL for (int half = 0; half < 2; half++)
        add_half(in, pair, (Pairs){at, last ? at : at + 2 * BLOCK}, half, &l, last, M, all);
    UNROLL for (int m = 0; m < M; m++) {
        __m256 by = load_lanes(in->by_row + (m * in->blocks + pair * 2) * 2, last);
        sum[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(all[m]), by, sum[m]);
    }
}

/* Multiply the columns after a row's last whole strip. The row may end one block before the input, which is zero there,
 * so reading into the next row is harmless; the last row is copied and padded instead. */
ISA INLINE void int8_rest(const Job *job, int64_t pair, const uint8_t *at, const int is_last, const int M, __m256 sum[FEW_ROWS]) {
    uint8_t rest[STRIP_BYTES];
    const int64_t left = job->row_bytes - pair * 2 * BLOCK;
    if (left <= 0) return;
    if (is_last) {
        memset(rest, 0, sizeof rest);
        at = memcpy(rest, at, (size_t)left);
    }
    if (pair + STRIP_PAIRS <= job->input->blocks / 2) int8_strip(job->input, pair, at, 0, M, sum);
    else int8_strip(job->input, pair, at, 1, M, sum);
}

ISA INLINE void int8_few(const Job *job, int64_t row, int64_t end, const int M) {
    const uint8_t *at = job->weights + row * job->stride;
    __m256 sum[FEW_ROWS];
    int64_t pair = 0;
    UNROLL for (int m = 0; m < M; m++) sum[m] = _mm256_setzero_ps();
    for (; (pair + STRIP_PAIRS) * 2 * BLOCK <= job->row_bytes; pair += STRIP_PAIRS, at += STRIP_BYTES) {
        for (int i = 0; M > 1 && i < STRIP_BYTES; i += 64) _mm_prefetch((const char *)at + i + AHEAD, _MM_HINT_T1);
        int8_strip(job->input, pair, at, 0, M, sum);
    }
    int8_rest(job, pair, at, row + 1 == end, M, sum);
    UNROLL for (int m = 0; m < M; m++) {
        float total = add_lanes(sum[m]) - (SHIFTED ? 128 * job->input->totals[m] : 0.0f);
        put(job, m, row, total * ((const float *)job->scales)[row]);
    }
}

/* ---- input ---- */

/* The sums of half a transposed strip by group, times the groups' scales. */
ISA INLINE __m256 scaled_sums(const __m256i w[4], __m256 by) {
    __m256i all = _mm256_setzero_si256();
    UNROLL for (int i = 0; i < 4; i++) all = _mm256_add_epi32(all, DOT(_mm256_set1_epi8(1), w[i]));
    return _mm256_mul_ps(_mm256_cvtepi32_ps(all), by);
}

/* Reorder the strip of an input row that begins at block b; `last`: only two blocks. */
ISA INLINE void arrange_strip(const Input *in, int64_t row, int64_t b, const int last) {
    const int64_t step = in->m * BLOCK, cell = row * in->blocks + b;
    int8_t *at = (int8_t *)in->q + b * step + row * BLOCK;
    const __m256 by = load_lanes(in->by_row + cell * 2, last);
    float *sums = (float *)in->sixteens + cell * 4;
    __m256i w[2][4];
    UNROLL for (int half = 0; half < 2; half++) UNROLL for (int q = 0; q < 4; q++) {
        const int8_t *from = at + q / 2 * step + q % 2 * 32 + half * 16;
        w[half][q] = two_of(from, last ? from : from + 2 * step);
    }
    UNROLL for (int half = 0; half < 2; half++) {
        turn_four(w[half]);
        __m256 own = scaled_sums(w[half], by);
        if (last) _mm_storeu_ps(sums + half * 4, _mm256_castps256_ps128(own));
        else _mm256_storeu_ps(sums + half * 8, own);
        UNROLL for (int i = 0; i < 4; i++) {
            if (last) _mm_storeu_si128((__m128i *)(at + half * step + i * 16), _mm256_castsi256_si128(w[half][i]));
            else _mm256_storeu_si256((__m256i *)(at + (half * 2 + i / 2) * step + i % 2 * 32), w[half][i]);
        }
    }
}

/* Reorder an input row for the kernels of at most MOST_FEW rows; those for more rows take it unchanged. */
ISA static void arrange(const Input *in, int64_t row) {
    int64_t b = 0;
    if (in->m > MOST_FEW) return;
    for (; b + STRIP_BLOCKS <= in->blocks; b += STRIP_BLOCKS) arrange_strip(in, row, b, 0);
    if (b < in->blocks) arrange_strip(in, row, b, 1);
}
