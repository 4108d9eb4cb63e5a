/*
 * multipart.h - the parts of a multipart/form-data body as it streams by (RFC 7578, RFC 2046).
 *
 * Strict where a lenient reader would have to guess: no preamble, nothing but a line end after the
 * last delimiter, a Content-Disposition with a name on every part, no folded lines, no transfer
 * encoding. Holds one part's headers and nothing of a part's content; pieces may be cut anywhere.
 */
#ifndef SERVER_MULTIPART_H
#define SERVER_MULTIPART_H

#include <stddef.h>

#include "common/status.h"

struct multipart;

enum {
    MULTIPART_BOUNDARY_MAX = 70, /* RFC 2046 */
    MULTIPART_HEADERS_MAX = 2048,
    MULTIPART_NAME_MAX = 63,
};

/* What happens to each part, in order. A status other than ST_OK ends the reading
 * and is passed up. */
struct multipart_handler {
    enum status (*begin)(void *ctx, const char *name, const char *content_type, struct err *e);
    enum status (*bytes)(void *ctx, const void *data, size_t len, struct err *e);
    enum status (*end)(void *ctx, struct err *e);
};

/*
 * content_type is the request's header. ST_INVALID: not multipart/form-data with a boundary. The
 * handler's table is borrowed. content_type of a part is "" when it has none.
 */
enum status multipart_open(struct multipart **out, const char *content_type,
                           const struct multipart_handler *h, void *ctx, struct err *e) MUST_CHECK;
void multipart_free(struct multipart *m);

/* ST_INVALID: not multipart. After anything but ST_OK the reader only repeats that status. */
enum status multipart_feed(struct multipart *m, const void *data, size_t len,
                           struct err *e) MUST_CHECK;

/* The body is over. ST_INVALID when its last delimiter was not there. */
enum status multipart_end(struct multipart *m, struct err *e) MUST_CHECK;

#endif
