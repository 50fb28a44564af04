/* The element-wise loops of a gated MLP. */
#ifndef HETEGEN_GATED_H
#define HETEGEN_GATED_H

#include "elements.h"

/* to[i] = a[i] + factor * b[i] */
INLINE void add_all(const void *a, const void *b, float factor, void *to, int64_t count, const int type) {
    SIMD
    for (int64_t i = 0; i < count; i++) store(to, i, widened(a, i, type) + rounded(factor * widened(b, i, type), type), type);
}

/* to[i] = activation(gate[i]) * up[i] */
INLINE void gate_all(const void *gate, const void *up, void *to, int64_t count, const int64_t activation, const int type) {
    SIMD
    for (int64_t i = 0; i < count; i++) {
        float open = rounded(activated(widened(gate, i, type), activation), type);
        store(to, i, open * widened(up, i, type), type);
    }
}

/* x[i] *= factor */
INLINE void multiply_all(void *x, float factor, int64_t count, const int type) {
    SIMD
    for (int64_t i = 0; i < count; i++) store(x, i, factor * widened(x, i, type), type);
}

/* The loops specialised by type, as part of a file's LOOPS, which loops.h compiles for each instruction set. */
#define GATE_BY(type)                                                                                           \
    if (activation == SILU) gate_all(gate, up, to, count, SILU, type);                                          \
    else if (activation == SIGMOID) gate_all(gate, up, to, count, SIGMOID, type);                               \
    else gate_all(gate, up, to, count, GELU_TANH, type);
#define GATE_LOOP(name, isa)                                                                                    \
    isa static void name##_gate(const void *gate, const void *up, void *to, int64_t count, int64_t activation,  \
                                int stored) {                                                                   \
        if (stored == TYPE_F32) { GATE_BY(TYPE_F32) }                                                           \
        else { GATE_BY(TYPE_BF16) }                                                                             \
    }
#define GATED_LOOPS(name, isa)                                                                                  \
    isa static void name##_add(const void *a, const void *b, float factor, void *to, int64_t count, int type) { \
        if (type == TYPE_F32) add_all(a, b, factor, to, count, TYPE_F32);                                       \
        else add_all(a, b, factor, to, count, TYPE_BF16);                                                       \
    }                                                                                                           \
    GATE_LOOP(name, isa)
#define MULTIPLY_LOOP(name, isa)                                                                                \
    isa static void name##_multiply(void *x, float factor, int64_t count, int type) {                           \
        if (type == TYPE_F32) multiply_all(x, factor, count, TYPE_F32);                                         \
        else multiply_all(x, factor, count, TYPE_BF16);                                                         \
    }

#endif
