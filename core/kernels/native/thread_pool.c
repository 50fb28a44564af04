/* Linux: a thread pool of our own, in which any thread takes the next task and no call waits for a thread that took
 * none. An OpenMP call ends only when all threads have arrived; on a busy machine, the scheduler may delay a woken
 * thread by milliseconds, and a token makes a hundred calls. Other systems: Grand Central Dispatch or OpenMP. */
#include "thread_pool.h"

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

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
static _Atomic uint64_t state;
static _Atomic int64_t done;
static Call call;
static pthread_mutex_t calling = PTHREAD_MUTEX_INITIALIZER; /* one call at a time */
static pthread_mutex_t sleeping = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static _Atomic int sleepers;
static int helpers; /* threads started, callers not counted */

static inline void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

/* Take and run tasks until none is left for this worker. */
static void help(uint64_t worker) {
    uint64_t word = atomic_load_explicit(&state, memory_order_acquire);
    for (;;) {
        uint64_t next = word & TASK_MASK, count = word >> TASK_BITS & TASK_MASK, threads = word >> 2 * TASK_BITS & 255;
        if (next >= count || worker >= threads) return;
        if (!atomic_compare_exchange_weak_explicit(&state, &word, word + 1, memory_order_acq_rel, memory_order_acquire))
            continue;
        call.task(call.context, (int64_t)next, (int64_t)worker);
        atomic_fetch_add_explicit(&done, 1, memory_order_release);
        word = atomic_load_explicit(&state, memory_order_acquire);
    }
}

static int called_since(uint64_t seen) {
    return atomic_load_explicit(&state, memory_order_acquire) >> CALL_SHIFT != seen >> CALL_SHIFT;
}

static void sleep_until_called(uint64_t seen) {
    pthread_mutex_lock(&sleeping);
    atomic_fetch_add(&sleepers, 1);
    while (atomic_load(&state) >> CALL_SHIFT == seen >> CALL_SHIFT) pthread_cond_wait(&wake, &sleeping);
    atomic_fetch_sub(&sleepers, 1);
    pthread_mutex_unlock(&sleeping);
}

static void *helper(void *argument) {
    uint64_t worker = (uint64_t)(uintptr_t)argument;
    for (;;) {
        uint64_t seen = atomic_load_explicit(&state, memory_order_acquire);
        help(worker);
        int64_t until = now_ns() + SPIN_NS;
        for (int looks = 1; !called_since(seen); looks++) {
            pause_briefly();
            if (looks % LOOKS_PER_CLOCK == 0 && now_ns() > until) sleep_until_called(seen);
        }
    }
    return NULL;
}

/* Start helper threads until there are `wanted`, or as many as the system allows. */
static void grow(int wanted) {
    while (helpers < wanted && helpers < MOST_THREADS - 1) {
        pthread_t thread;
        pthread_attr_t detached;
        pthread_attr_init(&detached);
        pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
        int failed = pthread_create(&thread, &detached, helper, (void *)(uintptr_t)(helpers + 1));
        pthread_attr_destroy(&detached);
        if (failed) return;
        helpers++;
    }
}

static void run_shared(PoolTask task, const void *context, int64_t count, int threads) {
    grow(threads - 1);
    call = (Call){task, context};
    atomic_store_explicit(&done, 0, memory_order_relaxed);
    uint64_t number = (atomic_load_explicit(&state, memory_order_relaxed) >> CALL_SHIFT) + 1;
    uint64_t word = number << CALL_SHIFT | (uint64_t)threads << 2 * TASK_BITS | (uint64_t)count << TASK_BITS;
    atomic_store(&state, word);
    if (atomic_load(&sleepers) > 0) {
        pthread_mutex_lock(&sleeping);
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&sleeping);
    }
    help(0);
    for (int looks = 1; atomic_load_explicit(&done, memory_order_acquire) < count; looks++) {
        pause_briefly();
        /* A helper in the middle of its task may be waiting for this core. */
        if (looks % 1024 == 0) sched_yield();
    }
}

void pool_run(PoolTask task, const void *context, int64_t count, int threads) {
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    /* Another thread's call holds the pool: run on this thread alone. */
    if (threads > 1 && count > 1 && count <= (int64_t)TASK_MASK && pthread_mutex_trylock(&calling) == 0) {
        run_shared(task, context, count, threads);
        pthread_mutex_unlock(&calling);
        return;
    }
    for (int64_t index = 0; index < count; index++) task(context, index, 0);
}

#elif defined(__APPLE__)
#include <dispatch/dispatch.h>
#include <stdatomic.h>

typedef struct {
    PoolTask task;
    const void *context;
    int64_t count;
    _Atomic int64_t next;
} Queue;

static void work(void *argument, size_t worker) {
    Queue *queue = argument;
    for (int64_t index; (index = queue->next++) < queue->count;) queue->task(queue->context, index, (int64_t)worker);
}

void pool_run(PoolTask task, const void *context, int64_t count, int threads) {
    Queue queue = {task, context, count, 0};
    dispatch_apply_f((size_t)(threads > 1 ? threads : 1), DISPATCH_APPLY_AUTO, &queue, work);
}

#else
#if defined(_OPENMP)
#include <omp.h>
#else
#define omp_get_thread_num() 0
#endif

void pool_run(PoolTask task, const void *context, int64_t count, int threads) {
    int64_t index; /* MSVC takes no declaration in the loop itself */
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1 && count > 1)
    for (index = 0; index < count; index++) task(context, index, omp_get_thread_num());
}
#endif
