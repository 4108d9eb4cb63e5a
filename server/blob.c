#include "server/blob.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "common/fault.h"
#include "common/id.h"
#include "common/log.h"
#include "common/mem.h"
#include "server/blob_bucket.h"
#include "server/blob_fetch.h"
#include "server/blob_folder.h"

enum {
    TMP_ID_MAX = 120,
    READ_SIZE = 1 << 20,
    CACHE_UNUSED_S = 600, // a round's silos come for its checkpoint one after another
};

static const char ASIDE[] = "gone-";

/* Twice what PostgreSQL lets its log grow to: it may live on the same disk. */
static const int64_t FLOOR_MOST = (int64_t)2 << 30;
static const double FLOOR_PERCENT = 10.0;

struct blob_store {
    struct blob_folder blobs; // folders, so that a path is never more than a checked name below
    int root_fd, tmp_fd;
    struct s3 *bucket;            // or NULL; then blobs is the cache of it
    struct blob_fetches *fetches; // with a bucket
    atomic_int users;
    struct blob_floor floor;
};

/* Letters, digits, '-' and '_' only: no separator, no dot, so the name stays in its folder. */
static bool tmp_id_ok(const char *id)
{
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
    size_t len = strlen(id);
    return len > 0 && len <= TMP_ID_MAX && strspn(id, allowed) == len;
}

/* ---- the floor ---- */

enum status blob_floor_parse(struct blob_floor *out, const char *text, struct err *e)
{
    static const struct {
        const char *unit;
        double bytes;
    } units[] = {{"", 1.0}, {"K", 0x1p10}, {"M", 0x1p20}, {"G", 0x1p30}, {"T", 0x1p40}};
    char *end = NULL;
    double v = strtod(text, &end);
    bool number = end != text && isfinite(v) && v >= 0.0;
    if (number && strcmp(end, "%") == 0 && v <= 90.0) {
        *out = (struct blob_floor){.percent = v, .most = INT64_MAX};
        return ST_OK;
    }
    for (size_t i = 0; number && i < sizeof(units) / sizeof(units[0]); i++) {
        if (strcmp(end, units[i].unit) == 0 && v * units[i].bytes < 0x1p60) {
            *out = (struct blob_floor){.bytes = (int64_t)(v * units[i].bytes)};
            return ST_OK;
        }
    }
    return err_set(e, ST_INVALID, "'%.40s' is no room to keep free; try 10%% or 20G", text);
}

int64_t blob_free_bytes(const struct blob_store *s)
{
    struct statvfs v;
    if (FAULT_ERR("blob.free") || fstatvfs(s->blobs.fd, &v)) {
        return -1;
    }
    return (int64_t)v.f_bavail * (int64_t)v.f_frsize;
}

int64_t blob_floor_bytes(const struct blob_store *s)
{
    struct statvfs v;
    if (s->floor.percent <= 0.0 || fstatvfs(s->blobs.fd, &v)) {
        return s->floor.bytes;
    }
    double share = (double)v.f_blocks * (double)v.f_frsize * s->floor.percent / 100.0;
    return share < (double)s->floor.most ? (int64_t)share : s->floor.most;
}

int64_t blob_room_bytes(const struct blob_store *s)
{
    int64_t room = blob_free_bytes(s);
    bool asked = s->bucket && room >= 0 && room < blob_floor_bytes(s);
    return asked ? room + blob_bucket_cached(&s->blobs) : room;
}

int blob_cache_tend(struct blob_store *s)
{
    int count = 0;
    int64_t room = blob_free_bytes(s);
    int64_t missing = s->bucket && room >= 0 ? 2 * blob_floor_bytes(s) - room : 0;
    while (missing > 0) {
        int64_t bytes = blob_bucket_evict(&s->blobs, CACHE_UNUSED_S);
        if (bytes < 0) {
            break;
        }
        missing -= bytes;
        count++;
    }
    return count;
}

/* Free after bytes more are taken; the cache gives way for them. */
static int64_t room_after(struct blob_store *s, int64_t bytes)
{
    int64_t room = blob_free_bytes(s);
    while (s->bucket && room >= 0 && room - bytes < blob_floor_bytes(s) &&
           blob_bucket_evict(&s->blobs, 0) >= 0) {
        room = blob_free_bytes(s);
    }
    return room - bytes;
}

