/* Consecutive products for few rows of input, with intermediate results in scratch memory. */
#ifndef HETEGEN_PRODUCTS_H
#define HETEGEN_PRODUCTS_H

#include "calls.h"
#include "dispatch.h"
#include "elements.h"

typedef struct {
    int isa, type, threads;
    int64_t m;
} Run;

INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

INLINE int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

INLINE uint8_t *taken(uint8_t **at, int64_t bytes) {
    uint8_t *from = *at;
    *at += aligned(bytes);
    return from;
}

/* Bytes of m rows of `columns` elements. */
INLINE int64_t size_of(const Run *r, int64_t columns) { return r->m * columns * item_bytes(r->type); }

/* The bytes of a prepared input of so many columns, whatever kind the weights take. */
INLINE int64_t any_input_bytes(int64_t m, int64_t columns) {
    int64_t bytes = 0;
    for (int kind = FLOATS; kind <= AS_GIVEN; kind++) bytes = most(bytes, hetegen_input_bytes(m, columns, kind));
    return bytes;
}

INLINE int kind_of(const Run *r, const int64_t *fields) {
    return hetegen_input_kind(r->isa, (int)fields[PART_FORMAT], r->m, r->type);
}

/* Multiply x [m][columns] with the weights of `parts` parts; `prepared`: room for the prepared input. */
INLINE void product(const Run *r, int64_t parts, const int64_t *fields, const void *x, int64_t columns, void *prepared,
                    void *to) {
    hetegen_prepare(r->isa, x, r->type, r->m, columns, columns, prepared, kind_of(r, fields), 1);
    hetegen_matmul(r->isa, parts, fields, prepared, r->m, columns, to, r->type, NULL, r->threads);
}

#endif
