#include "client/cli/demo_text.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <glob.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "client/docs_input.h"
#include "client/utf8.h"
#include "common/arena.h"
#include "common/buf.h"
#include "common/json.h"
#include "common/mem.h"
#include "common/rng.h"

enum {
    KIND_BYTES_MAX = 8 * 1000 * 1000,
    KIND_BYTES_GOOD = 1500 * 1000,
    KIND_BYTES_LEAST = 200 * 1000,
    FILE_BYTES_LEAST = 200,
    FILE_BYTES_MAX = 256 * 1024,
    FILES_MAX = 20000,
    FOLDER_MAX = 10000,
    DEPTH_MAX = 10
};

static const uint64_t DRAW_SEED = 17;

/* In the order in which they are wanted: the first four that this machine has are as different as
 * they can be. */
static const struct kind {
    const char *name;
    const char *roots[4]; /* globs */
    const char *endings[4];
} kinds[] = {
    {"c-headers", {"/usr/include"}, {".h"}},
    {"perl", {"/usr/share/perl*", "/usr/lib/*/perl*"}, {".pm", ".pl", ".pod"}},
    {"manuals", {"/usr/share/man/man*"}, {".gz"}},
    {"licences",
     {"/usr/share/doc", "/usr/share/common-licenses"},
     {"/copyright", "/GPL-3", "/MPL-2.0", "/Apache-2.0"}},
    {"python", {"/usr/lib/python3*", "/usr/share/python3"}, {".py"}},
    {"javascript", {"/usr/share/nodejs", "/usr/lib/node_modules"}, {".js", ".mjs"}},
    {"sql", {"/usr/share/postgresql"}, {".sql", ".bki"}},
    {"documents", {"/usr/share/doc"}, {"README", ".txt", ".html", ".md"}},
};

enum { KINDS = sizeof(kinds) / sizeof(kinds[0]) };

struct found_file {
    char *path;
    uint64_t draw;
    int64_t bytes;
};

struct finding {
    struct arena *arena;
    const struct kind *kind;
    struct found_file *files;
    int count;
    int64_t bytes;
};

static bool fits(const struct kind *k, const char *path)
{
    size_t n = strlen(path);
    for (int i = 0; i < 4 && k->endings[i]; i++) {
        size_t m = strlen(k->endings[i]);
        if (n > m && strcmp(path + n - m, k->endings[i]) == 0) {
            return true;
        }
    }
    return false;
}

static void look(struct finding *f, const char *dir, int depth)
{
    DIR *d = depth < DEPTH_MAX ? opendir(dir) : NULL;
    if (!d) {
        return;
    }
    for (struct dirent *entry = readdir(d); entry && f->count < FILES_MAX; entry = readdir(d)) {
        struct stat s;
        char path[1024];
        if (entry->d_name[0] == '.' ||
            snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name) >= (int)sizeof(path) ||
            lstat(path, &s) != 0) {
            continue;
        }
        if (S_ISDIR(s.st_mode)) {
            look(f, path, depth + 1);
        } else if (S_ISREG(s.st_mode) && fits(f->kind, path) && s.st_size >= FILE_BYTES_LEAST &&
                   s.st_size <= FILE_BYTES_MAX) {
            f->files[f->count++] = (struct found_file){.path = arena_fmt(f->arena, "%s", path),
                                                       .draw = rng_u64(rng_key(DRAW_SEED, path), 0),
                                                       .bytes = (int64_t)s.st_size};
            f->bytes += (int64_t)s.st_size;
        }
    }
    (void)closedir(d);
}

static int by_draw(const void *a, const void *b)
{
    const struct found_file *x = a;
    const struct found_file *y = b;
    if (x->draw != y->draw) {
        return x->draw < y->draw ? -1 : 1;
    }
    return strcmp(x->path, y->path);
}

static void find_files(struct finding *f)
{
    for (int i = 0; i < 4 && f->kind->roots[i]; i++) {
        glob_t g;
        if (glob(f->kind->roots[i], GLOB_ONLYDIR, NULL, &g) == 0) {
            for (size_t k = 0; k < g.gl_pathc; k++) {
                struct stat s;
                if (lstat(g.gl_pathv[k], &s) == 0 && S_ISDIR(s.st_mode)) { // perl/5.36 is a link
                    look(f, g.gl_pathv[k], 0);
                }
            }
            globfree(&g);
        }
    }
    qsort(f->files, (size_t)f->count, sizeof(*f->files), by_draw);
}

