#include "server/db_run.h"

#include <string.h>

#include "common/json.h"

#define SQL_RUN                                                                                    \
    "SELECT state, coalesce(head, -1), spec_text, steps_before, outer_before, parent_run, "        \
    "coalesce(parent_checkpoint, -1) FROM run WHERE id = $1"

static enum status parse_spec(struct arena *a, struct run_spec *out, const char *text,
                              struct err *e)
{
    const struct json *doc = NULL;
    struct spec_problem problems[SPEC_PROBLEMS_MAX];
    int count = 0;
    if (!text || json_parse(&doc, a, text, strlen(text), e) ||
        run_spec_parse(out, doc, problems, &count, e)) {
        return err_set(e, ST_CORRUPT, "the stored spec cannot be read: %s",
                       count > 0 ? problems[0].detail : "no JSON");
    }
    return ST_OK;
}

static enum status read_with(struct db *db, struct arena *a, const char *sql, const char *run_id,
                             struct run_row *out, struct err *e)
{
    struct db_rows rows;
    TRY(db_query(db, a, sql, 1, &run_id, &rows, e));
    struct run_row r = {.found = rows.count > 0, .id = run_id};
    if (r.found) {
        r.state = run_state_of(db_text(&rows, 0, 0));
        if (r.state == RUN_STATE_COUNT) {
            return err_set(e, ST_CORRUPT, "unknown run state '%s'", db_text(&rows, 0, 0));
        }
        TRY(db_int32(&rows, 0, 1, &r.head, e));
        TRY(parse_spec(a, &r.spec, db_text(&rows, 0, 2), e));
        TRY(db_int64(&rows, 0, 3, &r.steps_before, e));
        TRY(db_int32(&rows, 0, 4, &r.outer_before, e));
        r.parent = db_text(&rows, 0, 5);
        TRY(db_int32(&rows, 0, 6, &r.parent_checkpoint, e));
    }
    *out = r;
    return ST_OK;
}

enum status db_run_lock(struct db *db, struct arena *a, const char *run_id, struct run_row *out,
                        struct err *e)
{
    return read_with(db, a, SQL_RUN " FOR NO KEY UPDATE SKIP LOCKED", run_id, out, e);
}

enum status db_run_lock_wait(struct db *db, struct arena *a, const char *run_id,
                             struct run_row *out, struct err *e)
{
    return read_with(db, a, SQL_RUN " FOR NO KEY UPDATE", run_id, out, e);
}

enum status db_run_read(struct db *db, struct arena *a, const char *run_id, struct run_row *out,
                        struct err *e)
{
    return read_with(db, a, SQL_RUN, run_id, out, e);
}
