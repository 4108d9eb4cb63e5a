#include "client/prepare.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/pretok.h"
#include "client/shard_writer.h"
#include "client/utf8.h"
#include "common/hash.h"
#include "common/mem.h"

enum { PREFIX = 64 * 1024, TICK_BYTES = 1 << 20, SALTS = 64, SMALL_CORPUS = 2000 };
enum { CHECK_STEP = 1 << 16, SMALL_TOKENS = 64 * 1024 * 1024 };

/* One pass over the text. */
struct pass {
    const struct prepare_options *o;
    const struct tokenizer *t;
    struct tokenizer_info info;
    uint32_t salt;
    struct encoder *encoder;
    struct sha256 *hash;
    struct shard_writer *writers[SPLIT_COUNT];
    struct manifest_split splits[SPLIT_COUNT];

    bool decided; // the document's side is known
    enum split split;
    struct buf prefix; // of the document, until then

    struct doc_counts counts;
    struct prepare_progress progress;
    int64_t ticked;
    void (*tick)(void *ctx, const struct prepare_progress *p);
    void *ctx;
};

static void tell(struct pass *p, bool now)
{
    p->progress.done_bytes = p->counts.consumed;
    p->progress.documents = p->splits[SPLIT_TRAIN].documents + p->splits[SPLIT_HELDOUT].documents;
    p->progress.tokens = p->splits[SPLIT_TRAIN].tokens + p->splits[SPLIT_HELDOUT].tokens;
    int64_t at = p->progress.tokens + p->counts.consumed;
    if (p->tick && (now || at - p->ticked >= TICK_BYTES)) {
        p->ticked = at;
        p->tick(p->ctx, &p->progress);
    }
}

/* ---- documents to tokens ---- */

static enum status write_ids(void *ctx, const int32_t *ids, int32_t count, struct err *e)
{
    struct pass *p = ctx;
    p->splits[p->split].tokens += count;
    return shard_writer_add(p->writers[p->split], ids, count, e);
}

/* A number in [0, 1) that is the document's own. */
static void decide(struct pass *p)
{
    unsigned char salt[4];
    struct digest d;
    for (int i = 0; i < 4; i++) {
        salt[i] = (unsigned char)(p->salt >> (8 * i));
    }
    sha256_add(p->hash, salt, sizeof(salt));
    sha256_add(p->hash, p->prefix.data, p->prefix.len);
    sha256_end(p->hash, &d);
    uint64_t n = 0;
    for (int i = 0; i < 7; i++) {
        n = n << 8 | d.bytes[i];
    }
    bool held = (double)(n >> 3) * 0x1p-53 < p->o->heldout;
    p->split = held ? SPLIT_HELDOUT : SPLIT_TRAIN;
    p->decided = true;
}

static enum status on_text(void *ctx, const char *bytes, size_t len, struct err *e)
{
    struct pass *p = ctx;
    if (!p->decided) {
        size_t room = PREFIX - p->prefix.len;
        size_t some = len < room ? len : room;
        buf_add(&p->prefix, bytes, some);
        if (p->prefix.len < PREFIX) {
            return ST_OK;
        }
        decide(p);
        p->splits[p->split].bytes += PREFIX;
        TRY(encoder_add(p->encoder, p->prefix.data, p->prefix.len, e));
        bytes += some;
        len -= some;
    }
    p->splits[p->split].bytes += (int64_t)len;
    return encoder_add(p->encoder, bytes, len, e);
}

static enum status end_text(void *ctx, struct err *e)
{
    struct pass *p = ctx;
    if (!p->decided) {
        decide(p);
        p->splits[p->split].bytes += (int64_t)p->prefix.len;
        TRY(encoder_add(p->encoder, p->prefix.data, p->prefix.len, e));
    }
    TRY(encoder_end(p->encoder, e));
    p->splits[p->split].documents++;
    p->decided = false;
    buf_clear(&p->prefix);
    TRY(write_ids(p, &p->info.end_of_text, 1, e));
    tell(p, false);
    return ST_OK;
}

