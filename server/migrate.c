#include "server/migrate.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/fault.h"
#include "common/hash.h"
#include "common/log.h"

enum {
    FILES_MAX = 1000,
    FILE_BYTES_MAX = 1 << 20,
    NUMBER_DIGITS = 4,
    LOCK_WAIT_MS = 60000,
    LOCK_RETRY_MS = 100,
};

/* Any number, as long as every version of the program uses the same. */
#define LOCK_KEY "7020681214"

struct migration {
    int32_t number;
    const char *name; // the file's
    const char *text;
    struct digest sha256;
};

struct migrations {
    int count;
    struct migration items[FILES_MAX];
};

static bool name_fits(const char *name)
{
    for (int i = 0; i < NUMBER_DIGITS; i++) {
        if (!isdigit((unsigned char)name[i])) {
            return false;
        }
    }
    size_t len = strlen(name);
    return name[NUMBER_DIGITS] == '_' && len > NUMBER_DIGITS + 5 &&
           strcmp(name + len - 4, ".sql") == 0;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static enum status read_text(const char **out, struct arena *a, const char *path, struct err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return err_set(e, ST_IO, "cannot read '%s': %s", path, strerror(errno));
    }
    struct stat sb;
    enum status st = ST_OK;
    if (fstat(fd, &sb) != 0 || sb.st_size > FILE_BYTES_MAX) {
        st = err_set(e, ST_LIMIT, "'%s' is no migration: over %d bytes", path, FILE_BYTES_MAX);
    } else {
        char *text = arena_alloc(a, (size_t)sb.st_size + 1);
        if (read(fd, text, (size_t)sb.st_size) != sb.st_size) {
            st = err_set(e, ST_IO, "cannot read '%s': %s", path, strerror(errno));
        }
        *out = text;
    }
    (void)close(fd);
    return st;
}

static enum status load_one(struct migrations *m, struct arena *a, const char *dir,
                            const char *name, struct err *e)
{
    struct migration *one = &m->items[m->count];
    one->number = (int32_t)strtol(name, NULL, 10);
    one->name = arena_fmt(a, "%s", name);
    if (one->number != m->count + 1) {
        return err_set(e, ST_CONFLICT, "migration %d is missing or doubled in '%s'", m->count + 1,
                       dir);
    }
    TRY(read_text(&one->text, a, arena_fmt(a, "%s/%s", dir, name), e));
    sha256_of(one->text, strlen(one->text), &one->sha256);
    m->count++;
    return ST_OK;
}

/* Names of the migrations in the folder, sorted; 0 when it cannot be read. */
static int list(const char **names, struct arena *a, const char *dir)
{
    int n = 0;
    DIR *d = opendir(dir);
    const struct dirent *entry = NULL;
    while (d && n < FILES_MAX && (entry = readdir(d))) {
        if (name_fits(entry->d_name)) {
            names[n++] = arena_fmt(a, "%s", entry->d_name);
        }
    }
    if (d) {
        (void)closedir(d);
    }
    qsort(names, (size_t)n, sizeof(*names), by_text);
    return n;
}

static enum status load(struct migrations *m, struct arena *a, const char *dir, struct err *e)
{
    const char **names = arena_alloc(a, FILES_MAX * sizeof(*names));
    int n = list(names, a, dir);
    if (n == 0) {
        return err_set(e, ST_NOT_FOUND, "there are no migrations in '%s'; try --sql DIR", dir);
    }
    for (int i = 0; i < n; i++) {
        TRY(load_one(m, a, dir, names[i], e));
    }
    return ST_OK;
}

static const char SQL_TABLE[] =
    "CREATE TABLE IF NOT EXISTS migration ("
    " number integer CONSTRAINT migration_pk PRIMARY KEY, name text NOT NULL,"
    " sha256 bytea NOT NULL, applied_at timestamptz NOT NULL DEFAULT clock_timestamp())";
static const char SQL_APPLIED[] = "SELECT number, name, sha256 FROM migration ORDER BY number";
static const char SQL_NOTE[] = "INSERT INTO migration (number, name, sha256) VALUES ($1, $2, $3)";

