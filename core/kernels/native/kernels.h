/* Definitions that the kernels of every instruction set share: the prepared input, a job, and the table of kernels.
 *
 * Weights are stored row by row (one row = one output feature), so any range of rows is itself a valid weight:
 *   int8   signed bytes, columns padded with zeros to a multiple of 64; one float scale per row
 *   bf16, f16   as stored
 *   grouped     columns padded to a multiple of 128; a scale per 16, 32 or 128 of them, then the groups' minimums
 *               (optional): see Layout and core/spec/storages.py. A row stores 128 columns as
 *                 128 bytes, or
 *                 64 bytes: byte i of each 16 holds column i (low nibble) and 16 + i (high nibble) of 32, or
 *                 these and 32 more, of which byte i holds the two upper bits of columns i, 32 + i, 64 + i, 96 + i
 *               or float8 (e4m3, never NaN), with one float scale per 128 columns: see float8_scale
 * Inputs are divided into blocks of 64 columns; each half block (32) has its own scale, so that an outlier channel
 * costs precision only in its own 32 columns. */
#ifndef HETEGEN_KERNELS_H
#define HETEGEN_KERNELS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__) || defined(__clang__)
#define INLINE static inline __attribute__((always_inline, unused))
#define TARGET(isa) __attribute__((target(isa)))
#define UNROLL _Pragma("GCC unroll 16")
#else
#define INLINE static __forceinline
#define TARGET(isa)
#define UNROLL
#endif

#if defined(__x86_64__) || defined(_M_X64)
#define HETEGEN_X86 1
#elif defined(__aarch64__) || defined(_M_ARM64)
#define HETEGEN_ARM 1
#endif

/* Instruction sets with kernels of their own; those for AVX2 run on all of x86's. */
enum Isa { ISA_NONE = 0, ISA_AVX2 = 1, ISA_AVXVNNI = 2, ISA_AVX512 = 3, ISA_NEON = 4 };
INLINE int takes_avx2(int isa) { return isa >= ISA_AVX2 && isa <= ISA_AVX512; }

/* FEW_ROWS: input rows that are multiplied with a row of weights at a time. Up to MOST_FEW input rows, which take
 * several turns, each gives the same bits whatever the others are: drafts are verified in passes of as many. */
enum { BLOCK = 64, GROUP = 32, PANEL = 32, FEW_ROWS = 8, MOST_FEW = 16 };
/* Columns that share a scale with 16-bit inputs: the sum of that many products with int8 fits in 32 bits. */
enum { WORD_STRIP = 512 };
/* AVX2 panels: input rows whose sums are held at a time, and bytes of one thread's scratch memory. */
enum { PANEL_SUMS = 512, PANEL_SCRATCH = 53248 };
enum Format { INT8 = 0, BF16 = 1, F16 = 2, GROUPED = 3, FORMATS = 4 };
/* Columns of grouped weights whose scales are widened at a time, and columns that share a factor of fine scales. */
enum { SCALE_STRIP = 512, COARSE = 256 };
enum Values { SIGNED_BYTES = 0, HALVES = 1, CODES = 2, SIXES = 3 };
enum ScaleKind { SCALE_BF16 = 0, SCALE_F16 = 1, SCALE_F32 = 2, SCALE_FINE = 3 };
enum { BOOKS = 3 };
enum Type { TYPE_F32 = 0, TYPE_BF16 = 1, TYPE_F16 = 2, TYPE_PACKED = 3 };
/* The kinds of prepared input: floats, integers of 8 or 16 bits, bf16 in a permuted order, or bf16 as given. */
enum Kind { FLOATS = 0, BYTES = 1, WORDS = 2, SHORT_FLOATS = 3, AS_GIVEN = 4 };

