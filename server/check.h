/*
 * check.h - is everything as it must be? `photon-server check`.
 *
 * Asks the view invariant_broken (I2 to I8, I10, I11), looks for what silos were told counts (I1),
 * verifies each run's chain of events, reads every file that a row refers to against its digest
 * (I8), and looks for files that no row knows (I9). Only reads and locks nothing (with repair,
 * see mend.h); may run beside servers at work: a file that looks wrong is looked at again before it
 * is said.
 *
 * On stdout one line for each violation, then one for each rule, then a last line; how far it is,
 * on stderr.
 */
#ifndef SERVER_CHECK_H
#define SERVER_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "common/status.h"
#include "server/blob.h"
#include "server/db.h"

struct check_job {
    struct db *db;
    struct blob_store *blobs;
    const char *acks;     /* lines "upload or task, digest"; NULL: I1 is not asked */
    bool repair;          /* make checkpoints' files again that are lost or damaged */
    int threads;          /* of a repair */
    int64_t orphan_age_s; /* files that no row knows are a violation from this age on */
};

/* *broken counts what is wrong. ST_NOT_FOUND, ST_INVALID: of the file of acknowledgements. */
enum status check_all(const struct check_job *job, int *broken, struct err *e) MUST_CHECK;

#endif
