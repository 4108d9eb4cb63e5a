/*
 * Reading tokenizer.json (Hugging Face tokenizers): tokenizer_open() and tokenizer_parse().
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/tokenizer_parts.h"
#include "client/utf8.h"
#include "common/hash.h"
#include "common/json.h"
#include "common/limits.h"
#include "common/mem.h"

enum { TEXT_MAX = 256 * 1024 * 1024, TOKEN_LEN_MAX = 64 * 1024 };

/* The names of tokens as in the file, found by text: merges speak of tokens by name. */
struct names {
    const char **texts; /* by place; NULL: free */
    int32_t *ids;
    size_t mask;
};

static size_t name_place(const struct names *n, const char *text)
{
    uint64_t h = 0xcbf29ce484222325U;
    for (const char *c = text; *c; c++) {
        h = (h ^ (unsigned char)*c) * 0x100000001b3U;
    }
    size_t i = (size_t)(h ^ h >> 32) & n->mask;
    while (n->texts[i] && strcmp(n->texts[i], text) != 0) {
        i = (i + 1) & n->mask;
    }
    return i;
}

static int32_t name_id(const struct names *n, const char *text)
{
    size_t i = name_place(n, text);
    return n->texts[i] ? n->ids[i] : -1;
}

static void names_release(struct names *n)
{
    mem_free(n->texts);
    mem_free(n->ids);
}

/* What a tokenizer is read from, and what is only needed while reading. */
struct reading {
    struct tokenizer *t;
    const struct json *model;
    const struct json *vocab;
    const struct json *added;
    struct names names;
};

static enum status unsupported(struct err *e, const char *what, const char *name)
{
    return err_set(e, ST_INVALID, "tokenizer.json: %s '%.60s' is not supported", what, name);
}

/* An option that must be absent, null, false or the empty string. */
static enum status must_be_off(const struct json *o, const char *key, const char *where,
                               struct err *e)
{
    const struct json *v = json_get(o, key);
    if (!v || json_kind(v) == JSON_NULL || (json_kind(v) == JSON_BOOL && !json_bool(v)) ||
        (json_str(v) && *json_str(v) == '\0') ||
        (json_kind(v) == JSON_NUMBER && json_num(v) == 0.0)) {
        return ST_OK;
    }
    return err_set(e, ST_INVALID, "tokenizer.json: %s with '%s' is not supported", where, key);
}

static bool flag(const struct json *o, const char *key, bool absent)
{
    const struct json *v = json_get(o, key);
    return v && json_kind(v) == JSON_BOOL ? json_bool(v) : absent;
}

static bool is_off(const struct json *v)
{
    return !v || json_kind(v) == JSON_NULL;
}

/* ---- tokens ---- */

static enum status set_token(struct tokenizer *t, int32_t id, const char *text, size_t len,
                             bool special, struct err *e)
{
    if (len == 0 || len > TOKEN_LEN_MAX) {
        return err_set(e, ST_INVALID, "tokenizer.json: token %d has %zu bytes, not 1 to %d", id,
                       len, TOKEN_LEN_MAX);
    }
    t->tokens[id] =
        (struct token){.at = (uint32_t)t->text.len, .len = (uint32_t)len, .special = special};
    buf_add(&t->text, text, len);
    return ST_OK;
}

/* The bytes a token's name stands for; a name outside the byte map stands for itself. */
static enum status token_bytes(struct buf *out, const char *name, struct err *e)
{
    buf_clear(out);
    size_t n = strlen(name);
    bool mapped = true;
    for (size_t i = 0; i < n;) {
        size_t len = 0;
        int32_t c = utf8_at(name + i, n - i, &len);
        if (c < 0) {
            return err_set(e, ST_INVALID, "tokenizer.json: a token is not UTF-8");
        }
        int byte = byte_of_char(c);
        if (byte < 0) {
            mapped = false;
        } else {
            buf_add(out, &(char){(char)byte}, 1);
        }
        i += len;
    }
    if (!mapped) {
        buf_clear(out);
        buf_str(out, name);
    }
    return ST_OK;
}

