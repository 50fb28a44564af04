/* The entry points: instruction set selection, division of rows among threads, and the exported products. */
#include "dispatch.h"
#include "calls.h"
#include "processor.h"
#include "thread_pool.h"

const Kernels *kernels_of(int isa) {
    switch (isa) {
        case ISA_AVX2: return kernels_avx2();
        case ISA_AVXVNNI: return kernels_avxvnni();
        case ISA_AVX512: return kernels_avx512();
        case ISA_NEON: return kernels_neon();
        default: return NULL;
    }
}

/* Whether attention of many query rows in bf16 is faster than torch's, which multiplies tiles of bf16 where there are
 * any, many times as fast as pairs. */
EXPORT int hetegen_attends_short(void) { return !has_tiles(); }

/* Changes with every change of the exported calls: Python rejects a library left over from another version. */
EXPORT int hetegen_version(void) { return 31; }

EXPORT int hetegen_supports(int isa) { return kernels_of(isa) != NULL && runs_kernels_of(isa); }

/* ---- sharing rows among threads ---- */

/* Threads take stretches of rows dynamically: a core that other processes use, or an efficiency core, takes fewer. */
enum { MOST_STRETCHES = 1024, LEAST_FEW = 2 * PANEL, MOST_TAKEN = 1024 };

/* The number of rows of the next stretch. With few input rows the products are memory-bound, and bandwidth drops at the
 * start of a stretch; stretches therefore begin large and shrink, so that all threads finish together. */
static int64_t next_rows(int64_t all, int64_t left, int64_t m, int threads) {
    int few = m <= MOST_FEW;
    int64_t rows = few ? left / (2 * threads) : all / (32 * threads), least = few ? LEAST_FEW : PANEL;
    rows -= rows % PANEL;
    rows = rows < least ? least : rows > MOST_TAKEN ? MOST_TAKEN : rows;
    return left - rows < least ? left : rows;
}

/* Write the bounds of the stretches of `rows` rows; return their number. */
static int64_t divide(int64_t rows, int64_t m, int threads, int64_t *bounds) {
    int64_t count = 0, at = 0;
    while (at < rows) {
        bounds[count++] = at;
        at += threads > 1 && count < MOST_STRETCHES ? next_rows(rows, rows - at, m, threads) : rows - at;
    }
    bounds[count] = rows;
    return count;
}

static void run_stretch(const void *share, int64_t number, int64_t thread) {
    const Share *s = share;
    int64_t begin = s->bounds[number], left = s->bounds[number + 1] - begin;
    for (const Part *part = s->parts; left > 0; part++) {
        int64_t rows = part->end - part->begin, from = part->begin + begin, own = rows - begin < left ? rows - begin : left;
        begin -= rows;
        if (own <= 0) continue;
        part->kernel(&part->job, from, from + own, part->job.scratch ? part->job.scratch + thread * s->panel_bytes : NULL);
        left -= own, begin = 0;
    }
}

void run_parts(Share *share, int64_t m, int threads) {
    int64_t rows = 0, bounds[MOST_STRETCHES + 1];
    for (int64_t i = 0; i < share->count; i++) rows += share->parts[i].end - share->parts[i].begin;
    share->bounds = bounds;
    pool_run(run_stretch, share, divide(rows, m, threads, bounds), threads);
}

/* ---- input buffers ---- */

static int64_t even_blocks(int64_t columns) { return (columns + 2 * BLOCK - 1) / (2 * BLOCK) * 2; }

static int64_t strips(int64_t columns) { return (columns + WORD_STRIP - 1) / WORD_STRIP; }

void lay_out(uint8_t *buffer, int64_t m, int64_t columns, int kind, Input *in) {
    int64_t cells = even_blocks(columns) * m;
    memset(in, 0, sizeof *in);
    in->m = m;
    in->columns = columns;
    in->blocks = even_blocks(columns);
    if (kind == FLOATS) {
        in->floats = (const float *)buffer;
        return;
    }
    if (kind == WORDS) {
        in->words = (const int16_t *)buffer;
        in->scales = (const float *)(buffer + cells * BLOCK * 2);
        return;
    }
    if (kind == SHORT_FLOATS) {
        in->shorts = (const uint16_t *)buffer;
        return;
    }
    if (kind == AS_GIVEN) {
        in->given = (const uint16_t *)buffer;
        return;
    }
    in->q = (const int8_t *)buffer;
    buffer += cells * BLOCK;
    in->scales = (const float *)buffer;
    in->sums = (const int32_t *)(buffer + cells * 8);
    in->by_row = (const float *)(buffer + cells * 16);
    in->offsets = (const float *)(buffer + cells * 24);
    in->sixteens = (const float *)(buffer + cells * 32);
    in->totals = (const float *)(buffer + cells * 48);
}

