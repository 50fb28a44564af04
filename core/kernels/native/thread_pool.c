/* A thread pool of our own, in which any thread takes the next task and no call waits for a thread that took none. An
 * OpenMP call ends only when all threads have arrived; on a busy machine, the scheduler may delay a woken thread by
 * milliseconds, and a token makes a hundred calls. */
#include "thread_pool.h"

#include "os_threads.h"

enum { MOST_THREADS = 128, TASK_BITS = 20 };
#define TASK_MASK ((1ull << TASK_BITS) - 1)
#define CALL_SHIFT (2 * TASK_BITS + 8)
/* Time to spin for the next call: the calls of one token are some dozens of microseconds apart. */
#define SPIN_NS 150000
#define LOOKS_PER_CLOCK 64

typedef struct {
    PoolTask task;
    const void *context;
} Call;

/* The state of the current call in one word, so that taking a task and checking its call is one atomic step: call
 * number (16 bits), threads that may help (8), task count (20), next task (20). Only a thread that has taken a task may
 * read `call`: the call cannot end before that task is done. */
static Shared state;
static Shared done;
static Call call;
static Lock calling = LOCK_INIT; /* one call at a time */
static Lock sleeping = LOCK_INIT;
static Condition wake = CONDITION_INIT;
static Shared sleepers;
static int helpers; /* threads started, callers not counted */

/* Take and run tasks until none is left for this worker. */
static void help(uint64_t worker) {
    uint64_t word = shared_read(&state);
    for (;;) {
        uint64_t next = word & TASK_MASK, count = word >> TASK_BITS & TASK_MASK, threads = word >> 2 * TASK_BITS & 255;
        if (next >= count || worker >= threads) return;
        if (!shared_replace(&state, &word, word + 1)) continue;
        call.task(call.context, (int64_t)next, (int64_t)worker);
        shared_add(&done, 1);
        word = shared_read(&state);
    }
}

static int called_since(uint64_t seen) { return shared_read(&state) >> CALL_SHIFT != seen >> CALL_SHIFT; }

static void sleep_until_called(uint64_t seen) {
    os_lock(&sleeping);
    shared_add(&sleepers, 1);
    while (!called_since(seen)) os_wait(&wake, &sleeping);
    shared_add(&sleepers, -1);
    os_unlock(&sleeping);
}

static THREAD_RESULT helper(void *argument) {
    uint64_t worker = (uint64_t)(uintptr_t)argument;
    for (;;) {
        uint64_t seen = shared_read(&state);
        help(worker);
        int64_t until = os_now_ns() + SPIN_NS;
        for (int looks = 1; !called_since(seen); looks++) {
            os_pause();
            if (looks % LOOKS_PER_CLOCK == 0 && os_now_ns() > until) sleep_until_called(seen);
        }
    }
    return 0;
}

/* Start helper threads until there are `wanted`, or as many as the system allows. */
static void grow(int wanted) {
    while (helpers < wanted && helpers < MOST_THREADS - 1) {
        if (!os_start(helper, (void *)(uintptr_t)(helpers + 1))) return;
        helpers++;
    }
}

static void run_shared(PoolTask task, const void *context, int64_t count, int threads) {
    grow(threads - 1);
    call = (Call){task, context};
    shared_write(&done, 0);
    uint64_t number = (shared_read(&state) >> CALL_SHIFT) + 1;
    uint64_t word = number << CALL_SHIFT | (uint64_t)threads << 2 * TASK_BITS | (uint64_t)count << TASK_BITS;
    shared_write(&state, word);
    if (shared_read(&sleepers) > 0) {
        os_lock(&sleeping);
        os_wake_all(&wake);
        os_unlock(&sleeping);
    }
    help(0);
    for (int looks = 1; (int64_t)shared_read(&done) < count; looks++) {
        os_pause();
        /* A helper in the middle of its task may be waiting for this core. */
        if (looks % 1024 == 0) os_yield();
    }
}

void pool_run(PoolTask task, const void *context, int64_t count, int threads) {
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    /* Another thread's call holds the pool: run on this thread alone. */
    if (threads > 1 && count > 1 && count <= (int64_t)TASK_MASK && os_try_lock(&calling)) {
        run_shared(task, context, count, threads);
        os_unlock(&calling);
        return;
    }
    for (int64_t index = 0; index < count; index++) task(context, index, 0);
}
