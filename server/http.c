/*
 * libmicrohttpd's callbacks. Control: the event loop gathers the body, suspends the connection and
 * gives the exchange to the workers. Bulk: each connection has a thread of its own, so handlers run
 * where they are called. What decides anything is elsewhere: guard.c,
 * route.c, auth.c, the handlers.
 */
#include "server/http.h"

#include <microhttpd.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/id.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/mem.h"
#include "server/guard.h"
#include "server/http_int.h"
#include "server/http_listen.h"
#include "server/http_tls.h"
#include "server/server.h"
#include "server/stats.h"

enum {
    CONTROL_POOL = 32 * 1024, /* of a connection: head, pieces of the body; all of it is touched */
    BULK_POOL = 256 * 1024,
    CONTROL_TIMEOUT_S = 30,
    BULK_SNDBUF = 512 * 1024,
    BULK_STACK = 512 * 1024,
    DISCARD_MAX = 1024 * 1024,
    BODIES_MAX = 128 * 1024 * 1024,
    STOP_WAIT_MS = 5000,
    CONTROL_CONNECTIONS = 8192,
    BULK_CONNECTIONS = 512,
    BULK_OF_TOKEN = 16, // at once: one silo must not take the threads of the others
};

const char *request_header(const struct request *rq, const char *name)
{
    const struct exchange *x = rq->conn;
    return MHD_lookup_connection_value(x->mhd, MHD_HEADER_KIND, name);
}

const char *request_query(const struct request *rq, const char *name)
{
    const struct exchange *x = rq->conn;
    return MHD_lookup_connection_value(x->mhd, MHD_GET_ARGUMENT_KIND, name);
}

void exchange_resume(struct exchange *x)
{
    MHD_resume_connection(x->mhd);
}

static enum MHD_Result send_answer(struct exchange *x)
{
    return exchange_answer(x) ? MHD_YES : MHD_NO;
}

/* ---- receiving ---- */

struct headers {
    struct guard_header items[GUARD_HEADERS_MAX + 1];
    int count;
};

static enum MHD_Result gather(void *cls, enum MHD_ValueKind kind, const char *name, size_t name_len,
                              const char *value, size_t value_len)
{
    (void)kind;
    struct headers *h = cls;
    h->items[h->count] = (struct guard_header){name, name_len, value, value_len};
    h->count++;
    return h->count <= GUARD_HEADERS_MAX ? MHD_YES : MHD_NO;
}

/* What the head alone decides, without a route. */
static void check_head(struct exchange *x, struct guard_result *g)
{
    struct headers h = {.count = 0};
    (void)MHD_get_connection_values_n(x->mhd, MHD_HEADER_KIND, gather, &h);
    struct err e = {0};
    if (guard_check(g, x->rq.method, x->target, h.items, h.count, &e)) {
        x->close_after = true;
        (void)problem(&x->rq, &x->rs, 400, "MALFORMED_REQUEST", NULL, "%s", e.msg);
    } else if (atomic_load(&x->http->stopping)) {
        (void)problem(&x->rq, &x->rs, 503, "UNAVAILABLE", "try again in a moment",
                      "the server is stopping");
        response_header(&x->rs, "Retry-After", "2");
    }
}

static void find_route(struct exchange *x)
{
    route_find(&x->match, x->rq.method, x->rq.path, x->listener);
    if (x->match.route) {
        for (int i = 0; i < x->match.param_count; i++) {
            x->rq.params[i] = x->match.params[i];
        }
    } else if (x->match.allow[0]) {
        (void)problem(&x->rq, &x->rs, 405, "METHOD_NOT_ALLOWED", NULL,
                      "%.20s is not among the methods of this address: %s", x->rq.method,
                      x->match.allow);
        response_header(&x->rs, "Allow", x->match.allow);
    } else {
        (void)problem(&x->rq, &x->rs, 404, "NOT_FOUND", "the routes are listed at /openapi.json",
                      "there is no such address");
    }
}

static bool type_is(const char *header, const char *type)
{
    size_t len = strlen(type);
    return header && strncasecmp(header, type, len) == 0 && strchr("; \t", header[len]);
}

static enum MHD_Result check_argument(void *cls, enum MHD_ValueKind kind, const char *name,
                                      size_t name_len, const char *value, size_t value_len)
{
    (void)kind;
    bool *ok = cls;
    *ok = utf8_valid(name, name_len) && (!value || utf8_valid(value, value_len));
    return *ok ? MHD_YES : MHD_NO;
}

