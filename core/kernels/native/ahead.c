/* See ahead.h. One thread at a time learns; the helpers share a cursor over the bytes to ask for. */
#include "ahead.h"

#if defined(__linux__)
#include <stdatomic.h>
#include <unistd.h>

enum { SLOTS = 4096, LOOKS = 8, PIECE = 4096, LINE = 64 };
/* A part of the last cache, as others use it too; no more than can be read between two matmuls anyway. */
#define CACHE_SHARE 4
#define MOST_BYTES (8ll << 20)

/* A weight that was multiplied, and the one after it; `sure` once that was so twice in a row. */
typedef struct Slot {
    struct {
        _Atomic(const uint8_t *) at;
        _Atomic int64_t bytes;
    } spans[MOST_SPANS];
    struct Slot *next;
    int sure;
} Slot;

static atomic_flag learning = ATOMIC_FLAG_INIT;
static Slot slots[SLOTS];
static Slot *last;
static _Atomic(Slot *) target;
static _Atomic int64_t cursor;

static int64_t budget(void) {
    static int64_t bytes = -1;
    if (bytes < 0) {
        long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
        bytes = cache > 0 ? cache / CACHE_SHARE : 0;
        if (bytes > MOST_BYTES) bytes = MOST_BYTES;
    }
    return bytes;
}

/* The slot of a weight, or one that is given up for it. */
static Slot *slot_of(const uint8_t *at) {
    uint64_t hash = ((uint64_t)(uintptr_t)at >> 6) * 0x9e3779b97f4a7c15ull >> 52;
    for (int i = 0; i < LOOKS; i++) {
        Slot *slot = &slots[(hash + i) % SLOTS];
        if (slot->spans[0].at == at || !slot->spans[0].at) return slot;
    }
    return &slots[hash];
}

int ahead_stop(const Span *spans, int64_t count) {
    if (atomic_flag_test_and_set_explicit(&learning, memory_order_acquire)) return 0;
    atomic_store(&target, NULL);
    Slot *slot = slot_of(spans[0].at);
    for (int i = 0; i < MOST_SPANS; i++) {
        atomic_store_explicit(&slot->spans[i].at, i < count ? spans[i].at : NULL, memory_order_relaxed);
        atomic_store_explicit(&slot->spans[i].bytes, i < count ? spans[i].bytes : 0, memory_order_relaxed);
    }
    if (last) {
        last->sure = last->next == slot;
        last->next = slot;
    }
    last = slot;
    return 1;
}

void ahead_start(void) {
    if (last->sure) {
        atomic_store(&cursor, 0);
        atomic_store(&target, last->next);
    }
    atomic_flag_clear_explicit(&learning, memory_order_release);
}

int ahead_step(void) {
    Slot *slot = atomic_load(&target);
    if (!slot || atomic_load_explicit(&cursor, memory_order_relaxed) >= budget()) return 0;
    int64_t at = atomic_fetch_add(&cursor, PIECE);
    for (int i = 0; i < MOST_SPANS; i++) {
        int64_t bytes = slot->spans[i].bytes;
        if (at < bytes) {
            const uint8_t *from = slot->spans[i].at + at;
            for (int64_t line = 0; line < PIECE && line < bytes - at; line += LINE) __builtin_prefetch(from + line, 0, 2);
            return 1;
        }
        at -= (bytes + PIECE - 1) / PIECE * PIECE;
    }
    return 0;
}
#endif
