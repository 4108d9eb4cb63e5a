/*
 * db_tend.h - what a server does for all runs alike, about once a second: its own sign of life,
 * silos that fell silent, leases that ran out, files nobody needs.
 *
 * Every function is harmless to call at any time from any number of servers.
 */
#ifndef SERVER_DB_TEND_H
#define SERVER_DB_TEND_H

#include <stdbool.h>

#include "server/blob.h"
#include "server/db.h"

/*
 * First thing at start: when no server lived for half a lease, every open lease and deadline is
 * extended, so that nobody loses a seat for our fault. Then this server is entered as living.
 */
enum status db_tend_arrive(struct db *db, const char *boot_id, struct err *e) MUST_CHECK;
enum status db_tend_alive(struct db *db, const char *boot_id, struct err *e) MUST_CHECK;
enum status db_tend_leave(struct db *db, const char *boot_id, struct err *e) MUST_CHECK;

/*
 * Silos not heard of for three poll times are gone, said once. A lease of a silo that is gone goes
 * back to the others one lease time after it ran out; everybody else may still renew his.
 */
enum status db_tend_silos(struct db *db, const char *boot_id, struct err *e) MUST_CHECK;

/*
 * Let go of what is past its keeping (checkpoints by the run's keep_checkpoints, updates three
 * rounds after theirs, idle uploads, old keys), then remove files that no row refers to any more.
 */
enum status db_tend_files(struct db *db, struct blob_store *blobs, struct err *e) MUST_CHECK;

/*
 * Link events to the chain of their run, whatever became of it: for each run the oldest that are
 * not linked yet, some at a time. *more: so many that a run may have others.
 */
enum status db_tend_chain(struct db *db, bool *more, struct err *e) MUST_CHECK;

/* Forget rows of the audit table older than days, some thousands at a time. 0: none is too old. */
enum status db_tend_audit(struct db *db, int days, struct err *e) MUST_CHECK;

#endif
