#include "client/bpe_train.h"

#include <assert.h>
#include <string.h>

#include "client/tokenizer_parts.h"
#include "client/utf8.h"
#include "common/json.h"
#include "common/mem.h"

enum { WORD_MAX = 256, TOKEN_MAX = 128, BLOCK = 64 * 1024, TICK = 256 };

static const size_t TEXT_MAX = (size_t)1 << 31;

struct word {    // a piece of text, each counted once
    uint32_t at; // in the trainer's text, later in symbols
    uint32_t len;
    int64_t count;
};

struct pair {
    uint64_t key; // left << 32 | right; EMPTY_PAIR: a free place
    int64_t count;
    uint32_t *words; // that held it at some time, some of them twice
    uint32_t word_count;
    uint32_t room;
    bool learned; // it has a merge; it may come back when a later merge spells one of its sides
};

struct bid { // a pair with the count it had when it was queued
    int64_t count;
    uint64_t key;
};

struct bpe_trainer {
    struct pretok *pretok;
    struct pretok_match *match;
    char cut[3];
    size_t cut_len;
    struct buf pending; // text of the document whose last piece may go on
    struct buf text;    // the words' bytes
    struct word *words;
    uint32_t word_count;
    uint32_t word_room;
    uint32_t *word_places; // index + 1; 0: free
    uint32_t word_mask;

    int32_t *symbols; // the words as ids
    struct pair *pairs;
    size_t pair_mask;
    size_t pair_count;
    struct bid *heap;
    size_t heap_count;
    size_t heap_room;

    struct buf names;  // the tokens' bytes, one after the other
    uint32_t *name_at; // ids + 1 of them
    int32_t ids;
    int32_t *name_places; // id + 1; 0: free
    uint32_t name_mask;
};

struct bpe_trainer *bpe_trainer_new(void)
{
    struct bpe_trainer *t = mem_alloc(sizeof(*t));
    t->pretok = pretok_gpt2();
    t->match = pretok_match_new(t->pretok);
    buf_init(&t->pending, 16 * (size_t)ENCODER_PIECE_MAX);
    buf_init(&t->text, TEXT_MAX);
    buf_init(&t->names, TEXT_MAX);
    t->word_room = 1 << 12;
    t->words = mem_alloc(t->word_room * sizeof(*t->words));
    t->word_mask = 2 * t->word_room - 1;
    t->word_places = mem_alloc(((size_t)t->word_mask + 1) * sizeof(*t->word_places));
    return t;
}

static void free_pairs(struct bpe_trainer *t)
{
    for (size_t i = 0; t->pairs && i <= t->pair_mask; i++) {
        mem_free(t->pairs[i].words);
    }
    mem_free(t->pairs);
    mem_free(t->symbols);
    mem_free(t->heap);
    mem_free(t->name_at);
    mem_free(t->name_places);
}

void bpe_trainer_free(struct bpe_trainer *t)
{
    if (!t) {
        return;
    }
    free_pairs(t);
    pretok_match_free(t->match);
    pretok_free(t->pretok);
    buf_release(&t->pending);
    buf_release(&t->text);
    buf_release(&t->names);
    mem_free(t->words);
    mem_free(t->word_places);
    mem_free(t);
}

/* An array of twice the room with the old contents; the old one is freed. */
static void *grown(void *old, size_t count, size_t room, size_t size)
{
    void *more = mem_alloc(room * size);
    if (count > 0) {
        memcpy(more, old, count * size);
    }
    mem_free(old);
    return more;
}

/* ---- counting pieces ---- */

static uint64_t hash_bytes(const char *s, size_t n)
{
    uint64_t h = 0xcbf29ce484222325U;
    for (size_t i = 0; i < n; i++) {
        h = (h ^ (unsigned char)s[i]) * 0x100000001b3U;
    }
    return h ^ h >> 32;
}

static uint32_t *word_place(struct bpe_trainer *t, const char *s, size_t n)
{
    uint32_t i = (uint32_t)hash_bytes(s, n) & t->word_mask;
    for (; t->word_places[i]; i = (i + 1) & t->word_mask) {
        const struct word *w = &t->words[t->word_places[i] - 1];
        if (w->len == n && memcmp(t->text.data + w->at, s, n) == 0) {
            break;
        }
    }
    return &t->word_places[i];
}

