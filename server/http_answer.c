/*
 * http_answer.c - a finished response becomes libmicrohttpd's: bytes, a file, or a stream, under
 * the headers that every answer carries.
 */
#include <microhttpd.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "server/http_int.h"
#include "server/pace.h"
#include "server/server.h"

enum {
    PACED_PIECE = 32 * 1024,
    STREAM_BLOCK = 16 * 1024,
    TLS_BLOCK = 128 * 1024, /* read at once for a download under TLS */
};

/* What a page of ours may do: nothing but load its own files and talk to us. */
static const char CSP[] = "default-src 'none'; script-src 'self'; style-src 'self'; "
                          "connect-src 'self'; img-src 'self' data:; base-uri 'none'; "
                          "frame-ancestors 'none'; form-action 'self'";

static void stream_wait(void *ctx)
{
    const struct exchange *x = ctx;
    MHD_suspend_connection(x->mhd);
}

static void stream_ready(void *ctx)
{
    const struct exchange *x = ctx;
    MHD_resume_connection(x->mhd);
}

static ssize_t read_stream(void *cls, uint64_t pos, char *out, size_t max)
{
    (void)pos;
    struct exchange *x = cls;
    long n = stream_read(x->stream, out, max, stream_wait, stream_ready, x);
    return n < 0 ? MHD_CONTENT_READER_END_OF_STREAM : (ssize_t)n;
}

/* Bulk: this thread is the connection's own. Control: it is everybody's, so the wait comes before
 * the next piece, aside. */
static void take_turn(struct exchange *x, size_t bytes)
{
    if (x->listener == LISTENER_BULK) {
        pace_take(x->rs.pace, bytes);
    } else if (x->rs.pace) {
        int64_t now = clock_mono_ms();
        x->send_at_ms = now + pace_book(x->rs.pace, bytes, now);
    }
}

static ssize_t read_file(void *cls, uint64_t pos, char *out, size_t max)
{
    struct exchange *x = cls;
    if (x->send_at_ms > clock_mono_ms() && paced_wait(&x->http->paced, x)) {
        return 0;
    }
    max = x->rs.pace && max > PACED_PIECE ? PACED_PIECE : max;
    ssize_t n = pread(x->rs.fd, out, max, x->rs.file_offset + (int64_t)pos);
    if (n > 0) {
        take_turn(x, (size_t)n);
    }
    return n > 0 ? n : MHD_CONTENT_READER_END_WITH_ERROR;
}

static struct MHD_Response *make_response(struct exchange *x)
{
    struct response *rs = &x->rs;
    if (rs->stream) {
        return MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK, read_stream, x,
                                                 NULL);
    }
    if (rs->fd <= 0 || rs->body || rs->file_len == 0) {
        // The bytes are the arena's, which lives until the request is completed.
        union {
            const void *in;
            void *out;
        } body = {.in = rs->body_len ? rs->body : ""};
        return MHD_create_response_from_buffer(rs->body_len, body.out, MHD_RESPMEM_PERSISTENT);
    }
    if (x->http->tls || rs->pace) { // under TLS libmicrohttpd would read a file by 4 KiB
        return MHD_create_response_from_callback((uint64_t)rs->file_len, TLS_BLOCK, read_file, x,
                                                 NULL);
    }
    struct MHD_Response *r = MHD_create_response_from_fd_at_offset64((uint64_t)rs->file_len, rs->fd,
                                                                     (uint64_t)rs->file_offset);
    if (r) {
        rs->fd = 0; // closed with the response
    }
    return r;
}

static void add(struct MHD_Response *r, const char *name, const char *value)
{
    if (MHD_add_response_header(r, name, value) != MHD_YES) {
        log_warn("a response header was refused name=%s", name);
    }
}

static void add_headers(struct exchange *x, struct MHD_Response *r)
{
    const struct response *rs = &x->rs;
    bool cache = false;
    for (int i = 0; i < rs->header_count; i++) {
        add(r, rs->headers[i].name, rs->headers[i].value);
        cache = cache || strcmp(rs->headers[i].name, "Cache-Control") == 0;
    }
    if (rs->content_type) {
        add(r, "Content-Type", rs->content_type);
    }
    if (!cache) {
        add(r, "Cache-Control", "no-cache");
    }
    add(r, "X-Request-Id", x->id);
    add(r, "X-Content-Type-Options", "nosniff");
    add(r, "Referrer-Policy", "no-referrer");
    add(r, "Cross-Origin-Resource-Policy", "same-origin");
    add(r, "Content-Security-Policy", CSP);
    if (x->http->server->https) {
        add(r, "Strict-Transport-Security", "max-age=31536000");
    }
    if (x->close_after || atomic_load(&x->http->stopping)) {
        add(r, "Connection", "close");
    }
}

bool exchange_answer(struct exchange *x)
{
    if (x->rs.stream) {
        x->stream = x->rq.state;
        conn_carries(&x->http->conns, x->conn, x->stream);
    }
    struct MHD_Response *r = make_response(x);
    if (!r) {
        log_error("cannot make a response request=%s", x->id);
        return false;
    }
    add_headers(x, r);
    if (x->rs.fd > 0 || x->rs.file_len > 0) {
        (void)MHD_set_connection_option(x->mhd, MHD_CONNECTION_OPTION_TIMEOUT,
                                        (unsigned)HTTP_BULK_TIMEOUT_S);
    }
    enum MHD_Result ok = MHD_queue_response(x->mhd, (unsigned)x->rs.status, r);
    MHD_destroy_response(r);
    x->step = EXCHANGE_SENT;
    x->taken_before = x->rs.sent ? conn_taken(x->conn) : 0;
    conn_phase(&x->http->conns, x->conn, CONN_SEND);
    return ok == MHD_YES;
}
