/* Attention for AVX-512, for head dimensions that are multiples of 16 (all common ones): keys and values are widened as
 * they are loaded, four query rows share each load, and sixteen dot products are reduced across lanes at once. */
#include "attention.h"

#if defined(HETEGEN_X86)
#include "avx512.h"

/* The most registers for a row's values; longer rows are processed in strips of STRIP_LANES registers. */
enum { MOST_VALUE_LANES = 16, STRIP_LANES = 4 };

int attention_suits_avx512(const Shape *n) {
    int wide = n->value_dim > 16 * MOST_VALUE_LANES;
    return n->dim % 16 == 0 && n->value_dim % (wide ? 16 * STRIP_LANES : 16) == 0;
}

/* Load sixteen values from column `d` on of a row of `dim` columns, which starts at element `row`. */
AVX512 INLINE __m512 load_sixteen(const void *from, int64_t row, int64_t d, int64_t dim, const int type) {
    if (type == TYPE_F32) return _mm512_loadu_ps((const float *)from + row + d);
    if (type == TYPE_PACKED) {
        const int8_t *packed = (const int8_t *)from + row;
        __m512 values = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(packed + d))));
        return _mm512_mul_ps(values, _mm512_set1_ps(scale_of(packed, dim, d)));
    }
    __m256i bits = _mm256_loadu_si256((const __m256i *)((const uint16_t *)from + row + d));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

/* Dot products of four query rows with four keys from `k` on; past the ends the last row and key are repeated. */
AVX512 INLINE void score_block(const Attention *a, const Task *t, int64_t row, int64_t k, int64_t keys, int64_t first,
                            const int type) {
    int64_t last_row = task_rows(&a->n) - row - 1, last_key = keys - first - 1;
    const float *q[4];
    int64_t at[4];
    __m512 dots[16];
    UNROLL for (int i = 0; i < 4; i++) {
        q[i] = t->q + (row + (i < last_row ? i : last_row)) * a->n.dim;
        at[i] = k + (first + (i < last_key ? i : last_key)) * a->n.k_row;
    }
    UNROLL for (int i = 0; i < 16; i++) dots[i] = _mm512_setzero_ps();
    for (int64_t d = 0; d < a->n.dim; d += 16) {
        __m512 key[4];
        UNROLL for (int j = 0; j < 4; j++) key[j] = load_sixteen(a->k, at[j], d, a->n.dim, type);
        UNROLL for (int i = 0; i < 4; i++) {
            __m512 query = _mm512_loadu_ps(q[i] + d);
            UNROLL for (int j = 0; j < 4; j++) dots[i * 4 + j] = _mm512_fmadd_ps(query, key[j], dots[i * 4 + j]);
        }
    }
    __m512 sums = add_across(dots);
    float *scores = t->scores + row * TILE_KEYS + first;
    UNROLL for (int i = 0; i < 4; i++) {
        if (i > last_row) break;
        _mm_storeu_ps(scores + i * TILE_KEYS, _mm512_castps512_ps128(sums));
        sums = _mm512_shuffle_f32x4(sums, sums, 0x39);
    }
}

/* Add the weighted values of a tile to R rows, C registers of sixteen columns each, from column `first` of `dim` on. */
AVX512 INLINE void add_block(const Attention *a, const Task *t, int64_t row, int64_t v, int64_t count, const int R,
                          const int C, const int64_t first, const int64_t dim, const int type) {
    __m512 sum[16];
    UNROLL for (int i = 0; i < R; i++) UNROLL for (int c = 0; c < C; c++)
        sum[i * C + c] = _mm512_loadu_ps(t->values + (row + i) * dim + first + c * 16);
    for (int64_t key = 0; key < count; key++) {
        __m512 value[16];
        UNROLL for (int c = 0; c < C; c++)
            value[c] = load_sixteen(a->v, v + key * a->n.v_row, first + c * 16, dim, type);
        UNROLL for (int i = 0; i < R; i++) {
            __m512 weight = _mm512_set1_ps(t->scores[(row + i) * TILE_KEYS + key]);
            UNROLL for (int c = 0; c < C; c++) sum[i * C + c] = _mm512_fmadd_ps(weight, value[c], sum[i * C + c]);
        }
    }
    UNROLL for (int i = 0; i < R; i++) UNROLL for (int c = 0; c < C; c++)
        _mm512_storeu_ps(t->values + (row + i) * dim + first + c * 16, sum[i * C + c]);
}

/* Add values with more columns than the specialised cases below handle, strip by strip. */
AVX512 INLINE void add_strips(const Attention *a, const Task *t, int64_t v, int64_t count, const int type) {
    int64_t rows = task_rows(&a->n), dim = a->n.value_dim;
    for (int64_t first = 0; first < dim; first += 16 * STRIP_LANES) {
        int64_t row = 0;
        for (; row + 4 <= rows; row += 4) add_block(a, t, row, v, count, 4, STRIP_LANES, first, dim, type);
        for (; row < rows; row++) add_block(a, t, row, v, count, 1, STRIP_LANES, first, dim, type);
    }
}

#define ADD_CASE(C, R)                                                                           \
    case C:                                                                                      \
        for (; row + R <= rows; row += R) add_block(a, t, row, v, count, R, C, 0, C * 16, type); \
        for (; row < rows; row++) add_block(a, t, row, v, count, 1, C, 0, C * 16, type);         \
        break;
AVX512 INLINE void add_tile(const Attention *a, const Task *t, int64_t v, int64_t count, const int type) {
    int64_t row = 0, rows = task_rows(&a->n);
    if (a->n.value_dim > 16 * MOST_VALUE_LANES) {
        add_strips(a, t, v, count, type);
        return;
    }
    switch (a->n.value_dim / 16) {
        ADD_CASE(1, 4) ADD_CASE(2, 4) ADD_CASE(3, 4) ADD_CASE(4, 4) ADD_CASE(5, 2) ADD_CASE(6, 2) ADD_CASE(7, 2)
        ADD_CASE(8, 2) ADD_CASE(9, 1) ADD_CASE(10, 1) ADD_CASE(11, 1) ADD_CASE(12, 1) ADD_CASE(13, 1) ADD_CASE(14, 1)
        ADD_CASE(15, 1) ADD_CASE(16, 1)
    }
}

#define VECTOR AVX512
#define SCORED_KEYS 4
#include "attention_tile.h"

AVX512 void attention_task_avx512(const Attention *a, int64_t index) {
    if (a->n.packed) run_task(a, index, TYPE_PACKED);
    else if (a->type == TYPE_F32) run_task(a, index, TYPE_F32);
    else run_task(a, index, TYPE_BF16);
}

#else
int attention_suits_avx512(const Shape *n) {
    (void)n;
    return 0;
}
void attention_task_avx512(const Attention *a, int64_t index) {
    (void)a;
    (void)index;
}
#endif
