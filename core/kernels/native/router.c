/* Expert routing for a few rows of input: one product with a small matrix, then the choice of experts and their
 * weights, for which torch makes half a dozen calls. */
#include "calls.h"
#include "dispatch.h"
#include "elements.h"
#include "thread_pool.h"

enum Shares { SOFTMAX_OF_ALL = 0, SOFTMAX_OF_CHOSEN = 1, SIGMOID_OF_EACH = 2 };
enum { MOST_EXPERTS = 1024 };

/* All fields are 8 bytes. */
struct Router {
    int64_t experts, hidden, choices, kind, normed; /* normed: a row's shares are divided by their sum */
    int64_t rounded_scores, rounded_shares;         /* to bfloat16 */
    int64_t groups, kept_groups, group_best;        /* experts are chosen within the best groups; 1, 1 = no groups */
    double scale, eps;
    const int64_t *weight;        /* hetegen_matmul's fields: [experts][hidden]; NULL = see wide */
    const float *wide;            /* [experts][hidden] */
    const float *bias, *correction; /* [experts]; the correction affects the choice, not the shares; NULL = none */
    const float *gain, *worth;    /* [hidden]: norm before the product; [experts]: factor of the shares; NULL = none */
};

static int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

static int kind_of(int isa, const Router *r, int64_t m) {
    return hetegen_input_kind(isa, (int)r->weight[PART_FORMAT], m, TYPE_F32);
}

static int64_t normed_bytes(const Router *r, int type, int64_t m) {
    return r->gain ? aligned(m * r->hidden * item_bytes(type)) : 0;
}

EXPORT int64_t hetegen_route_bytes(int isa, const Router *r, int type, int64_t m) {
    int64_t input = r->weight ? hetegen_input_bytes(m, r->hidden, kind_of(isa, r, m)) : m * r->hidden * 4;
    return normed_bytes(r, type, m) + aligned(input);
}