/* ---- opening ---- */

static enum status open_folders(struct blob_store *s, const char *dir, struct err *e)
{
    int root = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (root < 0) {
        return err_set(e, ST_IO, "cannot open the folder %s: %s", dir, strerror(errno));
    }
    struct blob_folder tmp = {.fd = -1};
    enum status st = blob_folder_open(&s->blobs, root, "blobs", e);
    if (!st) {
        st = blob_folder_open(&tmp, root, "tmp", e);
        s->tmp_fd = tmp.fd;
    }
    if (!st && (faccessat(s->blobs.fd, ".", W_OK, 0) || faccessat(s->tmp_fd, ".", W_OK, 0))) {
        st = err_set(e, ST_IO, "cannot write in %s: %s", dir, strerror(errno));
    }
    if (!st) {
        st = blob_folder_sync(root, ".", e);
    }
    s->root_fd = root;
    return st;
}

enum status blob_store_open(struct blob_store **out, const char *dir, struct err *e)
{
    if (mkdir(dir, 0700) && errno != EEXIST) {
        return err_set(e, ST_IO, "cannot make the folder %s: %s", dir, strerror(errno));
    }
    struct blob_store *s = mem_alloc(sizeof(*s));
    s->blobs.fd = s->tmp_fd = s->root_fd = -1;
    atomic_init(&s->users, 1);
    s->floor = (struct blob_floor){.percent = FLOOR_PERCENT, .most = FLOOR_MOST};
    enum status st = open_folders(s, dir, e);
    if (st) {
        blob_store_close(s);
        return st;
    }
    *out = s;
    return ST_OK;
}

void blob_store_floor(struct blob_store *s, const struct blob_floor *floor)
{
    s->floor = *floor;
}

void blob_store_close(struct blob_store *s)
{
    if (!s || atomic_fetch_sub(&s->users, 1) > 1) {
        return;
    }
    blob_fetches_free(s->fetches);
    s3_close(s->bucket);
    if (s->root_fd >= 0) {
        (void)close(s->root_fd);
    }
    blob_folder_close(&s->blobs);
    if (s->tmp_fd >= 0) {
        (void)close(s->tmp_fd);
    }
    mem_free(s);
}

static enum status refuse_any(void *ctx, const struct blob_entry *f, struct err *e)
{
    (void)ctx;
    return err_set(e, ST_CONFLICT,
                   "the folder has blobs of its own (%.90s); copy them into the bucket and move "
                   "store/blobs away",
                   f->name);
}

/* From the bucket into the cache. */
static enum status fetch(struct blob_store *s, const struct digest *d, struct err *e)
{
    char id[ID_LEN + 1];
    char tmp[ID_LEN + 16];
    int fd = -1;
    int64_t bytes = 0;
    id_new('c', id);
    (void)snprintf(tmp, sizeof(tmp), "fetch-%s", id);
    TRY(blob_bucket_stat(s->bucket, d, &bytes, e));
    TRY(blob_tmp_create(s, tmp, bytes, &fd, e));
    enum status st = blob_bucket_fetch(s->bucket, d, fd, bytes, e);
    (void)close(fd);
    st = st ? st : blob_folder_place(&s->blobs, s->tmp_fd, tmp, d, e);
    if (st) {
        blob_tmp_remove(s, tmp);
    }
    return st;
}

enum status blob_store_bucket(struct blob_store *s, struct s3 *bucket, struct err *e)
{
    struct blob_folder cache = {.fd = -1};
    TRY(blob_folder_walk(&s->blobs, refuse_any, NULL, e));
    TRY(blob_folder_open(&cache, s->root_fd, "cache", e));
    blob_folder_close(&s->blobs);
    s->blobs = cache;
    s->bucket = bucket;
    s->fetches = blob_fetches_new(s, fetch);
    return ST_OK;
}

bool blob_is_remote(const struct blob_store *s)
{
    return s->bucket != NULL;
}

struct blob_store *blob_store_share(struct blob_store *s)
{
    atomic_fetch_add(&s->users, 1);
    return s;
}

