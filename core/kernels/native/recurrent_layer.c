/* Recurrent layers of any kind, for one token in one call. */
#include "recurrent.h"

/* The bytes of scratch memory that hetegen_recurrent_layer needs. */
EXPORT int64_t hetegen_recurrent_layer_bytes(int kind, const void *layer, int type) {
    if (kind == DELTA_LAYER) return delta_layer_bytes(layer, type);
    return kind == SHORT_LAYER ? short_layer_bytes(layer, type) : state_layer_bytes(layer, type);
}

/* x and out: [hidden] of `type`, fp32 or bf16; scratch: hetegen_recurrent_layer_bytes, 64-byte aligned. */
EXPORT void hetegen_recurrent_layer(int isa, int kind, const void *layer, const void *x, int type, const Memory *memory,
                                    void *out, void *scratch, int threads) {
    if (kind == DELTA_LAYER) delta_layer(isa, layer, x, type, memory, out, scratch, threads);
    else if (kind == SHORT_LAYER) short_layer(isa, layer, x, type, memory, out, scratch, threads);
    else state_layer(isa, layer, x, type, memory, out, scratch, threads);
}
