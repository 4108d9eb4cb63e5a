#include "server/cluster.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <grp.h>
#include <limits.h>
#include <pwd.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/arena.h"
#include "common/clock.h"
#include "common/hash.h"
#include "common/log.h"
#include "common/mem.h"
#include "server/db.h"
#include "server/db_role.h"

enum {
    START_MS = 60000,  // after a kill of everything a postmaster may refuse for a while
    ANSWER_MS = 20000, // an inherited postmaster answers within this, or is replaced
    STOP_MS = 30000,   // a fast shutdown that takes longer is made immediate
    POLL_MS = 50,
    RESPAWN_MS = 500,
    POSTGRES_ARGS = 24,
};

#define SOCKET_FILE "/.s.PGSQL.5432"

struct cluster {
    struct arena *arena; // owns the paths below
    const char *data;    // <data>, absolute
    const char *pg;      // <data>/pg
    const char *log;
    const char *sockets;
    const char *bin;
    const char *conninfo, *server_conninfo;
    char *argv[POSTGRES_ARGS];
    int lock_fd;
    pid_t pid;   // the postmaster; 0: none
    bool shared; // another server's: hands off
    bool child;  // ours to wait for, not an inherited one
    int64_t next_spawn_ms;
    bool drop; // give up root for uid, gid
    uid_t uid;
    gid_t gid;
    const char *user; // for messages
};

/* ---- who and where ---- */

/* PostgreSQL refuses to run as root: it gets who owns its files, else a user that every system with
 * PostgreSQL has. */
static enum status choose_user(struct cluster *c, struct err *e)
{
    c->uid = geteuid();
    c->gid = getegid();
    c->user = "this user";
    if (c->uid != 0) {
        return ST_OK;
    }
    struct stat sb;
    if (lstat(c->pg, &sb) == 0 && S_ISDIR(sb.st_mode) && sb.st_uid != 0) {
        c->uid = sb.st_uid;
        c->gid = sb.st_gid;
        c->user = "the owner of the folder pg";
        c->drop = true;
        return ST_OK;
    }
    static const char *const names[] = {"photon-pg", "postgres", "nobody"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        const struct passwd *pw = getpwnam(names[i]);
        if (pw && pw->pw_uid != 0) {
            c->uid = pw->pw_uid;
            c->gid = pw->pw_gid;
            c->user = names[i];
            c->drop = true;
            return ST_OK;
        }
    }
    return err_set(e, ST_NOT_FOUND,
                   "PostgreSQL must not run as root and there is no user for it; try 'useradd "
                   "--system photon-pg'");
}

/* The number that a folder named after a version carries, as in /usr/lib/postgresql/15/bin. */
static int version_in(const char *path)
{
    for (const char *p = path; *p; p++) {
        if (*p >= '0' && *p <= '9') {
            return (int)strtol(p, NULL, 10);
        }
    }
    return 0;
}

/* The number that a file of the cluster begins with; 0 when there is none. */
static long number_in_file(const struct cluster *c, const char *name)
{
    char path[PATH_MAX];
    (void)snprintf(path, sizeof(path), "%s/%s", c->pg, name);
    FILE *f = fopen(path, "re");
    char text[32] = "";
    if (f) {
        if (!fgets(text, sizeof(text), f)) {
            text[0] = '\0';
        }
        (void)fclose(f);
    }
    return strtol(text, NULL, 10);
}

/* The newest programs, or those of the version that made the folder. */
static enum status choose_programs(struct cluster *c, struct err *e)
{
    static const char *const patterns[] = {"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin",
                                           "/usr/local/pgsql/bin", "/usr/bin", "/usr/local/bin"};
    int want = (int)number_in_file(c, "PG_VERSION");
    int best = -1;
    glob_t found = {0};
    for (size_t i = 0; i < sizeof(patterns) / sizeof(patterns[0]); i++) {
        (void)glob(patterns[i], i ? GLOB_APPEND : 0, NULL, &found);
    }
    for (size_t i = 0; i < found.gl_pathc; i++) {
        const char *dir = found.gl_pathv[i];
        const char *initdb = arena_fmt(c->arena, "%s/initdb", dir);
        const char *postgres = arena_fmt(c->arena, "%s/postgres", dir);
        int version = version_in(dir);
        bool fits = !want || !version || version == want; // no number: PostgreSQL itself will say
        if (access(initdb, X_OK) == 0 && access(postgres, X_OK) == 0 && fits && version > best) {
            best = version;
            c->bin = arena_fmt(c->arena, "%s", dir);
        }
    }
    globfree(&found);
    if (c->bin) {
        return ST_OK;
    }
    return want ? err_set(e, ST_NOT_FOUND,
                          "'%s' was made by PostgreSQL %d, which is not installed; try 'apt-get "
                          "install postgresql-%d'",
                          c->pg, want, want)
                : err_set(e, ST_NOT_FOUND,
                          "PostgreSQL is not installed; try 'apt-get install postgresql', or name "
                          "a database with --database");
}

