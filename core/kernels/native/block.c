/* A decoder layer with a recurrent layer in place of attention, for one token in one call:
 *
 *   x -> norm -> recurrent layer -> norm -> + x = s
 *   s -> norm -> experts + (activation(gate) * up -> down) -> norm -> + s
 *
 * Each norm is optional. A layer may have experts, a gated part or both; without either, s is its result. Intermediate results are rounded to
 * the type of x wherever torch does. */
#include "gated.h"
#include "norms.h"
#include "recurrent.h"

/* All fields have 8 bytes. */
typedef struct {
    int64_t hidden, inner, activation, kind; /* inner: of the gated part, 0 = none; kind: of the recurrent layer */
    double residual;                         /* factor of what is added to the states */
    const void *recurrent;
    const Mixture *mixture; /* NULL = no experts */
    NormOf before_recurrent, after_recurrent, before_rest, after_rest;
    int64_t gate_up[2 * PART_FIELDS], down[PART_FIELDS];
} Block;

typedef struct {
    void (*add)(const void *a, const void *b, float factor, void *to, int64_t count, int type);
    void (*gate)(const void *gate, const void *up, void *to, int64_t count, int64_t activation, int type);
} Loops;

#define LOOPS(name, isa)    \
    GATED_LOOPS(name, isa)  \
    static const Loops name = {name##_add, name##_gate};
#include "loops.h"

static int64_t gated_bytes(const Run *r, const Block *b) {
    return 3 * aligned(size_of(r, b->inner)) + aligned(any_input_bytes(1, most(b->hidden, b->inner)));
}

/* The bytes of scratch memory that hetegen_block needs. */
EXPORT int64_t hetegen_block_bytes(int isa, const Block *b, int type, int threads) {
    Run r = {isa, type, threads, 1};
    int64_t rest = most(hetegen_recurrent_layer_bytes((int)b->kind, b->recurrent, type), gated_bytes(&r, b));
    if (b->mixture) rest = most(rest, hetegen_mixture_bytes(isa, b->mixture, type, 1, threads));
    return 4 * aligned(size_of(&r, b->hidden)) + rest;
}

/* to = activation(gate) * up -> down */
static void compute_gated(const Run *r, const Block *b, const void *x, void *to, uint8_t *at) {
    /* gate and up are adjacent: a product writes its parts one after another */
    uint8_t *gate = taken(&at, 2 * size_of(r, b->inner)), *up = gate + size_of(r, b->inner);
    uint8_t *open = taken(&at, size_of(r, b->inner));
    product(r, 2, b->gate_up, x, b->hidden, at, gate);
    loops_of(r->isa)->gate(gate, up, open, b->inner, b->activation, r->type);
    product(r, 1, b->down, open, b->inner, at, to);
}

/* x and out: [hidden] of `type`, fp32 or bf16; scratch: hetegen_block_bytes, 64-byte aligned. */
EXPORT void hetegen_block(int isa, const Block *b, const void *x, int type, const Memory *memory, void *out,
                          void *scratch, int threads) {
    Run r = {isa, type, threads, 1};
    const Loops *loops = loops_of(isa);
    float residual = (float)b->residual;
    uint8_t *at = scratch, *sum = taken(&at, size_of(&r, b->hidden)), *added = taken(&at, size_of(&r, b->hidden));
    uint8_t *spare = taken(&at, size_of(&r, b->hidden)), *more = taken(&at, size_of(&r, b->hidden));
    const void *given = normed(&r, &b->before_recurrent, x, b->hidden, spare);

    hetegen_recurrent_layer(isa, (int)b->kind, b->recurrent, given, type, memory, added, at, threads);
    const void *made = normed(&r, &b->after_recurrent, added, b->hidden, spare);
    loops->add(x, made, residual, b->mixture || b->inner ? sum : out, b->hidden, type);
    if (!b->mixture && !b->inner) return;
    given = normed(&r, &b->before_rest, sum, b->hidden, spare);
    if (b->mixture) hetegen_mixture(isa, b->mixture, given, type, 1, added, at, threads);
    if (b->inner) compute_gated(&r, b, given, b->mixture ? more : added, at);
    if (b->mixture && b->inner) loops->add(added, more, 1, added, b->hidden, type);
    loops->add(sum, normed(&r, &b->after_rest, added, b->hidden, spare), residual, out, b->hidden, type);
}
