/*
 * series_read.h - the points of one curve, from the store onto the x axis asked for.
 *
 * What depends on a run's history (tokens, bytes and time up to a round) is read once per run; a
 * point inside a round lies between the round's two ends.
 */
#ifndef SERVER_SERIES_READ_H
#define SERVER_SERIES_READ_H

#include "common/arena.h"
#include "server/db.h"
#include "server/series.h"

enum series_x { X_ROUND = 0, X_STEP, X_TOKENS, X_TIME, X_ELAPSED, X_BYTES, X_COUNT };

struct series_metric {
    const char *name;
    bool dense;    /* a point per local step, sent by silos */
    bool exp;      /* stored as a loss, shown as exp of it */
    bool per_silo; /* has a value for each silo */
};

/* NULL: no such metric. A name that silos may send beside the known ones is dense. */
const struct series_metric *series_metric_find(const char *name);

/* -1: no such axis. */
int series_x_parse(const char *name);

struct series {
    const char *run_id, *run_name;
    const char *silo_id, *silo_name; /* NULL: the aggregate */
    struct series_point *points;     /* by x; losses where the metric is exp */
    int64_t count;
};

struct series_list {
    struct series *items;
    int count;
};

/*
 * Of one run: silo NULL gives the aggregate, "all" one series per silo, else those of the ids in
 * the comma-separated list. ST_NOT_FOUND: no such run. ST_LIMIT: more points than one answer takes.
 */
enum status series_read(struct series_list *out, struct arena *a, struct db *db, const char *run_id,
                        const struct series_metric *m, enum series_x x, const char *silo,
                        struct err *e) MUST_CHECK;

#endif