static void grow_words(struct bpe_trainer *t)
{
    t->words = grown(t->words, t->word_count, 2 * (size_t)t->word_room, sizeof(*t->words));
    t->word_room *= 2;
    mem_free(t->word_places);
    t->word_mask = 2 * t->word_room - 1;
    t->word_places = mem_alloc(((size_t)t->word_mask + 1) * sizeof(*t->word_places));
    for (uint32_t i = 0; i < t->word_count; i++) {
        *word_place(t, t->text.data + t->words[i].at, t->words[i].len) = i + 1;
    }
}

static enum status count_word(struct bpe_trainer *t, const char *s, size_t n, struct err *e)
{
    if (n < 2 || n > WORD_MAX) {
        return ST_OK; // no pair within, or no text that repeats
    }
    uint32_t *place = word_place(t, s, n);
    if (*place) {
        t->words[*place - 1].count++;
        return ST_OK;
    }
    struct word w = {.at = (uint32_t)t->text.len, .len = (uint32_t)n, .count = 1};
    buf_add(&t->text, s, n);
    if (t->text.full || t->word_room > UINT32_MAX / 8) {
        return err_set(e, ST_LIMIT, "the text has too many different pieces; try a sample of it");
    }
    t->words[t->word_count++] = w;
    *place = t->word_count;
    if (t->word_count == t->word_room) {
        grow_words(t);
    }
    return ST_OK;
}

static enum status count_pieces(struct bpe_trainer *t, bool last, struct err *e)
{
    struct buf *b = &t->pending;
    size_t at = 0;
    while (at < b->len) {
        bool force = last || b->len - at >= ENCODER_PIECE_MAX;
        size_t begin = 0;
        size_t end = 0;
        bool more = false;
        TRY(pretok_next(t->match, b->data, b->len, at, force, &begin, &end, &more, e));
        if (more) {
            break;
        }
        TRY(count_word(t, b->data + at, begin - at, e));
        TRY(count_word(t, b->data + begin, end - begin, e));
        at = end;
    }
    memmove(b->data, b->data + at, b->len - at);
    b->len -= at;
    return ST_OK;
}

static enum status add_block(struct bpe_trainer *t, const char *bytes, size_t len, bool last,
                             struct err *e)
{
    struct buf joined;
    buf_init(&joined, BLOCK + sizeof(t->cut));
    buf_add(&joined, t->cut, t->cut_len);
    buf_add(&joined, bytes, len);
    t->cut_len = last ? 0 : utf8_cut(joined.data, joined.len);
    memcpy(t->cut, joined.data + joined.len - t->cut_len, t->cut_len);
    utf8_repair(&t->pending, joined.data, joined.len - t->cut_len);
    buf_release(&joined);
    return count_pieces(t, last, e);
}

enum status bpe_trainer_add(struct bpe_trainer *t, const char *bytes, size_t len, struct err *e)
{
    for (size_t at = 0; at < len; at += BLOCK) {
        size_t some = len - at < BLOCK ? len - at : BLOCK;
        TRY(add_block(t, bytes + at, some, false, e));
    }
    return ST_OK;
}

enum status bpe_trainer_end(struct bpe_trainer *t, struct err *e)
{
    return add_block(t, "", 0, true, e);
}

/* ---- tokens by their bytes: two merges may spell the same one ---- */

static uint32_t name_place(const struct bpe_trainer *t, const char *s, size_t n)
{
    uint32_t i = (uint32_t)hash_bytes(s, n) & t->name_mask;
    for (; t->name_places[i]; i = (i + 1) & t->name_mask) {
        int32_t id = t->name_places[i] - 1;
        if (t->name_at[id + 1] - t->name_at[id] == n &&
            memcmp(t->names.data + t->name_at[id], s, n) == 0) {
            break;
        }
    }
    return i;
}

