/*
 * model.h - the decoder: weights, gradients, and one pass forward and backward, on any backend.
 *
 * MPT's pre-norm decoder (design of Press et al. 2022 for alibi):
 *
 *     x = wte[token] (+ wpe[t])
 *     each block:  x = x + out_proj(attention(Wqkv(norm_1(x))))
 *                  x = x + down_proj(gelu(up_proj(norm_2(x))))
 *     logits = norm_f(x) wte^T
 *
 * The model owns weights, gradients and activations; an optimizer above it moves the weights. All
 * memory is taken when it opens, laid out by common/memory_plan.h; passes only enqueue ops. Logits
 * exist a chunk of rows at a time.
 *
 * Gradients are plain sums scaled by inv_n, one over the tokens of the whole batch, so that several
 * passes mean the same as one. One thread uses a model.
 */
#ifndef CLIENT_MODEL_H
#define CLIENT_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "common/memory_plan.h"
#include "common/params.h"
#include "common/status.h"
#include "kernels/backend.h"

struct model;

struct model_config {
    struct model_spec spec;
    enum dtype dtype;    /* A of backend.h */
    int32_t batch;       /* sequences in a step */
    int32_t micro_batch; /* sequences in a pass; 0: chosen by memory and backend */
    int recompute;       /* an enum recompute, or -1: the least that fits */
    int64_t logits_max;  /* bytes of a chunk of logits; 0: a share of the memory */
    int32_t ranks, rank; /* of those that share the optimizer's state; 0, 0: it is whole */
    bool tell;           /* log the plan's table before any of it is taken */
};

/*
 * ST_INVALID: the spec, or the dtype on this backend; ST_NOMEM; ST_DEVICE. The backend is borrowed.
 * Weights are zero until they are put.
 */
enum status model_open(struct model **out, struct backend *be, const struct model_config *c,
                       struct err *e) MUST_CHECK;
void model_close(struct model *m);

const struct param_table *model_params(const struct model *m);
const struct memory_plan *model_plan(const struct model *m);

/* The arrays that an optimizer walks, in backend memory, `count` elements with gaps of zeros. */
struct model_flat {
    enum dtype type; /* G */
    int64_t count;
    void *weights; /* A, what the ops compute with */
    void *rest;    /* the other half of a split master (kernels/backend.h), or NULL */
    void *grads;
};
struct model_flat model_flat(const struct model *m);

/*
 * From now on fn hears in each training pass that the gradients of a layer have got all it gives
 * them: n_layers for what is behind the blocks, then the blocks from the last to the first, then -1
 * for the embeddings.
 */
typedef void model_watch_fn(void *ctx, int64_t layer);
void model_watch(struct model *m, model_watch_fn *fn, void *ctx); /* NULL: nobody */

/* Which layer of those a parameter belongs to. */
int64_t model_layer(const struct model *m, int32_t param);

/* Where the parameter of that index (model_params()) begins in those arrays. */
int64_t model_offset(const struct model *m, int32_t param);

/* Where elements [start, start + count) of the flat order, of one tensor, begin in them. */
int64_t model_place(const struct model *m, int64_t start, int64_t count);

/*
 * Between elements [start, start + count) of the flat order and host memory: the weights, which as
 * numbers are those of the master whatever they are kept in, the gradients, and any array of G laid
 * out as moments are. Where the optimizer's state is shared, both leave alone what other ranks
 * keep: of a master in halves, and of moments. get reports nothing: backend_sync() does.
 */
void model_put(struct model *m, void *array, int64_t start, int64_t count, const float *in);
void model_get(struct model *m, float *out, const void *array, int64_t start, int64_t count);

/*
 * Forward and backward over B sequences, 1 <= B <= micro_batch. tokens and targets (B, T) int32 and
 * losses (B, T) G are backend memory. first: gradients are overwritten, else added to.
 */
void model_train_pass(struct model *m, void *losses, const int32_t *tokens, const int32_t *targets,
                      int32_t B, double inv_n, bool first);

/* Forward only; the losses come from fp32 logits. */
void model_eval_pass(struct model *m, void *losses, const int32_t *tokens, const int32_t *targets,
                     int32_t B);

/* Test hook: fill everything but the weights with NaN. No result may depend on it. */
void model_poison(struct model *m);

/* ALiBi's slopes as MPT orders them: out[0..heads) (Press et al. 2022, section 3). */
void model_alibi_slopes(float *out, int32_t heads);

#endif
