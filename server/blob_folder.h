/*
 * blob_folder.h - a folder of files named by their digests: <fd>/aa/bb/<64 hex>.
 *
 * The half of the blob store that knows file systems. blob.h is the store for everybody else; with
 * an object store behind it, such a folder is its cache.
 */
#ifndef SERVER_BLOB_FOLDER_H
#define SERVER_BLOB_FOLDER_H

#include "server/blob.h"

struct blob_folder {
    int fd; /* -1: none */
};

/* A folder of root, made when missing (mode 0700). */
enum status blob_folder_open(struct blob_folder *f, int root, const char *name,
                             struct err *e) MUST_CHECK;
void blob_folder_close(struct blob_folder *f);

/* fsync of a folder: names in it are durable. */
enum status blob_folder_sync(int at, const char *path, struct err *e) MUST_CHECK;

/* Sync the temporary file, give it its name unless that is taken, sync the folder. */
enum status blob_folder_place(const struct blob_folder *f, int tmp_fd, const char *tmp_id,
                              const struct digest *d, struct err *e) MUST_CHECK;

/* The same, in place of what has the name: readers that have the old file open keep it. */
enum status blob_folder_replace(const struct blob_folder *f, int tmp_fd, const char *tmp_id,
                                const struct digest *d, struct err *e) MUST_CHECK;

enum status blob_folder_get(const struct blob_folder *f, const struct digest *d, int *fd,
                            int64_t *bytes, struct err *e) MUST_CHECK;
enum status blob_folder_remove(const struct blob_folder *f, const struct digest *d,
                               struct err *e) MUST_CHECK;

/* From its place to that name in tmp. ST_NOT_FOUND. */
enum status blob_folder_set_aside(const struct blob_folder *f, int tmp_fd, const char *name,
                                  const struct digest *d, struct err *e) MUST_CHECK;
/* And back, unless its place is taken: then it is dropped. Absent is fine. */
enum status blob_folder_put_back(const struct blob_folder *f, int tmp_fd, const char *name,
                                 const struct digest *d, struct err *e) MUST_CHECK;

enum status blob_folder_walk(const struct blob_folder *f, blob_walk_fn *fn, void *ctx,
                             struct err *e) MUST_CHECK;
enum status blob_folder_walk_tmp(int tmp_fd, blob_walk_fn *fn, void *ctx, struct err *e) MUST_CHECK;

#endif
