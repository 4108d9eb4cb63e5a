/* What lies below one run: rounds, silos, checkpoints and their files, metrics, events. */
#include "server/api_run.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/hash.h"
#include "common/limits.h"
#include "server/api.h"
#include "server/api_file.h"
#include "server/api_sql.h"
#include "server/audit.h"
#include "server/range.h"
#include "server/server.h"
#include "server/stream.h"

static const char SQL_RUN[] = "SELECT 1 FROM run WHERE id = $1";

static const char SQL_ROUNDS[] =
    "SELECT " ROUND_JSON ", q.id" ROUND_FROM
    " WHERE q.run_id = $1 AND ($3 = '' OR q.id < $3::bigint) ORDER BY q.id DESC LIMIT $2";

/* Of a round's attempts the closed one, else the newest. */
static const char SQL_ROUND[] =
    "SELECT json_build_object(" ROUND_MEMBERS ", 'tasks', ("
    "SELECT coalesce(json_agg(json_build_object('id', k.id, 'slot', k.slot, 'kind', k.kind,"
    "  'silo', k.silo_id, 'silo_name', s.name, 'state', k.state, 'attempt', k.attempt,"
    "  'step', k.step, 'steps', k.steps, 'tokens', coalesce(w.tokens, k.tokens),"
    "  'download_s', k.download_s, 'train_s', k.train_s, 'upload_s', k.upload_s,"
    "  'train_loss', coalesce(w.train_loss, k.train_loss), 'update_norm', w.norm,"
    "  'update_cosine', w.cosine, 'update_sha256', encode(w.digest, 'hex'),"
    "  'update_bytes', w.bytes, 'codec', w.codec, 'codec_error', w.codec_error,"
    "  'residual_ratio', w.residual_ratio, 'fallback_share', w.fallback_share,"
    "  'lease_until', " TIME_SQL(
        "k.lease_until") ") ORDER BY k.kind DESC, k.slot, k.id), '[]')"
                         " FROM task k JOIN silo s ON s.id = k.silo_id"
                         " LEFT JOIN update w ON w.task_id = k.id AND w.state = 'accepted'"
                         " WHERE k.round_id = q.id"
                         "    OR (k.run_id, k.kind, k.number) = (q.run_id, 'evaluate', "
                         "q.number)))" ROUND_FROM " WHERE q.run_id = $1 AND q.number = $2"
                         " ORDER BY q.state = 'closed' DESC, q.attempt DESC LIMIT 1";

/* Its task of this run, if it holds one now; else what it did last. */
static const char SQL_SILOS[] =
    "SELECT json_build_object(" SILO_MEMBERS ", 'train_loss', coalesce(m.last, last.train_loss),"
    " 'step', k.step, 'steps', k.steps, 'round', coalesce(k.number, last.number)), s.name"
    " FROM run_silo y JOIN silo s ON s.id = y.silo_id"
    " CROSS JOIN LATERAL (SELECT coalesce(sum(w.tokens), 0) AS tokens, count(*) AS rounds"
    "   FROM update w JOIN round q ON q.id = w.round_id"
    "  WHERE q.run_id = y.run_id AND w.silo_id = s.id AND w.state = 'accepted') n"
    " CROSS JOIN LATERAL (SELECT coalesce(sum(upload_bytes), 0) AS up,"
    "     coalesce(sum(download_bytes), 0) AS down"
    "   FROM traffic WHERE run_id = y.run_id AND silo_id = s.id) b"
    " LEFT JOIN LATERAL (SELECT step, steps, number FROM task"
    "   WHERE silo_id = s.id AND run_id = y.run_id AND state = 'leased'"
    "   ORDER BY kind DESC LIMIT 1) k ON true"
    " LEFT JOIN LATERAL (SELECT q.number, w.train_loss FROM update w JOIN round q ON q.id = "
    "w.round_id"
    "   WHERE q.run_id = y.run_id AND w.silo_id = s.id AND w.state = 'accepted'"
    "   ORDER BY q.number DESC LIMIT 1) last ON true"
    " LEFT JOIN metric_latest m ON (m.run_id, m.silo_id, m.name) = (y.run_id, s.id, 'train_loss')"
    " WHERE y.run_id = $1 AND s.name > $3 ORDER BY s.name LIMIT $2";

