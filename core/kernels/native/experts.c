/* All experts chosen by some rows of input, in one call. Each stage's rows, of all experts together, are divided among
 * the threads, so that a token wakes the threads once for gate and up and once for down.
 *
 *   group    sort (row, choice) pairs by expert; a "place" is a pair's position in that order
 *   up       each pair's row of x, quantised into its expert's input -> gate and up
 *   gate     + bias, activation(gate) * up, quantised into the input of down -> down
 *   add      out[row] = sum over its pairs of share * (result + bias) */
#include "calls.h"
#include "dispatch.h"
#include "elements.h"
#include "thread_pool.h"

/* All fields are 8 bytes. `gated`: the rows of up are gate then up, or alternate if `interleaved`. */
struct Experts {
    int64_t format, hidden, inner, experts, activation, gated, interleaved;
    double alpha, limit;                       /* of CLAMPED */
    const int64_t *up_fields, *down_fields;    /* [experts][PART_FIELDS] as in hetegen_matmul */
    const void *up_bias, *down_bias;           /* [experts][rows] in the type of x; NULL = none */
};

/* An expert in use: its index, its places, and its inputs. */
typedef struct {
    int64_t expert, start, count;
    Input up, down;
} Group;

typedef struct {
    const Experts *e;
    const Kernels *kernels;
    int isa, type, threads;
    int64_t m, choices; /* rows of x, experts per row */
    const void *x;
    const float *shares; /* [m][choices] */
    void *out;
    /* scratch */
    int32_t *starts; /* [experts + 1]: the first place of each */
    int32_t *pairs;  /* [places]: row * choices + choice */
    int32_t *places; /* [m * choices]: -1 = not one of these experts */
    int32_t *owners; /* [places]: index into groups */
    Group *groups;
    Part *parts; /* one per group */
    int64_t used, most; /* number of groups, and the most places of one */
    uint8_t *up_buffer, *down_buffer, *wide, *open, *down, *panels;
} Call;

enum { STRIP = 256, ALIGNMENT = 64 };

