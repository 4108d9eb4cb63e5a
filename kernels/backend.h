/*
 * backend.h - what a compute backend must do, and the door to each of them.
 *
 * One table of functions per backend: "ref" is plain C, written to be read and
 * to judge the others; "cpu" is our own products or oneDNN's, and OpenMP;
 * "cuda" is a shared object loaded when asked for. Model, trainer and checkpoint
 * code see nothing but this header.
 *
 * Conventions. Tensors are row-major and contiguous, shapes stand in the comments
 * as (rows, columns). Weights are W (out, in), so a product is Y = X W^T. Pointers
 * are the backend's own memory. An op allocates nothing, checks nothing and
 * returns nothing: sizes are asserted once by the model, the first failure sticks
 * and sync() reports it. Gradients of parameters are fp32 and accumulate (+=);
 * gradients of activations overwrite, except where the comment says otherwise.
 *
 * Numbers. Activations and compute weights have one dtype A: BF16 or F32 (and F64
 * on "ref", the oracle). Inside an op everything is summed in fp32 or better, in
 * a fixed order that does not depend on the number of threads. R(x) is one
 * rounding to A, to nearest even. Parameter gradients, statistics, losses and
 * optimizer state are F32; in F64 mode on "ref" they are F64 too (type G below).
 *
 * Only plain C types cross the table, so the shared object needs nothing of ours.
 */
#ifndef KERNELS_BACKEND_H
#define KERNELS_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/codec.h"
#include "common/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum dtype { DTYPE_F32 = 0, DTYPE_BF16, DTYPE_F64, DTYPE_COUNT };

/* Bytes per element. */
static inline size_t dtype_size(enum dtype t)
{
    return t == DTYPE_BF16 ? 2 : t == DTYPE_F64 ? 8 : 4;
}

/* Its word, for people and options. */
static inline const char *dtype_name(enum dtype t)
{
    return t == DTYPE_BF16 ? "bf16" : t == DTYPE_F64 ? "f64" : "f32";
}

enum gemm_use {
    GEMM_FWD = 0, /* Y (M, N) = X (M, K) W (N, K)^T [+ bias (N)]; out = R(sum + bias)      */
    GEMM_DGRAD,   /* dX (M, K) = dY (M, N) W (N, K)               out = R(sum)             */
    GEMM_WGRAD,   /* dW (N, K) [+]= dY (M, N)^T X (M, K)          out is G, never rounded to A */
    GEMM_USE_COUNT
};

/* One matrix product; M, N, K are always those of the forward product. */
struct gemm {
    enum gemm_use use;
    enum dtype a_type; /* dtype A of both inputs; the output is A, or G for wgrad          */
    bool bias;         /* forward only; the bias has dtype A                               */
    bool accumulate;   /* wgrad only: add to what is there instead of overwriting          */
    bool out_f32;      /* forward only: the output is G although A is BF16 (eval logits)   */
    int64_t M, N, K;
};

enum optim_kind { OPTIM_ADAMW = 0, OPTIM_ADOPT, OPTIM_COUNT };

/*
 * One optimizer step, elementwise, every operation IEEE fp32 in the order written:
 *
 *   adamw (decoupled; Loshchilov & Hutter 2019)
 *       w = w keep;  m = b1 m + c1 g;  v = b2 v + c2 (g g)
 *       w = w - (lr (m / bias1)) / (sqrt(v / bias2) + eps)
 *   adopt (Taniguchi et al. 2024)
 *       t = 1: v = g g and nothing else; later
 *       w = w keep;  n = clamp(g / max(sqrt(v), eps), +-clamp);  m = m + c1 (n - m)
 *       w = w - lr m;  v = b2 v + c2 (g g)
 *
 * g is the clipped gradient, g times the factor. keep = 1 - decay, c1 = 1 - b1, c2 = 1 - b2 and all
 * that the struct holds are computed in double and rounded to fp32 once, so that backends agree to
 * the bit. t counts from 1 the steps these moments have seen.
 */
struct optim_step {
    enum optim_kind kind;
    int64_t t;
    double lr;
    double decay; /* (lr / lr_max) * weight_decay */
    double beta1;
    double beta2;
    double eps;
    double bias1; /* 1 - beta1^t */
    double bias2; /* 1 - beta2^t */
    double clamp; /* (t - 1)^(1/4), adopt */
};

