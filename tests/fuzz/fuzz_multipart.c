/* A body means the same whole and cut anywhere; what was read, written again, reads the same. */
#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "common/buf.h"
#include "server/multipart.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static const char type[] = "multipart/form-data; boundary=b";

static enum status on_begin(void *ctx, const char *name, const char *content_type, struct err *e)
{
    (void)content_type;
    (void)e;
    buf_fmt(ctx, "--b\r\nContent-Disposition: form-data; name=\"%s\"\r\n\r\n", name);
    return ST_OK;
}

static enum status on_bytes(void *ctx, const void *data, size_t len, struct err *e)
{
    (void)e;
    assert(len > 0);
    buf_add(ctx, data, len);
    return ST_OK;
}

static enum status on_end(void *ctx, struct err *e)
{
    (void)e;
    buf_str(ctx, "\r\n");
    return ST_OK;
}

/* The parts of a body, written again in the plainest way. */
static enum status rewrite(struct buf *b, const void *body, size_t len, size_t piece)
{
    static const struct multipart_handler handler = {on_begin, on_bytes, on_end};
    struct multipart *m = NULL;
    enum status st = multipart_open(&m, type, &handler, b, NULL);
    assert(!st);
    for (size_t at = 0; at < len && !st; at += piece) {
        st = multipart_feed(m, (const char *)body + at, len - at < piece ? len - at : piece, NULL);
    }
    st = st ? st : multipart_end(m, NULL);
    multipart_free(m);
    buf_str(b, "--b--\r\n");
    return st;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    if (len < 1 || len > 65536) {
        return 0;
    }
    size_t piece = 1 + data[0] % 61;
    struct buf whole;
    struct buf cut;
    struct buf again;
    buf_init(&whole, 1 << 20);
    buf_init(&cut, 1 << 20);
    buf_init(&again, 1 << 20);
    enum status st = rewrite(&whole, data + 1, len - 1, len);
    assert(rewrite(&cut, data + 1, len - 1, piece) == st);
    if (!st) {
        assert(cut.len == whole.len && memcmp(cut.data, whole.data, cut.len) == 0);
        if (whole.len > strlen("--b--\r\n") && !whole.full) { // at least one part
            assert(rewrite(&again, whole.data, whole.len, piece) == ST_OK);
            assert(again.len == whole.len && memcmp(again.data, whole.data, again.len) == 0);
        }
    }
    buf_release(&whole);
    buf_release(&cut);
    buf_release(&again);
    return 0;
}
