#include "server/s3.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"
#include "common/mem.h"
#include "server/s3_int.h"
#include "server/s3_xml.h"

enum {
    PARTS_MAX = 9000,
    READ_SIZE = 1 << 20,
    PUT_TRIES = 5,
    PAUSE_MS = 100
}; // S3 allows 10,000 parts

static const int64_t PART_BYTES = (int64_t)64 << 20;

/* ---- settings ---- */

static bool plain(const char *text, const char *more)
{
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    for (const char *p = text; *p; p++) {
        if (!strchr(allowed, *p) && !strchr(more, *p)) {
            return false;
        }
    }
    return true;
}

static enum status read_url(const char *url, char bucket[64], char prefix[256], struct err *e)
{
    static const char lead[] = "s3://";
    size_t n = strlen(url);
    if (strncmp(url, lead, sizeof(lead) - 1) != 0 || n > 250) {
        return err_set(e, ST_INVALID, "'%.80s' is no bucket; try s3://bucket/prefix", url);
    }
    const char *name = url + sizeof(lead) - 1;
    size_t len = strcspn(name, "/");
    const char *rest = name[len] ? name + len + 1 : "";
    (void)snprintf(bucket, 64, "%.*s", len < 64 ? (int)len : 63, name);
    (void)snprintf(prefix, 256, "%s", rest);
    for (size_t k = strlen(prefix); k > 0 && prefix[k - 1] == '/'; k--) {
        prefix[k - 1] = '\0';
    }
    if (len < 3 || len > 63 || !plain(bucket, "-.") || !plain(prefix, "-_./") ||
        strstr(prefix, "//") || strstr(prefix, "..") || prefix[0] == '/') {
        return err_set(e, ST_INVALID,
                       "'%.80s' is no bucket with a plain prefix; try s3://bucket/prefix", url);
    }
    return ST_OK;
}

static enum status configure(struct s3 *s, const struct s3_config *c, struct err *e)
{
    char bucket[64];
    const char *region = s3_env("AWS_REGION", s3_env("AWS_DEFAULT_REGION", "us-east-1"));
    TRY(read_url(c->url, bucket, s->prefix, e));
    if (!plain(region, "-") || strlen(region) > 40) {
        return err_set(e, ST_INVALID, "'%.60s' is no region; set AWS_REGION", region);
    }
    if (c->endpoint) {
        TRY(s3_check_endpoint(c->endpoint, e));
        size_t n = strlen(c->endpoint);
        n -= n > 0 && c->endpoint[n - 1] == '/' ? 1 : 0;
        (void)snprintf(s->base, sizeof(s->base), "%.*s/%s", (int)n, c->endpoint, bucket);
    } else {
        (void)snprintf(s->base, sizeof(s->base), "https://%s.s3.%s.amazonaws.com", bucket, region);
    }
    TRY(s3_keys_find(s, c->credentials, e));
    (void)snprintf(s->sigv4, sizeof(s->sigv4), "aws:amz:%s:s3", region);
    s->part_bytes = c->part_bytes > 0 ? c->part_bytes : PART_BYTES;
    s->pause_ms = c->pause_ms > 0 ? c->pause_ms : PAUSE_MS;
    s->patience_body_s = c->patience_s > 0.0 ? c->patience_s : 120.0;
    s->patience_s = c->patience_s > 0.0 ? c->patience_s : 8.0;
    return ST_OK;
}

/* ---- calls ---- */

/* For the callers of the store a refusal is an error of the disk. */
static enum status as_disk(enum status st)
{
    return st == ST_DENIED || st == ST_CONFLICT || st == ST_INVALID ? ST_IO : st;
}

enum status s3_head(struct s3 *s, const char *key, int64_t *bytes, struct err *e)
{
    struct s3_call c = s3_call_new(s, "HEAD", key);
    enum status st = s3_perform(&c, e);
    buf_release(&c.reply);
    if (!st && c.length < 0) {
        st = err_set(e, ST_IO, "the object store does not say how large an object is");
    }
    if (!st) {
        *bytes = c.length;
    }
    return as_disk(st);
}

