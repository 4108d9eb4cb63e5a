/* /api/v1/series, its CSV, and /api/v1/stream: what the dashboard draws, and how it stays live. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/id.h"
#include "common/limits.h"
#include "server/api.h"
#include "server/series_read.h"
#include "server/server.h"
#include "server/stream.h"

enum {
    RUNS_MAX = 64,
    ANSWER_MAX = 64 * 1024 * 1024,
    POINTS_DEFAULT = 1500,
    THIN_MEMORY = 4 * 1024 * 1024
};

struct wish {
    const char *runs[RUNS_MAX];
    int run_count;
    const struct series_metric *metric;
    enum series_x x;
    const char *x_name;
    const char *silo;
    struct series_want want;
};

/* "a,b": valid ids, in out; -1 when one is not, or there are too many. */
static int split_ids(const char **out, int max, struct arena *a, char prefix, const char *text)
{
    int count = 0;
    const char *p = text;
    for (;;) {
        size_t len = strcspn(p, ",");
        const char *id = arena_fmt(a, "%.*s", (int)(len < 64 ? len : 64), p);
        if (count == max || !id_valid(prefix, id)) {
            return -1;
        }
        out[count++] = id;
        if (p[len] == '\0') {
            return count;
        }
        p += len + 1;
    }
}

/* A number in the query; NaN when absent. False: rs is a 400. */
static bool query_num(double *out, struct request *rq, struct response *rs, const char *name)
{
    const char *text = request_query(rq, name);
    *out = (double)NAN;
    if (!text || !text[0]) {
        return true;
    }
    char *end = NULL;
    double v = strtod(text, &end);
    size_t len = strlen(text);
    if (*end != '\0' || !isfinite(v) || strspn(text, "0123456789+-.eE") != len || len > 40) {
        (void)bad_parameter(rq, rs, name, "must be a number");
        return false;
    }
    *out = v;
    return true;
}

static bool read_what(struct wish *w, struct request *rq, struct response *rs)
{
    const char *runs = request_query(rq, "run");
    w->run_count = runs ? split_ids(w->runs, RUNS_MAX, rq->arena, 'r', runs) : -1;
    if (w->run_count < 1) {
        (void)bad_parameter(rq, rs, "run", "must be 1 to 64 run ids, separated by commas");
        return false;
    }
    const char *metric = request_query(rq, "metric");
    w->metric = metric ? series_metric_find(metric) : NULL;
    if (!w->metric) {
        (void)bad_parameter(rq, rs, "metric", "must be one of GET …/runs/{run}/metrics");
        return false;
    }
    const char *x = request_query(rq, "x");
    int axis = series_x_parse(x ? x : "round");
    if (axis < 0) {
        (void)bad_parameter(rq, rs, "x", "must be round, step, tokens, time, elapsed or bytes");
        return false;
    }
    w->x = (enum series_x)axis;
    w->x_name = x ? x : "round";
    const char *silo = request_query(rq, "silo");
    const char *ids[RUNS_MAX];
    if (silo && silo[0] && strcmp(silo, "all") != 0 &&
        split_ids(ids, RUNS_MAX, rq->arena, 's', silo) < 0) {
        (void)bad_parameter(rq, rs, "silo", "must be all, or silo ids separated by commas");
        return false;
    }
    w->silo = silo;
    return true;
}

static bool read_how(struct wish *w, struct request *rq, struct response *rs)
{
    const char *scale = request_query(rq, "scale");
    if (scale && strcmp(scale, "linear") != 0 && strcmp(scale, "log") != 0) {
        (void)bad_parameter(rq, rs, "scale", "must be linear or log");
        return false;
    }
    w->want.log_x = scale && strcmp(scale, "log") == 0;
    int64_t points = 0;
    if (!query_int(&points, rq, rs, "points", 2, LIMIT_SERIES_POINTS, POINTS_DEFAULT) ||
        !query_num(&w->want.from, rq, rs, "from") || !query_num(&w->want.to, rq, rs, "to") ||
        !query_num(&w->want.smooth, rq, rs, "smooth")) {
        return false;
    }
    w->want.points = (int32_t)points;
    w->want.exp = w->metric->exp;
    w->want.smooth = isnan(w->want.smooth) ? 0.0 : w->want.smooth;
    if (w->want.smooth < 0.0 || w->want.smooth > 0.999) {
        (void)bad_parameter(rq, rs, "smooth", "must be from 0 to 0.999");
        return false;
    }
    return true;
}

