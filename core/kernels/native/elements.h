/* Element access for states of fp32 or bf16, and activation functions. */
#ifndef HETEGEN_ELEMENTS_H
#define HETEGEN_ELEMENTS_H

#include "attention.h"

enum Activation { SILU = 0, GELU_TANH = 1, CLAMPED = 2, RELU_SQUARED = 3, SIGMOID = 4 };

INLINE float widened(const void *x, int64_t i, const int type) {
    return type == TYPE_F32 ? ((const float *)x)[i] : bf16_to_float(((const uint16_t *)x)[i]);
}

INLINE float rounded(float value, const int type) { return type == TYPE_F32 ? value : bf16_to_float(round_bf16(value)); }

INLINE void store(void *x, int64_t i, float value, const int type) {
    if (type == TYPE_F32) ((float *)x)[i] = value;
    else ((uint16_t *)x)[i] = round_bf16(value);
}

INLINE int64_t item_bytes(const int type) { return type == TYPE_F32 ? 4 : 2; }

INLINE float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

INLINE float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

INLINE float activated(float x, const int64_t activation) {
    if (activation == SILU) return x / (1.0f + exponential(-x));
    if (activation == SIGMOID) return 1.0f / (1.0f + exponential(-x));
    float inner = 0.7978845608f * (x + 0.044715f * x * x * x);
    return 0.5f * x * (2.0f - 2.0f / (exponential(2.0f * inner) + 1.0f));
}

#endif
