/* A decoder layer for few rows of input in two calls, where Python would make a dozen calls and torch some thirty:
 *
 *   begin   norm -> q, k, v (+ biases, + norms of q and k) -> rotary embedding, which may precede the norms
 *           ...the caller appends k and v to its cache...
 *   end     attention (* sigmoid of a gate from the input) -> output linear -> norm -> + input -> norm -> activation(gate) * up -> down -> norm -> + sum
 *
 * If something else than activation(gate) * up -> down follows (experts), `attend` stops before it. A layer may have
 * a side input (Gemma's inputs per layer), which `end` multiplies last:
 *
 *   x -> activation(gate of x) * side input -> linear -> norm -> + x
 *
 * Each norm is optional. Intermediate results are rounded to the type of x wherever torch would store a tensor of that type.
 *
 * Consecutive layers whose caches are in memory run as one call: between the calls of a token, Python takes as long as
 * a small model's products. */
#include "gated.h"
#include "norms.h"
#include "packed_states.h"
#include "rotary.h"

/* All fields are 8 bytes. Weights are part fields of hetegen_matmul; their formats must take the same kind of input for
 * few rows. */
typedef struct {
    int64_t hidden, heads, kv_heads, dim, inner, activation;
    int64_t turned;        /* columns of a head that the rotary embedding rotates */
    int64_t neighbours;    /* it rotates neighbouring columns (2: with angles in that order), not those half of it apart */
    int64_t turns_first;   /* before the norms of q and k */
    int64_t turns_exactly; /* in fp32 also with angles of fewer bits */
    int64_t gated; /* each head of q is followed by a gate, whose sigmoid multiplies the attention of that head */
    int64_t head_gated; /* behind v, a number for each head, whose sigmoid does */
    int64_t parallel; /* the gated part reads what attention reads, instead of the sum */
    int64_t borrows; /* only queries are made: keys and values are another layer's */
    int64_t side;    /* columns of the side input; 0 = none */
    double residual; /* factor of what attention and the gated part add to the states */
    double factor;   /* factor of the layer's result */
    double softcap;  /* bound of the attention's scores; 0 = none */
    int64_t qkv[4 * PART_FIELDS]; /* and the heads' gates */
    int64_t out[PART_FIELDS], gate_up[2 * PART_FIELDS], down[PART_FIELDS];
    int64_t side_gate[PART_FIELDS], side_out[PART_FIELDS];
    const void *biases[4]; /* of q, k, v, out; NULL = none */
    NormOf before_attention, after_attention, before_mlp, after_mlp, q_norm, k_norm, v_norm, after_side;
} Layer;

typedef struct {
    void (*add)(const void *a, const void *b, float factor, void *to, int64_t count, int type);
    void (*multiply)(void *x, float factor, int64_t count, int type);
    void (*gate)(const void *gate, const void *up, void *to, int64_t count, int64_t activation, int type);
    void (*turn)(void *x, int64_t count, const Turn *t, int type);
} Loops;

