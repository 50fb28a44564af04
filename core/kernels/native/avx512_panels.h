/* Many rows of input on AVX-512: 128 columns of 32 rows of weights are repacked into a panel, four columns of sixteen
 * rows per register, and all input rows are multiplied with it while it is in L1. One loop covers all layouts and kinds
 * of scales. Included in avx512.c. */

enum { TILE = 7, PAIR = 2 * BLOCK, MOST_SUMS = 128, WIDE_FROM = 96, WIDE_BYTES = 1 << 20 };

/* One scale per row; one per group of columns; or a scale and a shift (minimum - zero * scale) per group. */
enum Scaling { BY_ROW, BY_GROUP, WITH_SHIFTS };

/* `zero`: the offset that makes values unsigned. It is subtracted from the products, or part of the shifts. */
typedef struct {
    enum Values values;
    enum Scaling scaling;
    int zero, book;
} Way;

/* Transpose a 16 x 16 matrix of dwords. */
AVX512 INLINE void transpose(__m512i r[16]) {
    __m512i t[16];
    UNROLL for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        __m512i a = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88), b = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        __m512i c = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88), d = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
        t[i] = _mm512_shuffle_i32x4(a, c, 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(b, d, 0x88);
        t[i + 8] = _mm512_shuffle_i32x4(a, c, 0xdd);
        t[i + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
    UNROLL for (int i = 0; i < 16; i++) r[i] = t[i];
}

/* ---- scales ---- */

/* The index of panel row i; past the end the last row is repeated. */
INLINE int64_t panel_row(int64_t row, int64_t i, int64_t last) { return row + i < last ? row + i : last - 1; }

/* Transpose sixteen groups of sixteen rows (r[i] = row i) and store them by group, 2 * PANEL floats apart. */
AVX512 INLINE void put_groups(__m512 rows[16], int64_t groups, float *to) {
    __m512i r[16];
    UNROLL for (int i = 0; i < 16; i++) r[i] = _mm512_castps_si512(rows[i]);
    transpose(r);
    UNROLL for (int i = 0; i < 16; i++)
        if (i < groups) _mm512_store_ps(to + i * 2 * PANEL, _mm512_castsi512_ps(r[i]));
}

/* Pack the scales of a panel, and the shifts of layouts with minimums: [groups][2][PANEL]. */
AVX512 INLINE void pack_scales(const Job *job, const Layout l, int64_t row, int64_t last, float *out) {
    int64_t groups = groups_of(job->input, &l);
    for (int half = 0; half < PANEL; half += 16)
        for (int64_t g = 0; g < groups; g += 16) {
            __m512 scales[16], shifts[16];
            __mmask16 valid = sixteen_of(groups, g);
            for (int i = 0; i < 16; i++) {
                int64_t own = panel_row(row, half + i, last);
                RowScales s = row_scales(job, &l, own, 0), minimums = row_scales(job, &l, own, 1);
                scales[i] = sixteen_scales(&s, &l, g, valid);
                if (l.minimum) shifts[i] = sixteen_shifts(&minimums, &l, g, valid, scales[i]);
            }
            put_groups(scales, groups - g, out + g * 2 * PANEL + half);
            if (l.minimum) put_groups(shifts, groups - g, out + (g * 2 + 1) * PANEL + half);
        }
}

/* ---- panels ---- */

/* The rows after this panel's, prefetched in small portions while the panel is used: a burst would fill the memory
 * queue and stall the core. */
typedef struct {
    const uint8_t *at, *end;
    int64_t lines; /* per portion */
} Ahead;

AVX512 INLINE void ask(Ahead *ahead) {
    for (int64_t i = 0; i < ahead->lines && ahead->at < ahead->end; i++, ahead->at += 64)
        _mm_prefetch((const char *)ahead->at, _MM_HINT_T1);
}

/* Up to PANEL rows from row + PANEL on, divided into `turns` portions. */
INLINE Ahead ahead_of(const Job *job, int64_t row, int64_t end, int64_t turns) {
    int64_t from = row + PANEL < end ? row + PANEL : end, to = from + PANEL < end ? from + PANEL : end;
    int64_t lines = ((to - from) * job->stride + 63) / 64;
    Ahead ahead = {job->weights + from * job->stride, job->weights + to * job->stride, (lines + turns - 1) / turns};
    return ahead;
}

/* Run i of four columns of 64 or, in packed formats, of the first halves of four groups of 32. */
INLINE int64_t run_of(const int i, const enum Values values) { return values == SIGNED_BYTES ? i : i / 4 * 8 + i % 4; }

/* The upper bits of group q, moved to their place in six-bit values. */
AVX512 INLINE __m512i upper_of(__m512i four, const int q) {
    __m512i moved = q == 3 ? _mm512_srli_epi16(four, 2) : _mm512_slli_epi16(four, 4 - q * 2);
    return _mm512_and_si512(moved, _mm512_set1_epi8(0x30));
}

/* Transpose 64 bytes of each of sixteen rows into runs of four columns: sixteen runs, or 32 in packed formats. `upper`:
 * the upper bits of six-bit values, eight runs of four bytes. */
AVX512 INLINE void pack_sixteen(__m512i r[16], __m512i upper[16], uint8_t *panel, const enum Values values, __m512i book) {
    const __m512i nibble = _mm512_set1_epi8(15), flip = _mm512_set1_epi8((char)0x80);
    transpose(r);
    if (values == SIXES) transpose(upper);
    UNROLL for (int i = 0; i < 16; i++) {
        uint8_t *at = panel + run_of(i, values) * PANEL * 4;
        if (values == SIGNED_BYTES) {
            _mm512_store_si512(at, _mm512_xor_si512(r[i], flip));
            continue;
        }
        __m512i low = _mm512_and_si512(r[i], nibble), high = _mm512_and_si512(_mm512_srli_epi16(r[i], 4), nibble);
        if (values == SIXES) {
            low = _mm512_or_si512(low, upper_of(upper[i % 4], i / 4));
            high = _mm512_or_si512(high, upper_of(upper[4 + i % 4], i / 4));
        }
        _mm512_store_si512(at, values == CODES ? _mm512_shuffle_epi8(book, low) : low);
        _mm512_store_si512(at + 4 * PANEL * 4, values == CODES ? _mm512_shuffle_epi8(book, high) : high);
    }
}

/* Pack a pair of blocks into a panel: [2][16 runs of four columns][PANEL rows][4]. */
AVX512 INLINE void pack_pair(const Job *job, int64_t row, int64_t last, int64_t pair, uint8_t *panel, const Way way) {
    const __m512i book = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)CODE_BOOKS[way.book]));
    const int64_t step = way.values == SIGNED_BYTES ? PAIR : way.values == SIXES ? BLOCK * 3 / 2 : BLOCK;
    int64_t left = job->row_bytes - pair * step < step ? job->row_bytes - pair * step : step;
    for (int64_t at = 0; at < (way.values == SIXES ? BLOCK : left); at += BLOCK)
        for (int half = 0; half < PANEL; half += 16) {
            __m512i r[16], upper[16];
            UNROLL for (int i = 0; i < 16; i++) {
                const uint8_t *from = job->weights + panel_row(row, half + i, last) * job->stride + pair * step;
                r[i] = _mm512_loadu_si512(from + at);
                if (way.values == SIXES)
                    upper[i] = _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i *)(from + BLOCK)));
            }
            pack_sixteen(r, upper, panel + at * PANEL + half * 4, way.values, book);
        }
}

