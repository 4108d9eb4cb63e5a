#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/id.h"
#include "server/db_event.h"
#include "server/db_round.h"
#include "server/db_run.h"

/* Seconds that the end of a run waits for evaluations nobody works on. */
#define FINISH_GRACE "interval '60 seconds'"

/* A task's loss, to be divided by anything: PostgreSQL refuses a quotient that underflows. */
#define NLL "(CASE WHEN t.nll >= 1e-30 THEN t.nll ELSE 0 END)"

/*
 * Every live silo of the run evaluates, seat or no seat: held-out text is where the silos differ.
 * Slots follow the names, so that sums are added in one order everywhere.
 */
static const char SQL_ASK[] = "SELECT s.id FROM run_silo x JOIN silo s ON s.id = x.silo_id"
                              " WHERE x.run_id = $1 AND s.state = 'active'"
                              "   AND s.seen_at > clock_timestamp() - interval '75 seconds'"
                              " ORDER BY s.name COLLATE \"C\"";
static const char SQL_ASK_THEM[] =
    "INSERT INTO task (id, kind, run_id, number, slot, silo_id, plan_tokens)"
    " SELECT t.id, 'evaluate', $1, $2, t.place - 1, t.silo_id, 0"
    "   FROM unnest($3::text[], $4::text[]) WITH ORDINALITY AS t (id, silo_id, place)"
    " ON CONFLICT DO NOTHING";

enum status db_round_ask_evaluation(struct db *db, struct arena *a, const char *run_id,
                                    int32_t number, struct err *e)
{
    struct db_rows rows;
    TRY(db_query(db, a, SQL_ASK, 1, &run_id, &rows, e));
    const char **ids = arena_alloc(a, (size_t)(rows.count + 1) * sizeof(*ids));
    const char **silos = arena_alloc(a, (size_t)(rows.count + 1) * sizeof(*silos));
    for (int i = 0; i < rows.count; i++) {
        char id[ID_LEN + 1];
        id_new('t', id);
        ids[i] = arena_fmt(a, "%s", id);
        silos[i] = db_text(&rows, i, 0);
    }
    const char *argv[] = {run_id, db_arg_int(a, number), db_arg_array(a, ids, rows.count),
                          db_arg_array(a, silos, rows.count)};
    return db_exec(db, SQL_ASK_THEM, 4, argv, NULL, e);
}

/* Evaluations that will not come: their silo is gone or out, their file is, or the run is over. */
static const char SQL_GIVE_UP[] =
    "UPDATE task t SET state = 'cancelled', lease_until = NULL, done_at = clock_timestamp()"
    "  FROM silo s, run r, checkpoint c"
    " WHERE t.run_id = $1 AND t.kind = 'evaluate' AND s.id = t.silo_id AND r.id = t.run_id"
    "   AND (c.run_id, c.number) = (t.run_id, t.base)"
    "   AND (t.state = 'pending' OR (t.state = 'leased' AND t.lease_until < clock_timestamp()))"
    "   AND (s.gone OR s.state <> 'active' OR NOT c.kept"
    "        OR r.state IN ('finished', 'stopped', 'failed')"
    "        OR (r.head = r.rounds AND c.created_at < clock_timestamp() - " FINISH_GRACE "))";
static const char SQL_GIVE_UP_LEASES[] =
    "UPDATE lease l SET outcome = 'cancelled', ended_at = clock_timestamp()"
    "  FROM task t WHERE t.id = l.task_id AND l.outcome IS NULL AND t.run_id = $1"
    "   AND t.kind = 'evaluate' AND t.state = 'cancelled'";

static const char SQL_COMPLETE[] =
    "SELECT t.number, sum(" NLL " ORDER BY t.slot) FILTER (WHERE t.state = 'done'),"
    "       sum(t.eval_tokens) FILTER (WHERE t.state = 'done'),"
    "       sum(t.eval_bytes) FILTER (WHERE t.state = 'done'),"
    "       count(*) FILTER (WHERE t.state = 'done'),"
    "       max(t.eval_s) FILTER (WHERE t.state = 'done')"
    "  FROM task t JOIN checkpoint c ON (c.run_id, c.number) = (t.run_id, t.number)"
    " WHERE t.run_id = $1 AND t.kind = 'evaluate' AND c.eval_nll IS NULL"
    " GROUP BY t.number"
    " HAVING bool_or(t.state = 'done') AND bool_and(t.state NOT IN ('pending', 'leased'))"
    " ORDER BY t.number";
static const char SQL_RECORD[] =
    "UPDATE checkpoint SET eval_nll = $3, eval_tokens = $4, eval_bytes = $5, eval_silos = $6,"
    "       eval_s = $7 WHERE run_id = $1 AND number = $2";
