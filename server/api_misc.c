/* Routes for anybody: health, version, the API's description, Prometheus' numbers, the page. */
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "common/version.h"
#include "server/api.h"
#include "server/api_sql.h"
#include "server/blob.h"
#include "server/http.h"
#include "server/hub.h"
#include "server/openapi.h"
#include "server/server.h"
#include "server/static_files.h"
#include "server/stats.h"
#include "server/stream.h"
#include "server/tls.h"

#ifndef PHOTON_COMMIT
#define PHOTON_COMMIT "unknown"
#endif

static enum status get_health(struct request *rq, struct response *rs, struct err *e)
{
    (void)e;
    respond_json(rq, rs, 200, "{\"status\":\"ok\"}");
    return ST_OK;
}

static void add_check(struct buf *b, bool *ready, const char *name, bool ok, const char *detail)
{
    jw_object(b, NULL);
    jw_str(b, "name", name);
    jw_bool(b, "ok", ok);
    jw_str(b, "detail", detail);
    jw_end_object(b);
    *ready = *ready && ok;
}

static void check_database(struct request *rq, struct buf *b, bool *ready)
{
    static const char SQL[] = "SELECT count(*) FROM run";
    struct db_rows rows;
    struct err e = {0};
    const char *detail = "no connection";
    bool ok = rq->db && db_query(rq->db, rq->arena, SQL, 0, NULL, &rows, &e) == ST_OK;
    if (ok) {
        detail = "answers, and the schema is there";
    } else if (e.msg[0]) {
        detail = "does not answer"; // the reason is for the log: this address is open to anybody
    }
    add_check(b, ready, "database", ok, detail);
}

static void check_blobs(struct request *rq, struct buf *b, bool *ready)
{
    int64_t room = blob_room_bytes(rq->server->blobs);
    int64_t floor = blob_floor_bytes(rq->server->blobs); // below it every upload is refused
    const char *detail = arena_fmt(rq->arena, "%" PRId64 " MiB free, %" PRId64 " are kept so",
                                   room / (1024 * 1024), floor / (1024 * 1024));
    add_check(b, ready, "blob_store", room >= 0,
              room >= 0 ? "is there" : "its disk does not say how much is free");
    add_check(b, ready, "disk", room >= floor, room >= 0 ? detail : "nobody knows what is free");
}

static enum status get_ready(struct request *rq, struct response *rs, struct err *e)
{
    (void)e;
    bool ready = true;
    struct buf checks;
    buf_init(&checks, 8192);
    jw_array(&checks, NULL);
    check_database(rq, &checks, &ready);
    check_blobs(rq, &checks, &ready);
    jw_end_array(&checks);

    struct buf b;
    buf_init(&b, 16384);
    jw_object(&b, NULL);
    jw_str(&b, "status", ready ? "ready" : "not_ready");
    jw_raw(&b, "checks", checks.data);
    jw_end_object(&b);
    buf_release(&checks);
    respond_buf(rq, rs, ready ? 200 : 503, &b);
    return ST_OK;
}

static enum status get_version(struct request *rq, struct response *rs, struct err *e)
{
    (void)e;
    char pin[PIN_TEXT_MAX + 1];
    struct buf b;
    tls_pin(rq->server->certificate, pin);
    buf_init(&b, 4096);
    jw_object(&b, NULL);
    jw_str(&b, "version", PHOTON_VERSION);
    jw_str(&b, "commit", PHOTON_COMMIT);
    jw_raw(&b, "protocol", PHOTON_PROTOCOL);
    jw_str(&b, "public_url", rq->server->public_url);
    jw_str(&b, "pin", pin[0] ? pin : NULL);
    jw_end_object(&b);
    respond_buf(rq, rs, 200, &b);
    return ST_OK;
}

static enum status get_openapi(struct request *rq, struct response *rs, struct err *e)
{
    (void)rq;
    (void)e;
    rs->status = 200;
    rs->content_type = "application/json";
    rs->body = openapi_text;
    // cppcheck-suppress comparePointers; both mark the one object that the assembler placed
    rs->body_len = (size_t)(openapi_text_end - openapi_text);
    return ST_OK;
}

/* ---- the page ---- */

static enum status send_file(struct request *rq, struct response *rs, const char *name,
                             struct err *e)
{
    const struct static_file *f = static_file_find(name);
    if (!f) {
        return problem(rq, rs, 404, "NOT_FOUND", NULL, "there is no such file");
    }
    char *bytes = NULL;
    size_t len = 0;
    TRY(static_file_read(&bytes, &len, rq->arena, f, e));
    rs->status = 200;
    rs->content_type = f->content_type;
    rs->body = bytes;
    rs->body_len = len;
    response_header(rs, "Cache-Control",
                    f->immutable ? "public, max-age=31536000, immutable" : "no-cache");
    return ST_OK;
}

static enum status get_page(struct request *rq, struct response *rs, struct err *e)
{
    if (!static_file_find("index.html")) {
        return problem(rq, rs, 404, "NO_DASHBOARD",
                       "start photon-server with --web and the folder of the dashboard",
                       "the dashboard's files are not there");
    }
    return send_file(rq, rs, "index.html", e);
}

