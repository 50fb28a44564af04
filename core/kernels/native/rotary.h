/* The rotary embedding of heads. */
#ifndef HETEGEN_ROTARY_H
#define HETEGEN_ROTARY_H

#include "elements.h"

/* The rotary embedding: which columns of a head, with which angles. */
typedef struct {
    const void *cos, *sin; /* [turned] */
    int64_t dim, turned, neighbours; /* neighbours: as in Layer */
    int angles; /* their type */
    int stored; /* the type in which torch stores products: fp32 with fp32 angles, or if the model widens its states */
} Turn;

/* Rotate column `low` of x towards column `high`, with the angles `first` and `second`. */
INLINE void turn_pair(void *x, const Turn *t, int64_t low, int64_t high, int64_t first, int64_t second, const int type,
                      const int angles, const int stored) {
    float a = widened(x, low, type), b = widened(x, high, type);
    float a_cos = rounded(a * widened(t->cos, first, angles), stored);
    float b_sin = rounded(b * widened(t->sin, first, angles), stored);
    float b_cos = rounded(b * widened(t->cos, second, angles), stored);
    float a_sin = rounded(a * widened(t->sin, second, angles), stored);
    store(x, low, a_cos - b_sin, type);
    store(x, high, b_cos + a_sin, type);
}

/* Apply the rotary embedding to x [count][dim] in place, in the first `turned` columns. Neighbours share the angle of
 * the first half, or have angles in the order of columns. */
INLINE void turn_heads(void *x, int64_t count, const Turn *t, const int type, const int angles, const int stored) {
    int64_t half = t->turned / 2;
    for (int64_t at = 0; at < count * t->dim; at += t->dim) {
        if (t->neighbours) {
            int64_t step = t->neighbours == 2 ? 2 : 1;
            for (int64_t i = 0; i < half; i++)
                turn_pair(x, t, at + 2 * i, at + 2 * i + 1, step * i, step * i + step - 1, type, angles, stored);
            continue;
        }
        SIMD
        for (int64_t i = 0; i < half; i++) turn_pair(x, t, at + i, at + half + i, i, half + i, type, angles, stored);
    }
}

/* The loop specialised by type, as part of a file's LOOPS, which loops.h compiles for each instruction set. */
#define TURN_LOOP(name, isa)                                                                     \
    isa static void name##_turn(void *x, int64_t count, const Turn *t, int type) {               \
        if (type == TYPE_F32) turn_heads(x, count, t, TYPE_F32, TYPE_F32, TYPE_F32);             \
        else if (t->angles == TYPE_F32) turn_heads(x, count, t, TYPE_BF16, TYPE_F32, TYPE_F32);  \
        else if (t->stored == TYPE_F32) turn_heads(x, count, t, TYPE_BF16, TYPE_BF16, TYPE_F32); \
        else turn_heads(x, count, t, TYPE_BF16, TYPE_BF16, TYPE_BF16);                           \
    }

#endif
