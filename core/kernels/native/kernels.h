/* What the kernels of every instruction set share: the quantised input, one job, and the table of kernels.
 *
 * Weights lie row by row (one row = one output feature), so any range of rows is a valid weight by itself:
 *   int8   signed bytes, columns padded with zeros to a multiple of 64; one float scale a row
 *   bf16, f16   as stored
 *   grouped     columns padded to a multiple of 128; a scale for 16, 32 or 128 of them, then the groups' minimums, if there are
 *               any: see Layout and core/spec/storages.py. Of 128 columns lie in the row
 *                 bytes, or
 *                 64 bytes, of which the i-th holds column i (low half) and column 64 + i (high half), or
 *                 these and 32 more, with the two upper bits of the columns i, 32 + i, 64 + i, 96 + i in the i-th
 *               or floats of eight bits (e4m3), never NaN, with one float scale for 128 of them: see float8
 * Inputs are cut into blocks of 64 columns, each half block (32) with a scale of its own, so that a channel far
 * larger than the rest costs precision in its own 32 columns only. */
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

enum { BLOCK = 64, GROUP = 32, PANEL = 32, FEW_ROWS = 8, MOST_FEW = 12 };
/* Columns that share a scale where inputs are 16 bits: the sum of so many products with int8 stays within 32 bits. */
enum { WORD_STRIP = 512 };
/* AVX2's panels: rows of input whose sums are held at a time, and bytes of one thread's scratch memory. */
enum { PANEL_SUMS = 512, PANEL_SCRATCH = 53248 };
enum Format { INT8 = 0, BF16 = 1, F16 = 2, GROUPED = 3, FORMATS = 4 };
/* Columns of grouped weights whose scales are widened at a time, and that share a factor where scales are fine. */
enum { SCALE_STRIP = 512, COARSE = 256 };
enum Values { SIGNED_BYTES = 0, HALVES = 1, CODES = 2, SIXES = 3 };
enum ScaleKind { SCALE_BF16 = 0, SCALE_F16 = 1, SCALE_F32 = 2, SCALE_FINE = 3 };
enum { BOOKS = 3 };
enum Type { TYPE_F32 = 0, TYPE_BF16 = 1, TYPE_F16 = 2, TYPE_PACKED = 3 };
/* What an input is turned into: floats, numbers of 8 or 16 bits, floats of 16 bits (bf16) in an order of their own, or
 * bf16 as it is given. */
enum Kind { FLOATS = 0, BYTES = 1, WORDS = 2, SHORT_FLOATS = 3, AS_GIVEN = 4 };

/* The input of a matmul: m rows of one kind. Values that are used together lie together. */
typedef struct {
    int64_t m, columns, blocks; /* blocks is even: the last one may be padding */
    const int8_t *q;            /* [blocks][m][64] */
    const int16_t *words;       /* [blocks][m][64] */
    const uint16_t *shorts;     /* [blocks][m][64], bf16, of each sixteen columns the first eight before all other eights */
    const uint16_t *given;      /* [blocks][m][64], bf16 */
    const float *scales;        /* [blocks][m][2]; of words [strips][m] */
    const int32_t *sums;        /* [blocks][m][2], of 32 columns of q */
    const float *by_row;        /* [m][blocks * 2]: the scales again, in an order of their own where arranged */
    const float *offsets;       /* [m][blocks * 2]: scale x sum */
    const float *sixteens;      /* [m][blocks * 4]: scale x sum of 16 columns, where arranged */
    const float *totals;        /* [m], of the offsets */
    const float *floats;        /* [blocks * 4][m][16] */
} Input;

typedef struct {
    const uint8_t *weights;
    int64_t stride, row_bytes; /* from one row to the next, and of a row: of a weight cut by columns fewer */
    const void *scales;
    int64_t scale_stride; /* scales from one row to the next */
    const Input *input;
    void *out; /* [m][out_stride]; column 0 belongs to row `first` */
    int64_t out_stride, first;
    enum Type out_type;
    uint8_t *scratch; /* one panel for each thread, where m > FEW_ROWS or the format asks */
    int format;       /* as Python gives it: kernel_of, layout_of */
} Job;

/* How grouped weights lie: a row is w = scale q (+ minimum), q shifted by `zero` to what the multiplier takes. Each scale
 * is for `spread` groups in turn. */
typedef struct {
    enum Values values;
    enum ScaleKind scale;
    int group, minimum, book, zero, spread;
} Layout;

