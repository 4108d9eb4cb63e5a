#include "server/series_read.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"

enum { POINTS_MAX = 4000000, SERIES_MAX = 1024 };

static const struct series_metric metrics[] = {
    {.name = "train_loss", .dense = true, .per_silo = true},
    {.name = "grad_norm", .dense = true, .per_silo = true},
    {.name = "lr", .dense = true, .per_silo = true},
    {.name = "tokens_per_s", .dense = true, .per_silo = true},
    {.name = "eval_loss", .per_silo = true},
    {.name = "eval_ppl", .exp = true, .per_silo = true},
    {.name = "eval_bpb", .per_silo = true},
    {.name = "delta_norm", .per_silo = true},
    {.name = "outer_step_norm"},
    {.name = "upload_bytes", .per_silo = true},
    {.name = "download_bytes", .per_silo = true},
    {.name = "download_s", .per_silo = true},
    {.name = "train_s", .per_silo = true},
    {.name = "upload_s", .per_silo = true},
    {.name = "aggregate_s"},
    {.name = "round_s"},
};

static const char *const axes[X_COUNT] = {"round", "step", "tokens", "time", "elapsed", "bytes"};

const struct series_metric *series_metric_find(const char *name)
{
    for (size_t i = 0; i < sizeof(metrics) / sizeof(metrics[0]); i++) {
        if (strcmp(metrics[i].name, name) == 0) {
            return &metrics[i];
        }
    }
    return NULL;
}

int series_x_parse(const char *name)
{
    for (int i = 0; i < X_COUNT; i++) {
        if (strcmp(axes[i], name) == 0) {
            return i;
        }
    }
    return -1;
}

/* ---- the run's history: where round n lies on each axis ---- */

static const char SQL_RUN[] =
    "SELECT r.name, r.local_steps, coalesce(r.head, 0),"
    " (r.spec->'inner'->>'batch')::double precision * (r.spec->'model'->>'seq_len')::double "
    "precision"
    "   * r.local_steps * r.silos_per_round,"
    " extract(epoch FROM coalesce((SELECT min(at) FROM event WHERE run_id = r.id), r.created_at)),"
    " r.steps_before"
    " FROM run r WHERE r.id = $1";

/* Checkpoint n: tokens and bytes up to it, and when it was made. */
static const char SQL_HISTORY[] =
    "SELECT c.number, sum(coalesce(q.tokens, 0)) OVER upto, sum(coalesce(b.bytes, 0)) OVER upto,"
    " extract(epoch FROM coalesce(q.closed_at, c.created_at))"
    " FROM checkpoint c"
    " LEFT JOIN round q ON (q.run_id, q.number, q.state) = (c.run_id, c.number, 'closed')"
    " LEFT JOIN (SELECT number, sum(upload_bytes + download_bytes) AS bytes FROM traffic"
    "   WHERE run_id = $1 GROUP BY number) b ON b.number = c.number"
    " WHERE c.run_id = $1 WINDOW upto AS (ORDER BY c.number) ORDER BY c.number";

struct history {
    const char *run_id, *run_name;
    double local_steps;
    double steps_before;   // a fork goes on with its parent's count
    double planned_tokens; /* of one round */
    double begin;          /* Unix seconds of the first event */
    int64_t count;         /* rows: checkpoints 0..count-1 */
    double *tokens, *bytes, *time;
};

static double number_at(const struct db_rows *rows, int row, int col)
{
    const char *text = db_text(rows, row, col);
    return text ? strtod(text, NULL) : (double)NAN;
}

static enum status read_history(struct history *h, struct arena *a, struct db *db,
                                const char *run_id, struct err *e)
{
    struct db_rows rows;
    TRY(db_query(db, a, SQL_RUN, 1, &run_id, &rows, e));
    if (rows.count == 0) {
        return err_set(e, ST_NOT_FOUND, "there is no run '%.40s'", run_id);
    }
    *h = (struct history){
        .run_id = arena_fmt(a, "%s", run_id),
        .run_name = db_text(&rows, 0, 0),
        .local_steps = number_at(&rows, 0, 1),
        .steps_before = number_at(&rows, 0, 5),
        .planned_tokens = number_at(&rows, 0, 3),
        .begin = number_at(&rows, 0, 4),
    };
    TRY(db_query(db, a, SQL_HISTORY, 1, &run_id, &rows, e));
    size_t n = (size_t)rows.count + 1;
    void *block = NULL;
    TRY(mem_alloc_large(&block, 3 * n * sizeof(double), e));
    arena_defer(a, mem_free, block);
    h->tokens = block;
    h->bytes = h->tokens + n;
    h->time = h->bytes + n;
    h->count = rows.count;
    for (int i = 0; i < rows.count; i++) {
        h->tokens[i] = number_at(&rows, i, 1);
        h->bytes[i] = number_at(&rows, i, 2);
        h->time[i] = number_at(&rows, i, 3);
    }
    return ST_OK;
}