/* PostgreSQL takes UTF-8 alone; what is not cannot name anything of ours. */
static void check_text(struct exchange *x)
{
    bool ok = utf8_valid(x->rq.path, strlen(x->rq.path));
    if (ok) {
        (void)MHD_get_connection_values_n(x->mhd, MHD_GET_ARGUMENT_KIND, check_argument, &ok);
    }
    if (!ok) {
        (void)problem(&x->rq, &x->rs, 400, "MALFORMED_REQUEST", NULL,
                      "the address is not UTF-8 when decoded");
    }
}

/* May this route take that body? */
static void check_body(struct exchange *x, const struct guard_result *g)
{
    const struct route *r = x->match.route;
    if (r->sink && g->content_length < 0) {
        x->close_after = true;
        (void)problem(&x->rq, &x->rs, 411, "LENGTH_REQUIRED", NULL,
                      "an upload must say its length; Transfer-Encoding is not taken here");
    } else if (g->content_length > (int64_t)r->body_max || (g->chunked && r->body_max == 0)) {
        (void)problem(&x->rq, &x->rs, 413, "BODY_TOO_LARGE", NULL,
                      "the body may have %zu bytes at most", r->body_max);
    } else if (r->body_max > 0) {
        const char *wanted = r->sink ? "multipart/form-data" : "application/json";
        if (!type_is(request_header(&x->rq, "Content-Type"), wanted)) {
            (void)problem(&x->rq, &x->rs, 415, "UNSUPPORTED_MEDIA_TYPE", NULL,
                          "the body must be %s", wanted);
        }
    }
}

/* Bulk: who asks, and what the sink says, before the body. */
static void open_bulk(struct exchange *x)
{
    if (!exchange_db_take(x)) {
        return;
    }
    const struct sink *sink = x->match.route->sink;
    struct err e = {0};
    enum status st = exchange_authenticate(x, &e);
    if (st == ST_OK && x->rs.status == 0 && x->rq.who.token_id[0] &&
        conn_owned(&x->http->conns, x->conn, x->rq.who.token_id) > BULK_OF_TOKEN) {
        st = err_set(&e, ST_LIMIT, "one token may have %d transfers at once", BULK_OF_TOKEN);
    }
    if (st == ST_OK && x->rs.status == 0 && sink) {
        st = sink->begin(&x->rq, &x->rs, x->content_length, &e);
        x->sink_open = st == ST_OK && x->rs.status == 0;
    }
    exchange_db_give(x);
    if (st) {
        exchange_finish(x, st, &e);
    }
}

static enum MHD_Result begin(struct exchange *x, const char *method, const char *url)
{
    x->rq.method = method;
    x->rq.path = url;
    x->head = strcmp(method, "HEAD") == 0;
    conn_phase(&x->http->conns, x->conn, CONN_BODY);

    struct guard_result g = {.content_length = -1};
    check_head(x, &g);
    x->content_length = g.content_length;
    if (x->rs.status == 0) {
        check_text(x);
    }
    if (x->rs.status == 0) {
        find_route(x);
    }
    if (x->rs.status == 0) {
        check_body(x, &g);
    }
    if (x->rs.status == 0 && x->listener == LISTENER_BULK) {
        open_bulk(x);
    }
    if (x->rs.status == 0) {
        x->step = EXCHANGE_BODY;
        return MHD_YES;
    }
    // An answer in this call ends the connection. Where no body follows it can wait for the next.
    x->step = EXCHANGE_ANSWERED;
    return g.content_length > 0 || g.chunked ? send_answer(x) : MHD_YES;
}

/* Answers can only be queued before a body or after it, so a refusal in between waits. */
static void refuse_rest(struct exchange *x)
{
    x->sink_open = false;
    x->step = EXCHANGE_DISCARD;
}

/* A body is in memory before anybody has asked whose it is: the large ones have a bound together.
 */
static bool may_hold(struct exchange *x)
{
    size_t more = x->body.size - x->body_held;
    size_t all = atomic_fetch_add(&x->http->held, more) + more;
    x->body_held += more;
    return all <= BODIES_MAX || x->body.size <= LIMIT_CONTROL_BODY;
}

static void drop_body(struct exchange *x)
{
    if (x->body.data) {
        buf_release(&x->body);
    }
    (void)atomic_fetch_sub(&x->http->held, x->body_held);
    x->body_held = 0;
}

