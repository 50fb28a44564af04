/* float8 weights on NEON, widened to floats as they are read. Included in neon.c. */

/* Widen sixteen weights to floats, too small by the factor FLOAT8_UNIT. */
ISA INLINE void widen_float8(const uint8_t *at, float32x4_t w[4]) {
    int8x16_t bytes = vld1q_s8((const int8_t *)at);
    for (int h = 0; h < 2; h++) {
        int16x8_t words = vshlq_n_s16(vmovl_s8(h ? vget_high_s8(bytes) : vget_low_s8(bytes)), 7);
        float16x8_t halves = vreinterpretq_f16_u16(vandq_u16(vreinterpretq_u16_s16(words), vdupq_n_u16(0xbf80)));
        w[h * 2] = vcvt_f32_f16(vget_low_f16(halves));
        w[h * 2 + 1] = vcvt_f32_f16(vget_high_f16(halves));
    }
}

ISA INLINE void float8_few(const Job *job, int64_t row, int64_t m0, const int M) {
    const Input *in = job->input;
    const uint8_t *at = job->weights + row * job->stride;
    float32x4_t even[FEW_ROWS], odd[FEW_ROWS];
    for (int m = 0; m < M; m++) even[m] = odd[m] = vdupq_n_f32(0);
    for (int64_t b = 0; b < job->row_bytes / 16; b++) {
        const float *x = in->floats + (b * in->m + m0) * 16;
        const float scale = float8_scale(job, row, b * 16 / FLOAT8_GROUP);
        float32x4_t w[4];
        widen_float8(at + b * 16, w);
        for (int i = 0; i < 4; i++) w[i] = vmulq_n_f32(w[i], scale);
        for (int m = 0; m < M; m++) {
            for (int i = 0; i < 4; i += 2) {
                even[m] = vfmaq_f32(even[m], w[i], vld1q_f32(x + m * 16 + i * 4));
                odd[m] = vfmaq_f32(odd[m], w[i + 1], vld1q_f32(x + m * 16 + i * 4 + 4));
            }
        }
    }
    for (int m = 0; m < M; m++) put(job, m0 + m, row, vaddvq_f32(vaddq_f32(even[m], odd[m])));
}
