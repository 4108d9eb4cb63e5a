/*
 * beat.h - the sign of life of one task: heartbeats and metrics, sent by a thread of its own.
 *
 * Training never waits for the network: it reports phase, step and numbers here, and asks now and
 * then what the server has ordered. The thread has its own connection. Points that cannot be sent
 * are kept up to a bound, then the oldest are dropped.
 */
#ifndef CLIENT_BEAT_H
#define CLIENT_BEAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/transport.h"
#include "common/status.h"

struct beat;

enum beat_order {
    BEAT_CONTINUE = 0, /* also "drain": finish this task */
    BEAT_CANCEL,       /* the server wants this task no more */
    BEAT_STALE,        /* the lease is somebody else's, or expired: claim again */
    BEAT_CLOSED,       /* the round closed without it */
    BEAT_STOPPED,      /* the run is over */
    BEAT_DENIED        /* the token is no longer good, and there is no other */
};

struct beat_config {
    const char *url; /* control */
    const char *token;
    const char *ca_file; /* this and what follows: as transport.h has them */
    const char *pin;
    bool (*fresh_token)(void *ctx, char *out, size_t size); /* called by the thread */
    void *fresh_ctx;
    const char *task;
    int64_t epoch;
    double heartbeat_s;
};

enum status beat_start(struct beat **out, const struct beat_config *c, struct err *e) MUST_CHECK;

/* Ends the thread after one last attempt to send the points within `flush_s`. NULL is allowed. */
void beat_stop(struct beat *b, double flush_s);

/* phase is a literal: download, train, encode, upload, evaluate. A new phase is sent at once. */
void beat_report(struct beat *b, const char *phase, int64_t step, double tokens_per_s);
void beat_point(struct beat *b, int64_t step, const char *name, double value); /* name: a literal */

enum beat_order beat_order(struct beat *b);
/* The server's words for an order that is not continue. */
void beat_reason(struct beat *b, char *out, size_t size);

#endif
