/*
 * db_run.h - a run's row under its lock: the first lock of every transaction about its rounds.
 */
#ifndef SERVER_DB_RUN_H
#define SERVER_DB_RUN_H

#include <stdbool.h>

#include "common/run_spec.h"
#include "common/status.h"
#include "server/db.h"
#include "server/round.h"

struct run_row {
    bool found; /* false: no such run, or somebody else has the lock */
    const char *id;
    enum run_state state;
    int32_t head;         /* -1: none yet */
    int64_t steps_before; /* a fork's global steps before its checkpoint 0 */
    int32_t outer_before;
    const char *parent; /* its run, and which checkpoint of it; NULL: no fork */
    int32_t parent_checkpoint;
    struct run_spec spec;
};

/*
 * FOR NO KEY UPDATE SKIP LOCKED: rows that refer to the run may still be inserted beside us, and
 * whoever works on the run already does what we would do. Valid within the transaction.
 */
enum status db_run_lock(struct db *db, struct arena *a, const char *run_id, struct run_row *out,
                        struct err *e) MUST_CHECK;

/* The same, but waits for the lock: for a result that must not be dropped. */
enum status db_run_lock_wait(struct db *db, struct arena *a, const char *run_id,
                             struct run_row *out, struct err *e) MUST_CHECK;

/* Without a lock: for what no run changes, and for hints that are asked again under a lock. */
enum status db_run_read(struct db *db, struct arena *a, const char *run_id, struct run_row *out,
                        struct err *e) MUST_CHECK;

#endif
