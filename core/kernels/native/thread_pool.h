/* Threads that share the tasks of one call. */
#ifndef HETEGEN_THREAD_POOL_H
#define HETEGEN_THREAD_POOL_H

#include <stdint.h>

/* One of `count` tasks; `worker` is below the number of threads asked for, and only its own at a time. */
typedef void (*PoolTask)(const void *context, int64_t index, int64_t worker);

/* Do tasks 0 .. count-1 on at most `threads` threads, the calling one among them; returns when all are done. */
void pool_run(PoolTask task, const void *context, int64_t count, int threads);

#endif
