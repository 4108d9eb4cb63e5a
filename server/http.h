/*
 * http.h - the only door to libmicrohttpd: connections in, requests to handlers, responses out.
 *
 * Two listeners. *Control* answers small JSON requests: libmicrohttpd's event loop reads the whole
 * body (bounded by the route), suspends the connection and hands the request to a pool of workers,
 * each with its own database connection; the worker runs the handler, which may block, and the
 * connection is resumed with its response. *Bulk* carries weights and updates: one thread per
 * connection, the body is streamed to the route's sink and never held. Their database connections
 * are of another pool: however many transfers wait for one, control does not.
 *
 * A handler reads `struct request`, fills `struct response`, returns ST_OK. Returning an error
 * status instead makes a problem document of it (RFC 9457) by the one table in http.c; problem()
 * fills a response with a particular code. Everything a handler allocates lives in rq->arena,
 * which is freed after the response was sent.
 *
 * Waiting: a control handler that has nothing to say yet calls response_park(): the request is put
 * aside without a thread, and the handler is called again (rq->attempt + 1) when hub_wake() names
 * its topic or one second has passed, until rq->deadline; then it must answer.
 */
#ifndef SERVER_HTTP_H
#define SERVER_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/arena.h"
#include "common/buf.h"
#include "common/hash.h"
#include "common/json.h"
#include "common/status.h"
#include "server/db.h"

struct pace;   /* server/pace.h */
struct server; /* server/server.h: what handlers share: configuration, database pool, blob store,
                  hub */

/* Workers of the control listener. */
enum { HTTP_WORKERS_MAX = 64 };

enum role { ROLE_NONE = 0, ROLE_VIEWER, ROLE_ADMIN, ROLE_SILO, ROLE_JOIN };

/* Who asks, from the bearer token or the login cookie. */
struct principal {
    enum role role;
    char token_id[32];           /* k_... */
    char secret[DIGEST_HEX + 1]; /* SHA-256 of what was shown: the token, or a session of it */
    char silo_id[32];            /* s_..., role silo only */
    char name[64];               /* the token's or the silo's name */
};

struct request {
    struct server *server;
    struct arena *arena;
    struct db *db; /* a pooled connection; NULL in a sink's bytes() and end(), and where nobody
                      needs to say who they are while the database is away */
    struct principal who;
    const char *method;
    const char *path;
    const char *params[4]; /* the {…} parts of the route, in order; NULL beyond */
    const char *id;        /* request id, the problem document's instance */
    const char *action;    /* server/audit.h's own: what the handler does, and to what */
    const char *object;
    const char *body; /* control only; NUL-terminated */
    size_t body_len;
    const struct json *json; /* control with a body: the parsed object */
    int attempt;             /* 0 first; grows each time a parked request is tried again */
    bool expired;            /* parked until its deadline: answer now */
    bool bulk;               /* on a thread of its own: it may wait there, and cannot be parked */
    void *state;             /* the handler's own, kept from attempt to attempt */
    void *conn;              /* http.c's own */
};

/* NULL when absent. Borrowed. */
const char *request_header(const struct request *rq, const char *name);
const char *request_query(const struct request *rq, const char *name);

/* The peer's address, without a port; "" when that cannot be told. In the request's arena. */
const char *request_address(const struct request *rq);

/* For a handler that is about to wait long: rq->db is NULL in between. False: rs is filled (503).
 */
void request_db_give(struct request *rq);
bool request_db_take(struct request *rq);

struct response {
    int status;
    const char *content_type; /* default application/json */
    const char *body;         /* in the request's arena */
    size_t body_len;
    int fd; /* > 0: send bytes [file_offset, file_offset + file_len) of it; closed by http.c */
    int64_t file_offset;
    int64_t file_len;
    struct pace *pace; /* the file goes no faster; NULL: as it can */
    /* The answer is over, whole or cut: so much of the file has left. rq->db is NULL. */
    void (*sent)(struct request *rq, int64_t bytes);
    struct {
        const char *name, *value;
    } headers[12];
    int header_count;
    bool parked;
    const char *park_topic;
    double park_until_s; /* clock_mono_s() */
    bool stream;         /* becomes an SSE stream fed by server/stream.c */
};

