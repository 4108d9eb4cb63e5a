/*
 * check.h - is everything as it must be? `photon-server check`.
 *
 * Asks the view invariant_broken, verifies each run's chain of events, and reads every file that a
 * row refers to against its digest. Only reads; may run beside servers at work.
 */
#ifndef SERVER_CHECK_H
#define SERVER_CHECK_H

#include "common/status.h"
#include "server/blob.h"
#include "server/db.h"

/* *broken counts what is wrong; each is printed on stdout, one line, and so is a last line. */
enum status check_all(struct db *db, struct blob_store *blobs, int *broken,
                      struct err *e) MUST_CHECK;

#endif