/* The highest id + 1 over vocabulary and added tokens. */
static enum status count_ids(struct reading *r, struct err *e)
{
    int64_t most = -1;
    for (const struct json *v = json_first(r->vocab); v; v = json_next(v)) {
        if (!json_is_int(v, 0, LIMIT_VOCAB - 1)) {
            return err_set(e, ST_INVALID, "tokenizer.json: an id in vocab is not from 0 to %d",
                           LIMIT_VOCAB - 1);
        }
        most = json_int(v) > most ? json_int(v) : most;
    }
    for (const struct json *v = r->added ? json_first(r->added) : NULL; v; v = json_next(v)) {
        if (json_kind(v) != JSON_OBJECT || !json_is_int(json_get(v, "id"), 0, LIMIT_VOCAB - 1)) {
            return err_set(e, ST_INVALID, "tokenizer.json: an added token has no id from 0 to %d",
                           LIMIT_VOCAB - 1);
        }
        most = json_int(json_get(v, "id")) > most ? json_int(json_get(v, "id")) : most;
    }
    r->t->ids = (int32_t)most + 1;
    return ST_OK;
}

static enum status read_vocab(struct reading *r, struct err *e)
{
    struct tokenizer *t = r->t;
    TRY(count_ids(r, e));
    t->tokens = mem_alloc(((size_t)t->ids + 1) * sizeof(*t->tokens));
    buf_init(&t->text, TEXT_MAX);

    size_t size = 16;
    while (size < 2 * ((size_t)json_len(r->vocab) + 1)) {
        size *= 2;
    }
    r->names = (struct names){.texts = mem_alloc(size * sizeof(char *)),
                              .ids = mem_alloc(size * sizeof(int32_t)),
                              .mask = size - 1};
    struct buf bytes;
    buf_init(&bytes, 4 * TOKEN_LEN_MAX);
    enum status st = ST_OK;
    for (const struct json *v = json_first(r->vocab); v && !st; v = json_next(v)) {
        int32_t id = (int32_t)json_int(v);
        size_t i = name_place(&r->names, json_key(v));
        r->names.texts[i] = json_key(v);
        r->names.ids[i] = id;
        st = t->tokens[id].len > 0 ? err_set(e, ST_INVALID, "tokenizer.json: id %d twice", id)
                                   : token_bytes(&bytes, json_key(v), e);
        if (!st) {
            st = set_token(t, id, bytes.data, bytes.len, false, e);
        }
    }
    buf_release(&bytes);
    return st;
}

/* Every byte must have a token, so that every text can be spelled. */
static enum status read_byte_ids(struct reading *r, struct err *e)
{
    for (int b = 0; b < 256; b++) {
        char name[8];
        struct buf text;
        buf_init(&text, sizeof(name));
        byte_text(&text, &(char){(char)b}, 1);
        r->t->byte_id[b] = name_id(&r->names, text.data);
        buf_release(&text);
        if (r->t->byte_id[b] < 0) {
            return err_set(e, ST_INVALID,
                           "tokenizer.json: no token for the byte 0x%02x; only byte-level "
                           "vocabularies are supported",
                           (unsigned)b);
        }
    }
    return ST_OK;
}

/* ---- merges ---- */

/* "a b" or ["a", "b"] as two names. scratch holds the first form cut in two. */
static bool merge_names(const struct json *v, struct buf *scratch, const char **left,
                        const char **right)
{
    if (json_kind(v) == JSON_ARRAY) {
        *left = json_len(v) == 2 ? json_str(json_at(v, 0)) : NULL;
        *right = json_len(v) == 2 ? json_str(json_at(v, 1)) : NULL;
        return *left && *right;
    }
    const char *text = json_str(v);
    const char *space = text ? strchr(text, ' ') : NULL;
    if (!space || strchr(space + 1, ' ')) {
        return false;
    }
    buf_clear(scratch);
    buf_str(scratch, text);
    if (scratch->full) {
        return false;
    }
    scratch->data[space - text] = '\0';
    *left = scratch->data;
    *right = scratch->data + (space - text) + 1;
    return true;
}

