#include "server/blob_bucket.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/fault.h"
#include "common/log.h"

/* How keys of that content begin. */
static void keys_of(const struct digest *d, char key[BLOB_ASIDE_SIZE])
{
    char hex[DIGEST_HEX + 1];
    digest_hex(d, hex);
    (void)snprintf(key, BLOB_ASIDE_SIZE, "blobs/%.2s/%.2s/%s", hex, hex + 2, hex);
}

enum status blob_bucket_put(struct s3 *s3, int fd, const struct digest *d, const char *id,
                            struct err *e)
{
    char lead[BLOB_ASIDE_SIZE];
    char key[BLOB_ASIDE_SIZE];
    struct stat sb;
    int64_t there = -1;
    keys_of(d, lead);
    if (snprintf(key, sizeof(key), "%s-%s", lead, id) >= (int)sizeof(key)) {
        return err_set(e, ST_INVALID, "the name of a temporary file is too long for a bucket");
    }
    if (fstat(fd, &sb)) {
        return err_set(e, ST_IO, "cannot look at a temporary file: %s", strerror(errno));
    }
    enum status st = s3_head(s3, key, &there, e); // it may have been staged
    if (st && st != ST_NOT_FOUND) {
        return st;
    }
    if (!st && there == sb.st_size) {
        return ST_OK;
    }
    FAULT("bucket.put");
    TRY(s3_put(s3, key, fd, sb.st_size, d, e));
    FAULT("bucket.there");
    return ST_OK;
}

/* Keys are sorted, and ids of one kind by their birth: of the same second the last is younger. */
static enum status younger(void *ctx, const char *key, int64_t bytes, int64_t age_s, struct err *e)
{
    (void)e;
    struct blob_object *o = ctx;
    if (strlen(key) < sizeof(o->key) && (!o->found || age_s <= o->age_s)) {
        *o = (struct blob_object){.bytes = bytes, .age_s = age_s, .found = true};
        (void)snprintf(o->key, sizeof(o->key), "%s", key);
    }
    return ST_OK;
}

enum status blob_bucket_find(struct s3 *s3, const struct digest *d, struct blob_object *out,
                             struct err *e)
{
    char lead[BLOB_ASIDE_SIZE];
    keys_of(d, lead);
    *out = (struct blob_object){.found = false};
    TRY(s3_list(s3, lead, younger, out, e));
    return out->found ? ST_OK : err_set(e, ST_NOT_FOUND, "the object is not there");
}

struct clearing {
    struct s3 *s3;
    struct blob_object youngest;
};

static enum status drop_older(void *ctx, const char *key, int64_t bytes, int64_t age_s,
                              struct err *e)
{
    struct clearing *c = ctx;
    struct blob_object before = c->youngest;
    TRY(younger(&c->youngest, key, bytes, age_s, e));
    const char *older = strcmp(c->youngest.key, key) == 0 ? before.key : key;
    return older[0] ? s3_delete(c->s3, older, e) : ST_OK;
}

enum status blob_bucket_clear(struct s3 *s3, const struct digest *d, struct blob_object *out,
                              struct err *e)
{
    char lead[BLOB_ASIDE_SIZE];
    struct clearing c = {.s3 = s3};
    keys_of(d, lead);
    TRY(s3_list(s3, lead, drop_older, &c, e));
    *out = c.youngest;
    return ST_OK;
}

enum status blob_bucket_scan(struct s3 *s3, const struct digest *d, blob_scan_fn *fn, void *ctx,
                             struct err *e)
{
    struct blob_object o;
    TRY(blob_bucket_find(s3, d, &o, e));
    return s3_get(s3, o.key, 0, -1, fn, ctx, e);
}

struct fetching {
    int fd;
    int64_t at, bytes;
    struct sha256 *hash;
};

static enum status write_some(void *ctx, const void *data, size_t len, struct err *e)
{
    struct fetching *f = ctx;
    const char *p = data;
    sha256_add(f->hash, data, len);
    if (f->at + (int64_t)len > f->bytes) {
        return err_set(e, ST_CORRUPT, "the object is longer than the store said");
    }
    for (size_t done = 0; done < len;) {
        ssize_t n = pwrite(f->fd, p + done, len - done, f->at + (int64_t)done);
        if (n < 0 && errno != EINTR) {
            return err_set(e, errno == ENOSPC ? ST_LIMIT : ST_IO, "cannot write the cache: %s",
                           strerror(errno));
        }
        done += n > 0 ? (size_t)n : 0;
    }
    f->at += (int64_t)len;
    return ST_OK;
}

