/*
 * http_int.h - what the http_*.c files share; nobody else includes it.
 *
 * An exchange is one request and its response. It is born when its request line was read and dies
 * when libmicrohttpd says that the request is completed. Between suspend and resume it belongs to
 * the workers (http_work.c), before and after to libmicrohttpd's thread: never to both.
 */
#ifndef SERVER_HTTP_INT_H
#define SERVER_HTTP_INT_H

#include <pthread.h>
#include <stdatomic.h>

#include "server/guard.h"
#include "server/http.h"
#include "server/route.h"
#include "server/stream.h"

struct MHD_Connection;
struct MHD_Daemon;

/* What a connection is doing, and so how long it may take (http_conn.c). */
enum conn_phase { CONN_HEAD = 0, CONN_BODY, CONN_WORK, CONN_SEND, CONN_IDLE };

struct conn {
    struct conn *prev, *next;
    int fd;
    enum listener listener;
    enum conn_phase phase;
    double since_s; /* when the phase began */
    int64_t
        bytes; /* of the body since mark_s; while sending what the peer has, -1: not asked yet */
    double mark_s;
    char owner[32];        /* the token that uses it now; bulk alone */
    bool cut;              /* shut down already */
    struct stream *stream; /* while it carries one */
};

struct conns {
    pthread_mutex_t lock;
    struct conn *first;
    int counts[3]; /* by listener */
};

void conns_init(struct conns *c);
void conns_destroy(struct conns *c);
struct conn *conn_opened(struct conns *c, int fd, enum listener listener);
void conn_closed(struct conns *c, struct conn *conn); /* before its descriptor is closed */
void conn_phase(struct conns *c, struct conn *conn, enum conn_phase phase);
void conn_bytes(struct conns *c, struct conn *conn, size_t len);
void conn_carries(struct conns *c, struct conn *conn, struct stream *stream);

/* It is that token's from here to the end of the request: how many connections the token has now.
 */
int conn_owned(struct conns *c, struct conn *conn, const char *token_id);

/* Bytes that the peer's kernel has taken; -1 when that cannot be told. */
int64_t conn_taken(const struct conn *conn);

/* Has the peer hung up? False when that cannot be told, as under TLS. */
bool conn_peer_gone(const struct conn *conn);

int conn_count(struct conns *c, enum listener listener);
int conn_busy(struct conns *c, enum listener listener); /* neither idle nor waiting for a head */

/*
 * Shut down whatever is over its time, end the streams nobody reads any more: libmicrohttpd does
 * not watch a suspended connection. Called about twice a second. Returns how many were cut.
 */
int conns_sweep(struct conns *c, double now_s);

enum {
    HTTP_TARGET_MAX = 2048,
    HTTP_BULK_TIMEOUT_S = 120 /* the kernel's buffer must drain by a third before progress shows */
};

enum exchange_step {
    EXCHANGE_NEW = 0,  /* head read, nothing decided */
    EXCHANGE_BODY,     /* taking the body */
    EXCHANGE_DISCARD,  /* refused while the body was under way: read on, then answer */
    EXCHANGE_WORK,     /* suspended: the workers have it */
    EXCHANGE_ANSWERED, /* rs is final */
    EXCHANGE_SENT      /* handed to libmicrohttpd */
};

struct exchange {
    struct request rq;
    struct response rs;
    struct http *http;
    struct MHD_Connection *mhd;
    struct conn *conn;
    enum listener listener;
    enum exchange_step step;
    char target[HTTP_TARGET_MAX]; /* raw, for the guard and the log */
    char id[40];
    struct route_match match;
    bool head; /* HEAD: GET without a body */
    bool close_after;
    bool sink_open;
    int64_t content_length;
    int64_t received;
    struct buf body;
    size_t body_held;     /* what of it is counted in http.held */
    int64_t send_at_ms;   /* control: when the next piece of a paced file may go */
    int64_t taken_before; /* by the peer, when the answer began */
    struct stream *stream;
    double started_s;
    double retry_at_s; /* while parked */
    unsigned long wakes_seen, task_wakes_seen;
    bool woken;   /* queued or at work after it was parked: gives way to new requests */
    bool called;  /* the same, but for a seat: before all others */
    bool counted; /* by exchange_may_ask() */
    bool known;   /* rq.who was found out and still holds: no token ended since */
    struct exchange *next;
};

struct work;

/* Connections of control that wait until more of their file may go. */
struct paced {
    pthread_mutex_t lock;
    struct exchange *first;
    bool ended;
};

struct http {
    struct server *server;
    struct MHD_Daemon *daemons[3]; /* by listener */
    int listen_fds[3];
    struct conns conns;
    struct work *work;
    struct paced paced;
    atomic_bool stopping;
    _Atomic int64_t beat_ms; /* of the ticker */
    _Atomic size_t held;     /* bytes of the bodies that control has in memory */
    bool tls;
};

/* ---- http_work.c ---- */

struct work *work_new(struct http *h, int workers);
void work_submit(struct work *w, struct exchange *x); /* x is suspended */
void work_drain(struct work *w); /* parked requests are expired; returns when nothing is left */
void work_stop(struct work *w);  /* after work_drain() */
int work_parked(struct work *w);

/*
 * Queue the parked requests of those silos and tokens; ids are sorted. Of those that can wait no
 * more than a few are taken, and the herald is poked when they are through.
 */
void work_call(struct work *w, const char *const *ids, int count, bool can_wait);

bool exchange_db_take(struct exchange *x); /* false: the response is filled (503) */
void exchange_db_give(struct exchange *x);

/* ---- http_finish.c ---- */

/* Make a handler's outcome final: problems from errors, ETag, the headers that
 * all answers carry. */
void exchange_finish(struct exchange *x, enum status st, const struct err *e);

/* ---- http_who.c ---- */

/* Find out who asks; on refusal the response is filled and x->rs.status set. */
enum status exchange_authenticate(struct exchange *x, struct err *e) MUST_CHECK;

/* ST_LIMIT: a silo that sends more than agents do. After exchange_authenticate(). */
enum status exchange_may_ask(struct exchange *x, struct err *e) MUST_CHECK;

/* ---- http_paced.c ---- */

void paced_init(struct paced *p);
void paced_destroy(struct paced *p);

/* Suspends x until x->send_at_ms. False: the server ends, and nobody may wait any more. */
bool paced_wait(struct paced *p, struct exchange *x);
void paced_tick(struct paced *p, int64_t now_ms);
void paced_end(struct paced *p); /* before the daemon stops */

/* ---- http_herald.c ---- */

struct herald;

struct herald *herald_new(struct server *server, struct work *w);
void herald_poke(struct herald *h); /* a task may be free, a token may have ended */
void herald_stop(struct herald *h);

/* ---- http_answer.c ---- */

/* Hand x->rs to libmicrohttpd. False: it cannot be sent, and the connection must end. */
bool exchange_answer(struct exchange *x);

/* ---- http.c ---- */

void exchange_resume(struct exchange *x);

#endif
