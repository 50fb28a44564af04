/* Asking the memory for the weights of the next matmul while it has nothing else to do.
 *
 * Between two matmuls of a token Python runs on one thread, and the crew's others wait. A model multiplies its weights in
 * the same order for every token, so what follows a weight is learned, and the waiting threads bring its beginning into
 * the cache. They only ask: an address that is no longer valid does no harm. */
#ifndef HETEGEN_AHEAD_H
#define HETEGEN_AHEAD_H

#include <stdint.h>

enum { MOST_SPANS = 4 };

/* The bytes of the weights of one call; of more than MOST_SPANS the first ones. */
typedef struct {
    const uint8_t *at;
    int64_t bytes;
} Span;

#if defined(__linux__)
/* A call that reads these begins: what helpers ask for stops. True if ahead_start is to be called at its end: calls
 * that overlap teach nothing. */
int ahead_stop(const Span *spans, int64_t count);
/* It has ended: if the same one followed it twice, helpers begin to ask for the next. */
void ahead_start(void);
/* One piece of it; 0 if there is nothing to ask for. */
int ahead_step(void);
#else
static inline int ahead_stop(const Span *spans, int64_t count) { (void)spans, (void)count; return 0; }
static inline void ahead_start(void) {}
#endif

#endif