static enum status read_merge(struct reading *r, const struct json *v, int32_t rank,
                              struct buf *scratch, struct buf *joined, struct err *e)
{
    const char *left = NULL;
    const char *right = NULL;
    if (!merge_names(v, scratch, &left, &right)) {
        return err_set(e, ST_INVALID,
                       "tokenizer.json: merge %d is neither \"a b\" nor [\"a\", \"b\"]", rank);
    }
    buf_clear(joined);
    buf_str(joined, left);
    buf_str(joined, right);
    struct merge m = {.rank = rank, .id = name_id(&r->names, joined->data)};
    int32_t a = name_id(&r->names, left);
    int32_t b = name_id(&r->names, right);
    if (a < 0 || b < 0 || m.id < 0 || joined->full) {
        return err_set(e, ST_INVALID, "tokenizer.json: merge %d speaks of a token that vocab lacks",
                       rank);
    }
    m.pair = pair_of(a, b);
    if (!merge_table_add(&r->t->merges, m)) {
        return err_set(e, ST_INVALID, "tokenizer.json: merge %d is given twice", rank);
    }
    return ST_OK;
}

static enum status read_merges(struct reading *r, struct err *e)
{
    const struct json *merges = json_get(r->model, "merges");
    if (!merges || json_kind(merges) != JSON_ARRAY) {
        return err_set(e, ST_INVALID, "tokenizer.json: the model has no list of merges");
    }
    merge_table_init(&r->t->merges, json_len(merges));
    struct buf scratch;
    struct buf joined;
    buf_init(&scratch, 2 * TOKEN_LEN_MAX);
    buf_init(&joined, 2 * TOKEN_LEN_MAX);
    enum status st = ST_OK;
    int32_t rank = 0;
    for (const struct json *v = json_first(merges); v && !st; v = json_next(v)) {
        st = read_merge(r, v, rank++, &scratch, &joined, e);
    }
    buf_release(&scratch);
    buf_release(&joined);
    return st;
}

/* ---- added tokens ---- */

static enum status read_added_one(struct reading *r, const struct json *v, struct added *out,
                                  struct err *e)
{
    const char *text = json_str(json_get(v, "content"));
    if (!text || *text == '\0' || strlen(text) >= ADDED_LEN_MAX) {
        return err_set(e, ST_INVALID,
                       "tokenizer.json: an added token has no content of 1 to %d bytes",
                       ADDED_LEN_MAX - 1);
    }
    static const char *const OFF[] = {"single_word", "lstrip", "rstrip"};
    for (int i = 0; i < 3; i++) {
        TRY(must_be_off(v, OFF[i], "an added token", e));
    }
    size_t len = strlen(text);
    for (size_t i = 0; i < len;) {
        size_t step = 0;
        if (utf8_at(text + i, len - i, &step) < 0) {
            return err_set(e, ST_INVALID, "tokenizer.json: an added token is not UTF-8");
        }
        i += step;
    }
    bool special = flag(v, "special", false);
    *out = (struct added){.len = (uint32_t)len,
                          .id = (int32_t)json_int(json_get(v, "id")),
                          .special = special,
                          .normalized = flag(v, "normalized", !special)};
    memcpy(out->text, text, len);
    int32_t in_vocab = name_id(&r->names, text);
    if (in_vocab >= 0 && in_vocab != out->id) {
        return err_set(e, ST_INVALID, "tokenizer.json: the added token '%.40s' has two ids", text);
    }
    if (in_vocab < 0 && r->t->tokens[out->id].len > 0) {
        return err_set(e, ST_INVALID,
                       "tokenizer.json: the added token '%.40s' has the id %d of another token",
                       text, out->id);
    }
    return set_token(r->t, out->id, text, len, special, e);
}

