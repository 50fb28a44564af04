/* Compiles the row functions of the including file for each instruction set: row_plain, row_avx2 and row_avx512. The
 * last two alias the first on other architectures. The file defines ROWS(name, target). */
ROWS(row_plain, )
#if defined(HETEGEN_X86)
ROWS(row_avx2, TARGET("avx2,fma"))
ROWS(row_avx512, TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq"))
#else
#define row_avx2 row_plain
#define row_avx512 row_plain
#endif
