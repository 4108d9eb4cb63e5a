/*
 * range.h - which bytes a GET asks for (RFC 9110, section 14).
 *
 * One range of bytes: "bytes=a-b", "bytes=a-", "bytes=-n". What cannot be read as one such range,
 * several of them included, is ignored, as the RFC lets a server do: the answer is then the whole.
 */
#ifndef SERVER_RANGE_H
#define SERVER_RANGE_H

#include <stdbool.h>
#include <stdint.h>

enum range_kind {
    RANGE_WHOLE = 0,     /* 200 */
    RANGE_PART,          /* 206, Content-Range: bytes start-(start + len - 1)/size */
    RANGE_UNSATISFIABLE, /* 416, Content-Range: bytes * /size, without the space */
};

/*
 * header is the Range header or NULL, size >= 0. *start and *len are always within the file: the
 * whole unless RANGE_PART, and len >= 1 for RANGE_PART.
 */
enum range_kind range_parse(const char *header, int64_t size, int64_t *start, int64_t *len);

/* May the range be honoured? if_range is the If-Range header or NULL,
 * etag ours, quotes included. */
bool range_allowed(const char *if_range, const char *etag);

#endif
