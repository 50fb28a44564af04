/* The kernels of avx2_kernels.h without AVX-VNNI: pairs of byte products are summed in 16 bits. That cannot overflow,
 * because the unsigned operand is at most 128 (absolute values) or 63. */
#include "kernels.h"

#if defined(HETEGEN_X86)
#define ISA TARGET("avx2,fma,f16c")
#define KERNELS kernels_avx2
#define SHIFTED 0
#define DOT(u, x) _mm256_madd_epi16(_mm256_maddubs_epi16(u, x), _mm256_set1_epi16(1))
#define DOT_SIGNED(w, x) DOT(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
#define ADD_PAIRS(sum, w, x) _mm256_add_epi32(sum, _mm256_madd_epi16(w, x))
#define ADD_BYTES(sum, u, x) _mm256_add_epi16(sum, _mm256_maddubs_epi16(u, x))
#define ADD_SIGNED(sum, w, x) _mm256_add_epi32(sum, DOT_SIGNED(w, x))
#define ADD_TWO(sum, u0, x0, u1, x1) _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_add_epi16( \
    _mm256_maddubs_epi16(u0, x0), _mm256_maddubs_epi16(u1, x1)), _mm256_set1_epi16(1)))
#define WIDE(sum) _mm256_madd_epi16(sum, _mm256_set1_epi16(1))
#include "avx2_kernels.h"
#else
const Kernels *kernels_avx2(void) { return NULL; }
#endif
