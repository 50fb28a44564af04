/* Definitions that the AVX-512 kernels share. Included where HETEGEN_X86 is defined. */
#ifndef HETEGEN_AVX512_H
#define HETEGEN_AVX512_H

#include <immintrin.h>

#define AVX512 TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,f16c,fma")

/* Sum the lanes of each of sixteen registers: lane i of the result is the sum of v[i]. */
AVX512 INLINE __m512 add_across(const __m512 v[16]) {
    __m512 pairs[8], fours[4], eights[2];
    UNROLL for (int i = 0; i < 8; i++) /* each 128 bits: v0 v1 v0 v1, two partial sums each */
        pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
    UNROLL for (int i = 0; i < 4; i++) /* v0 v1 v2 v3 */
        fours[i] = _mm512_add_ps(_mm512_shuffle_ps(pairs[2 * i], pairs[2 * i + 1], 0x44),
                                 _mm512_shuffle_ps(pairs[2 * i], pairs[2 * i + 1], 0xee));
    UNROLL for (int i = 0; i < 2; i++) /* 128 bits of v0-v3 twice, then of v4-v7 twice */
        eights[i] = _mm512_add_ps(_mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0x44),
                                  _mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0xee));
    return _mm512_add_ps(_mm512_shuffle_f32x4(eights[0], eights[1], 0x88), _mm512_shuffle_f32x4(eights[0], eights[1], 0xdd));
}

#endif
