/* Reads the processor's identification itself: compilers differ in the names that `__builtin_cpu_supports` takes, and
 * Visual C++ has no such call. Bits: Intel's Software Developer's Manual, volume 2A, CPUID. */
#include "processor.h"
#include "kernels.h"

#if defined(HETEGEN_X86)
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif

enum Register { EAX, EBX, ECX, EDX };

/* State that the system saves (XCR0): SSE and AVX registers; with them those of AVX-512. */
enum { SAVED_AVX = 0x06, SAVED_AVX512 = 0xe6 };

static void identify(unsigned leaf, unsigned part, unsigned found[4]) {
#if defined(_MSC_VER)
    __cpuidex((int *)found, (int)leaf, (int)part);
#else
    __cpuid_count(leaf, part, found[EAX], found[EBX], found[ECX], found[EDX]);
#endif
}

/* Only where OSXSAVE is set. */
static unsigned saved_state(void) {
#if defined(_MSC_VER)
    return (unsigned)_xgetbv(0);
#else
    unsigned low, high;
    __asm__ __volatile__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
#endif
}

static int has(unsigned leaf, unsigned part, enum Register where, int bit) {
    unsigned highest[4], found[4];
    identify(0, 0, highest);
    if (leaf > highest[EAX]) return 0; /* the processor would answer with another leaf */
    identify(leaf, part, found);
    return found[where] >> bit & 1;
}

static int saves(unsigned state) {
    return has(1, 0, ECX, 27) && (saved_state() & state) == state;
}

static int has_avx2(void) {
    int fma = has(1, 0, ECX, 12), f16c = has(1, 0, ECX, 29), avx2 = has(7, 0, EBX, 5);
    return saves(SAVED_AVX) && fma && f16c && avx2;
}

static int has_avx512(void) {
    int f = has(7, 0, EBX, 16), dq = has(7, 0, EBX, 17), bw = has(7, 0, EBX, 30), vl = has(7, 0, EBX, 31);
    int vnni = has(7, 0, ECX, 11);
    return saves(SAVED_AVX512) && has_avx2() && f && dq && bw && vl && vnni;
}

int runs_kernels_of(int isa) {
    switch (isa) {
        case ISA_AVX2: return has_avx2();
        case ISA_AVXVNNI: return has_avx2() && has(7, 1, EAX, 4);
        case ISA_AVX512: return has_avx512();
        default: return 0;
    }
}

#if defined(__GNUC__) || defined(__clang__)
int has_short_products(void) {
    /* Asked with every call; in a virtual machine an identification takes microseconds. */
    static volatile int known = -1;
    if (known < 0) known = has_avx512() && has(7, 1, EAX, 5) && has(7, 0, ECX, 1);
    return known;
}
#else
int has_short_products(void) { return 0; }
#endif

int has_tiles(void) { return has(7, 0, EDX, 22); }

#else
#if defined(HETEGEN_ARM) && defined(__linux__)
#include <sys/auxv.h>
static int has_dot_products(void) { return getauxval(AT_HWCAP) >> 20 & 1; }
#elif defined(HETEGEN_ARM) && defined(_MSC_VER)
#include <windows.h>
static int has_dot_products(void) { return IsProcessorFeaturePresent(43); }
#else
static int has_dot_products(void) { return 1; } /* Apple's all have them */
#endif

int runs_kernels_of(int isa) { return isa == ISA_NEON && has_dot_products(); }

int has_short_products(void) { return 0; }

int has_tiles(void) { return 0; }
#endif
