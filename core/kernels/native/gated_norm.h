/* The norm of a recurrent layer's result by groups of columns, with its gate. */
#ifndef HETEGEN_GATED_NORM_H
#define HETEGEN_GATED_NORM_H

#include "elements.h"

typedef struct {
    int64_t groups, columns; /* of each group, which is normalised on its own */
    const float *gain;
    int64_t gain_step; /* elements of `gain` from one group to the next; 0 = all groups have the same */
    float eps;
    int rounded;    /* whether torch rounds before and after the multiplication with the gain */
    int norm_first; /* whether the gate multiplies the norm's result, instead of its input */
} Gated;

/* Normalise x [columns] and multiply it with the activated gate, in place. */
INLINE void open_group(const Gated *g, const float *gain, void *x, const void *gate, int64_t at, const int norm_first,
                       const int type) {
    float sum = 0;
    SIMD_SUM(sum)
    for (int64_t i = at; i < at + g->columns; i++) {
        float value = widened(x, i, type) * (norm_first ? 1 : activated(widened(gate, i, type), SILU));
        sum += value * value;
    }
    float by = 1.0f / sqrtf(sum / (float)g->columns + g->eps);
    SIMD
    for (int64_t i = at; i < at + g->columns; i++) {
        float open = activated(widened(gate, i, type), SILU), value = widened(x, i, type) * (norm_first ? 1 : open) * by;
        float normed = g->rounded ? rounded(gain[i - at] * rounded(value, type), type) : gain[i - at] * value;
        store(x, i, norm_first ? normed * open : normed, type);
    }
}

/* Do so for each group of x [groups][columns]. */
typedef void OpenGroups(const Gated *g, void *x, const void *gate, int type);

/* The loop over groups specialised by type, for a file's LOOPS. */
#define OPEN_GROUPS(name, isa)                                                                         \
    isa static void name(const Gated *g, void *x, const void *gate, int type) {                        \
        const float *gain = g->gain;                                                                   \
        for (int64_t at = 0; at < g->groups * g->columns; at += g->columns, gain += g->gain_step) {    \
            if (g->norm_first && type == TYPE_F32) open_group(g, gain, x, gate, at, 1, TYPE_F32);      \
            else if (g->norm_first) open_group(g, gain, x, gate, at, 1, TYPE_BF16);                    \
            else if (type == TYPE_F32) open_group(g, gain, x, gate, at, 0, TYPE_F32);                  \
            else open_group(g, gain, x, gate, at, 0, TYPE_BF16);                                       \
        }                                                                                              \
    }

#endif