static int longest_first(const void *a, const void *b)
{
    const struct added *x = a;
    const struct added *y = b;
    int first = (unsigned char)x->text[0] - (unsigned char)y->text[0];
    if (first != 0) {
        return first;
    }
    if (x->len != y->len) {
        return x->len > y->len ? -1 : 1;
    }
    return strcmp(x->text, y->text);
}

static void added_set_init(struct added_set *s, const struct added *all, int count, bool normalized)
{
    s->items = mem_alloc(((size_t)count + 1) * sizeof(*s->items));
    for (int i = 0; i < count; i++) {
        if (all[i].normalized == normalized) {
            s->items[s->count++] = all[i];
            s->longest = all[i].len > s->longest ? all[i].len : s->longest;
        }
    }
    qsort(s->items, (size_t)s->count, sizeof(*s->items), longest_first);
    for (int c = 0; c < 256; c++) {
        s->first[c] = -1;
    }
    for (int i = s->count - 1; i >= 0; i--) {
        s->first[(unsigned char)s->items[i].text[0]] = (int16_t)i;
    }
}

static enum status find_ends(struct tokenizer *t, const struct added *all, int count, struct err *e)
{
    static const char *const ENDS[] = {"<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", NULL};
    static const char *const PADS[] = {"<|padding|>", "<|pad|>", "<pad>", "[PAD]", NULL};
    t->end_of_text = t->padding = -1;
    for (int k = 0; ENDS[k] || PADS[k]; k++) {
        for (int i = 0; i < count; i++) {
            if (t->end_of_text < 0 && strcmp(all[i].text, ENDS[k]) == 0) {
                t->end_of_text = all[i].id;
            }
            if (t->padding < 0 && strcmp(all[i].text, PADS[k]) == 0) {
                t->padding = all[i].id;
            }
        }
    }
    return t->end_of_text >= 0 ? ST_OK
                               : err_set(e, ST_INVALID,
                                         "tokenizer.json: no added token <|endoftext|> (or </s>, "
                                         "<eos>) to end documents with");
}

static enum status read_added(struct reading *r, struct err *e)
{
    int count = r->added ? json_len(r->added) : 0;
    if (count > ADDED_MAX) {
        return err_set(e, ST_INVALID, "tokenizer.json: %d added tokens are over %d", count,
                       ADDED_MAX);
    }
    struct added *all = mem_alloc(((size_t)count + 1) * sizeof(*all));
    enum status st = ST_OK;
    int n = 0;
    for (const struct json *v = r->added ? json_first(r->added) : NULL; v && !st;
         v = json_next(v)) {
        st = read_added_one(r, v, &all[n++], e);
    }
    if (!st) {
        added_set_init(&r->t->raw, all, n, false);
        added_set_init(&r->t->normalized, all, n, true);
        st = find_ends(r->t, all, n, e);
    }
    mem_free(all);
    return st;
}

/* ---- normalizer, pre-tokenizer, decoder ---- */

static enum status type_of(const struct json *o, const char *what, const char **out, struct err *e)
{
    *out = json_kind(o) == JSON_OBJECT ? json_str(json_get(o, "type")) : NULL;
    return *out ? ST_OK : err_set(e, ST_INVALID, "tokenizer.json: the %s has no type", what);
}

static enum status read_normalizer(struct tokenizer *t, const struct json *v, struct err *e)
{
    if (is_off(v)) {
        return ST_OK;
    }
    const char *type = NULL;
    TRY(type_of(v, "normalizer", &type, e));
    if (strcmp(type, "NFC") == 0) {
        t->nfc = true;
        return ST_OK;
    }
    const struct json *list = json_get(v, "normalizers");
    if (strcmp(type, "Sequence") == 0 && list && json_kind(list) == JSON_ARRAY) {
        for (const struct json *n = json_first(list); n; n = json_next(n)) {
            TRY(type_of(n, "normalizer", &type, e));
            if (strcmp(type, "NFC") != 0) {
                return unsupported(e, "the normalizer", type);
            }
            t->nfc = true;
        }
        return ST_OK;
    }
    return unsupported(e, "the normalizer", type);
}

