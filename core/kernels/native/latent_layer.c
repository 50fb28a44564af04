/* Multi-head latent attention for few input rows in one call: projections -> norms -> rotary angles -> the new rows' latents
 * are appended to the cache -> attention to latents -> projections. Intermediate results are rounded to the type of x
 * wherever torch does. */
#include "norms.h"

/* Rotary layouts: none; pairs of columns (i, i + half); adjacent pairs, whose results are stored half apart; or adjacent
 * pairs that stay adjacent. */
enum Way { UNTURNED = 0, HALVES_APART = 1, NEIGHBOURS_APART = 2, NEIGHBOURS = 3 };

/* All fields have 8 bytes. Weights are parts of hetegen_matmul: `first` produces queries (or, if `query_rank` is not 0, their
 * low-rank input) and latents with their rotary part. */
typedef struct {
    int64_t hidden, heads, plain, turned, rank, value_dim, query_rank, way;
    double scale;
    int64_t first[2 * PART_FIELDS], queries[PART_FIELDS], out[PART_FIELDS];
    NormOf query_norm, latent_norm;
    const Heads *keys, *values; /* plain -> rank, rank -> value_dim */
} LatentLayer;

/* `kept`: the first visible row of the cache, which has `held` rows and room for the new ones; `kept_row`: elements between
 * rows. cos and sin are of type `angles`, `angle_step` elements apart and `angle_row` between rows; mask as in
 * hetegen_attention. */
typedef struct {
    void *kept;
    int64_t held, kept_row, splits, attention_threads, angles, angle_step, angle_row;
    const void *cos, *sin, *mask;
    int64_t mask_row;
} Seen;

INLINE void turn_columns(const void *x, void *to, int64_t count, int64_t way, const void *cos, const void *sin, int64_t step,
                         const int type, const int angles) {
    int64_t half = count / 2;
    for (int64_t i = 0; i < half; i++) {
        int64_t a = way == HALVES_APART ? i : 2 * i, b = way == HALVES_APART ? half + i : 2 * i + 1;
        float low = widened(x, a, type), high = widened(x, b, type);
        float c = widened(cos, i * step, angles), s = widened(sin, i * step, angles);
        float left = rounded(low * c, angles) - rounded(high * s, angles);
        float right = rounded(high * c, angles) + rounded(low * s, angles);
        store(to, way == NEIGHBOURS ? a : i, left, type);
        store(to, way == NEIGHBOURS ? b : half + i, right, type);
    }
}

typedef struct {
    const Run *run;
    const LatentLayer *layer;
    const Seen *seen;
} Call;

static int64_t kept_columns(const LatentLayer *l) { return l->rank + l->turned; }

static int64_t head_columns(const LatentLayer *l) { return l->plain + l->turned; }

/* The bytes of so many elements. */
static int64_t bytes_of(const Run *r, int64_t columns) { return columns * item_bytes(r->type); }

/* Apply an input row's rotary angles to x. */
static void turn(const Call *c, int64_t row, const void *x, void *to) {
    const LatentLayer *l = c->layer;
    const Seen *s = c->seen;
    int64_t size = s->angles == TYPE_F32 ? 4 : 2;
    const uint8_t *cos = (const uint8_t *)s->cos + row * s->angle_row * size;
    const uint8_t *sin = (const uint8_t *)s->sin + row * s->angle_row * size;
    if (l->way == UNTURNED) memcpy(to, x, (size_t)bytes_of(c->run, l->turned));
    else if (c->run->type == TYPE_F32) turn_columns(x, to, l->turned, l->way, cos, sin, s->angle_step, TYPE_F32, TYPE_F32);
    else if (s->angles == TYPE_F32) turn_columns(x, to, l->turned, l->way, cos, sin, s->angle_step, TYPE_BF16, TYPE_F32);
    else turn_columns(x, to, l->turned, l->way, cos, sin, s->angle_step, TYPE_BF16, TYPE_BF16);
}

/* Append latents [m][rank + turned], normed and with rotary angles applied, to the cache. */
static void append(const Call *c, const uint8_t *latents) {
    const Run *r = c->run;
    const LatentLayer *l = c->layer;
    Run one = {r->isa, r->type, 1, 1};
    for (int64_t row = 0; row < r->m; row++, latents += bytes_of(r, kept_columns(l))) {
        uint8_t *to = (uint8_t *)c->seen->kept + bytes_of(r, (c->seen->held + row) * c->seen->kept_row);
        if (normed(&one, &l->latent_norm, latents, l->rank, to) != to) memcpy(to, latents, (size_t)bytes_of(r, l->rank));
        turn(c, row, latents + bytes_of(r, l->rank), to + bytes_of(r, l->rank));
    }
}

