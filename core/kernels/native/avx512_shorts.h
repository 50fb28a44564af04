/* Kernels for processors with AVX512_BF16 (products of bf16 pairs) and VBMI (byte lookups in two registers). bf16
 * weights are multiplied as stored with bf16 inputs. float8 weights are converted to bf16, exactly, and 128 columns are
 * summed before their scale is applied; their inputs are permuted to the order in which conversion yields the weights.
 * With more input rows than MOST_FEW, 128 columns of 32 rows are widened once into a panel of column pairs that stays
 * in L1. Included in avx512.c. */

#if defined(__GNUC__) || defined(__clang__)
#define SHORTS TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx512vbmi,avx2,f16c,fma")

/* The bf16 value of each of the 128 positive float8 codes, as high and low bytes; the first exponent has subnormals. */
#define SAME(high) high, high, high, high, high, high, high, high
#define EACH(low) low, low + 16, low + 32, low + 48, low + 64, low + 80, low + 96, low + 112
_Alignas(64) static const uint8_t FLOAT8_HIGH[128] = {
    0, 59, 59, 59, 60, 60, 60, 60, SAME(60), SAME(61), SAME(61), SAME(62), SAME(62), SAME(63), SAME(63),
    SAME(64), SAME(64), SAME(65), SAME(65), SAME(66), SAME(66), SAME(67), SAME(67),
};
_Alignas(64) static const uint8_t FLOAT8_LOW[128] = {
    0, 0, 128, 192, 0, 32, 64, 96, EACH(128), EACH(0), EACH(128), EACH(0), EACH(128), EACH(0), EACH(128),
    EACH(0), EACH(128), EACH(0), EACH(128), EACH(0), EACH(128), EACH(0), EACH(128),
};

typedef struct {
    __m512i high[2], low[2];
} Float8Book;

SHORTS INLINE Float8Book float8_book(void) {
    Float8Book book = {{_mm512_load_si512(FLOAT8_HIGH), _mm512_load_si512(FLOAT8_HIGH + 64)},
                       {_mm512_load_si512(FLOAT8_LOW), _mm512_load_si512(FLOAT8_LOW + 64)}};
    return book;
}

/* Convert 64 weights to bf16, in the order of put_shorts. */
SHORTS INLINE void widen_shorts(const uint8_t *at, const Float8Book *book, __m512i w[2]) {
    __m512i bytes = _mm512_loadu_si512(at);
    __m512i high = _mm512_permutex2var_epi8(book->high[0], bytes, book->high[1]);
    __m512i low = _mm512_permutex2var_epi8(book->low[0], bytes, book->low[1]);
    high = _mm512_ternarylogic_epi32(high, bytes, _mm512_set1_epi8((char)0x80), 0xf8); /* high | (bytes & sign) */
    w[0] = _mm512_unpacklo_epi8(low, high);
    w[1] = _mm512_unpackhi_epi8(low, high);
}

/* ---- few rows of input ---- */

/* Add the products of one group of one weight row with M input rows. */
SHORTS INLINE void short_group(const Job *job, int64_t row, int64_t m0, int64_t g, const Float8Book *book, const int M,
                               __m512 sum[FEW_ROWS]) {
    const Input *in = job->input;
    const __m512 scale = _mm512_set1_ps(((const float *)job->scales)[row * job->scale_stride + g]);
    __m512 dot[FEW_ROWS];
    UNROLL for (int m = 0; m < M; m++) dot[m] = _mm512_setzero_ps();
    UNROLL for (int block = 0; block < 2; block++) {
        const uint16_t *x = in->shorts + ((g * 2 + block) * in->m + m0) * BLOCK;
        const uint8_t *at = job->weights + row * job->stride + g * FLOAT8_GROUP + block * BLOCK;
        __m512i w[2];
        ask_ahead_for_bytes(at, M);
        widen_shorts(at, book, w);
        UNROLL for (int m = 0; m < M; m++) UNROLL for (int half = 0; half < 2; half++)
            dot[m] = _mm512_dpbf16_ps(dot[m], (__m512bh)w[half], (__m512bh)_mm512_loadu_si512(x + m * BLOCK + half * 32));
    }
    UNROLL for (int m = 0; m < M; m++) sum[m] = _mm512_fmadd_ps(dot[m], scale, sum[m]);
}

SHORTS INLINE void short_row(const Job *job, int64_t row, const int unused, int64_t m0, const int M, __m512 sum[FEW_ROWS]) {
    const Float8Book book = float8_book();
    (void)unused;
    for (int64_t g = 0; g < job->input->blocks / 2; g++) short_group(job, row, m0, g, &book, M, sum);
}
SIXTEEN_FOR(SHORTS, short_few, short_row, FLOAT8, as_it_is)
FEW_FOR(SHORTS, short_few)

