#include "server/blob_folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/fault.h"

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

enum status blob_folder_sync(int at, const char *path, struct err *e)
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

enum status blob_folder_open(struct blob_folder *f, int root, const char *name, struct err *e)
{
    if (mkdirat(root, name, 0700) && errno != EEXIST) {
        return err_set(e, ST_IO, "cannot make the folder %s: %s", name, strerror(errno));
    }
    f->fd = openat(root, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (f->fd < 0) {
        return err_set(e, ST_IO, "cannot open the folder %s: %s", name, strerror(errno));
    }
    return ST_OK;
}

void blob_folder_close(struct blob_folder *f)
{
    if (f->fd >= 0) {
        (void)close(f->fd);
        f->fd = -1;
    }
}

/* The two folders of a blob, made durable in their parents before anything is put into them. */
static enum status make_folders(const struct blob_folder *f, const struct blob_name *n,
                                struct err *e)
{
    if (!FAULT_ERR("blob.mkdir") && mkdirat(f->fd, n->outer, 0700) == 0) {
        TRY(blob_folder_sync(f->fd, ".", e));
    } else if (errno != EEXIST) {
        return err_set(e, errno == ENOSPC ? ST_LIMIT : ST_IO, "cannot make blobs/%s: %s", n->outer,
                       strerror(errno));
    }
    if (mkdirat(f->fd, n->inner, 0700) == 0) {
        return blob_folder_sync(f->fd, n->outer, e);
    }
    if (errno != EEXIST) {
        return err_set(e, errno == ENOSPC ? ST_LIMIT : ST_IO, "cannot make blobs/%s: %s", n->inner,
                       strerror(errno));
    }
    // Whoever made it may have died before its own sync.
    TRY(blob_folder_sync(f->fd, ".", e));
    return blob_folder_sync(f->fd, n->outer, e);
}

/* On a disk that lacks RENAME_NOREPLACE a hard link refuses to replace just as well. */
static int rename_noreplace(const struct blob_folder *f, int tmp_fd, const char *from,
                            const char *to)
{
    if (renameat2(tmp_fd, from, f->fd, to, RENAME_NOREPLACE) == 0) {
        return 0;
    }
    if (errno != EINVAL && errno != ENOSYS) {
        return -1;
    }
    if (linkat(tmp_fd, from, f->fd, to, 0)) {
        return -1;
    }
    return unlinkat(tmp_fd, from, 0);
}

/* Bytes of a file; -1: there is none. */
static int64_t size_of(int at, const char *path)
{
    struct stat sb;
    bool there = fstatat(at, path, &sb, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(sb.st_mode);
    return there ? sb.st_size : -1;
}

static enum status sync_file(int tmp_fd, const char *tmp_id, struct err *e)
{
    int fd = openat(tmp_fd, tmp_id, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
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

enum status blob_folder_place(const struct blob_folder *f, int tmp_fd, const char *tmp_id,
                              const struct digest *d, struct err *e)
{
    struct blob_name n = name_of(d);
    enum status st = sync_file(tmp_fd, tmp_id, e);
    if (st == ST_NOT_FOUND && size_of(f->fd, n.path) >= 0) {
        return blob_folder_sync(f->fd, n.inner, e); // placed before; its reply was lost
    }
    TRY(st);
    FAULT("blob.synced");
    TRY(make_folders(f, &n, e));
    if (FAULT_ERR("blob.rename") || rename_noreplace(f, tmp_fd, tmp_id, n.path)) {
        if (errno != EEXIST) {
            return err_set(e, errno == ENOSPC ? ST_LIMIT : ST_IO, "cannot place blobs/%s: %s",
                           n.path, strerror(errno));
        }
        if (size_of(f->fd, n.path) != size_of(tmp_fd, tmp_id)) { // ours is whole, that one is not
            return blob_folder_replace(f, tmp_fd, tmp_id, d, e);
        }
        (void)unlinkat(tmp_fd, tmp_id, 0); // the same content is there under the same name
    }
    FAULT("blob.renamed");
    return blob_folder_sync(f->fd, n.inner, e);
}

enum status blob_folder_replace(const struct blob_folder *f, int tmp_fd, const char *tmp_id,
                                const struct digest *d, struct err *e)
{
    struct blob_name n = name_of(d);
    TRY(sync_file(tmp_fd, tmp_id, e));
    TRY(make_folders(f, &n, e));
    if (FAULT_ERR("blob.replace") || renameat(tmp_fd, tmp_id, f->fd, n.path)) {
        return err_set(e, errno == ENOSPC ? ST_LIMIT : ST_IO, "cannot replace blobs/%s: %s", n.path,
                       strerror(errno));
    }
    return blob_folder_sync(f->fd, n.inner, e);
}

enum status blob_folder_get(const struct blob_folder *f, const struct digest *d, int *fd,
                            int64_t *bytes, struct err *e)
{
    struct blob_name n = name_of(d);
    int file =
        FAULT_ERR("blob.open") ? -1 : openat(f->fd, n.path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (file < 0) {
        return err_set(e, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "cannot open blobs/%s: %s",
                       n.path, strerror(errno));
    }
    struct stat sb;
    if (fstat(file, &sb) || !S_ISREG(sb.st_mode)) {
        (void)close(file);
        return err_set(e, ST_IO, "blobs/%s is not a file", n.path);
    }
    *fd = file;
    *bytes = sb.st_size;
    return ST_OK;
}

enum status blob_folder_remove(const struct blob_folder *f, const struct digest *d, struct err *e)
{
    struct blob_name n = name_of(d);
    if (FAULT_ERR("blob.unlink") || unlinkat(f->fd, n.path, 0)) {
        if (errno == ENOENT) {
            return ST_OK;
        }
        return err_set(e, ST_IO, "cannot remove blobs/%s: %s", n.path, strerror(errno));
    }
    FAULT("blob.unlinked");
    return blob_folder_sync(f->fd, n.inner, e);
}

enum status blob_folder_set_aside(const struct blob_folder *f, int tmp_fd, const char *name,
                                  const struct digest *d, struct err *e)
{
    struct blob_name n = name_of(d);
    if (FAULT_ERR("blob.aside") || renameat(f->fd, n.path, tmp_fd, name)) {
        return err_set(e, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "cannot set blobs/%s aside: %s",
                       n.path, strerror(errno));
    }
    FAULT("blob.aside.done");
    return blob_folder_sync(f->fd, n.inner, e);
}

enum status blob_folder_put_back(const struct blob_folder *f, int tmp_fd, const char *name,
                                 const struct digest *d, struct err *e)
{
    struct blob_name n = name_of(d);
    if (rename_noreplace(f, tmp_fd, name, n.path) == 0) {
        return blob_folder_sync(f->fd, n.inner, e);
    }
    if (errno == EEXIST) { // placed anew meanwhile
        (void)unlinkat(tmp_fd, name, 0);
        return ST_OK;
    }
    return errno == ENOENT
               ? ST_OK
               : err_set(e, ST_IO, "cannot put blobs/%s back: %s", n.path, strerror(errno));
}

/* ---- looking at everything ---- */

static DIR *list(int at, const char *path)
{
    int fd = openat(at, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    if (fd >= 0 && !dir) {
        (void)close(fd);
    }
    return dir;
}

/* False: . and .., or gone since it was listed. */
static bool look(DIR *dir, const struct dirent *entry, struct stat *sb)
{
    return strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 &&
           fstatat(dirfd(dir), entry->d_name, sb, AT_SYMLINK_NOFOLLOW) == 0;
}

static void describe(struct blob_entry *out, const char *name, const struct stat *sb)
{
    *out = (struct blob_entry){.name = name, .bytes = sb->st_size};
    // Not the time of its content, which a copy may bring along: since when it is here.
    int64_t age = (int64_t)time(NULL) - (int64_t)sb->st_ctim.tv_sec;
    int64_t unused = (int64_t)time(NULL) - (int64_t)sb->st_mtim.tv_sec;
    out->age_s = age > 0 ? age : 0;
    out->unused_s = unused > 0 ? unused : 0;
}

enum status blob_folder_walk_tmp(int tmp_fd, blob_walk_fn *fn, void *ctx, struct err *e)
{
    DIR *dir = list(tmp_fd, ".");
    if (!dir) {
        return err_set(e, ST_IO, "cannot list tmp: %s", strerror(errno));
    }
    enum status st = ST_OK;
    struct stat sb;
    for (struct dirent *d = readdir(dir); d && !st; d = readdir(dir)) {
        if (look(dir, d, &sb)) {
            struct blob_entry entry;
            describe(&entry, d->d_name, &sb);
            entry.tmp = true;
            st = fn(ctx, &entry, e);
        }
    }
    (void)closedir(dir);
    return st;
}

/* depth 0: blobs, 1: blobs/aa, 2: blobs/aa/bb. What is not where its name says is shown as strange.
 */
static enum status walk(int at, const char *path, int depth, const char *shown, blob_walk_fn *fn,
                        void *ctx, struct err *e)
{
    DIR *dir = list(at, path);
    if (!dir) {
        return errno == ENOENT ? ST_OK
                               : err_set(e, ST_IO, "cannot list %s: %s", shown, strerror(errno));
    }
    enum status st = ST_OK;
    struct stat sb;
    for (struct dirent *d = readdir(dir); d && !st; d = readdir(dir)) {
        if (!look(dir, d, &sb)) {
            continue;
        }
        char below[320];
        (void)snprintf(below, sizeof(below), "%.40s/%s", shown, d->d_name);
        bool hex = strspn(d->d_name, "0123456789abcdef") == strlen(d->d_name);
        if (depth < 2 && S_ISDIR(sb.st_mode) && hex && strlen(d->d_name) == 2) {
            st = walk(dirfd(dir), d->d_name, depth + 1, below, fn, ctx, e);
            continue;
        }
        struct blob_entry entry;
        describe(&entry, below, &sb);
        bool whole = depth == 2 && S_ISREG(sb.st_mode) &&
                     digest_parse(&entry.digest, d->d_name, NULL) == ST_OK;
        entry.strange = !whole || strcmp(name_of(&entry.digest).path, below + sizeof("blobs")) != 0;
        st = fn(ctx, &entry, e);
    }
    (void)closedir(dir);
    return st;
}

enum status blob_folder_walk(const struct blob_folder *f, blob_walk_fn *fn, void *ctx,
                             struct err *e)
{
    return walk(f->fd, ".", 0, "blobs", fn, ctx, e);
}
