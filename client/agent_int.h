/*
 * agent_int.h - what the agent's own files share: agent.c (loop), agent_base.c, agent_step.c,
 * agent_train.c, agent_eval.c, agent_ahead.c, agent_encode.c, agent_upload.c, agent_sweep.c.
 */
#ifndef CLIENT_AGENT_INT_H
#define CLIENT_AGENT_INT_H

#include <stdbool.h>
#include <stdint.h>

#include "client/agent.h"
#include "client/beat.h"
#include "client/data.h"
#include "client/own.h"
#include "client/progress.h"
#include "client/state.h"
#include "client/task.h"
#include "client/trainer.h"
#include "client/transport.h"
#include "common/arena.h"
#include "common/status.h"

/* How the work on one task ended. */
enum task_end {
    TASK_DONE = 0, /* accepted, or counted */
    TASK_LATE,     /* whole, but not counted */
    TASK_REFUSED,  /* the server found the update bad */
    TASK_DROPPED,  /* cancelled, or the lease was lost */
    TASK_LEAVING,  /* a signal came */
    TASK_FAILED    /* release code and detail say why */
};

struct taken_step {
    struct step_report report;
    double seconds;
};

/* Steps of a round that were taken before it began (agent_ahead.c). */
struct ahead {
    bool there;
    bool parked; /* what they gave is in a file, else in the trainer */
    char run[32];
    int64_t round, global_step, ordinal; /* of the round they belong to */
    struct taken_step *taken;            /* owned */
    int32_t count;
};

/* What stays as it was opened, so that every thread may look. */
struct silo_folder {
    const char *state_dir;
    char silo[32];
};

struct agent {
    const struct agent_config *config;
    struct silo_folder folder;
    struct silo_identity id;
    char boot[33]; /* names this process to the server */
    struct data *data;
    struct data_info info;
    struct transport *control;
    struct transport *bulk;
    char bulk_url[256];
    struct beat *fetching; /* of the task whose base is on its way; what it is told ends that */
    double poll_s;
    struct progress progress;

    /* Kept over the rounds of one run, as long as it has the same spec. */
    struct trainer *trainer;
    char trainer_run[32];
    char trainer_spec[65];
    char backend[16];    /* what the device's words opened at the start; "auto" stays with it */
    int device_failures; /* in a row; a step or an evaluation that went well ends them */
    uint64_t row_seed;
    int32_t row_ordinal;
    char device[96];
    double tokens_per_s; /* of the last training; NAN before */

    struct ahead ahead;
    struct {
        bool there;
        struct task task;
        struct beat *beat; /* owned; its sign of life */
    } held;                /* a task that was claimed while another one's steps went on */

    struct {
        char from[65], to[65]; /* checkpoints; "": there is none */
        int64_t bytes;
        int count;
    } chain; /* of the steps that were fetched ahead; a task takes them */

    char verified[65];       /* digest of the checkpoint that was checked last */
    double fetched_s;        // what fetching that checkpoint took; 0 when it was on disk already
    int64_t fetched_bytes;   // and how many bytes came for it
    double link_bytes_per_s; /* of the last pieces sent; 0 before */
    bool greeted;            /* hello was answered, once at least */
    bool hello_due;          /* what hello said has changed */
    int64_t sweep_ms;        /* when ended runs are asked for again, clock_mono_ms() */
    const char *fail_code;   /* of TASK_FAILED: a literal of the release request */
    char fail_detail[240];

    /* for `photon-client status` */
    int64_t sent_bytes, received_bytes, updates, evaluations;
    char doing[32];
    char last_error[240];
};

/* Is this the time to stop? Also the transports' cancel callback. */
bool agent_stopping(void);
void agent_say(struct agent *a, const char *fmt, ...) PRINTF_LIKE(2, 3);
void agent_doing(struct agent *a, const struct task *t, const char *doing, int64_t step);

/* Sets fail_code and fail_detail; returns TASK_FAILED. */
enum task_end agent_fail(struct agent *a, const char *code, const struct err *e);

/* The token that the folder has now, for transports (client/transport.h); ctx is its
 * struct silo_folder. */
bool agent_fresh_token(void *ctx, char *out, size_t size);

/* The way to a->bulk_url, anew. Transfers end when we leave, or what a->fetching hears ends them.
 */
enum status agent_bulk(struct agent *a, struct err *e) MUST_CHECK;

