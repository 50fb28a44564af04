/* One row of input on AVX-512: decoding. Rows of weights are not taken together: each would be a stream of its own, and from
 * memory four streams were read at two thirds of the rate. The scales of 512 columns of input are one register, and
 * sixteen rows' partial sums are added at once. Included in avx512.c. */

enum { ONE_GROUPS = 16 }; /* groups of 32 columns whose scales fill a register */

/* ---- groups ---- */

/* A row of weights, where the groups' scales and minimums are, and what is summed up: one chain of sums would be too slow. */
typedef struct {
    const uint8_t *at;
    int64_t row_bytes;
    RowScales scales, minimums;
    __m512 sum, odd;
} OneRow;

/* `groups` groups from g on, whose scales are multiplied into those of the input. */
AVX512 INLINE void one_strip(const Input *in, const Layout l, const __m512i book, int64_t g, const int64_t groups, OneRow *r) {
    const __mmask16 valid = (__mmask16)((1u << groups) - 1);
    const __m512 own = sixteen_scales(&r->scales, &l, g, valid);
    const __m512 scale = _mm512_mul_ps(own, _mm512_maskz_loadu_ps(valid, in->scales + g));
    const __m512 shifts = sixteen_shifts(&r->minimums, &l, g, valid, own);
    r->sum = _mm512_fmadd_ps(shifts, _mm512_maskz_loadu_ps(valid, in->offsets + g), r->sum);
    UNROLL for (int pair = 0; pair < groups >> 2; pair++) {
        const int64_t all = (g >> 2) + pair;
        const __m512i lanes = _mm512_add_epi32(two_by_eight(), _mm512_set1_epi32(4 * pair));
        const __m512i second = _mm512_add_epi32(two_by_eight(), _mm512_set1_epi32(4 * pair + 2));
        __m512i w[2];
        for (int64_t i = 0; i < pair_bytes(&l); i += 64) ask_ahead(r->at + all * pair_bytes(&l) + i, r->row_bytes, 1);
        unpack_pair(r->at, all, l.values, book, w);
        __m512i low = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w[0], _mm512_loadu_si512(in->q + all * 128));
        __m512i high = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w[1], _mm512_loadu_si512(in->q + all * 128 + 64));
        r->sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(low), _mm512_permutexvar_ps(lanes, scale), r->sum);
        r->odd = _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), _mm512_permutexvar_ps(second, scale), r->odd);
    }
}

AVX512 INLINE OneRow one_row(const Job *job, int64_t row, const Layout *l) {
    OneRow r = {job->weights + row * job->row_bytes, job->row_bytes, row_scales(job, l, row, 0), row_scales(job, l, row, 1),
                _mm512_setzero_ps(), _mm512_setzero_ps()};
    return r;
}

/* One row times one row of input: sixteen partial sums. */
AVX512 INLINE __m512 grouped32_one(const Job *job, int64_t row, const Layout l, const __m512i book) {
    const int64_t groups = job->input->blocks * 2;
    OneRow r = one_row(job, row, &l);
    int64_t g = 0;
    for (; g + ONE_GROUPS <= groups; g += ONE_GROUPS) one_strip(job->input, l, book, g, ONE_GROUPS, &r);
    if (g < groups) one_strip(job->input, l, book, g, groups - g, &r);
    return _mm512_add_ps(r.sum, r.odd);
}

/* The same in groups of 16, of which there are sixteen in two pairs; their shifts meet the sums of the input's sixteens, which
 * are made on the way. */
AVX512 INLINE void one_strip_of_16(const Input *in, const Layout l, const __m512i book, int64_t first, const int64_t pairs, OneRow *r) {
    const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    const __m512i four = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const __mmask16 valid = (__mmask16)((1u << pairs * 8) - 1), halves = (__mmask16)((1u << pairs * 4) - 1);
    const __m512 inputs = _mm512_permutexvar_ps(twice, _mm512_maskz_loadu_ps(halves, in->scales + first * 4));
    const __m512 own = sixteen_scales(&r->scales, &l, first * 8, valid), scale = _mm512_mul_ps(own, inputs);
    const __m512 shift = _mm512_mul_ps(sixteen_shifts(&r->minimums, &l, first * 8, valid, own), inputs);
    UNROLL for (int block = 0; block < pairs * 2; block++) {
        const int64_t pair = first + block / 2;
        const __m512i lanes = _mm512_add_epi32(four, _mm512_set1_epi32(4 * block));
        const __m512i x = _mm512_loadu_si512(in->q + pair * 128 + block % 2 * BLOCK);
        __m512i w[2];
        for (int64_t i = 0; i < pair_bytes(&l) && block % 2 == 0; i += 64)
            ask_ahead(r->at + pair * pair_bytes(&l) + i, r->row_bytes, 1);
        unpack_pair(r->at, pair, l.values, book, w);
        __m512i dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w[block % 2], x);
        __m512i all = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), x);
        r->sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_permutexvar_ps(lanes, scale), r->sum);
        r->odd = _mm512_fmadd_ps(_mm512_cvtepi32_ps(all), _mm512_permutexvar_ps(lanes, shift), r->odd);
    }
}

