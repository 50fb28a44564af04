/* The interface of recurrent.c: a causal convolution, and the gated delta rule. */
#ifndef HETEGEN_RECURRENT_H
#define HETEGEN_RECURRENT_H

#include "calls.h"
#include "elements.h"

/* The rows before x are those of `kept`, and zero before these. Afterwards `kept` has the last rows of both. */
typedef struct {
    int64_t rows, channels, stride, kept_rows, taps, silu; /* stride: elements from one row of x to the next */
    void *kept;                                            /* [kept_rows][channels] */
    const void *x;
    const float *weight, *bias; /* [taps][channels], [channels] or NULL */
    void *out;                  /* [rows][channels] */
    int type;
} Convolution;

/* For each value head: S = decay S; S += k (beta (v - S'k))'; out = S'q. Strides are elements between tokens. */
typedef struct {
    int64_t rows, key_heads, value_heads, key_dim, value_dim, q_stride, k_stride, v_stride;
    const void *q, *k, *v;
    const float *decay, *beta; /* [rows][value_heads] */
    const float *before;       /* [value_heads][key_dim][value_dim], NULL = zeros */
    float *after;              /* the same; may be `before` */
    void *out;                 /* [rows][value_heads][value_dim] */
    float *keys;               /* scratch: [rows][key_heads][2][key_dim], normalised q and k */
    int type;
} Delta;

EXPORT void hetegen_convolve(int isa, const Convolution *c, int threads);
EXPORT void hetegen_delta_rule(int isa, const Delta *d, int threads);

#endif