static const char SQL_CHECKPOINTS[] =
    "SELECT " CHECKPOINT_JSON ", c.number FROM checkpoint c"
    " WHERE c.run_id = $1 AND ($3 = '' OR c.number < $3::integer) ORDER BY c.number DESC LIMIT $2";

static const char SQL_CHECKPOINT[] =
    "SELECT " CHECKPOINT_JSON ", encode(c.weights, 'hex'), c.kept, r.name"
    " FROM checkpoint c JOIN run r ON r.id = c.run_id"
    " WHERE c.run_id = $1 AND c.number = $2";

/* Curves that silos sent, then what follows from rounds and checkpoints. */
static const char SQL_METRICS[] =
    "WITH sent AS (SELECT name, bool_or(silo_id IS NOT NULL) AS silos, sum(points) AS count,"
    "   avg(last) AS last, min(min) AS min, max(max) AS max"
    "   FROM metric_latest WHERE run_id = $1 GROUP BY name),"
    " evals AS (SELECT number, eval_loss AS loss, eval_nll / ln(2) / nullif(eval_bytes, 0) AS bpb"
    "   FROM checkpoint WHERE run_id = $1 AND eval_loss IS NOT NULL),"
    " rounds AS (SELECT q.number, q.delta_norm, q.outer_step_norm, q.aggregate_s,"
    "     extract(epoch FROM q.closed_at - q.opened_at)::double precision AS round_s,"
    "     t.download_s, t.train_s, t.upload_s, b.up, b.down"
    "   FROM round q"
    "   CROSS JOIN LATERAL (SELECT max(download_s) AS download_s, max(train_s) AS train_s,"
    "     max(upload_s) AS upload_s FROM task WHERE round_id = q.id AND state = 'done') t"
    "   CROSS JOIN LATERAL (SELECT sum(upload_bytes)::double precision AS up,"
    "     sum(download_bytes)::double precision AS down FROM traffic"
    "     WHERE (run_id, number) = (q.run_id, q.number)) b"
    "   WHERE q.run_id = $1 AND q.state = 'closed'),"
    " points (name, silos, number, value) AS ("
    "   SELECT 'eval_loss', true, number, loss FROM evals"
    "   UNION ALL SELECT 'eval_ppl', true, number, " PPL_SQL(
        "loss") " FROM evals"
                "   UNION ALL SELECT 'eval_bpb', true, number, bpb FROM evals"
                "   UNION ALL SELECT v.name, v.silos, number, v.value FROM rounds CROSS JOIN "
                "LATERAL (VALUES"
                "     ('delta_norm', false, delta_norm), ('outer_step_norm', false, "
                "outer_step_norm),"
                "     ('aggregate_s', false, aggregate_s), ('round_s', false, round_s),"
                "     ('download_s', true, download_s), ('train_s', true, train_s),"
                "     ('upload_s', true, upload_s), ('upload_bytes', true, up), ('download_bytes', "
                "true, down)"
                "   ) v (name, silos, value)),"
                " derived AS (SELECT name, bool_or(silos) AS silos, count(value) AS count,"
                "   (array_agg(value ORDER BY number DESC))[1] AS last, min(value) AS min, "
                "max(value) AS max"
                "   FROM points WHERE value IS NOT NULL GROUP BY name)"
                " SELECT json_build_object('name', name, 'silos', silos, 'count', count, 'last', "
                "last,"
                "   'min', min, 'max', max)"
                " FROM (SELECT * FROM derived UNION ALL"
                "       SELECT * FROM sent WHERE name NOT IN (SELECT name FROM derived)) a"
                " ORDER BY name";

