/*
 * fold.h - what the coordinator's folder does: sealed rounds and new runs become checkpoints.
 *
 * Work is found in the database, done on files, and published in one transaction that says whether
 * it still counts (server/db_publish.h); whoever dies in between has only lost time. What fails is
 * told apart here:
 *
 *     a damaged update        is asked for again, or left out where a quorum remains
 *     a damaged base or state is made again (server/mend.h), else the run pauses with advice
 *     a spec that cannot be   ends the run as failed
 *     a full disk, an error   is set aside for a while, so that other runs' work goes on
 *     a lost connection       is the caller's: ST_RETRY
 */
#ifndef SERVER_FOLD_H
#define SERVER_FOLD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/id.h"
#include "common/status.h"
#include "server/blob.h"
#include "server/checkpoint.h"
#include "server/db.h"
#include "server/db_publish.h"

enum { ASIDE_MAX = 64 }; /* remembered at once */

/* Rounds that could not be aggregated and runs that could not be started, until their time comes
 * again. Zeros: none. One thread's. */
struct aside {
    struct {
        char id[ID_LEN + 1];
        int64_t until_ms;
    } items[ASIDE_MAX];
    int count;
};

/* All borrowed. db has its name as a worker's (db_work_named()). */
struct folder {
    struct db *db;
    struct blob_store *blobs;
    int threads; /* for one aggregation */
    struct aside *aside;
    const atomic_bool *stopping; /* looked at between two pieces of work */
};

/* What decides the bits of a checkpoint, for who makes it and who makes it again. Borrows f. */
struct checkpoint_job fold_job(const struct fold *f, struct blob_store *blobs, int threads);

/* All that there is to do now. ST_RETRY: the connection is lost, or somebody else was faster. */
enum status fold_work(const struct folder *c, struct err *e) MUST_CHECK;

#endif