/* Tokens of others go by the same rule, over their ids as 4 bytes each. */
static enum status put_tokens(struct pass *p, const int32_t *ids, int32_t count, struct err *e)
{
    for (int32_t i = 0; i < count; i++) {
        p->splits[p->split].bytes += tokenizer_token_bytes(p->t, ids[i]);
    }
    return write_ids(p, ids, count, e);
}

static enum status put_prefix(struct pass *p, struct err *e)
{
    decide(p);
    int32_t ids[256];
    for (size_t at = 0; at < p->prefix.len;) {
        size_t some = p->prefix.len - at < sizeof(ids) ? p->prefix.len - at : sizeof(ids);
        memcpy(ids, p->prefix.data + at, some);
        TRY(put_tokens(p, ids, (int32_t)(some / sizeof(*ids)), e));
        at += some;
    }
    return ST_OK;
}

static enum status on_tokens(void *ctx, const int32_t *ids, int32_t count, struct err *e)
{
    struct pass *p = ctx;
    for (int32_t i = 0; i < count; i++) {
        if (ids[i] < 0 || ids[i] >= p->info.ids) {
            return err_set(e, ST_INVALID,
                           "%.140s: token %d is no id of this tokenizer, which has %d; try another "
                           "--tokenizer",
                           p->progress.file, ids[i], p->info.ids);
        }
    }
    if (!p->decided) {
        size_t room = (PREFIX - p->prefix.len) / sizeof(*ids);
        int32_t some = (size_t)count < room ? count : (int32_t)room;
        buf_add(&p->prefix, ids, (size_t)some * sizeof(*ids));
        if (p->prefix.len < PREFIX) {
            return ST_OK;
        }
        TRY(put_prefix(p, e));
        ids += some;
        count -= some;
    }
    return put_tokens(p, ids, count, e);
}

static enum status end_tokens(void *ctx, struct err *e)
{
    struct pass *p = ctx;
    if (!p->decided) {
        TRY(put_prefix(p, e));
    }
    p->splits[p->split].documents++;
    p->decided = false;
    buf_clear(&p->prefix);
    TRY(write_ids(p, &p->info.end_of_text, 1, e));
    tell(p, false);
    return ST_OK;
}

/* ---- a pass ---- */

static void pass_init(struct pass *p, const struct prepare_options *o, const struct tokenizer *t,
                      uint32_t salt)
{
    p->o = o;
    p->t = t;
    p->salt = salt;
    tokenizer_info(t, &p->info);
    p->encoder = encoder_new(t, false, write_ids, p);
    p->hash = sha256_new();
    buf_init(&p->prefix, PREFIX);
    for (int i = 0; i < SPLIT_COUNT; i++) {
        p->writers[i] = shard_writer_new(o->out_dir, (enum split)i, p->info.ids <= U16_IDS ? 2 : 4,
                                         o->shard_tokens);
    }
}

static void pass_release(struct pass *p)
{
    encoder_free(p->encoder);
    sha256_free(p->hash);
    buf_release(&p->prefix);
    for (int i = 0; i < SPLIT_COUNT; i++) {
        shard_writer_free(p->writers[i]);
    }
}

static enum status read_files(struct pass *p, const struct doc_list *list, struct err *e)
{
    p->progress.all_bytes = list->bytes;
    for (int32_t i = 0; i < list->count; i++) {
        const struct doc_file *f = &list->files[i];
        bool tokens = f->format == DOC_BIN || f->format == DOC_RAW_U16;
        struct doc_options d = {.text_key = p->o->text_key,
                                .split = docs_split_size(list, f),
                                .end_of_text = p->info.end_of_text};
        struct doc_sink sink = {
            .ctx = p, .text = on_text, .tokens = on_tokens, .end = tokens ? end_tokens : end_text};
        p->progress.file = f->path;
        TRY(docs_read(f, &d, &sink, &p->counts, e));
    }
    for (int i = 0; i < SPLIT_COUNT; i++) {
        TRY(shard_writer_end(p->writers[i], e));
    }
    tell(p, true);
    return ST_OK;
}

/*
 * Of few documents none may fall on the held-out side, or nearly all. Then the hash is salted anew,
 * by the next number, until each side has about its share; the result is still the text's alone.
 */
