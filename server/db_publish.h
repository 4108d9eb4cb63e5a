/*
 * db_publish.h - checkpoints enter PostgreSQL: read what to aggregate, publish the result, or say
 * that an input was damaged.
 *
 * The fence: db_fold_begin() raises the round's agg_epoch, and only the holder of the newest epoch
 * may publish. A holder that was stopped for an hour wakes up, finds its epoch old, and does no
 * harm; since the same inputs give the same bytes, nothing is lost by it either.
 */
#ifndef SERVER_DB_PUBLISH_H
#define SERVER_DB_PUBLISH_H

#include <stdbool.h>

#include "common/id.h"
#include "server/blob.h"
#include "server/checkpoint.h"
#include "server/db.h"
#include "server/db_run.h"

/* What one aggregation reads. All in the caller's arena. */
struct fold {
    bool found; /* false: nothing to do */
    char run_id[32];
    int64_t round_id;
    int64_t epoch;
    int32_t number;
    struct run_spec spec;
    int64_t steps_before;
    int32_t outer_before;
    const char *parent; /* as in run_row */
    int32_t parent_checkpoint;
    struct digest base;
    bool has_state;
    struct digest state;
    enum codec down; /* the rung of its step, where it has one */
    int update_count;
    struct checkpoint_update *updates; /* in slot order */
    const char **update_ids;
};

/* Says whose session this is, so that others can tell whether the holder of a lock still lives. */
enum status db_work_named(struct db *db, const char *boot_id, struct err *e) MUST_CHECK;

/*
 * A sealed round of a running or paused run: raise its epoch and read its inputs. With found the
 * caller ends with db_work_unlock(). Not the rounds in aside, an array as db_arg_array() makes it.
 */
enum status db_fold_begin(struct db *db, struct arena *a, const char *aside, struct fold *out,
                          struct err *e) MUST_CHECK;

/*
 * What a checkpoint was made of, and the files it was: for making them once more. With number 0
 * there are no inputs, the spec alone decides. found false: no such checkpoint.
 */
enum status db_fold_again(struct db *db, struct arena *a, const char *run_id, int32_t number,
                          struct fold *out, struct checkpoint_files *files,
                          struct err *e) MUST_CHECK;

/* The checkpoints, of whatever run, that have this file: at most count; ids as "run number". */
struct checkpoint_name {
    char run_id[32];
    int32_t number;
};
enum status db_fold_of_file(struct db *db, const struct digest *d, struct checkpoint_name *out,
                            int *count, struct err *e) MUST_CHECK;

/* Their files are as they were once, live, and an event says so. */
enum status db_fold_rebuilt(struct db *db, struct blob_store *blobs, const struct fold *f,
                            const struct checkpoint_files *files, struct err *e) MUST_CHECK;

/* A run whose head cannot be rebuilt waits for a person. Harmless to repeat. */
enum status db_fold_head_lost(struct db *db, const struct digest *d, const char *why,
                              struct err *e) MUST_CHECK;

/*
 * One transaction: checkpoint, head, round closed, metrics, evaluation tasks, the next round.
 * *published false: fenced, or published by somebody else; not an error.
 */
enum status db_fold_publish(struct db *db, struct blob_store *blobs, const struct fold *f,
                            const struct checkpoint_files *files,
                            const struct aggregate_stats *stats, bool *published,
                            struct err *e) MUST_CHECK;

/*
 * Update number i of the fold is damaged: it no longer counts and its file is removed. With a
 * quorum left the round gets a new manifest, else it is aborted and its sound
 * updates are carried over.
 */
enum status db_fold_corrupt(struct db *db, struct blob_store *blobs, const struct fold *f, int i,
                            const char *why, struct err *e) MUST_CHECK;

/* The round cannot be aggregated by any repetition: the run fails, or pauses for a person. */
enum status db_fold_give_up(struct db *db, const struct fold *f, bool fail, const char *why,
                            struct err *e) MUST_CHECK;

/* A run that waits for its checkpoint 0. */
struct created_run {
    bool found; /* false: there is none, or other processes start them */
    char run_id[ID_LEN + 1];
    struct run_spec spec;
    bool forked;
    struct checkpoint_source from;
};

/*
 * The oldest one, not those in aside (an array of ids as db_arg_array() makes it). With found the
 * caller ends with db_work_unlock().
 */
enum status db_run_next_created(struct db *db, struct arena *a, const char *aside,
                                struct created_run *out, struct err *e) MUST_CHECK;

/*
 * The lock of a run's next work, of the session: it saves two processes the same work, the epoch is
 * what makes it safe. *mine false: somebody else has it.
 */
enum status db_work_lock(struct db *db, struct arena *a, const char *run_id, bool *mine,
                         struct err *e) MUST_CHECK;

/* Others may take it up. */
void db_work_unlock(struct db *db, const char *run_id);

/* Checkpoint 0 and the run is running. A run that was stopped meanwhile is left alone. */
enum status db_run_start(struct db *db, struct blob_store *blobs, const char *run_id,
                         const struct checkpoint_files *files, struct err *e) MUST_CHECK;

/* It cannot be started: failed, with the reason. */
enum status db_run_fail(struct db *db, const char *run_id, const char *why,
                        struct err *e) MUST_CHECK;

#endif
