#include "server/static_files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/log.h"

enum { FILES_MAX = 256, DEPTH_MAX = 4, FILE_MAX = 8 * 1024 * 1024, LIST_MEMORY = 1024 * 1024 };

static const struct {
    const char *ending;
    const char *type;
} types[] = {
    {".html", "text/html; charset=utf-8"},
    {".js", "text/javascript; charset=utf-8"},
    {".mjs", "text/javascript; charset=utf-8"},
    {".css", "text/css; charset=utf-8"},
    {".svg", "image/svg+xml"},
    {".png", "image/png"},
    {".ico", "image/x-icon"},
    {".woff2", "font/woff2"},
    {".webmanifest", "application/manifest+json"},
};

/* Written once before the listeners start, only read afterwards. */
static struct {
    struct arena *arena;
    const char *dir;
    struct static_file files[FILES_MAX];
    int count;
} list;

static const char *type_of(const char *name)
{
    const char *dot = strrchr(name, '.');
    for (size_t i = 0; dot && i < sizeof(types) / sizeof(types[0]); i++) {
        if (strcmp(dot, types[i].ending) == 0) {
            return types[i].type;
        }
    }
    return NULL;
}

/* vendor/uplot-1.6.32/…: a folder named with a version never changes. */
static bool is_versioned(const char *name)
{
    for (const char *p = strchr(name, '-'); p; p = strchr(p + 1, '-')) {
        size_t number = strspn(p + 1, "0123456789.");
        if (number >= 3 && memchr(p + 1, '.', number) && p[1 + number] == '/') {
            return true;
        }
    }
    return false;
}

static void add(const char *name)
{
    const char *type = type_of(name);
    if (!type) {
        return; // licences, lock files, sources of nothing the page loads
    }
    if (list.count == FILES_MAX) {
        log_warn("the web folder has more than %d files; not served name=%s", FILES_MAX, name);
        return;
    }
    list.files[list.count] = (struct static_file){
        .name = arena_fmt(list.arena, "%s", name),
        .content_type = type,
        .immutable = is_versioned(name),
    };
    list.count++;
}

static void walk(const char *folder, int depth)
{
    char path[1024];
    (void)snprintf(path, sizeof(path), "%s/%s", list.dir, folder);
    DIR *d = opendir(path);
    if (!d) {
        return;
    }
    for (const struct dirent *f = readdir(d); f; f = readdir(d)) {
        if (f->d_name[0] == '.' || strcmp(f->d_name, "node_modules") == 0) {
            continue;
        }
        char name[512];
        char full[1600];
        (void)snprintf(name, sizeof(name), "%s%s%s", folder, folder[0] ? "/" : "", f->d_name);
        (void)snprintf(full, sizeof(full), "%s/%s", list.dir, name);
        struct stat info;
        if (lstat(full, &info) != 0) {
            continue;
        }
        if (S_ISDIR(info.st_mode) && depth < DEPTH_MAX) {
            walk(name, depth + 1);
        } else if (S_ISREG(info.st_mode)) {
            add(name);
        }
    }
    (void)closedir(d);
}

void static_files_load(const char *dir)
{
    arena_free(list.arena);
    list.arena = arena_new(LIST_MEMORY);
    list.count = 0;
    list.dir = dir ? arena_fmt(list.arena, "%s", dir) : NULL;
    if (list.dir) {
        walk("", 0);
    }
}

const struct static_file *static_file_find(const char *name)
{
    for (int i = 0; i < list.count; i++) {
        if (strcmp(list.files[i].name, name) == 0) {
            return &list.files[i];
        }
    }
    return NULL;
}

enum status static_file_read(char **out, size_t *len, struct arena *a, const struct static_file *f,
                             struct err *e)
{
    const char *path = arena_fmt(a, "%s/%s", list.dir, f->name);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    struct stat info;
    if (fd < 0 || fstat(fd, &info) != 0) {
        if (fd >= 0) {
            (void)close(fd);
        }
        return err_set(e, ST_NOT_FOUND, "'%s' is gone", f->name);
    }
    if (info.st_size > FILE_MAX) {
        (void)close(fd);
        return err_set(e, ST_LIMIT, "'%s' is larger than %d bytes", f->name, FILE_MAX);
    }
    size_t size = (size_t)info.st_size;
    char *bytes = arena_alloc(a, size + 1);
    size_t done = 0;
    while (done < size) {
        ssize_t n = read(fd, bytes + done, size - done);
        if (n <= 0) {
            break;
        }
        done += (size_t)n;
    }
    (void)close(fd);
    if (done < size) {
        return err_set(e, ST_IO, "'%s' could not be read: %s", f->name, strerror(errno));
    }
    *out = bytes;
    *len = size;
    return ST_OK;
}
