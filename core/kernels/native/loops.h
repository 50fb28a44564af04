/* Compiles the loops of the including file for each instruction set and selects among them. The file defines
 * LOOPS(name, target): functions compiled for the target, and a `static const Loops name` of them. */
#if defined(HETEGEN_X86)
LOOPS(avx2, TARGET("avx2,fma"))
LOOPS(avx512, TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq"))
static const Loops *loops_of(int isa) { return isa == ISA_AVX512 ? &avx512 : &avx2; }
#else
LOOPS(plain, )
static const Loops *loops_of(int isa) {
    (void)isa;
    return &plain;
}
#endif