/* ---- products ---- */

/* Add the dot products of 32 columns: M input rows, BLOCK bytes apart, with the panel's rows. */
AVX512 INLINE void dots(const int8_t *x, const uint8_t *w, const int M, __m512i dot[TILE][2]) {
    UNROLL for (int i = 0; i < 8; i++) {
        __m512i w0 = _mm512_load_si512(w + i * PANEL * 4), w1 = _mm512_load_si512(w + i * PANEL * 4 + 64);
        UNROLL for (int m = 0; m < M; m++) {
            int32_t four;
            memcpy(&four, x + m * BLOCK + i * 4, 4);
            __m512i xb = _mm512_set1_epi32(four);
            dot[m][0] = _mm512_dpbusd_epi32(dot[m][0], w0, xb);
            dot[m][1] = _mm512_dpbusd_epi32(dot[m][1], w1, xb);
        }
    }
}

/* Add to sum[M][PANEL] the products of M input rows with the panel's `groups` groups from group g on; `scales` begins
 * with those of group g. The sums live in memory: in registers they would displace the dot products. `ahead` NULL = no
 * prefetch. */
AVX512 INLINE void tile(const Input *in, int64_t g, int64_t groups, const uint8_t *panel, const float *scales, int64_t m0,
                        const int M, const enum Scaling scaling, const int zero, Ahead *ahead, float *sum) {
    for (int64_t end = g + groups; g < end; g++, panel += GROUP * PANEL) {
        int64_t at = (g / 2) * in->m + m0;
        const int32_t *sums = in->sums + at * 2 + g % 2;
        const float *xs = in->scales + at * 2 + g % 2;
        __m512i dot[TILE][2];
        if (ahead) ask(ahead);
        UNROLL for (int m = 0; m < M; m++)
            dot[m][0] = dot[m][1] = scaling == WITH_SHIFTS ? _mm512_setzero_si512() : _mm512_set1_epi32(-zero * sums[m * 2]);
        dots(in->q + at * BLOCK + g % 2 * GROUP, panel, M, dot);
        UNROLL for (int m = 0; m < M; m++) {
            UNROLL for (int h = 0; h < 2; h++) {
                __m512 by = _mm512_set1_ps(xs[m * 2]), product = _mm512_cvtepi32_ps(dot[m][h]);
                float *to = sum + m * PANEL + h * 16;
                if (scaling != BY_ROW) product = _mm512_mul_ps(product, _mm512_load_ps(scales + h * 16));
                if (scaling == WITH_SHIFTS) {
                    __m512 all = _mm512_set1_ps((float)sums[m * 2]);
                    product = _mm512_fmadd_ps(all, _mm512_load_ps(scales + PANEL + h * 16), product);
                }
                _mm512_store_ps(to, _mm512_fmadd_ps(product, by, _mm512_load_ps(to)));
            }
        }
        scales += scaling == BY_ROW ? 0 : 2 * PANEL;
    }
}

