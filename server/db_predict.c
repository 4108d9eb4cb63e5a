#include "server/db_predict.h"

#include <math.h>

#include "common/planner.h"

/* Of each counted update of round $1: tokens, bytes of base and update, and its silo's rates. A
 * time that is as good as none gives no rate: PostgreSQL refuses quotients that overflow. */
static const char SQL_RATES[] =
    "WITH past AS (SELECT t.silo_id,"
    "           CASE WHEN t.train_s >= 1e-30 THEN p.tokens / t.train_s END AS train,"
    "           CASE WHEN t.download_s >= 1e-30"
    "                THEN nullif(c.weights_bytes / t.download_s, 0) END AS down,"
    "           CASE WHEN t.upload_s >= 1e-30 THEN p.bytes / t.upload_s END AS up,"
    "           row_number() OVER (PARTITION BY t.silo_id ORDER BY t.number DESC) AS age"
    "      FROM task t JOIN update p ON p.task_id = t.id AND p.state = 'accepted'"
    "      JOIN round q ON q.id = t.round_id AND q.state = 'closed'"
    "      JOIN checkpoint c ON (c.run_id, c.number) = (t.run_id, t.base)"
    "     WHERE t.run_id = $2 AND t.number < $3::integer AND t.kind = 'train'),"
    " own AS (SELECT silo_id, percentile_cont(0.5) WITHIN GROUP (ORDER BY train) AS train,"
    "           percentile_cont(0.5) WITHIN GROUP (ORDER BY down) AS down,"
    "           percentile_cont(0.5) WITHIN GROUP (ORDER BY up) AS up"
    "      FROM past WHERE age <= 10 GROUP BY silo_id),"
    " every AS (SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY train) AS train,"
    "           percentile_cont(0.5) WITHIN GROUP (ORDER BY down) AS down,"
    "           percentile_cont(0.5) WITHIN GROUP (ORDER BY up) AS up FROM own)"
    " SELECT u.tokens, c.weights_bytes, u.bytes, coalesce(o.train, v.train),"
    "        coalesce(o.down, v.down), coalesce(o.up, v.up)"
    "   FROM update u JOIN task t ON t.id = u.task_id"
    "   JOIN checkpoint c ON (c.run_id, c.number) = (t.run_id, t.base)"
    "   LEFT JOIN own o ON o.silo_id = u.silo_id CROSS JOIN every v"
    "  WHERE u.round_id = $1 AND u.state = 'accepted' AND coalesce(o.train, v.train) > 0"
    "  ORDER BY u.slot";
/* What else a round takes: its fold, and from the last update to the next round. And the share of
 * its steps that goes on meanwhile. */
static const char SQL_FOLD[] =
    "SELECT coalesce(percentile_cont(0.5) WITHIN GROUP (ORDER BY s), 0),"
    "       (SELECT coalesce((spec #>> '{federation,overlap_steps}')::double precision, 0)"
    "             / local_steps FROM run WHERE id = $1) FROM"
    " (SELECT extract(epoch FROM closed_at - sealed_at) AS s FROM round"
    "   WHERE run_id = $1 AND number < $2::integer AND state = 'closed' ORDER BY number DESC LIMIT "
    "10) x";

/* Seconds of a transfer; none where the rate was never measured. */
static enum status transfer_s(const struct db_rows *rows, int row, int bytes_column,
                              int rate_column, double *bytes, double *seconds, struct err *e)
{
    double rate = 0.0;
    TRY(db_double(rows, row, bytes_column, bytes, e));
    if (!db_is_null(rows, row, rate_column)) {
        TRY(db_double(rows, row, rate_column, &rate, e));
    }
    *seconds = rate > 0.0 ? *bytes / rate : 0.0;
    return ST_OK;
}

/* The slowest silo to train and the slowest to transfer make the round, as the planner has it. */
static enum status read_round(const struct db_rows *rows, struct plan_round *r, struct err *e)
{
    double slowest_s = 0.0;
    r->silos = rows->count;
    for (int i = 0; i < rows->count; i++) {
        double tokens = 0.0;
        double rate = 0.0;
        double down = 0.0;
        double up = 0.0;
        double down_s = 0.0;
        double up_s = 0.0;
        TRY(db_double(rows, i, 0, &tokens, e));
        TRY(db_double(rows, i, 3, &rate, e));
        TRY(transfer_s(rows, i, 1, 4, &down, &down_s, e));
        TRY(transfer_s(rows, i, 2, 5, &up, &up_s, e));
        r->compute_s = fmax(r->compute_s, tokens / rate);
        slowest_s = fmax(slowest_s, down_s + up_s);
        r->down_bytes += down / rows->count;
        r->up_bytes += up / rows->count;
    }
    r->link = (double)INFINITY; // what all share shows in the rates that were measured
    r->silo_link = slowest_s > 0.0 ? (r->down_bytes + r->up_bytes) / slowest_s : 0.0;
    return ST_OK;
}

enum status db_predict_round(struct db *db, struct arena *a, int64_t round_id, const char *run_id,
                             int32_t number, struct err *e)
{
    struct db_rows rows;
    const char *argv[] = {db_arg_int(a, round_id), run_id, db_arg_int(a, number)};
    TRY(db_query(db, a, SQL_RATES, 3, argv, &rows, e));
    if (rows.count == 0) {
        return ST_OK;
    }
    struct plan_round r = {0};
    TRY(read_round(&rows, &r, e));
    TRY(db_query(db, a, SQL_FOLD, 2, argv + 1, &rows, e));
    TRY(db_double(&rows, 0, 0, &r.fold_s, e));
    TRY(db_double(&rows, 0, 1, &r.ahead_s, e));
    r.ahead_s *= number > 1 ? r.compute_s : 0.0; // nothing goes before the first round
    struct plan_cost c = plan_cost(PLAN_SERVER, &r, 1);
    const char *set[] = {argv[0], db_arg_double(a, c.total_s),
                         db_arg_int(a, (int64_t)(c.bytes + 0.5))};
    return db_exec(db, "UPDATE round SET predicted_s = $2, predicted_bytes = $3 WHERE id = $1", 3,
                   set, NULL, e);
}
