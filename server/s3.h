/*
 * s3.h - objects in a bucket, over the S3 API: put, get, head, delete, list. The server's only door
 * to libcurl.
 *
 * Requests are signed (AWS Signature Version 4, by libcurl) with the SHA-256 of what they carry, so
 * that a body damaged on its way is refused by the store. An object is there whole or not at all:
 * small ones come in one request, large ones in parts that one last request puts together.
 *
 * What may be a passing trouble (no answer, a cut, 408, 429, 5xx) is tried again with growing
 * jittered pauses for as long as the call may take; a lost answer is no trouble, since the same
 * content is put under the same key. Calls are thread-safe; each takes a connection of its own out
 * of those kept. Secrets are never logged.
 */
#ifndef SERVER_S3_H
#define SERVER_S3_H

#include <stdbool.h>
#include <stdint.h>

#include "common/hash.h"
#include "common/status.h"

struct s3;

struct s3_config {
    const char *url;         /* s3://bucket or s3://bucket/prefix */
    const char *endpoint;    /* https://host[:port] of a store that is not AWS; NULL: AWS */
    const char *credentials; /* a file as the AWS tools have it, read again when it has changed;
                                NULL: AWS_… of the environment */
    const char *ca_file;     /* NULL: the system's */
    int64_t part_bytes;      /* of a large object; 0: 64 MiB */
    double patience_s;       /* 0: 120 for bodies, 8 for the rest */
    int64_t pause_ms;        /* before the second try, doubled each time; 0: 100 */
};

/*
 * Reads configuration and credentials, and asks the bucket once. ST_INVALID: a setting that cannot
 * work; ST_DENIED: the store refuses us; ST_RETRY: no answer.
 */
enum status s3_open(struct s3 **out, const struct s3_config *c, struct err *e) MUST_CHECK;
void s3_close(struct s3 *s); /* NULL is allowed */

/*
 * For all calls below: ST_RETRY, it may work later; ST_IO, the store says no and why.
 *
 * The object is there with these bytes, whose digest this is. Without replace one of that size that
 * is there already is left alone.
 */
enum status s3_put(struct s3 *s, const char *key, int fd, int64_t bytes, const struct digest *d,
                   bool replace, struct err *e) MUST_CHECK;

/* ST_NOT_FOUND. */
enum status s3_head(struct s3 *s, const char *key, int64_t *bytes, struct err *e) MUST_CHECK;

/* Bytes [offset, offset + len) in order; len < 0: to the end. A cut goes on where it was. What fn
 * refuses ends it with fn's status. ST_NOT_FOUND. */
typedef enum status s3_sink_fn(void *ctx, const void *data, size_t len, struct err *e);
enum status s3_get(struct s3 *s, const char *key, int64_t offset, int64_t len, s3_sink_fn *fn,
                   void *ctx, struct err *e) MUST_CHECK;

/* Absent is fine. */
enum status s3_delete(struct s3 *s, const char *key, struct err *e) MUST_CHECK;

/* Every object below the prefix; key without it. */
typedef enum status s3_list_fn(void *ctx, const char *key, int64_t bytes, int64_t age_s,
                               struct err *e);
enum status s3_list(struct s3 *s, s3_list_fn *fn, void *ctx, struct err *e) MUST_CHECK;

#endif
