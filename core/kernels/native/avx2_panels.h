/* More input rows than MOST_FEW on AVX2: PANEL_ROWS rows of weights at a time are packed into a panel, one strip of
 * columns after another, and each tile of TILE_ROWS input rows is multiplied with it while it is in the cache.
 *
 * A panel consists of steps. One step holds 4 bytes of each row, which are multiplied with the same 4 bytes of an
 * input:
 *   bf16, f16   one column as a float
 *   int8        two columns as 16 bits, like the input; summed in 32 bits over a whole strip
 *   halves      four columns as 8 bits, summed in 16 bits over the 32 columns of a group
 * In addition to what avx2_kernels.h requires, the including file defines
 *   ADD_PAIRS(sum, w, x)   sum + eight sums of two 16-bit products
 *   ADD_BYTES(sum, u, x)   sum + byte products, u at most 15, for the eight steps of a group
 *   WIDE(sum)              that sum as 32 bits */

enum { PANEL_ROWS = 16, TILE_ROWS = 6, STEPS = 256, STEP_BYTES = PANEL_ROWS * 4, GROUP_STEPS = 8 };

typedef struct {
    float sums[PANEL_SUMS][PANEL_ROWS];
    float scales[STEPS / GROUP_STEPS][PANEL_ROWS]; /* halves: one per group of the strip */
    float shifts[STEPS / GROUP_STEPS][PANEL_ROWS];
    uint8_t panel[STEPS * STEP_BYTES];
} Scratch;
typedef char scratch_fits[sizeof(Scratch) <= PANEL_SCRATCH ? 1 : -1];

/* Transpose an 8 x 8 matrix of dwords. */
ISA INLINE void transpose(__m256i r[8]) {
    __m256i t[8];
    UNROLL for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    }
    UNROLL for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x20);
        t[i + 4] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x31);
    }
    UNROLL for (int i = 0; i < 8; i++) r[i] = t[i];
}

ISA INLINE void store_steps(__m256i r[8], uint8_t *to) {
    transpose(r);
    UNROLL for (int i = 0; i < 8; i++) _mm256_store_si256((__m256i *)(to + i * STEP_BYTES), r[i]);
}

/* The address of panel row `i`; past the end the last row is repeated. */
INLINE const uint8_t *panel_row(const Job *job, int64_t row, int64_t end, int i) {
    return job->weights + (row + i < end ? row + i : end - 1) * job->stride;
}


ISA static void pack_floats(const Job *job, int64_t row, int64_t end, int64_t start, int64_t steps, uint8_t *panel,
                            const enum Format format) {
    for (int half = 0; half < PANEL_ROWS; half += 8)
        for (int64_t step = 0; step < steps; step += 8) {
            int64_t left = job->input->columns - start - step;
            __m256i r[8];
            UNROLL for (int i = 0; i < 8; i++) {
                const uint16_t *from = (const uint16_t *)panel_row(job, row, end, half + i) + start + step;
                uint16_t last[8] = {0};
                if (left < 8) from = memcpy(last, from, (size_t)left * 2);
                else if (step % 32 == 0) _mm_prefetch((const char *)(from + STEPS), _MM_HINT_T1);
                r[i] = _mm256_castps_si256(widen(from, format));
            }
            store_steps(r, panel + step * STEP_BYTES + half * 4);
        }
}

ISA static void pack_int8(const Job *job, int64_t row, int64_t end, int64_t start, int64_t steps, uint8_t *panel) {
    for (int half = 0; half < PANEL_ROWS; half += 8)
        for (int64_t step = 0; step < steps; step += 8) {
            __m256i r[8];
            UNROLL for (int i = 0; i < 8; i++) {
                const uint8_t *from = panel_row(job, row, end, half + i) + start + step * 2;
                if (step % 32 == 0) _mm_prefetch((const char *)from + STEPS * 2, _MM_HINT_T1);
                r[i] = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)from));
            }
            store_steps(r, panel + step * STEP_BYTES + half * 4);
        }
}

/* Store the steps of half a group of each of two adjacent groups: those of the other halves lie between. */
ISA INLINE void store_halves(__m256i r[8], uint8_t *to) {
    transpose(r);
    UNROLL for (int i = 0; i < 8; i++) _mm256_store_si256((__m256i *)(to + (i / 4 * GROUP_STEPS + i % 4) * STEP_BYTES), r[i]);
}