/* The base checkpoint, an open file that is the caller's to close. */
enum status agent_base(struct agent *a, const struct task *t, struct beat *b, struct arena *arena,
                       struct own_base *out, double *seconds, struct err *e) MUST_CHECK;

void agent_cache_path(const struct agent *a, const char *sha256, char out[STATE_PATH_MAX]);
/* Keeps this checkpoint, or what has come of it, whatever a clock that was set back says of it, and
 * so many others, the most recently used. The rest can be fetched again. */
void agent_cache_trim(const struct agent *a, const char *sha256, int others);

/*
 * A file of the server's, until it is whole. retries: how often to come back where the server asks
 * for that, -1: without end. ST_CONFLICT: the task is lost; ST_CORRUPT: other bytes came, thrice;
 * ST_LIMIT: the disk is full.
 */
enum status agent_fetch(struct agent *a, struct download *d, int retries, struct err *e) MUST_CHECK;
/* Has whoever fetches been told to leave it? */
bool agent_fetch_over(const struct agent *a);

/*
 * The task's base into path by steps from a checkpoint that is here. *made false: there is no way
 * that is fewer bytes, or it failed, and the base must be fetched whole. ST_CONFLICT: the task is
 * lost.
 */
enum status agent_step(struct agent *a, const struct task *t, const char *path, struct arena *arena,
                       bool *made, struct err *e) MUST_CHECK;
/* Where a step waits, by its SHA-256. */
void agent_step_path(const struct agent *a, const char *name, char out[STATE_PATH_MAX]);
/* Removes the steps that wait, all but this one; NULL: all. */
void agent_clear_steps(struct agent *a, const char *but);

/* Fetches a file, or the step to it, that a task will probably want; what fails is tried again
 * then. Both as the headers say (client/reply.h). */
void agent_prefetch(struct agent *a, const char *base, const char *step, struct arena *arena);

/* Removes what is kept for runs that are over, now and then; no task is at work. */
void agent_sweep(struct agent *a);

enum claim_result { CLAIM_NONE = 0, CLAIM_GOT, CLAIM_FAILED };

/* One long poll; a task becomes the held one, and its checkpoint is fetched. */
enum claim_result agent_claim_held(struct agent *a);

/* The trainer is wanted by somebody else: what the steps ahead gave goes into a file. */
void agent_ahead_park(struct agent *a);
void agent_ahead_drop(struct agent *a);
/* What they gave is in the trainer, and they are this task's first; else there is nothing. */
bool agent_ahead_take(struct agent *a, const struct task *t);

/* agent_upload(), and the next round's first steps meanwhile where the run has it so. */
enum task_end agent_send(struct agent *a, const struct task *t, struct run_state *rs,
                         struct beat *b, struct arena *arena);

enum task_end agent_train(struct agent *a, const struct task *t, struct beat *b,
                          struct arena *arena);
/* The task's checkpoint did not come: because we leave, because the task is not ours any more (then
 * there is nothing to give back), or for a reason the server should know. */
enum task_end agent_without_base(struct agent *a, struct beat *b, const struct err *e);

/* The code of a release for what kept a round, or an evaluation, from starting. */
const char *agent_start_code(enum status st);

/* What this silo kept of its own in that run; its path is in `path`. */
struct own agent_own(const struct run_state *rs, char path[STATE_PATH_MAX]);

enum task_end agent_evaluate(struct agent *a, const struct task *t, struct beat *b,
                             struct arena *arena);

/* Opens the trainer for this task's run unless it is open. */
enum task_end agent_trainer(struct agent *a, const struct task *t);
/* What an operation of the trainer came to. A device that failed is opened anew with the next task:
 * what it holds may be damaged. */
void agent_note_device(struct agent *a, enum status st);

/* So many times in a row that only a new process, or a person, can help. */
bool agent_lost_device(const struct agent *a);

/* Writes the update of the weights in the trainer; sets bytes, sha256 of rs->j. */
enum status agent_encode(struct agent *a, const struct task *t, struct run_state *rs,
                         const struct own_base *base, struct err *e) MUST_CHECK;

/* Sends rs's update until a decision. */
enum task_end agent_upload(struct agent *a, const struct task *t, struct run_state *rs,
                           struct beat *b, struct arena *arena);

/* A round whose outcome a dead process never learnt: ask, and settle. An error: the answer decides
 * nothing (a revoked token, a proxy's word), and nothing is settled. */
enum status agent_resolve(struct agent *a, struct run_state *rs, struct arena *arena,
                          struct err *e) MUST_CHECK;

#endif
