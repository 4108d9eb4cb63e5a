#include "client/durable.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/fault.h"

/* ---- the test hook: a crash at the n-th durable step ---- */

static int fail_countdown = -1;
static bool fail_fired;

void durable_fail_after(int n)
{
    fail_countdown = n;
    fail_fired = false;
}

bool durable_fail_fired(void)
{
    return fail_fired;
}

static bool crashes_here(void)
{
    if (fail_fired) {
        return true; // a dead process does nothing more
    }
    if (fail_countdown < 0) {
        return false;
    }
    fail_fired = fail_countdown-- == 0;
    return fail_fired;
}

/* ---- files ---- */

enum status io_status(int errnum)
{
    return errnum == ENOSPC || errnum == EDQUOT ? ST_LIMIT : ST_IO;
}

enum status dir_make(const char *path, struct err *e)
{
    char p[STATE_PATH_MAX];
    if (snprintf(p, sizeof(p), "%s", path) >= (int)sizeof(p)) {
        return err_set(e, ST_LIMIT, "the path is too long: %.80s", path);
    }
    for (char *c = p + 1; *c; c++) {
        if (*c == '/') {
            *c = '\0';
            (void)mkdir(p, 0755);
            *c = '/';
        }
    }
    if (mkdir(p, 0700) != 0 && errno != EEXIST) {
        return err_set(e, io_status(errno), "cannot make %s: %s", path, strerror(errno));
    }
    return ST_OK;
}

static enum status sync_folder_of(const char *path, struct err *e)
{
    char copy[STATE_PATH_MAX];
    (void)snprintf(copy, sizeof(copy), "%s", path);
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = fd >= 0 && !FAULT_ERR("state.sync.folder") ? fsync(fd) : -1;
    int saved = errno;
    if (fd >= 0) {
        (void)close(fd);
    }
    return rc == 0 ? ST_OK
                   : err_set(e, io_status(saved), "cannot sync the folder of %s: %s", path,
                             strerror(saved));
}

enum status file_move(const char *from, const char *to, struct err *e)
{
    if (crashes_here()) {
        return err_set(e, ST_IO, "crash before naming %s", to);
    }
    if (FAULT_ERR("state.rename") || rename(from, to) != 0) {
        return err_set(e, io_status(errno), "cannot name %s: %s", to, strerror(errno));
    }
    FAULT("state.renamed");
    if (crashes_here()) {
        return err_set(e, ST_IO, "crash after naming %s", to);
    }
    return sync_folder_of(to, e);
}

enum status file_drop(const char *path, struct err *e)
{
    if (crashes_here()) {
        return err_set(e, ST_IO, "crash before removing %s", path);
    }
    FAULT("state.drop");
    if (unlink(path) != 0 && errno != ENOENT) {
        return err_set(e, ST_IO, "cannot remove %s: %s", path, strerror(errno));
    }
    return ST_OK;
}

enum status file_place(const char *tmp, const char *path, struct err *e)
{
    int fd = open(tmp, O_RDONLY | O_CLOEXEC);
    int rc = fd >= 0 && !FAULT_ERR("state.sync.file") ? fsync(fd) : -1;
    int saved = errno;
    if (fd >= 0) {
        (void)close(fd);
    }
    if (rc != 0) {
        return err_set(e, io_status(saved), "cannot sync %s: %s", tmp, strerror(saved));
    }
    FAULT("state.synced");
    return file_move(tmp, path, e);
}

enum status file_write(const char *path, const void *bytes, size_t len, struct err *e)
{
    char tmp[STATE_PATH_MAX + 8];
    (void)snprintf(tmp, sizeof(tmp), "%s.tmp", path);
    int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) {
        return err_set(e, io_status(errno), "cannot create %s: %s", tmp, strerror(errno));
    }
    const char *p = bytes;
    size_t done = 0;
    int failed = 0;
    while (done < len && !failed) {
        ssize_t n = FAULT_ERR("state.write") ? -1 : write(fd, p + done, len - done);
        if (n > 0) {
            done += (size_t)n;
        } else if (errno != EINTR) {
            failed = errno;
        }
    }
    if (close(fd) != 0 && !failed) {
        failed = errno;
    }
    if (failed) {
        return err_set(e, io_status(failed), "cannot write %s: %s", tmp, strerror(failed));
    }
    return file_place(tmp, path, e);
}

enum status file_read(const char *path, char *out, size_t size, struct err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return err_set(e, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "cannot open %s: %s", path,
                       strerror(errno));
    }
    size_t len = 0;
    ssize_t n = 0;
    while (len < size - 1 && (n = read(fd, out + len, size - 1 - len)) > 0) {
        len += (size_t)n;
    }
    out[len] = '\0';
    (void)close(fd);
    if (n < 0) {
        return err_set(e, ST_IO, "cannot read %s", path);
    }
    return len == size - 1 ? err_set(e, ST_LIMIT, "%s is too long", path) : ST_OK;
}
