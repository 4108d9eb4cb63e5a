#include "server/blob.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "common/fault.h"
#include "common/mem.h"

enum { TMP_ID_MAX = 120 };

struct blob_store {
    int blobs_fd; // folders, so that a path is never more than a checked name below one of them
    int tmp_fd;
};

/* aa/bb and the whole name of a digest. */
struct blob_name {
    char outer[3];
    char inner[6];
    char path[6 + DIGEST_HEX + 1];
};

static struct blob_name name_of(const struct digest *d)
{
    char hex[DIGEST_HEX + 1];
    digest_hex(d, hex);
    struct blob_name n;
    (void)snprintf(n.outer, sizeof(n.outer), "%.2s", hex);
    (void)snprintf(n.inner, sizeof(n.inner), "%.2s/%.2s", hex, hex + 2);
    (void)snprintf(n.path, sizeof(n.path), "%s/%s", n.inner, hex);
    return n;
}

/* Letters, digits, '-' and '_' only: no separator, no dot, so the name stays in its folder. */
static bool tmp_id_ok(const char *id)
{
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
    size_t len = strlen(id);
    return len > 0 && len <= TMP_ID_MAX && strspn(id, allowed) == len;
}

static enum status sync_folder(int at, const char *path, struct err *e)
{
    int fd = openat(at, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) {
        return err_set(e, ST_IO, "cannot open the folder %s: %s", path, strerror(errno));
    }
    int bad = FAULT_ERR("blob.sync.folder") || fsync(fd);
    int why = errno;
    (void)close(fd);
    return bad ? err_set(e, ST_IO, "cannot sync the folder %s: %s", path, strerror(why)) : ST_OK;
}