static enum status read_split(struct tokenizer *t, const struct json *v, struct err *e)
{
    const struct json *pattern = json_get(v, "pattern");
    const char *behavior = json_str(json_get(v, "behavior"));
    if (!behavior || strcmp(behavior, "Isolated") != 0) {
        return unsupported(e, "the Split behaviour", behavior ? behavior : "(none)");
    }
    if (!pattern || json_kind(pattern) != JSON_OBJECT) {
        return err_set(e, ST_INVALID, "tokenizer.json: a Split has no pattern");
    }
    const char *regex = json_str(json_get(pattern, "Regex"));
    const char *text = json_str(json_get(pattern, "String"));
    if (!regex && !text) {
        return err_set(e, ST_INVALID, "tokenizer.json: a Split's pattern is no Regex or String");
    }
    struct pretok **place = &t->stages[t->stage_count];
    TRY(regex ? pretok_regex(place, regex, e) : pretok_string(place, text, e));
    t->stage_count++;
    return ST_OK;
}

/* byte_level is set by the ByteLevel step, which must be the last: what follows would see bytes. */
static enum status read_pretok(struct tokenizer *t, const struct json *v, bool *byte_level,
                               struct err *e)
{
    const char *type = NULL;
    TRY(type_of(v, "pre_tokenizer", &type, e));
    if (*byte_level) {
        return err_set(e, ST_INVALID,
                       "tokenizer.json: a pre-tokenizer after ByteLevel is not "
                       "supported");
    }
    if (strcmp(type, "Sequence") == 0) {
        const struct json *list = json_get(v, "pretokenizers");
        if (!list || json_kind(list) != JSON_ARRAY) {
            return err_set(e, ST_INVALID, "tokenizer.json: a Sequence without pretokenizers");
        }
        for (const struct json *p = json_first(list); p; p = json_next(p)) {
            TRY(read_pretok(t, p, byte_level, e));
        }
        return ST_OK;
    }
    bool split = strcmp(type, "Split") == 0;
    if (!split && strcmp(type, "ByteLevel") != 0) {
        return unsupported(e, "the pre-tokenizer", type);
    }
    *byte_level = !split;
    if (!split) {
        TRY(must_be_off(v, "add_prefix_space", "ByteLevel", e));
    }
    if (split || flag(v, "use_regex", true)) {
        if (t->stage_count == PRETOK_STAGES_MAX) {
            return err_set(e, ST_INVALID, "tokenizer.json: over %d pre-tokenizers",
                           PRETOK_STAGES_MAX);
        }
        if (split) {
            return read_split(t, v, e);
        }
        t->stages[t->stage_count++] = pretok_gpt2();
    }
    return ST_OK;
}

static enum status read_steps(struct tokenizer *t, const struct json *doc, struct err *e)
{
    TRY(read_normalizer(t, json_get(doc, "normalizer"), e));
    bool byte_level = false;
    const struct json *v = json_get(doc, "pre_tokenizer");
    if (!is_off(v)) {
        TRY(read_pretok(t, v, &byte_level, e));
    }
    if (!byte_level) {
        return err_set(e, ST_INVALID,
                       "tokenizer.json: the pre-tokenizer is not ByteLevel; only "
                       "byte-level BPE is supported");
    }
    const char *type = "(none)";
    v = json_get(doc, "decoder");
    if (!is_off(v)) {
        TRY(type_of(v, "decoder", &type, e));
    }
    return strcmp(type, "ByteLevel") == 0 ? ST_OK : unsupported(e, "the decoder", type);
}

