/* What this processor can compute, and the system lets it. */
#ifndef HETEGEN_PROCESSOR_H
#define HETEGEN_PROCESSOR_H

/* Whether it runs the kernels of an instruction set. */
int runs_kernels_of(int isa);
/* Whether it multiplies pairs of bf16 and looks up bytes in tables of 128, and kernels for that were compiled. */
int has_short_products(void);
/* Whether it multiplies tiles of bf16 (AMX). */
int has_tiles(void);

#endif