/* A whole small file, inflated when it is compressed; its length, or -1. */
static int64_t read_whole(const char *path, char *out)
{
    struct input *in = NULL;
    struct err unused = {0};
    size_t n = strlen(path);
    bool gzip = n > 3 && strcmp(path + n - 3, ".gz") == 0;
    if (input_open(&in, path, gzip, NULL, &unused)) {
        return -1;
    }
    const char *block = NULL;
    size_t got = 0;
    int64_t len = 0;
    while (len >= 0 && input_block(in, &block, &got, &unused) == ST_OK && got > 0) {
        bool room = len + (int64_t)got <= FILE_BYTES_MAX;
        if (room) {
            memcpy(out + len, block, got);
        }
        len = room ? len + (int64_t)got : -1;
    }
    input_close(in);
    return len;
}

/* A document of valid UTF-8 without control characters; its length, or -1. */
static int64_t read_text(const char *path, char *out)
{
    int64_t n = read_whole(path, out);
    for (int64_t i = 0; i < n;) {
        size_t len = 1;
        int32_t c = utf8_at(out + i, (size_t)(n - i), &len);
        bool control = c >= 0 && c < 0x20 && c != '\n' && c != '\t' && c != '\r' && c != '\f';
        if (c < 0 || control) {
            return -1;
        }
        i += (int64_t)len;
    }
    if (n >= 0) {
        out[n] = '\0';
    }
    return n;
}

static enum status write_kind(struct finding *f, const char *path, int64_t *written, struct err *e)
{
    FILE *to = fopen(path, "we");
    if (!to) {
        return err_set(e, ST_IO, "cannot write %s: %s", path, strerror(errno));
    }
    char *text = mem_alloc(FILE_BYTES_MAX + 1);
    struct buf line;
    buf_init(&line, 8 * FILE_BYTES_MAX);
    bool ok = true;
    int64_t total = 0;
    for (int i = 0; i < f->count && total < KIND_BYTES_MAX && ok; i++) {
        int64_t n = read_text(f->files[i].path, text);
        if (n < FILE_BYTES_LEAST) {
            continue;
        }
        buf_clear(&line);
        jw_object(&line, NULL);
        jw_str(&line, "text", text);
        jw_end_object(&line);
        buf_str(&line, "\n");
        ok = fwrite(line.data, 1, line.len, to) == line.len;
        total += n;
    }
    ok = fclose(to) == 0 && ok;
    buf_release(&line);
    mem_free(text);
    *written = total;
    return ok ? ST_OK : err_set(e, ST_IO, "cannot write %s: %s", path, strerror(errno));
}

/* Lists a kind's files; how many bytes it would give. */
static int64_t measure(struct finding *f, const struct kind *k)
{
    f->kind = k;
    f->count = 0;
    f->bytes = 0;
    find_files(f);
    return f->bytes < KIND_BYTES_MAX ? f->bytes : KIND_BYTES_MAX;
}

/* The kinds to take: in the table's order those with plenty, then the largest of the rest. */
static int choose(struct finding *f, int want, int chosen[KINDS])
{
    int64_t size[KINDS];
    int count = 0;
    for (int i = 0; i < KINDS; i++) {
        size[i] = measure(f, &kinds[i]);
        if (size[i] >= KIND_BYTES_GOOD && count < want) {
            chosen[count++] = i;
            size[i] = 0;
        }
    }
    while (count < want) {
        int best = -1;
        for (int i = 0; i < KINDS; i++) {
            if (size[i] >= KIND_BYTES_LEAST && (best < 0 || size[i] > size[best])) {
                best = i;
            }
        }
        if (best < 0) {
            break;
        }
        chosen[count++] = best;
        size[best] = 0;
    }
    return count;
}

enum status demo_text_find(const char *dir, int want, struct demo_source *out, int *count,
                           struct err *e)
{
    struct finding f = {.arena = arena_new(256 * 1024 * 1024),
                        .files = mem_alloc(FILES_MAX * sizeof(struct found_file))};
    int chosen[KINDS];
    enum status st = ST_OK;
    want = want < KINDS ? want : KINDS;
    int n = choose(&f, want, chosen);
    *count = n;
    for (int i = 0; i < n && !st; i++) {
        struct demo_source *s = &out[i];
        (void)measure(&f, &kinds[chosen[i]]);
        (void)snprintf(s->name, sizeof(s->name), "%s", kinds[chosen[i]].name);
        (void)snprintf(s->path, sizeof(s->path), "%.400s/%s.jsonl", dir, s->name);
        st = write_kind(&f, s->path, &s->bytes, e);
    }
    mem_free(f.files);
    arena_free(f.arena);
    if (!st && n < want) {
        st = err_set(e, ST_NOT_FOUND,
                     "this machine has text of %d kinds only; try --data FOLDER or --silos %d", n,
                     n);
    }
    return st;
}

