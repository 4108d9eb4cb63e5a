#include "client/shard.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/hash.h"
#include "common/json.h"
#include "common/limits.h"
#include "common/mem.h"
#include "common/text.h"

enum { VERSION_U16 = 1, VERSION_U32 = 7, MANIFEST_VERSION = 1 };

static const int64_t COUNT_MAX = (int64_t)1 << 52;

const char *const SPLIT_NAMES[SPLIT_COUNT] = {"train", "heldout"};

static uint32_t word_at(const unsigned char *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void put_word(unsigned char *p, uint32_t v)
{
    for (int i = 0; i < 4; i++) {
        p[i] = (unsigned char)(v >> (8 * i));
    }
}

enum status shard_head_parse(struct shard_head *out, const void *bytes, int64_t len,
                             int64_t file_bytes, struct err *e)
{
    if (len < SHARD_HEAD_BYTES || file_bytes < SHARD_HEAD_BYTES) {
        return err_set(e, ST_CORRUPT, "too short for a token shard's head");
    }
    const unsigned char *p = bytes;
    uint32_t magic = word_at(p);
    uint32_t version = word_at(p + 4);
    struct shard_head h = {.tokens = word_at(p + 8)};
    if (magic == SHARD_U16 && version == VERSION_U16) {
        h.width = 2;
    } else if (magic == SHARD_U32 && version == VERSION_U32) {
        h.width = 4;
    } else {
        return err_set(e, ST_CORRUPT,
                       "no token shard of llm.c (magic %" PRIu32 ", version %" PRIu32 ")", magic,
                       version);
    }
    if (h.tokens > INT32_MAX || file_bytes != SHARD_HEAD_BYTES + h.tokens * h.width) {
        return err_set(e, ST_CORRUPT,
                       "the head speaks of %" PRId64 " tokens, the file has %" PRId64 " bytes",
                       h.tokens, file_bytes);
    }
    *out = h;
    return ST_OK;
}

void shard_head_write(const struct shard_head *h, unsigned char out[SHARD_HEAD_BYTES])
{
    assert(h->tokens <= INT32_MAX && (h->width == 2 || h->width == 4));
    memset(out, 0, SHARD_HEAD_BYTES);
    put_word(out, h->width == 2 ? SHARD_U16 : SHARD_U32);
    put_word(out + 4, h->width == 2 ? VERSION_U16 : VERSION_U32);
    put_word(out + 8, (uint32_t)h->tokens);
}

enum status shard_open(struct shard *out, const char *path, struct err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return err_set(e, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "cannot open %s: %s", path,
                       strerror(errno));
    }
    struct stat s;
    if (fstat(fd, &s) || !S_ISREG(s.st_mode) || s.st_size < SHARD_HEAD_BYTES) {
        (void)close(fd);
        return err_set(e, ST_CORRUPT, "%s is no token shard; try `photon data prepare` again",
                       path);
    }
    void *map = mmap(NULL, (size_t)s.st_size, PROT_READ, MAP_SHARED, fd, 0);
    (void)close(fd);
    if (map == MAP_FAILED) {
        return err_set(e, ST_IO, "cannot map %s: %s", path, strerror(errno));
    }
    struct shard_head head;
    struct err why = {0};
    if (shard_head_parse(&head, map, s.st_size, s.st_size, &why)) {
        (void)munmap(map, (size_t)s.st_size);
        return err_set(e, ST_CORRUPT, "%.100s: %.120s", path, why.msg);
    }
    *out = (struct shard){.head = head, .map = map, .map_bytes = s.st_size};
    return ST_OK;
}

void shard_close(struct shard *s)
{
    if (s->map) {
        // munmap() takes what mmap() gave; nothing is written through it.
        (void)munmap((void *)(uintptr_t)s->map, (size_t)s->map_bytes);
        s->map = NULL;
    }
}

void shard_read(const struct shard *s, int64_t at, int64_t count, int32_t *out)
{
    assert(at >= 0 && count >= 0 && at + count <= s->head.tokens);
    const unsigned char *p = s->map + SHARD_HEAD_BYTES + at * s->head.width;
    if (s->head.width == 2) {
        for (int64_t i = 0; i < count; i++) {
            out[i] = p[2 * i] | p[2 * i + 1] << 8;
        }
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        out[i] = (int32_t)word_at(p + 4 * i);
    }
}

/* ---- the manifest ---- */