/* What silos report every few seconds: thousands an hour between two rounds. */
#define WITHOUT_CHATTER " AND ($5::boolean OR e.kind NOT IN ('metrics_added', 'silo_seen'))"

static const char SQL_EVENTS_NEWEST[] =
    "SELECT " EVENT_JSON ", e.xid || '-' || e.id FROM event e"
    " WHERE e.run_id = $1 AND e.xid < pg_snapshot_xmin(pg_current_snapshot())"
    "   AND (e.xid, e.id) < ($2::xid8, $3::bigint)" WITHOUT_CHATTER
    " ORDER BY e.xid DESC, e.id DESC LIMIT $4";

static const char SQL_EVENTS_AFTER[] =
    "SELECT " EVENT_JSON ", e.xid || '-' || e.id FROM event e"
    " WHERE e.run_id = $1 AND e.xid < pg_snapshot_xmin(pg_current_snapshot())"
    "   AND (e.xid, e.id) > ($2::xid8, $3::bigint)" WITHOUT_CHATTER
    " ORDER BY e.xid, e.id LIMIT $4";

/* Every leaf of both specs, by its dotted name. */
static const char SQL_DIFF[] =
    "WITH RECURSIVE wanted AS (SELECT id, ord FROM unnest($1::text[]) WITH ORDINALITY AS w (id, "
    "ord)),"
    " leaf (ord, key, value) AS ("
    "   SELECT w.ord, j.key, j.value FROM wanted w JOIN run r USING (id), jsonb_each(r.spec) j"
    "   UNION ALL"
    "   SELECT l.ord, l.key || '.' || j.key, j.value FROM leaf l,"
    "     jsonb_each(CASE jsonb_typeof(l.value) WHEN 'object' THEN l.value ELSE '{}' END) j"
    " ), keys AS (SELECT DISTINCT key FROM leaf WHERE jsonb_typeof(value) <> 'object')"
    " SELECT json_build_object('key', k.key, 'values',"
    "   json_agg(l.value ORDER BY w.ord)) FROM keys k CROSS JOIN wanted w"
    " LEFT JOIN leaf l ON l.key = k.key AND l.ord = w.ord"
    " GROUP BY k.key"
    " HAVING count(DISTINCT l.value) > 1 OR count(l.value) NOT IN (0, (SELECT count(*) FROM "
    "wanted))"
    " ORDER BY k.key";

static const char SQL_ALL_THERE[] = "SELECT w.id FROM unnest($1::text[]) AS w (id) WHERE NOT "
                                    "EXISTS (SELECT FROM run WHERE id = w.id)";

/* An empty list of a run that is there differs from a run that is not. */
static enum status list_of_run(struct request *rq, struct response *rs, const struct page *page,
                               const struct db_rows *rows, struct err *e)
{
    if (rows->count == 0) {
        struct db_rows run;
        TRY(db_query(rq->db, rq->arena, SQL_RUN, 1, rq->params, &run, e));
        if (run.count == 0) {
            return not_found(rq, rs, "run");
        }
    }
    respond_list(rq, rs, page, rows);
    return ST_OK;
}

/* A number in the path, as text for the statement. False: no such thing can be there. */
static bool is_number(const char *text)
{
    size_t len = strlen(text);
    return len >= 1 && len <= 9 && strspn(text, "0123456789") == len;
}

static bool cursor_is_number(struct request *rq, struct response *rs, const struct page *page)
{
    size_t len = strlen(page->cursor);
    if (len <= 18 && strspn(page->cursor, "0123456789") == len) {
        return true;
    }
    (void)bad_parameter(rq, rs, "cursor", "must be a next_cursor of an earlier answer");
    return false;
}

static enum status paged(struct request *rq, struct response *rs, const char *sql, bool numbers,
                         struct err *e)
{
    struct page page;
    if (!page_read(&page, rq, rs) || (numbers && !cursor_is_number(rq, rs, &page))) {
        return ST_OK;
    }
    const char *argv[] = {rq->params[0], page.limit_plus_one, page.cursor};
    struct db_rows rows;
    TRY(db_query(rq->db, rq->arena, sql, 3, argv, &rows, e));
    return list_of_run(rq, rs, &page, &rows, e);
}

