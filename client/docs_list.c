/*
 * Which files hold documents, and of what kind: docs_list() and docs_split_size().
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/docs.h"
#include "client/docs_input.h"
#include "client/shard.h"
#include "client/utf8.h"
#include "common/buf.h"
#include "common/json.h"
#include "common/mem.h"

enum { DEPTH_MAX = 64, SNIFF = 64 * 1024, FEW_FILES = 20, CUT_MIN = 1024, CUT_MAX = 16 * 1024 };
enum { LONG_TEXT = 1024 * 1024 };

struct walk {
    struct doc_list *out;
    struct arena *a;
    enum doc_format format;
    int32_t room;
    bool has_skip;
    dev_t skip_dev;
    ino_t skip_ino;
};

static bool ends_in(const char *path, const char *end)
{
    size_t n = strlen(path);
    size_t k = strlen(end);
    return n >= k && strcmp(path + n - k, end) == 0;
}

/* What the first bytes of a file look like. */
enum look { LOOK_TEXT = 0, LOOK_JSONL, LOOK_BIN, LOOK_BINARY };

static bool looks_binary(const char *s, size_t n)
{
    if (memchr(s, '\0', n)) {
        return true;
    }
    size_t bad = 0;
    for (size_t i = 0; i < n;) {
        size_t len = 0;
        bad += utf8_at(s + i, n - i, &len) == UTF8_BAD;
        i += len;
    }
    return bad > n / 10; // Latin-1 prose has a few; what is packed has half
}

/* Is the first line a JSON object? */
static bool looks_jsonl(const char *s, size_t n)
{
    const char *nl = memchr(s, '\n', n);
    size_t len = nl ? (size_t)(nl - s) : n;
    struct arena *a = arena_new(1 << 16);
    const struct json *doc = NULL;
    bool yes =
        len > 0 && *s == '{' && !json_parse(&doc, a, s, len, NULL) && json_kind(doc) == JSON_OBJECT;
    arena_free(a);
    return yes;
}

static enum status look_at(const char *path, bool gzip, enum look *out, struct err *e)
{
    struct input *in = NULL;
    const char *s = NULL;
    size_t n = 0;
    TRY(input_open(&in, path, gzip, NULL, e));
    enum status st = input_some(in, SNIFF, &s, &n, e);
    if (!st) {
        struct shard_head h;
        bool bin =
            ends_in(path, ".bin") && !shard_head_parse(&h, s, (int64_t)n, input_size(in), NULL);
        bool json = ends_in(path, ".json") || ends_in(path, ".json.gz");
        *out = bin                         ? LOOK_BIN
               : looks_binary(s, n)        ? LOOK_BINARY
               : json && looks_jsonl(s, n) ? LOOK_JSONL
                                           : LOOK_TEXT;
    }
    input_close(in);
    return st;
}

static bool named_jsonl(const char *path)
{
    static const char *const ENDS[] = {".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"};
    for (int i = 0; i < 4; i++) {
        if (ends_in(path, ENDS[i])) {
            return true;
        }
    }
    return false;
}