/* What the clip op leaves in backend memory for optim and, later, for the host. */
struct clip_state {
    double norm;    /* global L2 norm of the gradient                         */
    double factor;  /* min(1, max_norm / (norm + 1e-6))                       */
    int64_t finite; /* 0: norm is NaN or Inf; optim then leaves everything be */
    int64_t taken;  /* steps whose norm was finite, this one among them       */
};

/* Which of them it is. */
static inline const struct optim_step *optim_pick(const struct optim_step *steps,
                                                  const struct clip_state *clip)
{
    return clip->taken > steps->t ? steps + (clip->taken - steps->t) : steps;
}

/* Gradient norms are summed by chunks of this many elements of the flat order. */
enum { NORM_CHUNK = 65536 };

/* What the model's plan must know of a backend. The same on every call, so that plans repeat. */
struct backend_caps {
    int64_t memory;      /* bytes a training may take                            */
    int64_t pass_tokens; /* tokens in one pass beyond which it gains no speed    */
    enum dtype dtype;    /* what it computes in when the choice is its own       */
    bool records;        /* record() works: what is enqueued can be kept and done again */
    bool apart;          /* its memory is not the host's: what can be done there is done there */
};

/*
 * What is enqueued runs in the order of its queue: the ops all on one, copies and the talk of
 * ranks beside them on others. A mark is a place in a queue that another queue, or the host, can
 * wait for. On a backend that works as it is called all of this has happened when a call returns.
 */
enum queue { QUEUE_OPS = 0, QUEUE_COPY, QUEUE_RANKS, QUEUE_COUNT };
enum { BACKEND_MARKS = 16 };

/* Several devices of one silo work as ranks; they find each other by these bytes. */
enum { BACKEND_RANKS_MAX = 16 };

struct backend_meeting {
    unsigned char bytes[128];
};

struct backend;

/* One more whenever something changes that a backend in a shared object shares with the program:
 * the table, or what its arguments point to. */
enum { BACKEND_ABI = 2 };

struct backend_ops {
    int abi; /* BACKEND_ABI: a table from another build is refused */
    const char *name;

    void (*close)(struct backend *be);

    void (*caps)(struct backend *be, struct backend_caps *out);

    /* Memory. Zeroed, 256-byte aligned; NULL when there is not enough. */
    void *(*alloc)(struct backend *be, size_t size);
    void (*release)(struct backend *be, void *p);
    void (*put)(struct backend *be, void *dst, const void *src, size_t size); /* host to backend */
    void (*get)(struct backend *be, void *dst, const void *src, size_t size); /* backend to host */

    /* Host memory for the copies of queues; NULL when there is not enough. */
    void *(*pin)(struct backend *be, size_t size);
    void (*unpin)(struct backend *be, void *p);

    /* To and from the backend while it works; the host's side is pinned. */
    void (*send)(struct backend *be, enum queue q, void *dst, const void *src, size_t size);
    void (*fetch)(struct backend *be, enum queue q, void *dst, const void *src, size_t size);

    /* Note this place of a queue under a number below BACKEND_MARKS; let a queue, or the host, wait
     * until the place last noted under it is reached. reach() says what sync() would, up to there.
     */
    void (*mark)(struct backend *be, enum queue q, int mark);
    void (*follow)(struct backend *be, enum queue q, int mark);
    const char *(*reach)(struct backend *be, int mark);

    /*
     * Keep what is enqueued on QUEUE_OPS from record() on instead of doing it. recorded() ends that
     * and gives a handle, or NULL where something of it cannot be done again. replay() enqueues it
     * all, on the same memory; false: it no longer holds, and nothing was enqueued. Ops must have
     * run once in the same shapes before. Only where caps say so.
     */
    void (*record)(struct backend *be);
    void *(*recorded)(struct backend *be);
    bool (*replay)(struct backend *be, void *recording);
    void (*unrecord)(struct backend *be, void *recording); /* NULL is allowed */

    /* Wait for all work; NULL, or what went wrong since the last call. Text that lasts as long as
     * the backend. */
    const char *(*sync)(struct backend *be);

    /* Does this backend compute with this dtype A? */
    bool (*supports)(struct backend *be, enum dtype a_type);

    /* Do what is slow once (JIT, tuning) for one product. NULL, or what went wrong. */
    const char *(*plan_gemm)(struct backend *be, const struct gemm *g);

    /* x (B*T, C) = R(wte[token] + wpe[t]); wpe NULL: without positions. tokens (B*T) */
    void (*embed_fwd)(struct backend *be, enum dtype at, void *x, const int32_t *tokens,
                      const void *wte, const void *wpe, int64_t B, int64_t T, int64_t C);