/* How many are applied; each must be the file of the same number here. */
static enum status compare(struct db *db, struct arena *a, const struct migrations *m, int *done,
                           struct err *e)
{
    struct db_rows rows;
    TRY(db_query(db, a, SQL_APPLIED, 0, NULL, &rows, e));
    if (rows.count > m->count) {
        return err_set(e, ST_CONFLICT,
                       "the database is of a newer version: it has %d migrations, this program %d; "
                       "try the newer "
                       "photon-server, or roll back as docs/OPERATIONS.md says",
                       rows.count, m->count);
    }
    for (int i = 0; i < rows.count; i++) {
        struct digest was;
        TRY(db_digest(&rows, i, 2, &was, e));
        if (!digest_equal(&was, &m->items[i].sha256)) {
            return err_set(e, ST_CONFLICT,
                           "%s is not what was applied to the database as '%s'; put the file back "
                           "as it was released, "
                           "or try another --sql",
                           m->items[i].name, db_text(&rows, i, 1));
        }
    }
    *done = rows.count;
    return ST_OK;
}

static enum status apply(struct db *db, struct arena *a, const struct migration *m, struct err *e)
{
    TRY(db_begin(db, e));
    const char *argv[] = {db_arg_int(a, m->number), m->name, db_arg_digest(a, &m->sha256)};
    // Rebuilding a large table may take as long as it takes.
    enum status st = db_exec(db, "SET LOCAL statement_timeout = 0", 0, NULL, NULL, e);
    if (!st) {
        st = db_script(db, m->text, e);
    }
    if (!st) {
        st = db_exec(db, SQL_NOTE, 3, argv, NULL, e);
    }
    if (st) {
        db_rollback(db);
        return st == ST_DB
                   ? err_set(e, st, "%s cannot be applied: %.150s", m->name, e ? e->msg : "")
                   : st;
    }
    log_info("applied %s", m->name);
    FAULT("migrate.applied");
    return db_commit(db, e);
}

static enum status lock(struct db *db, struct arena *a, struct err *e)
{
    int64_t until = clock_mono_ms() + LOCK_WAIT_MS;
    for (;;) {
        struct db_rows rows;
        TRY(db_query(db, a, "SELECT pg_try_advisory_lock(" LOCK_KEY ")", 0, NULL, &rows, e));
        bool mine = false;
        TRY(db_bool(&rows, 0, 0, &mine, e));
        if (mine) {
            return ST_OK;
        }
        if (clock_mono_ms() > until) {
            return err_set(e, ST_RETRY, "another server is still migrating the database");
        }
        clock_sleep_ms(LOCK_RETRY_MS);
    }
}

static enum status migrate_locked(struct db *db, struct arena *a, const struct migrations *m,
                                  struct err *e)
{
    int done = 0;
    TRY(db_exec(db, SQL_TABLE, 0, NULL, NULL, e));
    TRY(compare(db, a, m, &done, e));
    for (int i = done; i < m->count; i++) {
        TRY(apply(db, a, &m->items[i], e));
    }
    return ST_OK;
}

enum status migrate(struct db *db, const char *dir, struct err *e)
{
    struct arena *a = arena_new((size_t)64 << 20);
    struct migrations *m = arena_alloc(a, sizeof(*m));
    enum status st = load(m, a, dir, e);
    if (!st) {
        st = lock(db, a, e);
    }
    if (!st) {
        st = migrate_locked(db, a, m, e);
        struct err ignored; // the lock ends with the session at the latest
        if (db_exec(db, "SELECT pg_advisory_unlock(" LOCK_KEY ")", 0, NULL, NULL, &ignored)) {
            log_warn("cannot give back the migration lock: %s", ignored.msg);
        }
    }
    arena_free(a);
    return st;
}

static enum status check(struct db *db, struct arena *a, const struct migrations *m, struct err *e)
{
    struct db_rows rows;
    bool there = false;
    int done = 0;
    TRY(db_query(db, a, "SELECT to_regclass('migration') IS NOT NULL", 0, NULL, &rows, e));
    TRY(db_bool(&rows, 0, 0, &there, e));
    if (!there) {
        return err_set(e, ST_CONFLICT,
                       "this database was never used by a photon-server; try the one that was");
    }
    TRY(compare(db, a, m, &done, e));
    return done == m->count
               ? ST_OK
               : err_set(e, ST_CONFLICT,
                         "the database is of an older version: it has %d migrations, this program "
                         "%d; try again after a start of photon-server",
                         done, m->count);
}

enum status migrate_check(struct db *db, const char *dir, struct err *e)
{
    struct arena *a = arena_new((size_t)64 << 20);
    struct migrations *m = arena_alloc(a, sizeof(*m));
    enum status st = load(m, a, dir, e);
    st = st ? st : check(db, a, m, e);
    arena_free(a);
    return st;
}