/* A folder that PostgreSQL's user owns and nobody else may enter. */
static enum status private_folder(const struct cluster *c, const char *path, struct err *e)
{
    if (mkdir(path, 0700) != 0 && errno != EEXIST) {
        return err_set(e, ST_IO, "cannot make the folder '%s': %s", path, strerror(errno));
    }
    struct stat sb;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    bool ok = fd >= 0 && fstat(fd, &sb) == 0 && (sb.st_uid == c->uid || sb.st_uid == geteuid()) &&
              fchmod(fd, 0700) == 0 && (!c->drop || fchown(fd, c->uid, c->gid) == 0);
    int why = errno;
    if (fd >= 0) {
        (void)close(fd);
    }
    return ok ? ST_OK
              : err_set(e, ST_DENIED, "the folder '%s' is not ours alone: %s", path,
                        strerror(why ? why : EPERM));
}

/* A socket's path holds 107 bytes: deep data folders get theirs in /tmp, by a
 * digest of the path. */
static const char *choose_sockets(struct cluster *c)
{
    const char *near = arena_fmt(c->arena, "%s/pg-socket", c->data);
    size_t room = sizeof(((struct sockaddr_un *)0)->sun_path);
    if (strlen(near) + strlen(SOCKET_FILE) < room && !strpbrk(near, ", \"'\\")) {
        return near;
    }
    struct digest d;
    char hex[DIGEST_HEX + 1];
    sha256_of(c->data, strlen(c->data), &d);
    digest_hex(&d, hex);
    return arena_fmt(c->arena, "/tmp/photon-%u-%.16s", (unsigned)geteuid(), hex);
}

/* 'it''s' for libpq: quotes and backslashes escaped. */
static const char *quoted(struct arena *a, const char *text)
{
    char *out = arena_alloc(a, 2 * strlen(text) + 3);
    char *p = out;
    *p++ = '\'';
    for (; *text; text++) {
        if (*text == '\'' || *text == '\\') {
            *p++ = '\\';
        }
        *p++ = *text;
    }
    *p = '\'';
    return out;
}

static enum status lock_folder(struct cluster *c, struct err *e)
{
    const char *path = arena_fmt(c->arena, "%s/lock", c->data);
    c->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (c->lock_fd < 0) {
        return err_set(e, ST_IO, "cannot write in '%s': %s", c->data, strerror(errno));
    }
    if (flock(c->lock_fd, LOCK_EX | LOCK_NB) != 0) {
        return err_set(e, ST_CONFLICT,
                       "another photon-server uses '%s'; try another --data, or --database to "
                       "share one",
                       c->data);
    }
    return ST_OK;
}

/* ---- processes ---- */

/* In the child between fork and exec: nothing but system calls. */
static void become(const struct cluster *c, int log_fd)
{
    (void)setsid(); // not in the terminal's group: Ctrl-C is ours to pass on
    (void)dup2(log_fd, STDOUT_FILENO);
    (void)dup2(log_fd, STDERR_FILENO);
    int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    (void)dup2(null_fd, STDIN_FILENO);
    sigset_t none;
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL); // a mask would be inherited, signals unheard
    if (c->drop && (setgroups(0, NULL) != 0 || setgid(c->gid) != 0 || setuid(c->uid) != 0)) {
        _exit(126);
    }
    if (chdir("/") != 0) {
        _exit(126);
    }
}

