/* A short convolution layer for one token in one call: projections b, c, x -> causal convolution of b x -> times c ->
 * output projection. Intermediate results are rounded to the type of x wherever torch does. */
#include "products.h"
#include "recurrent.h"

/* All fields have 8 bytes. A row of projections consists of b, c and x, [channels] each. */
struct ShortLayer {
    int64_t hidden, channels, taps;
    int64_t in[PART_FIELDS];
    const float *weight, *bias; /* of the convolution */
    int64_t out[PART_FIELDS];
};

INLINE void multiply_both(const void *a, const void *b, void *to, int64_t count, const int type) {
    SIMD
    for (int64_t i = 0; i < count; i++) store(to, i, widened(a, i, type) * widened(b, i, type), type);
}

typedef struct {
    void (*multiply)(const void *a, const void *b, void *to, int64_t count, int type);
} Loops;

#define LOOPS(name, isa)                                                                              \
    isa static void name##_multiply(const void *a, const void *b, void *to, int64_t count, int type) { \
        if (type == TYPE_F32) multiply_both(a, b, to, count, TYPE_F32);                               \
        else multiply_both(a, b, to, count, TYPE_BF16);                                               \
    }                                                                                                 \
    static const Loops name = {name##_multiply};
#include "loops.h"

/* The bytes of scratch memory that short_layer needs. */
int64_t short_layer_bytes(const ShortLayer *l, int type) {
    int64_t item = item_bytes(type);
    return aligned(any_input_bytes(1, most(l->hidden, l->channels))) + 3 * aligned(l->channels * item)
         + 2 * aligned(l->channels * item);
}

/* x and out: [hidden] of `type`, fp32 or bf16; scratch: short_layer_bytes, 64-byte aligned. */
void short_layer(int isa, const ShortLayer *l, const void *x, int type, const Memory *memory, void *out, void *scratch,
                 int threads) {
    Run r = {isa, type, threads, 1};
    int64_t n = l->channels, bytes = size_of(&r, n);
    uint8_t *at = scratch, *prepared = taken(&at, any_input_bytes(1, most(l->hidden, n)));
    uint8_t *b = taken(&at, 3 * bytes), *c = b + bytes, *given = c + bytes;
    uint8_t *opened = taken(&at, bytes), *mixed = taken(&at, bytes);

    product(&r, 1, l->in, x, l->hidden, prepared, b);
    loops_of(isa)->multiply(b, given, opened, n, type);
    Convolution convolution = {1, n, n, memory->kept_rows, l->taps, 0, memory->kept, opened, l->weight, l->bias, mixed, type};
    hetegen_convolve(isa, &convolution, 1);
    loops_of(isa)->multiply(c, mixed, opened, n, type);
    product(&r, 1, l->out, opened, n, prepared, out);
}
