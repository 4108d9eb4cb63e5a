/*
 * Encoding, the second half of client/tokenizer.h: a chain of stages, each with a small buffer.
 *
 *     bytes -> repair -> scan[0]: added tokens -> NFC -> scan[1]: normalized ones
 *           -> pieces -> merges
 *
 * A stage passes on what no later byte can change and keeps the rest. `last` says that the text
 * ends here: at an added token, or with the document.
 */
#include <assert.h>
#include <string.h>

#include "client/bpe.h"
#include "client/tokenizer.h"
#include "client/tokenizer_parts.h"
#include "client/utf8.h"
#include "common/mem.h"

enum { BLOCK = 64 * 1024, OUT_IDS = 4096, STAGE_MAX = 16 * 1024 * 1024 };

struct encoder {
    const struct tokenizer *t;
    bool specials;
    encoder_sink *sink;
    void *ctx;
    char cut[3]; // the first bytes of a character whose rest is to come
    size_t cut_len;
    struct buf scan[2]; // text in which an added token may begin
    struct buf form;    // text whose end may compose with what comes
    struct buf text;    // text whose last piece may go on
    struct pretok_match *match[PRETOK_STAGES_MAX];
    struct bpe *bpe;
    int32_t out_count;
    int32_t out[OUT_IDS];
};

struct encoder *encoder_new(const struct tokenizer *t, bool specials, encoder_sink *sink, void *ctx)
{
    struct encoder *n = mem_alloc(sizeof(*n));
    n->t = t;
    n->specials = specials;
    n->sink = sink;
    n->ctx = ctx;
    for (int i = 0; i < 2; i++) {
        buf_init(&n->scan[i], STAGE_MAX);
    }
    buf_init(&n->form, STAGE_MAX);
    buf_init(&n->text, STAGE_MAX);
    for (int i = 0; i < t->stage_count; i++) {
        n->match[i] = pretok_match_new(t->stages[i]);
    }
    n->bpe = t->bytes ? NULL : bpe_new(t);
    return n;
}

void encoder_free(struct encoder *n)
{
    if (!n) {
        return;
    }
    for (int i = 0; i < n->t->stage_count; i++) {
        pretok_match_free(n->match[i]);
    }
    for (int i = 0; i < 2; i++) {
        buf_release(&n->scan[i]);
    }
    buf_release(&n->form);
    buf_release(&n->text);
    bpe_free(n->bpe);
    mem_free(n);
}

void encoder_reset(struct encoder *n)
{
    n->cut_len = 0;
    n->out_count = 0;
    buf_clear(&n->scan[0]);
    buf_clear(&n->scan[1]);
    buf_clear(&n->form);
    buf_clear(&n->text);
}

/* Drop the first `done` bytes: they were passed on. */
static void passed(struct buf *b, size_t done)
{
    memmove(b->data, b->data + done, b->len - done);
    b->len -= done;
    b->data[b->len] = '\0';
}

/* ---- ids out ---- */

static enum status flush(struct encoder *n, struct err *e)
{
    int32_t count = n->out_count;
    n->out_count = 0;
    return count > 0 ? n->sink(n->ctx, n->out, count, e) : ST_OK;
}

static enum status put(struct encoder *n, const int32_t *ids, int32_t count, struct err *e)
{
    while (count > 0) {
        int32_t room = OUT_IDS - n->out_count;
        int32_t some = count < room ? count : room;
        memcpy(n->out + n->out_count, ids, (size_t)some * sizeof(*ids));
        n->out_count += some;
        ids += some;
        count -= some;
        if (n->out_count == OUT_IDS) {
            TRY(flush(n, e));
        }
    }
    return ST_OK;
}

/* ---- pieces ---- */

/* Cut by the expressions from `stage` on, each within the pieces of the one before, then merge. */
static enum status piece(struct encoder *n, int stage, const char *s, size_t len, struct err *e)
{
    if (len == 0) {
        return ST_OK;
    }
    if (stage == n->t->stage_count) {
        int32_t count = 0;
        const int32_t *ids = bpe_piece(n->bpe, s, len, &count);
        return put(n, ids, count, e);
    }
    for (size_t at = 0; at < len;) {
        size_t begin = 0;
        size_t end = 0;
        bool more = false;
        TRY(pretok_next(n->match[stage], s, len, at, true, &begin, &end, &more, e));
        TRY(piece(n, stage + 1, s + at, begin - at, e));
        TRY(piece(n, stage + 1, s + begin, end - begin, e));
        at = end;
    }
    return ST_OK;
}

static enum status pieces(struct encoder *n, bool last, struct err *e)
{
    struct buf *b = &n->text;
    size_t at = 0;
    while (at < b->len) {
        bool force = last || b->len - at >= ENCODER_PIECE_MAX;
        size_t begin = b->len;
        size_t end = begin;
        bool more = !force;
        if (n->t->stage_count > 0) {
            TRY(pretok_next(n->match[0], b->data, b->len, at, force, &begin, &end, &more, e));
        }
        if (more) {
            break;
        }
        TRY(piece(n, 1, b->data + at, begin - at, e));
        TRY(piece(n, 1, b->data + begin, end - begin, e));
        at = end;
    }
    passed(b, at);
    return ST_OK;
}