/* The kind of input for weights of `format` and m rows of `type`, which is also the type of the output. */
EXPORT int hetegen_input_kind(int isa, int format, int64_t m, int type) {
    if (format == BF16 && type == TYPE_BF16) return kernels_of(isa)->takes_shorts ? AS_GIVEN : FLOATS;
    if (format == BF16 || format == F16) return FLOATS;
    if (format == FLOAT8) return kernels_of(isa)->takes_shorts ? SHORT_FLOATS : FLOATS;
    return format == INT8 && m > MOST_FEW && kernels_of(isa)->words ? WORDS : BYTES;
}

/* The size of the buffer that hetegen_prepare fills. */
EXPORT int64_t hetegen_input_bytes(int64_t m, int64_t columns, int kind) {
    int64_t cells = even_blocks(columns) * m;
    if (kind == FLOATS) return cells * BLOCK * (int64_t)sizeof(float);
    if (kind == SHORT_FLOATS || kind == AS_GIVEN) return cells * BLOCK * (int64_t)sizeof(uint16_t);
    if (kind == WORDS) return cells * BLOCK * 2 + strips(columns) * m * (int64_t)sizeof(float);
    return cells * (BLOCK + 48) + m * (int64_t)sizeof(float);
}

/* Load 64 columns of a row from column `start` on as floats, zeros past the end. */
static void load_block(const Kernels *kernels, const void *x, int type, int64_t row_start, int64_t start,
                       int64_t columns, float *wide) {
    int64_t count = columns - start < BLOCK ? columns - start : BLOCK;
    const uint16_t *bits = (const uint16_t *)x + row_start + start;
    if (count < BLOCK) memset(wide, 0, BLOCK * sizeof(float));
    if (count <= 0) return;
    if (type == TYPE_F32) memcpy(wide, (const float *)x + row_start + start, (size_t)count * sizeof(float));
    else if (count == BLOCK) kernels->widen(bits, type, wide);
    else if (type == TYPE_BF16) for (int64_t i = 0; i < count; i++) wide[i] = bf16_to_float(bits[i]);
    else for (int64_t i = 0; i < count; i++) wide[i] = f16_to_float(bits[i]);
}

static void quantize_block(QuantizeKernel quantize, const float *wide, const Input *in, int64_t block, int64_t row) {
    int64_t at = block * in->m + row;
    float *scales = (float *)in->scales + at * 2;
    int32_t *sums = (int32_t *)in->sums + at * 2;
    quantize(wide, (int8_t *)in->q + at * BLOCK, scales, sums);
    for (int h = 0; h < 2; h++) {
        int64_t group = (row * in->blocks + block) * 2 + h;
        ((float *)in->by_row)[group] = scales[h];
        ((float *)in->offsets)[group] = scales[h] * (float)sums[h];
    }
}

/* Finish a quantised row: reorder it if the kernels need that, and sum its offsets. */
static void finish_row(const Kernels *kernels, const Input *in, int64_t row) {
    float total = 0;
    if (kernels->arrange && in->m <= MOST_FEW) kernels->arrange(in, row);
    for (int64_t g = 0; g < in->blocks * 2; g++) total += in->offsets[row * in->blocks * 2 + g];
    ((float *)in->totals)[row] = total;
}

static void prepare_words(const Kernels *kernels, const void *x, int type, int64_t from, int64_t row,
                          const Input *in) {
    float wide[WORD_STRIP];
    for (int64_t b = 0; b < in->blocks; b += WORD_STRIP / BLOCK) {
        int64_t count = in->blocks - b < WORD_STRIP / BLOCK ? in->blocks - b : WORD_STRIP / BLOCK;
        for (int64_t i = 0; i < count; i++)
            load_block(kernels, x, type, from, (b + i) * BLOCK, in->columns, wide + i * BLOCK);
        int16_t *to = (int16_t *)in->words + (b * in->m + row) * BLOCK;
        ((float *)in->scales)[b * BLOCK / WORD_STRIP * in->m + row] = kernels->words(wide, count, to, in->m * BLOCK);
    }
}

/* Write 64 columns in the order in which unpacking bytes to words yields them: the first eight of each sixteen, then
 * the second eight of each. */
static void put_shorts(const float *wide, uint16_t *to) {
    for (int half = 0; half < 2; half++)
        for (int run = 0; run < 4; run++)
            for (int i = 0; i < 8; i++) *to++ = float_to_bf16(wide[run * 16 + half * 8 + i]);
}