static int32_t name_add(struct bpe_trainer *t, const char *s, size_t n)
{
    uint32_t i = name_place(t, s, n);
    if (t->name_places[i]) {
        return t->name_places[i] - 1;
    }
    buf_add(&t->names, s, n);
    t->name_places[i] = ++t->ids;
    t->name_at[t->ids] = (uint32_t)t->names.len;
    return t->ids - 1;
}

static void start_names(struct bpe_trainer *t, int32_t vocab)
{
    t->name_mask = 1;
    while (t->name_mask < 4 * (uint32_t)vocab) {
        t->name_mask = t->name_mask * 2 + 1;
    }
    t->name_places = mem_alloc(((size_t)t->name_mask + 1) * sizeof(*t->name_places));
    t->name_at = mem_alloc(((size_t)vocab + 2) * sizeof(*t->name_at));
    (void)name_add(t, "<|endoftext|>", 13);
    (void)name_add(t, "<|padding|>", 11);
    for (int b = 0; b < 256; b++) {
        (void)name_add(t, &(char){(char)b}, 1);
    }
}

/* ---- the queue: the commonest pair first, the smaller ids of equals ---- */

static bool before(const struct bid *x, const struct bid *y)
{
    return x->count != y->count ? x->count > y->count : x->key < y->key;
}