enum status api_rounds(struct request *rq, struct response *rs, struct err *e)
{
    return paged(rq, rs, SQL_ROUNDS, true, e);
}

enum status api_run_silos(struct request *rq, struct response *rs, struct err *e)
{
    return paged(rq, rs, SQL_SILOS, false, e);
}

enum status api_checkpoints(struct request *rq, struct response *rs, struct err *e)
{
    return paged(rq, rs, SQL_CHECKPOINTS, true, e);
}

enum status api_round(struct request *rq, struct response *rs, struct err *e)
{
    if (!is_number(rq->params[1])) {
        return not_found(rq, rs, "round");
    }
    struct db_rows rows;
    TRY(db_query(rq->db, rq->arena, SQL_ROUND, 2, rq->params, &rows, e));
    if (rows.count == 0) {
        return not_found(rq, rs, "round");
    }
    respond_json(rq, rs, 200, db_text(&rows, 0, 0));
    return ST_OK;
}

/* *found is false when a 404 was filled in. */
static enum status read_checkpoint(struct request *rq, struct response *rs, struct db_rows *rows,
                                   bool *found, struct err *e)
{
    *found = false;
    if (!is_number(rq->params[1])) {
        return not_found(rq, rs, "checkpoint");
    }
    TRY(db_query(rq->db, rq->arena, SQL_CHECKPOINT, 2, rq->params, rows, e));
    if (rows->count == 0) {
        return not_found(rq, rs, "checkpoint");
    }
    *found = true;
    return ST_OK;
}

enum status api_checkpoint(struct request *rq, struct response *rs, struct err *e)
{
    struct db_rows rows;
    bool found = false;
    TRY(read_checkpoint(rq, rs, &rows, &found, e));
    if (found) {
        respond_json(rq, rs, 200, db_text(&rows, 0, 0));
    }
    return ST_OK;
}

static void respond_part(struct request *rq, struct response *rs, int64_t bytes, const char *etag)
{
    int64_t start = 0;
    int64_t len = bytes;
    enum range_kind kind = range_parse(request_header(rq, "Range"), bytes, &start, &len);
    if (!range_allowed(request_header(rq, "If-Range"), etag)) {
        kind = RANGE_WHOLE;
        start = 0;
        len = bytes;
    }
    if (kind == RANGE_UNSATISFIABLE) {
        (void)problem(rq, rs, 416, "RANGE_NOT_SATISFIABLE", NULL, "the file has %" PRId64 " bytes",
                      bytes);
        response_header(rs, "Content-Range", arena_fmt(rq->arena, "bytes */%" PRId64, bytes));
        return;
    }
    rs->status = kind == RANGE_PART ? 206 : 200;
    rs->content_type = "application/octet-stream";
    rs->file_offset = start;
    rs->file_len = len;
    if (kind == RANGE_PART) {
        response_header(rs, "Content-Range",
                        arena_fmt(rq->arena, "bytes %" PRId64 "-%" PRId64 "/%" PRId64, start,
                                  start + len - 1, bytes));
    }
    response_header(rs, "ETag", etag);
    response_header(rs, "Accept-Ranges", "bytes");
}

/* Weights that leave are worth a line, as changes are. */
static enum status audit_weights(struct request *rq, struct err *e)
{
    return strcmp(rq->method, "GET") != 0
               ? ST_OK
               : audit_taken(rq, "checkpoint_download",
                             arena_fmt(rq->arena, "%s/%s", rq->params[0], rq->params[1]), e);
}