/* The most rows per tile: one more with shifts would spill the dot products, which was a tenth slower. */
INLINE int64_t tile_rows(const Way way) { return way.scaling == WITH_SHIFTS ? TILE - 1 : TILE; }

INLINE int64_t tiles_of(int64_t m, int64_t rows) { return (m + rows - 1) / rows; }

/* Multiply input rows [from, to) with a panel, in tiles of nearly equal size: a tile of one row takes as long as one of
 * four. */
#define TILE_CASE(M) case M: tile(in, g, groups, panel, scales, m, M, way.scaling, way.zero, ahead, sum); break;
AVX512 INLINE void tiles(const Input *in, int64_t from, int64_t to, int64_t g, int64_t groups, const uint8_t *panel,
                         const float *scales, const Way way, Ahead *ahead, float *sum) {
    int64_t count = tiles_of(to - from, tile_rows(way));
    for (int64_t t = 0; t < count; t++) {
        int64_t m = from + (to - from) * t / count, next = from + (to - from) * (t + 1) / count;
        switch (next - m) {
            TILE_CASE(1) TILE_CASE(2) TILE_CASE(3) TILE_CASE(4) TILE_CASE(5) TILE_CASE(6) TILE_CASE(7)
        }
        sum += (next - m) * PANEL;
    }
}