static bool well_shared(const struct pass *p)
{
    int64_t train = p->splits[SPLIT_TRAIN].tokens;
    int64_t held = p->splits[SPLIT_HELDOUT].tokens;
    int64_t documents = p->splits[SPLIT_TRAIN].documents + p->splits[SPLIT_HELDOUT].documents;
    if (p->o->heldout <= 0.0 || documents < 2 || documents > SMALL_CORPUS) {
        return true;
    }
    if (train + held > SMALL_TOKENS || (p->salt >= SALTS / 4 && train > 0 && held > 0)) {
        return true; // too long to read again, or no such share exists
    }
    double share = (double)held / (double)(held + train);
    return train > 0 && share >= 0.6 * p->o->heldout && share <= 2.5 * p->o->heldout;
}

static void fill_manifest(struct manifest *m, struct arena *a, const struct pass *p)
{
    *m = (struct manifest){.ids = p->info.ids,
                           .vocab_size = p->info.vocab_size,
                           .end_of_text = p->info.end_of_text,
                           .heldout = p->o->heldout};
    memcpy(m->tokenizer_sha256, p->info.sha256, sizeof(m->tokenizer_sha256));
    if (*m->tokenizer_sha256) {
        (void)snprintf(m->unicode, sizeof(m->unicode), "pieces %s, NFC %s",
                       pretok_unicode_version(), utf8_unicode_version());
    }
    const struct manifest_shard *from[SPLIT_COUNT];
    int32_t counts[SPLIT_COUNT];
    for (int i = 0; i < SPLIT_COUNT; i++) {
        m->splits[i] = p->splits[i];
        counts[i] = shard_writer_shards(p->writers[i], &from[i]);
        m->shard_count += counts[i];
    }
    struct manifest_shard *shards = arena_alloc(a, ((size_t)m->shard_count + 1) * sizeof(*shards));
    struct manifest_shard *to = shards;
    for (int i = 0; i < SPLIT_COUNT; i++) {
        for (int32_t k = 0; k < counts[i]; k++) {
            *to++ = from[i][k];
        }
    }
    m->shards = shards;
}

static enum status one_pass(struct prepare_report *out, struct arena *a,
                            const struct prepare_options *o, const struct tokenizer *t,
                            const struct doc_list *list, uint32_t salt, bool *good,
                            void (*tick)(void *ctx, const struct prepare_progress *p), void *ctx,
                            struct err *e)
{
    struct pass *p = mem_alloc(sizeof(*p));
    pass_init(p, o, t, salt);
    p->tick = tick;
    p->ctx = ctx;
    enum status st = read_files(p, list, e);
    if (!st) {
        fill_manifest(&out->manifest, a, p);
        out->counts = p->counts;
        *good = well_shared(p);
    }
    pass_release(p);
    mem_free(p);
    return st;
}

/* ---- the folder ---- */

static enum status make_folder(const char *dir, struct err *e)
{
    char path[PATH_MAX];
    int n = snprintf(path, sizeof(path), "%s", dir);
    if (n <= 0 || n >= PATH_MAX) {
        return err_set(e, ST_INVALID, "the output folder's name is empty or too long");
    }
    for (char *c = path + 1; *c; c++) {
        if (*c == '/') {
            *c = '\0';
            (void)mkdir(path, 0755); // what is wrong shows below
            *c = '/';
        }
    }
    struct stat s;
    if (mkdir(path, 0755) && (errno != EEXIST || stat(path, &s) || !S_ISDIR(s.st_mode))) {
        return err_set(e, ST_IO, "cannot make the folder %.160s: %s", dir,
                       errno == EEXIST ? "a file is there" : strerror(errno));
    }
    return ST_OK;
}

static enum status remove_in(const char *dir, const char *name, struct err *e)
{
    char path[PATH_MAX];
    int n = snprintf(path, sizeof(path), "%s/%s", dir, name);
    if (n >= PATH_MAX || (unlink(path) && errno != ENOENT)) {
        return err_set(e, ST_IO, "cannot remove %s in %.160s: %s", name, dir, strerror(errno));
    }
    return ST_OK;
}

