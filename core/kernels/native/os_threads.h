/* What the thread pool needs of the operating system: numbers that threads share, with sequentially consistent
 * operations, a lock, a condition, threads that nobody waits for, and a clock. */
#ifndef HETEGEN_OS_THREADS_H
#define HETEGEN_OS_THREADS_H

#include <stdint.h>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <process.h>
#include <windows.h>

typedef volatile LONG64 Shared;
typedef SRWLOCK Lock;
typedef CONDITION_VARIABLE Condition;
#define LOCK_INIT SRWLOCK_INIT
#define CONDITION_INIT CONDITION_VARIABLE_INIT
#define THREAD_RESULT unsigned __stdcall

/* On ARM, Visual C++ orders nothing around a volatile read, and mingw has no ReadAcquire64: hence the barrier. */
static inline uint64_t shared_read(Shared *shared) {
    LONG64 value = *shared;
    MemoryBarrier();
    return (uint64_t)value;
}

static inline void shared_write(Shared *shared, uint64_t value) { InterlockedExchange64(shared, (LONG64)value); }

static inline void shared_add(Shared *shared, int64_t value) { InterlockedExchangeAdd64(shared, value); }

static inline int shared_replace(Shared *shared, uint64_t *expected, uint64_t value) {
    uint64_t found = (uint64_t)InterlockedCompareExchange64(shared, (LONG64)value, (LONG64)*expected);
    int replaced = found == *expected;
    *expected = found;
    return replaced;
}

static inline int os_try_lock(Lock *lock) { return TryAcquireSRWLockExclusive(lock); }

static inline void os_lock(Lock *lock) { AcquireSRWLockExclusive(lock); }

static inline void os_unlock(Lock *lock) { ReleaseSRWLockExclusive(lock); }

static inline void os_wait(Condition *condition, Lock *lock) {
    SleepConditionVariableSRW(condition, lock, INFINITE, 0);
}

static inline void os_wake_all(Condition *condition) { WakeAllConditionVariable(condition); }

static inline int os_start(unsigned(__stdcall *run)(void *), void *argument) {
    uintptr_t thread = _beginthreadex(NULL, 0, run, argument, 0, NULL);
    if (thread) CloseHandle((HANDLE)thread);
    return thread != 0;
}

static inline void os_yield(void) { SwitchToThread(); }

static inline void os_pause(void) { YieldProcessor(); }

static inline int64_t os_now_ns(void) {
    LARGE_INTEGER ticks, per_second;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&per_second);
    int64_t seconds = ticks.QuadPart / per_second.QuadPart, rest = ticks.QuadPart % per_second.QuadPart;
    return seconds * 1000000000 + rest * 1000000000 / per_second.QuadPart;
}

#else
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

typedef _Atomic uint64_t Shared;
typedef pthread_mutex_t Lock;
typedef pthread_cond_t Condition;
#define LOCK_INIT PTHREAD_MUTEX_INITIALIZER
#define CONDITION_INIT PTHREAD_COND_INITIALIZER
#define THREAD_RESULT void *

static inline uint64_t shared_read(Shared *shared) { return atomic_load(shared); }

static inline void shared_write(Shared *shared, uint64_t value) { atomic_store(shared, value); }

static inline void shared_add(Shared *shared, int64_t value) { atomic_fetch_add(shared, (uint64_t)value); }

/* Replace `*expected`; otherwise, also now and then without a reason, set it to what is there and return 0. */
static inline int shared_replace(Shared *shared, uint64_t *expected, uint64_t value) {
    return atomic_compare_exchange_weak(shared, expected, value);
}

static inline int os_try_lock(Lock *lock) { return pthread_mutex_trylock(lock) == 0; }

static inline void os_lock(Lock *lock) { pthread_mutex_lock(lock); }

static inline void os_unlock(Lock *lock) { pthread_mutex_unlock(lock); }

static inline void os_wait(Condition *condition, Lock *lock) { pthread_cond_wait(condition, lock); }

static inline void os_wake_all(Condition *condition) { pthread_cond_broadcast(condition); }

/* Start a thread that ends with the process; return whether there is one. */
static inline int os_start(void *(*run)(void *), void *argument) {
    pthread_t thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
#if defined(__APPLE__)
    /* With the class of a thread that nobody waits for, it may be kept on the efficiency cores. */
    pthread_attr_set_qos_class_np(&attributes, QOS_CLASS_USER_INITIATED, 0);
#endif
    int failed = pthread_create(&thread, &attributes, run, argument);
    pthread_attr_destroy(&attributes);
    return !failed;
}

static inline void os_yield(void) { sched_yield(); }

static inline void os_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static inline int64_t os_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}
#endif

#endif
