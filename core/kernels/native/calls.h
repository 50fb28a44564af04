/* Exported functions that other parts of the library call as well. */
#ifndef HETEGEN_CALLS_H
#define HETEGEN_CALLS_H

#include <stdint.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

/* dispatch.c */
EXPORT int hetegen_input_kind(int isa, int format, int64_t m, int type);
EXPORT int64_t hetegen_input_bytes(int64_t m, int64_t columns, int kind);
EXPORT void hetegen_prepare(int isa, const void *x, int type, int64_t m, int64_t columns, int64_t stride, void *buffer,
                            int kind, int threads);
EXPORT void hetegen_matmul(int isa, int64_t count, const int64_t *fields, const void *input, int64_t m, int64_t columns,
                           void *out, int out_type, void *scratch, int threads);
EXPORT int64_t hetegen_panel_bytes(int64_t columns);
EXPORT int hetegen_attends_short(void);
/* copy.c */
EXPORT void hetegen_copy(void *to, const void *from, int64_t bytes);
EXPORT void hetegen_copy_rows(void *to, const void *from, int64_t rows, int64_t bytes, int64_t stride);
/* norm.c */
EXPORT void hetegen_rms_norm(int isa, const void *x, int type, int64_t rows, int64_t columns, const float *gain,
                             float eps, int rounded, int centred, void *out, int threads);
/* attention.c: addresses of keys and values, and of their unpacked recent part if they are packed. */
typedef struct {
    void *k, *v, *recent_k, *recent_v;
} States;
EXPORT int64_t hetegen_attention_bytes(const int64_t *shape);
EXPORT void hetegen_attention(int isa, const int64_t *shape, const void *q, const States *states, const void *mask,
                              const void *sinks, float scale, float softcap, void *out, int type, void *scratch,
                              int threads);
/* prompt_attention.c */
EXPORT int64_t hetegen_prompt_attention_bytes(const int64_t *shape, int threads);
EXPORT int hetegen_prompt_attention(int isa, const int64_t *shape, const void *q, const States *states, const void *mask,
                                    int causal, const void *sinks, float scale, float softcap, void *out, int type,
                                    void *scratch, int threads);
/* packed_states.c */
EXPORT void hetegen_states(int isa, const int64_t *shape, void *floats, int type, void *packed, int widens, int threads);
/* heads.c */
typedef struct Heads Heads;
EXPORT int64_t hetegen_heads_bytes(int isa, const Heads *h, int type, int64_t m);
EXPORT void hetegen_heads(int isa, const Heads *h, const void *x, int64_t x_head, int64_t x_row, int type, int64_t m,
                          void *out, int64_t out_head, int64_t out_row, void *scratch, int threads);
/* router.c */
typedef struct Router Router;
EXPORT int64_t hetegen_route_bytes(int isa, const Router *r, int type, int64_t m);
EXPORT void hetegen_route(int isa, const Router *r, const void *x, int type, int64_t m, float *scores, int64_t *chosen,
                          float *shares, void *scratch, int threads);
/* experts.c */
typedef struct Experts Experts;
EXPORT int64_t hetegen_experts_bytes(int isa, const Experts *e, int type, int64_t m, int64_t choices, int threads);
EXPORT void hetegen_experts(int isa, const Experts *e, const void *x, int type, int64_t m, int64_t choices,
                            const int64_t *chosen, const float *shares, void *out, void *scratch, int threads);
/* mixture.c */
typedef struct Mixture Mixture;
EXPORT int64_t hetegen_mixture_bytes(int isa, const Mixture *x, int type, int64_t m, int threads);
EXPORT void hetegen_mixture(int isa, const Mixture *x, const void *rows, int type, int64_t m, void *out, void *scratch,
                            int threads);

#endif
