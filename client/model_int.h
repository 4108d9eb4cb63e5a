/*
 * model_int.h - what model.c (memory, weights) and model_pass.c (forward, backward) share.
 */
#ifndef CLIENT_MODEL_INT_H
#define CLIENT_MODEL_INT_H

#include "client/model.h"

/* One parameter: what ops compute with, and its gradient. Both NULL where the spec has none. */
struct weight {
    const void *w;
    void *dw;
};

struct norm {
    struct weight g, b;
};

/* y = x w^T + b, w (N, K) */
struct linear {
    struct weight w, b;
    int64_t N, K;
};

struct block {
    struct norm norm_1, norm_2;
    struct linear qkv, out, up, down;
};

struct model {
    struct backend *be;
    const struct backend_ops *ops;
    struct model_spec spec;
    enum dtype at; /* A */
    enum dtype gt; /* G */
    struct memory_plan plan;

    struct arena *arena; /* owns the tables */
    struct param_table params;
    int64_t *offsets; /* of each parameter in the arrays below, in elements */
    struct block *blocks;
    struct weight wte, wpe;
    struct norm norm_f;

    /* backend memory, owned */
    void *weights;
    void *rest;
    void *grads;
    char *activations;
    float *slopes;

    int32_t rank; /* which part of plan.shards is kept here */
    model_watch_fn *watch;
    void *watch_ctx;

    double stage[1 << 17]; /* a piece of an array on its way to and from another form */
};

/* Every shape of product that passes over B sequences need, made ready once. */
enum status model_plan_products(struct model *m, int32_t B, struct err *e) MUST_CHECK;

#endif