static enum status spawn(struct cluster *c, char *const *argv, pid_t *out, struct err *e)
{
    int log_fd = open(c->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (log_fd < 0) {
        return err_set(e, ST_IO, "cannot write '%s': %s", c->log, strerror(errno));
    }
    pid_t pid = fork();
    if (pid == 0) {
        become(c, log_fd);
        (void)execv(argv[0], argv);
        _exit(127);
    }
    (void)close(log_fd);
    if (pid < 0) {
        return err_set(e, ST_IO, "cannot fork: %s", strerror(errno));
    }
    *out = pid;
    return ST_OK;
}

/* execv() takes char *, though it changes nothing. */
static char *arg(struct cluster *c, const char *text)
{
    return arena_fmt(c->arena, "%s", text);
}

static enum status make_files(struct cluster *c, struct err *e)
{
    if (access(c->pg, F_OK) == 0) {
        return ST_OK;
    }
    log_info("making a PostgreSQL cluster in %s", c->pg);
    // Under another name until it is whole: a kill in the middle leaves nothing that looks ready.
    const char *fresh = arena_fmt(c->arena, "%s.new", c->pg);
    char *rm[] = {arg(c, "/bin/rm"), arg(c, "-rf"), arg(c, fresh), NULL};
    char *initdb[] = {arena_fmt(c->arena, "%s/initdb", c->bin),
                      arg(c, "-D"),
                      arg(c, fresh),
                      arg(c, "--data-checksums"),
                      arg(c, "--username=photon"),
                      arg(c, "--auth=trust"), // the socket's folder is the lock
                      arg(c, "--encoding=UTF8"),
                      arg(c, "--locale=C.UTF-8"),
                      arg(c, "--no-instructions"),
                      NULL};
    pid_t pid = 0;
    int status = 0;
    if (access(fresh, F_OK) == 0) {
        bool drop = c->drop;
        c->drop = false; // whoever owns what is in there
        enum status st = spawn(c, rm, &pid, e);
        c->drop = drop;
        TRY(st);
        (void)waitpid(pid, &status, 0);
    }
    TRY(private_folder(c, fresh, e));
    TRY(spawn(c, initdb, &pid, e));
    if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        return err_set(e, ST_DENIED,
                       "initdb failed as %s; see '%s'. Can %s enter every folder above '%s'? Else "
                       "try another --data",
                       c->user, c->log, c->user, c->pg);
    }
    if (rename(fresh, c->pg) != 0) {
        return err_set(e, ST_IO, "cannot rename '%s': %s", fresh, strerror(errno));
    }
    return ST_OK;
}

static void prepare_postmaster(struct cluster *c)
{
    // No jit: it needs memory to write and to run, which a service's unit bars.
    char *const argv[] = {arena_fmt(c->arena, "%s/postgres", c->bin),
                          arg(c, "-D"),
                          arg(c, c->pg),
                          arg(c, "-k"),
                          arg(c, c->sockets),
                          arg(c, "-clisten_addresses="),
                          arg(c, "-cunix_socket_permissions=0700"),
                          arg(c, "-cmax_connections=200"),
                          arg(c, "-cshared_buffers=64MB"),
                          arg(c, "-clog_timezone=UTC"),
                          arg(c, "-clog_line_prefix=%m [%p] "),
                          arg(c, "-clog_min_error_statement=panic"),
                          arg(c, "-clog_checkpoints=off"),
                          arg(c, "-cjit=off"),
                          arg(c, "-cfsync=on"),
                          arg(c, "-cfull_page_writes=on"),
                          arg(c, "-csynchronous_commit=on"),
                          NULL};
    static_assert(sizeof(argv) <= sizeof(c->argv), "POSTGRES_ARGS is too small");
    memcpy(c->argv, argv, sizeof(argv));
}

static enum status spawn_postmaster(struct cluster *c, struct err *e)
{
    TRY(spawn(c, c->argv, &c->pid, e));
    c->child = true;
    c->next_spawn_ms = clock_mono_ms() + RESPAWN_MS;
    return ST_OK;
}

static bool postmaster_lives(struct cluster *c)
{
    if (c->pid <= 0) {
        return false;
    }
    bool lives = c->child ? waitpid(c->pid, NULL, WNOHANG) == 0 : kill(c->pid, 0) == 0;
    if (!lives) {
        c->pid = 0;
    }
    return lives;
}

/* The pid in the folder's pid file, if that process is a postmaster at work in this very folder. */
static pid_t find_postmaster(const struct cluster *c)
{
    long pid = number_in_file(c, "postmaster.pid");
    if (pid <= 1) {
        return 0;
    }
    char path[PATH_MAX];
    char cwd[PATH_MAX];
    char real[PATH_MAX];
    (void)snprintf(path, sizeof(path), "/proc/%ld/cwd", pid);
    ssize_t n = readlink(path, cwd, sizeof(cwd) - 1);
    if (n < 0 || !realpath(c->pg, real)) {
        return 0;
    }
    cwd[n] = '\0';
    return strcmp(cwd, real) == 0 ? (pid_t)pid : 0;
}

/* A pid file whose process is not PostgreSQL (after a reboot, say) makes
 * postgres refuse to start. */
static void drop_stale_pid_file(const struct cluster *c)
{
    char path[PATH_MAX];
    (void)snprintf(path, sizeof(path), "%s/postmaster.pid", c->pg);
    if (find_postmaster(c) == 0 && unlink(path) == 0) {
        log_warn("removed a stale postmaster.pid");
    }
}

static enum status try_connect(const struct cluster *c, struct err *e)
{
    struct db *db = NULL;
    TRY(db_open(&db, c->conninfo, e));
    db_close(db);
    return ST_OK;
}