/* Project queries q [m][heads][plain + turned] to the latents' space: to [m][heads][rank + turned]. */
static void absorb(const Call *c, const uint8_t *q, uint8_t *to, uint8_t *scratch) {
    const Run *r = c->run;
    const LatentLayer *l = c->layer;
    int64_t given = head_columns(l), made = kept_columns(l);
    hetegen_heads(r->isa, l->keys, q, given, l->heads * given, r->type, r->m, to, made, l->heads * made, scratch, r->threads);
    for (int64_t i = 0; i < r->m * l->heads; i++)
        turn(c, i / l->heads, q + bytes_of(r, i * given + l->plain), to + bytes_of(r, i * made + l->rank));
}

static Shape shape_of(const LatentLayer *l, const Seen *s, int64_t m) {
    int64_t keys = s->held + m, all = keys * s->kept_row, row = l->heads * kept_columns(l);
    Shape shape = {1, l->heads, 1, m, keys, kept_columns(l), l->rank, m * row, kept_columns(l), row, all, all, s->kept_row,
                   all, all, s->kept_row, 0, s->mask_row, s->splits, 0, 0, 0, 0, 0, 0};
    return shape;
}

static int64_t widest_input(const LatentLayer *l) { return most(most(l->hidden, l->query_rank), l->heads * l->value_dim); }

static int64_t room_for_input(const Run *r, const LatentLayer *l) {
    return any_input_bytes(r->m, widest_input(l));
}

static int64_t room_for_heads(const Run *r, const LatentLayer *l) {
    return most(hetegen_heads_bytes(r->isa, l->keys, r->type, r->m), hetegen_heads_bytes(r->isa, l->values, r->type, r->m));
}

/* The bytes of scratch memory that hetegen_latent_layer needs. */
EXPORT int64_t hetegen_latent_layer_bytes(int isa, const LatentLayer *l, int type, int64_t m, const Seen *s) {
    Run r = {isa, type, 1, m};
    Shape shape = shape_of(l, s, m);
    int64_t queries = aligned(size_of(&r, l->heads * head_columns(l))), first = most(l->query_rank, l->heads * head_columns(l));
    int64_t absorbed = aligned(size_of(&r, l->heads * kept_columns(l))), seen = aligned(size_of(&r, l->heads * l->rank));
    return aligned(room_for_input(&r, l)) + queries + aligned(size_of(&r, first + kept_columns(l))) + absorbed + seen +
           aligned(size_of(&r, l->heads * l->value_dim)) +
           most(aligned(room_for_heads(&r, l)), hetegen_attention_bytes((const int64_t *)&shape));
}

/* x and out: [m][hidden] of `type`, fp32 or bf16, m at most MOST_FEW; scratch: hetegen_latent_layer_bytes, 64-byte aligned. */
EXPORT void hetegen_latent_layer(int isa, const LatentLayer *l, const void *x, int type, int64_t m, const Seen *s, void *out,
                                 void *scratch, int threads) {
    Run r = {isa, type, threads, m};
    Call c = {&r, l, s};
    int64_t columns = l->heads * head_columns(l), first = l->query_rank ? l->query_rank : columns;
    uint8_t *at = scratch, *prepared = taken(&at, room_for_input(&r, l)), *queries = taken(&at, size_of(&r, columns));
    uint8_t *made = taken(&at, size_of(&r, most(l->query_rank, columns) + kept_columns(l))), *q = made;
    uint8_t *absorbed = taken(&at, size_of(&r, l->heads * kept_columns(l)));
    uint8_t *seen = taken(&at, size_of(&r, l->heads * l->rank)), *results = taken(&at, size_of(&r, l->heads * l->value_dim));
    Shape shape = shape_of(l, s, m);
    States states = {s->kept, s->kept, NULL, NULL};

    product(&r, 2, l->first, x, l->hidden, prepared, made);
    append(&c, made + size_of(&r, first));
    if (l->query_rank) {
        product(&r, 1, l->queries, normed(&r, &l->query_norm, made, first, made), first, prepared, queries);
        q = queries;
    }
    absorb(&c, q, absorbed, at);
    hetegen_attention(isa, (const int64_t *)&shape, absorbed, &states, s->mask, NULL, (float)l->scale, 0, seen, type, at,
                      (int)s->attention_threads);
    hetegen_heads(isa, l->values, seen, l->rank, l->heads * l->rank, type, m, results, l->value_dim,
                  l->heads * l->value_dim, at, threads);
    product(&r, 1, l->out, results, l->heads * l->value_dim, prepared, out);
}
