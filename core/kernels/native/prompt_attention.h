/* Definitions that the kernels for attention of many query rows share: one task, and its part of the scratch memory.
 *
 * A task computes BLOCK_ROWS query rows of one KV head, SPAN keys at a time (online softmax). Its rows are the lanes of
 * all registers: a key or value is broadcast, and maxima and sums need no reduction across lanes. A cell (32 bits) is a
 * float, or two adjacent bf16 values where the processor multiplies pairs. */
#ifndef HETEGEN_PROMPT_ATTENTION_H
#define HETEGEN_PROMPT_ATTENTION_H

#include "attention.h"

/* Query rows of a task; keys between two maxima (torch takes as many: bf16 weights are then rounded alike); and keys that
 * are converted at a time. */
enum { BLOCK_ROWS = 64, SPAN = 512, STEP = 64 };

/* Scores of masked keys, and of rows before their first key: finite, so that no difference of them is NaN. */
#define MASKED -1e36f
#define LOWEST -1e30f
#define LOG2_E 1.44269504f

/* 2^x = 1 + x (POWER_1 + x (POWER_2 + ...)) for |x| <= 1/2, with a relative error of at most 1e-7. */
#define POWER_1 6.931469776e-01f
#define POWER_2 2.402224209e-01f
#define POWER_3 5.550733743e-02f
#define POWER_4 9.671512640e-03f
#define POWER_5 1.326472722e-03f

/* 1 + x - 2^x in [0, 1), with the least error of a cubic (1.1e-4): adding it to the exponent and mantissa of e^x as one
 * number (Malossi et al.). torch does the same where weights are rounded to bf16; the same steps give the same bits. */
#define BEND_0 1.070343494e-04f
#define BEND_1 3.035426050e-01f
#define BEND_2 -2.243383648e-01f
#define BEND_3 -7.920424022e-02f
#define LEAST_EXPONENT -87.3365478515625f
#define MANTISSA 8388608.0f

/* The query rows [first, first + rows) of a KV head, counted over its queries and the heads of each. */
typedef struct {
    const Attention *a;
    int64_t b, kv_head, first, rows;
    int64_t from, to;               /* all keys that any row sees */
    int64_t last_begin, first_end;  /* between these, every row sees all keys */
    float scale;                    /* of the scores */
    int32_t *begin, *end;           /* [BLOCK_ROWS]: the keys that each row sees */
    float *top, *sum;               /* [BLOCK_ROWS] */
    uint32_t *q;                    /* [cells of dim][BLOCK_ROWS] */
    float *scores;                  /* [SPAN][BLOCK_ROWS]; then cells of weights */
    float *values;                  /* [value_dim][BLOCK_ROWS] */
    float *tile;                    /* a step's converted keys [STEP][dim], or values [STEP][value_dim] */
} Block;

INLINE int64_t block_cells(const Shape *n) {
    int64_t widest = n->dim > n->value_dim ? n->dim : n->value_dim;
    return BLOCK_ROWS * (4 + n->dim + SPAN + n->value_dim) + STEP * widest;
}

/* The rows' results: totals, or pairs of bf16 (`paired`), in cells [value_dim][BLOCK_ROWS]. */
INLINE void put_rows(const Block *b, const uint32_t *cells, int paired) {
    const Shape *n = &b->a->n;
    int64_t shared = n->heads / n->kv_heads, count = paired ? n->value_dim / 2 : n->value_dim;
    for (int64_t row = 0; row < b->rows; row++) {
        int64_t query = (b->first + row) / shared, head = b->kv_head * shared + (b->first + row) % shared;
        int64_t at = ((b->b * n->queries + query) * n->heads + head) * n->value_dim;
        const uint32_t *from = cells + row;
        if (paired || b->a->type == TYPE_F32) {
            uint8_t *to = (uint8_t *)b->a->out + at * (paired ? 2 : 4);
            for (int64_t i = 0; i < count; i++) memcpy(to + i * 4, from + i * BLOCK_ROWS, 4);
        } else {
            uint16_t *to = (uint16_t *)b->a->out + at;
            for (int64_t i = 0; i < count; i++) to[i] = round_bf16(((const float *)from)[i * BLOCK_ROWS]);
        }
    }
}

void prompt_block_avx512(const Block *b);
void prompt_block_pairs(const Block *b);
void prompt_block_avx2(const Block *b);

#endif
