#include "client/docs.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "client/docs_input.h"
#include "client/shard.h"
#include "common/buf.h"
#include "common/json.h"

enum { LINE_ARENA = 1 << 20, TOKENS_STEP = 8192 };

const char *const DOC_FORMAT_NAMES[DOC_FORMAT_COUNT + 1] = {"auto", "text",    "jsonl",
                                                            "bin",  "raw-u16", NULL};

/* What one file is read with. */
struct reading {
    struct input *in;
    const char *path;
    const struct doc_options *o;
    const struct doc_sink *sink;
    struct doc_counts *counts;
    int64_t line;
};

/* ---- plain text ---- */

/* Cutting one text into documents: at a blank line, else at a line, else between characters. */
struct cutter {
    int64_t size;    // of the document so far
    bool blank_line; // nothing but spaces since the last newline
};

static enum status end_document(struct cutter *c, const struct doc_sink *sink, struct err *e)
{
    if (c->size == 0) {
        return ST_OK;
    }
    c->size = 0;
    return sink->end(sink->ctx, e);
}

static bool space(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

/* Where in a block the present document ends, or n. */
static size_t find_cut(struct cutter *c, const char *s, size_t n, int64_t split, bool *cut)
{
    *cut = false;
    for (size_t i = 0; i < n; i++) {
        int64_t size = c->size + (int64_t)i;
        if (s[i] == '\n') {
            bool here = c->blank_line ? size >= split : size >= 4 * split;
            c->blank_line = true;
            if (here) {
                *cut = true;
                return i + 1;
            }
        } else {
            c->blank_line = c->blank_line && space(s[i]);
            if (size >= 16 * split && ((unsigned char)s[i] & 0xc0) != 0x80) {
                *cut = true;
                return i;
            }
        }
    }
    return n;
}

static enum status text_block(struct cutter *c, const struct reading *r, const char *s, size_t n,
                              struct err *e)
{
    while (n > 0) {
        bool cut = false;
        while (r->o->split > 0 && c->size == 0 && n > 0 && (*s == '\n' || *s == '\r')) {
            s++; // a document does not begin with the blank line that ended the one before
            n--;
        }
        size_t some = r->o->split > 0 ? find_cut(c, s, n, r->o->split, &cut) : n;
        if (some > 0) {
            TRY(r->sink->text(r->sink->ctx, s, some, e));
        }
        c->size += (int64_t)some;
        s += some;
        n -= some;
        if (cut) {
            TRY(end_document(c, r->sink, e));
        }
    }
    return ST_OK;
}

static enum status read_text(struct reading *r, struct err *e)
{
    struct cutter c = {.blank_line = true};
    for (;;) {
        const char *block = NULL;
        size_t n = 0;
        TRY(input_block(r->in, &block, &n, e));
        if (n == 0) {
            return end_document(&c, r->sink, e);
        }
        TRY(text_block(&c, r, block, n, e));
    }
}

/* ---- JSON lines ---- */

static void note(struct reading *r, const char *why)
{
    if (r->counts->first_bad[0] == '\0') {
        (void)snprintf(r->counts->first_bad, sizeof(r->counts->first_bad), "%.120s:%" PRId64 ": %s",
                       r->path, r->line, why);
    }
}

/* The keys an object has, for whoever named the wrong one. */
static void note_keys(struct reading *r, const struct json *doc)
{
    char text[100] = "";
    size_t n = 0;
    for (const struct json *v = json_first(doc); v && n < sizeof(text) - 24; v = json_next(v)) {
        n += (size_t)snprintf(text + n, sizeof(text) - n, "%s%.20s", n ? ", " : "", json_key(v));
    }
    char why[180];
    (void)snprintf(why, sizeof(why), "no text under '%.30s'; its keys: %s", r->o->text_key, text);
    note(r, why);
}

static enum status json_line(struct reading *r, const char *s, size_t n, struct err *e)
{
    while (n > 0 && space(s[n - 1])) {
        n--;
    }
    if (n == 0) {
        return ST_OK;
    }
    struct arena *a = arena_new(LINE_ARENA);
    const struct json *doc = NULL;
    struct err why = {0};
    enum status st = ST_OK;
    if (json_parse(&doc, a, s, n, &why) || json_kind(doc) != JSON_OBJECT) {
        r->counts->bad_lines++;
        note(r, why.msg[0] ? why.msg : "no JSON object");
    } else {
        const char *text = json_str(json_get(doc, r->o->text_key));
        if (!text) {
            r->counts->keyless++;
            note_keys(r, doc);
        } else if (*text) {
            st = r->sink->text(r->sink->ctx, text, strlen(text), e);
            st = st ? st : r->sink->end(r->sink->ctx, e);
        }
    }
    arena_free(a);
    return st;
}

/* A line that came in several blocks is joined first; too long a one is passed over. */
struct line {
    struct buf text;
    bool too_long;
};

static enum status line_end(struct reading *r, struct line *l, struct err *e)
{
    r->line++;
    enum status st = ST_OK;
    if (l->too_long || l->text.full) {
        r->counts->bad_lines++;
        note(r, "the line is longer than 16 MiB");
    } else {
        st = json_line(r, l->text.data, l->text.len, e);
    }
    buf_clear(&l->text);
    l->too_long = false;
    return st;
}

static enum status lines_block(struct reading *r, struct line *l, const char *s, size_t n,
                               struct err *e)
{
    while (n > 0) {
        const char *nl = memchr(s, '\n', n);
        size_t some = nl ? (size_t)(nl - s) : n;
        if (nl && l->text.len == 0 && !l->too_long && !l->text.full) {
            r->line++;
            TRY(json_line(r, s, some, e));
        } else {
            l->too_long = l->too_long || some > DOC_LINE_MAX - l->text.len;
            if (!l->too_long) {
                buf_add(&l->text, s, some);
            }
            if (nl) {
                TRY(line_end(r, l, e));
            }
        }
        some += nl ? 1 : 0;
        s += some;
        n -= some;
    }
    return ST_OK;
}

static enum status read_lines(struct reading *r, struct err *e)
{
    struct line l = {0};
    buf_init(&l.text, DOC_LINE_MAX);
    enum status st = ST_OK;
    for (;;) {
        const char *block = NULL;
        size_t n = 0;
        st = input_block(r->in, &block, &n, e);
        if (st || n == 0) {
            break;
        }
        st = lines_block(r, &l, block, n, e);
        if (st) {
            break;
        }
    }
    if (!st && (l.text.len > 0 || l.too_long)) {
        st = line_end(r, &l, e);
    }
    buf_release(&l.text);
    return st;
}

/* ---- tokens of others ---- */

static enum status give_tokens(struct reading *r, const int32_t *ids, int32_t count, bool *open,
                               struct err *e)
{
    for (int32_t from = 0; from < count;) {
        int32_t to = from;
        while (to < count && ids[to] != r->o->end_of_text) {
            to++;
        }
        if (to > from) {
            TRY(r->sink->tokens(r->sink->ctx, ids + from, to - from, e));
            *open = true;
        }
        if (to < count && *open) {
            TRY(r->sink->end(r->sink->ctx, e));
            *open = false;
        }
        from = to + 1;
    }
    return ST_OK;
}

/* Tokens of that width, little-endian, until the input ends. */
static enum status stream_tokens(struct reading *r, int32_t width, struct err *e)
{
    int32_t ids[TOKENS_STEP];
    bool open = false;
    unsigned char part[4]; // of a token that came in two blocks
    size_t part_len = 0;
    for (;;) {
        const char *block = NULL;
        size_t n = 0;
        int32_t count = 0;
        TRY(input_block(r->in, &block, &n, e));
        for (size_t i = 0; i < n; i++) {
            part[part_len++] = (unsigned char)block[i];
            if (part_len < (size_t)width) {
                continue;
            }
            part_len = 0;
            uint32_t id = (uint32_t)part[0] | (uint32_t)part[1] << 8;
            if (width == 4) {
                id |= (uint32_t)part[2] << 16 | (uint32_t)part[3] << 24;
            }
            ids[count++] = (int32_t)id;
            if (count == TOKENS_STEP) {
                TRY(give_tokens(r, ids, count, &open, e));
                count = 0;
            }
        }
        TRY(give_tokens(r, ids, count, &open, e));
        if (n == 0) {
            break;
        }
    }
    if (part_len > 0) {
        return err_set(e, ST_CORRUPT, "%.160s ends within a token", r->path);
    }
    return open ? r->sink->end(r->sink->ctx, e) : ST_OK;
}

static enum status read_bin(struct reading *r, struct err *e)
{
    unsigned char head[SHARD_HEAD_BYTES];
    size_t got = 0;
    while (got < sizeof(head)) {
        const char *block = NULL;
        size_t n = 0;
        TRY(input_some(r->in, sizeof(head) - got, &block, &n, e));
        if (n == 0) {
            return err_set(e, ST_CORRUPT, "%.160s is too short for a token shard", r->path);
        }
        memcpy(head + got, block, n);
        got += n;
    }
    struct shard_head h;
    struct err why = {0};
    if (shard_head_parse(&h, head, (int64_t)sizeof(head), input_size(r->in), &why)) {
        return err_set(e, ST_CORRUPT, "%.100s: %.130s", r->path, why.msg);
    }
    return stream_tokens(r, h.width, e);
}

/* ---- files ---- */

static enum status read_input(struct input *in, const char *path, enum doc_format format,
                              const struct doc_options *o, const struct doc_sink *sink,
                              struct doc_counts *counts, struct err *e)
{
    struct reading r = {.in = in, .path = path, .o = o, .sink = sink, .counts = counts};
    switch (format) {
    case DOC_JSONL:
        return read_lines(&r, e);
    case DOC_BIN:
        return read_bin(&r, e);
    case DOC_RAW_U16:
        return stream_tokens(&r, 2, e);
    case DOC_AUTO:
    case DOC_TEXT:
    case DOC_FORMAT_COUNT:
        break;
    }
    return read_text(&r, e);
}

enum status docs_read(const struct doc_file *f, const struct doc_options *o,
                      const struct doc_sink *sink, struct doc_counts *counts, struct err *e)
{
    struct input *in = NULL;
    TRY(input_open(&in, f->path, f->gzip, &counts->consumed, e));
    enum status st = read_input(in, f->path, f->format, o, sink, counts, e);
    input_close(in);
    return st;
}

enum status docs_read_bytes(const char *path, const void *bytes, size_t len, enum doc_format format,
                            bool gzip, const struct doc_options *o, const struct doc_sink *sink,
                            struct doc_counts *counts, struct err *e)
{
    struct input *in = input_memory(path, bytes, len, gzip, &counts->consumed);
    enum status st = read_input(in, path, format, o, sink, counts, e);
    input_close(in);
    return st;
}