    /* dwte (V, C), dwpe (T, C) or NULL, both G, += dx, in position order */
    void (*embed_bwd)(struct backend *be, enum dtype at, void *dwte, void *dwpe,
                      const int32_t *tokens, const void *dx, int64_t B, int64_t T, int64_t C);

    /*
     * LayerNorm of the residual stream, eps 1e-5 (Ba et al. 2016): xs (N, C) = R(x + y), or a
     * reading of x when y is NULL (then xs may be x); out = R((xs - mean) * rstd * g + b) with the
     * biased variance, taken in two passes. g, b have dtype A; b may be NULL. mean, rstd (N) are G.
     */
    void (*norm_fwd)(struct backend *be, enum dtype at, void *xs, void *out, void *mean, void *rstd,
                     const void *x, const void *y, const void *g, const void *b, int64_t N,
                     int64_t C);

    /* dx = R(dx + grad) : adds to the residual's gradient. dg, db (C) are G, +=; db may be NULL. */
    void (*norm_bwd)(struct backend *be, enum dtype at, void *dx, void *dg, void *db,
                     const void *dout, const void *xs, const void *mean, const void *rstd,
                     const void *g, int64_t N, int64_t C);

    /* See struct gemm. fwd: a = X, b = W; dgrad: a = dY, b = W; wgrad: a = dY, b = X. */
    void (*gemm)(struct backend *be, const struct gemm *g, void *out, const void *a, const void *b,
                 const void *bias);

    /* db (N), G, += column sums of dy (M, N) */
    void (*bias_bwd)(struct backend *be, enum dtype at, void *db, const void *dy, int64_t M,
                     int64_t N);

    /* a = R(h * Phi(h)), the exact erf form (Hendrycks & Gimpel 2016), n elements */
    void (*gelu_fwd)(struct backend *be, enum dtype at, void *a, const void *h, int64_t n);

    /* dh = R(da * (Phi(h) + h phi(h))); dh may be da */
    void (*gelu_bwd)(struct backend *be, enum dtype at, void *dh, const void *h, const void *da,
                     int64_t n);

    /*
     * Causal attention, never a T x T array (Dao et al. 2022): o (B, T, H, D) from qkv packed as
     * (B, T, 3, H, D), and lse (B, H, T), G, the natural log-sum-exp of the scores
     *
     *     t_ij = q_i k_j / sqrt(D) + slope_h (j - i),   j <= i.
     *
     * slopes (H) fp32 are ALiBi's (Press et al. 2022), or NULL without. The probabilities may be
     * rounded to A before they meet v; their sum is not.
     */
    void (*attn_fwd)(struct backend *be, enum dtype at, void *o, void *lse, const void *qkv,
                     const float *slopes, int64_t B, int64_t T, int64_t H, int64_t D);

    /*
     * dqkv = gradients in the packed layout, from o, do (B, T, H, D) and lse. With p = exp(t - lse)
     * and ds = p (do v - sum(do o)) / sqrt(D): p meets do, and ds meets q and k, and both may be
     * rounded to A before.
     */
    void (*attn_bwd)(struct backend *be, enum dtype at, void *dqkv, const void *qkv, const void *o,
                     const void *dout, const void *lse, const float *slopes, int64_t B, int64_t T,
                     int64_t H, int64_t D);

    /*
     * Softmax cross-entropy of one chunk of rows. loss (R), G, = lse - logit[target]; a target of
     * -1 is ignored (loss 0). With train, logits (R, V) become R((p - onehot) * inv_n), in place.
     */
    void (*xent)(struct backend *be, enum dtype at, void *logits, void *loss,
                 const int32_t *targets, double inv_n, bool train, int64_t rows, int64_t V);

    /* partials[i] = sum of squares of chunk i of g (n, type G), double, NORM_CHUNK elements each */
    void (*sqnorm)(struct backend *be, enum dtype gt, double *partials, const void *g, int64_t n);

    /* Adds the partials in order and decides the factor; counts the step in *out if it is one. */
    void (*clip)(struct backend *be, struct clip_state *out, const double *partials, int64_t count,
                 double max_norm);

    /*
     * One step over n elements. It is steps[0], or steps[i] where clip->taken is steps[0].t + i: so
     * a step can be enqueued while the one before it may yet turn out to be none. Both are backend
     * memory, as all the host knows late. m, v, g have type gt, and w too where rest is NULL. Else
     * gt is F32 and the master is split (master_split() below): w is BF16 (n), what the ops compute
     * with, and rest uint16 (n).
     */
    void (*optim)(struct backend *be, enum dtype gt, const struct optim_step *steps,
                  const struct clip_state *clip, void *w, void *rest, void *m, void *v,
                  const void *g, int64_t n);