static enum status open_folder(int at, const char *path, int *fd, struct err *e)
{
    if (mkdirat(at, path, 0700) && errno != EEXIST) {
        return err_set(e, ST_IO, "cannot make the folder %s: %s", path, strerror(errno));
    }
    *fd = openat(at, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (*fd < 0) {
        return err_set(e, ST_IO, "cannot open the folder %s: %s", path, strerror(errno));
    }
    return ST_OK;
}

enum status blob_store_open(struct blob_store **out, const char *dir, struct err *e)
{
    int root = -1;
    struct blob_store *s = mem_alloc(sizeof(*s));
    s->blobs_fd = s->tmp_fd = -1;
    if (mkdir(dir, 0700) && errno != EEXIST) {
        mem_free(s);
        return err_set(e, ST_IO, "cannot make the folder %s: %s", dir, strerror(errno));
    }
    enum status st = ST_OK;
    root = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (root < 0) {
        st = err_set(e, ST_IO, "cannot open the folder %s: %s", dir, strerror(errno));
    }
    if (!st) {
        st = open_folder(root, "blobs", &s->blobs_fd, e);
    }
    if (!st) {
        st = open_folder(root, "tmp", &s->tmp_fd, e);
    }
    if (!st && (faccessat(s->blobs_fd, ".", W_OK, 0) || faccessat(s->tmp_fd, ".", W_OK, 0))) {
        st = err_set(e, ST_IO, "cannot write in %s: %s", dir, strerror(errno));
    }
    if (!st) {
        st = sync_folder(root, ".", e);
    }
    if (root >= 0) {
        (void)close(root);
    }
    if (st) {
        blob_store_close(s);
        return st;
    }
    *out = s;
    return ST_OK;
}

void blob_store_close(struct blob_store *s)
{
    if (!s) {
        return;
    }
    if (s->blobs_fd >= 0) {
        (void)close(s->blobs_fd);
    }
    if (s->tmp_fd >= 0) {
        (void)close(s->tmp_fd);
    }
    mem_free(s);
}

int64_t blob_free_bytes(const struct blob_store *s)
{
    struct statvfs v;
    if (fstatvfs(s->blobs_fd, &v)) {
        return 0;
    }
    return (int64_t)v.f_bavail * (int64_t)v.f_frsize;
}

enum status blob_tmp_create(struct blob_store *s, const char *id, int64_t bytes, int *fd,
                            struct err *e)
{
    if (!tmp_id_ok(id)) {
        return err_set(e, ST_INVALID, "not the name of a temporary file");
    }
    assert(bytes >= 0);
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

/* The two folders of a blob, made durable in their parents before anything is put into them. */
static enum status make_folders(struct blob_store *s, const struct blob_name *n, struct err *e)
{
    if (!FAULT_ERR("blob.mkdir") && mkdirat(s->blobs_fd, n->outer, 0700) == 0) {
        TRY(sync_folder(s->blobs_fd, ".", e));
    } else if (errno != EEXIST) {
        return err_set(e, errno == ENOSPC ? ST_LIMIT : ST_IO, "cannot make blobs/%s: %s", n->outer,
                       strerror(errno));
    }
    if (mkdirat(s->blobs_fd, n->inner, 0700) == 0) {
        return sync_folder(s->blobs_fd, n->outer, e);
    }
    if (errno != EEXIST) {
        return err_set(e, errno == ENOSPC ? ST_LIMIT : ST_IO, "cannot make blobs/%s: %s", n->inner,
                       strerror(errno));
    }
    // Whoever made it may have died before its own sync.
    TRY(sync_folder(s->blobs_fd, ".", e));
    return sync_folder(s->blobs_fd, n->outer, e);
}

/* On a disk that lacks RENAME_NOREPLACE a hard link refuses to replace just as well. */
static int rename_noreplace(struct blob_store *s, const char *from, const char *to)
{
    if (renameat2(s->tmp_fd, from, s->blobs_fd, to, RENAME_NOREPLACE) == 0) {
        return 0;
    }
    if (errno != EINVAL && errno != ENOSYS) {
        return -1;
    }
    if (linkat(s->tmp_fd, from, s->blobs_fd, to, 0)) {
        return -1;
    }
    return unlinkat(s->tmp_fd, from, 0);
}

static bool blob_there(struct blob_store *s, const struct blob_name *n)
{
    struct stat sb;
    return fstatat(s->blobs_fd, n->path, &sb, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(sb.st_mode);
}

static enum status sync_file(struct blob_store *s, const char *tmp_id, struct err *e)
{
    int fd = openat(s->tmp_fd, tmp_id, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) {
        return err_set(e, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "cannot open tmp/%s: %s", tmp_id,
                       strerror(errno));
    }
    enum status st = ST_OK;
    if (fchmod(fd, 0400) || FAULT_ERR("blob.sync.file") || fsync(fd)) {
        st = err_set(e, ST_IO, "cannot sync tmp/%s: %s", tmp_id, strerror(errno));
    }
    if (close(fd) && !st) {
        st = err_set(e, ST_IO, "cannot close tmp/%s: %s", tmp_id, strerror(errno));
    }
    return st;
}

enum status blob_place(struct blob_store *s, const char *tmp_id, const struct digest *d,
                       struct err *e)
{
    if (!tmp_id_ok(tmp_id)) {
        return err_set(e, ST_INVALID, "not the name of a temporary file");
    }
    struct blob_name n = name_of(d);
    enum status st = sync_file(s, tmp_id, e);
    if (st == ST_NOT_FOUND && blob_there(s, &n)) {
        return sync_folder(s->blobs_fd, n.inner, e); // placed before; its reply was lost
    }
    TRY(st);
    FAULT("blob.synced");
    TRY(make_folders(s, &n, e));
    if (FAULT_ERR("blob.rename") || rename_noreplace(s, tmp_id, n.path)) {
        if (errno != EEXIST) {
            return err_set(e, errno == ENOSPC ? ST_LIMIT : ST_IO, "cannot place blobs/%s: %s",
                           n.path, strerror(errno));
        }
        (void)unlinkat(s->tmp_fd, tmp_id, 0); // the same content is there under the same name
    }
    FAULT("blob.renamed");
    return sync_folder(s->blobs_fd, n.inner, e);
}

enum status blob_open(struct blob_store *s, const struct digest *d, int *fd, int64_t *bytes,
                      struct err *e)
{
    struct blob_name n = name_of(d);
    int f = FAULT_ERR("blob.open") ? -1
                                   : openat(s->blobs_fd, n.path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (f < 0) {
        return err_set(e, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "cannot open blobs/%s: %s",
                       n.path, strerror(errno));
    }
    struct stat sb;
    if (fstat(f, &sb) || !S_ISREG(sb.st_mode)) {
        (void)close(f);
        return err_set(e, ST_IO, "blobs/%s is not a file", n.path);
    }
    *fd = f;
    *bytes = sb.st_size;
    return ST_OK;
}

enum status blob_remove(struct blob_store *s, const struct digest *d, struct err *e)
{
    struct blob_name n = name_of(d);
    if (FAULT_ERR("blob.unlink") || unlinkat(s->blobs_fd, n.path, 0)) {
        if (errno == ENOENT) {
            return ST_OK;
        }
        return err_set(e, ST_IO, "cannot remove blobs/%s: %s", n.path, strerror(errno));
    }
    FAULT("blob.unlinked");
    return sync_folder(s->blobs_fd, n.inner, e);
}