/* Round to nearest even; NaN stays NaN. */
AVX512 INLINE __m256i narrow_bf16(__m512 value) {
    __m512i bits = _mm512_castps_si512(value), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    __mmask16 broken = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, broken, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

AVX512 INLINE void put_sixteen(const Job *job, int64_t m, int64_t row, int64_t end, __m512 value) {
    int64_t at = m * job->out_stride + row - job->first;
    __mmask16 valid = end - row >= 16 ? 0xffff : end <= row ? 0 : (__mmask16)((1u << (end - row)) - 1);
    if (job->out_type == TYPE_F32) _mm512_mask_storeu_ps((float *)job->out + at, valid, value);
    else if (job->out_type == TYPE_BF16) _mm256_mask_storeu_epi16((uint16_t *)job->out + at, valid, narrow_bf16(value));
    else _mm256_mask_storeu_epi16((uint16_t *)job->out + at, valid, _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
}

AVX512 static void put_sums(const Job *job, int64_t row, int64_t end, int64_t from, int64_t to, const float *sum,
                            const float *scales) {
    for (int64_t m = from; m < to; m++, sum += PANEL)
        for (int h = 0; h < PANEL; h += 16) {
            __m512 value = _mm512_load_ps(sum + h);
            if (scales) value = _mm512_mul_ps(value, _mm512_load_ps(scales + h));
            put_sixteen(job, m, row + h, end, value);
        }
}

/* Layout of the scratch memory: the panel, the sums, the scales. */
INLINE float *scales_at(uint8_t *panel) { return (float *)(panel + PAIR * PANEL) + MOST_SUMS * PANEL; }

/* The address of a panel of all columns: after the scales of all groups. */
INLINE uint8_t *panel_whole(const Job *job, uint8_t *panel) {
    return (uint8_t *)(scales_at(panel) + (job->input->blocks + 1) / 2 * 2 * 4 * PANEL);
}

/* Multiply 32 fully repacked rows of weights with many input rows, one tile at a time. A tile's sums then stay in L1,
 * which from WIDE_FROM rows on saves more than keeping the panel there. Its rows are read in strides, which is slow from
 * beyond L2: inputs of WIDE_BYTES and more are read in order instead, one pair of blocks at a time. */
AVX512 INLINE void multiply_whole(const Job *job, int64_t row, int64_t end, int64_t groups, uint8_t *panel, const float *scales,
                                  const Way way) {
    const Input *in = job->input;
    _Alignas(64) float sum[TILE * PANEL];
    /* With many products, prefetching between them costs a twelfth; here it is done while repacking. */
    Ahead ahead = ahead_of(job, row, end, (groups + PAIR / GROUP - 1) / (PAIR / GROUP));
    for (int64_t pair = 0; pair * (PAIR / GROUP) < groups; pair++) {
        ask(&ahead);
        pack_pair(job, row, end, pair, panel + pair * PAIR * PANEL, way);
    }
    for (int64_t t = 0, count = tiles_of(in->m, tile_rows(way)); t < count; t++) {
        int64_t from = in->m * t / count, to = in->m * (t + 1) / count;
        memset(sum, 0, sizeof sum);
        tiles(in, from, to, 0, groups, panel, scales, way, NULL, sum);
        put_sums(job, row, end, from, to, sum, way.scaling == BY_ROW ? scales : NULL);
    }
}

/* Multiply 32 rows of weights with all rows of input. */
AVX512 INLINE void multiply_panel(const Job *job, int64_t row, int64_t end, uint8_t *panel, const Way way) {
    const Input *in = job->input;
    float *sum = (float *)(panel + PAIR * PANEL), *scales = scales_at(panel);
    int64_t groups = job->row_bytes / (way.values == SIGNED_BYTES ? GROUP : way.values == SIXES ? GROUP * 3 / 4 : GROUP / 2);
    int64_t step = way.scaling == BY_ROW ? 0 : 2 * PANEL;
    if (in->m >= WIDE_FROM && in->m * in->columns < WIDE_BYTES) {
        multiply_whole(job, row, end, groups, panel_whole(job, panel), scales, way);
        return;
    }
    Ahead ahead = ahead_of(job, row, end, tiles_of(in->m, tile_rows(way)) * groups);
    for (int64_t from = 0; from < in->m; from += MOST_SUMS) {
        int64_t to = from + MOST_SUMS < in->m ? from + MOST_SUMS : in->m;
        memset(sum, 0, sizeof(float) * PANEL * (to - from));
        for (int64_t g = 0; g < groups; g += PAIR / GROUP) {
            int64_t some = groups - g < PAIR / GROUP ? groups - g : PAIR / GROUP;
            pack_pair(job, row, end, g / (PAIR / GROUP), panel, way);
            tiles(in, from, to, g, some, panel, scales + g * step, way, &ahead, sum);
        }
        put_sums(job, row, end, from, to, sum, way.scaling == BY_ROW ? scales : NULL);
    }
}
