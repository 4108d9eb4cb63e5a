/*
 * db_round.h - a run's rounds in PostgreSQL: opened, sealed, aborted, evaluated, ended.
 *
 * Each function is one transaction that looks again under its locks (run, then round) at what its
 * caller saw, asks the rules (round.h, sampling.h, deadline.h) and writes their verdict. What is
 * already as it should be is left alone, so any process may call any of them at any time, twice or
 * at once with another. A run that somebody else works on is skipped: ST_OK, nothing done.
 */
#ifndef SERVER_DB_ROUND_H
#define SERVER_DB_ROUND_H

#include <stdbool.h>

#include "common/status.h"
#include "server/db.h"
#include "server/deadline.h"

/* A pending round for the next number, when the run runs, has none and is not at its end. */
enum status db_round_prepare(struct db *db, const char *run_id, struct err *e) MUST_CHECK;

/* Draw the seats of the pending round, or say in run.waiting_for what it waits for. */
enum status db_round_open(struct db *db, const char *run_id, struct err *e) MUST_CHECK;

/* Seal or abort the open round, when it is time. */
enum status db_round_judge(struct db *db, const char *run_id, struct err *e) MUST_CHECK;

/* Abort what is live of a run that was stopped or failed. */
enum status db_round_end(struct db *db, const char *run_id, struct err *e) MUST_CHECK;

/* Give up evaluations that nobody will do, add up those that are complete. */
enum status db_round_evaluated(struct db *db, const char *run_id, struct err *e) MUST_CHECK;

/* All rounds closed and the last checkpoint evaluated: the run is finished. */
enum status db_round_finish(struct db *db, const char *run_id, struct err *e) MUST_CHECK;

/*
 * Within the caller's transaction that holds the round's lock: abort it for that reason, and open
 * the next attempt or, after ROUND_ATTEMPTS in a row, pause the run.
 */
enum status db_round_abort(struct db *db, struct arena *a, const char *run_id, int64_t round_id,
                           const char *reason, struct err *e) MUST_CHECK;

/* db_round_prepare() within the caller's transaction that holds the run's lock. */
enum status db_round_prepare_in(struct db *db, const char *run_id, struct err *e) MUST_CHECK;

/*
 * Within the caller's transaction: evaluation tasks of checkpoint number for the run's live silos.
 */
enum status db_round_ask_evaluation(struct db *db, struct arena *a, const char *run_id,
                                    int32_t number, struct err *e) MUST_CHECK;

/* How long a step takes, as the accepted tasks of the rounds before say. */
enum status db_round_estimate(struct db *db, struct arena *a, const char *run_id, int32_t number,
                              struct deadline_estimate *out, struct err *e) MUST_CHECK;

#endif