static enum status bad(struct err *e, const char *what)
{
    return err_set(e, ST_CORRUPT, "%s", what);
}

static bool hex_or_empty(const char *text)
{
    size_t n = text ? strlen(text) : 1;
    return (n == 0 || n == DIGEST_HEX) && text[strspn(text, "0123456789abcdef")] == '\0';
}

static bool count_of(const struct json *o, const char *key, int64_t *out)
{
    const struct json *v = json_get(o, key);
    if (!json_is_int(v, 0, COUNT_MAX)) {
        return false;
    }
    *out = json_int(v);
    return true;
}

/* split-00000.bin and nothing else: a name from a file must not lead out of the folder. */
static bool shard_name_ok(const char *name, enum split split)
{
    size_t n = strlen(SPLIT_NAMES[split]);
    return name && strncmp(name, SPLIT_NAMES[split], n) == 0 && name[n] == '-' &&
           strspn(name + n + 1, "0123456789") == 5 && strcmp(name + n + 6, ".bin") == 0;
}

static enum status read_shard(struct manifest_shard *out, const struct json *v, struct err *e)
{
    if (json_kind(v) != JSON_OBJECT) {
        return bad(e, "a shard is no object");
    }
    const char *split = json_str(json_get(v, "split"));
    const char *file = json_str(json_get(v, "file"));
    const char *sha = json_str(json_get(v, "sha256"));
    bool heldout = split && strcmp(split, SPLIT_NAMES[SPLIT_HELDOUT]) == 0;
    if (!heldout && (!split || strcmp(split, SPLIT_NAMES[SPLIT_TRAIN]) != 0)) {
        return bad(e, "a shard's split is neither train nor heldout");
    }
    *out = (struct manifest_shard){.split = heldout ? SPLIT_HELDOUT : SPLIT_TRAIN};
    if (!shard_name_ok(file, out->split)) {
        return bad(e, "a shard's file is not named like train-00000.bin");
    }
    if (!sha || *sha == '\0' || !hex_or_empty(sha)) {
        return bad(e, "a shard's sha256 is no digest");
    }
    if (!count_of(v, "tokens", &out->tokens) || out->tokens > INT32_MAX) {
        return bad(e, "a shard's number of tokens is wrong");
    }
    (void)snprintf(out->file, sizeof(out->file), "%s", file);
    (void)snprintf(out->sha256, sizeof(out->sha256), "%s", sha);
    return ST_OK;
}

static enum status read_shards(struct manifest *m, struct arena *a, const struct json *list,
                               struct err *e)
{
    if (!list || json_kind(list) != JSON_ARRAY || json_len(list) > SHARDS_MAX) {
        return bad(e, "shards is no list of at most 65536");
    }
    size_t count = (size_t)json_len(list);
    struct manifest_shard *shards = arena_alloc(a, (count + 1) * sizeof(*shards));
    int64_t tokens[SPLIT_COUNT] = {0};
    for (const struct json *v = json_first(list); v; v = json_next(v)) {
        struct manifest_shard *s = &shards[m->shard_count++];
        TRY(read_shard(s, v, e));
        tokens[s->split] += s->tokens;
    }
    m->shards = shards;
    for (int i = 0; i < SPLIT_COUNT; i++) {
        if (tokens[i] != m->splits[i].tokens) {
            return bad(e, "the shards' tokens do not add up to the split's");
        }
    }
    return ST_OK;
}

static enum status read_split(struct manifest_split *out, const struct json *v, struct err *e)
{
    if (!v || json_kind(v) != JSON_OBJECT || !count_of(v, "documents", &out->documents) ||
        !count_of(v, "bytes", &out->bytes) || !count_of(v, "tokens", &out->tokens)) {
        return bad(e, "a split lacks documents, bytes or tokens");
    }
    return ST_OK;
}