AVX512 INLINE __m512 grouped16_one(const Job *job, int64_t row, const Layout l, const __m512i book) {
    const int64_t pairs = job->input->blocks / 2;
    OneRow r = one_row(job, row, &l);
    int64_t pair = 0;
    for (; pair + 2 <= pairs; pair += 2) one_strip_of_16(job->input, l, book, pair, 2, &r);
    if (pair < pairs) one_strip_of_16(job->input, l, book, pair, 1, &r);
    return _mm512_add_ps(r.sum, r.odd);
}

/* All rows [row, end) of a layout that is known when this is compiled, so that nothing is tested in the loops. */
#define ONE_WAY(name, kernel, layout)                                                                                 \
    AVX512 static void name(const Job *job, int64_t row, int64_t end) {                                               \
        const Layout l = layout;                                                                                      \
        const __m512i book = book_of(&l);                                                                             \
        __m512 sums[16];                                                                                              \
        for (; row < end; row += 16) {                                                                                \
            for (int i = 0; i < 16; i++)                                                                              \
                sums[i] = row + i < end ? kernel(job, row + i, l, book) : _mm512_setzero_ps();                        \
            put_sixteen(job, 0, row, end, add_across(sums));                                                          \
        }                                                                                                             \
    }
ONE_WAY(int4_one, grouped32_one, layout_of(INT4))
ONE_WAY(int6_one, grouped32_one, layout_of(INT6))
ONE_WAY(int4g32_one, grouped32_one, layout_of(INT4_G32))
ONE_WAY(int4g32m_one, grouped32_one, layout_of(INT4_G32M))
ONE_WAY(int8g32_one, grouped32_one, layout_of(INT8_G32))
ONE_WAY(int6k16_one, grouped16_one, layout_of(INT6_K16))
ONE_WAY(grouped32_rows_one, grouped32_one, layout_of(job->format))
ONE_WAY(grouped16_rows_one, grouped16_one, layout_of(job->format))

/* The kernel for a format's rows and one row of input: of the formats that most models have, one of its own. */
typedef void (*OneKernel)(const Job *job, int64_t begin, int64_t end);
static OneKernel one_kernel(int format) {
    switch (format) {
        case INT4: return int4_one;
        case INT6: return int6_one;
        case INT4_G32: return int4g32_one;
        case INT4_G32M: return int4g32m_one;
        case INT8_G32: return int8g32_one;
        case INT6_K16: return int6k16_one;
        default: return layout_of(format).group == 16 ? grouped16_rows_one : grouped32_rows_one;
    }
}

/* ---- int8 ---- */

enum { ONE_BLOCKS = ONE_GROUPS / 2 };

/* `blocks` blocks of a row from b on. Weights are shifted to unsigned bytes for the multiplier. */
AVX512 INLINE void int8_strip(const Input *in, const uint8_t *at, int64_t b, const int64_t blocks, __m512 sum[2]) {
    const __m512 scale = _mm512_maskz_loadu_ps((__mmask16)((1u << blocks * 2) - 1), in->scales + b * 2);
    UNROLL for (int i = 0; i < blocks; i++) {
        const uint8_t *from = at + (b + i) * BLOCK;
        ask_ahead_for_bytes(from, 0, 1);
        __m512i w = _mm512_xor_si512(_mm512_loadu_si512(from), _mm512_set1_epi8((char)0x80));
        __m512i dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w, _mm512_loadu_si512(in->q + (b + i) * BLOCK));
        const __m512i lanes = _mm512_add_epi32(two_by_eight(), _mm512_set1_epi32(2 * i));
        sum[i % 2] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_permutexvar_ps(lanes, scale), sum[i % 2]);
    }
}

AVX512 INLINE __m512 int8_one(const Job *job, int64_t row) {
    const int64_t blocks = job->row_bytes / BLOCK;
    const uint8_t *at = job->weights + row * job->row_bytes;
    __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    int64_t b = 0;
    for (; b + ONE_BLOCKS <= blocks; b += ONE_BLOCKS) int8_strip(job->input, at, b, ONE_BLOCKS, sum);
    if (b < blocks) int8_strip(job->input, at, b, blocks - b, sum);
    return _mm512_add_ps(sum[0], sum[1]);
}

AVX512 static void int8_rows_one(const Job *job, int64_t row, int64_t end) {
    __m512 sums[16];
    float shift[FEW_ROWS] = {0};
    int8_shifts(job->input, 0, shift);
    for (; row < end; row += 16) {
        const __mmask16 valid = end - row >= 16 ? 0xffff : (__mmask16)((1u << (end - row)) - 1);
        for (int i = 0; i < 16; i++) sums[i] = row + i < end ? int8_one(job, row + i) : _mm512_setzero_ps();
        __m512 scales = _mm512_maskz_loadu_ps(valid, (const float *)job->scales + row);
        __m512 total = _mm512_sub_ps(add_across(sums), _mm512_set1_ps(shift[0]));
        put_sixteen(job, 0, row, end, _mm512_mul_ps(total, scales));
    }
}