/* The prepared input of a matmul: m rows of one kind. Values that are used together are adjacent. */
typedef struct {
    int64_t m, columns, blocks; /* blocks is even: the last one may be padding */
    const int8_t *q;            /* [blocks][m][64] */
    const int16_t *words;       /* [blocks][m][64] */
    const uint16_t *shorts;     /* [blocks][m][64], bf16: the first eight of each sixteen columns, then the second
       eight */
    const uint16_t *given;      /* [blocks][m][64], bf16 */
    const float *scales;        /* [blocks][m][2]; for words [strips][m] */
    const int32_t *sums;        /* [blocks][m][2]: sums of 32 columns of q */
    const float *by_row;        /* [m][blocks * 2]: the scales again, permuted where arranged */
    const float *offsets;       /* [m][blocks * 2]: scale * sum */
    const float *sixteens;      /* [m][blocks * 4]: scale * sum of 16 columns, only where arranged */
    const float *totals;        /* [m]: sum of the offsets */
    const float *floats;        /* [blocks * 4][m][16] */
} Input;

typedef struct {
    const uint8_t *weights;
    int64_t stride, row_bytes; /* bytes between rows, and bytes of a row, which are fewer if the weight is cut by
       columns */
    const void *scales;
    int64_t scale_stride; /* scales between rows */
    const Input *input;
    void *out; /* [m][out_stride]; column 0 belongs to row `first` */
    int64_t out_stride, first;
    enum Type out_type;
    uint8_t *scratch; /* one panel per thread, if m > MOST_FEW */
    int format;       /* the number that Python passes: see kernel_of, layout_of */
} Job;

/* The layout of grouped weights: w = scale * (q - zero) (+ minimum), q as the multiplier takes it. Each stored scale
 * serves `spread` consecutive groups of 32. */
typedef struct {
    enum Values values;
    enum ScaleKind scale;
    int group, minimum, book, zero, spread;
} Layout;

/* A format's number: the kernel in the lowest two bits, the layout of grouped weights above. */
INLINE int kernel_of(int format) { return format & 3; }

INLINE Layout layout_of(int format) {
    int bits = format >> 2;
    Layout l = {(enum Values)(bits & 3), (enum ScaleKind)(bits >> 2 & 3), bits >> 4 & 1 ? 16 : 32, bits >> 5 & 1, bits >> 6 & 3, 0,
                bits >> 8 & 1 ? 4 : 1};
    l.zero = l.values == HALVES || l.values == SIXES ? l.minimum ? 0 : l.values == SIXES ? 32 : 8 : 128;
    return l;
}

/* The numbers of our own formats of few bits, of GGUF's Q4_0, Q4_1 and Q8_0, and of float8. */
enum {
    INT4 = GROUPED | (HALVES | SCALE_FINE << 2 | 1 << 5) << 2,
    INT6 = GROUPED | (SIXES | SCALE_FINE << 2) << 2,
    INT6_K16 = GROUPED | (SIXES | SCALE_FINE << 2 | 1 << 4) << 2,
    INT4_G32 = GROUPED | (HALVES | SCALE_F16 << 2) << 2,
    INT4_G32M = GROUPED | (HALVES | SCALE_F16 << 2 | 1 << 5) << 2,
    INT8_G32 = GROUPED | (SIGNED_BYTES | SCALE_F16 << 2) << 2,
    FLOAT8 = GROUPED | (SIGNED_BYTES | SCALE_F32 << 2 | 1 << 8 | 1 << 9) << 2,
};

/* The bytes of 128 columns. */
INLINE int64_t pair_bytes(const Layout *l) { return l->values == SIGNED_BYTES ? 128 : l->values == SIXES ? 96 : 64; }

/* The code books, each code + 128: fp4 (doubled), GGUF's IQ4, and NF4. */
static const uint8_t CODE_BOOKS[BOOKS][16] = {
    {128, 129, 130, 131, 132, 134, 136, 140, 128, 127, 126, 125, 124, 122, 120, 116},
    {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241},
    {16, 50, 69, 84, 96, 107, 118, 128, 137, 146, 156, 166, 177, 191, 209, 240},
};

INLINE int64_t groups_of(const Input *in, const Layout *l) { return in->blocks * BLOCK / l->group; }

/* float8 e4m3: one sign bit, four exponent bits, three mantissa bits. Shifted into the fields of an fp16, the bits read
 * as 2^-8 of the value, subnormals included; every value is exactly representable in bf16. */
enum { FLOAT8_GROUP = 128 };
#define FLOAT8_UNIT 256.0f

INLINE float float8_scale(const Job *job, int64_t row, int64_t group) {
    return FLOAT8_UNIT * ((const float *)job->scales)[row * job->scale_stride + group];
}