/* ---- added tokens and NFC ---- */

/* The longest token that stands at s, or NULL. */
static const struct added *added_at(const struct added_set *set, bool specials, const char *s,
                                    size_t len)
{
    int i = set->first[(unsigned char)*s];
    for (; i >= 0 && i < set->count && set->items[i].text[0] == *s; i++) {
        const struct added *a = &set->items[i];
        if (a->len <= len && (specials || !a->special) && memcmp(a->text, s, a->len) == 0) {
            return a;
        }
    }
    return NULL;
}

static enum status scan_feed(struct encoder *n, int stage, const char *s, size_t len, bool last,
                             struct err *e);

static enum status form_feed(struct encoder *n, const char *s, size_t len, bool last, struct err *e)
{
    if (!n->t->nfc) {
        return scan_feed(n, 1, s, len, last, e);
    }
    buf_add(&n->form, s, len);
    size_t ready = last ? n->form.len : utf8_nfc_boundary(n->form.data, n->form.len);
    if (ready == 0 && n->form.len >= ENCODER_PIECE_MAX) {
        ready = n->form.len; // a megabyte of combining marks
    }
    struct buf composed;
    buf_init(&composed, STAGE_MAX);
    enum status st = utf8_nfc(&composed, n->form.data, ready, e);
    if (!st) {
        passed(&n->form, ready);
        st = scan_feed(n, 1, composed.data, composed.len, last, e);
    }
    buf_release(&composed);
    return st;
}

/* What lies behind a scan: NFC behind the first, pieces behind the second. */
static enum status behind(struct encoder *n, int stage, const char *s, size_t len, bool last,
                          struct err *e)
{
    if (stage == 0) {
        return form_feed(n, s, len, last, e);
    }
    buf_add(&n->text, s, len);
    return pieces(n, last, e);
}

static enum status scan_feed(struct encoder *n, int stage, const char *s, size_t len, bool last,
                             struct err *e)
{
    const struct added_set *set = stage == 0 ? &n->t->raw : &n->t->normalized;
    if (set->count == 0) {
        return behind(n, stage, s, len, last, e);
    }
    struct buf *b = &n->scan[stage];
    buf_add(b, s, len);
    size_t from = 0; // of the text not yet passed on
    size_t at = 0;
    while (at < b->len && (last || b->len - at >= set->longest)) {
        const struct added *a = added_at(set, n->specials, b->data + at, b->len - at);
        if (!a) {
            at++;
            continue;
        }
        TRY(behind(n, stage, b->data + from, at - from, true, e));
        TRY(put(n, &a->id, 1, e));
        at += a->len;
        from = at;
    }
    // A cut within a character would hand half of it on.
    while (!last && at > from && at < b->len && ((unsigned char)b->data[at] & 0xc0) == 0x80) {
        at--;
    }
    TRY(behind(n, stage, b->data + from, at - from, last, e));
    passed(b, at);
    return ST_OK;
}

/* ---- documents ---- */

static enum status add_bytes(struct encoder *n, const char *bytes, size_t len, struct err *e)
{
    for (size_t i = 0; i < len; i++) {
        n->out[n->out_count++] = BYTE_FIRST + (unsigned char)bytes[i];
        if (n->out_count == OUT_IDS) {
            TRY(flush(n, e));
        }
    }
    return ST_OK;
}

static enum status add_block(struct encoder *n, const char *bytes, size_t len, bool last,
                             struct err *e)
{
    struct buf joined;
    struct buf good;
    buf_init(&joined, STAGE_MAX);
    buf_init(&good, STAGE_MAX);
    buf_add(&joined, n->cut, n->cut_len);
    buf_add(&joined, bytes, len);
    n->cut_len = last ? 0 : utf8_cut(joined.data, joined.len);
    memcpy(n->cut, joined.data + joined.len - n->cut_len, n->cut_len);
    utf8_repair(&good, joined.data, joined.len - n->cut_len);
    enum status st = scan_feed(n, 0, good.data, good.len, last, e);
    buf_release(&joined);
    buf_release(&good);
    return st;
}

enum status encoder_add(struct encoder *n, const char *bytes, size_t len, struct err *e)
{
    if (n->t->bytes) {
        return add_bytes(n, bytes, len, e);
    }
    for (size_t at = 0; at < len; at += BLOCK) {
        size_t some = len - at < BLOCK ? len - at : BLOCK;
        TRY(add_block(n, bytes + at, some, false, e));
    }
    return ST_OK;
}

enum status encoder_end(struct encoder *n, struct err *e)
{
    if (!n->t->bytes) {
        TRY(add_block(n, "", 0, true, e));
        assert(n->scan[0].len + n->scan[1].len + n->form.len + n->text.len == 0);
    }
    return flush(n, e);
}
