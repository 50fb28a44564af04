/* Quantises keys and values to 8 bits, and dequantises them for code that computes with floats. */
#include "packed_states.h"

#include "attention.h"
#include "calls.h"
#include "thread_pool.h"

enum { MOST_STATE_COLUMNS = 1024, ROWS_AT_ONCE = 64 };

/* The rows of `heads` heads; strides in elements, of packed rows in bytes. `mixed`: 1 for keys. */
typedef struct {
    int64_t heads, rows, dim, head, row, packed_head, packed_row, mixed;
} Rows;

/* Quantise at most STATE_GROUP values; return their scale, rounded to bf16 before use. NaN if one of them is not
 * finite. */
INLINE float pack_group(const float *x, int64_t count, int8_t *to) {
    float top = 0, rest = 0;
    SIMD_MAX(top)
    for (int64_t d = 0; d < count; d++) top = fabsf(x[d]) > top ? fabsf(x[d]) : top;
    for (int64_t d = 0; d < count; d++) rest += x[d] - x[d];
    if (rest != rest) {
        for (int64_t d = 0; d < count; d++) to[d] = 0;
        return NAN;
    }
    float scale = bf16_to_float(round_bf16(top / 127.0f));
    float factor = scale > SMALLEST ? 1.0f / scale : 0.0f;
    for (int64_t d = 0; d < count; d++) {
        float value = x[d] * factor;
        value = value > 127.0f ? 127.0f : value < -127.0f ? -127.0f : value;
        to[d] = (int8_t)(int32_t)((value + 12582912.0f) - 12582912.0f); /* round to nearest */
    }
    return scale;
}

INLINE void pack_row(const void *from, int64_t at, const Rows *s, const int type, int8_t *to) {
    float x[MOST_STATE_COLUMNS];
    widen_row(from, at, s->dim, type, x);
    if (s->mixed) mix(x, s->dim);
    for (int64_t begin = 0; begin < s->dim; begin += STATE_GROUP) {
        int64_t count = s->dim - begin < STATE_GROUP ? s->dim - begin : STATE_GROUP;
        uint16_t scale = round_bf16(pack_group(x + begin, count, to + begin));
        memcpy(to + s->dim + begin / STATE_GROUP * 2, &scale, 2);
    }
}

INLINE void unpack_row(const int8_t *from, const Rows *s, const int type, void *to, int64_t at) {
    float x[MOST_STATE_COLUMNS];
    widen_packed(from, s->dim, x);
    if (s->mixed) mix(x, s->dim);
    if (type == TYPE_F32) memcpy((float *)to + at, x, (size_t)s->dim * sizeof(float));
    else {
        uint16_t *bits = (uint16_t *)to + at;
        SIMD
        for (int64_t d = 0; d < s->dim; d++) bits[d] = round_bf16(x[d]);
    }
}

typedef struct {
    Rows s;
    void *floats;
    int8_t *packed;
    int isa, type, widens;
} Packing;

/* Convert up to ROWS_AT_ONCE rows of one head. */
INLINE void do_rows(const Packing *p, int64_t index) {
    const Rows *s = &p->s;
    int64_t parts = (s->rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE, head = index / parts, row = index % parts * ROWS_AT_ONCE;
    int64_t end = row + ROWS_AT_ONCE < s->rows ? row + ROWS_AT_ONCE : s->rows;
    for (; row < end; row++) {
        int64_t at = head * s->head + row * s->row;
        int8_t *packed = p->packed + head * s->packed_head + row * s->packed_row;
        if (p->widens) unpack_row(packed, s, p->type, p->floats, at);
        else pack_row(p->floats, at, s, p->type, packed);
    }
}

static void rows_plain(const Packing *p, int64_t index) { do_rows(p, index); }
#if defined(HETEGEN_X86)
TARGET("avx2,fma") static void rows_avx2(const Packing *p, int64_t index) { do_rows(p, index); }
#else
#define rows_avx2 rows_plain
#endif

static void do_task(const void *context, int64_t index, int64_t thread) {
    const Packing *p = context;
    (void)thread;
    if (takes_avx2(p->isa)) rows_avx2(p, index);
    else rows_plain(p, index);
}

/* Quantise floats (fp32 or bf16) of [heads][rows][dim], or dequantise to them; `shape`: the fields of Rows in order. */
EXPORT void hetegen_states(int isa, const int64_t *shape, void *floats, int type, void *packed, int widens, int threads) {
    Packing p = {*(const Rows *)shape, floats, (int8_t *)packed, isa, type, widens};
    pool_run(do_task, &p, p.s.heads * ((p.s.rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE), threads);
}
