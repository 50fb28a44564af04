/* Attention of many query rows in bf16 with AVX512_BF16: products of pairs, of two columns or of two keys' values. */
#include "prompt_attention.h"

#if defined(HETEGEN_X86) && (defined(__GNUC__) || defined(__clang__))
#include "avx512.h"

#define VECTOR TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,f16c,fma")
#define PAIRED 1
#include "prompt_avx512.h"

VECTOR INLINE Vec add_products(Vec sum, Vec rows, Vec cell) {
    return _mm512_dpbf16_ps(sum, (__m512bh)rows, (__m512bh)cell);
}

/* Round two weights of each row to bf16 and lay them side by side; add them to `sum`. */
VECTOR INLINE Vec pair_of(Vec one, Vec next, Vec *sum) {
    const __m512i turns = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                           20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    *sum = _mm512_add_ps(*sum, _mm512_add_ps(one, next));
    return (Vec)_mm512_permutexvar_epi16(turns, (__m512i)_mm512_cvtne2ps_pbh(next, one));
}

#include "prompt_tile.h"

void prompt_block_pairs(const Block *b) { run_block(b); }

#else
void prompt_block_pairs(const Block *b) { (void)b; }
#endif
