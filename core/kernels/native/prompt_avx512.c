/* Attention of many query rows with AVX-512, in floats. */
#include "prompt_attention.h"

#if defined(HETEGEN_X86)
#include "avx512.h"

#define VECTOR AVX512
#define PAIRED 0
#include "prompt_avx512.h"

VECTOR INLINE Vec add_products(Vec sum, Vec rows, Vec cell) { return _mm512_fmadd_ps(rows, cell, sum); }

/* Round to bf16, to nearest even; NaN stays NaN. */
VECTOR INLINE Vec round_short(Vec v) {
    __m512i bits = _mm512_castps_si512(v), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    return _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32((int)0xffff0000)));
}

#include "prompt_tile.h"

void prompt_block_avx512(const Block *b) { run_block(b); }

#else
void prompt_block_avx512(const Block *b) { (void)b; }
#endif
