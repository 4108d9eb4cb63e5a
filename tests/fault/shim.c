/*
 * shim.c - a library before the C library: calls that fail, clocks that jump, writes that are lost.
 *
 *     LD_PRELOAD=shim.so SHIM_UNDER=/data photon-server …
 *
 * SHIM_FAIL="fsync 3 EIO": the third fsync or fdatasync on a file under SHIM_UNDER fails; so do
 * write (pwrite too), rename (renameat2), open (with O_CREAT), fallocate, malloc (calloc, realloc)
 * and pq, of which EIO cuts the connection and ENOMEM gives no result. A failed fsync loses what
 * was written since the last one, as a kernel may.
 *
 * SHIM_FAIL_LOG=FILE gets a line when the failure was made.
 *
 * SHIM_HOLD=FILE: each fsync or fdatasync there waits while that file exists.
 *
 * SHIM_CLOCK="3600 500": CLOCK_REALTIME is so many seconds off, from so many ms after the start.
 *
 * SHIM_LOG=FILE: one line a call, for who cuts the power later (tests/fault/power.py): W path
 * offset bytes, S path, H path of a sync that is held, R from to; a file is what SHIM_UNDER holds.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { RANGES = 256, LINE = 2 * PATH_MAX + 64 };

static struct {
    char call[16];
    int nth;
    int errnum;
    int count;
    const char *under;
    int log_fd, fail_fd;
    int64_t clock_s;
    int64_t clock_at_ms;
    int64_t start_ms;
    bool ready;
    bool lies;
    const char *hold;
} shim = {.log_fd = -1, .fail_fd = -1};

static struct {
    dev_t dev;
    ino_t ino;
    off_t at;
    size_t len;
} unsynced[RANGES]; // for what a failed fsync loses
static int unsynced_next;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) real_##name
#define FIND(name)                                                                                 \
    if (!REAL(name)) {                                                                             \
        *(void **)&REAL(name) = dlsym(RTLD_NEXT, #name);                                           \
    }

static ssize_t (*REAL(write))(int, const void *, size_t);
static ssize_t (*REAL(pwrite))(int, const void *, size_t, off_t);
static int (*REAL(fsync))(int);
static int (*REAL(fdatasync))(int);
static int (*REAL(rename))(const char *, const char *);
static int (*REAL(renameat2))(int, const char *, int, const char *, unsigned);
static int (*REAL(openat))(int, const char *, int, ...);
static int (*REAL(open))(const char *, int, ...);
static int (*REAL(fallocate))(int, int, off_t, off_t);
static int (*REAL(clock_gettime))(clockid_t, struct timespec *);

static int64_t mono_ms(void)
{
    struct timespec t;
    FIND(clock_gettime);
    (void)REAL(clock_gettime)(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int errno_named(const char *name)
{
    return strcmp(name, "ENOSPC") == 0   ? ENOSPC
           : strcmp(name, "ENOMEM") == 0 ? ENOMEM
           : strcmp(name, "EDQUOT") == 0 ? EDQUOT
                                         : EIO;
}

__attribute__((constructor)) static void begin(void)
{
    const char *fail = getenv("SHIM_FAIL");
    const char *clock = getenv("SHIM_CLOCK");
    const char *log = getenv("SHIM_LOG");
    const char *fail_log = getenv("SHIM_FAIL_LOG");
    char name[16] = "";
    long long s = 0;
    long long at = 0;
    FIND(open);
    if (fail && sscanf(fail, "%15s %d %15s", shim.call, &shim.nth, name) == 3) {
        shim.errnum = errno_named(name);
    }
    if (clock && sscanf(clock, "%lld %lld", &s, &at) == 2) {
        shim.clock_s = s;
        shim.clock_at_ms = at;
    }
    if (log) {
        shim.log_fd = REAL(open)(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    }
    if (fail_log) {
        shim.fail_fd = REAL(open)(fail_log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    }
    shim.under = getenv("SHIM_UNDER");
    shim.lies = getenv("SHIM_LIE") != NULL;
    shim.hold = getenv("SHIM_HOLD");
    shim.start_ms = mono_ms();
    shim.ready = true;
}

/* ---- whose turn it is ---- */

static bool fails(const char *call)
{
    if (!shim.ready || shim.nth == 0 || strcmp(call, shim.call) != 0 ||
        __atomic_add_fetch(&shim.count, 1, __ATOMIC_RELAXED) != shim.nth) {
        return false;
    }
    FIND(write);
    if (shim.fail_fd >= 0) {
        (void)!REAL(write)(shim.fail_fd, "failed\n", 7);
    }
    errno = shim.errnum;
    return true;
}

static bool path_of(int fd, char out[PATH_MAX])
{
    char link[32];
    (void)snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t n = shim.under ? readlink(link, out, PATH_MAX - 1) : -1;
    out[n > 0 ? n : 0] = '\0';
    return n > 0 && strncmp(out, shim.under, strlen(shim.under)) == 0;
}