enum status s3_get(struct s3 *s, const char *key, int64_t offset, int64_t len, s3_sink_fn *fn,
                   void *ctx, struct err *e)
{
    if (len == 0) {
        return ST_OK;
    }
    struct s3_call c = s3_call_new(s, "GET", key);
    c.range_from = offset;
    c.range_to = len > 0 ? offset + len - 1 : -1;
    c.sink = fn;
    c.sink_ctx = ctx;
    c.patience_s = s->patience_body_s;
    enum status st = s3_perform(&c, e);
    buf_release(&c.reply);
    if (!st && len > 0 && c.taken != len) {
        st = err_set(e, ST_IO, "the object is shorter than it was");
    }
    return as_disk(st);
}

enum status s3_delete(struct s3 *s, const char *key, struct err *e)
{
    struct s3_call c = s3_call_new(s, "DELETE", key);
    enum status st = s3_perform(&c, e);
    buf_release(&c.reply);
    return as_disk(st == ST_NOT_FOUND ? ST_OK : st);
}

/* ---- putting ---- */

static enum status digest_of_part(int fd, int64_t offset, int64_t bytes, struct digest *out,
                                  struct err *e)
{
    struct sha256 *h = sha256_new();
    char *block = mem_alloc(READ_SIZE);
    enum status st = ST_OK;
    for (int64_t at = 0; at < bytes && !st;) {
        int64_t left = bytes - at;
        ssize_t n = pread(fd, block, left < READ_SIZE ? (size_t)left : READ_SIZE, offset + at);
        if (n > 0) {
            sha256_add(h, block, (size_t)n);
            at += n;
        } else if (n == 0 || errno != EINTR) {
            st = err_set(e, ST_IO, "cannot read the file to be stored");
        }
    }
    sha256_end(h, out);
    sha256_free(h);
    mem_free(block);
    return st;
}

/* One request with the whole file. ST_CONFLICT: the condition says that it is there. */
static enum status put_whole(struct s3 *s, const char *key, int fd, int64_t bytes,
                             const struct digest *d, bool condition, struct err *e)
{
    struct s3_call c = s3_call_new(s, "PUT", key);
    c.fd = fd;
    c.bytes = bytes;
    c.sha256 = d;
    c.if_none_match = condition;
    c.patience_s = s->patience_body_s;
    enum status st = s3_perform(&c, e);
    buf_release(&c.reply);
    return st;
}

/* In a query everything but letters, digits and -_.~ is %XX, as the signature has it. */
static const char *encoded(struct arena *a, const char *text)
{
    static const char digits[] = "0123456789ABCDEF";
    char *out = arena_alloc(a, 3 * strlen(text) + 1);
    char *p = out;
    for (const char *t = text; *t; t++) {
        char one[2] = {*t, '\0'};
        if (plain(one, "-_.~")) {
            *p++ = *t;
        } else {
            *p++ = '%';
            *p++ = digits[(unsigned char)*t >> 4];
            *p++ = digits[(unsigned char)*t & 15];
        }
    }
    *p = '\0';
    return out;
}

struct parts {
    struct s3 *s;
    struct arena *a;
    const char *key;
    int fd;
    int64_t bytes, part_bytes;
    const char *id; // of the upload, encoded
    struct buf list;
};

static enum status begin_parts(struct parts *p, struct err *e)
{
    char id[1200];
    struct s3_call c = s3_call_new(p->s, "POST", p->key);
    c.query = "uploads=";
    c.patience_s = p->s->patience_body_s;
    enum status st = s3_perform(&c, e);
    const char *at = c.reply.data ? c.reply.data : "";
    if (!st && !s3_xml_text(&at, "UploadId", id, sizeof(id))) {
        st = err_set(e, ST_IO, "the object store names no upload");
    }
    if (!st) {
        p->id = encoded(p->a, id);
    }
    buf_release(&c.reply);
    return st;
}