static void take_body(struct exchange *x, const char *data, size_t len)
{
    const struct route *r = x->match.route;
    x->received += (int64_t)len;
    if (!r->sink) {
        if (!x->body.data) {
            buf_init(&x->body, r->body_max);
        }
        buf_add(&x->body, data, len);
        if (x->body.full) { // chunked: no Content-Length has told before
            (void)problem(&x->rq, &x->rs, 413, "BODY_TOO_LARGE", NULL,
                          "the body may have %zu bytes at most", r->body_max);
            refuse_rest(x);
        } else if (!may_hold(x)) {
            struct err busy = {0};
            exchange_finish(x, err_set(&busy, ST_RETRY, "too many bodies are under way"), &busy);
            refuse_rest(x);
            drop_body(x);
        }
        return;
    }
    struct err e = {0};
    enum status st = r->sink->bytes(&x->rq, &x->rs, data, len, &e);
    if (st) {
        exchange_finish(x, st, &e);
    }
    if (x->rs.status) {
        refuse_rest(x);
    }
}

/* Bulk, the whole body is here: the handler runs on this connection's thread. */
static void run_bulk(struct exchange *x)
{
    struct err e = {0};
    enum status st = ST_OK;
    const struct sink *sink = x->match.route->sink;
    x->sink_open = false;
    if (sink && sink->end) {
        sink->end(&x->rq);
    }
    if (exchange_db_take(x)) {
        st = x->match.route->handler(&x->rq, &x->rs, &e);
        exchange_db_give(x);
    }
    if (x->rs.parked) {
        x->rs.status = 0; // nobody can wait here; the missing answer is logged as our mistake
    }
    exchange_finish(x, st, &e);
}

static enum MHD_Result end_body(struct exchange *x)
{
    conn_phase(&x->http->conns, x->conn, CONN_WORK);
    x->rq.body = x->body.data ? x->body.data : "";
    x->rq.body_len = x->body.len;
    if (x->listener == LISTENER_BULK) {
        run_bulk(x);
        return send_answer(x);
    }
    x->step = EXCHANGE_WORK;
    MHD_suspend_connection(x->mhd);
    work_submit(x->http->work, x);
    return MHD_YES;
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *mhd, const char *url,
                                  const char *method, const char *version, const char *data,
                                  size_t *data_size, void **con_cls)
{
    (void)cls;
    (void)version;
    (void)mhd;
    struct exchange *x = *con_cls;
    size_t len = *data_size;
    *data_size = 0;
    switch (x->step) {
    case EXCHANGE_NEW:
        *data_size = len; // none yet
        return begin(x, method, url);
    case EXCHANGE_BODY:
        if (len == 0) {
            return end_body(x);
        }
        conn_bytes(&x->http->conns, x->conn, len);
        take_body(x, data, len);
        return MHD_YES;
    case EXCHANGE_DISCARD:
        if (len == 0) {
            return send_answer(x);
        }
        conn_bytes(&x->http->conns, x->conn, len);
        x->received += (int64_t)len;
        // A chunked body has no end that we know; one with a length was bounded at its head.
        return x->content_length >= 0 || x->received < DISCARD_MAX + (int64_t)x->body.max ? MHD_YES
                                                                                          : MHD_NO;
    case EXCHANGE_ANSWERED:
        return send_answer(x);
    case EXCHANGE_WORK:
    case EXCHANGE_SENT:
    default:
        return MHD_YES;
    }
}

/* ---- the life of connections and exchanges ---- */

struct listening {
    struct http *http;
    enum listener listener;
};

static void *on_target(void *cls, const char *target, struct MHD_Connection *mhd)
{
    const struct listening *l = cls;
    struct exchange *x = mem_alloc(sizeof(*x));
    x->http = l->http;
    x->listener = l->listener;
    x->mhd = mhd;
    x->match.index = -1;
    x->started_s = clock_mono_s();
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    x->conn = info->socket_context;
    (void)snprintf(x->target, sizeof(x->target), "%s", target);
    if (strlen(target) >= sizeof(x->target)) {
        x->target[0] = '\0'; // too long: the guard refuses it
    }
    id_new('q', x->id);
    x->rq = (struct request){
        .server = l->http->server,
        .arena = arena_new(LIMIT_REQUEST_ARENA),
        .method = "",
        .path = "",
        .id = x->id,
        .conn = x,
        .bulk = l->listener == LISTENER_BULK,
    };
    return x;
}

