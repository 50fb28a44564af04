/* Functions of dispatch.c for calls that multiply more than one input at a time. */
#ifndef HETEGEN_DISPATCH_H
#define HETEGEN_DISPATCH_H

#include "kernels.h"

enum { PART_FIELDS = 8, PART_FORMAT = 6 };

/* Rows [begin, end) of one weight, multiplied with the input of its job. */
typedef struct {
    Job job;
    RowsKernel kernel;
    int64_t begin, end;
} Part;

/* Parts that are multiplied one after another; all their rows together are divided into stretches for the threads. */
typedef struct {
    Part *parts;
    int64_t count;
    const int64_t *bounds;
    int64_t panel_bytes;
} Share;

const Kernels *kernels_of(int isa);
/* Build a part from its fields as described at hetegen_matmul. */
Part part_of(const Kernels *kernels, const int64_t *fields, const Input *input, void *out, int out_type, void *scratch);
/* Multiply all parts; m: the largest number of input rows of any part. */
void run_parts(Share *share, int64_t m, int threads);
/* Set the pointers of an input of m rows into a buffer of hetegen_input_bytes. */
void lay_out(uint8_t *buffer, int64_t m, int64_t columns, int kind, Input *in);
/* Convert row `row` of the input from the elements of x at offset `from`. */
void prepare_row(const Kernels *kernels, const void *x, int type, int64_t from, int64_t row, const Input *in);

#endif