static enum status put_part(struct parts *p, int number, struct err *e)
{
    struct digest d;
    struct s3_call c = s3_call_new(p->s, "PUT", p->key);
    c.fd = p->fd;
    c.offset = (int64_t)(number - 1) * p->part_bytes;
    c.bytes = p->bytes - c.offset < p->part_bytes ? p->bytes - c.offset : p->part_bytes;
    c.sha256 = &d;
    c.query = arena_fmt(p->a, "partNumber=%d&uploadId=%s", number, p->id);
    c.patience_s = p->s->patience_body_s;
    TRY(digest_of_part(p->fd, c.offset, c.bytes, &d, e));
    enum status st = s3_perform(&c, e);
    st = st == ST_NOT_FOUND ? err_set(e, ST_CORRUPT, "the upload of parts is gone") : st;
    if (!st && !c.etag[0]) {
        st = err_set(e, ST_IO, "the object store gives a part no tag");
    }
    buf_fmt(&p->list, "<Part><PartNumber>%d</PartNumber><ETag>%s</ETag></Part>", number, c.etag);
    buf_release(&c.reply);
    return st;
}

/*
 * ST_CORRUPT: all over again. An error may come with status 200, when the store found out after it
 * had begun to answer.
 */
static enum status finish_parts(struct parts *p, bool condition, struct err *e)
{
    char code[80];
    char tag[200];
    struct s3_call c = s3_call_new(p->s, "POST", p->key);
    c.query = arena_fmt(p->a, "uploadId=%s", p->id);
    c.body = arena_fmt(p->a,
                       "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">"
                       "%s</CompleteMultipartUpload>",
                       p->list.data ? p->list.data : "");
    c.if_none_match = condition;
    c.patience_s = p->s->patience_body_s;
    enum status st = s3_perform(&c, e);
    const char *at = c.reply.data ? c.reply.data : "";
    if (st == ST_NOT_FOUND) { // a lost answer said that it was done, or somebody has dropped it
        st = err_set(e, ST_CORRUPT, "the object store does not know the upload any more");
    }
    if (!st && !s3_xml_text(&at, "ETag", tag, sizeof(tag))) {
        st = err_set(e, ST_CORRUPT, "the object store could not put the parts together: %s",
                     s3_reply_code(&c, code));
    }
    buf_release(&c.reply);
    return st;
}

static void drop_parts(struct parts *p)
{
    struct err e = {0};
    struct s3_call c = s3_call_new(p->s, "DELETE", p->key);
    c.query = arena_fmt(p->a, "uploadId=%s", p->id);
    enum status st = s3_perform(&c, &e);
    buf_release(&c.reply);
    if (st && st != ST_NOT_FOUND) { // the bucket's own rule for unfinished uploads removes them
        log_warn("parts of an object stay in the bucket: %s", e.msg);
    }
}

static enum status put_parts(struct s3 *s, const char *key, int fd, int64_t bytes, bool condition,
                             struct err *e)
{
    int64_t least = bytes / PARTS_MAX + 1;
    struct parts p = {.s = s,
                      .a = arena_new((size_t)64 << 20),
                      .key = key,
                      .fd = fd,
                      .bytes = bytes,
                      .part_bytes = s->part_bytes > least ? s->part_bytes : least};
    buf_init(&p.list, (size_t)4 << 20);
    enum status st = begin_parts(&p, e);
    int64_t count = (bytes + p.part_bytes - 1) / p.part_bytes;
    for (int n = 1; n <= count && !st; n++) {
        st = put_part(&p, n, e);
    }
    st = st ? st : finish_parts(&p, condition, e);
    if (st && p.id) {
        drop_parts(&p);
    }
    buf_release(&p.list);
    arena_free(p.a);
    return st;
}

static enum status put_once(struct s3 *s, const char *key, int fd, int64_t bytes,
                            const struct digest *d, bool condition, struct err *e)
{
    return bytes > s->part_bytes ? put_parts(s, key, fd, bytes, condition, e)
                                 : put_whole(s, key, fd, bytes, d, condition, e);
}