/* Of an answer that was cut, what the peer's kernel took of it: head and TLS included, so at most.
 */
static int64_t sent_of_file(const struct exchange *x, enum MHD_RequestTerminationCode how)
{
    int64_t taken = how == MHD_REQUEST_TERMINATED_COMPLETED_OK ? -1 : conn_taken(x->conn);
    int64_t sent = taken < 0 ? x->rs.file_len : taken - x->taken_before;
    return sent < x->rs.file_len ? sent : x->rs.file_len;
}

static void on_completed(void *cls, struct MHD_Connection *mhd, void **con_cls,
                         enum MHD_RequestTerminationCode how)
{
    (void)cls;
    (void)mhd;
    struct exchange *x = *con_cls;
    if (!x) {
        return;
    }
    if (x->sink_open && x->match.route->sink->abandon) {
        x->match.route->sink->abandon(&x->rq);
    }
    if (x->rs.sent && x->step == EXCHANGE_SENT) {
        x->rs.sent(&x->rq, sent_of_file(x, how));
    }
    if (x->rs.stream) {
        conn_carries(&x->http->conns, x->conn, NULL);
        stream_close(x->rq.state); // also when the peer left before it began
    }
    if (x->rs.fd > 0) {
        (void)close(x->rs.fd);
    }
    double seconds = clock_mono_s() - x->started_s;
    stats_count(x->match.index, x->rs.status, seconds);
    log_debug("request id=%s %s %s status=%d ms=%.1f end=%d", x->id, x->rq.method,
              x->rq.path[0] ? x->rq.path : "-", x->rs.status, seconds * 1e3, (int)how);
    conn_phase(&x->http->conns, x->conn, CONN_IDLE);
    drop_body(x);
    arena_free(x->rq.arena);
    mem_free(x);
    *con_cls = NULL;
}

static void on_connection(void *cls, struct MHD_Connection *mhd, void **ctx,
                          enum MHD_ConnectionNotificationCode code)
{
    const struct listening *l = cls;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        int fd = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
        if (l->listener == LISTENER_BULK) {
            int size = BULK_SNDBUF;
            (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
        }
        *ctx = conn_opened(&l->http->conns, fd, l->listener);
    } else if (*ctx) {
        conn_closed(&l->http->conns, *ctx);
        *ctx = NULL;
    }
}

static void on_log(void *cls, const char *fmt, va_list ap) __attribute__((format(printf, 2, 0)));

static void on_log(void *cls, const char *fmt, va_list ap)
{
    (void)cls;
    char text[256];
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    text[strcspn(text, "\r\n")] = '\0';
    log_debug("libmicrohttpd: %s", text);
}

/* ---- start and stop ---- */

static struct listening listenings[3]; // what the callbacks are given; one http in a process

static enum status start_daemon(struct http *h, enum listener l, struct err *e)
{
    bool bulk = l == LISTENER_BULK;
    unsigned limit = (unsigned)http_connection_limit(bulk ? BULK_CONNECTIONS : CONTROL_CONNECTIONS);
    listenings[l] = (struct listening){.http = h, .listener = l};

