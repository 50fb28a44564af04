/* A mixture-of-experts block for a few rows of input in one call: routing, the weighted sum of the routed experts, and
 * a shared expert that every row goes through. Both may have norms before and after; the router reads the rows
 * unnormed. */
#include "gated.h"
#include "norms.h"

/* All fields are 8 bytes. Weights are part fields of hetegen_matmul. */
struct Mixture {
    const Router *router;
    const Experts *experts;
    int64_t scored, choices, hidden; /* experts that the router scores, and how many a row goes through */
    int64_t scaled; /* rows go through one expert each, and are multiplied by its share before instead of afterwards */
    int64_t inner, activation;       /* of the shared expert; inner 0 = none */
    int64_t gate_up[2 * PART_FIELDS], down[PART_FIELDS];
    const int64_t *door; /* a single row: the sigmoid of its product scales the shared expert's result; NULL = none */
    NormOf before_chosen, after_chosen, before_every, after_every; /* of the routed experts and of the shared one */
};

typedef struct {
    void (*add)(const void *a, const void *b, float factor, void *to, int64_t count, int type);
    void (*gate)(const void *gate, const void *up, void *to, int64_t count, int64_t activation, int type);
    void (*open)(const void *door, void *x, int64_t rows, int64_t columns, int type);
    void (*scale)(const void *x, float *shares, void *to, int64_t rows, int64_t columns, int type);
} Loops;

/* Scale each row of x [rows][columns] in place with the sigmoid of its element of door. */
INLINE void open_all(const void *door, void *x, int64_t rows, int64_t columns, const int type) {
    for (int64_t row = 0; row < rows; row++) {
        float share = rounded(sigmoid(widened(door, row, type)), type);
        SIMD
        for (int64_t i = row * columns; i < (row + 1) * columns; i++) store(x, i, share * widened(x, i, type), type);
    }
}

/* to[i] = x[i] times the share of row i, which becomes 1; rows [rows][columns]. */
INLINE void scale_all(const void *x, float *shares, void *to, int64_t rows, int64_t columns, const int type) {
    for (int64_t row = 0; row < rows; row++) {
        float share = shares[row];
        SIMD
        for (int64_t i = row * columns; i < (row + 1) * columns; i++) store(to, i, share * widened(x, i, type), type);
        shares[row] = 1;
    }
}

#define LOOPS(name, isa)                                                                                        \
    GATED_LOOPS(name, isa)                                                                                      \
    isa static void name##_open(const void *door, void *x, int64_t rows, int64_t columns, int type) {           \
        if (type == TYPE_F32) open_all(door, x, rows, columns, TYPE_F32);                                       \
        else open_all(door, x, rows, columns, TYPE_BF16);                                                       \
    }                                                                                                           \
    isa static void name##_scale(const void *x, float *shares, void *to, int64_t rows, int64_t columns, int type) { \
        if (type == TYPE_F32) scale_all(x, shares, to, rows, columns, TYPE_F32);                                \
        else scale_all(x, shares, to, rows, columns, TYPE_BF16);                                                \
    }                                                                                                           \
    static const Loops name = {name##_add, name##_gate, name##_open, name##_scale};
#include "loops.h"

static int64_t prepared_bytes(const Run *r, const Mixture *x) {
    int64_t first = hetegen_input_bytes(r->m, x->hidden, kind_of(r, x->gate_up));
    int64_t last = hetegen_input_bytes(r->m, x->inner, kind_of(r, x->down));
    return most(most(first, last), x->door ? hetegen_input_bytes(r->m, x->hidden, kind_of(r, x->door)) : 0);
}

static int64_t shared_bytes(const Run *r, const Mixture *x) {
    if (!x->inner) return 0;
    int64_t states = 3 * aligned(size_of(r, x->inner)) + 2 * aligned(size_of(r, x->hidden)) + aligned(size_of(r, 1));
    return states + aligned(prepared_bytes(r, x));
}

/* Bytes of scratch memory that hetegen_mixture needs. */
EXPORT int64_t hetegen_mixture_bytes(int isa, const Mixture *x, int type, int64_t m, int threads) {
    Run r = {isa, type, threads, m};
    int64_t choice = aligned(m * x->scored * 4) + aligned(m * x->choices * 4) + aligned(m * x->choices * 8);
    int64_t experts = hetegen_experts_bytes(isa, x->experts, type, m, x->choices, threads);
    experts += aligned(size_of(&r, x->hidden));
    return choice + most(most(hetegen_route_bytes(isa, x->router, type, m), experts), shared_bytes(&r, x));
}

/* out += the shared expert's result. */
static void add_shared(const Run *r, const Mixture *x, const void *rows, void *out, uint8_t *at) {
    const Loops *loops = loops_of(r->isa);
    /* gate and up are adjacent: a product writes its parts one after another */
    uint8_t *gate = taken(&at, 2 * size_of(r, x->inner)), *up = gate + size_of(r, x->inner);
    uint8_t *open = taken(&at, size_of(r, x->inner)), *made = taken(&at, size_of(r, x->hidden));
    uint8_t *spare = taken(&at, size_of(r, x->hidden)), *door = taken(&at, size_of(r, 1)), *prepared = at;
    rows = normed(r, &x->before_every, rows, x->hidden, spare);
    product(r, 2, x->gate_up, rows, x->hidden, prepared, gate);
    loops->gate(gate, up, open, r->m * x->inner, x->activation, r->type);
    product(r, 1, x->down, open, x->inner, prepared, made);
    if (x->door) {
        product(r, 1, x->door, rows, x->hidden, prepared, door);
        loops->open(door, made, r->m, x->hidden, r->type);
    }
    loops->add(out, normed(r, &x->after_every, made, x->hidden, made), 1, out, r->m * x->hidden, r->type);
}

/* out = the weighted sum of the routed experts. */
static void add_chosen(const Run *r, const Mixture *x, const void *rows, const int64_t *chosen, float *shares,
                       void *out, uint8_t *at) {
    void *spare = taken(&at, size_of(r, x->hidden));
    rows = normed(r, &x->before_chosen, rows, x->hidden, spare);
    if (x->scaled) {
        loops_of(r->isa)->scale(rows, shares, spare, r->m, x->hidden, r->type);
        rows = spare;
    }
    hetegen_experts(r->isa, x->experts, rows, r->type, r->m, x->choices, chosen, shares, out, at, r->threads);
    normed(r, &x->after_chosen, out, x->hidden, out);
}

/* rows, out: [m][hidden] of `type` (fp32 or bf16), contiguous, m at most MOST_FEW. */
EXPORT void hetegen_mixture(int isa, const Mixture *x, const void *rows, int type, int64_t m, void *out, void *scratch,
                            int threads) {
    Run r = {isa, type, threads, m};
    uint8_t *at = scratch;
    float *scores = (float *)taken(&at, m * x->scored * 4), *shares = (float *)taken(&at, m * x->choices * 4);
    int64_t *chosen = (int64_t *)taken(&at, m * x->choices * 8);
    hetegen_route(isa, x->router, rows, type, m, scores, chosen, shares, at, threads);
    add_chosen(&r, x, rows, chosen, shares, out, at);
    if (x->inner) add_shared(&r, x, rows, out, at);
}
