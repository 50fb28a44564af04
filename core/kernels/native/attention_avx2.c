/* Attention for AVX2, for head dimensions that are multiples of 8: keys and values are widened as they are loaded, and
 * each load serves four query rows. */
#include "attention.h"

#if defined(HETEGEN_X86)
#include <immintrin.h>

#define AVX2 TARGET("avx2,fma,f16c")

int attention_suits_avx2(const Shape *n) { return n->dim % 8 == 0 && n->value_dim % 8 == 0; }

/* Load eight values from column `d` on of a row of `dim` columns, which starts at element `row`. */
AVX2 INLINE __m256 load_eight(const void *from, int64_t row, int64_t d, int64_t dim, const int type) {
    if (type == TYPE_F32) return _mm256_loadu_ps((const float *)from + row + d);
    if (type == TYPE_PACKED) {
        const int8_t *packed = (const int8_t *)from + row;
        __m256 values = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(packed + d))));
        return _mm256_mul_ps(values, _mm256_set1_ps(scale_of(packed, dim, d)));
    }
    __m128i bits = _mm_loadu_si128((const __m128i *)((const uint16_t *)from + row + d));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

/* Sum the lanes of each of eight registers: lane i of the result is the sum of v[i]. */
AVX2 INLINE __m256 add_across(const __m256 v[8]) {
    __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    __m256 high = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

/* Dot products of four query rows with two keys from `k` on; past the ends the last row and key are repeated. */
AVX2 INLINE void score_block(const Attention *a, const Task *t, int64_t row, int64_t k, int64_t keys, int64_t first,
                             const int type) {
    int64_t last_row = task_rows(&a->n) - row - 1;
    int64_t at = k + first * a->n.k_row, next = first + 1 < keys ? at + a->n.k_row : at;
    const float *q[4];
    __m256 dots[8];
    UNROLL for (int i = 0; i < 4; i++) q[i] = t->q + (row + (i < last_row ? i : last_row)) * a->n.dim;
    UNROLL for (int i = 0; i < 8; i++) dots[i] = _mm256_setzero_ps();
    for (int64_t d = 0; d < a->n.dim; d += 8) {
        __m256 key0 = load_eight(a->k, at, d, a->n.dim, type), key1 = load_eight(a->k, next, d, a->n.dim, type);
        UNROLL for (int i = 0; i < 4; i++) {
            __m256 query = _mm256_loadu_ps(q[i] + d);
            dots[i * 2] = _mm256_fmadd_ps(query, key0, dots[i * 2]);
            dots[i * 2 + 1] = _mm256_fmadd_ps(query, key1, dots[i * 2 + 1]);
        }
    }
    float sums[8];
    _mm256_storeu_ps(sums, add_across(dots));
    for (int i = 0; i < 4 && i <= last_row; i++) memcpy(t->scores + (row + i) * TILE_KEYS + first, sums + i * 2, 8);
}

/* Add the weighted values of a tile to R rows, C registers of eight columns each from column `d` on. */
AVX2 INLINE void add_block(const Attention *a, const Task *t, int64_t row, int64_t v, int64_t count, int64_t d, const int R,
                           const int C, const int type) {
    __m256 sum[8];
    UNROLL for (int i = 0; i < R; i++) UNROLL for (int c = 0; c < C; c++)
        sum[i * C + c] = _mm256_loadu_ps(t->values + (row + i) * a->n.value_dim + d + c * 8);
    for (int64_t key = 0; key < count; key++) {
        __m256 value[2];
        int64_t at = v + key * a->n.v_row;
        UNROLL for (int c = 0; c < C; c++) value[c] = load_eight(a->v, at, d + c * 8, a->n.value_dim, type);
        UNROLL for (int i = 0; i < R; i++) {
            __m256 weight = _mm256_broadcast_ss(t->scores + (row + i) * TILE_KEYS + key);
            UNROLL for (int c = 0; c < C; c++) sum[i * C + c] = _mm256_fmadd_ps(weight, value[c], sum[i * C + c]);
        }
    }
    UNROLL for (int i = 0; i < R; i++) UNROLL for (int c = 0; c < C; c++)
        _mm256_storeu_ps(t->values + (row + i) * a->n.value_dim + d + c * 8, sum[i * C + c]);
}

AVX2 INLINE void add_tile(const Attention *a, const Task *t, int64_t v, int64_t count, const int type) {
    int64_t rows = task_rows(&a->n), row = 0, d;
    for (; row + 4 <= rows; row += 4) {
        for (d = 0; d + 16 <= a->n.value_dim; d += 16) add_block(a, t, row, v, count, d, 4, 2, type);
        if (d < a->n.value_dim) add_block(a, t, row, v, count, d, 4, 1, type);
    }
    for (; row < rows; row++) {
        for (d = 0; d + 16 <= a->n.value_dim; d += 16) add_block(a, t, row, v, count, d, 1, 2, type);
        if (d < a->n.value_dim) add_block(a, t, row, v, count, d, 1, 1, type);
    }
}

#define VECTOR AVX2
#define SCORED_KEYS 2
#include "attention_tile.h"

AVX2 void attention_task_avx2(const Attention *a, int64_t index) {
    if (a->n.packed) run_task(a, index, TYPE_PACKED);
    else if (a->type == TYPE_F32) run_task(a, index, TYPE_F32);
    else run_task(a, index, TYPE_BF16);
}

#else
int attention_suits_avx2(const Shape *n) {
    (void)n;
    return 0;
}
void attention_task_avx2(const Attention *a, int64_t index) {
    (void)a;
    (void)index;
}
#endif
