/*
 * trainer_int.h - what trainer.c (steps, evaluation), trainer_ranks.c (several devices) and
 * trainer_state.c (the state file) share.
 */
#ifndef CLIENT_TRAINER_INT_H
#define CLIENT_TRAINER_INT_H

#include "client/model.h"
#include "client/trainer.h"

/* Floats that go through the host at once: 4 MiB, so that a file is read
 * and written in few calls. */
enum { STAGE_COUNT = 1 << 20 };

/* Elements that ranks are averaged over at once. */
enum { RANKS_PIECE = 1 << 18 };

/* Places of a backend's queues that somebody waits for (kernels/backend.h). */
enum { MARK_CODE_IN = 0, MARK_CODE_DONE = 2, MARK_CODE_OUT = 4 };

/* Elements [at, at + count) of the arrays that an optimizer walks. */
struct stretch {
    int64_t at;
    int64_t count;
};

/* A model on one device. */
struct rank {
    struct backend *be;
    const struct backend_ops *ops;
    struct model *model;
    int64_t t;     /* steps the moments have seen */
    int32_t batch; /* sequences it takes of a step */

    /* backend memory, owned */
    void *m;
    void *v;
    double *partials; /* sums of squares by chunk of the gradient */
    struct clip_state *clip;
    int32_t *tokens;  /* (batch, seq_len) */
    int32_t *targets; /* (batch, seq_len) */
    float *losses;    /* (batch, seq_len) */

    /* host memory, owned */
    int32_t *split_tokens;
    int32_t *split_targets;
    float *host_losses;
    struct clip_state seen; /* clip, of the last step */
};

struct trainer {
    struct trainer_config config;
    enum dtype dtype;
    struct rank ranks[BACKEND_RANKS_MAX];
    int count;
    bool apart; /* the ranks' weights differ: they are to be averaged before anybody sees them */

    /* What a step moves, and what it leaves alone; host memory, owned. */
    struct stretch *moved, *frozen;
    int32_t moved_count, frozen_count;

    /* host memory, owned */
    int32_t *rows; /* (rows of a step, seq_len + 1) as they come */
    float *stage;  /* STAGE_COUNT */
    double *sums;  /* RANKS_PIECE, where ranks train apart */
};

/* The rank that speaks for all. */
static inline struct rank *lead(struct trainer *t)
{
    return &t->ranks[0];
}

/*
 * Run fn for every rank, each on a thread of its own that is bound to the rank's device; a rank
 * alone runs on the caller's. The first failure in rank order is returned.
 */
typedef enum status rank_fn(struct trainer *t, int rank, void *ctx, struct err *e);
enum status ranks_run(struct trainer *t, rank_fn *fn, void *ctx, struct err *e) MUST_CHECK;

/* Open a backend for each device of the config and let them meet. */
enum status ranks_open(struct trainer *t, struct err *e) MUST_CHECK;

/* Which of a rank's arrays. */
void *rank_array(const struct rank *r, enum layout_part part);

/* From the host into the array of every rank. */
void ranks_put(struct trainer *t, enum layout_part part, int64_t start, int64_t count,
               const float *in);

/* The mean over the ranks, summed in their order and in double; count at most RANKS_PIECE. */
enum status ranks_mean(struct trainer *t, enum layout_part part, int64_t start, int64_t count,
                       float *out, struct err *e) MUST_CHECK;

/* Where the weights are apart, put their mean in place of each. */
enum status ranks_average(struct trainer *t, struct err *e) MUST_CHECK;

enum status ranks_sync(struct trainer *t, struct err *e) MUST_CHECK;

#endif
