/* The kernels of avx2_kernels.h with AVX-VNNI's multiplier (Intel since Alder Lake, AMD since Zen 5). */
#include "kernels.h"

#if defined(HETEGEN_X86)
#define ISA TARGET("avx2,fma,f16c,avxvnni")
#define KERNELS kernels_avxvnni
#define SHIFTED 1
#define DOT(u, x) _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), u, x)
#define DOT_SIGNED(w, x) DOT(w, x)
#define ADD_PAIRS(sum, w, x) _mm256_dpwssd_avx_epi32(sum, w, x)
#define ADD_BYTES(sum, u, x) _mm256_dpbusd_avx_epi32(sum, u, x)
#define ADD_SIGNED(sum, w, x) _mm256_dpbusd_avx_epi32(sum, w, x)
#define ADD_TWO(sum, u0, x0, u1, x1) ADD_BYTES(ADD_BYTES(sum, u0, x0), u1, x1)
#define WIDE(sum) (sum)
#include "avx2_kernels.h"
#else
const Kernels *kernels_avxvnni(void) { return NULL; }
#endif
