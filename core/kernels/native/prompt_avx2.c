/* Attention of many query rows with AVX2, in floats. */
#include "prompt_attention.h"

#if defined(HETEGEN_X86)
#include <immintrin.h>

#define VECTOR TARGET("avx2,fma")
#define PAIRED 0

typedef __m256 Vec;
enum { LANES = 8, ROW_VECTORS = 2, AT_ONCE = 4 };

VECTOR INLINE Vec load(const float *at) { return _mm256_loadu_ps(at); }
VECTOR INLINE void store(float *at, Vec v) { _mm256_storeu_ps(at, v); }
VECTOR INLINE Vec set(float x) { return _mm256_set1_ps(x); }
VECTOR INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
VECTOR INLINE Vec subtract(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
VECTOR INLINE Vec multiply(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
VECTOR INLINE Vec divide(Vec a, Vec b) { return _mm256_div_ps(a, b); }
VECTOR INLINE Vec add_products(Vec sum, Vec rows, Vec cell) { return _mm256_fmadd_ps(rows, cell, sum); }

/* The second one if either is NaN. */
VECTOR INLINE Vec larger(Vec a, Vec b) { return _mm256_max_ps(a, b); }

/* 2^x within two units in the last place; 0 for x < -127. */
VECTOR INLINE Vec power(Vec x) {
    x = _mm256_min_ps(set(127), _mm256_max_ps(set(-127), x));
    Vec whole = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), rest = _mm256_sub_ps(x, whole);
    Vec p = set(POWER_5);
    p = _mm256_fmadd_ps(p, rest, set(POWER_4));
    p = _mm256_fmadd_ps(p, rest, set(POWER_3));
    p = _mm256_fmadd_ps(p, rest, set(POWER_2));
    p = _mm256_fmadd_ps(p, rest, set(POWER_1));
    p = _mm256_fmadd_ps(p, rest, set(1));
    __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(p, _mm256_castsi256_ps(exponent));
}

/* e^x for weights that are rounded to bf16; 0 for x < LEAST_EXPONENT, NaN for NaN. */
VECTOR INLINE Vec quick_exponential(Vec x) {
    Vec y = multiply(x, set(LOG2_E)), rest = _mm256_sub_ps(y, _mm256_floor_ps(y));
    Vec bend = _mm256_fmadd_ps(rest, set(BEND_3), set(BEND_2));
    bend = _mm256_fmadd_ps(rest, _mm256_fmadd_ps(rest, bend, set(BEND_1)), set(BEND_0));
    y = _mm256_fmadd_ps(set(MANTISSA), _mm256_sub_ps(y, bend), set(127 * MANTISSA));
    y = _mm256_and_ps(_mm256_castsi256_ps(_mm256_cvttps_epi32(y)), _mm256_cmp_ps(x, set(LEAST_EXPONENT), _CMP_GE_OQ));
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

/* Round to bf16, to nearest even; NaN stays NaN. */
VECTOR INLINE Vec round_short(Vec v) {
    __m256i bits = _mm256_castps_si256(v), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    bits = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    return _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32((int)0xffff0000)));
}

/* Scores of a key for rows that see the keys [begin, end). */
VECTOR INLINE Vec keep(Vec scores, int key, const int32_t *begin, const int32_t *end) {
    __m256i at = _mm256_set1_epi32(key);
    __m256i before = _mm256_cmpgt_epi32(_mm256_loadu_si256((const __m256i *)begin), at);
    __m256i within = _mm256_cmpgt_epi32(_mm256_loadu_si256((const __m256i *)end), at);
    return _mm256_blendv_ps(set(MASKED), scores, _mm256_castsi256_ps(_mm256_andnot_si256(before, within)));
}

#include "prompt_tile.h"

void prompt_block_avx2(const Block *b) { run_block(b); }

#else
void prompt_block_avx2(const Block *b) { (void)b; }
#endif
