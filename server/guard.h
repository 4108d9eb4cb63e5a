/*
 * guard.h - is this request head safe to act on? Asked before the first byte of a body is read.
 *
 * libmicrohttpd is lenient where a proxy before us may be strict, and two readers of one request
 * that disagree are how requests are smuggled. So whatever could be read in two ways is refused
 * here: more than one Host, Content-Length or Transfer-Encoding, both of the latter, a name that
 * is no token (a space before the colon), a target with encoded NULs, slashes or dots in its path.
 *
 * Pure: no socket, no route. What depends on the route (405, 411, 413, 415) is http.c's.
 */
#ifndef SERVER_GUARD_H
#define SERVER_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/status.h"

enum { GUARD_HEADERS_MAX = 64, GUARD_TARGET_MAX = 8192 };

struct guard_header {
    const char *name;
    size_t name_len;
    const char *value;
    size_t value_len;
};

struct guard_result {
    int64_t content_length; /* -1: none */
    bool chunked;
};

/*
 * target is the raw request target as it came. ST_INVALID says what is wrong, and the connection
 * must be closed then: where its next request starts is not known.
 */
enum status guard_check(struct guard_result *out, const char *method, const char *target,
                        const struct guard_header *headers, int count, struct err *e) MUST_CHECK;

/* Well-formed UTF-8 (RFC 3629) without NUL: no surrogates, no overlong forms. */
bool utf8_valid(const char *text, size_t len);

#endif