static void column(struct buf *b, const char *key, const struct series_bucket *buckets, int32_t n,
                   double (*value)(const struct series_bucket *b))
{
    jw_array(b, key);
    for (int32_t i = 0; i < n; i++) {
        jw_num(b, NULL, value(&buckets[i]));
    }
    jw_end_array(b);
}

static double bucket_x(const struct series_bucket *b)
{
    return b->x;
}

static double bucket_y(const struct series_bucket *b)
{
    return b->y;
}

static double bucket_smooth(const struct series_bucket *b)
{
    return b->smooth;
}

static double bucket_min(const struct series_bucket *b)
{
    return b->min;
}

static double bucket_max(const struct series_bucket *b)
{
    return b->max;
}

static void print_series(struct buf *b, const struct series *s, const struct series_want *want)
{
    struct arena *a = arena_new(THIN_MEMORY);
    struct series_bucket *buckets = NULL;
    int64_t points = 0;
    int32_t n = series_thin(&buckets, a, &points, s->points, s->count, want);
    jw_object(b, NULL);
    jw_str(b, "run", s->run_id);
    jw_str(b, "run_name", s->run_name);
    jw_str(b, "silo", s->silo_id);
    jw_str(b, "silo_name", s->silo_name);
    jw_int(b, "points", points);
    jw_int(b, "shown", n);
    column(b, "xs", buckets, n, bucket_x);
    column(b, "ys", buckets, n, bucket_y);
    if (want->smooth > 0.0) {
        column(b, "smooth", buckets, n, bucket_smooth);
    } else {
        jw_null(b, "smooth");
    }
    column(b, "mins", buckets, n, bucket_min);
    column(b, "maxs", buckets, n, bucket_max);
    jw_end_object(b);
    arena_free(a);
}

/* False: rs holds the problem. */
static bool read_wish(struct wish *w, struct request *rq, struct response *rs)
{
    return read_what(w, rq, rs) && read_how(w, rq, rs);
}

typedef void print_fn(struct buf *b, const struct series *s, const struct wish *w);

/* Run by run, so that memory is that of one run's points and the answer. */
static enum status print_runs(struct buf *b, struct request *rq, const struct wish *w,
                              print_fn *print, struct err *e)
{
    for (int i = 0; i < w->run_count; i++) {
        struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
        struct series_list list = {0};
        enum status st = series_read(&list, a, rq->db, w->runs[i], w->metric, w->x, w->silo, e);
        for (int k = 0; st == ST_OK && k < list.count; k++) {
            print(b, &list.items[k], w);
        }
        arena_free(a);
        if (st) {
            buf_release(b);
            return st;
        }
    }
    return ST_OK;
}

static void json_series(struct buf *b, const struct series *s, const struct wish *w)
{
    print_series(b, s, &w->want);
}

static enum status get_series(struct request *rq, struct response *rs, struct err *e)
{
    struct wish w = {0};
    if (!read_wish(&w, rq, rs)) {
        return ST_OK;
    }
    struct buf b;
    buf_init(&b, ANSWER_MAX);
    jw_object(&b, NULL);
    jw_str(&b, "metric", w.metric->name);
    jw_str(&b, "x", w.x_name);
    jw_array(&b, "series");
    TRY(print_runs(&b, rq, &w, json_series, e));
    jw_end_array(&b);
    jw_end_object(&b);
    respond_buf(rq, rs, 200, &b);
    return ST_OK;
}