/* Shards of an earlier, larger or interrupted run: named like ours and not in the manifest. */
static enum status remove_stale(const char *dir, const struct manifest *m, struct err *e)
{
    DIR *d = opendir(dir);
    if (!d) {
        return err_set(e, ST_IO, "cannot open the folder %.160s: %s", dir, strerror(errno));
    }
    enum status st = ST_OK;
    for (const struct dirent *x = readdir(d); x && !st; x = readdir(d)) {
        const char *end = strrchr(x->d_name, '-');
        bool ours =
            end && strspn(end + 1, "0123456789") == 5 &&
            (strncmp(x->d_name, "train-", 6) == 0 || strncmp(x->d_name, "heldout-", 8) == 0) &&
            (strcmp(end + 6, ".bin") == 0 || strcmp(end + 6, ".bin.tmp") == 0);
        for (int32_t i = 0; i < m->shard_count && ours; i++) {
            ours = strcmp(m->shards[i].file, x->d_name) != 0;
        }
        if (ours) {
            st = remove_in(dir, x->d_name, e);
        }
    }
    (void)closedir(d);
    return st;
}

static enum status start_folder(const struct prepare_options *o, struct err *e)
{
    char path[PATH_MAX];
    TRY(make_folder(o->out_dir, e));
    (void)snprintf(path, sizeof(path), "%s/manifest.json", o->out_dir);
    if (access(path, F_OK) == 0 && !o->force) {
        return err_set(e, ST_CONFLICT,
                       "%.120s holds prepared data; try --force to replace it, or "
                       "another -o",
                       o->out_dir);
    }
    return remove_in(o->out_dir, "manifest.json", e);
}