/* The index of the largest value, the first of equals. */
static int64_t best_of(const float *x, int64_t count) {
    int64_t best = 0;
    for (int64_t i = 1; i < count; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

static void softmax(float *x, int64_t count) {
    float top = x[best_of(x, count)], sum = 0;
    for (int64_t i = 0; i < count; i++) sum += x[i] = expf(x[i] - top);
    for (int64_t i = 0; i < count; i++) x[i] /= sum;
}

/* Exclude experts outside the best groups: a group's score is its best expert's, or the sum of its two best. */
static void keep_groups(const Router *r, float *x) {
    float sums[MOST_EXPERTS];
    int64_t size = r->experts / r->groups;
    for (int64_t g = 0; g < r->groups; g++) {
        float first = -INFINITY, second = -INFINITY;
        for (int64_t i = g * size; i < (g + 1) * size; i++) {
            float smaller = x[i] < first ? x[i] : first;
            second = smaller > second ? smaller : second;
            first = x[i] > first ? x[i] : first;
        }
        sums[g] = size > 1 && r->group_best > 1 ? first + second : first;
    }
    for (int64_t kept = 0; kept < r->groups; kept++) {
        int64_t g = best_of(sums, r->groups);
        sums[g] = -INFINITY;
        for (int64_t i = g * size; kept >= r->kept_groups && i < (g + 1) * size; i++) x[i] = -INFINITY;
    }
}

/* Choose experts by the scores [experts] of one row; `wanted` holds the scores with corrections. */
static void choose(const Router *r, float *scores, int64_t *chosen, float *shares) {
    float wanted[MOST_EXPERTS], sum = 0;
    if (r->kind == SOFTMAX_OF_ALL) softmax(scores, r->experts);
    /* The sigmoid of many large scores is 1, but they differ. */
    int by_score = r->kind == SIGMOID_OF_EACH && !r->correction && r->kept_groups == r->groups;
    for (int64_t i = 0; i < r->experts; i++) {
        float score = scores[i];
        if (r->kind == SIGMOID_OF_EACH) scores[i] = 1.0f / (1.0f + expf(-score));
        wanted[i] = by_score ? score : r->correction ? scores[i] + r->correction[i] : scores[i];
    }
    if (r->kept_groups < r->groups) keep_groups(r, wanted);
    for (int64_t k = 0; k < r->choices; k++) {
        chosen[k] = best_of(wanted, r->experts);
        shares[k] = scores[chosen[k]];
        wanted[chosen[k]] = -INFINITY;
        sum += shares[k];
    }
    if (r->kind == SOFTMAX_OF_CHOSEN) softmax(shares, r->choices);
    for (int64_t k = 0; k < r->choices; k++) {
        float share = (r->normed ? shares[k] / sum : shares[k]) * (float)r->scale;
        if (r->worth) share *= r->worth[chosen[k]];
        shares[k] = r->rounded_shares ? bf16_to_float(round_bf16(share)) : share;
    }
}

/* Experts scored per task. */
enum { SOME_EXPERTS = 32 };

typedef struct {
    const Router *r;
    const float *x; /* [m][hidden] */
    int64_t m;
    float *scores; /* [m][experts] */
} Wide;

#if defined(HETEGEN_X86)
#define WIDE_TARGET TARGET("avx2,fma")
#else
#define WIDE_TARGET
#endif

WIDE_TARGET static float product(const float *a, const float *b, int64_t count) {
    float sums[16] = {0}, total = 0;
    int64_t whole = count - count % 16;
    for (int64_t at = 0; at < whole; at += 16) {
        SIMD
        for (int64_t i = 0; i < 16; i++) sums[i] += a[at + i] * b[at + i];
    }
    for (int64_t i = whole; i < count; i++) total += a[i] * b[i];
    for (int64_t i = 0; i < 16; i++) total += sums[i];
    return total;
}

static void score_some(const void *context, int64_t task, int64_t thread) {
    const Wide *w = context;
    int64_t end = (task + 1) * SOME_EXPERTS < w->r->experts ? (task + 1) * SOME_EXPERTS : w->r->experts;
    (void)thread;
    for (int64_t e = task * SOME_EXPERTS; e < end; e++)
        for (int64_t i = 0; i < w->m; i++)
            w->scores[i * w->r->experts + e] = product(w->r->wide + e * w->r->hidden, w->x + i * w->r->hidden, w->r->hidden);
}

static void score_wide(const Router *r, const void *x, int type, int64_t m, float *scores, float *scratch, int threads) {
    Wide wide = {r, scratch, m, scores};
    for (int64_t i = 0; i < m * r->hidden; i++) scratch[i] = widened(x, i, type);
    pool_run(score_some, &wide, (r->experts + SOME_EXPERTS - 1) / SOME_EXPERTS, threads);
}

static void score(int isa, const Router *r, const void *x, int type, int64_t m, float *scores, void *scratch, int threads) {
    if (!r->weight) {
        score_wide(r, x, type, m, scores, scratch, threads);
        return;
    }
    hetegen_prepare(isa, x, type, m, r->hidden, r->hidden, scratch, kind_of(isa, r, m), 1);
    hetegen_matmul(isa, 1, r->weight, scratch, m, r->hidden, scores, TYPE_F32, NULL, threads);
}

/* x [m][hidden] of `type`, m at most MOST_FEW; scores [m][experts]: the product plus bias; chosen, shares [m][choices].
 * scratch: hetegen_route_bytes. */
EXPORT void hetegen_route(int isa, const Router *r, const void *x, int type, int64_t m, float *scores, int64_t *chosen,
                          float *shares, void *scratch, int threads) {
    float row[MOST_EXPERTS];
    uint8_t *normed = scratch, *rest = normed + normed_bytes(r, type, m);
    if (r->gain) hetegen_rms_norm(isa, x, type, m, r->hidden, r->gain, (float)r->eps, 1, 0, normed, 1);
    score(isa, r, r->gain ? normed : x, type, m, scores, rest, threads);
    for (int64_t i = 0; i < m; i++) {
        float *own = scores + i * r->experts;
        for (int64_t e = 0; e < r->experts; e++) {
            float score = r->bias ? own[e] + r->bias[e] : own[e];
            row[e] = own[e] = r->rounded_scores ? bf16_to_float(round_bf16(score)) : score;
        }
        choose(r, row, chosen + i * r->choices, shares + i * r->choices);
    }
}