/* The loops, compiled for an instruction set and specialised by type. */
#define LOOPS(name, isa)                                                                                            \
    GATED_LOOPS(name, isa)                                                                                          \
    TURN_LOOP(name, isa)                                                                                            \
    MULTIPLY_LOOP(name, isa)                                                                                        \
    static const Loops name = {name##_add, name##_multiply, name##_gate, name##_turn};
#include "loops.h"

/* ---- the scratch memory ---- */

static int64_t prepared_bytes(const Run *r, const Layer *l) {
    int64_t widest = most(most(l->hidden, l->side), most(l->inner, l->heads * l->dim));
    return hetegen_input_bytes(r->m, widest, kind_of(r, l->qkv));
}

/* Bytes of scratch memory that either call needs for `m` rows; `shape` is that of the attention. */
EXPORT int64_t hetegen_layer_bytes(int isa, const Layer *l, int type, int64_t m, const int64_t *shape) {
    Run r = {isa, type, 1, m};
    int64_t states = aligned(size_of(&r, l->heads * l->dim)) + 3 * aligned(size_of(&r, l->hidden));
    int64_t inner = most(l->inner, l->side);
    return aligned(prepared_bytes(&r, l)) + states + 3 * aligned(size_of(&r, inner)) + hetegen_attention_bytes(shape);
}

/* ---- the two calls ---- */

static void add_bias(const Run *r, const void *bias, void *x, int64_t columns) {
    for (int64_t row = 0; bias && row < r->m; row++) {
        uint8_t *at = (uint8_t *)x + size_of(r, columns) / r->m * row;
        loops_of(r->isa)->add(at, bias, 1, at, columns, r->type);
    }
}

/* to = x + residual * added. */
static void add_on(const Run *r, const Layer *l, const void *x, const void *added, void *to) {
    loops_of(r->isa)->add(x, added, (float)l->residual, to, r->m * l->hidden, r->type);
}

static void scale_result(const Run *r, const Layer *l, void *out) {
    if (l->factor != 1) loops_of(r->isa)->multiply(out, (float)l->factor, r->m * l->hidden, r->type);
}

/* out = x + residual * norm(added). */
static void add_normed(const Run *r, const Layer *l, const NormOf *n, const void *x, void *added, void *spare, void *out) {
    add_on(r, l, x, normed(r, n, added, l->hidden, spare), out);
}

/* The side input of a layer: m rows, `row` elements apart. */
typedef struct {
    const void *rows;
    int64_t row;
} Side;

/* Scratch memory of the parts after attention: gate and up of the wider part, and their product. */
typedef struct {
    uint8_t *prepared, *added, *spare, *gate, *open;
} Rest;

/* x += norm(linear(activation(gate(x)) * side input)). */
static void add_side(const Run *r, const Layer *l, const Side *side, void *x, const Rest *at) {
    product(r, 1, l->side_gate, x, l->hidden, at->prepared, at->gate);
    int64_t a_row = size_of(r, l->side) / r->m, a_side = side->row * item_bytes(r->type);
    for (int64_t row = 0; row < r->m; row++)
        loops_of(r->isa)->gate(at->gate + row * a_row, (const uint8_t *)side->rows + row * a_side, at->open + row * a_row,
                               l->side, l->activation, r->type);
    product(r, 1, l->side_out, at->open, l->side, at->prepared, at->added);
    add_normed(r, l, &l->after_side, x, at->added, at->spare, x);
}

static void turn_rows(const Run *r, const Layer *l, int64_t heads, void *x, const void *cos, const void *sin,
                      int angles) {
    int64_t a_row = heads * size_of(r, l->dim) / r->m, an_angle = l->turned * (angles == TYPE_F32 ? 4 : 2);
    for (int64_t row = 0; row < r->m; row++) {
        const uint8_t *a = (const uint8_t *)cos + row * an_angle, *b = (const uint8_t *)sin + row * an_angle;
        Turn turn = {a, b, l->dim, l->turned, l->neighbours, angles, l->turns_exactly ? TYPE_F32 : angles};
        loops_of(r->isa)->turn((uint8_t *)x + row * a_row, heads, &turn, r->type);
    }
}

/* Apply norm and rotary embedding to the heads of q or k: x [m][heads][dim]. */
static void finish_heads(const Run *r, const Layer *l, const NormOf *n, int64_t heads, void *x, const void *cos,
                         const void *sin, int angles) {
    if (l->turns_first) turn_rows(r, l, heads, x, cos, sin, angles);
    normed(r, n, x, heads * l->dim, x);
    if (!l->turns_first) turn_rows(r, l, heads, x, cos, sin, angles);
}

/* Columns of what a layer makes for its queries, with their gates. */
static int64_t query_columns(const Layer *l) { return l->heads * l->dim * (l->gated ? 2 : 1); }

/* Elements of all that a layer makes from a row of its input. */
static int64_t made_columns(const Layer *l) {
    return query_columns(l) + (l->borrows ? 0 : 2 * l->kv_heads * l->dim) + (l->head_gated ? l->heads : 0);
}

/* Rearrange q and gate of each head, [m][heads][2][dim], to all of q and then all gates, [2][m][heads][dim]. */
static void part_gates(const Run *r, const Layer *l, uint8_t *q, uint8_t *spare) {
    size_t a_head = (size_t)(size_of(r, l->dim) / r->m);
    int64_t heads = r->m * l->heads;
    for (int64_t head = 0; head < heads; head++) {
        memcpy(spare + head * a_head, q + (2 * head + 1) * a_head, a_head);
        memmove(q + head * a_head, q + 2 * head * a_head, a_head);
    }
    memcpy(q + heads * a_head, spare, heads * a_head);
}

/* x [m][hidden]; qkv: q [m][heads][dim], as many gates if there are any, then k and v [m][kv_heads][dim], and the heads'
 * gates [m][heads] if there are any, all of `type`; only q if the layer borrows keys and values. cos, sin [m][turned] of
 * type `angles`, which is `type` or fp32. */
EXPORT void hetegen_layer_begin(int isa, const Layer *l, const void *x, int type, int64_t m, const void *cos,
                                const void *sin, int angles, void *qkv, void *scratch, int threads) {
    Run r = {isa, type, threads, m};
    uint8_t *at = scratch, *prepared = taken(&at, prepared_bytes(&r, l)), *spare = taken(&at, size_of(&r, l->hidden));
    uint8_t *gates = taken(&at, size_of(&r, l->heads * l->dim));
    uint8_t *k = (uint8_t *)qkv + size_of(&r, query_columns(l)), *v = k + size_of(&r, l->kv_heads * l->dim);
    x = normed(&r, &l->before_attention, x, l->hidden, spare);
    product(&r, l->borrows ? 1 : l->head_gated ? 4 : 3, l->qkv, x, l->hidden, prepared, qkv);
    add_bias(&r, l->biases[0], qkv, query_columns(l));
    if (l->gated) part_gates(&r, l, qkv, gates);
    finish_heads(&r, l, &l->q_norm, l->heads, qkv, cos, sin, angles);
    if (l->borrows) return;
    add_bias(&r, l->biases[1], k, l->kv_heads * l->dim);
    finish_heads(&r, l, &l->k_norm, l->kv_heads, k, cos, sin, angles);
    add_bias(&r, l->biases[2], v, l->kv_heads * l->dim);
    normed(&r, &l->v_norm, v, l->kv_heads * l->dim, v);
}

typedef struct {
    const int64_t *shape;
    const void *q, *mask, *sinks;
    const States *states;
    float scale;
    int threads;
} Attended;

/* seen [m][heads][dim] *= sigmoid(gates [m][heads]). */
static void gate_heads(const Run *r, const Layer *l, const void *gates, uint8_t *seen) {
    int64_t a_head = size_of(r, l->dim) / r->m;
    for (int64_t head = 0; head < r->m * l->heads; head++) {
        float open = rounded(activated(widened(gates, head, r->type), SIGMOID), r->type);
        loops_of(r->isa)->multiply(seen + head * a_head, open, l->dim, r->type);
    }
}

/* sum = x + the attention block's output; `seen` and `added` are scratch memory. */
static void attend(const Run *r, const Layer *l, const void *x, const Attended *a, void *sum, uint8_t *seen,
                   uint8_t *added, uint8_t *spare, uint8_t *prepared, uint8_t *scratch) {
    hetegen_attention(r->isa, a->shape, a->q, a->states, a->mask, a->sinks, a->scale, (float)l->softcap, seen, r->type,
                      scratch, a->threads);
    const uint8_t *gates = (const uint8_t *)a->q + size_of(r, l->heads * l->dim);
    if (l->gated) loops_of(r->isa)->gate(gates, seen, seen, r->m * l->heads * l->dim, SIGMOID, r->type);
    const uint8_t *of_heads = (const uint8_t *)a->q + size_of(r, query_columns(l) + 2 * l->kv_heads * l->dim);
    if (l->head_gated) gate_heads(r, l, of_heads, seen);
    product(r, 1, l->out, seen, l->heads * l->dim, prepared, added);
    add_bias(r, l->biases[3], added, l->hidden);
    add_normed(r, l, &l->after_attention, x, added, spare, sum);
}

/* x [m][hidden]: the layer's input; `shape` to `scale` as in hetegen_attention; side: m rows of the side input, `side_row`
 * elements apart, if the layer has one; out [m][hidden]. */
EXPORT void hetegen_layer_end(int isa, const Layer *l, const void *x, int type, const int64_t *shape, const void *q,
                              const States *states, const void *mask, const void *sinks, float scale,
                              int attention_threads, const void *side, int64_t side_row, void *out, void *scratch,
                              int threads) {
    Run r = {isa, type, threads, ((const Shape *)shape)->queries};
    Attended attended = {shape, q, mask, sinks, states, scale, attention_threads};
    Side given = {side, side_row};
    uint8_t *at = scratch, *prepared = taken(&at, prepared_bytes(&r, l));
    uint8_t *seen = taken(&at, size_of(&r, l->heads * l->dim)), *added = taken(&at, size_of(&r, l->hidden));
    uint8_t *sum = taken(&at, size_of(&r, l->hidden)), *spare = taken(&at, size_of(&r, l->hidden));
    /* gate and up are adjacent: a product writes its parts one after another */
    int64_t inner = most(l->inner, l->side);
    uint8_t *gate = taken(&at, 2 * size_of(&r, inner)), *up = gate + size_of(&r, l->inner);
    Rest rest = {prepared, added, spare, gate, taken(&at, size_of(&r, inner))};
    attend(&r, l, x, &attended, sum, seen, added, spare, prepared, at);
    const NormOf *before = l->parallel ? &l->before_attention : &l->before_mlp;
    product(&r, 2, l->gate_up, normed(&r, before, l->parallel ? x : sum, l->hidden, spare), l->hidden, prepared, gate);
    loops_of(isa)->gate(gate, up, rest.open, r.m * l->inner, l->activation, type);
    product(&r, 1, l->down, rest.open, l->inner, prepared, added);
    add_normed(&r, l, &l->after_mlp, sum, added, spare, out);
    if (l->side) add_side(&r, l, &given, out, &rest);
    scale_result(&r, l, out);
}

/* The attention part of hetegen_layer_end: sum = x + attention, next = its norm before the gated part. */
EXPORT void hetegen_layer_attend(int isa, const Layer *l, const void *x, int type, const int64_t *shape, const void *q,
                                 const States *states, const void *mask, const void *sinks, float scale,
                                 int attention_threads, void *sum, void *next, void *scratch, int threads) {
    Run r = {isa, type, threads, ((const Shape *)shape)->queries};
    Attended attended = {shape, q, mask, sinks, states, scale, attention_threads};
    uint8_t *at = scratch, *prepared = taken(&at, prepared_bytes(&r, l));
    uint8_t *seen = taken(&at, size_of(&r, l->heads * l->dim)), *added = taken(&at, size_of(&r, l->hidden));
    uint8_t *spare = taken(&at, size_of(&r, l->hidden));
    attend(&r, l, x, &attended, sum, seen, added, spare, prepared, at);
    if (normed(&r, &l->before_mlp, sum, l->hidden, next) != next) memcpy(next, sum, (size_t)size_of(&r, l->hidden));
}

/* ---- consecutive layers ---- */

/* What layers of one kind share in a forward pass. first, held: position of the first visible cached token, and number
 * of visible ones. capacity: of the cache. mask_row: the mask's row stride. splits, attention_threads: of the
 * attention. packed: whether keys and values are packed; then recent_first, recent_held, recent_capacity are the same
 * for their unpacked recent part. angles: the type of cos and sin [m][turned]. mask [m][held + m] as in
 * hetegen_attention. */
typedef struct {
    int64_t first, held, capacity, mask_row, splits, attention_threads, packed;
    int64_t recent_first, recent_held, recent_capacity, angles;
    const void *cos, *sin, *mask;
} Past;

/* A layer and its KV cache: [kv_heads][capacity] rows of `dim` elements or packed rows each; if packed, the newest
 * tokens are also kept unpacked, [kv_heads][recent_capacity]. */
typedef struct {
    const Layer *layer;
    const Past *past;
    void *keys, *values, *recent_keys, *recent_values;
    const void *sinks;
    double scale;
    const Mixture *mixture; /* NULL = the layer's own gated part */
    const void *side; /* its side input, rows `side_row` elements apart */
    int64_t side_row;
} Placed;

static Shape shape_of(const Layer *l, const Past *p, int64_t m) {
    int64_t q_row = l->heads * l->dim, a_row = p->packed ? packed_bytes(l->dim) : l->dim;
    int64_t a_head = p->capacity * a_row, all = l->kv_heads * a_head;
    int64_t recent = p->packed ? p->recent_held + m : 0, recent_head = p->recent_capacity * l->dim;
    Shape shape = {1, l->heads, l->kv_heads, m, p->held + m, l->dim, l->dim, m * q_row, l->dim, q_row,
                   all, a_head, a_row, all, a_head, a_row, 0, p->mask_row, p->splits, p->packed,
                   recent, recent_head, l->dim, recent_head, l->dim};
    return shape;
}

static int64_t chosen_bytes(const Run *r, const Placed *p) {
    if (!p->mixture) return 0;
    return 4 * aligned(size_of(r, p->layer->hidden)) + hetegen_mixture_bytes(r->isa, p->mixture, r->type, r->m, r->threads);
}

/* Bytes of scratch memory for q, k and v, for experts, and for a layer's calls. */
typedef struct {
    int64_t qkv, chosen, layer;
} Room;

static Room room_for(const Run *r, int64_t count, const Placed *layers) {
    Room room = {0, 0, 0};
    for (const Placed *p = layers; p < layers + count; p++) {
        const Layer *l = p->layer;
        Shape shape = shape_of(l, p->past, r->m);
        room.qkv = most(room.qkv, aligned(size_of(r, made_columns(l))));
        room.layer = most(room.layer, hetegen_layer_bytes(r->isa, l, r->type, r->m, (const int64_t *)&shape));
        room.chosen = most(room.chosen, chosen_bytes(r, p));
    }
    return room;
}

/* Bytes of scratch memory that hetegen_layers needs. */
EXPORT int64_t hetegen_layers_bytes(int isa, int64_t count, const Placed *layers, int type, int64_t m, int threads) {
    Run r = {isa, type, threads, m};
    Room room = room_for(&r, count, layers);
    return room.qkv + room.chosen + room.layer;
}

/* Copy new [m][kv_heads][dim] to rows of `dim` from `kept` on, `capacity` rows per head. */
static void copy_rows(const Run *r, const Layer *l, const uint8_t *new, uint8_t *kept, int64_t capacity) {
    int64_t a_row = size_of(r, l->dim) / r->m;
    for (int64_t row = 0; row < r->m; row++)
        for (int64_t head = 0; head < l->kv_heads; head++, new += a_row)
            memcpy(kept + (head * capacity + row) * a_row, new, (size_t)a_row);
}

/* The same into packed rows. */
static void pack_rows(const Run *r, const Layer *l, const Past *p, uint8_t *new, uint8_t *kept, int64_t are_keys) {
    int64_t a_row = packed_bytes(l->dim);
    int64_t rows[] = {l->kv_heads, r->m, l->dim, l->dim, l->kv_heads * l->dim, p->capacity * a_row, a_row, are_keys};
    hetegen_states(r->isa, rows, new, r->type, kept, 0, 1);
}

/* Append a layer's k and v to its cache, after the visible tokens. */
static void append(const Run *r, const Layer *l, const Past *p, uint8_t *k, uint8_t *v, const States *seen) {
    int64_t a_float = size_of(r, l->dim) / r->m, end = p->held * (p->packed ? packed_bytes(l->dim) : a_float);
    uint8_t *keys = (uint8_t *)seen->k + end, *values = (uint8_t *)seen->v + end;
    if (!p->packed) {
        copy_rows(r, l, k, keys, p->capacity);
        copy_rows(r, l, v, values, p->capacity);
        return;
    }
    pack_rows(r, l, p, k, keys, 1);
    pack_rows(r, l, p, v, values, 0);
    copy_rows(r, l, k, (uint8_t *)seen->recent_k + p->recent_held * a_float, p->recent_capacity);
    copy_rows(r, l, v, (uint8_t *)seen->recent_v + p->recent_held * a_float, p->recent_capacity);
}

/* The addresses of the first visible token. */
static States seen_of(const Run *r, const Placed *p) {
    const Past *past = p->past;
    int64_t a_float = size_of(r, p->layer->dim) / r->m, recent = past->recent_first * a_float;
    int64_t first = past->first * (past->packed ? packed_bytes(p->layer->dim) : a_float);
    States seen = {(uint8_t *)p->keys + first, (uint8_t *)p->values + first, NULL, NULL};
    if (past->packed) {
        seen.recent_k = (uint8_t *)p->recent_keys + recent;
        seen.recent_v = (uint8_t *)p->recent_values + recent;
    }
    return seen;
}

/* out = sum + the experts' output for x, the norm of sum. */
static void add_experts(const Run *r, const Placed *p, const void *sum, const void *x, void *out, uint8_t *at) {
    const Layer *l = p->layer;
    void *added = taken(&at, size_of(r, l->hidden)), *spare = taken(&at, size_of(r, l->hidden));
    hetegen_mixture(r->isa, p->mixture, x, r->type, r->m, added, at, r->threads);
    add_normed(r, l, &l->after_mlp, sum, added, spare, out);
    scale_result(r, l, out);
}

/* Compute the rest of a layer, with q as hetegen_layer_begin left it. */
static void finish_layer(const Run *r, const Placed *p, const void *x, const void *q, const States *seen, void *out,
                         uint8_t *chosen, uint8_t *rest) {
    const Layer *l = p->layer;
    const Past *past = p->past;
    const void *mask = past->mask;
    Shape shape = shape_of(l, past, r->m);
    const int64_t *sizes = (const int64_t *)&shape;
    float scale = (float)p->scale;
    int threads = (int)past->attention_threads;
    if (!p->mixture) {
        hetegen_layer_end(r->isa, l, x, r->type, sizes, q, seen, mask, p->sinks, scale, threads, p->side, p->side_row, out,
                          rest, r->threads);
        return;
    }
    void *sum = taken(&chosen, size_of(r, l->hidden)), *next = taken(&chosen, size_of(r, l->hidden));
    hetegen_layer_attend(r->isa, l, x, r->type, sizes, q, seen, mask, p->sinks, scale, threads, sum, next, rest,
                         r->threads);
    add_experts(r, p, sum, next, out, chosen);
}

/* Run layers of one width: x [m][hidden] -> out [m][hidden]. */
EXPORT void hetegen_layers(int isa, int64_t count, const Placed *layers, const void *x, int type, int64_t m, void *out,
                           void *scratch, int threads) {
    Run r = {isa, type, threads, m};
    Room room = room_for(&r, count, layers);
    uint8_t *qkv = scratch, *chosen = qkv + room.qkv, *rest = chosen + room.chosen;
    for (const Placed *p = layers; p < layers + count; p++, x = out) {
        const Layer *l = p->layer;
        const Past *past = p->past;
        uint8_t *k = qkv + size_of(&r, query_columns(l)), *v = k + size_of(&r, l->kv_heads * l->dim);
        States seen = seen_of(&r, p);
        hetegen_layer_begin(isa, l, x, type, m, past->cos, past->sin, (int)past->angles, qkv, rest, threads);
        if (!l->borrows) append(&r, l, past, k, v, &seen);
        finish_layer(&r, p, x, qkv, &seen, out, chosen, rest);
    }
}
