/* A Mamba-2 layer for one token in one call: projections -> causal convolution of x, b and c -> state space step -> gate
 * and norm -> output projection. Intermediate results are rounded to the type of x wherever torch does. */
#include "gated.h"
#include "gated_norm.h"
#include "norms.h"
#include "recurrent.h"

/* All fields have 8 bytes. A row of projections consists of the gate [heads][dim], x likewise, b and c [groups][states],
 * and the step of each head. */
struct StateLayer {
    int64_t hidden, heads, groups, dim, states, taps, norm_first;
    double factor; /* of the layer's input */
    int64_t in[PART_FIELDS];
    const float *factors;       /* of a row of projections, or NULL */
    const float *weight, *bias; /* of the convolution */
    const float *shift, *rate;  /* [heads]: step = softplus(step + shift), decay = exp(rate * step) */
    const float *skip;          /* [heads] */
    NormOf norm;                /* of each group's columns; without it, the gate alone */
    int64_t out[PART_FIELDS];
};

static int64_t values_of(const StateLayer *l) { return l->heads * l->dim; }

static int64_t channels_of(const StateLayer *l) { return values_of(l) + 2 * l->groups * l->states; }

static int64_t row_of(const StateLayer *l) { return values_of(l) + channels_of(l) + l->heads; }

/* to[i] = x[i] * factors[i], or * factor if there are none. */
INLINE void multiply_by(const void *x, const float *factors, float factor, void *to, int64_t count, const int type) {
    SIMD
    for (int64_t i = 0; i < count; i++) store(to, i, widened(x, i, type) * (factors ? factors[i] : factor), type);
}

/* Compute step and decay [heads] from the steps of a row of projections. */
INLINE void decide(const StateLayer *l, const void *given, float *step, float *decay, const int type) {
    for (int64_t i = 0; i < l->heads; i++) {
        float shifted = rounded(widened(given, i, type) + l->shift[i], type);
        step[i] = rounded(softplus(shifted), type);
        decay[i] = expf(l->rate[i] * step[i]);
    }
}

typedef struct {
    void (*multiply)(const void *x, const float *factors, float factor, void *to, int64_t count, int type);
    void (*gate)(const void *gate, const void *up, void *to, int64_t count, int64_t activation, int type);
    OpenGroups *open;
} Loops;

#define LOOPS(name, isa)                                                                                              \
    isa static void name##_multiply(const void *x, const float *factors, float factor, void *to, int64_t count,       \
                                    int type) {                                                                       \
        if (type == TYPE_F32) multiply_by(x, factors, factor, to, count, TYPE_F32);                                   \
        else multiply_by(x, factors, factor, to, count, TYPE_BF16);                                                   \
    }                                                                                                                 \
    GATE_LOOP(name, isa)                                                                                              \
    OPEN_GROUPS(name##_open, isa)                                                                                     \
    static const Loops name = {name##_multiply, name##_gate, name##_open};
#include "loops.h"

/* The bytes of scratch memory that state_layer needs. */
int64_t state_layer_bytes(const StateLayer *l, int type) {
    int64_t item = item_bytes(type), floats = 2 * aligned(l->heads * 4) + aligned(2 * l->groups * l->states * 4);
    int64_t rows = aligned(l->hidden * item) + aligned(row_of(l) * item) + aligned(channels_of(l) * item);
    return aligned(any_input_bytes(1, most(l->hidden, values_of(l)))) + rows + aligned(values_of(l) * item) + floats;
}

/* Multiply x with its factor and the projections of x [hidden] with theirs, into `wide`; `spare`: [hidden]. */
static void project(const Run *r, const StateLayer *l, const void *x, uint8_t *spare, uint8_t *prepared, uint8_t *wide) {
    const Loops *loops = loops_of(r->isa);
    if (l->factor != 1) {
        loops->multiply(x, NULL, (float)l->factor, spare, l->hidden, r->type);
        x = spare;
    }
    product(r, 1, l->in, x, l->hidden, prepared, wide);
    if (l->factors) loops->multiply(wide, l->factors, 1, wide, row_of(l), r->type);
}

/* Gate x [heads][dim], and normalise it if the layer has a norm. */
static void open_values(const Run *r, const StateLayer *l, void *x, const void *gate) {
    const NormOf *n = &l->norm;
    if (!n->gain) {
        loops_of(r->isa)->gate(gate, x, x, values_of(l), SILU, r->type);
        return;
    }
    int64_t columns = values_of(l) / l->groups;
    Gated groups = {l->groups, columns, n->gain, columns, (float)n->eps, (int)n->rounded, (int)l->norm_first};
    loops_of(r->isa)->open(&groups, x, gate, r->type);
}

/* x and out: [hidden] of `type`, fp32 or bf16; scratch: state_layer_bytes, 64-byte aligned. */
void state_layer(int isa, const StateLayer *l, const void *x, int type, const Memory *memory, void *out, void *scratch,
                 int threads) {
    Run r = {isa, type, threads, 1};
    int64_t channels = channels_of(l), values = values_of(l), shared = l->groups * l->states;
    uint8_t *at = scratch, *prepared = taken(&at, any_input_bytes(1, most(l->hidden, values)));
    uint8_t *spare = taken(&at, size_of(&r, l->hidden)), *gate = taken(&at, size_of(&r, row_of(l)));
    uint8_t *given = gate + size_of(&r, values), *steps = given + size_of(&r, channels);
    uint8_t *mixed = taken(&at, size_of(&r, channels)), *seen = taken(&at, size_of(&r, values));
    float *step = (float *)taken(&at, l->heads * 4), *decay = (float *)taken(&at, l->heads * 4);
    float *wide = (float *)taken(&at, 2 * shared * 4);

    project(&r, l, x, spare, prepared, gate);
    Convolution c = {1, channels, channels, memory->kept_rows, l->taps, 1, memory->kept, given, l->weight, l->bias, mixed, type};
    hetegen_convolve(isa, &c, 1);
    if (type == TYPE_F32) decide(l, steps, step, decay, TYPE_F32);
    else decide(l, steps, step, decay, TYPE_BF16);
    const uint8_t *b = mixed + size_of(&r, values);
    Scan s = {1, l->heads, l->groups, l->dim, l->states, channels, channels, channels, mixed, b, b + size_of(&r, shared),
              step, decay, l->skip, memory->state, memory->state, seen, wide, type, type};
    hetegen_state_scan(isa, &s, threads);
    open_values(&r, l, seen, gate);
    product(&r, 1, l->out, seen, values, prepared, out);
}