/* What an error of the store means to whoever wanted the object there: again, and how. */
static bool again(struct s3 *s, enum status st, bool *condition)
{
    if (st == ST_IO && *condition) { // some stores do not know the condition
        s->no_condition = true;
        *condition = false;
        return true;
    }
    if (st == ST_CONFLICT) { // what is there is not what its name says
        *condition = false;
        return true;
    }
    return st == ST_CORRUPT;
}

enum status s3_put(struct s3 *s, const char *key, int fd, int64_t bytes, const struct digest *d,
                   bool replace, struct err *e)
{
    bool condition = !replace && !s->no_condition;
    struct err why = {0};
    enum status st = ST_RETRY;
    for (int tries = 0; tries < PUT_TRIES; tries++) {
        int64_t there = -1;
        st = put_once(s, key, fd, bytes, d, condition, &why);
        // The answer of a request that did its work may have been lost, or another was faster.
        if (!st || (!replace && s3_head(s, key, &there, NULL) == ST_OK && there == bytes)) {
            return ST_OK;
        }
        if (!again(s, st, &condition)) {
            break;
        }
    }
    st = st == ST_CONFLICT || st == ST_CORRUPT || st == ST_NOT_FOUND ? ST_RETRY : as_disk(st);
    return err_set(e, st, "%s", why.msg);
}

/* ---- listing ---- */

static enum status list_page(struct s3 *s, struct arena *a, char token[1200], s3_list_fn *fn,
                             void *ctx, struct err *e)
{
    struct s3_call c = s3_call_new(s, "GET", "");
    const char *prefix = s->prefix[0] ? arena_fmt(a, "%s/", s->prefix) : "";
    c.query = arena_fmt(a, "%s%s%slist-type=2&max-keys=1000&prefix=%s",
                        token[0] ? "continuation-token=" : "", token[0] ? encoded(a, token) : "",
                        token[0] ? "&" : "", encoded(a, prefix));
    c.patience_s = s->patience_body_s;
    enum status st = s3_perform(&c, e);
    const char *at = c.reply.data ? c.reply.data : "";
    struct s3_object o;
    int64_t now = (int64_t)time(NULL);
    while (!st && fn && s3_xml_object(&at, &o)) {
        size_t lead = strlen(prefix);
        bool below = strncmp(o.key, prefix, lead) == 0;
        int64_t age = now - o.modified_s;
        st = below ? fn(ctx, o.key + lead, o.bytes, age > 0 ? age : 0, e) : ST_OK;
    }
    at = c.reply.data ? c.reply.data : "";
    if (!s3_xml_text(&at, "NextContinuationToken", token, 1200)) {
        token[0] = '\0';
    }
    buf_release(&c.reply);
    return st;
}

enum status s3_list(struct s3 *s, s3_list_fn *fn, void *ctx, struct err *e)
{
    char token[1200] = "";
    enum status st = ST_OK;
    do {
        struct arena *a = arena_new((size_t)1 << 20);
        st = list_page(s, a, token, fn, ctx, e);
        arena_free(a);
    } while (!st && token[0]);
    return as_disk(st);
}

/* ---- opening ---- */

enum status s3_open(struct s3 **out, const struct s3_config *c, struct err *e)
{
    char token[1200] = "";
    s3_start_library();
    struct arena *a = arena_new((size_t)1 << 20);
    struct s3 *s = mem_alloc(sizeof(*s));
    s->arena = a;
    s->ca_file = c->ca_file ? arena_fmt(a, "%s", c->ca_file) : NULL;
    (void)pthread_mutex_init(&s->lock, NULL);
    enum status st = configure(s, c, e);
    st = st ? st : list_page(s, a, token, NULL, NULL, e); // bucket, key and clock are in order?
    if (st) {
        s3_close(s);
        return st == ST_NOT_FOUND || st == ST_IO ? ST_INVALID : st;
    }
    *out = s;
    return ST_OK;
}

void s3_close(struct s3 *s)
{
    if (!s) {
        return;
    }
    s3_drop_handles(s);
    (void)pthread_mutex_destroy(&s->lock);
    arena_free(s->arena);
    explicit_bzero(&s->keys, sizeof(s->keys));
    mem_free(s);
}