    struct MHD_OptionItem o[16];
    int n = 0;
    o[n++] = (struct MHD_OptionItem){MHD_OPTION_LISTEN_SOCKET, h->listen_fds[l], NULL};
    o[n++] = (struct MHD_OptionItem){MHD_OPTION_CONNECTION_MEMORY_LIMIT,
                                     bulk ? BULK_POOL : CONTROL_POOL, NULL};
    o[n++] = (struct MHD_OptionItem){MHD_OPTION_CONNECTION_TIMEOUT,
                                     bulk ? HTTP_BULK_TIMEOUT_S : CONTROL_TIMEOUT_S, NULL};
    o[n++] = (struct MHD_OptionItem){MHD_OPTION_CONNECTION_LIMIT, (intptr_t)limit, NULL};
    // One address may be many silos behind one NAT, but never everybody.
    o[n++] = (struct MHD_OptionItem){MHD_OPTION_PER_IP_CONNECTION_LIMIT,
                                     (intptr_t)(bulk ? limit / 4 : limit / 2), NULL};
    if (bulk) {
        o[n++] = (struct MHD_OptionItem){MHD_OPTION_THREAD_STACK_SIZE, BULK_STACK, NULL};
    } else {
        long cores = sysconf(_SC_NPROCESSORS_ONLN);
        o[n++] = (struct MHD_OptionItem){MHD_OPTION_THREAD_POOL_SIZE, cores > 1 ? cores : 2, NULL};
    }
    if (h->tls) {
        o[n++] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_CERT_CALLBACK, 0, http_tls_callback()};
        o[n++] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_PRIORITIES, 0, http_tls_priorities()};
    }
    o[n] = (struct MHD_OptionItem){MHD_OPTION_END, 0, NULL};

    unsigned flags = MHD_USE_ERROR_LOG | (h->tls ? MHD_USE_TLS : 0U);
    flags |= bulk ? MHD_USE_POLL | MHD_USE_ITC | MHD_USE_INTERNAL_POLLING_THREAD |
                        MHD_USE_THREAD_PER_CONNECTION
                  : MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME;
    h->daemons[l] = MHD_start_daemon(
        flags, 0, NULL, NULL, on_request, &listenings[l], MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL,
        MHD_OPTION_URI_LOG_CALLBACK, on_target, &listenings[l], MHD_OPTION_NOTIFY_COMPLETED,
        on_completed, &listenings[l], MHD_OPTION_NOTIFY_CONNECTION, on_connection, &listenings[l],
        MHD_OPTION_ARRAY, o, MHD_OPTION_END);
    if (!h->daemons[l]) {
        return err_set(e, ST_IO, "cannot start the %s listener", bulk ? "bulk" : "control");
    }
    return ST_OK;
}

enum status http_start(struct http **out, struct server *server, const struct http_config *c,
                       struct err *e)
{
    struct http *h = mem_alloc(sizeof(*h));
    h->server = server;
    atomic_store(&h->beat_ms, clock_mono_ms());
    h->listen_fds[LISTENER_CONTROL] = -1;
    h->listen_fds[LISTENER_BULK] = -1;
    conns_init(&h->conns);
    paced_init(&h->paced);
    server->streams = streams_new(server);
    h->work = work_new(h, c->workers);

    h->tls = c->tls;
    server->tls = c->tls;
    enum status st =
        http_listen(&h->listen_fds[LISTENER_CONTROL], &server->control_port, c->listen, h->tls, e);
    if (st == ST_OK) {
        st = http_listen(&h->listen_fds[LISTENER_BULK], &server->bulk_port, c->bulk_listen, h->tls,
                         e);
    }
    if (st == ST_OK) {
        st = start_daemon(h, LISTENER_CONTROL, e);
    }
    if (st == ST_OK) {
        st = start_daemon(h, LISTENER_BULK, e);
    }
    if (st) {
        http_stop(h);
        return st;
    }
    *out = h;
    return ST_OK;
}

int64_t http_beat_ms(const struct http *h)
{
    return atomic_load(&h->beat_ms);
}

void http_stop(struct http *h)
{
    atomic_store(&h->stopping, true);
    for (int l = LISTENER_CONTROL; l <= LISTENER_BULK; l++) {
        if (h->daemons[l]) {
            (void)MHD_quiesce_daemon(h->daemons[l]);
        }
        if (h->listen_fds[l] >= 0) {
            (void)close(h->listen_fds[l]);
        }
    }
    streams_end(h->server->streams);
    int64_t until = clock_mono_ms() + STOP_WAIT_MS;
    work_drain(h->work); // who waits for a task must not wait for other people's chunks
    while (conn_busy(&h->conns, LISTENER_BULK) > 0 && clock_mono_ms() < until) {
        clock_sleep_ms(20);
    }
    work_drain(h->work);
    while ((streams_count(h->server->streams) > 0 || conn_busy(&h->conns, LISTENER_CONTROL) > 0) &&
           clock_mono_ms() < until) {
        clock_sleep_ms(20);
    }
    work_drain(h->work); // what came in the meantime
    paced_end(&h->paced);
    for (int l = LISTENER_CONTROL; l <= LISTENER_BULK; l++) {
        if (h->daemons[l]) {
            MHD_stop_daemon(h->daemons[l]);
        }
    }
    work_stop(h->work);
    streams_stop(h->server->streams);
    h->server->streams = NULL;
    conns_destroy(&h->conns);
    paced_destroy(&h->paced);
    mem_free(h);
}
