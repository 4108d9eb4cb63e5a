/*
 * db_event.h - one line of the event log and one point of a curve, within the caller's transaction.
 */
#ifndef SERVER_DB_EVENT_H
#define SERVER_DB_EVENT_H

#include <stdint.h>

#include "common/status.h"
#include "server/db.h"

struct event {
    const char *kind;    /* a row of event_kind */
    const char *run_id;  /* or NULL */
    int32_t round;       /* below 0: none */
    const char *silo_id; /* or NULL */
    const char *message; /* a sentence for people */
    const char *detail;  /* a JSON object, or NULL for {} */
};

enum status db_event(struct db *db, struct arena *a, const struct event *v,
                     struct err *e) MUST_CHECK;

/* A value that is not finite is left out; one that is there already stays. silo_id may be NULL. */
enum status db_metric(struct db *db, struct arena *a, const char *run_id, const char *silo_id,
                      int32_t round, int64_t step, const char *name, double value,
                      struct err *e) MUST_CHECK;

#endif
