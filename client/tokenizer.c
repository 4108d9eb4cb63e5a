#include "client/tokenizer.h"

#include <assert.h>
#include <string.h>

#include "client/tokenizer_parts.h"
#include "common/limits.h"
#include "common/mem.h"

/* ---- GPT-2's names for bytes ---- */

/* Printable Latin-1 stands for itself; the other 68 bytes go to U+0100 upward, in order. */
static bool stands_for_itself(int c)
{
    return (c >= 0x21 && c <= 0x7e) || (c >= 0xa1 && c <= 0xac) || (c >= 0xae && c <= 0xff);
}

int32_t byte_char(int byte)
{
    if (stands_for_itself(byte)) {
        return byte;
    }
    int n = 0;
    for (int b = 0; b < byte; b++) {
        n += !stands_for_itself(b);
    }
    return 0x100 + n;
}

int byte_of_char(int32_t c)
{
    if (c < 0x100) {
        return c >= 0 && stands_for_itself(c) ? c : -1;
    }
    int n = c - 0x100;
    for (int b = 0; b < 256; b++) {
        if (!stands_for_itself(b) && n-- == 0) {
            return b;
        }
    }
    return -1;
}

void byte_text(struct buf *out, const char *bytes, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        int32_t c = byte_char((unsigned char)bytes[i]);
        char two[2] = {(char)(0xc0 | c >> 6), (char)(0x80 | (c & 0x3f))};
        if (c < 0x80) {
            two[0] = (char)c;
        }
        buf_add(out, two, c < 0x80 ? 1 : 2);
    }
}

/* ---- merges ---- */

static size_t place(const struct merge_table *t, uint64_t pair)
{
    uint64_t h = pair * 0x9e3779b97f4a7c15U;
    size_t i = (size_t)(h >> 29) & t->mask;
    while (t->places[i].pair != pair && t->places[i].pair != EMPTY_PAIR) {
        i = (i + 1) & t->mask;
    }
    return i;
}

void merge_table_init(struct merge_table *t, int32_t count)
{
    size_t size = 16;
    while (size < 2 * ((size_t)count + 1)) {
        size *= 2;
    }
    t->places = mem_alloc(size * sizeof(*t->places));
    t->mask = size - 1;
    t->count = 0;
    for (size_t i = 0; i < size; i++) {
        t->places[i].pair = EMPTY_PAIR;
    }
}

bool merge_table_add(struct merge_table *t, struct merge m)
{
    struct merge *p = &t->places[place(t, m.pair)];
    if (p->pair == m.pair) {
        return false;
    }
    assert((size_t)t->count < t->mask / 2 + 1);
    *p = m;
    t->count++;
    return true;
}

const struct merge *merge_table_find(const struct merge_table *t, uint64_t pair)
{
    const struct merge *p = &t->places[place(t, pair)];
    return p->pair == pair ? p : NULL;
}

/* ---- the object ---- */

static void add_token(struct tokenizer *t, int32_t id, const char *text, size_t len, bool special)
{
    t->tokens[id] =
        (struct token){.at = (uint32_t)t->text.len, .len = (uint32_t)len, .special = special};
    buf_add(&t->text, text, len);
}

struct tokenizer *tokenizer_bytes(void)
{
    struct tokenizer *t = mem_alloc(sizeof(*t));
    t->bytes = true;
    t->ids = BYTE_IDS;
    t->end_of_text = BYTE_END_OF_TEXT;
    t->padding = BYTE_PADDING;
    t->tokens = mem_alloc(BYTE_IDS * sizeof(*t->tokens));
    buf_init(&t->text, 1024);
    static const char END[] = "<|endoftext|>";
    static const char PAD[] = "<|padding|>";
    add_token(t, BYTE_END_OF_TEXT, END, sizeof(END) - 1, true);
    add_token(t, BYTE_PADDING, PAD, sizeof(PAD) - 1, true);
    for (int b = 0; b < 256; b++) {
        char byte = (char)b;
        t->byte_id[b] = BYTE_FIRST + b;
        add_token(t, BYTE_FIRST + b, &byte, 1, false);
    }
    return t;
}

void tokenizer_free(struct tokenizer *t)
{
    if (!t) {
        return;
    }
    for (int i = 0; i < t->stage_count; i++) {
        pretok_free(t->stages[i]);
    }
    mem_free(t->raw.items);
    mem_free(t->normalized.items);
    mem_free(t->merges.places);
    mem_free(t->tokens);
    if (t->text.data) {
        buf_release(&t->text);
    }
    mem_free(t);
}

void tokenizer_info(const struct tokenizer *t, struct tokenizer_info *out)
{
    *out = (struct tokenizer_info){.ids = t->ids,
                                   .vocab_size = (t->ids + 63) / 64 * 64,
                                   .end_of_text = t->end_of_text,
                                   .padding = t->padding};
    memcpy(out->sha256, t->sha256, sizeof(out->sha256));
    memcpy(out->normalizer, t->nfc ? "NFC" : "none", t->nfc ? 4 : 5);
}

const char *tokenizer_token(const struct tokenizer *t, int32_t id, size_t *len)
{
    bool known = id >= 0 && id < t->ids;
    *len = known ? t->tokens[id].len : 0;
    return known ? t->text.data + t->tokens[id].at : "";
}

int32_t tokenizer_token_bytes(const struct tokenizer *t, int32_t id)
{
    bool counts = id >= 0 && id < t->ids && !t->tokens[id].special;
    return counts ? (int32_t)t->tokens[id].len : 0;
}

void tokenizer_decode(const struct tokenizer *t, const int32_t *ids, int64_t count, bool specials,
                      struct buf *out)
{
    for (int64_t i = 0; i < count; i++) {
        size_t len = 0;
        const char *text = tokenizer_token(t, ids[i], &len);
        if (len > 0 && (specials || !t->tokens[ids[i]].special)) {
            buf_add(out, text, len);
        }
    }
}
