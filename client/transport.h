/*
 * transport.h - the only door to libcurl: requests to a Photon server, and what may be repeated.
 *
 * One transport is one connection with its settings; one thread uses it at a time. Addresses are
 * https anywhere and http on loopback alone, so that no token crosses a network in the clear.
 *
 * Whom to believe: with a pin, a server that shows that key and nobody else; its certificate is
 * then looked at only when there is a ca_file too. Without a pin, a certificate for the address'
 * name, by the authorities of ca_file or else the system's. Nothing is sent before that is settled.
 *
 * What an outcome means: a reply with an error status is a *decision* of the server; no reply is
 * *unknown*, and the same request may be sent again, because every changing request of the protocol
 * is harmless to repeat. transport_call() makes one try; transport_call_retry() repeats by the
 * policy of client/reply.h until a decision comes, the time is over or the caller cancels.
 */
#ifndef CLIENT_TRANSPORT_H
#define CLIENT_TRANSPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/reply.h"
#include "common/arena.h"
#include "common/hash.h"
#include "common/status.h"

struct transport;

struct transport_config {
    const char *url;              /* https://host[:port], no path */
    const char *token;            /* bearer; NULL: none */
    const char *ca_file;          /* NULL or "": the system's */
    const char *pin;              /* common/pin.h; NULL or "": none */
    int64_t max_bytes_per_s;      /* of files, in each direction; 0: unlimited */
    size_t reply_max;             /* bytes of a reply that is no file; 0: 256 KiB, four times the
                                     longest task */
    bool (*cancelled)(void *ctx); /* asked at least once a second; NULL: never */
    void *cancel_ctx;
    /* Asked when the token is refused (401): the one that is good now, into out; false: no other is
     * known. With another one the request is made once more. NULL: never. */
    bool (*fresh_token)(void *ctx, char *out, size_t size);
    void *fresh_ctx;
};

enum { TRANSPORT_TOKEN_MAX = 256 }; /* of a fresh one, its NUL included */

/* ST_INVALID: not a URL, or plain http to a host that is not loopback. */
enum status transport_url_check(const char *url, struct err *e) MUST_CHECK;

/* The caller ends *out with transport_close(). The config's strings are copied. ST_INVALID: as
 * above, or the pin is none, or is for an address without TLS. */
enum status transport_open(struct transport **out, const struct transport_config *c,
                           struct err *e) MUST_CHECK;
void transport_close(struct transport *t); /* NULL is allowed */

/* The address it speaks to, without a slash at the end. Borrowed. */
const char *transport_url(const struct transport *t);

/* 0 lifts the limit on what the following calls may take in all, in seconds. */
void transport_timeout(struct transport *t, double seconds);

/*
 * One request with an optional JSON body. path is absolute ("/silo/v1/hello"). ST_OK on 2xx, else
 * by reply_status(); ST_NET when no answer came. *out is filled in every case; e reads "CODE:
 * detail; try hint". Of the arena it takes four times the reply's length and 64 KiB at most.
 */
enum status transport_call(struct transport *t, struct arena *a, const char *method,
                           const char *path, const char *body, struct reply *out,
                           struct err *e) MUST_CHECK;

/* The same until a decision; give_up_s > 0 bounds the whole. ST_RETRY or ST_NET:
 * gave up or cancelled. What former tries read is not kept. */
enum status transport_call_retry(struct transport *t, struct arena *a, const char *method,
                                 const char *path, const char *body, double give_up_s,
                                 struct reply *out, struct err *e) MUST_CHECK;

/* Where the body of a 2xx goes as it comes. False ends the exchange with ST_NET. */
struct body_sink {
    /* start, total: of Content-Range, or -1 */
    bool (*begin)(void *ctx, int http, int64_t start, int64_t total);
    bool (*bytes)(void *ctx, const void *bytes, size_t len);
    void *ctx;
};

/* One try at a body of any length; headers are more lines of the request, NULL ends them. */
enum status transport_get(struct transport *t, struct arena *a, const char *path,
                          const char *const *headers, const struct body_sink *sink,
                          struct reply *out, struct err *e) MUST_CHECK;

struct download {
    const char *path;            /* of the request */
    const char *file;            /* where it ends; it grows beside it as FILE.part */
    const struct digest *digest; /* what it must be; NULL: take it as it comes */
    int64_t bytes;               /* what it must measure, or -1 */
    void (*progress)(void *ctx, int64_t done);
    void *progress_ctx;
    int64_t received; /* out: bytes that crossed the network */
};

/*
 * (download.c) One try at fetching a file, going on from what FILE.part holds (Range, If-Range).
 * When it is whole: digest and size checked, synced, renamed, folder synced. ST_CORRUPT: wrong
 * digest, or more bytes than were to come; the part is removed, so that a repeat starts anew.
 * ST_NET, ST_RETRY: call again. ST_LIMIT: the disk is full; where the size is known and the file
 * system can reserve room, that is found out before anything is fetched.
 */
enum status transport_download(struct transport *t, struct arena *a, struct download *d,
                               struct reply *out, struct err *e) MUST_CHECK;

struct chunk {
    const char *path;  /* /silo/v1/uploads/u_... */
    const char *lease; /* value of Photon-Lease */
    int fd;
    int64_t offset;
    int64_t bytes;
    const char *meta; /* JSON of the first part */
    int64_t sent;     /* out: bytes of the piece that left, whatever became of them */
};

/* Send one piece of an open file as multipart/form-data (meta, chunk), streamed by position. */
enum status transport_chunk(struct transport *t, struct arena *a, struct chunk *c,
                            struct reply *out, struct err *e) MUST_CHECK;

#endif