enum status manifest_parse(struct manifest *out, struct arena *a, const char *json, size_t len,
                           struct err *e)
{
    struct manifest m = {0};
    const struct json *doc = NULL;
    struct err why = {0};
    if (json_parse(&doc, a, json, len, &why)) {
        return err_set(e, ST_CORRUPT, "%.200s", why.msg);
    }
    if (json_kind(doc) != JSON_OBJECT ||
        !json_is_int(json_get(doc, "version"), MANIFEST_VERSION, MANIFEST_VERSION)) {
        return bad(e, "not a manifest of version 1");
    }
    const char *sha = json_str(json_get(doc, "tokenizer_sha256"));
    const char *unicode = json_str(json_get(doc, "unicode"));
    const struct json *share = json_get(doc, "heldout_share");
    int64_t ids = 0;
    int64_t vocab = 0;
    int64_t end = 0;
    if (!hex_or_empty(sha)) {
        return bad(e, "tokenizer_sha256 is no digest");
    }
    if (!count_of(doc, "ids", &ids) || !count_of(doc, "vocab_size", &vocab) ||
        !count_of(doc, "end_of_text", &end) || ids < 1 || ids > LIMIT_VOCAB || vocab < ids ||
        vocab > LIMIT_VOCAB + 63 || end >= ids) {
        return bad(e, "ids, vocab_size and end_of_text do not fit each other");
    }
    if (unicode && (strlen(unicode) >= sizeof(m.unicode) || !text_is_utf8(unicode))) {
        return bad(e, "unicode is no version of its tables");
    }
    if (share && json_kind(share) == JSON_NUMBER) {
        m.heldout = json_num(share);
    }
    (void)snprintf(m.tokenizer_sha256, sizeof(m.tokenizer_sha256), "%s", sha);
    (void)snprintf(m.unicode, sizeof(m.unicode), "%s", unicode ? unicode : "");
    m.ids = (int32_t)ids;
    m.vocab_size = (int32_t)vocab;
    m.end_of_text = (int32_t)end;
    for (int i = 0; i < SPLIT_COUNT; i++) {
        TRY(read_split(&m.splits[i], json_get(doc, SPLIT_NAMES[i]), e));
    }
    TRY(read_shards(&m, a, json_get(doc, "shards"), e));
    *out = m;
    return ST_OK;
}

enum status manifest_read(struct manifest *out, struct arena *a, const char *dir, struct err *e)
{
    const char *path = arena_fmt(a, "%s/manifest.json", dir);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return errno == ENOENT || errno == ENOTDIR
                   ? err_set(e, ST_NOT_FOUND,
                             "no %s; try `photon data prepare TEXT -o %s` to make one", path, dir)
                   : err_set(e, ST_IO, "cannot open %s: %s", path, strerror(errno));
    }
    struct buf text;
    buf_init(&text, MANIFEST_MAX);
    char block[16 * 1024];
    ssize_t n = 0;
    while ((n = read(fd, block, sizeof(block))) > 0 || (n < 0 && errno == EINTR)) {
        buf_add(&text, block, n > 0 ? (size_t)n : 0);
    }
    (void)close(fd);
    enum status st = ST_OK;
    struct err why = {0};
    if (n < 0) {
        st = err_set(e, ST_IO, "cannot read %s: %s", path, strerror(errno));
    } else if (text.full || manifest_parse(out, a, text.data, text.len, &why)) {
        st = err_set(e, ST_CORRUPT, "%.100s: %.120s", path, text.full ? "too large" : why.msg);
    }
    buf_release(&text);
    return st;
}

void manifest_print(struct buf *out, const struct manifest *m)
{
    jw_object(out, NULL);
    jw_int(out, "version", MANIFEST_VERSION);
    jw_str(out, "tokenizer_sha256", m->tokenizer_sha256);
    jw_int(out, "ids", m->ids);
    jw_int(out, "vocab_size", m->vocab_size);
    jw_int(out, "end_of_text", m->end_of_text);
    jw_str(out, "unicode", m->unicode);
    jw_num(out, "heldout_share", m->heldout);
    for (int i = 0; i < SPLIT_COUNT; i++) {
        jw_object(out, SPLIT_NAMES[i]);
        jw_int(out, "documents", m->splits[i].documents);
        jw_int(out, "bytes", m->splits[i].bytes);
        jw_int(out, "tokens", m->splits[i].tokens);
        jw_end_object(out);
    }
    jw_array(out, "shards");
    for (int32_t i = 0; i < m->shard_count; i++) {
        const struct manifest_shard *s = &m->shards[i];
        jw_object(out, NULL);
        jw_str(out, "file", s->file);
        jw_str(out, "split", SPLIT_NAMES[s->split]);
        jw_int(out, "tokens", s->tokens);
        jw_str(out, "sha256", s->sha256);
        jw_end_object(out);
    }
    jw_end_array(out);
    jw_end_object(out);
}
