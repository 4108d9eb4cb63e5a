#include "server/db_step.h"

#include <inttypes.h>

#include "common/codec_file.h"

static const char SQL_CHAIN[] =
    "SELECT c.number, p.weights, c.kept_step, c.step_bytes, c.step_codec, h.weights_bytes"
    "  FROM checkpoint h"
    "  JOIN checkpoint c ON c.run_id = h.run_id AND c.number <= h.number AND c.number > h.number - "
    "$3"
    "  JOIN checkpoint p ON (p.run_id, p.number) = (c.run_id, c.parent)"
    " WHERE (h.run_id, h.number) = ($1, $2) ORDER BY c.number DESC";

static enum status read_step(const struct db_rows *rows, int i, struct step_row *s, struct err *e)
{
    TRY(db_int32(rows, i, 0, &s->number, e));
    TRY(db_digest(rows, i, 1, &s->base, e));
    TRY(db_digest(rows, i, 2, &s->sha256, e));
    TRY(db_int64(rows, i, 3, &s->bytes, e));
    return codec_parse(&s->codec, db_text(rows, i, 4), e);
}

enum status db_step_chain(struct db *db, struct arena *a, const char *run_id, int32_t number,
                          const struct step_row **out, int *count, struct err *e)
{
    struct db_rows rows;
    const char *argv[] = {run_id, db_arg_int(a, number), db_arg_int(a, STEP_CHAIN_MAX)};
    TRY(db_query(db, a, SQL_CHAIN, 3, argv, &rows, e));
    struct step_row *list = arena_alloc(a, ((size_t)rows.count + 1) * sizeof(*list));
    int64_t whole = 0;
    int64_t sum = 0;
    int n = 0;
    for (int i = 0; i < rows.count && !db_is_null(&rows, i, 2); i++) {
        TRY(read_step(&rows, i, &list[n], e));
        TRY(db_int64(&rows, i, 5, &whole, e));
        sum += list[n].bytes;
        if (sum >= whole) {
            break;
        }
        n++;
    }
    *out = list;
    *count = n;
    return ST_OK;
}

static const char SQL_TRIPPED[] = "SELECT coalesce(max(number), 0) FROM checkpoint"
                                  " WHERE run_id = $1 AND number <= $2 AND step_fallback > $3";

enum status db_step_tripped(struct db *db, struct arena *a, const char *run_id, int32_t number,
                            int32_t *tripped, struct err *e)
{
    struct db_rows rows;
    const char *argv[] = {run_id, db_arg_int(a, number), db_arg_double(a, CODED_FALLBACK_MAX)};
    TRY(db_query(db, a, SQL_TRIPPED, 3, argv, &rows, e));
    return db_int32(&rows, 0, 0, tripped, e);
}

/* Of a run that is over nobody trains any more. */
static const char SQL_LET_GO[] =
    "UPDATE checkpoint c SET step_kept = false FROM run r, checkpoint h"
    " WHERE r.id = c.run_id AND (h.run_id, h.number) = (r.id, r.head) AND c.kept_step IS NOT NULL"
    "   AND (r.state IN ('finished', 'stopped', 'failed') OR c.number <= r.head - $1::integer"
    "        OR h.weights_bytes <= (SELECT sum(n.step_bytes) FROM checkpoint n"
    "                                WHERE n.run_id = c.run_id AND n.number >= c.number))";

enum status db_step_let_go(struct db *db, struct err *e)
{
    struct arena *a = arena_new(1 << 20);
    const char *argv[] = {db_arg_int(a, STEP_CHAIN_MAX)};
    enum status st = db_exec(db, SQL_LET_GO, 1, argv, NULL, e);
    arena_free(a);
    return st;
}

enum status db_step_lost(struct db *db, const struct digest *d, bool *was, struct err *e)
{
    struct arena *a = arena_new(1 << 20);
    int64_t changed = 0;
    const char *argv[] = {db_arg_digest(a, d)};
    enum status st = db_exec(db, "UPDATE checkpoint SET step_kept = false WHERE kept_step = $1", 1,
                             argv, &changed, e);
    *was = changed > 0;
    arena_free(a);
    return st;
}
