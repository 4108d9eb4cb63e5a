/*
 * s3_int.h - what s3.c (requests, libcurl), s3_objects.c (the calls of s3.h) and s3_keys.c share.
 */
#ifndef SERVER_S3_INT_H
#define SERVER_S3_INT_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "common/arena.h"
#include "common/buf.h"
#include "common/hash.h"
#include "common/status.h"
#include "server/s3.h"

enum { S3_HANDLES_KEPT = 16, S3_TEXT_MAX = 256, S3_SESSION_MAX = 2048 };

struct s3_keys {
    char user[S3_TEXT_MAX]; // the access key's id
    char password[S3_TEXT_MAX];
    char session[S3_SESSION_MAX]; // "" when there is none
};

struct s3 {
    struct arena *arena;
    char base[512]; // https://host/bucket, without a slash at the end
    char prefix[256];
    struct s3_keys keys;   // under the lock, once it is open
    const char *keys_file; // in the arena; NULL: they are the environment's
    struct stat keys_seen; // as it was when it was last looked at
    char sigv4[128];
    const char *ca_file; // in the arena
    int64_t part_bytes, pause_ms;
    double patience_body_s, patience_s;
    pthread_mutex_t lock;
    void *handles[S3_HANDLES_KEPT]; // libcurl's
    int handle_count;
    bool no_condition; // the store does not know If-None-Match
};

/* One request and its answer. */
struct s3_call {
    struct s3 *s;
    const char *method; // of the S3 API
    const char *key;    // "": the bucket
    const char *query;  // complete and sorted as it is signed, or NULL
    const char *body;   // small, or NULL
    int fd;             // a body that is read from a file, or -1
    int64_t offset, bytes;
    const struct digest *sha256; // of the body
    bool if_none_match;
    int64_t range_from, range_to; // -1: no range
    s3_sink_fn *sink;             // where a 2xx body goes; NULL: reply
    void *sink_ctx;
    double patience_s;
    /* the answer */
    long http;
    struct buf reply;
    char etag[80];
    int64_t length; // Content-Length, -1
    int64_t range_start;
    int64_t taken; // bytes that the sink has
    enum status sink_st;
    struct err sink_err;
    int64_t read_at;
    bool read_failed;
};

/* A call of that method on that key, without body or range, with the patience of small ones. */
struct s3_call s3_call_new(struct s3 *s, const char *method, const char *key);

/*
 * Performs it, with patience, and going on where a download was cut; any other call is repeated
 * whole. ST_NOT_FOUND; ST_CONFLICT: it is there already; ST_DENIED; ST_RETRY: patience is over;
 * ST_IO. The caller releases c->reply.
 */
enum status s3_perform(struct s3_call *c, struct err *e) MUST_CHECK;

/* What the store says is wrong, such as AccessDenied. */
const char *s3_reply_code(const struct s3_call *c, char out[80]);

/* https, or http to this machine; a host and nothing more. */
enum status s3_check_endpoint(const char *endpoint, struct err *e) MUST_CHECK;

/* Those of that file, or where it is NULL of the file or the variables that the environment names.
 */
enum status s3_keys_find(struct s3 *s, const char *file, struct err *e) MUST_CHECK;

/* A copy of those that hold now, for one request; the caller clears it. */
void s3_keys_now(struct s3 *s, struct s3_keys *out);

const char *s3_env(const char *name, const char *otherwise);

void s3_start_library(void);
void s3_drop_handles(struct s3 *s);

#endif