static void say(const char *fmt, ...)
{
    char line[LINE];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    FIND(write);
    if (shim.log_fd >= 0 && n > 0) {
        (void)!REAL(write)(shim.log_fd, line, (size_t)n);
    }
}

/* ---- what was written and not synced ---- */

static void remember(int fd, off_t at, size_t len)
{
    struct stat s;
    if (shim.nth && strcmp(shim.call, "fsync") == 0 && fstat(fd, &s) == 0) {
        (void)pthread_mutex_lock(&lock);
        int i = unsynced_next++ % RANGES;
        unsynced[i].dev = s.st_dev;
        unsynced[i].ino = s.st_ino;
        unsynced[i].at = at;
        unsynced[i].len = len;
        (void)pthread_mutex_unlock(&lock);
    }
}

/* Zeros where the file's last writes were; or, after a sync that went well, forgets them. */
static void settle(int fd, bool lose)
{
    static const char zeros[4096];
    struct stat s;
    char self[32];
    if (fstat(fd, &s) || !S_ISREG(s.st_mode)) {
        return;
    }
    FIND(pwrite);
    FIND(open);
    (void)snprintf(self, sizeof(self), "/proc/self/fd/%d", fd);
    int out = lose ? REAL(open)(self, O_WRONLY | O_CLOEXEC) : -1;
    (void)pthread_mutex_lock(&lock);
    for (int i = 0; i < RANGES; i++) {
        if (unsynced[i].len && unsynced[i].dev == s.st_dev && unsynced[i].ino == s.st_ino) {
            for (size_t done = 0; out >= 0 && done < unsynced[i].len; done += sizeof(zeros)) {
                size_t left = unsynced[i].len - done;
                (void)!REAL(pwrite)(out, zeros, left < sizeof(zeros) ? left : sizeof(zeros),
                                    unsynced[i].at + (off_t)done);
            }
            unsynced[i].len = 0;
        }
    }
    (void)pthread_mutex_unlock(&lock);
    if (out >= 0) {
        (void)close(out);
    }
}

/* ---- the calls ---- */

ssize_t write(int fd, const void *data, size_t len)
{
    char path[PATH_MAX];
    FIND(write);
    if (!shim.ready || fd <= 2 || !path_of(fd, path)) {
        return REAL(write)(fd, data, len);
    }
    if (fails("write")) {
        return -1;
    }
    int flags = fcntl(fd, F_GETFL);
    off_t at = lseek(fd, 0, flags >= 0 && (flags & O_APPEND) ? SEEK_END : SEEK_CUR);
    say("W %s %lld %zu\n", path, (long long)at, len);
    remember(fd, at, len);
    return REAL(write)(fd, data, len);
}

ssize_t pwrite(int fd, const void *data, size_t len, off_t at)
{
    char path[PATH_MAX];
    FIND(pwrite);
    if (!shim.ready || !path_of(fd, path)) {
        return REAL(pwrite)(fd, data, len, at);
    }
    if (fails("write")) {
        return -1;
    }
    say("W %s %lld %zu\n", path, (long long)at, len);
    remember(fd, at, len);
    return REAL(pwrite)(fd, data, len, at);
}

ssize_t pwrite64(int fd, const void *data, size_t len, off_t at)
{
    return pwrite(fd, data, len, at);
}

static void wait_while_held(const char *path)
{
    static const struct timespec a_moment = {0, 10 * 1000000};
    if (shim.hold && access(shim.hold, F_OK) == 0) {
        say("H %s\n", path);
        while (access(shim.hold, F_OK) == 0) {
            (void)nanosleep(&a_moment, NULL);
        }
    }
}

static int synced(int fd, int (*real)(int))
{
    char path[PATH_MAX];
    if (!shim.ready || !path_of(fd, path)) {
        return real(fd);
    }
    if (fails("fsync")) {
        settle(fd, true);
        errno = shim.errnum;
        return -1;
    }
    if (shim.lies) {
        return 0;
    }
    wait_while_held(path);
    int rc = real(fd);
    if (rc == 0) {
        settle(fd, false);
        say("S %s\n", path);
    }
    return rc;
}

int fsync(int fd)
{
    FIND(fsync);
    return synced(fd, REAL(fsync));
}

int fdatasync(int fd)
{
    FIND(fdatasync);
    return synced(fd, REAL(fdatasync));
}

/* Absolute, whatever folder it is relative to. */
static void absolute(int at, const char *path, char out[2 * PATH_MAX])
{
    char dir[PATH_MAX] = "";
    if (path[0] != '/' && at != AT_FDCWD) {
        (void)path_of(at, dir);
    } else if (path[0] != '/' && !getcwd(dir, sizeof(dir))) {
        dir[0] = '\0';
    }
    (void)snprintf(out, (size_t)2 * PATH_MAX, "%s%s%s", dir, dir[0] ? "/" : "", path);
}

