/*
 * http_conn.c - the connections that are open, and the sweeper that ends the slow ones.
 *
 * libmicrohttpd's idle timeout starts anew at every byte, so one byte a second would hold a
 * connection for ever. Here each phase has a limit of its own. A connection over its limit is shut
 * down, never closed: the descriptor belongs to libmicrohttpd, which sees the end and cleans up.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/tcp.h> // glibc's struct tcp_info ends before tcpi_bytes_acked
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"
#include "server/http_int.h"

static const double HEAD_S = 10.0;         // a request's head, TLS handshake included
static const double CONTROL_BODY_S = 30.0; // a whole control body
static const double IDLE_S = 30.0;         // keep-alive between two requests
static const double WINDOW_S = 60.0;       // a bulk body, and any answer, must move FLOOR in each
static const int64_t FLOOR = 60 * 16 * 1024;

void conns_init(struct conns *c)
{
    *c = (struct conns){0};
    (void)pthread_mutex_init(&c->lock, NULL);
}

void conns_destroy(struct conns *c)
{
    (void)pthread_mutex_destroy(&c->lock);
}

struct conn *conn_opened(struct conns *c, int fd, enum listener listener)
{
    struct conn *conn = mem_alloc(sizeof(*conn));
    *conn = (struct conn){.fd = fd, .listener = listener, .since_s = clock_mono_s()};
    (void)pthread_mutex_lock(&c->lock);
    conn->next = c->first;
    if (c->first) {
        c->first->prev = conn;
    }
    c->first = conn;
    c->counts[listener]++;
    (void)pthread_mutex_unlock(&c->lock);
    return conn;
}

const char *request_address(const struct request *rq)
{
    const struct exchange *x = rq->conn;
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } peer = {0};
    socklen_t size = sizeof(peer);
    char text[INET6_ADDRSTRLEN] = "";
    if (getpeername(x->conn->fd, &peer.any, &size) == 0) {
        bool v4 = peer.any.sa_family == AF_INET;
        const void *address = v4 ? (const void *)&peer.v4.sin_addr : &peer.v6.sin6_addr;
        (void)inet_ntop(v4 ? AF_INET : AF_INET6, address, text, sizeof(text));
    }
    return arena_fmt(rq->arena, "%s", text);
}

void conn_closed(struct conns *c, struct conn *conn)
{
    (void)pthread_mutex_lock(&c->lock);
    if (conn->prev) {
        conn->prev->next = conn->next;
    } else {
        c->first = conn->next;
    }
    if (conn->next) {
        conn->next->prev = conn->prev;
    }
    c->counts[conn->listener]--;
    (void)pthread_mutex_unlock(&c->lock);
    mem_free(conn);
}

void conn_phase(struct conns *c, struct conn *conn, enum conn_phase phase)
{
    (void)pthread_mutex_lock(&c->lock);
    conn->phase = phase;
    conn->since_s = clock_mono_s();
    conn->mark_s = conn->since_s;
    conn->bytes = phase == CONN_SEND ? -1 : 0;
    if (phase == CONN_IDLE) {
        conn->owner[0] = '\0';
    }
    (void)pthread_mutex_unlock(&c->lock);
}

int conn_owned(struct conns *c, struct conn *conn, const char *token_id)
{
    int n = 0;
    (void)pthread_mutex_lock(&c->lock);
    (void)snprintf(conn->owner, sizeof(conn->owner), "%s", token_id);
    for (const struct conn *i = c->first; i; i = i->next) {
        n += strcmp(i->owner, token_id) == 0;
    }
    (void)pthread_mutex_unlock(&c->lock);
    return n;
}

void conn_bytes(struct conns *c, struct conn *conn, size_t len)
{
    (void)pthread_mutex_lock(&c->lock);
    conn->bytes += (int64_t)len;
    (void)pthread_mutex_unlock(&c->lock);
}

void conn_carries(struct conns *c, struct conn *conn, struct stream *stream)
{
    (void)pthread_mutex_lock(&c->lock);
    conn->stream = stream;
    (void)pthread_mutex_unlock(&c->lock);
}

bool conn_peer_gone(const struct conn *conn)
{
    char byte;
    ssize_t n = recv(conn->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

int conn_count(struct conns *c, enum listener listener)
{
    (void)pthread_mutex_lock(&c->lock);
    int n = c->counts[listener];
    (void)pthread_mutex_unlock(&c->lock);
    return n;
}

int conn_busy(struct conns *c, enum listener listener)
{
    int n = 0;
    (void)pthread_mutex_lock(&c->lock);
    for (const struct conn *i = c->first; i; i = i->next) {
        n += i->listener == listener && i->phase != CONN_IDLE && i->phase != CONN_HEAD;
    }
    (void)pthread_mutex_unlock(&c->lock);
    return n;
}

int64_t conn_taken(const struct conn *i)
{
    struct tcp_info info = {0};
    socklen_t len = sizeof(info);
    bool told = getsockopt(i->fd, IPPROTO_TCP, TCP_INFO, &info, &len) == 0 &&
                len >= offsetof(struct tcp_info, tcpi_bytes_acked) + sizeof(info.tcpi_bytes_acked);
    return told ? (int64_t)info.tcpi_bytes_acked : -1;
}

/* libmicrohttpd sees progress in every byte; here an answer must move as a body must. */
static bool is_read_too_slowly(struct conn *i, double now_s)
{
    bool first = i->bytes < 0;
    if (i->stream || (!first && now_s - i->mark_s < WINDOW_S)) {
        return false; // the sweeper looks at streams apart
    }
    int64_t taken = conn_taken(i);
    if (!first && taken >= 0 && taken - i->bytes < FLOOR) {
        return true;
    }
    i->mark_s = first ? i->mark_s : now_s;
    i->bytes = taken;
    return false;
}

/* Is this connection over its limit? A window moves on when it brought enough. */
static bool is_over(struct conn *i, double now_s)
{
    double spent = now_s - i->since_s;
    switch (i->phase) {
    case CONN_HEAD:
        return spent > HEAD_S;
    case CONN_IDLE:
        return spent > IDLE_S;
    case CONN_BODY:
        if (i->listener == LISTENER_CONTROL) {
            return spent > CONTROL_BODY_S;
        }
        if (now_s - i->mark_s < WINDOW_S) {
            return false;
        }
        if (i->bytes < FLOOR) {
            return true;
        }
        i->mark_s = now_s;
        i->bytes = 0;
        return false;
    case CONN_SEND:
        return is_read_too_slowly(i, now_s);
    case CONN_WORK: // ours to end: parked requests have deadlines
    default:
        return false;
    }
}

int conns_sweep(struct conns *c, double now_s)
{
    int cut = 0;
    (void)pthread_mutex_lock(&c->lock);
    for (struct conn *i = c->first; i; i = i->next) {
        if (i->stream && conn_peer_gone(i)) {
            stream_end(i->stream);
        }
        if (i->cut || !is_over(i, now_s)) {
            continue;
        }
        if (i->listener == LISTENER_BULK || i->phase == CONN_SEND) {
            // Memory back at once, unsent bytes included.
            struct linger now = {.l_onoff = 1, .l_linger = 0};
            (void)setsockopt(i->fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
        }
        (void)shutdown(i->fd, SHUT_RDWR);
        i->cut = true;
        cut++;
    }
    (void)pthread_mutex_unlock(&c->lock);
    if (cut > 0) {
        log_debug("ended slow connections count=%d", cut);
    }
    return cut;
}