static enum status get_asset(struct request *rq, struct response *rs, struct err *e)
{
    return send_file(rq, rs, rq->params[0], e);
}

static enum status get_icon(struct request *rq, struct response *rs, struct err *e)
{
    return send_file(rq, rs, "icon.svg", e);
}

/* ---- Prometheus ---- */

static const char SQL_METRICS[] =
    "WITH live AS (SELECT id, name, coalesce(head, 0) AS head FROM run"
    "   WHERE state IN ('created', 'running', 'paused')),"
    " line (family, labels, value) AS ("
    "   SELECT 'photon_round', format('{run=\"%s\"}', name), head::double precision FROM live"
    "   UNION ALL SELECT 'photon_rounds_completed_total', format('{run=\"%s\"}', name), head FROM "
    "live"
    "   UNION ALL SELECT 'photon_tokens_trained_total', format('{run=\"%s\"}', l.name),"
    "     coalesce((SELECT sum(tokens) FROM round WHERE run_id = l.id AND state = 'closed'), 0)"
    "     FROM live l"
    "   UNION ALL SELECT v.family, format('{run=\"%s\"}', l.name), v.value"
    "     FROM live l CROSS JOIN LATERAL (SELECT extract(epoch FROM closed_at - opened_at) AS "
    "round_s,"
    "       aggregate_s FROM round WHERE run_id = l.id AND state = 'closed' AND number = l.head) q"
    "     CROSS JOIN LATERAL (VALUES ('photon_round_duration_seconds', q.round_s),"
    "       ('photon_aggregation_duration_seconds', q.aggregate_s)) v (family, value)"
    "   UNION ALL SELECT 'photon_eval_loss', format('{run=\"%s\"}', l.name), c.eval_loss"
    "     FROM live l CROSS JOIN LATERAL (SELECT eval_loss FROM checkpoint WHERE run_id = l.id"
    "       AND eval_loss IS NOT NULL ORDER BY number DESC LIMIT 1) c"
    "   UNION ALL SELECT v.family, format('{run=\"%s\",silo=\"%s\",codec=\"%s\"}', l.name, s.name,"
    "       w.codec), v.value"
    "     FROM live l JOIN round q ON q.run_id = l.id AND q.state = 'closed' AND q.number = l.head"
    "     JOIN update w ON w.round_id = q.id AND w.state = 'accepted'"
    "     JOIN silo s ON s.id = w.silo_id"
    "     CROSS JOIN LATERAL (VALUES ('photon_codec_error', w.codec_error),"
    "       ('photon_codec_fallback_share', w.fallback_share)) v (family, value)"
    "   UNION ALL SELECT 'photon_silos', format('{state=\"%s\"}', v.state), (SELECT count(*)"
    "     FROM silo s WHERE CASE WHEN s.state <> 'active' THEN s.state"
    "       WHEN " SILO_HEARD_SQL(
        "s") " THEN 'live' ELSE 'gone' END = v.state)"
             "     FROM (VALUES ('live'), ('gone'), ('paused'), ('revoked')) v (state)"
             "   UNION ALL SELECT 'photon_silo_last_seen_timestamp_seconds', "
             "format('{silo=\"%s\"}', name),"
             "     extract(epoch FROM seen_at) FROM silo WHERE state <> 'revoked' AND seen_at IS "
             "NOT NULL"
             "   UNION ALL SELECT 'photon_update_received_bytes_total', format('{silo=\"%s\"}', "
             "s.name),"
             "     sum(upload_bytes) FROM traffic t JOIN silo s ON s.id = t.silo_id"
             "     WHERE s.state <> 'revoked' GROUP BY s.name"
             "   UNION ALL SELECT 'photon_weights_sent_bytes_total', format('{silo=\"%s\"}', "
             "s.name),"
             "     sum(download_bytes) FROM traffic t JOIN silo s ON s.id = t.silo_id"
             "     WHERE s.state <> 'revoked' GROUP BY s.name"
             "   UNION ALL SELECT 'photon_updates_rejected_total', format('{reason=\"%s\"}', "
             "lower(code)),"
             "     count(*) FROM upload WHERE state = 'refused' GROUP BY code"
             " ) SELECT family, labels, value FROM line WHERE value IS NOT NULL ORDER BY family, "
             "labels";

static const struct family {
    const char *name;
    const char *type;
    const char *help;
} families[] = {
    {"photon_aggregation_duration_seconds", "gauge", "Folding the newest closed round's updates."},
    {"photon_codec_error", "gauge", "What a codec left out of the newest round's update."},
    {"photon_codec_fallback_share", "gauge", "Parameters that went one rung up, of all."},
    {"photon_eval_loss", "gauge", "Newest evaluation, mean token loss."},
    {"photon_round", "gauge", "Closed rounds of a live run."},
    {"photon_round_duration_seconds", "gauge", "Opening to closing of the newest closed round."},
    {"photon_rounds_completed_total", "counter", "Closed rounds of a live run."},
    {"photon_silo_last_seen_timestamp_seconds", "gauge", "When a silo spoke last."},
    {"photon_silos", "gauge", "Silos by state."},
    {"photon_tokens_trained_total", "counter", "Tokens in closed rounds of a live run."},
    {"photon_update_received_bytes_total", "counter", "Bytes of updates received."},
    {"photon_updates_rejected_total", "counter", "Updates refused, by reason."},
    {"photon_weights_sent_bytes_total", "counter", "Bytes of weights sent."},
};

