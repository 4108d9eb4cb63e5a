/*
 * mend.h - a checkpoint's file that is lost or damaged is made again, bit for bit.
 *
 * A checkpoint is a function of its parent and the updates of its round, and checkpoint 0 of the
 * spec alone; so as long as those files are there (updates are kept for three rounds), nothing is
 * lost with its own. A parent that is damaged too is made again first. The result must have the
 * digest it once had, or nothing is changed; then it takes the damaged file's place in one step.
 *
 * A step (server/db_step.h) is mended with its checkpoint; one that cannot be is let go, and silos
 * take the whole weights instead.
 *
 * Who meets a missing file, or has cause to suspect one, says so with mend_want(); the keeper of
 * server/coordinator.h looks and mends. An aggregation mends its base itself.
 */
#ifndef SERVER_MEND_H
#define SERVER_MEND_H

#include <stdbool.h>
#include <stdint.h>

#include "server/blob.h"
#include "server/db.h"

struct mend {
    struct db *db;
    struct blob_store *blobs;
    int threads;
};

/*
 * The checkpoint's files are sound afterwards; *rebuilt counts the checkpoints that had to be made
 * again. ST_CORRUPT: it cannot be; e says what is missing. ST_NOT_FOUND: there is none. ST_LIMIT,
 * ST_IO, ST_RETRY: try again later.
 */
enum status mend_checkpoint(const struct mend *m, const char *run_id, int32_t number, int *rebuilt,
                            struct err *e) MUST_CHECK;

/* The same for a file, of whatever checkpoint. ST_NOT_FOUND: it is no checkpoint's. */
enum status mend_file(const struct mend *m, const struct digest *d, int *rebuilt,
                      struct err *e) MUST_CHECK;

/* What a person can do about a checkpoint that cannot be made again; why is mend_checkpoint()'s. */
enum { MEND_ADVICE = 400 };
void mend_advice(char out[MEND_ADVICE], int32_t number, const char *why);

/*
 * Looks at the file and mends it. What cannot be mended is logged, and runs whose head it is pause
 * with the advice as their reason.
 */
void mend_now(const struct mend *m, const struct digest *d);

/* ---- who wants a file looked at ---- */

void mend_want(const struct digest *d); /* remembered once; the oldest is forgotten when too many */
bool mend_wanted(struct digest *out);   /* taken off the list; false: it is empty */

/* blob_open() of a checkpoint's file: lost or damaged, it is wanted, and ST_RETRY says so. */
enum status mend_open(struct blob_store *s, const struct digest *d, int *fd, int64_t *bytes,
                      struct err *e) MUST_CHECK;
enum status mend_open_within(struct blob_store *s, const struct digest *d, int64_t patience_ms,
                             int *fd, int64_t *bytes, bool *coming, struct err *e) MUST_CHECK;

/*
 * A silo takes the file from its beginning: true when it did so within ten minutes already, so that
 * the first one may have been damaged. It is true for a file once in ten minutes, since to look at
 * one reads it whole.
 */
bool mend_taken_again(const char *silo_id, const struct digest *d, int64_t now_ms);

#endif