void response_header(struct response *rs, const char *name, const char *value);

/* 200, 201, … with a JSON text in the request's arena (buf_take'n or printed there). */
void respond_json(struct request *rq, struct response *rs, int status, const char *json);
void respond_buf(struct request *rq, struct response *rs, int status, struct buf *b); /* takes b */
void respond_empty(struct response *rs, int status);

/* One entry of "errors". */
struct problem_item {
    const char *pointer;
    const char *detail;
};

/*
 * Fill rs with application/problem+json: code is UPPER_SNAKE (docs/API.md lists them all), hint
 * says what to do next and may be NULL. Returns ST_OK so that a handler can `return problem(...)`.
 */
enum status problem(struct request *rq, struct response *rs, int status, const char *code,
                    const char *hint, const char *detail_fmt, ...) PRINTF_LIKE(6, 7);
enum status problem_items(struct request *rq, struct response *rs, int status, const char *code,
                          const char *hint, const char *detail, const struct problem_item *items,
                          int count);
/* 409 and the like often carry one number more ("offset", "retry_after_s").
 * Call after problem(). */
void problem_add_int(struct request *rq, struct response *rs, const char *key, int64_t value);

void response_park(struct response *rs, const char *topic, double until_s);

typedef enum status handler_fn(struct request *rq, struct response *rs, struct err *e);

/*
 * A bulk body's sink: begin() before the first byte (may refuse by filling rs and returning ST_OK
 * with rs->status set), bytes() for each piece as it arrives, end() for what takes long when all
 * are here, while no database connection is held, then the route's handler. abandon() when the peer
 * is gone before the end.
 */
struct sink {
    enum status (*begin)(struct request *rq, struct response *rs, int64_t content_length,
                         struct err *e);
    enum status (*bytes)(struct request *rq, struct response *rs, const void *data, size_t len,
                         struct err *e);
    void (*end)(struct request *rq);
    void (*abandon)(struct request *rq);
};

enum listener { LISTENER_CONTROL = 1, LISTENER_BULK = 2 };

/* roles is a set of bits 1 << ROLE_...; 1 << ROLE_NONE means nobody needs to say who they are. */
struct route {
    const char *method;
    const char *pattern; /* /api/v1/runs/{run}/rounds/{n} */
    unsigned roles;
    unsigned listeners;
    size_t body_max; /* 0: no body allowed */
    handler_fn *handler;
    const struct sink *sink; /* bulk bodies */
};

#define ROLES_PEOPLE  ((1U << ROLE_VIEWER) | (1U << ROLE_ADMIN))
#define ROLES_ADMIN   (1U << ROLE_ADMIN)
#define ROLES_SILO    (1U << ROLE_SILO)
#define ROLES_ANYBODY (1U << ROLE_NONE)

/* Beside them: what the route changes is a row of the audit table (server/audit.h). */
#define ROUTE_AUDITED (1U << 8)

/* Each api_*.c exports one table; server/route.c lists them. Ends with a NULL method. */
extern const struct route routes_runs[];
extern const struct route routes_silos[];
extern const struct route routes_tokens[];
extern const struct route routes_audit[];
extern const struct route routes_series[];
extern const struct route routes_misc[];
extern const struct route routes_silo[]; /* /silo/v1, control */
extern const struct route routes_bulk[]; /* /silo/v1, bulk */

struct http;

struct http_config {
    const char *listen;      /* host:port of control */
    const char *bulk_listen; /* host:port of bulk */
    bool tls;                /* with what http_tls_show() was given; else loopback alone */
    int workers;
};

/*
 * Sets server's control_port and bulk_port to the ports in use (port 0 lets the system choose) and
 * tls. ST_CONFLICT: the port is taken. ST_DENIED: plain HTTP off loopback. Both say what to do.
 */
enum status http_start(struct http **out, struct server *server, const struct http_config *c,
                       struct err *e) MUST_CHECK;
void http_stop(struct http *h); /* answers what is parked, ends streams, waits for bulk up to 5 s */

/* When the thread that calls parked requests back last came round, in clock_mono_ms(). */
int64_t http_beat_ms(const struct http *h);

#endif
