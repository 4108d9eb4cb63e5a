#include "server/blob_bucket.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/fault.h"
#include "common/log.h"

enum { KEY_MAX = 90 };

static void key_of(const struct digest *d, char key[KEY_MAX])
{
    char hex[DIGEST_HEX + 1];
    digest_hex(d, hex);
    (void)snprintf(key, KEY_MAX, "blobs/%.2s/%.2s/%s", hex, hex + 2, hex);
}

enum status blob_bucket_put(struct s3 *s3, int fd, const struct digest *d, bool replace,
                            struct err *e)
{
    char key[KEY_MAX];
    struct stat sb;
    int64_t there = -1;
    key_of(d, key);
    if (fstat(fd, &sb)) {
        return err_set(e, ST_IO, "cannot look at a temporary file: %s", strerror(errno));
    }
    if (!replace) { // cheaper than a body that the store would refuse
        enum status st = s3_head(s3, key, &there, e);
        if (st && st != ST_NOT_FOUND) {
            return st;
        }
        if (!st && there == sb.st_size) {
            return ST_OK;
        }
    }
    FAULT("bucket.put");
    TRY(s3_put(s3, key, fd, sb.st_size, d, replace || there >= 0, e));
    FAULT("bucket.there");
    return ST_OK;
}

enum status blob_bucket_stat(struct s3 *s3, const struct digest *d, int64_t *bytes, struct err *e)
{
    char key[KEY_MAX];
    key_of(d, key);
    return s3_head(s3, key, bytes, e);
}

enum status blob_bucket_remove(struct s3 *s3, const struct digest *d, struct err *e)
{
    char key[KEY_MAX];
    key_of(d, key);
    return s3_delete(s3, key, e);
}

enum status blob_bucket_scan(struct s3 *s3, const struct digest *d, blob_scan_fn *fn, void *ctx,
                             struct err *e)
{
    char key[KEY_MAX];
    key_of(d, key);
    return s3_get(s3, key, 0, -1, fn, ctx, e);
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

enum status blob_bucket_fetch(struct s3 *s3, const struct digest *d, int fd, int64_t bytes,
                              struct err *e)
{
    struct digest got;
    struct fetching f = {.fd = fd, .bytes = bytes, .hash = sha256_new()};
    enum status st = blob_bucket_scan(s3, d, write_some, &f, e);
    sha256_end(f.hash, &got);
    sha256_free(f.hash);
    if (!st && (f.at != bytes || !digest_equal(&got, d))) {
        st = err_set(e, ST_CORRUPT, "the object's content is not what its name says");
    }
    return st;
}

/* ---- looking at everything ---- */

struct walking {
    blob_walk_fn *fn;
    void *ctx;
};

static enum status on_object(void *ctx, const char *key, int64_t bytes, int64_t age_s,
                             struct err *e)
{
    const struct walking *w = ctx;
    char want[KEY_MAX] = "";
    struct blob_entry f = {.name = key, .bytes = bytes, .age_s = age_s};
    const char *slash = strrchr(key, '/');
    if (slash && digest_parse(&f.digest, slash + 1, NULL) == ST_OK) {
        key_of(&f.digest, want);
    }
    f.strange = strcmp(want, key) != 0;
    return w->fn(w->ctx, &f, e);
}

enum status blob_bucket_walk(struct s3 *s3, blob_walk_fn *fn, void *ctx, struct err *e)
{
    struct walking w = {fn, ctx};
    return s3_list(s3, on_object, &w, e);
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