/* Between two checkpoints in proportion; in the live round by the slope that is expected. */
static double between(const double *at, int64_t count, double round, double slope)
{
    if (count == 0) {
        return round * slope;
    }
    int64_t whole = (int64_t)floor(round);
    double part = round - (double)whole;
    if (whole >= count - 1) {
        return at[count - 1] + (round - (double)(count - 1)) * slope;
    }
    return whole < 0 ? at[0] : at[whole] + part * (at[whole + 1] - at[whole]);
}

/* round may be a fraction: step 96 of 64 a round is 1.5. unix_s is NaN where only
 * the round is known. */
static double place(const struct history *h, enum series_x x, double round, double unix_s)
{
    double last_bytes = h->count > 1 ? h->bytes[h->count - 1] - h->bytes[h->count - 2] : 0.0;
    switch (x) {
    case X_STEP:
        return h->steps_before + round * h->local_steps;
    case X_TOKENS:
        return between(h->tokens, h->count, round, h->planned_tokens);
    case X_BYTES:
        return between(h->bytes, h->count, round, last_bytes);
    case X_TIME:
    case X_ELAPSED: {
        double t = isnan(unix_s) ? between(h->time, h->count, round, 0.0) : unix_s;
        return x == X_TIME ? t : t - h->begin;
    }
    case X_ROUND:
    case X_COUNT:
    default:
        return round;
    }
}

/* ---- the points: each statement gives silo, its name, round, Unix seconds, value ---- */

/*
 * Silos take steps of equal tokens, so a step's mean over silos is the token-weighted one. Silos
 * add up in speed. $3: ids wanted, or null for all.
 */
static const char SQL_DENSE[] =
    "SELECT NULL, NULL, step, date_part('epoch', max(at)),"
    " CASE WHEN $2 = 'tokens_per_s' THEN sum(value) ELSE avg(value) END"
    " FROM metric WHERE run_id = $1 AND name = $2 AND $3::text[] IS NULL"
    " GROUP BY step ORDER BY step LIMIT 4000001";

/* Silo by silo, each along the index: no sort of the whole. */
static const char SQL_DENSE_SILOS[] =
    "SELECT s.id, s.name, p.step, p.at, p.value FROM silo s CROSS JOIN LATERAL ("
    "   SELECT step, date_part('epoch', max(at)) AS at, avg(value) AS value FROM metric"
    "    WHERE run_id = $1 AND name = $2 AND silo_id = s.id GROUP BY step ORDER BY step) p"
    " WHERE $3::text[] IS NULL OR s.id = ANY ($3) ORDER BY s.name, s.id, p.step LIMIT 4000001";

static const char SQL_EVAL[] =
    "SELECT NULL, NULL, number, NULL, CASE WHEN $2 = 'eval_bpb'"
    "   THEN eval_nll / ln(2) / nullif(eval_bytes, 0) ELSE eval_loss END"
    " FROM checkpoint WHERE run_id = $1 AND eval_loss IS NOT NULL AND $3::text[] IS NULL"
    " ORDER BY number";

static const char SQL_EVAL_SILOS[] =
    "SELECT t.silo_id, s.name, t.number, NULL, CASE WHEN $2 = 'eval_bpb'"
    "   THEN t.nll / ln(2) / nullif(t.eval_bytes, 0) ELSE t.nll / t.eval_tokens END"
    " FROM task t JOIN silo s ON s.id = t.silo_id"
    " WHERE t.run_id = $1 AND t.kind = 'evaluate' AND t.state = 'done'"
    "   AND ($3::text[] IS NULL OR t.silo_id = ANY ($3))"
    " ORDER BY s.name, t.silo_id, t.number";

static const char SQL_ROUND[] =
    "SELECT NULL, NULL, q.number, NULL, CASE $2"
    "   WHEN 'delta_norm' THEN q.delta_norm WHEN 'outer_step_norm' THEN q.outer_step_norm"
    "   WHEN 'aggregate_s' THEN q.aggregate_s"
    "   WHEN 'round_s' THEN extract(epoch FROM q.closed_at - q.opened_at)"
    "   WHEN 'download_s' THEN (SELECT max(download_s) FROM task WHERE round_id = q.id AND state = "
    "'done')"
    "   WHEN 'train_s' THEN (SELECT max(train_s) FROM task WHERE round_id = q.id AND state = "
    "'done')"
    "   WHEN 'upload_s' THEN (SELECT max(upload_s) FROM task WHERE round_id = q.id AND state = "
    "'done')"
    "   WHEN 'upload_bytes' THEN (SELECT sum(upload_bytes) FROM traffic"
    "     WHERE (run_id, number) = (q.run_id, q.number))"
    "   WHEN 'download_bytes' THEN (SELECT sum(download_bytes) FROM traffic"
    "     WHERE (run_id, number) = (q.run_id, q.number)) END"
    " FROM round q WHERE q.run_id = $1 AND q.state = 'closed' AND $3::text[] IS NULL"
    " ORDER BY q.number";