enum status blob_bucket_fetch(struct s3 *s3, const struct digest *d, const struct blob_object *o,
                              int fd, struct err *e)
{
    struct digest got;
    struct fetching f = {.fd = fd, .bytes = o->bytes, .hash = sha256_new()};
    enum status st = s3_get(s3, o->key, 0, -1, write_some, &f, e);
    sha256_end(f.hash, &got);
    sha256_free(f.hash);
    if (!st && (f.at != o->bytes || !digest_equal(&got, d))) {
        st = err_set(e, ST_CORRUPT, "the object's content is not what its name says");
    }
    return st;
}

/* ---- looking at everything ---- */

struct walking {
    blob_walk_fn *fn;
    void *ctx;
    struct blob_object last; // not yet told: the next may have the same content
    struct digest digest;    // its
};

static enum status tell(struct walking *w, const struct blob_object *o, bool superseded,
                        struct err *e)
{
    struct blob_entry f = {.name = o->key,
                           .digest = w->digest,
                           .bytes = o->bytes,
                           .age_s = o->age_s,
                           .superseded = superseded};
    return w->fn(w->ctx, &f, e);
}

static enum status tell_last(struct walking *w, struct err *e)
{
    bool found = w->last.found;
    w->last.found = false;
    return found ? tell(w, &w->last, false, e) : ST_OK;
}

/* <lead>[-id] of a digest. */
static bool is_ours(const char *key, struct digest *d)
{
    char lead[BLOB_ASIDE_SIZE];
    char hex[DIGEST_HEX + 1];
    const char *slash = strrchr(key, '/');
    (void)snprintf(hex, sizeof(hex), "%s", slash ? slash + 1 : "");
    if (strlen(key) >= sizeof(lead) || digest_parse(d, hex, NULL)) {
        return false;
    }
    keys_of(d, lead);
    size_t len = strlen(lead);
    return strncmp(key, lead, len) == 0 && (key[len] == '\0' || key[len] == '-');
}

static enum status on_object(void *ctx, const char *key, int64_t bytes, int64_t age_s,
                             struct err *e)
{
    struct walking *w = ctx;
    struct digest d;
    struct blob_object o = {.found = false};
    if (!is_ours(key, &d)) {
        struct blob_entry f = {.strange = true, .name = key, .bytes = bytes, .age_s = age_s};
        return w->fn(w->ctx, &f, e);
    }
    (void)younger(&o, key, bytes, age_s, e);
    if (!w->last.found || !digest_equal(&d, &w->digest)) {
        TRY(tell_last(w, e));
    } else {
        bool younger_now = age_s <= w->last.age_s; // as blob_bucket_find() has it
        TRY(tell(w, younger_now ? &w->last : &o, true, e));
        o = younger_now ? o : w->last;
    }
    w->last = o;
    w->digest = d;
    return ST_OK;
}

enum status blob_bucket_walk(struct s3 *s3, blob_walk_fn *fn, void *ctx, struct err *e)
{
    struct walking w = {.fn = fn, .ctx = ctx};
    TRY(s3_list(s3, "", on_object, &w, e));
    return tell_last(&w, e);
}

/* ---- the cache ---- */

struct oldest {
    bool found;
    struct digest digest;
    int64_t bytes, unused_s;
};

static enum status older(void *ctx, const struct blob_entry *f, struct err *e)
{
    (void)e;
    struct oldest *o = ctx;
    if (!f->strange && f->unused_s >= o->unused_s) {
        *o = (struct oldest){true, f->digest, f->bytes, f->unused_s};
    }
    return ST_OK;
}

int64_t blob_bucket_evict(const struct blob_folder *cache, int64_t unused_s)
{
    struct oldest o = {.unused_s = unused_s};
    struct err e = {0};
    if (blob_folder_walk(cache, older, &o, &e) || !o.found) {
        return -1;
    }
    if (blob_folder_remove(cache, &o.digest, &e)) {
        log_warn("the cache keeps a file: %s", e.msg);
        return -1;
    }
    return o.bytes;
}

static enum status add_bytes(void *ctx, const struct blob_entry *f, struct err *e)
{
    (void)e;
    *(int64_t *)ctx += f->strange ? 0 : f->bytes;
    return ST_OK;
}

int64_t blob_bucket_cached(const struct blob_folder *cache)
{
    int64_t bytes = 0;
    struct err e = {0};
    return blob_folder_walk(cache, add_bytes, &bytes, &e) ? 0 : bytes;
}
