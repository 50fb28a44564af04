/* The output head in two passes: all logits from a coarse copy with fewer bits, then the largest ones again from the
 * head itself. The selection depends only on the order of the coarse logits, so it is independent of their scale. */
#include "calls.h"
#include "dispatch.h"
#include "thread_pool.h"

#if defined(__GNUC__) || defined(__clang__)
#define PREFETCH(at) __builtin_prefetch(at)
#elif defined(HETEGEN_X86)
#include <immintrin.h>
#define PREFETCH(at) _mm_prefetch((const char *)(at), _MM_HINT_T0)
#else
#define PREFETCH(at) ((void)(at))
#endif

/* SPAN rows are selected together, by the largest of their logits. BATCH rows are gathered and multiplied in one call:
 * one row alone would end before the memory pipeline is full. */
enum { SPAN = 16, BATCH = 32, ALIGN = 64, STEPS = 16, MOST_STEP = 1024, ROWS_AHEAD = 4 };

typedef struct {
    int64_t data_bytes, scale_bytes;
} RowSizes;

typedef struct {
    const Kernels *kernels;
    const int64_t *full;
    Part coarse;
    int64_t m, rows, spans, step, wanted;
    RowSizes sizes; /* of the full head's rows */
    Input *inputs;  /* [m]: each input row alone */
    uint8_t *out;   /* [m][rows] */
    int type;
    float *tops;    /* [m][spans] */
    int32_t *chosen; /* [m][rows] */
    int64_t *counts; /* [m] */
    uint8_t *copies; /* [threads] */
} Head;

static int64_t aligned(int64_t bytes) { return (bytes + ALIGN - 1) / ALIGN * ALIGN; }

static int64_t item_bytes(int type) { return type == TYPE_F32 ? 4 : 2; }

static int64_t spans_of(int64_t rows) { return (rows + SPAN - 1) / SPAN; }

/* Widen `count` values of the head's output type to floats. */
static void widen_some(const Head *h, const uint8_t *from, int64_t count, float *to) {
    if (h->type == TYPE_F32) memcpy(to, from, (size_t)count * sizeof(float));
    else if (count == BLOCK) h->kernels->widen((const uint16_t *)from, h->type, to);
    else
        for (int64_t i = 0; i < count; i++) {
            uint16_t bits = ((const uint16_t *)from)[i];
            to[i] = h->type == TYPE_BF16 ? bf16_to_float(bits) : f16_to_float(bits);
        }
}

/* ---- coarse logits ---- */

/* The maximum of each span of rows [begin, end); only the last span may be incomplete. */
static void top_spans(const Head *h, int64_t m, int64_t begin, int64_t end) {
    float wide[BLOCK];
    for (int64_t row = begin; row < end; row += BLOCK) {
        int64_t count = end - row < BLOCK ? end - row : BLOCK;
        widen_some(h, h->out + (m * h->rows + row) * item_bytes(h->type), count, wide);
        for (int64_t span = 0; span * SPAN < count; span++) {
            float top = -INFINITY;
            for (int64_t i = span * SPAN; i < (span + 1) * SPAN && i < count; i++) top = wide[i] > top ? wide[i] : top;
            h->tops[m * h->spans + row / SPAN + span] = top;
        }
    }
}

static void multiply_coarse(const void *context, int64_t task, int64_t thread) {
    const Head *h = context;
    int64_t begin = task * h->step, end = begin + h->step < h->rows ? begin + h->step : h->rows;
    (void)thread;
    h->coarse.kernel(&h->coarse.job, begin, end, NULL);
    for (int64_t m = 0; m < h->m; m++) top_spans(h, m, begin, end);
}

/* ---- the choice ---- */

/* A threshold that at least `wanted` span maxima reach, and hardly more, by bisection; the `wanted` largest logits
 * reach it, too. */
