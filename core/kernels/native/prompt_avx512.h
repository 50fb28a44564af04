/* The vector functions of prompt_tile.h for AVX-512. The including file defines VECTOR. */
#include <immintrin.h>

typedef __m512 Vec;
enum { LANES = 16, ROW_VECTORS = 4, AT_ONCE = 4 };
/* For fixupimm: take NaN from the input, and all else as it was. */
enum { KEEP_NAN = 0x22 };

VECTOR INLINE Vec load(const float *at) { return _mm512_loadu_ps(at); }
VECTOR INLINE void store(float *at, Vec v) { _mm512_storeu_ps(at, v); }
VECTOR INLINE Vec set(float x) { return _mm512_set1_ps(x); }
VECTOR INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
VECTOR INLINE Vec subtract(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
VECTOR INLINE Vec multiply(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
VECTOR INLINE Vec divide(Vec a, Vec b) { return _mm512_div_ps(a, b); }

/* The second one if either is NaN. */
VECTOR INLINE Vec larger(Vec a, Vec b) { return _mm512_max_ps(a, b); }

/* 2^x within two units in the last place. */
VECTOR INLINE Vec power(Vec x) {
    Vec whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), rest = _mm512_sub_ps(x, whole);
    Vec p = set(POWER_5);
    p = _mm512_fmadd_ps(p, rest, set(POWER_4));
    p = _mm512_fmadd_ps(p, rest, set(POWER_3));
    p = _mm512_fmadd_ps(p, rest, set(POWER_2));
    p = _mm512_fmadd_ps(p, rest, set(POWER_1));
    p = _mm512_fmadd_ps(p, rest, set(1));
    return _mm512_scalef_ps(p, whole);
}

/* e^x for weights that are rounded to bf16; 0 for x < LEAST_EXPONENT, NaN for NaN. */
VECTOR INLINE Vec quick_exponential(Vec x) {
    Vec y = multiply(x, set(LOG2_E)), rest = _mm512_sub_ps(y, _mm512_roundscale_ps(y, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC));
    Vec bend = _mm512_fmadd_ps(rest, set(BEND_3), set(BEND_2));
    bend = _mm512_fmadd_ps(rest, _mm512_fmadd_ps(rest, bend, set(BEND_1)), set(BEND_0));
    y = _mm512_fmadd_ps(set(MANTISSA), _mm512_sub_ps(y, bend), set(127 * MANTISSA));
    __mmask16 counts = _mm512_cmp_ps_mask(x, set(LEAST_EXPONENT), _CMP_GE_OQ);
    return _mm512_fixupimm_ps(_mm512_castsi512_ps(_mm512_maskz_cvttps_epi32(counts, y)), x, _mm512_set1_epi32(KEEP_NAN), 0);
}

/* Scores of a key for rows that see the keys [begin, end). */
VECTOR INLINE Vec keep(Vec scores, int key, const int32_t *begin, const int32_t *end) {
    __m512i at = _mm512_set1_epi32(key);
    __mmask16 seen = _mm512_cmple_epi32_mask(_mm512_loadu_si512(begin), at);
    return _mm512_mask_mov_ps(set(MASKED), _mm512_mask_cmplt_epi32_mask(seen, at, _mm512_loadu_si512(end)), scores);
}
