/*
 * db_task.h - tasks as silos see them: claimed, kept alive, reported on, given back.
 *
 * Each function is one transaction, repeated when PostgreSQL asks for it, and harmless to repeat:
 * asking again after a lost reply gives the same answer, or the same task under a new epoch. Only
 * the database's clock decides. Locks are taken in the order run, round, task (its leases under its
 * lock), upload, update, blob, silo.
 *
 * A refusal is a decision and not a failure: ST_OK with refusal.code set.
 */
#ifndef SERVER_DB_TASK_H
#define SERVER_DB_TASK_H

#include <stdbool.h>
#include <stdint.h>

#include "common/arena.h"
#include "common/hash.h"
#include "common/id.h"
#include "common/status.h"
#include "server/db.h"
#include "server/db_seat.h"

enum { LEASE_S = ROUND_LEASE_S, HEARTBEAT_S = SEAT_BEAT_S };

/* Why not: an HTTP status and a code of docs/API.md. code NULL: no refusal. */
struct refusal {
    int status;
    const char *code;
    char detail[200];
    int64_t offset; /* INCOMPLETE, OFFSET_MISMATCH; else -1 */
};

void refuse(struct refusal *r, int status, const char *code, const char *fmt, ...)
    PRINTF_LIKE(4, 5);

struct task {
    char id[ID_LEN + 1];
    bool evaluate;
    char run_id[ID_LEN + 1];
    char run_name[64];
    int32_t number; /* the round, or the checkpoint to evaluate */
    int32_t rounds;
    int32_t slot;
    int64_t epoch;
    int32_t base;
    struct digest base_sha256;
    int64_t base_bytes;
    int32_t steps;         /* local ones, of this silo in this round */
    int64_t steps_before;  /* global steps before the run's checkpoint 0 */
    const char *spec_text; /* in the caller's arena */
};

/*
 * One task for this silo, if there is any: what it holds already (its reply was lost, or the agent
 * was started anew), else an evaluation or a seat of its own, else a seat that lost its silo.
 */
enum status db_task_claim(struct db *db, struct arena *a, const char *silo_id, const char *agent,
                          struct task *out, bool *found, struct err *e) MUST_CHECK;

/*
 * There was nothing to take: the checkpoint that the silo's next task, if it gets one soon, starts
 * from, and from now on it may read that file and the steps to it. sha256 in hex; found false: no
 * run is about to need this silo.
 */
struct next_base {
    bool found;
    char run_id[ID_LEN + 1];
    int32_t number;
    char sha256[DIGEST_HEX + 1];
    int64_t bytes;
};
enum status db_task_next_base(struct db *db, struct arena *a, const char *silo_id,
                              struct next_base *out, struct err *e) MUST_CHECK;

struct heartbeat {
    int64_t epoch;
    int64_t step;
    const char *phase;   /* NULL: unchanged */
    double tokens_per_s; /* NAN: unchanged */
};

/* *drain: finish this task, then rest. Refusals: STALE_LEASE,
 * ROUND_CLOSED, RUN_STOPPED, NOT_FOUND. */
enum status db_task_heartbeat(struct db *db, const char *task_id, const char *silo_id,
                              const struct heartbeat *hb, bool *drain, struct refusal *no,
                              struct err *e) MUST_CHECK;

struct metric_point {
    int64_t step;
    const char *name;
    double value; /* finite */
};

/* All points or none; *stored counts those that were new. */
enum status db_task_metrics(struct db *db, const char *task_id, const char *silo_id, int64_t epoch,
                            const struct metric_point *points, int count, int64_t *stored,
                            struct refusal *no, struct err *e) MUST_CHECK;

struct eval_result {
    double nll;
    int64_t tokens;
    int64_t bytes;
    double seconds;
    double download_s;
};

/* *run_id (ID_LEN + 1) is set when it counted, so that the coordinator can be woken. Refusals:
 * those of db_task_lock(), NOT_AN_EVALUATION, TOO_MANY_TOKENS. */
enum status db_task_result(struct db *db, const char *task_id, const char *silo_id, int64_t epoch,
                           const struct eval_result *r, char *run_id, struct refusal *no,
                           struct err *e) MUST_CHECK;

/* code is one of docs/API.md's, or "bad_update" when the server refused the file. */
enum status db_task_release(struct db *db, const char *task_id, const char *silo_id, int64_t epoch,
                            const char *code, const char *detail, struct refusal *no,
                            struct err *e) MUST_CHECK;

/* The same within a transaction whose task is locked and whose lease was found current. */
enum status db_task_fail(struct db *db, struct arena *a, const char *task_id, const char *silo_id,
                         const char *code, const char *detail, struct err *e) MUST_CHECK;

/*
 * Lock a task's round for share, then the task, and say whether the silo still holds it under that
 * epoch. For transactions that change what hangs on it. done is set when it is done already.
 */
struct task_lock {
    char run_id[ID_LEN + 1];
    int64_t round_id; /* 0: an evaluation */
    int32_t number;
    int32_t slot;
    int64_t plan_tokens;
    int32_t steps;
    bool evaluate;
    bool done;
    struct silo_ids ids; /* the seat's silo among them */
    struct seat seat;
    enum hold hold;
};
enum status db_task_lock(struct db *db, struct arena *a, const char *task_id, const char *silo_id,
                         int64_t epoch, struct task_lock *out, struct refusal *no,
                         struct err *e) MUST_CHECK;

#endif