/* Names are plain by constraint, so they need no quotes; quoted they stay right if that changes. */
static void csv_text(struct buf *b, const char *text)
{
    buf_str(b, "\"");
    // A spreadsheet would run what begins like this as a formula.
    if (text && text[0] && strchr("=+-@\t\r", text[0])) {
        buf_str(b, "'");
    }
    for (const char *p = text ? text : ""; *p; p++) {
        buf_add(b, *p == '"' ? "\"\"" : p, *p == '"' ? 2 : 1);
    }
    buf_str(b, "\"");
}

static void csv_series(struct buf *b, const struct series *s, const struct wish *w)
{
    for (int64_t i = 0; i < s->count; i++) {
        double y = w->want.exp ? exp(s->points[i].y) : s->points[i].y;
        if (!isfinite(y) || s->points[i].x < w->want.from || s->points[i].x > w->want.to) {
            continue;
        }
        csv_text(b, s->run_id);
        buf_str(b, ",");
        csv_text(b, s->run_name);
        buf_str(b, ",");
        csv_text(b, s->silo_id);
        buf_str(b, ",");
        csv_text(b, s->silo_name);
        buf_fmt(b, ",%.17g,%.17g\r\n", s->points[i].x, y);
    }
}

static enum status get_csv(struct request *rq, struct response *rs, struct err *e)
{
    struct wish w = {0};
    if (!read_wish(&w, rq, rs)) {
        return ST_OK;
    }
    struct buf b;
    buf_init(&b, ANSWER_MAX);
    buf_fmt(&b, "run,run_name,silo,silo_name,%s,%s\r\n", w.x_name, w.metric->name);
    TRY(print_runs(&b, rq, &w, csv_series, e));
    rs->content_type = "text/csv; charset=utf-8; header=present";
    respond_buf(rq, rs, 200, &b);
    if (rs->status != 200) {
        return ST_OK;
    }
    response_header(rs, "Content-Disposition",
                    arena_fmt(rq->arena, "attachment; filename=\"%s.csv\"", w.metric->name));
    return ST_OK;
}

/* ---- the stream ---- */

static enum status get_stream(struct request *rq, struct response *rs, struct err *e)
{
    static const char SQL_RUN[] = "SELECT 1 FROM run WHERE id = $1";
    const char *run = request_query(rq, "run");
    if (run && run[0]) {
        struct db_rows rows;
        TRY(db_query(rq->db, rq->arena, SQL_RUN, 1, &run, &rows, e));
        if (rows.count == 0) {
            return not_found(rq, rs, "run");
        }
    } else {
        run = NULL;
    }
    const char *after =
        request_header(rq, "Last-Event-ID"); // a reconnect knows better than the URL
    after = after && after[0] ? after : request_query(rq, "after");
    struct event_cursor at;
    struct err bad = {0};
    if (after && event_cursor_parse(&at, after, &bad)) {
        return bad_parameter(rq, rs, "after", "must be an event's id");
    }
    rs->status = 200;
    rs->content_type = "text/event-stream";
    response_header(rs, "Cache-Control", "no-store");
    response_header(rs, "X-Accel-Buffering", "no"); // a proxy must pass events on as they come
    if (strcmp(rq->method, "HEAD") == 0) {
        return ST_OK;
    }
    struct stream *s = NULL;
    enum status st =
        stream_open(&s, rq->server->streams, rq->db, run, rq->who.secret, after ? &at : NULL, e);
    if (st == ST_LIMIT) {
        rs->header_count = 0;
        (void)problem(rq, rs, 503, "TOO_MANY_STREAMS", "poll with If-None-Match instead", "%s",
                      e->msg);
        response_header(rs, "Retry-After", "15");
        return ST_OK;
    }
    TRY(st);
    rq->state = s;
    rs->stream = true;
    return ST_OK;
}

// clang-format off
const struct route routes_series[] = {
    {"GET", "/api/v1/series", ROLES_PEOPLE, LISTENER_CONTROL, 0, get_series, NULL},
    {"GET", "/api/v1/series.csv", ROLES_PEOPLE, LISTENER_CONTROL, 0, get_csv, NULL},
    {"GET", "/api/v1/stream", ROLES_PEOPLE, LISTENER_CONTROL, 0, get_stream, NULL},
    {NULL, NULL, 0, 0, 0, NULL, NULL},
};
// clang-format on