/* ---- temporary files ---- */

enum status blob_tmp_create(struct blob_store *s, const char *id, int64_t bytes, int *fd,
                            struct err *e)
{
    if (!tmp_id_ok(id)) {
        return err_set(e, ST_INVALID, "not the name of a temporary file");
    }
    assert(bytes >= 0);
    if (blob_free_bytes(s) < 0) {
        return err_set(e, ST_IO, "the disk does not say what is free: %s", strerror(errno));
    }
    int64_t room = room_after(s, bytes);
    if (room < blob_floor_bytes(s)) {
        return err_set(e, ST_LIMIT, "%lld bytes would leave %lld MiB free, less than is kept",
                       (long long)bytes, (long long)room / (1024 * 1024));
    }
    int f = FAULT_ERR("blob.tmp.create")
                ? -1
                : openat(s->tmp_fd, id, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (f < 0 && errno == EEXIST) {
        return err_set(e, ST_CONFLICT, "tmp/%s is there already", id);
    }
    int why = errno;
    if (f >= 0 && bytes > 0) {
        do {
            // Room is reserved now: better refused here than after hours of transfer.
            why = FAULT_ERR("blob.tmp.room") || fallocate(f, 0, 0, bytes) ? errno : 0;
        } while (why == EINTR);
        if (why) {
            (void)close(f);
            (void)unlinkat(s->tmp_fd, id, 0);
            f = -1;
        }
    }
    if (f < 0) {
        bool full = why == ENOSPC || why == EDQUOT || why == EFBIG;
        return err_set(e, full ? ST_LIMIT : ST_IO, "no room for %lld bytes in tmp/%s: %s",
                       (long long)bytes, id, strerror(why));
    }
    *fd = f;
    return ST_OK;
}

enum status blob_tmp_open(struct blob_store *s, const char *id, int *fd, struct err *e)
{
    if (!tmp_id_ok(id)) {
        return err_set(e, ST_INVALID, "not the name of a temporary file");
    }
    int f = openat(s->tmp_fd, id, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (f < 0 && errno == EACCES) {
        f = openat(s->tmp_fd, id,
                   O_RDONLY | O_NOFOLLOW | O_CLOEXEC); // complete, about to be placed
    }
    if (f < 0) {
        return err_set(e, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "cannot open tmp/%s: %s", id,
                       strerror(errno));
    }
    *fd = f;
    return ST_OK;
}

void blob_tmp_remove(struct blob_store *s, const char *id)
{
    if (tmp_id_ok(id)) {
        (void)unlinkat(s->tmp_fd, id, 0);
    }
}

enum status blob_tmp_size(struct blob_store *s, const char *id, int64_t *bytes, struct err *e)
{
    struct stat sb;
    if (!tmp_id_ok(id) || fstatat(s->tmp_fd, id, &sb, AT_SYMLINK_NOFOLLOW) ||
        !S_ISREG(sb.st_mode)) {
        return err_set(e, ST_NOT_FOUND, "there is no tmp/%.120s", id);
    }
    *bytes = sb.st_size;
    return ST_OK;
}

/* ---- blobs ---- */

static enum status open_tmp(struct blob_store *s, const char *tmp_id, int *fd, struct err *e)
{
    if (!tmp_id_ok(tmp_id)) {
        return err_set(e, ST_INVALID, "not the name of a temporary file");
    }
    *fd = openat(s->tmp_fd, tmp_id, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    return *fd >= 0 ? ST_OK
                    : err_set(e, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "cannot open tmp/%s: %s",
                              tmp_id, strerror(errno));
}

static enum status put(struct blob_store *s, const char *tmp_id, const struct digest *d,
                       bool replace, struct err *e)
{
    int fd = -1;
    TRY(open_tmp(s, tmp_id, &fd, e));
    enum status st = blob_bucket_put(s->bucket, fd, d, replace, e);
    (void)close(fd);
    return st;
}

enum status blob_stage(struct blob_store *s, const char *tmp_id, const struct digest *d,
                       struct err *e)
{
    return s->bucket ? put(s, tmp_id, d, false, e) : ST_OK;
}

/* The object, then the same file as its copy here; a copy that cannot be is no loss. */
static enum status place_in_bucket(struct blob_store *s, const char *tmp_id, const struct digest *d,
                                   bool replace, struct err *e)
{
    int64_t bytes = 0;
    struct err why = {0};
    enum status st = put(s, tmp_id, d, replace, e);
    if (st == ST_NOT_FOUND && !replace) { // placed before; its reply was lost
        return blob_bucket_stat(s->bucket, d, &bytes, e);
    }
    TRY(st);
    st = replace ? blob_folder_replace(&s->blobs, s->tmp_fd, tmp_id, d, &why)
                 : blob_folder_place(&s->blobs, s->tmp_fd, tmp_id, d, &why);
    if (st) {
        log_warn("no copy is kept here: %s", why.msg);
        blob_tmp_remove(s, tmp_id);
    }
    return ST_OK;
}

enum status blob_place(struct blob_store *s, const char *tmp_id, const struct digest *d,
                       struct err *e)
{
    if (!tmp_id_ok(tmp_id)) {
        return err_set(e, ST_INVALID, "not the name of a temporary file");
    }
    return s->bucket ? place_in_bucket(s, tmp_id, d, false, e)
                     : blob_folder_place(&s->blobs, s->tmp_fd, tmp_id, d, e);
}

enum status blob_replace(struct blob_store *s, const char *tmp_id, const struct digest *d,
                         struct err *e)
{
    if (!tmp_id_ok(tmp_id)) {
        return err_set(e, ST_INVALID, "not the name of a temporary file");
    }
    return s->bucket ? place_in_bucket(s, tmp_id, d, true, e)
                     : blob_folder_replace(&s->blobs, s->tmp_fd, tmp_id, d, e);
}

enum status blob_open_within(struct blob_store *s, const struct digest *d, int64_t patience_ms,
                             int *fd, int64_t *bytes, bool *coming, struct err *e)
{
    enum status st = blob_folder_get(&s->blobs, d, fd, bytes, e);
    *coming = false;
    if (!s->bucket) {
        return st;
    }
    for (int tries = 0; st == ST_NOT_FOUND && tries < 3; tries++) { // it may be let go meanwhile
        TRY(blob_fetch_wait(s->fetches, d, patience_ms, coming, e));
        st = blob_folder_get(&s->blobs, d, fd, bytes, e);
    }
    if (!st) {
        (void)futimens(*fd, NULL); // its last use, for the one that gives way
    }
    return st;
}

enum status blob_open(struct blob_store *s, const struct digest *d, int *fd, int64_t *bytes,
                      struct err *e)
{
    bool coming = false;
    return blob_open_within(s, d, -1, fd, bytes, &coming, e);
}

enum status blob_stat(struct blob_store *s, const struct digest *d, int64_t *bytes, struct err *e)
{
    if (s->bucket) {
        return blob_bucket_stat(s->bucket, d, bytes, e);
    }
    int fd = -1;
    TRY(blob_folder_get(&s->blobs, d, &fd, bytes, e));
    (void)close(fd);
    return ST_OK;
}

enum status blob_scan(struct blob_store *s, const struct digest *d, blob_scan_fn *fn, void *ctx,
                      struct err *e)
{
    int fd = -1;
    int64_t at = 0;
    int64_t size = 0;
    if (s->bucket) {
        return blob_bucket_scan(s->bucket, d, fn, ctx, e);
    }
    TRY(blob_folder_get(&s->blobs, d, &fd, &size, e));
    unsigned char *block = mem_alloc(READ_SIZE);
    enum status st = ST_OK;
    for (ssize_t n = 1; n != 0 && !st;) {
        n = pread(fd, block, READ_SIZE, at);
        if (n > 0) {
            st = fn(ctx, block, (size_t)n, e);
            at += n;
        } else if (n < 0 && errno == EIO) {
            st = err_set(e, ST_CORRUPT, "the disk cannot read byte %lld", (long long)at);
        } else if (n < 0 && errno != EINTR) {
            st = err_set(e, ST_IO, "cannot read a blob: %s", strerror(errno));
        }
    }
    mem_free(block);
    (void)close(fd);
    return st;
}

struct verifying {
    struct sha256 *hash;
    int64_t bytes;
};

static enum status verify_some(void *ctx, const void *data, size_t len, struct err *e)
{
    (void)e;
    struct verifying *v = ctx;
    sha256_add(v->hash, data, len);
    v->bytes += (int64_t)len;
    return ST_OK;
}

enum status blob_verify(struct blob_store *s, const struct digest *d, int64_t *bytes, struct err *e)
{
    struct digest got;
    struct verifying v = {.hash = sha256_new()};
    enum status st = blob_scan(s, d, verify_some, &v, e);
    sha256_end(v.hash, &got);
    sha256_free(v.hash);
    TRY(st);
    *bytes = v.bytes;
    return digest_equal(&got, d)
               ? ST_OK
               : err_set(e, ST_CORRUPT, "the file's content is not what its name says");
}

bool blob_distrust(struct blob_store *s, const struct digest *d)
{
    struct err e = {0};
    return s->bucket && blob_folder_remove(&s->blobs, d, &e) == ST_OK;
}

enum status blob_remove(struct blob_store *s, const struct digest *d, struct err *e)
{
    if (s->bucket) {
        TRY(blob_bucket_remove(s->bucket, d, e));
    }
    return blob_folder_remove(&s->blobs, d, e);
}

/* ---- set aside ---- */

bool blob_is_aside(const char *name, struct digest *d)
{
    size_t head = sizeof(ASIDE) - 1;
    if (strncmp(name, ASIDE, head) != 0 || strlen(name) <= head + DIGEST_HEX ||
        name[head + DIGEST_HEX] != '-' || !tmp_id_ok(name)) {
        return false;
    }
    char hex[DIGEST_HEX + 1];
    (void)snprintf(hex, sizeof(hex), "%s", name + head);
    return digest_parse(d, hex, NULL) == ST_OK;
}

enum status blob_set_aside(struct blob_store *s, const struct digest *d, char name[BLOB_ASIDE_SIZE],
                           struct err *e)
{
    char hex[DIGEST_HEX + 1];
    char id[ID_LEN + 1];
    name[0] = '\0';
    if (s->bucket) {
        return blob_remove(s, d, e);
    }
    digest_hex(d, hex);
    id_new('g', id);
    (void)snprintf(name, BLOB_ASIDE_SIZE, "%s%s-%s", ASIDE, hex, id);
    struct err why = {0};
    enum status st = blob_folder_set_aside(&s->blobs, s->tmp_fd, name, d, &why);
    if (st == ST_NOT_FOUND) {
        name[0] = '\0';
        return ST_OK;
    }
    return st ? err_set(e, st, "%s", why.msg) : ST_OK;
}

enum status blob_put_back(struct blob_store *s, const char *name, const struct digest *d,
                          struct err *e)
{
    struct digest named;
    if (!blob_is_aside(name, &named) || !digest_equal(&named, d)) {
        return err_set(e, ST_INVALID, "not the name of a file that was set aside");
    }
    return blob_folder_put_back(&s->blobs, s->tmp_fd, name, d, e);
}

struct aside_walk {
    blob_walk_fn *fn;
    void *ctx;
};

static enum status only_aside(void *ctx, const struct blob_entry *f, struct err *e)
{
    const struct aside_walk *w = ctx;
    struct blob_entry entry = *f;
    return blob_is_aside(f->name, &entry.digest) ? w->fn(w->ctx, &entry, e) : ST_OK;
}

enum status blob_walk_aside(struct blob_store *s, blob_walk_fn *fn, void *ctx, struct err *e)
{
    struct aside_walk w = {fn, ctx};
    return blob_folder_walk_tmp(s->tmp_fd, only_aside, &w, e);
}

enum status blob_walk(struct blob_store *s, blob_walk_fn *fn, void *ctx, struct err *e)
{
    TRY(s->bucket ? blob_bucket_walk(s->bucket, fn, ctx, e)
                  : blob_folder_walk(&s->blobs, fn, ctx, e));
    return blob_folder_walk_tmp(s->tmp_fd, fn, ctx, e);
}