/* Copy a row of bf16, zeros past the end. */
static void give_row(const uint16_t *x, int64_t row, const Input *in) {
    for (int64_t b = 0; b < in->blocks; b++) {
        uint16_t *to = (uint16_t *)in->given + (b * in->m + row) * BLOCK;
        int64_t left = in->columns - b * BLOCK, count = left < 0 ? 0 : left < BLOCK ? left : BLOCK;
        memcpy(to, x + b * BLOCK, (size_t)count * 2);
        memset(to + count, 0, (size_t)(BLOCK - count) * 2);
    }
}

void prepare_row(const Kernels *kernels, const void *x, int type, int64_t from, int64_t row, const Input *in) {
    float wide[BLOCK];
    if (in->words) {
        prepare_words(kernels, x, type, from, row, in);
        return;
    }
    if (in->given) {
        give_row((const uint16_t *)x + from, row, in);
        return;
    }
    for (int64_t b = 0; b < in->blocks; b++) {
        load_block(kernels, x, type, from, b * BLOCK, in->columns, wide);
        if (in->q) quantize_block(kernels->quantize, wide, in, b, row);
        else if (in->shorts) put_shorts(wide, (uint16_t *)in->shorts + (b * in->m + row) * BLOCK);
        else
            for (int i = 0; i < 4; i++)
                memcpy((float *)in->floats + ((b * 4 + i) * in->m + row) * 16, wide + i * 16, 64);
    }
    if (in->q) finish_row(kernels, in, row);
}

typedef struct {
    const Kernels *kernels;
    const void *x;
    int type;
    int64_t stride;
    const Input *in;
} Preparation;

static void prepare_task(const void *context, int64_t row, int64_t thread) {
    const Preparation *p = context;
    (void)thread;
    prepare_row(p->kernels, p->x, p->type, row * p->stride, row, p->in);
}

/* x: [m][stride] of `type`; buffer: hetegen_input_bytes; kind: hetegen_input_kind. */
EXPORT void hetegen_prepare(int isa, const void *x, int type, int64_t m, int64_t columns, int64_t stride, void *buffer,
                            int kind, int threads) {
    Input in;
    lay_out((uint8_t *)buffer, m, columns, kind, &in);
    Preparation preparation = {kernels_of(isa), x, type, stride, &in};
    pool_run(prepare_task, &preparation, m, m > FEW_ROWS ? threads : 1);
}

/* ---- matmul ---- */

/* The size of one thread's panel for weights of `columns` columns. */
EXPORT int64_t hetegen_panel_bytes(int64_t columns) {
    int64_t whole = even_blocks(columns) * PANEL * (BLOCK + 4 * (int64_t)sizeof(float));
    return whole + PANEL_SCRATCH;
}

enum { MOST_PARTS = 16 };

Part part_of(const Kernels *kernels, const int64_t *fields, const Input *input, void *out, int out_type, void *scratch) {
    int64_t begin = fields[4], end = fields[5];
    int format = (int)fields[PART_FORMAT];
    Job job = {(const uint8_t *)(intptr_t)fields[0], fields[1], fields[7], (const void *)(intptr_t)fields[2], fields[3], input,
               out, end - begin, begin, (enum Type)out_type, (uint8_t *)scratch, format};
    Part part = {job, kernels->rows[kernel_of(format)], begin, end};
    return part;
}

/* For each part: out[m][end - begin] = input x weights[begin:end]', the parts' outputs one after another. The fields of
 * a part are: address of the weights, bytes between rows, address of the scales, scales between rows, begin, end,
 * format, bytes of a row. All formats must have the same hetegen_input_kind for out_type; `input` is a buffer that
 * hetegen_prepare filled with that kind; `scratch` is threads x hetegen_panel_bytes, 64-byte aligned, if m > MOST_FEW. */
EXPORT void hetegen_matmul(int isa, int64_t count, const int64_t *fields, const void *input, int64_t m, int64_t columns,
                           void *out, int out_type, void *scratch, int threads) {
    Input in;
    Part parts[MOST_PARTS];
    uint8_t *to = out;
    Share share = {parts, count, NULL, hetegen_panel_bytes(columns)};
    lay_out((uint8_t *)input, m, columns, hetegen_input_kind(isa, (int)fields[PART_FORMAT], m, out_type), &in);
    for (int64_t i = 0; i < count && i < MOST_PARTS; i++, fields += PART_FIELDS) {
        parts[i] = part_of(kernels_of(isa), fields, &in, to, out_type, scratch);
        to += m * (parts[i].end - parts[i].begin) * (out_type == TYPE_F32 ? 4 : 2);
    }
    run_parts(&share, m, threads);
}