static void print_family(struct buf *b, const char *name, const char *type, const char *help)
{
    buf_fmt(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* Rows come sorted by family, as the table is. */
static void print_rows(struct buf *b, const struct db_rows *rows)
{
    int row = 0;
    for (size_t f = 0; f < sizeof(families) / sizeof(families[0]); f++) {
        bool begun = false;
        while (row < rows->count && strcmp(db_text(rows, row, 0), families[f].name) == 0) {
            if (!begun) {
                print_family(b, families[f].name, families[f].type, families[f].help);
                begun = true;
            }
            buf_fmt(b, "%s%s %s\n", families[f].name, db_text(rows, row, 1), db_text(rows, row, 2));
            row++;
        }
    }
}

static void print_pool(struct buf *b, const char *name, struct db_pool *pool)
{
    int busy = 0;
    int idle = 0;
    db_pool_count(pool, &busy, &idle);
    buf_fmt(b, "photon_db_connections{pool=\"%s\",state=\"busy\"} %d\n", name, busy);
    buf_fmt(b, "photon_db_connections{pool=\"%s\",state=\"idle\"} %d\n", name, idle);
}

static enum status get_metrics(struct request *rq, struct response *rs, struct err *e)
{
    struct db_rows rows;
    TRY(db_query(rq->db, rq->arena, SQL_METRICS, 0, NULL, &rows, e));
    struct buf b;
    buf_init(&b, 8 * 1024 * 1024);
    print_family(&b, "photon_build_info", "gauge", "What is running.");
    buf_str(&b, "photon_build_info{version=\"" PHOTON_VERSION "\",commit=\"" PHOTON_COMMIT
                "\",protocol=\"" PHOTON_PROTOCOL "\"} 1\n");
    print_family(&b, "photon_start_time_seconds", "gauge", "When this process started.");
    buf_fmt(&b, "photon_start_time_seconds %.3f\n", (double)rq->server->started_ms / 1e3);
    print_family(&b, "photon_blob_free_bytes", "gauge", "Room left for weights and updates.");
    int64_t room = blob_free_bytes(rq->server->blobs);
    buf_fmt(&b, "photon_blob_free_bytes %" PRId64 "\n", room > 0 ? room : 0);
    print_family(&b, "photon_blob_floor_bytes", "gauge", "Room that uploads may not take.");
    buf_fmt(&b, "photon_blob_floor_bytes %" PRId64 "\n", blob_floor_bytes(rq->server->blobs));
    print_family(&b, "photon_streams", "gauge", "Event streams that are open.");
    buf_fmt(&b, "photon_streams %d\n", streams_count(rq->server->streams));
    print_family(&b, "photon_db_connections", "gauge", "Connections of the requests' pools.");
    print_pool(&b, "control", rq->server->pool);
    print_pool(&b, "bulk", rq->server->bulk_pool);
    print_rows(&b, &rows);
    stats_print(&b);
    rs->content_type = "text/plain; version=0.0.4; charset=utf-8";
    respond_buf(rq, rs, 200, &b);
    return ST_OK;
}

// clang-format off
#define PAGE(pattern) {"GET", pattern, ROLES_ANYBODY, LISTENER_CONTROL, 0, get_page, NULL}
const struct route routes_misc[] = {
    {"GET", "/healthz", ROLES_ANYBODY, LISTENER_CONTROL | LISTENER_BULK, 0, get_health, NULL},
    {"GET", "/readyz", ROLES_ANYBODY, LISTENER_CONTROL, 0, get_ready, NULL},
    {"GET", "/version", ROLES_ANYBODY, LISTENER_CONTROL, 0, get_version, NULL},
    {"GET", "/openapi.json", ROLES_ANYBODY, LISTENER_CONTROL, 0, get_openapi, NULL},
    {"GET", "/metrics", ROLES_PEOPLE, LISTENER_CONTROL, 0, get_metrics, NULL},
    {"GET", "/assets/{*}", ROLES_ANYBODY, LISTENER_CONTROL, 0, get_asset, NULL},
    {"GET", "/favicon.ico", ROLES_ANYBODY, LISTENER_CONTROL, 0, get_icon, NULL},
    PAGE("/"),
    PAGE("/login"),
    PAGE("/runs"),
    PAGE("/runs/{run}"),
    PAGE("/compare"),
    PAGE("/experiments"),
    PAGE("/experiments/{experiment}"),
    PAGE("/silos"),
    PAGE("/silos/{silo}"),
    PAGE("/audit"),
    PAGE("/tokens"),
    {NULL, NULL, 0, 0, 0, NULL, NULL},
};
#undef PAGE
// clang-format on
