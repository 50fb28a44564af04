/* Products of the inputs of several attention heads with a weight each. The rows of all weights are divided among threads
 * as one range. For few input rows. */
#include "products.h"

/* All fields have 8 bytes; `fields`: [heads][PART_FIELDS] as in hetegen_matmul, all of one format. */
struct Heads {
    int64_t heads, columns, format;
    const int64_t *fields;
};

static int64_t input_bytes(const Run *r, const Heads *h) {
    return hetegen_input_bytes(r->m, h->columns, hetegen_input_kind(r->isa, (int)h->format, r->m, r->type));
}

/* The bytes of scratch memory that hetegen_heads needs. */
EXPORT int64_t hetegen_heads_bytes(int isa, const Heads *h, int type, int64_t m) {
    Run r = {isa, type, 1, m};
    int64_t listed = aligned(h->heads * (int64_t)sizeof(Part)) + aligned(h->heads * (int64_t)sizeof(Input));
    return listed + h->heads * aligned(input_bytes(&r, h));
}

/* Prepare m input rows of one head, from element `from` of x on, for its weight. */
static void prepare_head(const Run *r, const Heads *h, const void *x, int64_t from, int64_t x_row, uint8_t *buffer,
                         Input *in) {
    lay_out(buffer, r->m, h->columns, hetegen_input_kind(r->isa, (int)h->format, r->m, r->type), in);
    for (int64_t row = 0; row < r->m; row++) prepare_row(kernels_of(r->isa), x, r->type, from + row * x_row, row, in);
}

/* For each head: out = its rows of x times its weight. x and out are of `type`; their strides between heads and rows are in
 * elements. scratch: hetegen_heads_bytes, 64-byte aligned; m is at most MOST_FEW. */
EXPORT void hetegen_heads(int isa, const Heads *h, const void *x, int64_t x_head, int64_t x_row, int type, int64_t m,
                          void *out, int64_t out_head, int64_t out_row, void *scratch, int threads) {
    Run r = {isa, type, threads, m};
    uint8_t *at = scratch;
    Part *parts = (Part *)taken(&at, h->heads * (int64_t)sizeof(Part));
    Input *inputs = (Input *)taken(&at, h->heads * (int64_t)sizeof(Input));
    for (int64_t head = 0; head < h->heads; head++) {
        void *to = (uint8_t *)out + head * out_head * item_bytes(type);
        prepare_head(&r, h, x, head * x_head, x_row, taken(&at, input_bytes(&r, h)), inputs + head);
        parts[head] = part_of(kernels_of(isa), h->fields + head * PART_FIELDS, inputs + head, to, type, NULL);
        parts[head].job.out_stride = out_row;
    }
    Share share = {parts, h->heads, NULL, 0};
    run_parts(&share, m, threads);
}
