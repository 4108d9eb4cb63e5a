/*
 * synced.h - what a test program has asked the disk to keep, in order.
 *
 * Defines the libc calls that make things durable, with the real system call inside: whatever the
 * program under test syncs or names is noted, so that a test can say what must come before what.
 * At most one file of a program includes it. Entries are the path of a synced file or folder, or
 * "rename NAME" with the last part of the old name.
 */
#ifndef TESTS_SYNCED_H
#define TESTS_SYNCED_H

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SYNCED_MAX = 256, SYNCED_PATH = 256 };

static char synced_log[SYNCED_MAX][SYNCED_PATH];
static int synced_count;

static inline void synced_clear(void)
{
    synced_count = 0;
}

static void synced_note(const char *what, const char *path)
{
    if (synced_count < SYNCED_MAX) {
        (void)snprintf(synced_log[synced_count++], SYNCED_PATH, "%s%.200s", what, path);
    }
}

static void synced_note_fd(int fd)
{
    char link[32];
    char path[200];
    (void)snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof(path) - 1);
    path[n > 0 ? n : 0] = '\0';
    synced_note("", path);
}

static bool synced_ends(int i, const char *end)
{
    size_t n = strlen(synced_log[i]);
    size_t k = strlen(end);
    return n >= k && strcmp(synced_log[i] + n - k, end) == 0;
}

/* The place of the first entry that ends in this; -1 when there is none. */
static inline int synced_at(const char *end)
{
    for (int i = 0; i < synced_count; i++) {
        if (synced_ends(i, end)) {
            return i;
        }
    }
    return -1;
}

static inline int synced_last(const char *end)
{
    for (int i = synced_count - 1; i >= 0; i--) {
        if (synced_ends(i, end)) {
            return i;
        }
    }
    return -1;
}

/* Called before the disk is asked, for a test of who waits for it meanwhile. */
static void (*synced_before)(void);

int fsync(int fd)
{
    synced_note_fd(fd);
    return (int)syscall(SYS_fsync, fd);
}

int fdatasync(int fd)
{
    if (synced_before) {
        synced_before();
    }
    synced_note_fd(fd);
    return (int)syscall(SYS_fdatasync, fd);
}

static const char *synced_base(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

int rename(const char *from, const char *to)
{
    synced_note("rename ", synced_base(from));
    return (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags)
{
    synced_note("rename ", synced_base(from));
    return (int)syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
}

#endif
