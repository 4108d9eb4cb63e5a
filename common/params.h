/*
 * params.h - the parameters of a model: names, shapes, order and first values.
 *
 * A pure function of the model's spec, so that the aggregator can draw checkpoint 0
 * and check the shape of every update without model code or a GPU.
 *
 * The flat order is the order of a checkpoint's data section: tensors sorted by name
 * (strcmp), each row-major, nothing between them. Offsets count elements, not bytes.
 * Names are those of Hugging Face's MPT (transformer.wte.weight,
 * transformer.blocks.3.attn.Wqkv.weight, ...), `transformer.wpe.weight` and `.bias`
 * where the spec has them. The output head is tied to wte and has no tensor.
 *
 * First values (MPT as Photon trains it): weights normal with Kaiming fan-in std
 * sqrt(2 / fan_in), out_proj and down_proj divided by sqrt(2 L) besides, norm weights 1,
 * biases 0. Element i of a tensor is a function of (seed, tensor name, i) alone.
 */
#ifndef COMMON_PARAMS_H
#define COMMON_PARAMS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/arena.h"
#include "common/status.h"

enum position { POSITION_LEARNED = 0, POSITION_ALIBI, POSITION_COUNT };

struct model_spec {
    int32_t d_model;
    int32_t n_heads;
    int32_t n_layers;
    int32_t vocab_size;
    int32_t seq_len;
    enum position position;
    bool bias;
};

struct param {
    const char *name;
    int32_t rank;     /* 1 or 2 */
    int64_t shape[2]; /* shape[1] is 1 when rank is 1 */
    int64_t offset;   /* first element in the flat order */
    int64_t count;
    double init_std;  /* 0: the constant below */
    float init_const; /* 1 for norm weights, 0 for biases */
};

struct param_table {
    int32_t count;
    int64_t total;             /* elements */
    const struct param *items; /* in flat order */
};

/*
 * ST_INVALID names the field: a size of zero or over limits.h, d_model no multiple of n_heads, an
 * odd head size.
 */
enum status model_spec_check(const struct model_spec *m, struct err *e) MUST_CHECK;

/* Parameters without a table: V d + [T d] + L (12 d^2 + 2 d [+ 11 d]) + d [+ d]. */
int64_t model_param_count(const struct model_spec *m);

/* The table lives in the arena. The spec must have passed model_spec_check(). */
struct param_table params_table(struct arena *a, const struct model_spec *m);

/* NULL when the table has no such tensor. */
const struct param *params_find(const struct param_table *t, const char *name);

/* The tensor that holds this element of the flat order. */
const struct param *params_at(const struct param_table *t, int64_t element);

/* out[0..count) = first values of elements [start, start + count) of the flat order. */
void params_init(const struct param_table *t, uint64_t seed, int64_t start, int64_t count,
                 float *out);

/* "learned" or "alibi"; ST_INVALID otherwise. */
enum status position_parse(enum position *out, const char *name, struct err *e) MUST_CHECK;
const char *position_name(enum position p);

#endif