/* 32 bytes hold two groups, their first halves in the low nibbles. */
ISA static void pack_halves(const Job *job, int64_t row, int64_t end, int64_t start, int64_t steps, uint8_t *panel) {
    const __m256i nibble = _mm256_set1_epi8(15);
    for (int half = 0; half < PANEL_ROWS; half += 8)
        for (int64_t step = 0; step < steps; step += 32)
            for (int h = 0; h < 2; h++) {
                __m256i low[8], high[8];
                UNROLL for (int i = 0; i < 8; i++) {
                    const uint8_t *from = panel_row(job, row, end, half + i) + start / 2 + step * 2 + h * 32;
                    if (h == 0) _mm_prefetch((const char *)from + STEPS * 2, _MM_HINT_T1);
                    __m256i both = _mm256_loadu_si256((const __m256i *)from);
                    low[i] = _mm256_and_si256(both, nibble);
                    high[i] = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
                }
                store_halves(low, panel + (step + h * 2 * GROUP_STEPS) * STEP_BYTES + half * 4);
                store_halves(high, panel + (step + h * 2 * GROUP_STEPS + GROUP_STEPS / 2) * STEP_BYTES + half * 4);
            }
}

/* Pack the scales and shifts of a panel's groups from group `first` on. */
ISA static void pack_scales(const Job *job, int64_t row, int64_t end, int64_t first, int64_t groups, Scratch *s) {
    const Layout l = layout_of(job->format);
    Strip strip;
    for (int i = 0; i < PANEL_ROWS; i++)
        for (int64_t g = 0; g < groups; g += SCALE_STRIP / GROUP) {
            widen_strip(job, &l, row + i < end ? row + i : end - 1, first + g, &strip);
            for (int64_t k = 0; k < SCALE_STRIP / GROUP && g + k < groups; k++) {
                s->scales[g + k][i] = strip.scales[k];
                s->shifts[g + k][i] = strip.shifts[k];
            }
        }
}

ISA INLINE void add_to(float *sum, __m256 value, __m256 by) {
    _mm256_storeu_ps(sum, _mm256_fmadd_ps(value, by, _mm256_loadu_ps(sum)));
}

/* A tile: M input rows times the panel's strip, added to M rows of sums. Each row has two named registers, because
 * compilers keep an array in memory. Code for rows from M on is eliminated. */
#if defined(__GNUC__) || defined(__clang__)
#define IN_TURN(a, b) __asm__("" : "+x"(a), "+x"(b)) /* keeps the compiler from interleaving all rows and spilling */
#else
#define IN_TURN(a, b)
#endif
#define ALL_ROWS(what) what(0) what(1) what(2) what(3) what(4) what(5)
#define FLOAT_SUMS(r) __m256 a##r = _mm256_setzero_ps(), b##r = _mm256_setzero_ps();
#define INTEGER_SUMS(r) __m256i a##r = _mm256_setzero_si256(), b##r = _mm256_setzero_si256();