static const char SQL_ROUND_SILOS[] =
    "SELECT t.silo_id, s.name, q.number, NULL, CASE $2"
    "   WHEN 'delta_norm' THEN u.norm WHEN 'download_s' THEN t.download_s"
    "   WHEN 'train_s' THEN t.train_s WHEN 'upload_s' THEN t.upload_s"
    "   WHEN 'upload_bytes' THEN b.upload_bytes WHEN 'download_bytes' THEN b.download_bytes END"
    " FROM round q JOIN task t ON t.round_id = q.id AND t.state = 'done'"
    " JOIN silo s ON s.id = t.silo_id"
    " LEFT JOIN update u ON u.task_id = t.id AND u.state = 'accepted'"
    " LEFT JOIN traffic b ON (b.run_id, b.number, b.silo_id) = (q.run_id, q.number, t.silo_id)"
    " WHERE q.run_id = $1 AND q.state = 'closed' AND ($3::text[] IS NULL OR t.silo_id = ANY ($3))"
    " ORDER BY s.name, t.silo_id, q.number";

static const char *statement(const struct series_metric *m, bool silos)
{
    if (m->dense) {
        return silos ? SQL_DENSE_SILOS : SQL_DENSE;
    }
    if (strncmp(m->name, "eval_", 5) == 0) {
        return silos ? SQL_EVAL_SILOS : SQL_EVAL;
    }
    return silos ? SQL_ROUND_SILOS : SQL_ROUND;
}

static bool same_silo(const struct series *s, const char *silo_id)
{
    return (!s->silo_id && !silo_id) || (s->silo_id && silo_id && strcmp(s->silo_id, silo_id) == 0);
}

/* Rows come grouped by silo: each change of silo begins a series. */
static enum status collect(struct series_list *out, struct arena *a, const struct db_rows *rows,
                           const struct history *h, const struct series_metric *m, enum series_x x,
                           struct err *e)
{
    void *block = NULL;
    TRY(mem_alloc_large(&block, ((size_t)rows->count + 1) * sizeof(struct series_point), e));
    arena_defer(a, mem_free, block);
    struct series_point *points = block;
    out->items = arena_alloc(a, SERIES_MAX * sizeof(*out->items));
    out->count = 0;
    struct series *s = NULL;
    for (int i = 0; i < rows->count; i++) {
        const char *silo = db_text(rows, i, 0);
        if (!s || !same_silo(s, silo)) {
            if (out->count == SERIES_MAX) {
                return err_set(e, ST_LIMIT, "more than %d series; try naming silos", SERIES_MAX);
            }
            s = &out->items[out->count++];
            *s = (struct series){h->run_id, h->run_name, silo, db_text(rows, i, 1), &points[i], 0};
        }
        double at = number_at(rows, i, 2);
        double round = m->dense ? (at - h->steps_before) / h->local_steps : at;
        s->points[s->count].x = place(h, x, round, number_at(rows, i, 3));
        s->points[s->count].y = number_at(rows, i, 4);
        s->count++;
    }
    return ST_OK;
}

static int by_x(const void *a, const void *b)
{
    const struct series_point *p = a;
    const struct series_point *q = b;
    return (p->x > q->x) - (p->x < q->x);
}

enum status series_read(struct series_list *out, struct arena *a, struct db *db, const char *run_id,
                        const struct series_metric *m, enum series_x x, const char *silo,
                        struct err *e)
{
    struct history h = {0};
    TRY(read_history(&h, a, db, run_id, e));
    bool silos = silo && silo[0];
    if (silos && !m->per_silo) {
        *out = (struct series_list){0}; // the aggregator's own number: no silo has one
        return ST_OK;
    }
    bool some = silos && strcmp(silo, "all") != 0;
    const char *argv[] = {run_id, m->name, some ? arena_fmt(a, "{%s}", silo) : NULL};
    struct db_rows rows;
    TRY(db_query(db, a, statement(m, silos), 3, argv, &rows, e));
    if (rows.count > POINTS_MAX) {
        return err_set(e, ST_LIMIT, "more than %d points; try fewer silos", POINTS_MAX);
    }
    TRY(collect(out, a, &rows, &h, m, x, e));
    for (int i = 0; i < out->count && (x == X_TIME || x == X_ELAPSED); i++) {
        // Batches may be stored out of the order of their steps.
        qsort(out->items[i].points, (size_t)out->items[i].count, sizeof(struct series_point), by_x);
    }
    return ST_OK;
}
