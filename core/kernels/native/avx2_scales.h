/* The scales of grouped weights on AVX2, of any type, widened to floats for one strip of columns at a time. Included in
 * avx2_kernels.h. */

enum { STRIP_GROUPS = SCALE_STRIP / 16 };

typedef struct {
    float scales[STRIP_GROUPS], shifts[STRIP_GROUPS]; /* shift = minimum - zero * scale */
} Strip;

/* Broadcast the factor that the fine scales around group g share. */
ISA INLINE __m128 coarse_factor(const RowScales *s, const Layout *l, int64_t g) {
    uint16_t factor;
    memcpy(&factor, s->coarse + g * l->group / COARSE * 2, 2);
    return _mm_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(factor)));
}

/* Eight scales from group g on as floats, zeros past the end. Fine scales here share one factor. */
ISA INLINE __m256 eight_scales(const RowScales *s, const Layout *l, int64_t g) {
    static const int SIZES[4] = {2, 2, 4, 1};
    uint8_t last[32] = {0};
    if (l->spread > 1) {
        const float *two = (const float *)s->each + g / l->spread;
        return _mm256_set_m128(_mm_set1_ps(s->groups - g / l->spread > 1 ? two[1] : 0), _mm_set1_ps(two[0]));
    }
    const uint8_t *from = s->each + g * SIZES[l->scale];
    if (s->groups - g < 8) from = memcpy(last, from, (size_t)((s->groups - g) * SIZES[l->scale]));
    if (l->scale == SCALE_F32) return _mm256_loadu_ps((const float *)from);
    if (l->scale != SCALE_FINE) return widen((const uint16_t *)from, l->scale == SCALE_F16 ? F16 : BF16);
    __m256 fine = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)));
    return _mm256_mul_ps(fine, _mm256_broadcastss_ps(coarse_factor(s, l, g)));
}

/* The offset that makes values unsigned for the multiplier. */
INLINE int shifted_by(const Layout *l) { return l->values == HALVES || l->values == SIXES ? l->zero : SHIFTED ? 128 : 0; }

ISA INLINE void widen_strip(const Job *job, const Layout *l, int64_t row, int64_t g, Strip *strip) {
    RowScales scales = row_scales(job, l, row, 0), minimums = row_scales(job, l, row, 1);
    __m256 zero = _mm256_set1_ps((float)shifted_by(l));
    for (int64_t i = 0; i < SCALE_STRIP / l->group && g + i < scales.groups * l->spread; i += 8) {
        __m256 scale = eight_scales(&scales, l, g + i);
        __m256 low = l->minimum ? eight_scales(&minimums, l, g + i) : _mm256_setzero_ps();
        _mm256_storeu_ps(strip->scales + i, scale);
        _mm256_storeu_ps(strip->shifts + i, _mm256_fnmadd_ps(zero, scale, low));
    }
}
