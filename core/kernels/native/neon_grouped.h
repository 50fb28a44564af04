/* Grouped weights on NEON, one loop for all layouts. Included in neon.c. Scales of any type are widened to floats for
 * 128 columns at a time. */

/* Four scales from group g on as floats; fine ones share one factor. */
ISA INLINE float32x4_t four_scales(const RowScales *s, const Layout *l, int64_t g) {
    if (l->spread > 1) return vdupq_n_f32(((const float *)s->each)[g / l->spread]);
    if (l->scale == SCALE_F32) return vld1q_f32((const float *)s->each + g);
    if (l->scale != SCALE_FINE) return widen((const uint16_t *)s->each + g, l->scale == SCALE_F16 ? F16 : BF16);
    uint16_t factor;
    uint8_t bytes[8] = {0};
    memcpy(bytes, s->each + g, 4);
    memcpy(&factor, s->coarse + g * l->group / COARSE * 2, 2);
    int32x4_t fine = vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(vld1_u8(bytes)))));
    return vmulq_n_f32(vcvtq_f32_s32(fine), f16_to_float(factor));
}

/* The scales and minimums of 128 columns. */
typedef struct {
    float scales[8], minimums[8];
} PairScales;

ISA INLINE void widen_pair(const RowScales *scales, const RowScales *minimums, const Layout *l, int64_t g, PairScales *to) {
    for (int i = 0; i < 128 / l->group; i += 4) {
        vst1q_f32(to->scales + i, four_scales(scales, l, g + i));
        vst1q_f32(to->minimums + i, l->minimum ? four_scales(minimums, l, g + i) : vdupq_n_f32(0));
    }
}

/* Unpack the 128 columns of pair p of a row as signed bytes. */
ISA INLINE void unpack_pair(const uint8_t *row, int64_t p, const Layout *l, int8x16_t w[8]) {
    if (l->values == SIGNED_BYTES) {
        for (int i = 0; i < 8; i++) w[i] = vld1q_s8((const int8_t *)row + p * 128 + i * 16);
        return;
    }
    const uint8_t *from = row + p * pair_bytes(l);
    uint8x16_t book = vld1q_u8(CODE_BOOKS[l->book]);
    int8x16_t zero = vdupq_n_s8((int8_t)(l->values == CODES ? 0 : l->zero));
    for (int q = 0; q < 4; q++) {
        uint8x16_t both = vld1q_u8(from + q * 16), halves[2] = {vandq_u8(both, vdupq_n_u8(15)), vshrq_n_u8(both, 4)};
        for (int half = 0; half < 2; half++) {
            if (l->values == CODES) halves[half] = veorq_u8(vqtbl1q_u8(book, halves[half]), vdupq_n_u8(0x80));
            if (l->values == SIXES) {
                uint8x16_t four = vshlq_u8(vld1q_u8(from + 64 + half * 16), vdupq_n_s8((int8_t)(4 - q * 2)));
                halves[half] = vorrq_u8(halves[half], vandq_u8(four, vdupq_n_u8(0x30)));
            }
            w[q * 2 + half] = vsubq_s8(vreinterpretq_s8_u8(halves[half]), zero);
        }
    }
}

/* 32 columns: two products of sixteen, each times its scale, and the minimums times the sums of the input. */
ISA INLINE float32x4_t grouped_dot(const int8x16_t *w, const int8_t *x, const float *scales, const float *minimums,
                                   const int group, const int minimum) {
    int8x16_t x0 = vld1q_s8(x), x1 = vld1q_s8(x + 16), one = vdupq_n_s8(1);
    int32x4_t zero = vdupq_n_s32(0);
    float32x4_t first = vcvtq_f32_s32(vdotq_s32(zero, w[0], x0)), second = vcvtq_f32_s32(vdotq_s32(zero, w[1], x1));
    float32x4_t sum = vfmaq_n_f32(vmulq_n_f32(first, scales[0]), second, scales[group == 16]);
    if (!minimum) return sum;
    sum = vfmaq_n_f32(sum, vcvtq_f32_s32(vdotq_s32(zero, one, x0)), minimums[0]);
    return vfmaq_n_f32(sum, vcvtq_f32_s32(vdotq_s32(zero, one, x1)), minimums[group == 16]);
}

ISA INLINE void grouped_few(const Job *job, int64_t row, int64_t m0, const int M) {
    const Input *in = job->input;
    const Layout l = layout_of(job->format);
    const uint8_t *at = job->weights + row * job->stride;
    const RowScales scales = row_scales(job, &l, row, 0), minimums = row_scales(job, &l, row, 1);
    float32x4_t sum[FEW_ROWS];
    for (int m = 0; m < M; m++) sum[m] = vdupq_n_f32(0);
    for (int64_t pair = 0; pair < in->blocks / 2; pair++) {
        int8x16_t w[8];
        PairScales own;
        widen_pair(&scales, &minimums, &l, pair * 128 / l.group, &own);
        unpack_pair(at, pair, &l, w);
        for (int q = 0; q < 4; q++) {
            int64_t cell = (pair * 2 + q / 2) * in->m + m0, first = q * (GROUP / l.group);
            for (int m = 0; m < M; m++) {
                const int8_t *x = in->q + (cell + m) * BLOCK + q % 2 * GROUP;
                float32x4_t dot = grouped_dot(w + q * 2, x, own.scales + first, own.minimums + first, l.group, l.minimum);
                sum[m] = vfmaq_n_f32(sum[m], dot, in->scales[(cell + m) * 2 + q % 2]);
            }
        }
    }
    for (int m = 0; m < M; m++) put(job, m0 + m, row, vaddvq_f32(sum[m]));
}