static enum status wait_answer(struct cluster *c, int64_t until, struct err *e)
{
    for (;;) {
        enum status st = try_connect(c, e);
        if (st != ST_RETRY) {
            return st;
        }
        if (!postmaster_lives(c) || clock_mono_ms() > until) {
            return st;
        }
        clock_sleep_ms(POLL_MS);
    }
}

/* SIGINT is PostgreSQL's fast shutdown, SIGQUIT the immediate one (recovery at the next start). */
static void end_postmaster(struct cluster *c, int sig, int64_t patience_ms)
{
    int64_t until = clock_mono_ms() + patience_ms;
    if (postmaster_lives(c)) {
        (void)kill(c->pid, sig);
    }
    while (postmaster_lives(c)) {
        if (clock_mono_ms() > until) {
            log_warn("PostgreSQL does not stop; ending it at once");
            (void)kill(c->pid, SIGQUIT);
            until = clock_mono_ms() + STOP_MS;
        }
        clock_sleep_ms(POLL_MS);
    }
}

/* Goes on with the postmaster that a killed server left behind, if it is healthy. */
static bool take_over(struct cluster *c)
{
    c->pid = find_postmaster(c);
    c->child = false;
    if (c->pid == 0) {
        return false;
    }
    struct err e = {0};
    if (wait_answer(c, clock_mono_ms() + ANSWER_MS, &e) == ST_OK) {
        log_info("going on with the PostgreSQL that was left running (pid %d)", (int)c->pid);
        return true;
    }
    log_warn("the PostgreSQL left running does not answer (%s); ending it", e.msg);
    end_postmaster(c, SIGQUIT, STOP_MS);
    return false;
}

static enum status start_until(struct cluster *c, int64_t until, struct err *e)
{
    for (;;) {
        drop_stale_pid_file(c);
        TRY(spawn_postmaster(c, e));
        enum status st = wait_answer(c, until, e);
        if (st == ST_OK || clock_mono_ms() > until) {
            return st == ST_OK
                       ? ST_OK
                       : err_set(e, ST_RETRY, "PostgreSQL does not start; see '%s'", c->log);
        }
        // It ended: processes of its predecessor may still hold the shared memory.
        clock_sleep_ms(RESPAWN_MS);
    }
}

static enum status start(struct cluster *c, const char *data_dir, bool share, struct err *e)
{
    char real[PATH_MAX];
    if (!realpath(data_dir, real)) {
        return err_set(e, ST_IO, "there is no folder '%s': %s", data_dir, strerror(errno));
    }
    c->data = arena_fmt(c->arena, "%s", real);
    c->pg = arena_fmt(c->arena, "%s/pg", real);
    c->log = arena_fmt(c->arena, "%s/pg.log", real);
    c->sockets = choose_sockets(c);
    c->conninfo =
        arena_fmt(c->arena, "host=%s user=photon dbname=postgres", quoted(c->arena, c->sockets));
    c->server_conninfo = arena_fmt(c->arena, "host=%s user=" DB_ROLE_SERVER " dbname=postgres",
                                   quoted(c->arena, c->sockets));
    enum status locked = lock_folder(c, e);
    if (locked == ST_CONFLICT && share) {
        c->shared = true;
        return try_connect(c, e);
    }
    TRY(locked);
    TRY(choose_user(c, e));
    TRY(choose_programs(c, e));
    prepare_postmaster(c);
    TRY(make_files(c, e));
    TRY(private_folder(c, c->sockets, e));
    return take_over(c) ? ST_OK : start_until(c, clock_mono_ms() + START_MS, e);
}

enum status cluster_start(struct cluster **out, const char *data_dir, bool share, struct err *e)
{
    struct cluster *c = mem_alloc(sizeof(*c));
    c->arena = arena_new((size_t)4 << 20);
    c->lock_fd = -1;
    enum status st = start(c, data_dir, share, e);
    if (st) {
        cluster_stop(c);
        return st;
    }
    *out = c;
    return ST_OK;
}

const char *cluster_conninfo(const struct cluster *c)
{
    return c->conninfo;
}

const char *cluster_server_conninfo(const struct cluster *c)
{
    return c->server_conninfo;
}

int cluster_pid(const struct cluster *c)
{
    return (int)c->pid;
}

void cluster_tend(struct cluster *c)
{
    if (c->shared || postmaster_lives(c) || clock_mono_ms() < c->next_spawn_ms) {
        return;
    }
    log_error("PostgreSQL has died; starting it again");
    drop_stale_pid_file(c);
    struct err e = {0};
    if (spawn_postmaster(c, &e)) {
        log_error("%s", e.msg);
    }
}

void cluster_stop(struct cluster *c)
{
    if (!c) {
        return;
    }
    end_postmaster(c, SIGINT, STOP_MS);
    if (c->lock_fd >= 0) {
        (void)close(c->lock_fd);
    }
    arena_free(c->arena);
    mem_free(c);
}
