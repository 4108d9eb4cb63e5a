/*
 * buf.h - a growing run of bytes that is given its ceiling at birth.
 *
 * Always NUL-terminated, so `data` is a C string when the bytes are text. Going over the ceiling
 * does not write and sets `full`; callers check once, at the end.
 */
#ifndef COMMON_BUF_H
#define COMMON_BUF_H

#include <stdbool.h>
#include <stddef.h>

#include "common/status.h"

struct buf {
    char *data; /* never NULL once initialised */
    size_t len;
    size_t size;
    size_t max;
    bool full;
};

void buf_init(struct buf *b, size_t max_len);
void buf_release(struct buf *b);
void buf_clear(struct buf *b);
void buf_add(struct buf *b, const void *bytes, size_t len);
void buf_str(struct buf *b, const char *s);
void buf_fmt(struct buf *b, const char *fmt, ...) PRINTF_LIKE(2, 3);
char *buf_take(struct buf *b); /* the caller owns it (mem_free); b is released */

#endif