/* ---- weights of bf16 ---- */

/* Two weight rows share each input load, this many columns at a time: more do not stay in L1. */
enum { STRIP_OF_SHORTS = 1024 };

/* Multiply 32 columns of two weight rows with M input rows. */
SHORTS INLINE void given_step(const Input *in, const uint8_t *const row[2], int64_t column, __mmask32 valid, int64_t m0,
                              const int M, __m512 sum[2][FEW_ROWS]) {
    const uint16_t *x = in->given + (column / BLOCK * in->m + m0) * BLOCK + column % BLOCK;
    const __m512bh w[2] = {(__m512bh)_mm512_maskz_loadu_epi16(valid, row[0] + column * 2),
                           (__m512bh)_mm512_maskz_loadu_epi16(valid, row[1] + column * 2)};
    UNROLL for (int m = 0; m < M; m++) {
        const __m512bh own = (__m512bh)_mm512_loadu_si512(x + m * BLOCK);
        UNROLL for (int r = 0; r < 2; r++) sum[r][m] = _mm512_dpbf16_ps(sum[r][m], w[r], own);
    }
}

/* Multiply columns [from, to) of two weight rows. `ahead`: the address to prefetch, as many bytes as are used. */
SHORTS INLINE void given_strip(const Input *in, const uint8_t *const row[2], int64_t from, int64_t to, int64_t m0,
                               const int M, const uint8_t *ahead, __m512 sum[2][FEW_ROWS]) {
    int64_t c = from;
    for (; c + BLOCK <= to; c += BLOCK, ahead += 256) {
        UNROLL for (int i = 0; i < 256; i += 64) _mm_prefetch((const char *)ahead + i, _MM_HINT_T1);
        given_step(in, row, c, 0xffffffffu, m0, M, sum);
        given_step(in, row, c + 32, 0xffffffffu, m0, M, sum);
    }
    for (; c < to; c += 32) given_step(in, row, c, to - c >= 32 ? 0xffffffffu : (1u << (to - c)) - 1, m0, M, sum);
}

/* Multiply weight rows [row, row + 16), at most up to `end`, with input rows [m0, m0 + M). */
SHORTS INLINE void given_few_sixteen(const Job *job, int64_t row, int64_t end, int64_t m0, const int M) {
    const int64_t columns = job->input->columns, count = end - row < 16 ? end - row : 16;
    const int64_t strip = M == 1 ? columns : STRIP_OF_SHORTS;
    const uint8_t *at = job->weights + row * job->stride, *ahead = M == 1 ? at + AHEAD : at + 16 * job->stride;
    __m512 sums[FEW_ROWS][16];
    for (int m = 0; m < M; m++) for (int i = 0; i < 16; i++) sums[m][i] = _mm512_setzero_ps();
    for (int64_t from = 0; from < columns; from += strip) {
        const int64_t to = from + strip < columns ? from + strip : columns;
        for (int64_t i = 0; i < count; i += 2, ahead += (to - from) * 4) {
            const uint8_t *rows[2] = {at + i * job->stride, at + (i + 1 < count ? i + 1 : i) * job->stride};
            __m512 sum[2][FEW_ROWS];
            UNROLL for (int r = 0; r < 2; r++) UNROLL for (int m = 0; m < M; m++) sum[r][m] = sums[m][i + r];
            given_strip(job->input, rows, from, to, m0, M, ahead, sum);
            UNROLL for (int r = 0; r < 2; r++) UNROLL for (int m = 0; m < M; m++) sums[m][i + r] = sum[r][m];
        }
    }
    for (int m = 0; m < M; m++) put_sixteen(job, m0 + m, row, end, add_across(sums[m]));
}
FEW_FOR(SHORTS, given_few)

/* ---- more rows of input ---- */

enum { SHORT_ROWS = 256 }; /* input rows per pass; their sums lie after the panel */

/* Pack a group of columns of 32 rows as bf16 [64 pairs of columns][PANEL rows][2], and the rows' scales. */
SHORTS INLINE void pack_shorts(const Job *job, int64_t row, int64_t last, int64_t g, const Float8Book *book, uint8_t *panel,
                               float *scales) {
    for (int i = 0; i < PANEL; i++)
        scales[i] = ((const float *)job->scales)[panel_row(row, i, last) * job->scale_stride + g];
    for (int rows = 0; rows < PANEL; rows += 16)
        for (int64_t block = 0; block < 2; block++) {
            __m512i r[2][16];
            UNROLL for (int i = 0; i < 16; i++) {
                __m512i w[2];
                const uint8_t *from = job->weights + panel_row(row, rows + i, last) * job->stride + g * FLOAT8_GROUP;
                widen_shorts(from + block * BLOCK, book, w);
                r[0][i] = w[0];
                r[1][i] = w[1];
            }
            UNROLL for (int half = 0; half < 2; half++) {
                transpose(r[half]);
                UNROLL for (int i = 0; i < 16; i++)
                    _mm512_store_si512(panel + (block * 32 + half * 16 + i) * PANEL * 4 + rows * 4, r[half][i]);
            }
        }
}

