/*
 * trainer_int.h - what trainer.c (steps, evaluation) and trainer_state.c (the state file) share.
 */
#ifndef CLIENT_TRAINER_INT_H
#define CLIENT_TRAINER_INT_H

#include "client/model.h"
#include "client/trainer.h"

/* Floats that go through the host at once: 4 MiB, so that a file is read
 * and written in few calls. */
enum { STAGE_COUNT = 1 << 20 };

/* Elements [at, at + count) of the arrays that an optimizer walks. */
struct stretch {
    int64_t at;
    int64_t count;
};

struct trainer {
    struct trainer_config config;
    struct backend *be;
    const struct backend_ops *ops;
    struct model *model;
    enum dtype dtype;

    int64_t t; /* steps the moments have seen */

    /* What a step moves, and what it leaves alone; host memory, owned. */
    struct stretch *moved, *frozen;
    int32_t moved_count, frozen_count;

    /* backend memory, owned */
    void *m;
    void *v;
    double *partials; /* sums of squares by chunk of the gradient */
    struct clip_state *clip;
    int32_t *tokens;  /* (batch, seq_len) */
    int32_t *targets; /* (batch, seq_len) */
    float *losses;    /* (batch, seq_len) */

    /* host memory, owned */
    int32_t *rows; /* (batch, seq_len + 1) as they come */
    int32_t *split_tokens;
    int32_t *split_targets;
    float *host_losses;
    float *stage; /* STAGE_COUNT */
};

#endif
