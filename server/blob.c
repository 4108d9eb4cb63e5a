#include "server/blob.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "common/fault.h"
#include "common/mem.h"
#include "server/blob_folder.h"

enum { TMP_ID_MAX = 120, READ_SIZE = 1 << 20 };

/* Twice what PostgreSQL lets its log grow to: it may live on the same disk. */
static const int64_t FLOOR_MOST = (int64_t)2 << 30;
static const double FLOOR_PERCENT = 10.0;

struct blob_store {
    struct blob_folder blobs; // folders, so that a path is never more than a checked name below
    int tmp_fd;
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
    if (fstatvfs(s->blobs.fd, &v)) {
        return 0;
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
    (void)close(root);
    return st;
}

enum status blob_store_open(struct blob_store **out, const char *dir, struct err *e)
{
    if (mkdir(dir, 0700) && errno != EEXIST) {
        return err_set(e, ST_IO, "cannot make the folder %s: %s", dir, strerror(errno));
    }
    struct blob_store *s = mem_alloc(sizeof(*s));
    s->blobs.fd = s->tmp_fd = -1;
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
    if (!s) {
        return;
    }
    blob_folder_close(&s->blobs);
    if (s->tmp_fd >= 0) {
        (void)close(s->tmp_fd);
    }
    mem_free(s);
}

/* ---- temporary files ---- */

enum status blob_tmp_create(struct blob_store *s, const char *id, int64_t bytes, int *fd,
                            struct err *e)
{
    if (!tmp_id_ok(id)) {
        return err_set(e, ST_INVALID, "not the name of a temporary file");
    }
    assert(bytes >= 0);
    int64_t room = blob_free_bytes(s) - bytes;
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

enum status blob_place(struct blob_store *s, const char *tmp_id, const struct digest *d,
                       struct err *e)
{
    if (!tmp_id_ok(tmp_id)) {
        return err_set(e, ST_INVALID, "not the name of a temporary file");
    }
    return blob_folder_place(&s->blobs, s->tmp_fd, tmp_id, d, e);
}

enum status blob_replace(struct blob_store *s, const char *tmp_id, const struct digest *d,
                         struct err *e)
{
    if (!tmp_id_ok(tmp_id)) {
        return err_set(e, ST_INVALID, "not the name of a temporary file");
    }
    return blob_folder_replace(&s->blobs, s->tmp_fd, tmp_id, d, e);
}

enum status blob_open(struct blob_store *s, const struct digest *d, int *fd, int64_t *bytes,
                      struct err *e)
{
    return blob_folder_get(&s->blobs, d, fd, bytes, e);
}

enum status blob_stat(struct blob_store *s, const struct digest *d, int64_t *bytes, struct err *e)
{
    int fd = -1;
    TRY(blob_folder_get(&s->blobs, d, &fd, bytes, e));
    (void)close(fd);
    return ST_OK;
}

static enum status read_whole(int fd, struct digest *out, int64_t *bytes, struct err *e)
{
    unsigned char *block = mem_alloc(READ_SIZE);
    struct sha256 *h = sha256_new();
    enum status st = ST_OK;
    *bytes = 0;
    for (ssize_t n = 1; n != 0 && !st;) {
        n = pread(fd, block, READ_SIZE, *bytes);
        if (n > 0) {
            sha256_add(h, block, (size_t)n);
            *bytes += n;
        } else if (n < 0 && errno == EIO) {
            st = err_set(e, ST_CORRUPT, "the disk cannot read byte %lld", (long long)*bytes);
        } else if (n < 0 && errno != EINTR) {
            st = err_set(e, ST_IO, "cannot read a blob: %s", strerror(errno));
        }
    }
    sha256_end(h, out);
    sha256_free(h);
    mem_free(block);
    return st;
}

enum status blob_verify(struct blob_store *s, const struct digest *d, int64_t *bytes, struct err *e)
{
    struct digest got;
    int fd = -1;
    TRY(blob_open(s, d, &fd, bytes, e));
    enum status st = read_whole(fd, &got, bytes, e);
    (void)close(fd);
    TRY(st);
    return digest_equal(&got, d)
               ? ST_OK
               : err_set(e, ST_CORRUPT, "the file's content is not what its name says");
}

enum status blob_remove(struct blob_store *s, const struct digest *d, struct err *e)
{
    return blob_folder_remove(&s->blobs, d, e);
}

enum status blob_walk(struct blob_store *s, blob_walk_fn *fn, void *ctx, struct err *e)
{
    TRY(blob_folder_walk(&s->blobs, fn, ctx, e));
    return blob_folder_walk_tmp(s->tmp_fd, fn, ctx, e);
}
