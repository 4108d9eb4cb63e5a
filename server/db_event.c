#include "server/db_event.h"

#include <math.h>

enum status db_event(struct db *db, struct arena *a, const struct event *v, struct err *e)
{
    static const char sql[] = "INSERT INTO event (kind, run_id, round, silo_id, message, detail)"
                              " VALUES ($1, $2, $3, $4, $5, coalesce($6::jsonb, '{}'))";
    const char *argv[] = {v->kind,    v->run_id,  v->round < 0 ? NULL : db_arg_int(a, v->round),
                          v->silo_id, v->message, v->detail};
    return db_exec(db, sql, 6, argv, NULL, e);
}

enum status db_metric(struct db *db, struct arena *a, const char *run_id, const char *silo_id,
                      int32_t round, int64_t step, const char *name, double value, struct err *e)
{
    static const char sql[] = "INSERT INTO metric (run_id, silo_id, round, step, name, value)"
                              " VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING";
    if (!isfinite(value)) {
        return ST_OK;
    }
    const char *argv[] = {
        run_id, silo_id, db_arg_int(a, round), db_arg_int(a, step), name, db_arg_double(a, value)};
    return db_exec(db, sql, 6, argv, NULL, e);
}
