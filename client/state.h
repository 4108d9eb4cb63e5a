/*
 * state.h - what a silo keeps on disk: who it is, and how far each run's round has come.
 *
 *     STATE/lock            held while an agent runs: one agent per folder
 *     STATE/silo.json       server, name, token (mode 0600)
 *     STATE/status.json     what the agent does now, for `photon-client status`
 *     STATE/cache/          checkpoints by digest
 *     STATE/steps/          steps to the next one, until they are taken
 *     STATE/runs/<run>/     journal.json, moments.state, moments.next, snap-N.state/.json, update,
 *                           residual, one of each fragment
 *
 * Optimizer state belongs to the silo, never to a process, so a round is a small transaction over
 * files. journal.json is replaced by rename and says where it stands:
 *
 *     train    moments.state is the state before the round; snapshots belong to this round's key
 *     trained  moments.next and the update are whole and synced; the server has not decided yet
 *     settled  keep: moments.next is renamed to moments.state, or about to be; else it is dropped
 *
 * What the codec left out follows the same decision: residual.next becomes the residual of the
 * round's fragment (common/schedule.h) when the update counted; when it came late, residual.late
 * does, as the next round begins; when it was refused, both go.
 *
 * Whatever instant a process dies at, run_state_open() finishes or undoes the step it was in, and
 * moments.state is either before or after the round, as the journal says. The key (round, base
 * checkpoint, global step, steps, ordinal) is all that decides the bits of the result: the same key
 * again, from whichever task, goes on instead of training anew.
 */
#ifndef CLIENT_STATE_H
#define CLIENT_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/durable.h"
#include "common/pin.h"
#include "common/status.h"

/* ---- the silo ---- */

struct silo_identity {
    char url[256];
    char silo[32];
    char name[64];
    char token[256];
    char ca_file[STATE_PATH_MAX]; /* "" : the system's */
    char pin[PIN_TEXT_MAX + 2];   /* "" : none; what is too long stays so, and is refused */
};

/* ST_NOT_FOUND when this folder has not joined. */
enum status identity_read(const char *state_dir, struct silo_identity *out,
                          struct err *e) MUST_CHECK;
enum status identity_write(const char *state_dir, const struct silo_identity *id,
                           struct err *e) MUST_CHECK;

/* ST_CONFLICT: another agent holds the folder, or somebody has looked at it for a second. The lock
 * ends with the descriptor. */
enum status state_lock(const char *state_dir, int *fd, struct err *e) MUST_CHECK;

/* Does an agent hold the folder? For the instant of looking none can take it, so that one tries
 * again; others may look beside. */
bool state_in_use(const char *state_dir);

/* ---- a run's round ---- */

struct round_key {
    int64_t round;
    char base[65];
    int64_t global_step;
    int64_t local_steps;
    int64_t silo_ordinal;
    int64_t fragment; /* that the update holds, a function of the round and the spec */
};

enum journal_phase { JOURNAL_NONE = 0, JOURNAL_TRAIN, JOURNAL_TRAINED, JOURNAL_SETTLED };

struct journal {
    enum journal_phase phase;
    bool keep; /* settled: the server counted it, or it came late */
    bool late; /* settled: it came late, and its work is to ride in the next update */
    struct round_key key;
    /* from trained on */
    char sha256[65];
    int64_t bytes;
    int64_t tokens;
    double train_loss;
    double download_s, train_s, encode_s;
    char codec[8];
    double codec_error, residual_ratio, fallback_share; /* what the codec did to it */
    char upload[32];                                    /* id, once created; "" before */
    /* over rounds */
    char spec[65];          /* SHA-256 of the run's spec, which never changes; "": not known yet */
    bool personal;          /* moments.state has tensors that are this silo's alone */
    int64_t kept;           /* the round whose end moments.state is of; 0: there is none */
    int64_t guard_until;    /* up to this round updates go one rung up */
    bool carry;             /* the former round's LATE is about to become the residual */
    int64_t carry_fragment; /* of that fragment */
};

/* What became of an update. */
enum outcome { OUTCOME_REFUSED = 0, OUTCOME_COUNTED, OUTCOME_LATE };

struct run_state {
    char dir[STATE_PATH_MAX];
    struct journal j;
};

/* Opens, and finishes what a dead process left half done. run is an id checked by pattern. */
enum status run_state_open(struct run_state *s, const char *state_dir, const char *run,
                           struct err *e) MUST_CHECK;

/*
 * Keeps the silo to the spec that it first saw of this run (written with the next round's begin):
 * what is personal and what is frozen stands there, and no server may change its mind on that.
 * ST_INVALID: it is another one.
 */
enum status run_state_hold_spec(struct run_state *s, const char *sha256, struct err *e) MUST_CHECK;

bool round_key_equal(const struct round_key *a, const struct round_key *b);

/* A new round: drops the former one's snapshots and update. The former must not be `trained`. */
enum status run_state_begin(struct run_state *s, const struct round_key *key,
                            struct err *e) MUST_CHECK;

/* s->j is filled in and both files are placed: from here on training is never repeated. */
enum status run_state_trained(struct run_state *s, struct err *e) MUST_CHECK;

/* Note the upload's id, so that its outcome can be asked for after a crash. */
enum status run_state_upload(struct run_state *s, const char *upload, struct err *e) MUST_CHECK;

/*
 * The server decided: keep the new moments, or go back to the round's start. A late update may
 * still be asked for again under the same key, so its residuals wait for the next round's begin.
 */
enum status run_state_settle(struct run_state *s, enum outcome o, struct err *e) MUST_CHECK;

/* Paths; out has STATE_PATH_MAX bytes. */
void run_state_path(const struct run_state *s, const char *name, char *out);

#define STATE_MOMENTS      "moments.state"
#define STATE_MOMENTS_NEXT "moments.next"
#define STATE_UPDATE       "update.safetensors"
/* Of error feedback (client/feedback.h): what former updates left out, and what it becomes. */
#define STATE_RESIDUAL      "residual.safetensors" /* of the first fragment */
#define STATE_RESIDUAL_NEXT "residual.next"
#define STATE_RESIDUAL_LATE "residual.late"
void run_state_residual(const struct run_state *s, int64_t fragment, char *out);

/* What a snapshot carries beside the trainer's own state. */
struct snap {
    int64_t step; /* local steps done */
    int64_t tokens;
    double loss_sum;
    double train_s;
};

/* The trainer's state was written to tmp: make it the newest snapshot, drop the older ones. */
enum status run_state_snap(struct run_state *s, const struct snap *snap, const char *tmp,
                           struct err *e) MUST_CHECK;
/* The newest whole snapshot of this round and its file; false when there is none. */
bool run_state_snap_best(const struct run_state *s, struct snap *out, char *path);

#endif
