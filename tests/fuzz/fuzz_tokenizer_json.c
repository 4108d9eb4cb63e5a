/*
 * Any JSON as a tokenizer, and the bytes after the first NUL as a text for it. Properties: an
 * accepted tokenizer gives only ids that it has; the ids of a text are the same whether it comes
 * whole or byte by byte; without a normalizer, what is encoded decodes to
 * the text (repaired UTF-8).
 */
#include <stdlib.h>
#include <string.h>

#include "client/tokenizer.h"
#include "client/utf8.h"

int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t size);

static enum status collect(void *ctx, const int32_t *ids, int32_t count, struct err *e)
{
    (void)e;
    buf_add(ctx, ids, (size_t)count * sizeof(*ids));
    return ST_OK;
}

static enum status encode(const struct tokenizer *t, const char *s, size_t n, size_t block,
                          struct buf *out)
{
    struct err e = {0};
    struct encoder *enc = encoder_new(t, true, collect, out);
    enum status st = ST_OK;
    for (size_t at = 0; at < n && !st; at += block) {
        st = encoder_add(enc, s + at, n - at < block ? n - at : block, &e);
    }
    st = st ? st : encoder_end(enc, &e);
    encoder_free(enc);
    return st;
}

static void try_text(const struct tokenizer *t, const char *s, size_t n)
{
    struct buf one;
    struct buf two;
    struct buf text;
    struct buf good;
    buf_init(&one, (size_t)1 << 26);
    buf_init(&two, (size_t)1 << 26);
    buf_init(&text, (size_t)1 << 26);
    buf_init(&good, (size_t)1 << 26);
    struct tokenizer_info info;
    tokenizer_info(t, &info);
    if (encode(t, s, n, 1 << 20, &one) == ST_OK && encode(t, s, n, 1, &two) == ST_OK) {
        int64_t count = (int64_t)(one.len / sizeof(int32_t));
        const int32_t *ids = (const void *)one.data;
        for (int64_t i = 0; i < count; i++) {
            if (ids[i] < 0 || ids[i] >= info.ids) {
                abort();
            }
        }
        if (one.len != two.len || memcmp(one.data, two.data, one.len) != 0) {
            abort();
        }
        tokenizer_decode(t, ids, count, true, &text);
        utf8_repair(&good, s, n);
        if (strcmp(info.normalizer, "none") == 0 &&
            (text.len != good.len || memcmp(text.data, good.data, good.len) != 0)) {
            abort();
        }
    }
    buf_release(&one);
    buf_release(&two);
    buf_release(&text);
    buf_release(&good);
}

int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t size)
{
    const unsigned char *nul = memchr(bytes, '\0', size);
    size_t len = nul ? (size_t)(nul - bytes) : size;
    struct tokenizer *t = NULL;
    struct err e = {0};
    if (tokenizer_parse(&t, (const char *)bytes, len, &e) == ST_OK) {
        if (nul && size - len - 1 <= 512) {
            try_text(t, (const char *)nul + 1, size - len - 1);
        }
        tokenizer_free(t);
    } else if (e.msg[0] == '\0') {
        abort();
    }
    return 0;
}
