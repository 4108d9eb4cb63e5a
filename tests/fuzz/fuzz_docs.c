/*
 * Any bytes as a file of documents. The first byte says which format, whether gzip, and where texts
 * are cut. Properties: no document is empty; an uncut text comes out as it went in; cutting loses
 * nothing but line ends between documents.
 */
#include <stdlib.h>
#include <string.h>

#include "client/docs.h"
#include "common/buf.h"

int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t size);

struct seen {
    struct buf text;
    bool open;
};

static enum status on_text(void *ctx, const char *bytes, size_t len, struct err *e)
{
    struct seen *s = ctx;
    (void)e;
    s->open = s->open || len > 0;
    buf_add(&s->text, bytes, len);
    return ST_OK;
}

static enum status on_tokens(void *ctx, const int32_t *ids, int32_t count, struct err *e)
{
    struct seen *s = ctx;
    (void)e;
    for (int32_t i = 0; i < count; i++) {
        if (ids[i] == 0) {
            abort(); // the end of text is no token of a document
        }
    }
    s->open = s->open || count > 0;
    return ST_OK;
}

static enum status on_end(void *ctx, struct err *e)
{
    struct seen *s = ctx;
    (void)e;
    if (!s->open) {
        abort();
    }
    s->open = false;
    return ST_OK;
}

/* Is part what is left of whole when some line ends are taken out? */
static void check_cut(const char *part, size_t part_len, const char *whole, size_t len)
{
    size_t at = 0;
    for (size_t i = 0; i < len; i++) {
        if (at < part_len && part[at] == whole[i]) {
            at++;
        } else if (whole[i] != '\n' && whole[i] != '\r') {
            abort();
        }
    }
    if (at != part_len) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t size)
{
    if (size == 0) {
        return 0;
    }
    enum doc_format format = (enum doc_format)(1 + bytes[0] % 4);
    bool gzip = (bytes[0] & 0x10) != 0;
    struct doc_options o = {.text_key = "text", .split = bytes[0] >> 5};
    struct seen s = {0};
    struct doc_counts counts = {0};
    struct err e = {0};
    struct doc_sink sink = {.ctx = &s, .text = on_text, .tokens = on_tokens, .end = on_end};
    buf_init(&s.text, (size_t)1 << 30);
    enum status st =
        docs_read_bytes("fuzz", bytes + 1, size - 1, format, gzip, &o, &sink, &counts, &e);
    if (!st && s.open) {
        abort();
    }
    if (!st && format == DOC_TEXT && !gzip) {
        check_cut(s.text.data, s.text.len, (const char *)bytes + 1, size - 1);
        if (o.split == 0 && s.text.len != size - 1) {
            abort();
        }
    }
    buf_release(&s.text);
    return 0;
}
