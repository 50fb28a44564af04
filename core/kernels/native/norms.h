/* RMS norms, and layer norms without a bias, between the products of a layer. */
#ifndef HETEGEN_NORMS_H
#define HETEGEN_NORMS_H

#include "products.h"

typedef struct {
    const float *gain; /* NULL = no norm */
    double eps;
    int64_t rounded, columns, centred;
} NormOf;

/* Normalise x, m rows of `columns`, into `to`, which may be x; return x itself if there is no norm. */
INLINE const void *normed(const Run *r, const NormOf *n, const void *x, int64_t columns, void *to) {
    if (!n->gain) return x;
    hetegen_rms_norm(r->isa, x, r->type, r->m * columns / n->columns, n->columns, n->gain, (float)n->eps,
                     (int)n->rounded, (int)n->centred, to, 1);
    return to;
}

#endif
