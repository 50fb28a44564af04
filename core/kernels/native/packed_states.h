/* 8-bit keys and values: a row of `dim` columns is `dim` bytes, then a bf16 scale for each 32 of them.
 *
 * A few columns of keys are far larger than the rest and would take all the precision of their group. Keys therefore go
 * through a Hadamard transform, which spreads each column over all and preserves dot products with queries that are
 * transformed alike. */
#ifndef HETEGEN_PACKED_STATES_H
#define HETEGEN_PACKED_STATES_H

#include "kernels.h"

enum { STATE_GROUP = 32 };

INLINE int64_t packed_bytes(int64_t dim) { return dim + (dim + STATE_GROUP - 1) / STATE_GROUP * 2; }

/* The scale of column `d`. */
INLINE float scale_of(const int8_t *row, int64_t dim, int64_t d) {
    uint16_t bits;
    memcpy(&bits, row + dim + d / STATE_GROUP * 2, 2);
    return bf16_to_float(bits);
}

INLINE void widen_packed(const int8_t *row, int64_t dim, float *to) {
    for (int64_t begin = 0; begin < dim; begin += STATE_GROUP) {
        int64_t end = begin + STATE_GROUP < dim ? begin + STATE_GROUP : dim;
        float scale = scale_of(row, dim, begin);
        for (int64_t d = begin; d < end; d++) to[d] = (float)row[d] * scale;
    }
}

/* The number of columns that are mixed with each other: the largest power of two that divides `dim`. */
INLINE int64_t mixed_columns(int64_t dim) { return dim & -dim; }

/* The orthonormal Hadamard transform of each run of mixed_columns; it is its own inverse. */
INLINE void mix(float *x, int64_t dim) {
    int64_t size = mixed_columns(dim);
    float norm = 1.0f / sqrtf((float)size);
    for (int64_t half = 1; half < size; half *= 2)
        for (int64_t at = 0; at < dim; at += 2 * half)
            for (int64_t i = at; i < at + half; i++) {
                float low = x[i], high = x[i + half];
                x[i] = low + high;
                x[i + half] = low - high;
            }
    for (int64_t d = 0; d < dim; d++) x[d] *= norm;
}

#endif
