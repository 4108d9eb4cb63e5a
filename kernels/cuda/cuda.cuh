/*
 * cuda.cuh - what the files of the CUDA backend share: the context, and how a kernel is launched.
 *
 * One device; one stream for all ops, so that they run in the order they are enqueued in and may
 * share one scratch block, and one for copies beside them. Nothing here waits for the device but
 * put(), get(), reach(), sync() and the rare growth of scratch. The first failure sticks
 * until sync() tells it.
 *
 * Every sum has a fixed order: no atomics on floats, and block counts that depend on the shape
 * alone, so the same device gives the same bits whenever it is asked.
 */
#ifndef KERNELS_CUDA_CUDA_CUH
#define KERNELS_CUDA_CUDA_CUH

#ifndef CUDA_EMULATED // tests compile the kernels for the host, with stand-ins for what follows
#include <cuda_runtime.h>
#endif
#include <stdint.h>

#include "kernels/backend.h"
#include "kernels/gpu_limits.h"

/* Which attention was asked for (attn_op.cu), and what a head size takes. */
enum attn_kind { ATTN_OPEN = 0, ATTN_MMA, ATTN_WGMMA, ATTN_UNTRIED };

struct lt; /* cuBLASLt's handle and the products prepared so far: gemm_lt.cu */

struct cuda {
    struct backend be;   /* first, so that a struct backend is one of these */
    cudaStream_t stream; /* of the ops: QUEUE_OPS */
    cudaStream_t copies; /* QUEUE_COPY */
    cudaStream_t talk;   /* QUEUE_RANKS */
    cudaEvent_t marks[BACKEND_MARKS];
    const char *failed; /* static text, or that of the seat, or NULL */
    const char *failed_before; /* the recording began: what failed within it is not told */
    int64_t memory;
    int device;     /* its number among those CUDA_VISIBLE_DEVICES leaves */
    void *comm;     /* its seat among the ranks, or NULL: nccl.cu */
    bool recording; /* what is enqueued is kept, not done: a stream capture */
    bool spoiled;   /* by something that cannot be kept */
    int shared_max; /* bytes of shared memory a block may ask for */
    void *scratch;
    size_t scratch_size;
    struct lt *lt;
    int capability;    /* 90 is 9.0 */
    const char *pins;  /* file of choices, or NULL: pins.cuh */
    char machine[320]; /* what they are valid for */
    enum attn_kind attn_wish;
    enum attn_kind attn[2]; /* of heads of 64 and of 128 */
};

static inline struct cuda *cuda_of(struct backend *be)
{
    return reinterpret_cast<struct cuda *>(be);
}

/* Several devices: nccl.cu */
const char *cuda_meet(struct backend *be, struct backend_meeting *out);
const char *cuda_join(struct backend *be, const struct backend_meeting *at, int rank, int size);
void cuda_all_reduce(struct backend *be, enum dtype t, void *x, int64_t n);
void cuda_reduce_scatter(struct backend *be, float *x, int64_t n, int64_t share);
void cuda_all_gather(struct backend *be, void *x, int64_t n, int64_t share);
void cuda_leave(struct cuda *c);
/* NULL, or why the ranks no longer work together: for good, until all are opened anew. */
const char *cuda_called_off(struct cuda *c);

/* Remember the first failure. */
void cuda_fail(struct cuda *c, const char *why);
void cuda_check(struct cuda *c, cudaError_t err);

/* Working space for one op, good until the next op asks; NULL after a
 * failure, which then sticks. */
void *cuda_scratch(struct cuda *c, size_t size);

static inline unsigned cuda_blocks(int64_t n, int64_t per_block)
{
    return (unsigned)((n + per_block - 1) / per_block);
}

/*
 * Enqueue a kernel. More than 48 KiB of shared memory, its static arrays included, have to be asked
 * for by name.
 */
