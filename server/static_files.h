/*
 * static_files.h - the dashboard's files, a list made once at start-up.
 *
 * Only what the listing found is served, by its exact name: no name from a request ever becomes a
 * path. The files themselves are read on each request, so that an edited page needs a reload only.
 */
#ifndef SERVER_STATIC_FILES_H
#define SERVER_STATIC_FILES_H

#include <stdbool.h>

#include "common/arena.h"
#include "common/status.h"

struct static_file {
    const char *name; /* relative, such as vendor/uPlot.esm.js */
    const char *content_type;
    bool immutable; /* under a folder that carries a version: may be cached for ever */
};

/* List the folder and those below it. A folder that is not there holds nothing. */
void static_files_load(const char *dir);

/* NULL when the listing has no such name. */
const struct static_file *static_file_find(const char *name);

/* The file's bytes in the arena. ST_NOT_FOUND: it is gone since. ST_LIMIT: over 8 MiB. */
enum status static_file_read(char **out, size_t *len, struct arena *a, const struct static_file *f,
                             struct err *e) MUST_CHECK;

#endif
