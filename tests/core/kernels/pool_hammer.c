/* Calls the thread pool from several threads at once, with changing numbers of threads and tasks. Ends with 0 if every
 * task ran exactly once, all its results were there when its call returned, and no two threads had one worker's number;
 * otherwise with 1 and a line. A pool that loses a thread makes it hang; on a busy computer there are fewer rounds. */
#include <stdio.h>
#include <stdlib.h>

#include "os_threads.h"
#include "thread_pool.h"

enum { CALLERS = 4, ROUNDS = 3000, MOST_TASKS = 300, MOST_HELPERS = 9, PAUSE_NS = 400000 };

typedef struct {
    int threads;
    int runs[MOST_TASKS];
    Shared working[MOST_HELPERS];
} Game;

typedef struct {
    Shared arrived;
    uint64_t expected;
} Meeting;

#define LONGEST_NS 60000000000

static Shared ended;
static int64_t until;

static void fail(const char *what) {
    printf("%s\n", what);
    fflush(stdout);
    exit(1);
}

static unsigned draw(unsigned *seed, unsigned below) {
    *seed = *seed * 1664525u + 1013904223u;
    return (*seed >> 16) % below;
}

static void work(const void *context, int64_t index, int64_t worker) {
    Game *game = (Game *)context;
    uint64_t idle = 0;
    if (worker < 0 || worker >= game->threads) fail("a worker's number is not less than the number of threads");
    while (!shared_replace(&game->working[worker], &idle, 1))
        if (idle) fail("two threads have one worker's number");
    game->runs[index]++;
    if (index % 16 == 0) os_yield();
    shared_write(&game->working[worker], 0);
}

static void play(unsigned *seed) {
    Game game = {0};
    int count = (int)draw(seed, MOST_TASKS + 1);
    game.threads = 1 + (int)draw(seed, MOST_HELPERS);
    pool_run(work, &game, count, game.threads);
    for (int i = 0; i < MOST_TASKS; i++)
        if (game.runs[i] != (i < count)) fail("a task did not run exactly once before its call returned");
}

/* Long enough for helpers to fall asleep. */
static void rest(void) {
    int64_t until = os_now_ns() + PAUSE_NS;
    while (os_now_ns() < until) os_yield();
}

static THREAD_RESULT caller(void *argument) {
    unsigned seed = (unsigned)(uintptr_t)argument;
    for (int i = 0; i < ROUNDS && os_now_ns() < until; i++) {
        play(&seed);
        if (draw(&seed, 100) == 0) rest();
    }
    shared_add(&ended, 1);
    return 0;
}

static void meet(const void *context, int64_t index, int64_t worker) {
    Meeting *meeting = (Meeting *)context;
    (void)index, (void)worker;
    shared_add(&meeting->arrived, 1);
    while (shared_read(&meeting->arrived) < meeting->expected) os_yield();
}

/* Tasks that wait for each other: each needs a thread of its own, awake or not. */
static void need_all(void) {
    for (int threads = 2; threads <= MOST_HELPERS; threads++) {
        Meeting meeting = {0, (uint64_t)threads};
        pool_run(meet, &meeting, threads, threads);
        rest();
    }
}

int main(void) {
    need_all();
    until = os_now_ns() + LONGEST_NS;
    for (int i = 0; i < CALLERS; i++)
        if (!os_start(caller, (void *)(uintptr_t)(i + 1))) fail("a thread did not start");
    while (shared_read(&ended) < CALLERS) os_yield();
    need_all();
    return 0;
}