/* The scales (0) or minimums (1) of a row: their address, and that of the factors that fine ones share. */
typedef struct {
    const uint8_t *each, *coarse;
    int64_t groups;
} RowScales;

INLINE RowScales row_scales(const Job *job, const Layout *l, int64_t row, int minimum) {
    static const int SIZES[4] = {2, 2, 4, 1};
    int64_t groups = groups_of(job->input, l) / l->spread, factors = (job->input->blocks * BLOCK + COARSE - 1) / COARSE;
    const uint8_t *at = (const uint8_t *)job->scales + row * job->scale_stride * SIZES[l->scale];
    RowScales s = {at + minimum * groups * SIZES[l->scale],
                   at + groups * (1 + l->minimum) + minimum * factors * 2, groups};
    return s;
}


typedef void (*RowsKernel)(const Job *job, int64_t begin, int64_t end, uint8_t *panel);
/* Quantises one block of 64 columns of one input row; scales[2], sums[2]. */
typedef void (*QuantizeKernel)(const float *x, int8_t *q, float *scales, int32_t *sums);

/* Quantises `blocks` blocks of 64 columns of one input row, at most WORD_STRIP columns; `stride`: values between
 * blocks. */
typedef float (*WordsKernel)(const float *x, int64_t blocks, int16_t *q, int64_t stride);

/* Reorders a quantised input row for kernels that take at most MOST_FEW rows. */
typedef void (*ArrangeKernel)(const Input *in, int64_t row);

/* Widens 64 values of bf16 or f16 to floats. */
typedef void (*WidenKernel)(const uint16_t *bits, int type, float *to);

typedef struct {
    RowsKernel rows[FORMATS]; /* NULL = not available for this instruction set */
    QuantizeKernel quantize;
    WidenKernel widen;
    WordsKernel words; /* not NULL: int8 takes words if m > MOST_FEW */
    int takes_shorts;  /* float8 weights take permuted bf16, and bf16 weights take bf16 inputs as given */
    ArrangeKernel arrange; /* NULL: blocks are not reordered */
} Kernels;

const Kernels *kernels_avx512(void);
const Kernels *kernels_avxvnni(void);
const Kernels *kernels_avx2(void);
const Kernels *kernels_neon(void);

/* Inputs below this are treated as zero: 127 / x would overflow. */
#define SMALLEST 1e-30f

INLINE float bf16_to_float(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

INLINE uint16_t float_to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x40);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/* Round to nearest even, subnormals and overflow included. */
INLINE uint16_t float_to_f16(float value) {
    uint32_t bits, sign;
    float scaled;
    memcpy(&bits, &value, 4);
    sign = (bits >> 16) & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (bits >= 0x47800000) return (uint16_t)(sign | 0x7c00);
    if (bits < 0x38800000) {
        memcpy(&scaled, &bits, 4);
        scaled += 0.5f; /* fp16 subnormals are multiples of 2^-24, as are floats in [0.5, 1) */
        memcpy(&bits, &scaled, 4);
        return (uint16_t)(sign | (bits - 0x3f000000));
    }
    bits += 0xfff + ((bits >> 13) & 1) - 0x38000000;
    return (uint16_t)(sign | (bits >> 13));
}

INLINE float f16_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff, bits;
    float value;
    if (rest >= 0x7c00) bits = sign | 0x7f800000 | ((rest & 0x3ff) << 13);
    else if (rest >= 0x400) bits = sign | ((rest << 13) + 0x38000000);
    else {
        value = (float)rest * 5.9604644775390625e-8f;
        memcpy(&bits, &value, 4);
        bits |= sign;
    }
    memcpy(&value, &bits, 4);
    return value;
}

INLINE void put(const Job *job, int64_t m, int64_t row, float value) {
    int64_t at = m * job->out_stride + row - job->first;
    if (job->out_type == TYPE_F32) ((float *)job->out)[at] = value;
    else if (job->out_type == TYPE_BF16) ((uint16_t *)job->out)[at] = float_to_bf16(value);
    else ((uint16_t *)job->out)[at] = float_to_f16(value);
}

#endif
