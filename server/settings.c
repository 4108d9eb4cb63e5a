#include "server/settings.h"

#include "common/log.h"

enum { VERSION_MIN = 150000 };

static const char SQL_UNSAFE[] =
    "SELECT string_agg(name || ' = ' || setting, ', ' ORDER BY name) FROM pg_settings"
    " WHERE (name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND setting = 'off')"
    "    OR (name = 'data_sync_retry' AND setting = 'on')";
// The one of them that a role, a database or an address can set by itself.
static const char SQL_UNSAFE_SESSION[] = "SELECT min(name || ' = ' || setting) FROM pg_settings"
                                         " WHERE name = 'synchronous_commit' AND setting = 'off'";
static const char SQL_FACTS[] =
    "SELECT current_setting('server_version_num')::integer, current_setting('server_version'),"
    "       current_setting('data_checksums') = 'on'";

// Some are kept for superusers and, from PostgreSQL 16 on, for whom the operator names. -1 says
// that the role or the database has no bound of its own, and least() passes over null.
static const char SQL_ROOM[] =
    "SELECT least(current_setting('max_connections')::integer"
    "             - current_setting('superuser_reserved_connections')::integer"
    "             - coalesce(current_setting('reserved_connections', true)::integer, 0),"
    "             nullif(r.rolconnlimit, -1), nullif(d.datconnlimit, -1))"
    "  FROM pg_roles r, pg_database d"
    " WHERE r.rolname = current_user AND d.datname = current_database()";

static enum status check_durable(struct db *db, struct arena *a, const char *sql, bool allow_unsafe,
                                 struct err *e)
{
    struct db_rows rows;
    TRY(db_query(db, a, sql, 0, NULL, &rows, e));
    const char *unsafe = db_text(&rows, 0, 0);
    if (!unsafe) {
        return ST_OK;
    }
    if (allow_unsafe) {
        log_warn("this database may lose what was acknowledged: %s", unsafe);
        return ST_OK;
    }
    return err_set(e, ST_DENIED,
                   "this database may lose what was acknowledged: %s; try other settings, or "
                   "--unsafe-database for a test",
                   unsafe);
}

static enum status check(struct db *db, struct arena *a, bool allow_unsafe, struct err *e)
{
    struct db_rows rows;
    int32_t version = 0;
    bool checksums = false;
    TRY(db_query(db, a, SQL_FACTS, 0, NULL, &rows, e));
    TRY(db_int32(&rows, 0, 0, &version, e));
    TRY(db_bool(&rows, 0, 2, &checksums, e));
    if (version < VERSION_MIN) {
        return err_set(e, ST_CONFLICT, "PostgreSQL %s is too old; try 15 or newer",
                       db_text(&rows, 0, 1));
    }
    if (!checksums) {
        log_warn(
            "this database has no data checksums: damage on disk may go unnoticed; stop it and run "
            "pg_checksums --enable");
    }
    return check_durable(db, a, SQL_UNSAFE, allow_unsafe, e);
}

enum status settings_check(struct db *db, bool allow_unsafe, struct err *e)
{
    struct arena *a = arena_new(1 << 20);
    enum status st = check(db, a, allow_unsafe, e);
    arena_free(a);
    return st;
}

enum status settings_check_session(struct db *db, bool allow_unsafe, struct err *e)
{
    struct arena *a = arena_new(1 << 20);
    enum status st = check_durable(db, a, SQL_UNSAFE_SESSION, allow_unsafe, e);
    arena_free(a);
    return st;
}

static enum status check_room(struct db *db, struct arena *a, int connections, struct err *e)
{
    struct db_rows rows;
    int32_t room = 0;
    TRY(db_query(db, a, SQL_ROOM, 0, NULL, &rows, e));
    TRY(db_int32(&rows, 0, 0, &room, e));
    if (room < connections) {
        log_warn("this database lets us have %d connections at once and a busy server uses %d: "
                 "requests will fail meanwhile; try a larger max_connections, or fewer --workers",
                 room, connections);
    }
    return ST_OK;
}

enum status settings_check_room(struct db *db, int connections, struct err *e)
{
    struct arena *a = arena_new(1 << 16);
    enum status st = check_room(db, a, connections, e);
    arena_free(a);
    return st;
}