static void push(struct bpe_trainer *t, struct bid b)
{
    if (b.count < 2) {
        return;
    }
    if (t->heap_count == t->heap_room) {
        t->heap_room = t->heap_room ? 2 * t->heap_room : 1 << 12;
        t->heap = grown(t->heap, t->heap_count, t->heap_room, sizeof(*t->heap));
    }
    size_t i = t->heap_count++;
    while (i > 0 && before(&b, &t->heap[(i - 1) / 2])) {
        t->heap[i] = t->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    t->heap[i] = b;
}

static struct bid pop(struct bpe_trainer *t)
{
    struct bid top = t->heap[0];
    struct bid last = t->heap[--t->heap_count];
    size_t i = 0;
    for (size_t child = 1; child < t->heap_count; child = 2 * i + 1) {
        if (child + 1 < t->heap_count && before(&t->heap[child + 1], &t->heap[child])) {
            child++;
        }
        if (!before(&t->heap[child], &last)) {
            break;
        }
        t->heap[i] = t->heap[child];
        i = child;
    }
    t->heap[i] = last;
    return top;
}

/* ---- pairs ---- */

static struct pair *pair_place(struct bpe_trainer *t, uint64_t key)
{
    size_t i = (size_t)((key * 0x9e3779b97f4a7c15U) >> 20) & t->pair_mask;
    while (t->pairs[i].key != key && t->pairs[i].key != EMPTY_PAIR) {
        i = (i + 1) & t->pair_mask;
    }
    return &t->pairs[i];
}

static void grow_pairs(struct bpe_trainer *t, size_t size)
{
    struct pair *old = t->pairs;
    size_t old_size = old ? t->pair_mask + 1 : 0;
    t->pairs = mem_alloc(size * sizeof(*t->pairs));
    t->pair_mask = size - 1;
    for (size_t i = 0; i < size; i++) {
        t->pairs[i].key = EMPTY_PAIR;
    }
    for (size_t i = 0; i < old_size; i++) {
        if (old[i].key != EMPTY_PAIR) {
            *pair_place(t, old[i].key) = old[i];
        }
    }
    mem_free(old);
}

static struct pair *pair_get(struct bpe_trainer *t, uint64_t key)
{
    if (2 * (t->pair_count + 1) > t->pair_mask) {
        grow_pairs(t, 2 * (t->pair_mask + 1));
    }
    struct pair *p = pair_place(t, key);
    if (p->key == EMPTY_PAIR) {
        p->key = key;
        t->pair_count++;
    }
    return p;
}

static void pair_seen_in(struct pair *p, uint32_t word)
{
    if (p->word_count > 0 && p->words[p->word_count - 1] == word) {
        return;
    }
    if (p->word_count == p->room) {
        p->room = p->room ? 2 * p->room : 4;
        p->words = grown(p->words, p->word_count, p->room, sizeof(*p->words));
    }
    p->words[p->word_count++] = word;
}

static void start_pairs(struct bpe_trainer *t)
{
    grow_pairs(t, 1 << 16);
    t->symbols = mem_alloc((t->text.len + 1) * sizeof(*t->symbols));
    for (uint32_t i = 0; i < t->word_count; i++) {
        const struct word *w = &t->words[i];
        for (uint32_t k = 0; k < w->len; k++) {
            t->symbols[w->at + k] = BYTE_FIRST + (unsigned char)t->text.data[w->at + k];
        }
        for (uint32_t k = 0; k + 1 < w->len; k++) {
            struct pair *p = pair_get(t, pair_of(t->symbols[w->at + k], t->symbols[w->at + k + 1]));
            p->count += w->count;
            pair_seen_in(p, i);
        }
    }
    for (size_t i = 0; i <= t->pair_mask; i++) {
        if (t->pairs[i].key != EMPTY_PAIR) {
            push(t, (struct bid){t->pairs[i].count, t->pairs[i].key});
        }
    }
}

/* Merge (left, right) into id wherever it stands in the word; the pairs around it change. */
static void merge_word(struct bpe_trainer *t, uint32_t index, int32_t left, int32_t right,
                       int32_t id, struct buf *touched)
{
    struct word *w = &t->words[index];
    int32_t *s = t->symbols + w->at;
    uint32_t n = 0;
    bool found = false;
    for (uint32_t i = 0; i + 1 < w->len && !found; i++) {
        found = s[i] == left && s[i + 1] == right;
    }
    if (!found) {
        return;
    }
    for (uint32_t i = 0; i + 1 < w->len; i++) {
        pair_get(t, pair_of(s[i], s[i + 1]))->count -= w->count;
    }
    for (uint32_t i = 0; i < w->len; n++) {
        bool hit = i + 1 < w->len && s[i] == left && s[i + 1] == right;
        s[n] = hit ? id : s[i];
        i += hit ? 2 : 1;
    }
    w->len = n;
    for (uint32_t i = 0; i + 1 < n; i++) {
        uint64_t key = pair_of(s[i], s[i + 1]);
        struct pair *p = pair_get(t, key);
        p->count += w->count;
        if (s[i] == id || s[i + 1] == id) {
            pair_seen_in(p, index);
            buf_add(touched, &key, sizeof(key));
        }
    }
}

static void merge_everywhere(struct bpe_trainer *t, uint64_t key, int32_t id)
{
    struct pair *p = pair_get(t, key);
    uint32_t *words = p->words;
    uint32_t count = p->word_count;
    p->words = NULL; // the table may move, and this pair may come back with words of its own
    p->word_count = p->room = 0;
    struct buf touched;
    buf_init(&touched, (size_t)1 << 40);
    for (uint32_t i = 0; i < count; i++) {
        merge_word(t, words[i], (int32_t)(key >> 32), (int32_t)(key & UINT32_MAX), id, &touched);
    }
    mem_free(words);
    uint64_t last = EMPTY_PAIR;
    for (size_t at = 0; at < touched.len; at += sizeof(last)) {
        uint64_t other;
        memcpy(&other, touched.data + at, sizeof(other));
        if (other != last) {
            push(t, (struct bid){pair_get(t, other)->count, other});
        }
        last = other;
    }
    buf_release(&touched);
}

/* ---- the file ---- */

static void print_added(struct buf *b, int id, const char *text)
{
    jw_object(b, NULL);
    jw_int(b, "id", id);
    jw_str(b, "content", text);
    jw_bool(b, "single_word", false);
    jw_bool(b, "lstrip", false);
    jw_bool(b, "rstrip", false);
    jw_bool(b, "normalized", false);
    jw_bool(b, "special", true);
    jw_end_object(b);
}

static void print_head(struct buf *b)
{
    static const char BYTE_LEVEL[] = "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
                                     "\"trim_offsets\":true,\"use_regex\":true}";
    jw_str(b, "version", "1.0");
    jw_null(b, "truncation");
    jw_null(b, "padding");
    jw_array(b, "added_tokens");
    print_added(b, BYTE_END_OF_TEXT, "<|endoftext|>");
    print_added(b, BYTE_PADDING, "<|padding|>");
    jw_end_array(b);
    jw_null(b, "normalizer");
    jw_raw(b, "pre_tokenizer", BYTE_LEVEL);
    jw_null(b, "post_processor");
    jw_raw(b, "decoder", BYTE_LEVEL);
}

static void token_name(struct bpe_trainer *t, struct buf *out, int32_t id)
{
    const char *bytes = t->names.data + t->name_at[id];
    size_t len = t->name_at[id + 1] - t->name_at[id];
    if (id < BYTE_FIRST) {
        buf_add(out, bytes, len);
    } else {
        byte_text(out, bytes, len);
    }
}

static void print_file(struct bpe_trainer *t, const struct buf *merges, struct buf *out)
{
    struct buf name;
    buf_init(&name, 8 * TOKEN_MAX);
    jw_object(out, NULL);
    print_head(out);
    jw_object(out, "model");
    jw_str(out, "type", "BPE");
    jw_null(out, "dropout");
    jw_null(out, "unk_token");
    jw_null(out, "continuing_subword_prefix");
    jw_null(out, "end_of_word_suffix");
    jw_bool(out, "fuse_unk", false);
    jw_bool(out, "byte_fallback", false);
    jw_bool(out, "ignore_merges", false);
    jw_object(out, "vocab");
    for (int32_t id = 0; id < t->ids; id++) {
        buf_clear(&name);
        token_name(t, &name, id);
        jw_int(out, name.data, id);
    }
    jw_end_object(out);
    jw_array(out, "merges");
    for (size_t at = 0; at < merges->len; at += sizeof(uint64_t)) {
        uint64_t key;
        memcpy(&key, merges->data + at, sizeof(key));
        buf_clear(&name);
        token_name(t, &name, (int32_t)(key >> 32));
        buf_str(&name, " ");
        token_name(t, &name, (int32_t)(key & UINT32_MAX));
        jw_str(out, NULL, name.data);
    }
    jw_end_array(out);
    jw_end_object(out);
    jw_end_object(out);
    buf_release(&name);
}

/* The pair's token, or -1 when it would be too long to be of use. */
static int32_t join(struct bpe_trainer *t, uint64_t key)
{
    char bytes[TOKEN_MAX];
    size_t n = 0;
    for (int half = 0; half < 2; half++) {
        uint32_t id = (uint32_t)(half == 0 ? key >> 32 : key & UINT32_MAX);
        size_t len = t->name_at[id + 1] - t->name_at[id];
        if (n + len > sizeof(bytes)) {
            return -1;
        }
        memcpy(bytes + n, t->names.data + t->name_at[id], len);
        n += len;
    }
    return name_add(t, bytes, n);
}

enum status bpe_trainer_learn(struct bpe_trainer *t, int32_t vocab,
                              void (*tick)(void *ctx, int32_t ids), void *ctx, struct buf *out,
                              int32_t *ids, struct err *e)
{
    assert(vocab >= BYTE_IDS && !t->symbols);
    struct buf merges;
    buf_init(&merges, TOKENIZER_FILE_MAX);
    start_names(t, vocab);
    start_pairs(t);
    while (t->ids < vocab && t->heap_count > 0) {
        struct bid b = pop(t);
        int64_t now = pair_get(t, b.key)->count;
        if (now != b.count) {
            push(t, (struct bid){now < b.count ? now : 0, b.key});
            continue; // a higher count was queued when it rose
        }
        int32_t id = join(t, b.key);
        if (id < 0) {
            continue;
        }
        struct pair *p = pair_get(t, b.key);
        if (!p->learned) {
            p->learned = true;
            buf_add(&merges, &b.key, sizeof(b.key));
        }
        merge_everywhere(t, b.key, id);
        if (tick && t->ids % TICK == 0) {
            tick(ctx, t->ids);
        }
    }
    print_file(t, &merges, out);
    bool full = out->full || merges.full;
    buf_release(&merges);
    *ids = t->ids;
    return full ? err_set(e, ST_LIMIT, "the file is too large; try a smaller vocabulary") : ST_OK;
}