enum status api_weights(struct request *rq, struct response *rs, struct err *e)
{
    struct db_rows rows;
    bool found = false;
    TRY(read_checkpoint(rq, rs, &rows, &found, e));
    if (!found) {
        return ST_OK;
    }
    const char *hex = db_text(&rows, 0, 1);
    struct digest d;
    TRY(digest_parse(&d, hex, e));
    int64_t bytes = 0;
    bool kept = true;
    TRY(db_bool(&rows, 0, 2, &kept, e));
    int fd = -1;
    enum status st = file_open(rq, rs, &d, kept, &fd, &bytes, e);
    if (st == ST_NOT_FOUND) {
        return problem(rq, rs, 404, "CHECKPOINT_REMOVED",
                       "keep_checkpoints in the run spec says how many are kept",
                       "the numbers of this checkpoint remain, its file was removed");
    }
    TRY(st);
    if (fd < 0) {
        return ST_OK;
    }
    st = audit_weights(rq, e);
    if (st) {
        (void)close(fd);
        return st;
    }
    rs->fd = fd;
    rs->pace = rq->server->bulk_pace;
    respond_part(rq, rs, bytes, arena_fmt(rq->arena, "\"%s\"", hex));
    if (rs->status != 416) {
        response_header(rs, "Content-Disposition",
                        arena_fmt(rq->arena, "attachment; filename=\"%s-%s.safetensors\"",
                                  db_text(&rows, 0, 3), rq->params[1]));
    }
    return ST_OK;
}

enum status api_metrics(struct request *rq, struct response *rs, struct err *e)
{
    struct db_rows rows;
    TRY(db_query(rq->db, rq->arena, SQL_METRICS, 1, rq->params, &rows, e));
    return list_of_run(rq, rs, NULL, &rows, e);
}

enum status api_events(struct request *rq, struct response *rs, struct err *e)
{
    struct page page;
    if (!page_read(&page, rq, rs)) {
        return ST_OK;
    }
    const char *chatter = request_query(rq, "chatter");
    if (chatter && strcmp(chatter, "1") != 0 && strcmp(chatter, "0") != 0) {
        return bad_parameter(rq, rs, "chatter", "must be 1 or 0");
    }
    const char *after = request_query(rq, "after");
    const char *name = after ? "after" : "cursor";
    // The cursor of the next page of ?after= is the last id shown: it continues where that ended.
    const char *from = page.cursor[0] ? page.cursor : after;
    struct event_cursor at = {.xid = INT64_MAX, .id = INT64_MAX}; // above every event
    struct err bad = {0};
    if (from && event_cursor_parse(&at, from, &bad)) {
        return bad_parameter(rq, rs, name, "must be an event's id");
    }
    const char *argv[] = {rq->params[0], arena_fmt(rq->arena, "%" PRIu64, at.xid),
                          arena_fmt(rq->arena, "%" PRId64, at.id), page.limit_plus_one,
                          chatter ? chatter : "1"};
    struct db_rows rows;
    TRY(db_query(rq->db, rq->arena, after ? SQL_EVENTS_AFTER : SQL_EVENTS_NEWEST, 5, argv, &rows,
                 e));
    return list_of_run(rq, rs, &page, &rows, e);
}

enum status api_diff(struct request *rq, struct response *rs, struct err *e)
{
    const char *ids = request_query(rq, "run");
    size_t len = ids ? strlen(ids) : 0;
    static const char plain[] = "r_0123456789ABCDEFGHJKMNPQRSTVWXYZ,";
    bool ok = len > 1 && len <= 1024 && strspn(ids, plain) == len && strchr(ids, ',');
    if (!ok || ids[0] == ',' || ids[len - 1] == ',' || strstr(ids, ",,")) {
        return bad_parameter(rq, rs, "run", "must be two or more run ids, separated by commas");
    }
    const char *array = arena_fmt(rq->arena, "{%s}", ids);
    struct db_rows rows;
    TRY(db_query(rq->db, rq->arena, SQL_ALL_THERE, 1, &array, &rows, e));
    if (rows.count > 0) {
        return not_found(rq, rs, arena_fmt(rq->arena, "run: %s", db_text(&rows, 0, 0)));
    }
    TRY(db_query(rq->db, rq->arena, SQL_DIFF, 1, &array, &rows, e));
    respond_all(rq, rs, &rows);
    return ST_OK;
}
