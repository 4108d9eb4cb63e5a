/*
 * reply.h - what a server's answer means, and what may be asked again: rules without a connection.
 *
 * Policy: transport errors, 408, 425, 429 and 5xx are tried again after a wait drawn uniformly from
 * 0 to min(60 s, 1 s * 2^attempt) ("full jitter"), never sooner than Retry-After asks; every other
 * 4xx is final, 401 and 403 with advice.
 */
#ifndef CLIENT_REPLY_H
#define CLIENT_REPLY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/arena.h"
#include "common/json.h"
#include "common/status.h"

/* What came back. Strings live in the arena given to the call, never NULL. */
struct reply {
    int http;                /* 0: no answer */
    const struct json *json; /* the body when it is a JSON document, else NULL */
    const char *text;
    size_t len;
    const char *code; /* of a problem document, PIN_MISMATCH, else "" */
    const char *detail;
    const char *hint;
    double retry_after_s; /* -1: not given */
    const char *base;     /* "SHA-256 BYTES" of the file to fetch while there is no task, or "" */
    const char *step;     /* "SHA-256 BYTES BASE" of the step to it from BASE, or "" */
    bool cancelled;
};

/* What a caller can do about this HTTP status; 0 (no answer) is ST_NET. */
enum status reply_status(int http);

/* May the same request be sent again after this status? */
bool retry_allowed(int http);

/* How long to wait before try attempt + 1 (attempt from 0); unit in [0, 1);
 * retry_after_s < 0: none. */
int64_t retry_delay_ms(int attempt, double unit, double retry_after_s);

/* Fill code, detail, hint of a reply from its problem document; what is missing becomes "". */
void reply_read_problem(struct reply *r, struct arena *a);

/* Nothing came: every member at its "none". */
void reply_clear(struct reply *r);

/* reply_status() with what the server said: "CODE: detail; hint". */
enum status reply_error(const struct reply *r, struct err *e) MUST_CHECK;

#endif