#define FLOAT_STEP(r)                                    \
    if (r < M) {                                         \
        __m256 own = _mm256_broadcast_ss(x + r * 16 + i); \
        a##r = _mm256_fmadd_ps(w0, own, a##r);           \
        b##r = _mm256_fmadd_ps(w1, own, b##r);           \
        IN_TURN(a##r, b##r);                             \
    }
#define FLOAT_END(r)                                      \
    if (r < M) {                                          \
        add_to(sum[r], a##r, _mm256_set1_ps(1.0f));       \
        add_to(sum[r] + 8, b##r, _mm256_set1_ps(1.0f));   \
    }
ISA INLINE void tile_floats(const Input *in, int64_t start, int64_t steps, const Scratch *s, int64_t m0, const int M,
                            float (*sum)[PANEL_ROWS]) {
    const uint8_t *panel = s->panel;
    ALL_ROWS(FLOAT_SUMS)
    for (int64_t block = start / 16; block * 16 < start + steps; block++) {
        const float *x = in->floats + (block * in->m + m0) * 16;
        int64_t count = start + steps - block * 16 < 16 ? start + steps - block * 16 : 16;
        for (int64_t i = 0; i < count; i++, panel += STEP_BYTES) {
            __m256 w0 = _mm256_load_ps((const float *)panel), w1 = _mm256_load_ps((const float *)panel + 8);
            ALL_ROWS(FLOAT_STEP)
        }
    }
    ALL_ROWS(FLOAT_END)
}

ISA INLINE __m256i four_bytes(const void *x) {
    int32_t four;
    memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
}

#define WORDS_STEP(r)                                  \
    if (r < M) {                                       \
        __m256i own = four_bytes(x + r * BLOCK + i);   \
        a##r = ADD_PAIRS(a##r, w0, own);               \
        b##r = ADD_PAIRS(b##r, w1, own);               \
        IN_TURN(a##r, b##r);                           \
    }
#define WORDS_END(r)                                                                            \
    if (r < M) {                                                                                \
        __m256 by = _mm256_set1_ps(in->scales[start / WORD_STRIP * in->m + m0 + r]);            \
        add_to(sum[r], _mm256_cvtepi32_ps(a##r), by);                                           \
        add_to(sum[r] + 8, _mm256_cvtepi32_ps(b##r), by);                                       \
    }
ISA INLINE void tile_int8(const Input *in, int64_t start, int64_t steps, const Scratch *s, int64_t m0, const int M,
                          float (*sum)[PANEL_ROWS]) {
    const uint8_t *panel = s->panel;
    ALL_ROWS(INTEGER_SUMS)
    for (int64_t block = start / BLOCK; block * BLOCK < start + steps * 2; block++) {
        const int16_t *x = in->words + (block * in->m + m0) * BLOCK;
        for (int i = 0; i < BLOCK; i += 2, panel += STEP_BYTES) {
            __m256i w0 = _mm256_load_si256((const __m256i *)panel), w1 = _mm256_load_si256((const __m256i *)panel + 1);
            ALL_ROWS(WORDS_STEP)
        }
    }
    ALL_ROWS(WORDS_END)
}

#define BYTES_STEP(r)                                      \
    if (r < M) {                                           \
        __m256i own = four_bytes(x + r * BLOCK + i * 4);   \
        a##r = ADD_BYTES(a##r, w0, own);                   \
        b##r = ADD_BYTES(b##r, w1, own);                   \
        IN_TURN(a##r, b##r);                               \
    }
#define BYTES_END(r)                                                                                     \
    if (r < M) {                                                                                         \
        int64_t own = (at + r) * 2 + group % 2;                                                          \
        __m256 by = _mm256_set1_ps(in->scales[own]), all = _mm256_set1_ps((float)in->sums[own]);         \
        add_to(sum[r], _mm256_fmadd_ps(_mm256_cvtepi32_ps(WIDE(a##r)), s0, _mm256_mul_ps(all, z0)), by); \
        add_to(sum[r] + 8, _mm256_fmadd_ps(_mm256_cvtepi32_ps(WIDE(b##r)), s1, _mm256_mul_ps(all, z1)), by); \
    }
ISA INLINE void tile_halves(const Input *in, int64_t start, int64_t steps, const Scratch *s, int64_t m0, const int M,
                          float (*sum)[PANEL_ROWS]) {
    const uint8_t *panel = s->panel;
    for (int64_t g = 0; g < steps / GROUP_STEPS; g++) {
        int64_t group = start / GROUP + g, at = group / 2 * in->m + m0;
        const int8_t *x = in->q + at * BLOCK + group % 2 * GROUP;
        __m256 s0 = _mm256_loadu_ps(s->scales[g]), s1 = _mm256_loadu_ps(s->scales[g] + 8);
        __m256 z0 = _mm256_loadu_ps(s->shifts[g]), z1 = _mm256_loadu_ps(s->shifts[g] + 8);
        ALL_ROWS(INTEGER_SUMS)
        for (int i = 0; i < GROUP_STEPS; i++, panel += STEP_BYTES) {
            __m256i w0 = _mm256_load_si256((const __m256i *)panel), w1 = _mm256_load_si256((const __m256i *)panel + 1);
            ALL_ROWS(BYTES_STEP)
        }
        ALL_ROWS(BYTES_END)
    }
}

/* Round to nearest even; NaN stays NaN. */
ISA INLINE __m128i narrow_bf16(__m256 value) {
    __m256i bits = _mm256_castps_si256(value), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    __m256i broken = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    rounded = _mm256_blendv_epi8(rounded, _mm256_or_si256(bits, _mm256_set1_epi32(0x400000)), broken);
    rounded = _mm256_srli_epi32(rounded, 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
}

ISA INLINE void put_eight(const Job *job, int64_t m, int64_t row, int64_t end, __m256 value) {
    int64_t at = m * job->out_stride + row - job->first;
    float each[8];
    if (end - row < 8) {
        _mm256_storeu_ps(each, value);
        for (int i = 0; i < end - row; i++) put(job, m, row + i, each[i]);
    } else if (job->out_type == TYPE_F32) _mm256_storeu_ps((float *)job->out + at, value);
    else
        _mm_storeu_si128((__m128i *)((uint16_t *)job->out + at),
                         job->out_type == TYPE_BF16 ? narrow_bf16(value)
                                                    : _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
}

/* `by`: a factor per panel row. */
ISA static void put_sums(const Job *job, int64_t row, int64_t end, int64_t m0, int64_t count, const Scratch *s,
                         const float *by) {
    for (int64_t m = 0; m < count; m++)
        for (int h = 0; h < PANEL_ROWS; h += 8)
            put_eight(job, m0 + m, row + h, end, _mm256_mul_ps(_mm256_loadu_ps(s->sums[m] + h), _mm256_loadu_ps(by + h)));
}

#define TILE_CASE(tile, M) case M: tile(in, start, steps, s, m, M, s->sums + m - m0); break;
#define TILES(name, tile)                                                                                          \
    ISA static void name(const Input *in, int64_t start, int64_t steps, Scratch *s, int64_t m0, int64_t count) {   \
        int64_t m = m0;                                                                                            \
        for (; m + TILE_ROWS <= m0 + count; m += TILE_ROWS) tile(in, start, steps, s, m, TILE_ROWS, s->sums + m - m0); \
        switch (m0 + count - m) {                                                                                  \
            TILE_CASE(tile, 1) TILE_CASE(tile, 2) TILE_CASE(tile, 3) TILE_CASE(tile, 4) TILE_CASE(tile, 5)         \
        }                                                                                                          \
    }
TILES(float_tiles, tile_floats)
TILES(int8_tiles, tile_int8)
TILES(halves_tiles, tile_halves)

/* Multiply the rows of one panel with input rows [m0, m0 + count). */
ISA INLINE void multiply_panel(const Job *job, int64_t row, int64_t end, int64_t m0, int64_t count, Scratch *s,
                               const enum Format format) {
    const Input *in = job->input;
    const int64_t width = format == INT8 ? 2 : format == GROUPED ? 4 : 1; /* columns per step */
    int64_t columns = format == INT8 ? job->row_bytes : format == GROUPED ? job->row_bytes * 2 : (in->columns + 7) / 8 * 8;
    float by[PANEL_ROWS];
    memset(s->sums, 0, (size_t)count * sizeof s->sums[0]);
    for (int64_t start = 0; start < columns; start += STEPS * width) {
        int64_t left = (columns - start) / width, steps = left < STEPS ? left : STEPS;
        if (format == INT8) {
            pack_int8(job, row, end, start, steps, s->panel);
            int8_tiles(in, start, steps, s, m0, count);
        } else if (format == GROUPED) {
            pack_halves(job, row, end, start, steps, s->panel);
            pack_scales(job, row, end, start / GROUP, steps / GROUP_STEPS, s);
            halves_tiles(in, start, steps, s, m0, count);
        } else {
            pack_floats(job, row, end, start, steps, s->panel, format);
            float_tiles(in, start, steps, s, m0, count);
        }
    }
    for (int i = 0; i < PANEL_ROWS; i++)
        by[i] = format == INT8 ? ((const float *)job->scales)[row + i < end ? row + i : end - 1] : 1.0f;
    put_sums(job, row, end, m0, count, s, by);
}

ISA INLINE void panels(const Job *job, int64_t begin, int64_t end, uint8_t *scratch, const enum Format format) {
    for (int64_t row = begin; row < end; row += PANEL_ROWS)
        for (int64_t m0 = 0; m0 < job->input->m; m0 += PANEL_SUMS) {
            int64_t left = job->input->m - m0;
            multiply_panel(job, row, end, m0, left < PANEL_SUMS ? left : PANEL_SUMS, (Scratch *)scratch, format);
        }
}
