/* Products with quantised weights on a GPU; cuda_dequant.py compiles this at run time with NVRTC or HIPRTC.

   It uses only the subset of C that CUDA, HIP and the tests' emulation of a GPU share: no headers, no templates, no
   warp-wide operations. quantized_weight.py documents the weight layout. x is fp32, padded to the width of a row, so
   that chunks of 16 bytes need no special case at the end.

   Integer-to-float conversion is slow on GPUs. Instead, the bits of a value q are placed below the leading one of 1.0,
   which gives 1 + q / 2^bits. Both formats store q = value + 2^bits / 2, hence
   sum(value x) = 2^bits (sum((1 + q / 2^bits) x) - 1.5 sum(x)). */

#define LANES 32 /* threads that share rows */
#define WARPS 4
#define THREADS (LANES * WARPS)
#define EACH 4 /* rows per LANES threads: x is read once for all of them */
#define MOST 8 /* rows of x in one call */
#define CHUNK 16

#define ONE 0x3F800000u
#define BELOW_ONE 23

#ifndef KERNEL
#define KERNEL extern "C" __global__
#endif
#define INLINE static __device__ __forceinline__

typedef unsigned short bf16;

INLINE float from_bf16(bf16 value) { return __uint_as_float((unsigned)value << 16); }

INLINE bf16 to_bf16(float value)
{
  unsigned bits = __float_as_uint(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u)
    return 0x7FC0; /* rounding would turn some NaNs into infinity */
  return (bf16)((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}

/* Return 1 + q / 256 for byte `index` of a word of bytes, each holding value + 128. */
INLINE float byte_of(unsigned word, int index)
{
  return __uint_as_float(ONE | (word >> 8 * index & 0xFFu) << (BELOW_ONE - 8));
}

/* Return 1 + q / 16 for nibble `index` of a word. */
INLINE float half_byte_of(unsigned word, int index)
{
  return __uint_as_float(ONE | (word >> 4 * index & 0xFu) << (BELOW_ONE - 4));
}

INLINE unsigned word_of(uint4 chunk, int index)
{
  return index == 0 ? chunk.x : index == 1 ? chunk.y : index == 2 ? chunk.z : chunk.w;
}

/* Return the unscaled dot product of sixteen int8 values with 16 values of x. */
INLINE float dot_bytes(uint4 chunk, const float *x, float x_sum)
{
  float sum = 0;
#pragma unroll
  for (int i = 0; i < CHUNK; i++)
    sum += byte_of(word_of(chunk, i / 4) ^ 0x80808080u, i % 4) * x[i];
  return 256.0f * (sum - 1.5f * x_sum);
}

/* Load sixteen values of x; return their sum. */
INLINE float load_x(const float *x, float *values)
{
  float sum = 0;
#pragma unroll
  for (int i = 0; i < CHUNK; i += 4) {
    float4 four = *(const float4 *)(x + i);
    values[i] = four.x, values[i + 1] = four.y, values[i + 2] = four.z, values[i + 3] = four.w;
    sum += four.x + four.y + four.z + four.w;
  }
  return sum;
}

/* Sum the lanes' partial results of EACH rows for each of `count` rows of x, and write them to y (count, rows). */
INLINE void add_up(float part[EACH][MOST], float *shared, float *y, int rows, int count)
{
  int first = blockIdx.x * WARPS * EACH;
#pragma unroll
  for (int row = 0; row < EACH; row++)
#pragma unroll
    for (int m = 0; m < MOST; m++)
      if (m < count)
        shared[(row * MOST + m) * THREADS + threadIdx.x] = part[row][m];
  __syncthreads();
  int warp = threadIdx.x / (EACH * MOST), row = threadIdx.x / MOST % EACH, m = threadIdx.x % MOST;
  int at = first + warp * EACH + row;
  if (m >= count || at >= rows)
    return;
  const float *lanes = shared + (row * MOST + m) * THREADS + warp * LANES;
  float sum = 0;
  for (int lane = 0; lane < LANES; lane++)
    sum += lanes[lane];
  y[(long long)m * rows + at] = sum;
}

/* One of several weights of the same shape: where it lies, and which rows of x and y are its own. */
typedef struct {
  unsigned long long data, scales;
  long long first, count;
} Entry;

/* A product with a count below 0 is one of several weights at once: its `data` is a list with an Entry for each blockIdx.y.
   Within the same kernel, so that it is compiled once. */
#define TAKE_ENTRY(kind)                                                                                              \
  if (count < 0) {                                                                                                    \
    Entry one = ((const Entry *)data)[blockIdx.y];                                                                    \
    data = (const uint4 *)one.data, scales = (const kind *)one.scales, count = (int)one.count;                        \
    x += one.first * width, y += one.first * rows;                                                                    \
  }

#define FIRST_ROW (((int)blockIdx.x * WARPS + (int)threadIdx.x / LANES) * EACH)
#define LANE ((int)threadIdx.x % LANES)

/* Compute y (count, rows) = x (count, width) times int8 rows of `width` bytes with one scale each. */
INLINE void int8_rows(const uint4 *data, const float *scales, const float *x, float *y, int rows, int width,
                                 int count, float *shared)
{
  float part[EACH][MOST] = {{0}};
  int chunks = width / CHUNK, first = FIRST_ROW;
  for (int at = LANE; at < chunks; at += LANES) {
    uint4 chunk[EACH];
#pragma unroll
    for (int row = 0; row < EACH; row++)
      if (first + row < rows)
        chunk[row] = data[(long long)(first + row) * chunks + at];
#pragma unroll
    for (int m = 0; m < MOST; m++)
      if (m < count) {
        float values[CHUNK], sum = load_x(x + (long long)m * width + at * CHUNK, values);
#pragma unroll
        for (int row = 0; row < EACH; row++)
          if (first + row < rows)
            part[row][m] += dot_bytes(chunk[row], values, sum);
      }
  }
#pragma unroll
  for (int row = 0; row < EACH; row++)
    if (first + row < rows)
#pragma unroll
      for (int m = 0; m < MOST; m++)
        part[row][m] *= scales[first + row];
  add_up(part, shared, y, rows, count);
}

/* ---- grouped storages: `layout` encodes, from the lowest bit on, as in native/kernels.h: bytes (0), nibbles (1),
 * codes (2) or six bits (3); scales of bf16, fp16, fp32 or fine (0-3); groups of 16 columns; minimums; the code book
 * (two bits); groups of 128; float8 bytes. ---- */

#define IS_HALVES(layout) (((layout) & 3) != 0)
#define IS_CODES(layout) (((layout) & 3) == 2)
#define IS_SIXES(layout) (((layout) & 3) == 3)
#define SCALE_OF(layout) ((layout) >> 2 & 3)
#define GROUP_OF(layout) ((layout) >> 8 & 1 ? 128 : (layout) >> 4 & 1 ? 16 : 32)
#define HAS_MINIMUM(layout) ((layout) >> 5 & 1)
#define BOOK_OF(layout) ((layout) >> 6 & 3)
#define IS_FLOATS(layout) ((layout) >> 9 & 1)
#define COARSE 256

static __device__ const float BOOKS[3][16] = {
    {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12},
    {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113},
    {-112, -78, -59, -44, -32, -21, -10, 0, 9, 18, 28, 38, 49, 63, 81, 112},
};

INLINE float from_f16(unsigned short bits)
{
  unsigned sign = (bits & 0x8000u) << 16, rest = bits & 0x7FFFu;
  if (rest >= 0x7C00u)
    return __uint_as_float(sign | 0x7F800000u | (rest & 0x3FFu) << 13);
  return __uint_as_float(sign | 0x3F800000u) * (__uint_as_float(rest << 13) * 5.192296858534828e33f); /* 2^112 */
}

/* Convert a float8 (e4m3, never NaN): its bits, shifted into the fields of a float, read as 2^-120 of its value. */
INLINE float from_e4m3(unsigned bits)
{
  return __uint_as_float((bits & 0x80u) << 24 | 0x3F800000u) * (__uint_as_float((bits & 0x7Fu) << 20) * 1.329227995784916e36f);
}

/* Return the bytes of a row's scales and minimums. */
INLINE int scale_bytes(int width, int layout)
{
  int groups = width / GROUP_OF(layout), kind = SCALE_OF(layout);
  int one = kind == 3 ? groups + 2 * ((width + COARSE - 1) / COARSE) : groups * (kind == 2 ? 4 : 2);
  return one * (1 + HAS_MINIMUM(layout));
}

/* Return the scale (0) or minimum (1) of the group of a column; `row` points to the row's scales. */
INLINE float group_number(const unsigned char *row, int width, int layout, int column, int minimum)
{
  int groups = width / GROUP_OF(layout), at = column / GROUP_OF(layout) + minimum * groups;
  if (SCALE_OF(layout) == 0)
    return from_bf16(((const bf16 *)row)[at]);
  if (SCALE_OF(layout) == 1)
    return from_f16(((const unsigned short *)row)[at]);
  if (SCALE_OF(layout) == 2)
    return ((const float *)row)[at];
  int factors = (width + COARSE - 1) / COARSE;
  const unsigned short *coarse = (const unsigned short *)(row + groups * (1 + HAS_MINIMUM(layout)));
  return (float)((const signed char *)row)[at] * from_f16(coarse[column / COARSE + minimum * factors]);
}

/* Sixteen bytes of a row's values, and for six-bit values those with the upper bits of their low and high nibbles. */
typedef struct {
  uint4 chunk, upper[2];
} Bytes;

/* Load chunk `at` of a row; `row` points to its first byte. */
INLINE Bytes chunk_of(const uint4 *row, int at, int layout)
{
  Bytes bytes;
  bytes.chunk = IS_SIXES(layout) ? row[at / 4 * 6 + at % 4] : row[at];
  for (int high = 0; high < 2; high++)
    bytes.upper[high] = IS_SIXES(layout) ? row[at / 4 * 6 + 4 + high] : bytes.chunk;
  return bytes;
}

/* Return the number of 16-byte chunks of values in a row (upper bits of six-bit values not counted). */
INLINE int chunks_of(int width, int layout) { return width / ((IS_HALVES(layout) ? 2 : 1) * CHUNK); }

INLINE long long row_chunks(int width, int layout)
{
  return IS_SIXES(layout) ? width / 128 * 6 : chunks_of(width, layout);
}

/* Return value `i` of 16 of chunk `at`, without scale and minimum: a byte, or its low (0) or high (1) nibble. */
INLINE float grouped_value(Bytes bytes, int i, int at, int high, int layout)
{
  unsigned word = word_of(bytes.chunk, i / 4);
  if (IS_FLOATS(layout))
    return from_e4m3(word >> 8 * (i % 4) & 0xFFu);
  if (!IS_HALVES(layout))
    return 256.0f * (byte_of(word ^ 0x80808080u, i % 4) - 1.5f);
  if (IS_CODES(layout))
    return BOOKS[BOOK_OF(layout)][word >> 4 * (i % 4 * 2 + high) & 0xFu];
  float half = 16.0f * (half_byte_of(word, i % 4 * 2 + high) - (HAS_MINIMUM(layout) ? 1.0f : 1.5f));
  if (!IS_SIXES(layout))
    return half;
  unsigned upper = word_of(bytes.upper[high], i / 4) >> 8 * (i % 4) >> at % 4 * 2 & 3u;
  /* without a minimum `half` is already reduced by 8, and the total offset is 32 */
  return half - (HAS_MINIMUM(layout) ? 0.0f : 24.0f) + 16.0f * (float)upper;
}

/* Return the first column of the low or high half of a chunk. */
INLINE int chunk_column(int at, int high, int layout)
{
  return (IS_HALVES(layout) ? at * 2 + high : at) * CHUNK;
}

/* Compute y (count, rows) = x (count, width) times grouped rows. */
INLINE void grouped_rows(const uint4 *data, const unsigned char *scales, const float *x, float *y, int rows, int width,
                         int count, int layout, float *shared)
{
  float part[EACH][MOST] = {{0}};
  int halves = IS_HALVES(layout) ? 2 : 1, first = FIRST_ROW, chunks = chunks_of(width, layout);
  int stride = scale_bytes(width, layout);
  for (int at = LANE; at < chunks; at += LANES) {
    Bytes bytes[EACH];
#pragma unroll
    for (int row = 0; row < EACH; row++)
      if (first + row < rows)
        bytes[row] = chunk_of(data + (first + row) * row_chunks(width, layout), at, layout);
    for (int high = 0; high < halves; high++) {
      int column = chunk_column(at, high, layout);
      float scale[EACH] = {0}, minimum[EACH] = {0};
#pragma unroll
      for (int row = 0; row < EACH; row++)
        if (first + row < rows) {
          const unsigned char *own = scales + (long long)(first + row) * stride;
          scale[row] = group_number(own, width, layout, column, 0);
          minimum[row] = HAS_MINIMUM(layout) ? group_number(own, width, layout, column, 1) : 0.0f;
        }
#pragma unroll
      for (int m = 0; m < MOST; m++)
        if (m < count) {
          float from[CHUNK], sum = load_x(x + (long long)m * width + column, from);
#pragma unroll
          for (int row = 0; row < EACH; row++)
            if (first + row < rows) {
              float dot = 0;
#pragma unroll
              for (int i = 0; i < CHUNK; i++)
                dot += grouped_value(bytes[row], i, at, high, layout) * from[i];
              part[row][m] += scale[row] * dot + minimum[row] * sum;
            }
        }
    }
  }
  add_up(part, shared, y, rows, count);
}

/* 4 bits with fine scales and minimums, and 6 bits with fine scales: the storages that models are converted to. */
#define INT4 (1 | 3 << 2 | 1 << 5)
#define INT6 (3 | 3 << 2)

/* With the layout and a single row of x as constants, the compiler keeps everything in registers. */
#define ROWS_OF(count, layout) grouped_rows(data, scales, x, y, rows, width, count, layout, shared)

KERNEL void grouped_product(const uint4 *data, const unsigned char *scales, const float *x, float *y, int rows,
                            int width, int count, int layout)
{
  __shared__ float shared[EACH * MOST * THREADS];
  TAKE_ENTRY(unsigned char)
  if (count == 1 && layout == INT4)
    ROWS_OF(1, INT4);
  else if (count == 1 && layout == INT6)
    ROWS_OF(1, INT6);
  else if (layout == INT4)
    ROWS_OF(count, INT4);
  else
    ROWS_OF(count, layout);
}

/* Dequantise the rows to bf16 (rows, width); one thread per chunk of 16 bytes. */
KERNEL void grouped_widen(const uint4 *data, const unsigned char *scales, bf16 *wide, int rows, int width, int layout)
{
  int halves = IS_HALVES(layout) ? 2 : 1;
  long long index = (long long)blockIdx.x * THREADS + threadIdx.x, chunks = chunks_of(width, layout);
  if (index >= rows * chunks)
    return;
  long long row = index / chunks;
  int at = (int)(index % chunks);
  Bytes bytes = chunk_of(data + row * row_chunks(width, layout), at, layout);
  const unsigned char *own = scales + row * scale_bytes(width, layout);
  for (int high = 0; high < halves; high++) {
    int column = chunk_column(at, high, layout);
    float scale = group_number(own, width, layout, column, 0);
    float minimum = HAS_MINIMUM(layout) ? group_number(own, width, layout, column, 1) : 0.0f;
#pragma unroll
    for (int i = 0; i < CHUNK; i++)
      wide[row * width + column + i] = to_bf16(scale * grouped_value(bytes, i, at, high, layout) + minimum);
  }
}

/* One row of x is the common case; as a constant, it lets the compiler keep everything in registers. */
#define PRODUCT(name, scale)                                                                                          \
  KERNEL void name##_product(const uint4 *data, const scale *scales, const float *x, float *y, int rows, int width,   \
                             int count)                                                                               \
  {                                                                                                                   \
    __shared__ float shared[EACH * MOST * THREADS];                                                                   \
    TAKE_ENTRY(scale)                                                                                                 \
    if (count == 1)                                                                                                   \
      name##_rows(data, scales, x, y, rows, width, 1, shared);                                                        \
    else                                                                                                              \
      name##_rows(data, scales, x, y, rows, width, count, shared);                                                    \
  }

PRODUCT(int8, float)

/* Dequantise the rows to bf16 (rows, width); one thread per chunk of 16 bytes. */
KERNEL void int8_widen(const uint4 *data, const float *scales, bf16 *wide, int rows, int width)
{
  long long at = (long long)blockIdx.x * THREADS + threadIdx.x;
  if (at >= (long long)rows * (width / CHUNK))
    return;
  uint4 chunk = data[at];
  float scale = scales[at / (width / CHUNK)];
#pragma unroll
  for (int i = 0; i < CHUNK; i++)
    wide[at * CHUNK + i] = to_bf16(256.0f * scale * (byte_of(word_of(chunk, i / 4) ^ 0x80808080u, i % 4) - 1.5f));
}
