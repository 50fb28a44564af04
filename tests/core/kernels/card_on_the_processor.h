/* What CUDA has and C lacks: blocks run one after another, a block's threads as threads that wait for each other. */

#include <pthread.h>
#include <string.h>

#define __device__
#define __forceinline__ inline
#define __shared__ static
#define KERNEL __attribute__((visibility("default")))

typedef struct { unsigned x, y, z, w; } __attribute__((aligned(16))) uint4;
typedef struct { float x, y, z, w; } __attribute__((aligned(16))) float4;
typedef struct { unsigned x, y; } dimension;

static _Thread_local dimension threadIdx, blockIdx;
static pthread_barrier_t all_threads;

#define __syncthreads() pthread_barrier_wait(&all_threads)

static inline float __uint_as_float(unsigned bits)
{
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static inline unsigned __float_as_uint(float value)
{
  unsigned bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

typedef void product(const void *, const void *, const void *, void *, int, int, int, int);
typedef void widen(const void *, const void *, void *, int, int, int);

/* One launch: of `product`, or of `widen` where that is null. */
typedef struct {
  product *product;
  widen *widen;
  const void *data, *scales, *x;
  void *y;
  int rows, width, count, layout;
} call;

typedef struct {
  const call *call;
  unsigned block, list, thread;
} one_thread;

static void *run_thread(void *given)
{
  const one_thread *self = given;
  const call *it = self->call;
  threadIdx.x = self->thread, blockIdx.x = self->block, blockIdx.y = self->list;
  if (it->product)
    it->product(it->data, it->scales, it->x, it->y, it->rows, it->width, it->count, it->layout);
  else
    it->widen(it->data, it->scales, it->y, it->rows, it->width, it->layout);
  return 0;
}

KERNEL void launch(const call *it, unsigned blocks, unsigned lists, unsigned threads)
{
  pthread_t running[1024];
  one_thread selves[1024];
  pthread_barrier_init(&all_threads, 0, threads);
  for (unsigned block = 0; block < blocks * lists; block++) {
    for (unsigned thread = 0; thread < threads; thread++) {
      selves[thread] = (one_thread){it, block % blocks, block / blocks, thread};
      pthread_create(&running[thread], 0, run_thread, &selves[thread]);
    }
    for (unsigned thread = 0; thread < threads; thread++)
      pthread_join(running[thread], 0);
  }
  pthread_barrier_destroy(&all_threads);
}
