/* Copies for weights on their way to a device, through buffers that the processor does not read again. Non-temporal
 * stores save reading the lines that are overwritten and leave the caches to other threads. */
#include "calls.h"
#include "kernels.h"

#include <string.h>

#if defined(HETEGEN_X86)
#include <emmintrin.h>

enum { STEP = 64, ALIGNED = 16, AHEAD = 1024 };

static inline void step_past_caches(char *to, const char *from) {
    __m128i a = _mm_loadu_si128((const __m128i *)from), b = _mm_loadu_si128((const __m128i *)(from + 16));
    __m128i c = _mm_loadu_si128((const __m128i *)(from + 32)), d = _mm_loadu_si128((const __m128i *)(from + 48));
    _mm_prefetch(from + AHEAD, _MM_HINT_NTA);
    _mm_stream_si128((__m128i *)to, a);
    _mm_stream_si128((__m128i *)(to + 16), b);
    _mm_stream_si128((__m128i *)(to + 32), c);
    _mm_stream_si128((__m128i *)(to + 48), d);
}

EXPORT void hetegen_copy(void *to, const void *from, int64_t bytes) {
    char *out = to;
    const char *in = from;
    int64_t at = -(int64_t)((uintptr_t)out & (ALIGNED - 1)) & (ALIGNED - 1);
    if (at > bytes) at = bytes;
    memcpy(out, in, (size_t)at);
    for (; at + STEP <= bytes; at += STEP) step_past_caches(out + at, in + at);
    _mm_sfence();
    memcpy(out + at, in + at, (size_t)(bytes - at));
}
#else
EXPORT void hetegen_copy(void *to, const void *from, int64_t bytes) { memcpy(to, from, (size_t)bytes); }
#endif

EXPORT void hetegen_copy_rows(void *to, const void *from, int64_t rows, int64_t bytes, int64_t stride) {
    for (int64_t row = 0; row < rows; row++) hetegen_copy((char *)to + row * bytes, (const char *)from + row * stride, bytes);
}
