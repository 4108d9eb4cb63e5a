/*
 * memory_plan.h - what a training step keeps in memory: every tensor, its place and its size.
 *
 * A pure function of the model, the pass and the element sizes. The model lays out its memory by
 * it, so that predicted equals used, and the aggregator tells a run's owner what a silo will need
 * before one is started.
 *
 * Parameters, gradients and moments lie in the flat order of params.h, each tensor beginning at a
 * multiple of PLAN_ALIGN elements, 256 bytes even in bf16, because matrix units want aligned
 * operands. The gaps hold zeros and stay zero under every optimizer.
 *
 * Activations of one pass lie in a block of their own. A tensor that the backward pass needs is
 * kept once per layer (its stride is not 0); the others share one place. Memory is bought back by
 * recomputing more of a block in the backward pass, where the same ops give the same bits:
 *
 *     RECOMPUTE_NONE    keeps 32 d bytes per token and layer (bf16)
 *     RECOMPUTE_GELU    24 d: the GELU's output is cheap to have again
 *     RECOMPUTE_NORMS   20 d: both norms' outputs besides
 *     RECOMPUTE_BLOCK    2 d: the block's input alone; a third more products
 */
#ifndef COMMON_MEMORY_PLAN_H
#define COMMON_MEMORY_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/params.h"
#include "common/shards.h"
#include "common/status.h"

enum { PLAN_ALIGN = 128 };

enum recompute {
    RECOMPUTE_NONE = 0,
    RECOMPUTE_GELU,
    RECOMPUTE_NORMS,
    RECOMPUTE_BLOCK,
    RECOMPUTE_COUNT
};

/* Activations. N = micro_batch * seq_len tokens; G-typed ones are statistics. */
enum act {
    /* of each block */
    ACT_X = 0, /* (N, d) its input, the residual stream     */
    ACT_MEAN1, /* (N) G                                     */
    ACT_RSTD1, /* (N) G                                     */
    ACT_LN1,   /* (N, d)                                    */
    ACT_QKV,   /* (N, 3d)                                   */
    ACT_LSE,   /* (B, H, T) G                               */
    ACT_O,     /* (N, d) attention's output, before out_proj */
    ACT_MID,   /* (N, d) the residual stream after attention */
    ACT_MEAN2, /* (N) G                                     */
    ACT_RSTD2, /* (N) G                                     */
    ACT_LN2,   /* (N, d)                                    */
    ACT_H,     /* (N, 4d) before GELU                       */
    ACT_A,     /* (N, 4d) after it                          */
    ACT_BLOCK_COUNT,
    /* once */
    ACT_END = ACT_BLOCK_COUNT, /* (N, d) the residual stream after the last block       */
    ACT_MEANF,                 /* (N) G                                                 */
    ACT_RSTDF,                 /* (N) G                                                 */
    ACT_F,                     /* (N, d) what the head reads                            */
    ACT_Y,                     /* (N, d) a sublayer's output, until it is added         */
    ACT_DX,                    /* (N, d) gradient of the residual stream                */
    ACT_DY,                    /* (N, d) gradient of a norm's output, or of ACT_O       */
    ACT_BIG,                   /* a chunk of logits; later the gradient of h or of qkv  */
    ACT_COUNT
};

struct plan_tensor {
    int64_t offset; /* bytes, of the first layer's */
    int64_t stride; /* bytes from one layer's to the next; 0: shared */
    int64_t size;   /* bytes */
};

struct plan_request {
    struct model_spec model;
    int32_t batch;       /* sequences in a step */
    int32_t micro_batch; /* sequences in a pass */
    enum recompute recompute;
    int32_t a_size;     /* bytes of an activation: 2, 4 or 8 */
    int32_t g_size;     /* bytes of a gradient: 4 or 8 */
    int32_t ranks;      /* that share the optimizer's state; 0 or 1: it is whole */
    int64_t logits_max; /* bytes that a chunk of logits may take, at least one row */
};

struct memory_plan {
    struct plan_request request;
    struct plan_tensor act[ACT_COUNT];
    struct shards shards;    /* who keeps what of rest and moments */
    int64_t flat_count;      /* elements of the parameters with their gaps */
    int64_t chunk_rows;      /* rows of logits at once in training */
    int64_t chunk_rows_eval; /* and in evaluation, where they are G */
    /* bytes */
    int64_t weights; /* in A, as the ops read them */
    int64_t rest;    /* the other half of a split master (kernels/backend.h), where A is not G */
    int64_t grads;
    int64_t moments; /* rest and moments of the rank that keeps the most */
    int64_t activations;
    int64_t batch_data; /* tokens, targets and losses of a step, partial norms */
    int64_t total;
};

/* The model must have passed model_spec_check(); 1 <= micro_batch <= batch. */
void memory_plan(struct memory_plan *out, const struct plan_request *r);

/*
 * The plan of the fastest pass that fits in `memory` bytes: micro-batches divide the batch and have
 * no more than about pass_tokens tokens; least recomputation first, whole blocks only when nothing
 * else fits. A micro_batch that is not 0 in the request is kept. ST_NOMEM says what the smallest
 * would take.
 */
enum status memory_plan_choose(struct memory_plan *out, const struct plan_request *r,
                               int64_t memory, int64_t pass_tokens, struct err *e) MUST_CHECK;

/* Where a tensor begins in memory, in elements: its offset in the flat order
 * plus the gaps before. */
void memory_plan_offsets(const struct param_table *t, int64_t *offsets);

/* A line for each kind of memory: its bytes, and what they are of. out[0..size). */
void memory_plan_table(const struct memory_plan *p, char *out, size_t size);

/*
 * Bytes that a silo needs at the least sensible: bf16, norms and GELU recomputed. micro_batch 0
 * stands for one sequence.
 */
int64_t memory_plan_silo(const struct model_spec *m, int32_t batch, int32_t micro_batch);

#endif