static enum status read_model(struct reading *r, struct err *e)
{
    static const char *const OFF[] = {"dropout",
                                      "continuing_subword_prefix",
                                      "end_of_word_suffix",
                                      "byte_fallback",
                                      "ignore_merges",
                                      NULL};
    if (!r->model || json_kind(r->model) != JSON_OBJECT) {
        return err_set(e, ST_INVALID, "tokenizer.json: no model");
    }
    const char *type = json_str(json_get(r->model, "type"));
    if (type && strcmp(type, "BPE") != 0) { // the oldest files leave BPE's type out
        return unsupported(e, "the model", type);
    }
    for (const char *const *k = OFF; *k; k++) {
        TRY(must_be_off(r->model, *k, "a BPE model", e));
    }
    r->vocab = json_get(r->model, "vocab");
    if (!r->vocab || json_kind(r->vocab) != JSON_OBJECT) {
        return err_set(e, ST_INVALID, "tokenizer.json: the model has no vocab");
    }
    if (r->added && json_kind(r->added) != JSON_ARRAY) {
        return err_set(e, ST_INVALID, "tokenizer.json: added_tokens is no list");
    }
    TRY(read_vocab(r, e));
    TRY(read_byte_ids(r, e));
    TRY(read_merges(r, e));
    return read_added(r, e);
}

enum status tokenizer_parse(struct tokenizer **out, const char *json, size_t len, struct err *e)
{
    if (len > TOKENIZER_FILE_MAX) {
        return err_set(e, ST_LIMIT, "tokenizer.json has %zu bytes, over %d", len,
                       TOKENIZER_FILE_MAX);
    }
    struct arena *a = arena_new(1 << 20);
    struct reading r = {.t = mem_alloc(sizeof(*r.t))};
    const struct json *doc = NULL;
    struct err why = {0};
    enum status st = json_parse(&doc, a, json, len, &why);
    if (st) {
        st = err_set(e, ST_INVALID, "tokenizer.json: %.180s", why.msg);
    } else if (json_kind(doc) != JSON_OBJECT) {
        st = err_set(e, ST_INVALID, "tokenizer.json: not a JSON object");
    } else {
        r.model = json_get(doc, "model");
        r.added = json_get(doc, "added_tokens");
        st = read_steps(r.t, doc, e);
        st = st ? st : read_model(&r, e);
    }
    names_release(&r.names);
    arena_free(a);
    if (st) {
        tokenizer_free(r.t);
        return st;
    }
    struct digest d;
    sha256_of(json, len, &d);
    digest_hex(&d, r.t->sha256);
    *out = r.t;
    return ST_OK;
}

static enum status read_all(int fd, const char *path, char **out, size_t *len, struct err *e)
{
    struct stat s;
    if (fstat(fd, &s)) {
        return err_set(e, ST_IO, "cannot look at %s: %s", path, strerror(errno));
    }
    if (!S_ISREG(s.st_mode) || s.st_size > TOKENIZER_FILE_MAX) {
        return err_set(e, ST_INVALID, "%s is no file of at most %d bytes", path,
                       TOKENIZER_FILE_MAX);
    }
    void *block = NULL;
    TRY(mem_alloc_large(&block, (size_t)s.st_size + 1, e));
    size_t done = 0;
    while (done < (size_t)s.st_size) {
        ssize_t n = read(fd, (char *)block + done, (size_t)s.st_size - done);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            mem_free(block);
            return err_set(e, ST_IO, "cannot read %s: %s", path, n ? strerror(errno) : "it shrank");
        }
        done += (size_t)n;
    }
    *out = block;
    *len = done;
    return ST_OK;
}

enum status tokenizer_open(struct tokenizer **out, const char *path, struct err *e)
{
    if (!path || *path == '\0') {
        *out = tokenizer_bytes();
        return ST_OK;
    }
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return err_set(e, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "cannot open %s: %s", path,
                       strerror(errno));
    }
    char *text = NULL;
    size_t len = 0;
    enum status st = read_all(fd, path, &text, &len, e);
    (void)close(fd);
    if (!st) {
        st = tokenizer_parse(out, text, len, e);
    }
    mem_free(text);
    return st;
}