/* Add the products of M input rows with the panel to sum[M][PANEL]. */
SHORTS INLINE void short_tile(const Input *in, int64_t g, int64_t m0, const int M, const uint8_t *panel, const float *scales,
                              float *sum) {
    __m512 dot[TILE][2];
    UNROLL for (int m = 0; m < M; m++) dot[m][0] = dot[m][1] = _mm512_setzero_ps();
    for (int64_t block = g * 2; block < g * 2 + 2; block++) {
        const uint16_t *x = in->shorts + (block * in->m + m0) * BLOCK;
        for (int i = 0; i < BLOCK; i += 2, panel += PANEL * 4) {
            __m512i w0 = _mm512_load_si512(panel), w1 = _mm512_load_si512(panel + 64);
            UNROLL for (int m = 0; m < M; m++) {
                int32_t two;
                memcpy(&two, x + m * BLOCK + i, 4);
                __m512bh own = (__m512bh)_mm512_set1_epi32(two);
                dot[m][0] = _mm512_dpbf16_ps(dot[m][0], (__m512bh)w0, own);
                dot[m][1] = _mm512_dpbf16_ps(dot[m][1], (__m512bh)w1, own);
            }
        }
    }
    UNROLL for (int m = 0; m < M; m++) UNROLL for (int h = 0; h < 2; h++) {
        float *to = sum + m * PANEL + h * 16;
        _mm512_store_ps(to, _mm512_fmadd_ps(dot[m][h], _mm512_load_ps(scales + h * 16), _mm512_load_ps(to)));
    }
}

#define SHORT_CASE(M) case M: short_tile(in, g, m, M, panel, scales, sum); break;
SHORTS INLINE void short_tiles(const Input *in, int64_t from, int64_t to, int64_t g, const uint8_t *panel, const float *scales,
                               Ahead *ahead, float *sum) {
    for (int64_t t = 0, count = tiles_of(to - from, TILE); t < count; t++) {
        int64_t m = from + (to - from) * t / count, next = from + (to - from) * (t + 1) / count;
        ask(ahead);
        switch (next - m) {
            SHORT_CASE(1) SHORT_CASE(2) SHORT_CASE(3) SHORT_CASE(4) SHORT_CASE(5) SHORT_CASE(6) SHORT_CASE(7)
        }
        sum += (next - m) * PANEL;
    }
}

/* Multiply 32 rows of weights with all rows of input. */
SHORTS static void multiply_shorts(const Job *job, int64_t row, int64_t end, uint8_t *panel) {
    const Input *in = job->input;
    const Float8Book book = float8_book();
    float *sum = (float *)(panel + FLOAT8_GROUP * PANEL * 2);
    _Alignas(64) float scales[PANEL];
    for (int64_t from = 0; from < in->m; from += SHORT_ROWS) {
        int64_t to = from + SHORT_ROWS < in->m ? from + SHORT_ROWS : in->m, groups = in->blocks / 2;
        Ahead ahead = ahead_of(job, row, end, tiles_of(to - from, TILE) * groups);
        memset(sum, 0, sizeof(float) * PANEL * (to - from));
        for (int64_t g = 0; g < groups; g++) {
            pack_shorts(job, row, end, g, &book, panel, scales);
            short_tiles(in, from, to, g, panel, scales, &ahead, sum);
        }
        put_sums(job, row, end, from, to, sum, NULL);
    }
}

static void short_rows(const Job *job, int64_t begin, int64_t end, uint8_t *panel) {
    if (job->input->m <= MOST_FEW || !panel) short_few(job, begin, end);
    else
        for (int64_t row = begin; row < end; row += PANEL) multiply_shorts(job, row, end, panel);
}

static int takes_shorts(void) { return has_short_products(); }
#else
static void given_few(const Job *job, int64_t begin, int64_t end) { (void)job, (void)begin, (void)end; }

static void short_rows(const Job *job, int64_t begin, int64_t end, uint8_t *panel) {
    (void)job, (void)begin, (void)end, (void)panel;
}

static int takes_shorts(void) { return 0; }
#endif