/* The folder is complete without the file the tokenizer came from. */
static enum status copy_tokenizer(const struct prepare_options *o, const char *sha256,
                                  struct err *e)
{
    if (!o->tokenizer || *o->tokenizer == '\0') {
        return remove_in(o->out_dir, "tokenizer.json", e);
    }
    struct buf b;
    buf_init(&b, TOKENIZER_FILE_MAX);
    char block[16 * 1024];
    enum status st = ST_OK;
    int fd = open(o->tokenizer, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : 0;
    while (fd >= 0 && (n = read(fd, block, sizeof(block))) > 0) {
        buf_add(&b, block, (size_t)n);
    }
    struct digest d;
    char hex[DIGEST_HEX + 1];
    sha256_of(b.data, b.len, &d);
    digest_hex(&d, hex);
    if (n < 0 || strcmp(hex, sha256) != 0) {
        st = err_set(e, ST_IO, "%.160s changed or cannot be read again", o->tokenizer);
    } else {
        st = folder_put(o->out_dir, "tokenizer.json", b.data, b.len, e);
    }
    if (fd >= 0) {
        (void)close(fd);
    }
    buf_release(&b);
    return st;
}

static enum status finish(const struct prepare_options *o, const struct manifest *m, struct err *e)
{
    TRY(remove_stale(o->out_dir, m, e));
    TRY(copy_tokenizer(o, m->tokenizer_sha256, e));
    struct buf b;
    buf_init(&b, MANIFEST_MAX);
    manifest_print(&b, m);
    buf_str(&b, "\n");
    enum status st = b.full ? err_set(e, ST_LIMIT, "the manifest is too large")
                            : folder_put(o->out_dir, "manifest.json", b.data, b.len, e);
    buf_release(&b);
    return st;
}

static enum status nothing_found(const struct prepare_report *r, struct err *e)
{
    if (r->counts.keyless > 0) {
        return err_set(e, ST_NOT_FOUND, "%.200s; try --text-key", r->counts.first_bad);
    }
    if (r->counts.bad_lines > 0) {
        return err_set(e, ST_NOT_FOUND, "no document was read; %.200s", r->counts.first_bad);
    }
    return err_set(e, ST_NOT_FOUND, "no text found; try files of text, JSON lines, or a folder");
}

static enum status work(struct prepare_report *out, struct arena *a,
                        const struct prepare_options *o, const struct tokenizer *t,
                        void (*tick)(void *ctx, const struct prepare_progress *p), void *ctx,
                        struct err *e)
{
    struct doc_list list;
    TRY(docs_list(&list, a, o->inputs, o->input_count, o->format, o->out_dir, e));
    out->files = list.count;
    out->binary = list.binary;
    out->other = list.other;
    TRY(start_folder(o, e));
    bool good = false;
    for (uint32_t salt = 0; salt < SALTS && !good; salt++) {
        TRY(one_pass(out, a, o, t, &list, salt, &good, tick, ctx, e));
    }
    const struct manifest *m = &out->manifest;
    if (m->splits[SPLIT_TRAIN].tokens + m->splits[SPLIT_HELDOUT].tokens == 0) {
        return nothing_found(out, e);
    }
    if (m->splits[SPLIT_TRAIN].tokens == 0) {
        return err_set(e, ST_INVALID, "nothing is left to train on; try a smaller --heldout");
    }
    return finish(o, m, e);
}

enum status prepare(struct prepare_report *out, struct arena *a, const struct prepare_options *o,
                    void (*tick)(void *ctx, const struct prepare_progress *p), void *ctx,
                    struct err *e)
{
    struct tokenizer *t = NULL;
    struct prepare_report r = {0};
    TRY(tokenizer_open(&t, o->tokenizer, e));
    enum status st = work(&r, a, o, t, tick, ctx, e);
    tokenizer_free(t);
    if (!st) {
        *out = r;
    }
    return st;
}

/* ---- checking ---- */

static enum status check_tokens(const struct shard *s, const struct manifest *m, const char *path,
                                struct err *e)
{
    int32_t *ids = mem_alloc(CHECK_STEP * sizeof(*ids));
    enum status st = ST_OK;
    for (int64_t at = 0; at < s->head.tokens && !st; at += CHECK_STEP) {
        int64_t left = s->head.tokens - at;
        int64_t some = left < CHECK_STEP ? left : CHECK_STEP;
        shard_read(s, at, some, ids);
        for (int64_t i = 0; i < some && !st; i++) {
            if (ids[i] < 0 || ids[i] >= m->ids) {
                st = err_set(e, ST_CORRUPT, "%.160s: token %d is no id below %d", path, ids[i],
                             m->ids);
            }
        }
    }
    mem_free(ids);
    return st;
}

static enum status check_shard(const struct manifest *m, const struct manifest_shard *want,
                               const char *path, struct err *e)
{
    struct digest d;
    char hex[DIGEST_HEX + 1];
    int64_t bytes = 0;
    TRY(sha256_file(path, &d, &bytes, e));
    digest_hex(&d, hex);
    if (strcmp(hex, want->sha256) != 0) {
        return err_set(e, ST_CORRUPT,
                       "%.140s is not what the manifest says (its SHA-256 differs); try `photon "
                       "data prepare` again",
                       path);
    }
    struct shard s;
    TRY(shard_open(&s, path, e));
    enum status st = s.head.tokens == want->tokens
                         ? check_tokens(&s, m, path, e)
                         : err_set(e, ST_CORRUPT,
                                   "%.160s: its number of tokens is not the "
                                   "manifest's",
                                   path);
    shard_close(&s);
    return st;
}

enum status prepare_check(struct manifest *out, struct arena *a, const char *dir,
                          void (*tick)(void *ctx, int64_t done, int64_t all), void *ctx,
                          struct err *e)
{
    struct manifest m;
    TRY(manifest_read(&m, a, dir, e));
    int64_t all = m.splits[SPLIT_TRAIN].tokens + m.splits[SPLIT_HELDOUT].tokens;
    int64_t done = 0;
    if (*m.tokenizer_sha256) {
        struct tokenizer *t = NULL;
        struct tokenizer_info info;
        TRY(tokenizer_open(&t, arena_fmt(a, "%s/tokenizer.json", dir), e));
        tokenizer_info(t, &info);
        tokenizer_free(t);
        if (strcmp(info.sha256, m.tokenizer_sha256) != 0) {
            return err_set(e, ST_CORRUPT, "%.140s/tokenizer.json is not what the manifest says",
                           dir);
        }
    }
    for (int32_t i = 0; i < m.shard_count; i++) {
        TRY(check_shard(&m, &m.shards[i], arena_fmt(a, "%s/%s", dir, m.shards[i].file), e));
        done += m.shards[i].tokens;
        if (tick) {
            tick(ctx, done, all);
        }
    }
    *out = m;
    return ST_OK;
}
