/*
 * db_predict.h - what a round should have taken, from what its silos did before.
 *
 * A silo's rates (tokens trained, bytes fetched and sent a second) are medians over its newest ten
 * counted tasks of the run, those of a silo without any the medians over all. The round's
 * prediction is common/planner.h's for these, with the updates that counted, and never looks at the
 * round itself: it stands beside what was measured.
 */
#ifndef SERVER_DB_PREDICT_H
#define SERVER_DB_PREDICT_H

#include <stdint.h>

#include "common/run_spec.h"
#include "server/db.h"

/* Notes it in the round's row, in the caller's transaction. Nothing for a run's first round. */
enum status db_predict_round(struct db *db, struct arena *a, int64_t round_id, const char *run_id,
                             int32_t number, struct err *e) MUST_CHECK;

#endif
