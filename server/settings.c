#include "server/settings.h"

#include "common/log.h"

enum { VERSION_MIN = 150000 };

static const char SQL_UNSAFE[] =
    "SELECT string_agg(name || ' = ' || setting, ', ' ORDER BY name) FROM pg_settings"
    " WHERE (name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND setting = 'off')"
    "    OR (name = 'data_sync_retry' AND setting = 'on')";
static const char SQL_FACTS[] =
    "SELECT current_setting('server_version_num')::integer, current_setting('server_version'),"
    "       current_setting('data_checksums') = 'on'";

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
        log_warn("this database has no data checksums: damage on disk may go unnoticed");
    }
    TRY(db_query(db, a, SQL_UNSAFE, 0, NULL, &rows, e));
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

enum status settings_check(struct db *db, bool allow_unsafe, struct err *e)
{
    struct arena *a = arena_new(1 << 20);
    enum status st = check(db, a, allow_unsafe, e);
    arena_free(a);
    return st;
}