    void (*zero)(struct backend *be, void *p, size_t size);

    /*
     * What an update is made of: u (n) F32 = base - w, then + beta residual where that is not NULL,
     * each operation rounded by itself. w and rest as in optim, of type F32 or split; base and
     * residual (n) F32. Sets results[g].fresh of every group.
     */
    void (*delta)(struct backend *be, float *u, struct codec_result *results, const void *w,
                  const void *rest, const float *base, const float *residual, float beta,
                  int64_t n);

    /*
     * codec_encode() of u (n) group by group, to the bit, and left = u - v, what that leaves out.
     * Of the results all but fresh. The rule is the host's.
     */
    void (*encode)(struct backend *be, const struct codec_rule *rule, const struct codec_parts *out,
                   struct codec_result *results, float *left, const float *u, int64_t n);

    /*
     * Several devices. One backend names a meeting; then every rank joins it, each on a thread of
     * its own, since that waits for the others. NULL, or what went wrong; once per backend.
     */
    const char *(*meet)(struct backend *be, struct backend_meeting *out);
    const char *(*join)(struct backend *be, const struct backend_meeting *at, int rank, int size);

    /* The calling thread works for this backend from now on. */
    void (*bind)(struct backend *be);

    /*
     * x (n), F32 or F64, becomes the sum over the ranks, with the same bits on each; every rank
     * calls it at the same place of its own order. Nothing happens to a backend that joined nobody.
     */
    void (*all_reduce)(struct backend *be, enum dtype t, void *x, int64_t n);

    /*
     * On QUEUE_RANKS, as above. Of x (n) F32 each rank has a share of `share` elements, in the
     * order of ranks, the last ones less or nothing. A rank's own share becomes the sum over the
     * ranks, with the bits of a sum in their order on a host; the others' shares are void.
     */
    void (*reduce_scatter)(struct backend *be, float *x, int64_t n, int64_t share);

    /* On QUEUE_RANKS. Of x, n bytes, each rank has its share; all get them all. */
    void (*all_gather)(struct backend *be, void *x, int64_t n, int64_t share);
};

struct group; /* kernels/group.h */

/*
 * An fp32 master weight as two halves of 16 bits, exactly: high is its bf16, rounded half away from
 * zero, rest its low half. Together they take the memory of the master alone and spare the ops a
 * rounded copy; so does PyTorch's and llmq's split of the same name.
 */
static inline void master_split(float w, uint16_t *high, uint16_t *rest)
{
    union {
        float f;
        uint32_t u;
    } bits = {w};
    *high = (uint16_t)((bits.u + 0x8000U) >> 16);
    *rest = (uint16_t)bits.u;
}

static inline float master_join(uint16_t high, uint16_t rest)
{
    union {
        uint32_t u;
        float f;
    } bits = {((uint32_t)high << 16) + (uint32_t)(int32_t)(int16_t)rest};
    return bits.f;
}

struct backend {
    const struct backend_ops *ops;
    int threads; /* host threads an op may use; fixed at open, part of a silo's saved state */
    struct group *group; /* of ranks in host memory, or NULL */
    int rank;
};

/*
 * Open a backend by name, or the fastest that answers for "auto"; "cuda:1" is the second GPU, and
 * "cpu:1" one more rank on this machine's cores. Where "auto" finds the CUDA object but no use of
 * it, the first such call says why in the log. The caller owns *out and ends it with
 * backend_close(). threads 0 means all cores. ST_NOT_FOUND: known by name, but not built in, or no
 * device answers; ST_INVALID: no such name, or a shared object from another build.
 */
enum status backend_open(struct backend **out, const char *name, int threads,
                         struct err *e) MUST_CHECK;
void backend_close(struct backend *be); /* NULL is allowed */

/*
 * What photon-cuda.so exports under the name photon_backend: the backend on that device, or NULL
 * and why not. The text is static.
 */
typedef struct backend *backend_cuda_fn(int device, const char **why);

/* The dtype of that name, "f32" or "bf16"; of any other word, "auto", the backend's own choice. */
enum dtype backend_dtype(struct backend *be, const char *name);

/* sync() as a status: ST_DEVICE with the backend's own words. */
enum status backend_sync(struct backend *be, struct err *e) MUST_CHECK;

#ifdef __cplusplus
}
#endif

#endif