static float threshold(const float *tops, int64_t count, int64_t wanted) {
    float low = tops[0], high = tops[0];
    for (int64_t i = 1; i < count; i++) {
        low = tops[i] < low ? tops[i] : low;
        high = tops[i] > high ? tops[i] : high;
    }
    for (int step = 0; step < STEPS; step++) {
        float middle = low + (high - low) / 2;
        int32_t reach = 0;
        for (int64_t i = 0; i < count; i++) reach += tops[i] >= middle;
        if (reach >= wanted) low = middle;
        else high = middle;
    }
    return low;
}

static void choose(const void *context, int64_t m, int64_t thread) {
    const Head *h = context;
    const float *tops = h->tops + m * h->spans, least = threshold(tops, h->spans, h->wanted);
    int32_t *chosen = h->chosen + m * h->rows;
    int64_t found = 0;
    float wide[SPAN];
    (void)thread;
    for (int64_t span = 0; span < h->spans; span++) {
        if (!(tops[span] >= least)) continue;
        int64_t row = span * SPAN, count = h->rows - row < SPAN ? h->rows - row : SPAN;
        widen_some(h, h->out + (m * h->rows + row) * item_bytes(h->type), count, wide);
        for (int64_t i = 0; i < count; i++)
            if (wide[i] >= least) chosen[found++] = (int32_t)(row + i);
    }
    h->counts[m] = found;
}

/* ---- recomputing the selected logits ---- */

static int64_t copy_bytes(RowSizes sizes) { return aligned(BATCH * sizes.data_bytes) + aligned(BATCH * sizes.scale_bytes); }

/* Prefetch a row that is copied soon: the selected rows are scattered, which defeats the hardware prefetcher. */
INLINE void ask_for(const uint8_t *at, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) PREFETCH(at + i);
}

static void multiply_some(const Head *h, int64_t m, const int32_t *chosen, int64_t count, uint8_t *copy) {
    uint8_t found[BATCH * sizeof(float)], *scales = copy + aligned(BATCH * h->sizes.data_bytes);
    const uint8_t *data = (const uint8_t *)(intptr_t)h->full[0], *all = (const uint8_t *)(intptr_t)h->full[2];
    int64_t item = item_bytes(h->type);
    for (int64_t i = -ROWS_AHEAD; i < count; i++) {
        if (i + ROWS_AHEAD < count) {
            ask_for(data + chosen[i + ROWS_AHEAD] * h->full[1], h->sizes.data_bytes);
            ask_for(all + chosen[i + ROWS_AHEAD] * h->sizes.scale_bytes, h->sizes.scale_bytes);
        }
        if (i < 0) continue;
        memcpy(copy + i * h->sizes.data_bytes, data + chosen[i] * h->full[1], (size_t)h->sizes.data_bytes);
        memcpy(scales + i * h->sizes.scale_bytes, all + chosen[i] * h->sizes.scale_bytes, (size_t)h->sizes.scale_bytes);
    }
    Part part = part_of(h->kernels, h->full, h->inputs + m, found, h->type, NULL);
    part.job.weights = copy;
    part.job.scales = scales;
    part.job.first = 0;
    part.job.out_stride = count;
    part.kernel(&part.job, 0, count, NULL);
    for (int64_t i = 0; i < count; i++)
        memcpy(h->out + (m * h->rows + chosen[i]) * item, found + i * item, (size_t)item);
}

static int64_t batches(int64_t count) { return (count + BATCH - 1) / BATCH; }

static void multiply_chosen(const void *context, int64_t task, int64_t thread) {
    const Head *h = context;
    int64_t m = 0;
    for (int64_t own; task >= (own = batches(h->counts[m])); m++) task -= own;
    int64_t at = task * BATCH, count = h->counts[m] - at < BATCH ? h->counts[m] - at : BATCH;
    multiply_some(h, m, h->chosen + m * h->rows + at, count, h->copies + thread * copy_bytes(h->sizes));
}

/* ---- the call ---- */