static enum status add_file(struct walk *w, const char *path, int64_t bytes, bool named,
                            struct err *e)
{
    static const char *const PACKED[] = {".zst", ".xz", ".bz2", ".zip", ".parquet", ".arrow"};
    struct doc_file f = {.path = path, .bytes = bytes, .gzip = ends_in(path, ".gz")};
    f.format = w->format;
    if (f.format == DOC_AUTO && named_jsonl(path)) {
        f.format = DOC_JSONL;
    }
    for (size_t i = 0; i < sizeof(PACKED) / sizeof(PACKED[0]); i++) {
        if (named && f.format == DOC_AUTO && ends_in(path, PACKED[i])) {
            return err_set(
                e, ST_INVALID,
                "%s: %s files are not read; try to unpack it to text or JSON lines first", path,
                PACKED[i]);
        }
    }
    if (f.format == DOC_AUTO) {
        enum look look = LOOK_TEXT;
        TRY(look_at(path, f.gzip, &look, e));
        if (look == LOOK_BINARY && named) {
            return err_set(e, ST_INVALID,
                           "%s is no text; tokens without a head need --format raw-u16", path);
        }
        if (look == LOOK_BINARY) {
            w->out->binary++;
            return ST_OK;
        }
        f.format = look == LOOK_BIN ? DOC_BIN : look == LOOK_JSONL ? DOC_JSONL : DOC_TEXT;
    }
    if (w->out->count == DOC_FILES_MAX) {
        return err_set(e, ST_LIMIT, "more than %d files", DOC_FILES_MAX);
    }
    if (w->out->count == w->room) {
        int32_t room = w->room ? 2 * w->room : 64;
        struct doc_file *files = arena_alloc(w->a, (size_t)room * sizeof(*files));
        if (w->room > 0) {
            memcpy(files, w->out->files, (size_t)w->room * sizeof(*files));
        }
        w->out->files = files;
        w->room = room;
    }
    w->out->files[w->out->count++] = f;
    w->out->bytes += bytes;
    return ST_OK;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The names in a folder, sorted; hidden ones are left out. */
static enum status names_of(struct walk *w, const char *path, const char ***out, size_t *count,
                            struct err *e)
{
    DIR *d = opendir(path);
    if (!d) {
        return err_set(e, ST_IO, "cannot open the folder %.160s: %s", path, strerror(errno));
    }
    struct buf list; // of pointers
    buf_init(&list, DOC_FILES_MAX * sizeof(char *));
    for (const struct dirent *x = readdir(d); x; x = readdir(d)) {
        if (x->d_name[0] != '.') {
            const char *name = arena_fmt(w->a, "%s", x->d_name);
            buf_add(&list, &name, sizeof(name));
        } else if (strcmp(x->d_name, ".") != 0 && strcmp(x->d_name, "..") != 0) {
            w->out->other++;
        }
    }
    (void)closedir(d);
    *count = list.len / sizeof(char *);
    const char **names = arena_alloc(w->a, list.len + sizeof(char *));
    memcpy(names, list.data, list.len);
    bool full = list.full;
    buf_release(&list);
    qsort(names, *count, sizeof(*names), by_text);
    *out = names;
    return full ? err_set(e, ST_LIMIT, "more than %d files in %.160s", DOC_FILES_MAX, path) : ST_OK;
}

static enum status walk_folder(struct walk *w, const char *path, int depth, struct err *e)
{
    const char **names = NULL;
    size_t count = 0;
    if (depth > DEPTH_MAX) {
        return err_set(e, ST_LIMIT, "folders nested deeper than %d: %.160s", DEPTH_MAX, path);
    }
    TRY(names_of(w, path, &names, &count, e));
    size_t n = strlen(path);
    const char *slash = n > 0 && path[n - 1] == '/' ? "" : "/";
    for (size_t i = 0; i < count; i++) {
        const char *child = arena_fmt(w->a, "%s%s%s", path, slash, names[i]);
        struct stat s;
        if (lstat(child, &s)) {
            w->out->other++;
        } else if (S_ISDIR(s.st_mode)) {
            if (!w->has_skip || s.st_dev != w->skip_dev || s.st_ino != w->skip_ino) {
                TRY(walk_folder(w, child, depth + 1, e));
            }
        } else if (S_ISREG(s.st_mode) && access(child, R_OK) == 0) {
            TRY(add_file(w, child, s.st_size, false, e));
        } else {
            w->out->other++;
        }
    }
    return ST_OK;
}

enum status docs_list(struct doc_list *out, struct arena *a, const char *const *inputs, int count,
                      enum doc_format format, const char *skip, struct err *e)
{
    *out = (struct doc_list){0};
    struct walk w = {.out = out, .a = a, .format = format};
    struct stat s;
    if (skip && stat(skip, &s) == 0) {
        w.has_skip = true;
        w.skip_dev = s.st_dev;
        w.skip_ino = s.st_ino;
    }
    for (int i = 0; i < count; i++) {
        if (stat(inputs[i], &s)) {
            return err_set(e, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "cannot open %.160s: %s",
                           inputs[i], strerror(errno));
        }
        if (S_ISDIR(s.st_mode)) {
            TRY(walk_folder(&w, inputs[i], 1, e));
        } else {
            TRY(add_file(&w, inputs[i], s.st_size, true, e));
        }
    }
    return ST_OK;
}

int64_t docs_split_size(const struct doc_list *l, const struct doc_file *f)
{
    int64_t texts = 0;
    for (int32_t i = 0; i < l->count && texts <= FEW_FILES; i++) {
        texts += l->files[i].format == DOC_TEXT ? 1 : FEW_FILES + 1;
    }
    if (f->format != DOC_TEXT || (f->bytes < LONG_TEXT && texts > FEW_FILES)) {
        return 0;
    }
    int64_t size = f->bytes / 256;
    return size < CUT_MIN ? CUT_MIN : size > CUT_MAX ? CUT_MAX : size;
}
