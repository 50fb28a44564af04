/* The interface of recurrent.c: a causal convolution, the gated delta rule, and Mamba-2; the memory of a layer. */
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

/* Mamba-2, for each head: S = decay S + (step x) b'; out = S c + skip x. Strides are elements between tokens. */
typedef struct {
    int64_t rows, heads, groups, dim, states, x_stride, b_stride, c_stride;
    const void *x, *b, *c;
    const float *step, *decay; /* [rows][heads] */
    const float *skip;         /* [heads] or NULL */
    const float *before;       /* [heads][dim][states], NULL = zeros */
    float *after;              /* the same; may be `before` */
    void *out;                 /* [rows][heads][dim] */
    float *wide;               /* scratch: [rows][groups][2][states], b and c in fp32 */
    int type, out_type;
} Scan;

/* A layer's memory: the last [kept_rows] inputs of its convolution, and the state of its recurrence, if it has one. */
typedef struct {
    void *kept;
    int64_t kept_rows;
    float *state;
} Memory;

/* Whole layers for one token: their scratch memory, and the calls; x and out: [hidden] of `type`. */
enum RecurrentKind { DELTA_LAYER = 0, SHORT_LAYER = 1, STATE_LAYER = 2 };
typedef struct DeltaLayer DeltaLayer;
typedef struct ShortLayer ShortLayer;
typedef struct StateLayer StateLayer;
int64_t delta_layer_bytes(const DeltaLayer *l, int type);
int64_t short_layer_bytes(const ShortLayer *l, int type);
int64_t state_layer_bytes(const StateLayer *l, int type);
void delta_layer(int isa, const DeltaLayer *l, const void *x, int type, const Memory *memory, void *out, void *scratch,
                 int threads);
void short_layer(int isa, const ShortLayer *l, const void *x, int type, const Memory *memory, void *out, void *scratch,
                 int threads);
void state_layer(int isa, const StateLayer *l, const void *x, int type, const Memory *memory, void *out, void *scratch,
                 int threads);
EXPORT int64_t hetegen_recurrent_layer_bytes(int kind, const void *layer, int type);
EXPORT void hetegen_recurrent_layer(int isa, int kind, const void *layer, const void *x, int type, const Memory *memory,
                                    void *out, void *scratch, int threads);

EXPORT void hetegen_convolve(int isa, const Convolution *c, int threads);
EXPORT void hetegen_delta_rule(int isa, const Delta *d, int threads);
EXPORT void hetegen_state_scan(int isa, const Scan *s, int threads);

#endif
