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
enum {
    MARK_CODE_IN = 0,
    MARK_CODE_DONE = 2,
    MARK_CODE_OUT = 4,
    MARK_STEP_IN = 6,
    MARK_STEP_OUT = 8,
    MARK_GRADS = 10,   // what is to be summed is there
    MARK_SUMMED = 11,  // and summed
    MARK_STEPPED = 12, // weights to be handed out are there
    MARK_SHARED = 13,  // and handed out
};

/* Steps that are begun at most before the first of them is reported. */
enum { STEPS_BEGUN = 2 };

/* Elements [at, at + count) of the arrays that an optimizer walks. */
struct stretch {
    int64_t at;
    int64_t count;
};

/* A round of shards: what ranks sum and hand out at once, as soon as its last layer is done with.
 */
struct bucket {
    int64_t at;
    int64_t count;
    int64_t layer; /* as model_watch() tells them */
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
    float *losses;         /* (batch, seq_len) */
    char *in[STEPS_BEGUN]; /* what a step reads: trainer_step.c */

    /* pinned host memory, owned: what goes there, and what comes back */
    char *in_host[STEPS_BEGUN];
    char *out_host[STEPS_BEGUN];

    /* A step, kept to be done again in one call; where the backend can. */
    void *recording[STEPS_BEGUN];
    bool records;
    bool ran; /* every op has, once */
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

    /* Where ranks share the optimizer's state; host memory, owned. */
    struct bucket *buckets;
    int64_t bucket_count;

    /* Steps that are begun and not reported yet are [ended, begun). */
    int64_t begun, ended;
    int64_t step_of[STEPS_BEGUN]; /* which global step it is */
    double begun_s[STEPS_BEGUN];
    double ended_s;
    int64_t until; /* steps below it may be begun ahead */
    bool ahead;    /* where that is worth anything */

    /* host memory, owned */
    int32_t *rows; /* (rows of a step, seq_len + 1) as they come */
    float *stage;  /* STAGE_COUNT */
    double *sums;  /* RANKS_PIECE, where ranks train apart */
};

/* Does each rank train alone between averages? */
static inline bool trains_apart(const struct trainer *t)
{
    return t->count > 1 && t->config.sync_every > 0;
}

/* Does each rank keep a share of the optimizer's state? */
static inline bool shares_state(const struct trainer *t)
{
    return t->count > 1 && t->config.sync_every == 0 && !t->config.whole;
}

/* Rows of text that a step takes. */
static inline int32_t step_rows(const struct trainer *t)
{
    return t->count * t->ranks[0].batch;
}

/* ---- trainer_step.c ---- */

/* Memory of a rank's steps; what was taken before a failure is the rank's too. */
enum status step_memory(struct rank *r, int64_t seq_len, struct err *e) MUST_CHECK;
void step_release(struct rank *r);

/* Wait for steps that are begun and count them; nobody gets their reports. */
void trainer_settle(struct trainer *t);

/* Steps that the moments of a rank have seen. */
void rank_count(struct rank *r, int64_t steps);

/* Summed loss of n of the rank's windows, which rows holds. */
enum status eval_windows(struct trainer *t, int32_t micro, int64_t n, double *sum,
                         struct err *e) MUST_CHECK;

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

/* From the lead's array, or where it is shared from everyone's share. */
enum status ranks_get(struct trainer *t, enum layout_part part, int64_t start, int64_t count,
                      float *out, struct err *e) MUST_CHECK;

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
