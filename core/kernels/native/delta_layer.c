/* A gated delta rule layer for one token in one call: projections -> causal convolution -> gated delta rule -> norm, times
 * an activated gate -> output projection. Intermediate results are rounded to the type of x wherever torch does. */
#include "gated_norm.h"
#include "norms.h"
#include "recurrent.h"

/* All fields have 8 bytes. A row of projections consists of q [key_heads][key_dim], k likewise, v [value_heads][value_dim],
 * the gate likewise, and for each value head b (write strength) and a (decay). Any rows of weights may produce any range of
 * it: `fields` [parts][PART_FIELDS] as in hetegen_matmul, `places` [parts] with the start of each part's results. */
struct DeltaLayer {
    int64_t hidden, key_heads, value_heads, key_dim, value_dim, taps, parts;
    const int64_t *fields, *places;
    const float *weight, *bias; /* of the convolution of q, k and v */
    const float *rate, *shift;  /* [value_heads]: decay = exp(rate * softplus(a + shift)) */
    NormOf norm;                /* of each head's result */
    int64_t out[PART_FIELDS];
};

static int64_t values_of(const DeltaLayer *l) { return l->value_heads * l->value_dim; }

static int64_t channels_of(const DeltaLayer *l) { return 2 * l->key_heads * l->key_dim + values_of(l); }

/* Compute decay and beta [value_heads] from b and a, which start at `taken_over` in a row of projections. */
INLINE void decide(const DeltaLayer *l, const void *taken_over, float *decay, float *beta, const int type) {
    for (int64_t i = 0; i < l->value_heads; i++) {
        float forgotten = widened(taken_over, l->value_heads + i, type);
        beta[i] = rounded(sigmoid(widened(taken_over, i, type)), type);
        decay[i] = expf(l->rate[i] * softplus(forgotten + l->shift[i]));
    }
}

typedef struct {
    OpenGroups *open;
} Loops;

#define LOOPS(name, isa)           \
    OPEN_GROUPS(name##_open, isa)  \
    static const Loops name = {name##_open};
#include "loops.h"

/* Compute a row of projections; consecutive parts that take the same kind of input are multiplied in one call. */
static void multiply(const Run *r, const DeltaLayer *l, const void *x, uint8_t *prepared, Part *parts, uint8_t *wide) {
    for (int64_t first = 0, next; first < l->parts; first = next) {
        int kind = kind_of(r, l->fields + first * PART_FIELDS);
        Input in;
        hetegen_prepare(r->isa, x, r->type, 1, l->hidden, l->hidden, prepared, kind, 1);
        lay_out(prepared, 1, l->hidden, kind, &in);
        for (next = first; next < l->parts && kind_of(r, l->fields + next * PART_FIELDS) == kind; next++)
            parts[next] = part_of(kernels_of(r->isa), l->fields + next * PART_FIELDS, &in,
                                  wide + size_of(r, l->places[next]), r->type, NULL);
        Share share = {parts + first, next - first, NULL, 0};
        run_parts(&share, 1, r->threads);
    }
}

/* The bytes of scratch memory that delta_layer needs. */
int64_t delta_layer_bytes(const DeltaLayer *l, int type) {
    int64_t item = item_bytes(type), row = channels_of(l) + values_of(l) + 2 * l->value_heads;
    int64_t listed = aligned(any_input_bytes(1, most(l->hidden, values_of(l)))) + aligned(l->parts * (int64_t)sizeof(Part));
    int64_t floats = aligned(2 * l->key_heads * l->key_dim * 4) + 2 * aligned(l->value_heads * 4);
    return listed + aligned(row * item) + aligned(channels_of(l) * item) + aligned(values_of(l) * item) + floats;
}

/* x and out: [hidden] of `type`, fp32 or bf16; scratch: delta_layer_bytes, 64-byte aligned. */
void delta_layer(int isa, const DeltaLayer *l, const void *x, int type, const Memory *memory, void *out, void *scratch,
                 int threads) {
    Run r = {isa, type, threads, 1};
    int64_t channels = channels_of(l), values = values_of(l), keys = l->key_heads * l->key_dim;
    uint8_t *at = scratch, *prepared = taken(&at, any_input_bytes(1, most(l->hidden, values)));
    Part *parts = (Part *)taken(&at, l->parts * (int64_t)sizeof(Part));
    uint8_t *wide = taken(&at, size_of(&r, channels + values + 2 * l->value_heads));
    uint8_t *mixed = taken(&at, size_of(&r, channels)), *seen = taken(&at, size_of(&r, values));
    float *unit = (float *)taken(&at, 2 * keys * 4), *decay = (float *)taken(&at, l->value_heads * 4);
    float *beta = (float *)taken(&at, l->value_heads * 4);
    const uint8_t *gate = wide + size_of(&r, channels), *taken_over = gate + size_of(&r, values);

    multiply(&r, l, x, prepared, parts, wide);
    Convolution c = {1, channels, channels, memory->kept_rows, l->taps, 1, memory->kept, wide, l->weight, l->bias, mixed, type};
    hetegen_convolve(isa, &c, 1);
    if (type == TYPE_F32) decide(l, taken_over, decay, beta, TYPE_F32);
    else decide(l, taken_over, decay, beta, TYPE_BF16);
    Delta d = {1, l->key_heads, l->value_heads, l->key_dim, l->value_dim, channels, channels, channels, mixed,
               mixed + size_of(&r, keys), mixed + size_of(&r, 2 * keys), decay, beta, memory->state, memory->state, seen,
               unit, type};
    hetegen_delta_rule(isa, &d, threads);
    Gated heads = {l->value_heads, l->value_dim, l->norm.gain, 0, (float)l->norm.eps, (int)l->norm.rounded, 1};
    loops_of(isa)->open(&heads, seen, gate, type);
    product(&r, 1, l->out, seen, values, prepared, out);
}
