/* Threads that share the tasks of one call. */
#ifndef HETEGEN_CREW_H
#define HETEGEN_CREW_H

#include <stdint.h>

/* One of `count` tasks; `worker` is below the number of threads asked for, and only its own at a time. */
typedef void (*CrewTask)(const void *context, int64_t index, int64_t worker);

/* Do tasks 0 .. count-1 on at most `threads` threads, the calling one among them; returns when all are done. */
void crew_run(CrewTask task, const void *context, int64_t count, int threads);

#endif
