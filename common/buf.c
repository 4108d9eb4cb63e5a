#include "common/buf.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/mem.h"

enum { FIRST_SIZE = 256 };

void buf_init(struct buf *b, size_t max_len)
{
    *b = (struct buf){.max = max_len, .size = FIRST_SIZE};
    b->data = mem_alloc(b->size);
}

void buf_release(struct buf *b)
{
    mem_free(b->data);
    *b = (struct buf){0};
}

void buf_clear(struct buf *b)
{
    b->len = 0;
    b->full = false;
    b->data[0] = '\0';
}

/* Room for extra bytes and the NUL; false when that is over the ceiling. */
static bool grow(struct buf *b, size_t extra)
{
    if (b->full || extra > b->max - b->len) {
        b->full = true;
        return false;
    }
    size_t need = b->len + extra + 1;
    if (need <= b->size) {
        return true;
    }
    size_t size = b->size * 2 > need ? b->size * 2 : need;
    if (size - 1 > b->max) {
        size = b->max + 1; // need is no more
    }
    char *data = mem_alloc(size);
    memcpy(data, b->data, b->len + 1);
    mem_free(b->data);
    b->data = data;
    b->size = size;
    return true;
}

void buf_add(struct buf *b, const void *bytes, size_t len)
{
    if (!grow(b, len)) {
        return;
    }
    if (len > 0) {
        memcpy(b->data + b->len, bytes, len);
    }
    b->len += len;
    b->data[b->len] = '\0';
}

void buf_str(struct buf *b, const char *s)
{
    buf_add(b, s, strlen(s));
}

void buf_fmt(struct buf *b, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    va_list again;
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    assert(n >= 0);
    if (grow(b, (size_t)n)) {
        (void)vsnprintf(b->data + b->len, (size_t)n + 1, fmt, again);
        b->len += (size_t)n;
    }
    va_end(again);
}

char *buf_take(struct buf *b)
{
    char *data = b->data;
    *b = (struct buf){0};
    return data;
}
