/*
 * durable.h - files that are whole or not there, whatever instant a process or a machine dies at.
 *
 * A file is written beside its place, synced, renamed, and its folder synced: a name stands for
 * whole contents. Each such step is a place where a test can make the process stop (the hook
 * below), so that whoever builds a transaction out of renames (client/state.h) is tried at each.
 */
#ifndef CLIENT_DURABLE_H
#define CLIENT_DURABLE_H

#include <stdbool.h>
#include <stddef.h>

#include "common/status.h"

enum { STATE_PATH_MAX = 1024 };

/* mkdir -p, mode 0700. */
enum status dir_make(const char *path, struct err *e) MUST_CHECK;

/* Write beside, sync, rename, sync the folder. ST_LIMIT: the disk is full. */
enum status file_write(const char *path, const void *bytes, size_t len, struct err *e) MUST_CHECK;
/* Sync an existing file, give it its name, sync the folder. ST_LIMIT: the disk is full. */
enum status file_place(const char *tmp, const char *path, struct err *e) MUST_CHECK;
/* The same for a file that is synced already. */
enum status file_move(const char *from, const char *to, struct err *e) MUST_CHECK;
/* Gone, or never there. Its folder is not synced: after a power cut it may be there again. */
enum status file_drop(const char *path, struct err *e) MUST_CHECK;
/* A small text file, NUL-terminated, into out. ST_NOT_FOUND, ST_LIMIT, ST_IO. */
enum status file_read(const char *path, char *out, size_t size, struct err *e) MUST_CHECK;

/* ENOSPC and EDQUOT are ST_LIMIT, everything else ST_IO. */
enum status io_status(int errnum);

/* Test hook: the n-th step of a durable change from now fails as a crash there would, and so does
 * every one after it; < 0 disarms. */
void durable_fail_after(int n);
bool durable_fail_fired(void);

#endif