static bool named_under(int at, const char *path, char out[2 * PATH_MAX])
{
    absolute(at, path, out);
    return shim.ready && shim.under && strncmp(out, shim.under, strlen(shim.under)) == 0;
}

int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags)
{
    char a[2 * PATH_MAX];
    char b[2 * PATH_MAX];
    FIND(renameat2);
    bool ours = named_under(to_at, to, b);
    if (ours && fails("rename")) {
        return -1;
    }
    absolute(from_at, from, a);
    int rc = REAL(renameat2)(from_at, from, to_at, to, flags);
    if (rc == 0 && ours) {
        say("R %s %s\n", a, b);
    }
    return rc;
}

int rename(const char *from, const char *to)
{
    char a[2 * PATH_MAX];
    char b[2 * PATH_MAX];
    FIND(rename);
    bool ours = named_under(AT_FDCWD, to, b);
    if (ours && fails("rename")) {
        return -1;
    }
    absolute(AT_FDCWD, from, a);
    int rc = REAL(rename)(from, to);
    if (rc == 0 && ours) {
        say("R %s %s\n", a, b);
    }
    return rc;
}

int openat(int at, const char *path, int flags, ...)
{
    char whole[2 * PATH_MAX];
    va_list ap;
    va_start(ap, flags);
    mode_t mode = flags & O_CREAT ? va_arg(ap, mode_t) : 0;
    va_end(ap);
    FIND(openat);
    if ((flags & O_CREAT) && named_under(at, path, whole) && fails("open")) {
        return -1;
    }
    return REAL(openat)(at, path, flags, mode);
}

int open(const char *path, int flags, ...)
{
    char whole[2 * PATH_MAX];
    va_list ap;
    va_start(ap, flags);
    mode_t mode = flags & O_CREAT ? va_arg(ap, mode_t) : 0;
    va_end(ap);
    FIND(open);
    if ((flags & O_CREAT) && named_under(AT_FDCWD, path, whole) && fails("open")) {
        return -1;
    }
    return REAL(open)(path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    va_list ap;
    va_start(ap, flags);
    mode_t mode = flags & O_CREAT ? va_arg(ap, mode_t) : 0;
    va_end(ap);
    return open(path, flags, mode);
}

int openat64(int at, const char *path, int flags, ...)
{
    va_list ap;
    va_start(ap, flags);
    mode_t mode = flags & O_CREAT ? va_arg(ap, mode_t) : 0;
    va_end(ap);
    return openat(at, path, flags, mode);
}

int fallocate(int fd, int mode, off_t at, off_t len)
{
    char path[PATH_MAX];
    FIND(fallocate);
    return path_of(fd, path) && fails("fallocate") ? -1 : REAL(fallocate)(fd, mode, at, len);
}

int fallocate64(int fd, int mode, off_t at, off_t len)
{
    return fallocate(fd, mode, at, len);
}

int clock_gettime(clockid_t id, struct timespec *t)
{
    FIND(clock_gettime);
    int rc = REAL(clock_gettime)(id, t);
    if (id == CLOCK_REALTIME && shim.clock_s && mono_ms() - shim.start_ms >= shim.clock_at_ms) {
        t->tv_sec += shim.clock_s;
    }
    return rc;
}

/* ---- PostgreSQL: the types are opaque here ---- */

void *PQexecParams(void *conn, const char *sql, int n, const void *types, const void *values,
                   const void *lengths, const void *formats, int format)
{
    static void *(*real)(void *, const char *, int, const void *, const void *, const void *,
                         const void *, int);
    static int (*socket_of)(const void *);
    if (!real) {
        *(void **)&real = dlsym(RTLD_NEXT, "PQexecParams");
        *(void **)&socket_of = dlsym(RTLD_NEXT, "PQsocket");
    }
    if (fails("pq")) {
        if (shim.errnum == ENOMEM) {
            return NULL;
        }
        (void)shutdown(socket_of(conn), SHUT_RDWR);
    }
    return real(conn, sql, n, types, values, lengths, formats, format);
}

/* ---- memory: glibc's own names, since dlsym() itself allocates ---- */

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t size);

/* Of the program itself and the libraries it speaks to; loaders and compilers' runtimes die of it.
 */
static bool ours(void *caller)
{
    static const char *const known[] = {"/photon-", "libpq.", "libmicrohttpd.", "libcjson.",
                                        "libcurl."};
    Dl_info info;
    if (!shim.ready || strcmp(shim.call, "malloc") != 0 || !dladdr(caller, &info) ||
        !info.dli_fname) {
        return false;
    }
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strstr(info.dli_fname, known[i])) {
            return true;
        }
    }
    return false;
}

void *malloc(size_t size)
{
    return ours(__builtin_return_address(0)) && fails("malloc") ? NULL : __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
    return ours(__builtin_return_address(0)) && fails("malloc") ? NULL : __libc_calloc(n, size);
}

void *realloc(void *p, size_t size)
{
    return ours(__builtin_return_address(0)) && fails("malloc") ? NULL : __libc_realloc(p, size);
}