/* The number of a format: which kernel in the lowest two bits, and how grouped weights lie in those above. */
INLINE int kernel_of(int format) { return format & 3; }

INLINE Layout layout_of(int format) {
    int bits = format >> 2;
    Layout l = {(enum Values)(bits & 3), (enum ScaleKind)(bits >> 2 & 3), bits >> 4 & 1 ? 16 : 32, bits >> 5 & 1, bits >> 6 & 3, 0,
                bits >> 8 & 1 ? 4 : 1};
    l.zero = l.values == HALVES || l.values == SIXES ? l.minimum ? 0 : l.values == SIXES ? 32 : 8 : 128;
    return l;
}

/* The numbers of our own formats of few bits, of GGUF's Q4_0, Q4_1 and Q8_0, and of floats of eight bits. */
enum {
    INT4 = GROUPED | (HALVES | SCALE_FINE << 2 | 1 << 5) << 2,
    INT6 = GROUPED | (SIXES | SCALE_FINE << 2) << 2,
    INT6_K16 = GROUPED | (SIXES | SCALE_FINE << 2 | 1 << 4) << 2,
    INT4_G32 = GROUPED | (HALVES | SCALE_F16 << 2) << 2,
    INT4_G32M = GROUPED | (HALVES | SCALE_F16 << 2 | 1 << 5) << 2,
    INT8_G32 = GROUPED | (SIGNED_BYTES | SCALE_F16 << 2) << 2,
    FLOAT8 = GROUPED | (SIGNED_BYTES | SCALE_F32 << 2 | 1 << 8 | 1 << 9) << 2,
};

/* Bytes of 128 columns. */
INLINE int64_t pair_bytes(const Layout *l) { return l->values == SIGNED_BYTES ? 128 : l->values == SIXES ? 96 : 64; }

/* The code books, each code + 128: floats of four bits (doubled), GGUF's IQ4, and nf4. */
static const uint8_t CODE_BOOKS[BOOKS][16] = {
    {128, 129, 130, 131, 132, 134, 136, 140, 128, 127, 126, 125, 124, 122, 120, 116},
    {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241},
    {16, 50, 69, 84, 96, 107, 118, 128, 137, 146, 156, 166, 177, 191, 209, 240},
};

INLINE int64_t groups_of(const Input *in, const Layout *l) { return in->blocks * BLOCK / l->group; }

/* Floats of eight bits: one sign, four exponent, three mantissa. Put in place into a float of 16 bits, the same bits mean
 * 2^-8 of it, subnormals too, and every one of them is a number of bf16. */
enum { FLOAT8_GROUP = 128 };
#define FLOAT8_UNIT 256.0f

INLINE float float8_scale(const Job *job, int64_t row, int64_t group) {
    return FLOAT8_UNIT * ((const float *)job->scales)[row * job->scale_stride + group];
}

/* The scales (0) or minimums (1) of a row: where they begin, and where the factors do that fine ones share. */
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
/* One block of 64 columns of one row of input; scales[2], sums[2]. */
typedef void (*QuantizeKernel)(const float *x, int8_t *q, float *scales, int32_t *sums);

/* `blocks` times 64 columns of one row of input, at most WORD_STRIP; q has `stride` values from one block to the next. */
typedef float (*WordsKernel)(const float *x, int64_t blocks, int16_t *q, int64_t stride);

/* Lays a row of input as kernels for at most MOST_FEW rows of it take it. */
typedef void (*ArrangeKernel)(const Input *in, int64_t row);

/* 64 numbers of bf16 or f16 as floats. */
typedef void (*WidenKernel)(const uint16_t *bits, int type, float *to);

typedef struct {
    RowsKernel rows[FORMATS]; /* NULL = not made for this instruction set */
    QuantizeKernel quantize;
    WidenKernel widen;
    WordsKernel words; /* not NULL: int8 wants words where m > FEW_ROWS */
    int takes_shorts;  /* floats of eight bits want short floats, and weights of bf16 take inputs of bf16 as they are */
    ArrangeKernel arrange; /* NULL: blocks stay as they are */
} Kernels;

/* Whether the processor multiplies pairs of bf16 in registers of 512 bits, and looks bytes up in two of them. */
int has_short_products(void);

const Kernels *kernels_avx512(void);
const Kernels *kernels_avxvnni(void);
const Kernels *kernels_avx2(void);
const Kernels *kernels_neon(void);

/* Below this an input is taken for zero: 127 / x would overflow. */
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
        scaled += 0.5f; /* the half's subnormals are multiples of 2^-24, as are floats in [0.5, 1) */
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