static RowSizes sizes_of(const int64_t *fields) {
    static const int SIZES[4] = {2, 2, 4, 1};
    int format = (int)fields[PART_FORMAT];
    int item = kernel_of(format) == GROUPED ? SIZES[layout_of(format).scale] : 4;
    RowSizes sizes = {fields[1], fields[3] * item};
    return sizes;
}

static uint8_t *taken(uint8_t **at, int64_t bytes) {
    uint8_t *own = *at;
    *at += aligned(bytes);
    return own;
}

/* The input buffer's size for any type of input. */
static int64_t part_bytes(int isa, const int64_t *fields, int64_t m, int64_t columns) {
    return hetegen_input_bytes(m, columns, hetegen_input_kind(isa, (int)fields[PART_FORMAT], m, TYPE_F32));
}

static void prepare(Head *h, const int64_t *fields, int isa, const void *x, int64_t m, int64_t from, int64_t columns, Input *in,
                    uint8_t *buffer) {
    lay_out(buffer, m, columns, hetegen_input_kind(isa, (int)fields[PART_FORMAT], m, h->type), in);
    for (int64_t row = 0; row < m; row++) prepare_row(h->kernels, x, h->type, (from + row) * columns, row, in);
}

/* Bytes of scratch memory that hetegen_head needs. */
EXPORT int64_t hetegen_head_bytes(int isa, const int64_t *coarse, const int64_t *full, int64_t m, int64_t columns,
                                  int threads) {
    int64_t rows = full[5];
    return ALIGN + aligned(part_bytes(isa, coarse, m, columns)) + m * aligned(part_bytes(isa, full, 1, columns)) +
           aligned(m * spans_of(rows) * (int64_t)sizeof(float)) + aligned(m * rows * (int64_t)sizeof(int32_t)) +
           threads * copy_bytes(sizes_of(full));
}

/* x [m][columns] of `type`, m at most MOST_FEW; out [m][rows] of `type`; coarse, full: hetegen_matmul's fields of all
 * rows of both. At least `wanted` logits per input row come from the full head; all others have smaller coarse logits.
 * scratch: hetegen_head_bytes. Returns the number of logits from the full head, over all input rows. */
EXPORT int64_t hetegen_head(int isa, const int64_t *coarse, const int64_t *full, const void *x, int type, int64_t m,
                            int64_t columns, int64_t wanted, void *out, void *scratch, int threads) {
    uint8_t *at = (uint8_t *)(((uintptr_t)scratch + ALIGN - 1) / ALIGN * ALIGN);
    int64_t counts[MOST_FEW], tasks = 0, all = 0;
    Input few, each[MOST_FEW];
    Head h = {.kernels = kernels_of(isa), .full = full, .m = m, .rows = full[5], .spans = spans_of(full[5]),
              .wanted = wanted, .sizes = sizes_of(full), .inputs = each,
              .out = out, .type = type, .counts = counts};
    prepare(&h, coarse, isa, x, m, 0, columns, &few, taken(&at, part_bytes(isa, coarse, m, columns)));
    for (int64_t i = 0; i < m; i++)
        prepare(&h, full, isa, x, 1, i, columns, each + i, taken(&at, part_bytes(isa, full, 1, columns)));
    h.tops = (float *)taken(&at, m * h.spans * (int64_t)sizeof(float));
    h.chosen = (int32_t *)taken(&at, m * h.rows * (int64_t)sizeof(int32_t));
    h.copies = taken(&at, threads * copy_bytes(h.sizes));
    h.coarse = part_of(h.kernels, coarse, &few, out, type, NULL);
    h.step = h.rows / (threads * 3) < MOST_STEP ? h.rows / (threads * 3) / BLOCK * BLOCK + BLOCK : MOST_STEP;
    pool_run(multiply_coarse, &h, (h.rows + h.step - 1) / h.step, threads);
    pool_run(choose, &h, m, threads);
    for (int64_t i = 0; i < m; i++) {
        tasks += batches(counts[i]);
        all += counts[i];
    }
    pool_run(multiply_chosen, &h, tasks, threads);
    return all;
}