static int64_t aligned(int64_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

static int64_t up_rows(const Experts *e) { return e->gated ? 2 * e->inner : e->inner; }

/* ---- the scratch memory ---- */

/* An upper bound of the bytes per input row, for any kind and type of input. */
static int64_t row_bytes_at_most(int isa, int format, int64_t columns) {
    int64_t few = hetegen_input_bytes(1, columns, hetegen_input_kind(isa, format, 1, TYPE_F32));
    int64_t many = hetegen_input_bytes(1, columns, hetegen_input_kind(isa, format, MOST_FEW + 1, TYPE_F32));
    return aligned(few > many ? few : many);
}

static int64_t panel_of(const Experts *e) { return aligned(hetegen_panel_bytes(e->hidden > e->inner ? e->hidden : e->inner)); }

static uint8_t *taken(uint8_t **at, int64_t bytes) {
    uint8_t *from = *at;
    *at += aligned(bytes);
    return from;
}

/* Divide the scratch memory; return its size. With scratch NULL only the size is meaningful. */
static int64_t divide(Call *c, uint8_t *scratch) {
    const Experts *e = c->e;
    int64_t places = c->m * c->choices, used = places < e->experts ? places : e->experts, item = item_bytes(c->type);
    uint8_t *at = scratch;
    c->starts = (int32_t *)taken(&at, (e->experts + 1) * 4);
    c->pairs = (int32_t *)taken(&at, places * 4);
    c->places = (int32_t *)taken(&at, places * 4);
    c->owners = (int32_t *)taken(&at, places * 4);
    c->groups = (Group *)taken(&at, used * (int64_t)sizeof(Group));
    c->parts = (Part *)taken(&at, used * (int64_t)sizeof(Part));
    c->up_buffer = taken(&at, places * row_bytes_at_most(c->isa, (int)e->format, e->hidden));
    c->down_buffer = taken(&at, places * row_bytes_at_most(c->isa, (int)e->format, e->inner));
    c->wide = taken(&at, places * up_rows(e) * item);
    c->open = taken(&at, c->threads * e->inner * item);
    c->down = taken(&at, places * e->hidden * item);
    c->panels = taken(&at, c->threads * panel_of(e));
    return at - scratch;
}

EXPORT int64_t hetegen_experts_bytes(int isa, const Experts *e, int type, int64_t m, int64_t choices, int threads) {
    Call c = {.e = e, .isa = isa, .type = type, .threads = threads, .m = m, .choices = choices};
    return divide(&c, NULL);
}

/* ---- grouping ---- */

/* Count each expert's pairs and assign every pair its place. */
static void place_pairs(Call *c, const int64_t *chosen) {
    int64_t count = c->m * c->choices, experts = c->e->experts;
    memset(c->starts, 0, (size_t)(experts + 1) * 4);
    for (int64_t i = 0; i < count; i++)
        if (chosen[i] >= 0 && chosen[i] < experts) c->starts[chosen[i] + 1]++;
    for (int64_t i = 0; i < experts; i++) c->starts[i + 1] += c->starts[i];
    for (int64_t i = 0; i < count; i++) {
        int valid = chosen[i] >= 0 && chosen[i] < experts;
        c->places[i] = valid ? c->starts[chosen[i]]++ : -1;
        if (valid) c->pairs[c->places[i]] = (int32_t)i;
    }
    for (int64_t i = experts; i > 0; i--) c->starts[i] = c->starts[i - 1]; /* filling has advanced them by one expert */
    c->starts[0] = 0;
}

/* Make a group for each expert in use. A single row of x is the input of all groups and is prepared once. */
static void make_groups(Call *c) {
    const Experts *e = c->e;
    int64_t up_row = c->m > 1 ? row_bytes_at_most(c->isa, (int)e->format, e->hidden) : 0;
    int64_t down_row = row_bytes_at_most(c->isa, (int)e->format, e->inner);
    for (int64_t expert = 0; expert < e->experts; expert++) {
        int64_t start = c->starts[expert], count = c->starts[expert + 1] - start;
        if (!count) continue;
        Group *g = c->groups + c->used;
        int kind = hetegen_input_kind(c->isa, (int)e->format, count, c->type);
        g->expert = expert;
        g->start = start;
        g->count = count;
        lay_out(c->up_buffer + start * up_row, count, e->hidden, kind, &g->up);
        lay_out(c->down_buffer + start * down_row, count, e->inner, kind, &g->down);
        for (int64_t i = 0; i < count; i++) c->owners[start + i] = (int32_t)c->used;
        if (count > c->most) c->most = count;
        c->used++;
    }
}

static const Group *group_of(const Call *c, int64_t place) { return c->groups + c->owners[place]; }

/* ---- stages ---- */

static void prepare_pair(const void *context, int64_t place, int64_t thread) {
    const Call *c = context;
    const Group *g = group_of(c, place);
    (void)thread;
    prepare_row(c->kernels, c->x, c->type, c->pairs[place] / c->choices * c->e->hidden, place - g->start, &g->up);
}

/* out: [places][rows] */
static void multiply(Call *c, int down, uint8_t *out, int64_t rows) {
    Share share = {c->parts, c->used, NULL, panel_of(c->e)};
    const int64_t *fields = down ? c->e->down_fields : c->e->up_fields;
    for (int64_t i = 0; i < c->used; i++) {
        const Group *g = c->groups + i;
        c->parts[i] = part_of(c->kernels, fields + g->expert * PART_FIELDS, down ? &g->down : &g->up,
                              out + g->start * rows * item_bytes(c->type), c->type, c->panels);
    }
    run_parts(&share, c->most, c->threads);
}

INLINE float gated(const Experts *e, float gate, float up, const int activation, const int type) {
    if (activation != CLAMPED) return rounded(activated(gate, activation), type) * up;
    float limit = (float)e->limit, alpha = (float)e->alpha;
    gate = gate > limit ? limit : gate;
    up = up > limit ? limit : up < -limit ? -limit : up;
    float open = rounded(gate * rounded(sigmoid(rounded(gate * alpha, type)), type), type);
    return rounded(up + 1.0f, type) * open;
}

/* wide: gate and up of one pair; bias: of its expert, or NULL. */
INLINE void gate_row(const Experts *e, void *wide, const void *bias, void *to, const int activation, const int type) {
    int64_t rows = up_rows(e), step = e->interleaved ? 2 : 1, up = e->interleaved ? 1 : e->inner;
    if (bias) {
        SIMD
        for (int64_t i = 0; i < rows; i++) store(wide, i, widened(wide, i, type) + widened(bias, i, type), type);
    }
    if (activation == RELU_SQUARED) {
        SIMD
        for (int64_t i = 0; i < e->inner; i++) {
            float x = widened(wide, i, type), open = x > 0 ? x : x == x ? 0.0f : x;
            store(to, i, open * open, type);
        }
        return;
    }
    SIMD
    for (int64_t i = 0; i < e->inner; i++)
        store(to, i, gated(e, widened(wide, i * step, type), widened(wide, i * step + up, type), activation, type), type);
}

/* Add `share` times columns [at, at + count) of a row (+ bias) to the sums. */
INLINE void add_row(const void *row, const void *bias, int64_t at, int64_t count, float share, float *sum, const int type) {
    if (bias) {
        SIMD
        for (int64_t i = 0; i < count; i++)
            sum[i] += share * rounded(widened(row, at + i, type) + widened(bias, at + i, type), type);
        return;
    }
    SIMD
    for (int64_t i = 0; i < count; i++) sum[i] += share * widened(row, at + i, type);
}

INLINE const void *bias_of(const Call *c, const void *biases, int64_t place, int64_t rows) {
    return biases ? (const uint8_t *)biases + group_of(c, place)->expert * rows * item_bytes(c->type) : NULL;
}

INLINE void sum_row(const Call *c, int64_t row, const int type) {
    float sum[STRIP];
    for (int64_t at = 0; at < c->e->hidden; at += STRIP) {
        int64_t count = c->e->hidden - at < STRIP ? c->e->hidden - at : STRIP;
        memset(sum, 0, sizeof sum);
        for (int64_t pair = row * c->choices; pair < (row + 1) * c->choices; pair++) {
            int64_t place = c->places[pair];
            if (place < 0) continue;
            const void *bias = bias_of(c, c->e->down_bias, place, c->e->hidden);
            const uint8_t *from = c->down + place * c->e->hidden * item_bytes(type);
            add_row(from, bias, at, count, c->shares[pair], sum, type);
        }
        for (int64_t i = 0; i < count; i++) store(c->out, row * c->e->hidden + at + i, sum[i], type);
    }
}

typedef struct {
    void (*gate)(const Experts *e, void *wide, const void *bias, void *to, int type);
    void (*sum)(const Call *c, int64_t row, int type);
} Loops;

#define GATE_CASE(activation, type) \
    case activation: gate_row(e, wide, bias, to, activation, type); break;
#define GATE_CASES(type) \
    switch (e->activation) { GATE_CASE(SILU, type) GATE_CASE(GELU_TANH, type) GATE_CASE(CLAMPED, type) GATE_CASE(RELU_SQUARED, type) }
#define LOOPS(name, isa)                                                                              \
    isa static void name##_gate(const Experts *e, void *wide, const void *bias, void *to, int type) { \
        if (type == TYPE_F32) GATE_CASES(TYPE_F32) else GATE_CASES(TYPE_BF16)                         \
    }                                                                                                 \
    isa static void name##_sum(const Call *c, int64_t row, int type) {                                \
        if (type == TYPE_F32) sum_row(c, row, TYPE_F32);                                              \
        else sum_row(c, row, TYPE_BF16);                                                              \
    }                                                                                                 \
    static const Loops name = {name##_gate, name##_sum};
#include "loops.h"

static void gate_pair(const void *context, int64_t place, int64_t thread) {
    const Call *c = context;
    int64_t rows = up_rows(c->e), item = item_bytes(c->type);
    uint8_t *open = c->open + thread * c->e->inner * item;
    loops_of(c->isa)->gate(c->e, c->wide + place * rows * item, bias_of(c, c->e->up_bias, place, rows), open, c->type);
    prepare_row(c->kernels, open, c->type, 0, place - group_of(c, place)->start, &group_of(c, place)->down);
}

static void add_pairs(const void *context, int64_t row, int64_t thread) {
    const Call *c = context;
    (void)thread;
    loops_of(c->isa)->sum(c, row, c->type);
}

/* x, out: [m][hidden] of `type` (fp32 or bf16), contiguous; chosen, shares: [m][choices], expert indices and their
 * weights. Indices out of range are skipped. scratch: hetegen_experts_bytes, 64-byte aligned. */
EXPORT void hetegen_experts(int isa, const Experts *e, const void *x, int type, int64_t m, int64_t choices,
                            const int64_t *chosen, const float *shares, void *out, void *scratch, int threads) {
    Call c = {.e = e, .kernels = kernels_of(isa), .isa = isa, .type = type, .threads = threads, .m = m,
              .choices = choices, .x = x, .shares = shares, .out = out};
    int few = m <= FEW_ROWS ? 1 : threads;
    divide(&c, scratch);
    place_pairs(&c, chosen);
    make_groups(&c);
    int64_t places = c.starts[e->experts];
    pool_run(prepare_pair, &c, m > 1 || !places ? places : 1, few);
    multiply(&c, 0, c.wide, up_rows(e));
    pool_run(gate_pair, &c, places, few);
    multiply(&c, 1, c.down, e->hidden);
    pool_run(add_pairs, &c, m, few);
}