template <typename... P, typename... A>
static void cuda_launch(struct cuda *c, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
                        A... args)
{
    if (shared > 32 * 1024) {
        cuda_check(c,
                   cudaFuncSetAttribute((const void *)kernel,
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    }
#ifdef CUDA_EMULATED
    emulate_grid(grid, block, shared, [=] { kernel(args...); });
#else
    kernel<<<grid, block, shared, c->stream>>>(args...);
#endif
    cuda_check(c, cudaGetLastError());
}

/* Random numbers up to `most` in size: random.cu */
void cuda_fill(struct cuda *c, void *p, enum dtype t, int64_t n, float most);

/* What PHOTON_CUDA_ATTN asks for. NULL, or why it cannot be had. */
const char *attn_open(struct cuda *c);

/* ---- the ops; kernels/backend.h is their manual ---- */

void cuda_embed_fwd(struct backend *be, enum dtype at, void *x, const int32_t *tokens,
                    const void *wte, const void *wpe, int64_t B, int64_t T, int64_t C);
void cuda_embed_bwd(struct backend *be, enum dtype at, void *dwte, void *dwpe,
                    const int32_t *tokens, const void *dx, int64_t B, int64_t T, int64_t C);
void cuda_norm_fwd(struct backend *be, enum dtype at, void *xs, void *out, void *mean, void *rstd,
                   const void *x, const void *y, const void *g, const void *b, int64_t N,
                   int64_t C);
void cuda_norm_bwd(struct backend *be, enum dtype at, void *dx, void *dg, void *db,
                   const void *dout, const void *xs, const void *mean, const void *rstd,
                   const void *g, int64_t N, int64_t C);
void cuda_gemm(struct backend *be, const struct gemm *g, void *out, const void *a, const void *b,
               const void *bias);
const char *cuda_plan_gemm(struct backend *be, const struct gemm *g);
void cuda_bias_bwd(struct backend *be, enum dtype at, void *db, const void *dy, int64_t M,
                   int64_t N);
void cuda_gelu_fwd(struct backend *be, enum dtype at, void *a, const void *h, int64_t n);
void cuda_gelu_bwd(struct backend *be, enum dtype at, void *dh, const void *h, const void *da,
                   int64_t n);
void cuda_attn_fwd(struct backend *be, enum dtype at, void *o, void *lse, const void *qkv,
                   const float *slopes, int64_t B, int64_t T, int64_t H, int64_t D);
void cuda_attn_bwd(struct backend *be, enum dtype at, void *dqkv, const void *qkv, const void *o,
                   const void *dout, const void *lse, const float *slopes, int64_t B, int64_t T,
                   int64_t H, int64_t D);
void cuda_xent(struct backend *be, enum dtype at, void *logits, void *loss, const int32_t *targets,
               double inv_n, bool train, int64_t rows, int64_t V);
void cuda_sqnorm(struct backend *be, enum dtype gt, double *partials, const void *g, int64_t n);
void cuda_clip(struct backend *be, struct clip_state *out, const double *partials, int64_t count,
               double max_norm);
void cuda_optim(struct backend *be, enum dtype gt, const struct optim_step *steps,
                const struct clip_state *clip, void *w, void *rest, void *m, void *v, const void *g,
                int64_t n);
void cuda_delta(struct backend *be, float *u, struct codec_result *results, const void *w,
                const void *rest, const float *base, const float *residual, float beta, int64_t n);
void cuda_encode(struct backend *be, const struct codec_rule *rule, const struct codec_parts *out,
                 struct codec_result *results, float *left, const float *u, int64_t n);

/* ---- products by cuBLASLt: gemm_lt.cu ---- */

/* NULL, or why there is no handle. */
const char *lt_open(struct cuda *c);
void lt_close(struct cuda *c);
/* Prepare one product for operands aligned to `align` bytes. false: cuBLASLt has no
 * way to do it. */
bool lt_plan(struct cuda *c, const struct gemm *g, int align);
/* Do it; false as above, and then nothing was enqueued. */
bool lt_gemm(struct cuda *c, const struct gemm *g, void *out, const void *a, const void *b,
             const void *bias);

#endif