static const char SQL_SILO_METRICS[] =
    "INSERT INTO metric (run_id, silo_id, round, step, name, value)"
    " SELECT t.run_id, t.silo_id, t.number, $3, m.name, m.value FROM task t,"
    "   LATERAL (VALUES ('eval_loss', " NLL " / t.eval_tokens),"
    "                   ('eval_bpb', "
    "                    " NLL " / (ln(2.0::double precision) * nullif(t.eval_bytes, 0))))"
    "   m (name, value)"
    "  WHERE t.run_id = $1 AND t.number = $2 AND t.kind = 'evaluate' AND t.state = 'done'"
    "    AND m.value IS NOT NULL"
    " ON CONFLICT DO NOTHING";

static enum status record(struct db *db, struct arena *a, const struct run_row *run,
                          const struct db_rows *rows, int i, struct err *e)
{
    int32_t number = 0;
    int32_t silos = 0;
    double nll = 0.0;
    double tokens = 0.0;
    double bytes = 0.0;
    TRY(db_int32(rows, i, 0, &number, e));
    TRY(db_double(rows, i, 1, &nll, e));
    TRY(db_double(rows, i, 2, &tokens, e));
    TRY(db_double(rows, i, 3, &bytes, e));
    TRY(db_int32(rows, i, 4, &silos, e));
    int64_t step = run->steps_before + (int64_t)number * run->spec.federation.local_steps;
    const char *argv[] = {run->id,
                          db_text(rows, i, 0),
                          db_text(rows, i, 1),
                          db_text(rows, i, 2),
                          db_text(rows, i, 3),
                          db_text(rows, i, 4),
                          db_text(rows, i, 5)};
    TRY(db_exec(db, SQL_RECORD, 7, argv, NULL, e));
    const char *silo_argv[] = {run->id, argv[1], db_arg_int(a, step)};
    TRY(db_exec(db, SQL_SILO_METRICS, 3, silo_argv, NULL, e));
    double loss = nll / tokens;
    TRY(db_metric(db, a, run->id, NULL, number, step, "eval_loss", loss, e));
    if (bytes > 0.0) {
        TRY(db_metric(db, a, run->id, NULL, number, step, "eval_bpb", nll / (log(2.0) * bytes), e));
    }
    return db_event(
        db, a,
        &(struct event){
            .kind = "eval_done",
            .run_id = run->id,
            .round = number,
            .message = arena_fmt(a,
                                 "checkpoint %" PRId32 " has perplexity %.4g on the "
                                 "held-out text of %" PRId32 " silo%s",
                                 number, exp(loss), silos, silos == 1 ? "" : "s"),
            .detail = arena_fmt(a, "{\"eval_loss\":%.17g,\"silos\":%" PRId32 "}", loss, silos)},
        e);
}

static enum status evaluated_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    struct run_row run;
    TRY(db_run_lock(db, a, ctx, &run, e));
    if (!run.found) {
        return ST_OK;
    }
    struct db_rows rows;
    TRY(db_exec(db, SQL_GIVE_UP, 1, &run.id, NULL, e));
    TRY(db_exec(db, SQL_GIVE_UP_LEASES, 1, &run.id, NULL, e));
    TRY(db_query(db, a, SQL_COMPLETE, 1, &run.id, &rows, e));
    for (int i = 0; i < rows.count; i++) {
        TRY(record(db, a, &run, &rows, i, e));
    }
    return ST_OK;
}

enum status db_round_evaluated(struct db *db, const char *run_id, struct err *e)
{
    char id[ID_LEN + 1];
    (void)snprintf(id, sizeof(id), "%s", run_id);
    return db_tx(db, evaluated_tx, id, e);
}

/* ---- the end of a run ---- */

/* A result may have come in since the last look: a run is not over before it is on the curve. */
static const char SQL_FINISH[] =
    "UPDATE run r SET state = 'finished', finished_at = clock_timestamp(), waiting_for = NULL"
    " WHERE r.id = $1 AND r.state = 'running' AND r.head = r.rounds"
    "   AND NOT EXISTS (SELECT FROM task t WHERE t.run_id = r.id AND t.kind = 'evaluate'"
    "                      AND t.state IN ('pending', 'leased'))"
    "   AND NOT EXISTS (SELECT FROM task t JOIN checkpoint c"
    "                       ON (c.run_id, c.number) = (t.run_id, t.number)"
    "                    WHERE t.run_id = r.id AND t.kind = 'evaluate' AND t.state = 'done'"
    "                      AND c.eval_nll IS NULL)"
    " RETURNING r.rounds";

static enum status finish_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    struct run_row run;
    TRY(db_run_lock(db, a, ctx, &run, e));
    if (!run.found) {
        return ST_OK;
    }
    struct db_rows rows;
    TRY(db_query(db, a, SQL_FINISH, 1, &run.id, &rows, e));
    if (rows.count == 0) {
        return ST_OK;
    }
    return db_event(db, a,
                    &(struct event){.kind = "run_finished",
                                    .run_id = run.id,
                                    .round = run.head,
                                    .message = arena_fmt(
                                        a, "the run finished after %" PRId32 " rounds", run.head)},
                    e);
}

enum status db_round_finish(struct db *db, const char *run_id, struct err *e)
{
    char id[ID_LEN + 1];
    (void)snprintf(id, sizeof(id), "%s", run_id);
    return db_tx(db, finish_tx, id, e);
}
