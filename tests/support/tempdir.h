/*
 * tempdir.h - a folder of a test's own, and files in it.
 */
#ifndef TESTS_SUPPORT_TEMPDIR_H
#define TESTS_SUPPORT_TEMPDIR_H

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/support/check.h"

struct tempdir {
    char path[64];
};

static inline void tempdir_make(struct tempdir *t)
{
    (void)snprintf(t->path, sizeof(t->path), "/tmp/photon-test-XXXXXX");
    CHECK(mkdtemp(t->path) != NULL);
}

static inline int tempdir_remove_one(const char *path, const struct stat *s, int kind,
                                     struct FTW *f)
{
    (void)s;
    (void)kind;
    (void)f;
    return remove(path);
}

static inline void tempdir_remove(struct tempdir *t)
{
    (void)nftw(t->path, tempdir_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* The path of a name in it, valid until the sixteenth call from now. */
static inline const char *tempdir_at(const struct tempdir *t, const char *name)
{
    static char paths[16][256];
    static int next;
    char *out = paths[next++ % 16];
    (void)snprintf(out, sizeof(paths[0]), "%s/%s", t->path, name);
    return out;
}

static inline void tempdir_put(const struct tempdir *t, const char *name, const void *bytes,
                               size_t len)
{
    FILE *f = fopen(tempdir_at(t, name), "wb");
    CHECK(f != NULL);
    CHECK_INT(fwrite(bytes, 1, len, f), len);
    CHECK_INT(fclose(f), 0);
}

static inline void tempdir_text(const struct tempdir *t, const char *name, const char *text)
{
    tempdir_put(t, name, text, strlen(text));
}

static inline void tempdir_folder(const struct tempdir *t, const char *name)
{
    CHECK_INT(mkdir(tempdir_at(t, name), 0700), 0);
}

#endif
