/* Runs the tasks of one call on several threads. */
#ifndef HETEGEN_THREAD_POOL_H
#define HETEGEN_THREAD_POOL_H

#include <stdint.h>

/* Runs one of `count` tasks; `worker` is less than the number of threads, and no two threads share it at a time. */
typedef void (*PoolTask)(const void *context, int64_t index, int64_t worker);

/* Run tasks 0 .. count-1 on at most `threads` threads, including the calling one; return when all are done. */
void pool_run(PoolTask task, const void *context, int64_t count, int threads);

#endif