/* ---- the user's own ---- */

/* What a silo may be called: lower-case letters, digits, dots, dashes. */
static void silo_name(const char *file, char out[64])
{
    size_t n = 0;
    size_t len = strcspn(file, ".");
    for (size_t i = 0; i < len && n < 40; i++) {
        unsigned char c = (unsigned char)file[i];
        out[n++] = isalnum(c) ? (char)tolower(c) : '-';
    }
    out[n] = '\0';
    if (n == 0 || !isalnum((unsigned char)out[0])) {
        (void)snprintf(out, 64, "silo-%zu", len);
    }
}

static bool is_text_name(const char *name)
{
    static const char *const endings[] = {".txt", ".jsonl", ".txt.gz", ".jsonl.gz"};
    size_t n = strlen(name);
    for (size_t i = 0; i < sizeof(endings) / sizeof(endings[0]); i++) {
        size_t m = strlen(endings[i]);
        if (n > m && strcmp(name + n - m, endings[i]) == 0) {
            return true;
        }
    }
    return false;
}

static bool has_name(const struct demo_source *list, int count, const char *name)
{
    for (int i = 0; i < count; i++) {
        if (strcmp(list[i].name, name) == 0) {
            return true;
        }
    }
    return false;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Names of a folder in order; their count. */
static int list_names(struct arena *a, DIR *d, const char **names)
{
    int count = 0;
    for (struct dirent *entry = readdir(d); entry && count < FOLDER_MAX; entry = readdir(d)) {
        if (entry->d_name[0] != '.') {
            names[count++] = arena_fmt(a, "%s", entry->d_name);
        }
    }
    qsort(names, (size_t)count, sizeof(*names), by_name);
    return count;
}

/* What the files below a folder measure. */
static int64_t folder_bytes(const char *dir, int depth)
{
    DIR *d = depth < DEPTH_MAX ? opendir(dir) : NULL;
    int64_t sum = 0;
    for (struct dirent *entry = d ? readdir(d) : NULL; entry; entry = readdir(d)) {
        struct stat s;
        char path[1024];
        if (entry->d_name[0] == '.' ||
            snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name) >= (int)sizeof(path) ||
            lstat(path, &s) != 0) {
            continue;
        }
        sum += S_ISDIR(s.st_mode) ? folder_bytes(path, depth + 1) : (int64_t)s.st_size;
    }
    if (d) {
        (void)closedir(d);
    }
    return sum;
}

static bool take_entry(const char *folder, const char *name, struct demo_source *list, int taken)
{
    struct stat s;
    struct demo_source *to = &list[taken];
    if (snprintf(to->path, sizeof(to->path), "%s/%s", folder, name) >= (int)sizeof(to->path) ||
        stat(to->path, &s) != 0 || (!S_ISDIR(s.st_mode) && !is_text_name(name))) {
        return false;
    }
    silo_name(name, to->name);
    if (has_name(list, taken, to->name)) {
        size_t len = strlen(to->name);
        (void)snprintf(to->name + len, sizeof(to->name) - len, "-%d", taken + 1);
    }
    to->bytes = S_ISDIR(s.st_mode) ? folder_bytes(to->path, 0) : (int64_t)s.st_size;
    return true;
}

enum status demo_text_given(const char *folder, int want, struct demo_source *out, int *count,
                            struct err *e)
{
    DIR *d = opendir(folder);
    if (!d) {
        return err_set(e, ST_NOT_FOUND, "cannot list %s: %s", folder, strerror(errno));
    }
    struct arena *a = arena_new(16 * 1024 * 1024);
    const char **names = arena_alloc(a, FOLDER_MAX * sizeof(*names));
    int n = list_names(a, d, names);
    int taken = 0;
    for (int i = 0; i < n && taken < want && taken < DEMO_SILOS_MAX; i++) {
        taken += take_entry(folder, names[i], out, taken) ? 1 : 0;
    }
    arena_free(a);
    (void)closedir(d);
    *count = taken;
    return taken > 0 ? ST_OK
                     : err_set(e, ST_NOT_FOUND,
                               "%s holds no subfolder and no .txt or .jsonl (.gz) file", folder);
}
