#include "server/db_role.h"

static const char SQL_THERE[] = "SELECT 1 FROM pg_roles WHERE rolname = '" DB_ROLE_SERVER "'";

/* Its folder is the lock of a cluster of our own: roles there have no passwords. */
static const char SQL_MAKE[] = "CREATE ROLE " DB_ROLE_SERVER " LOGIN";

static enum status make(struct db *owner, struct arena *a, void *ctx, struct err *e)
{
    (void)ctx;
    struct db_rows rows;
    TRY(db_query(owner, a, SQL_THERE, 0, NULL, &rows, e));
    return rows.count > 0 ? ST_OK : db_exec(owner, SQL_MAKE, 0, NULL, NULL, e);
}

enum status db_role_make(struct db *owner, struct err *e)
{
    return db_tx(owner, make, NULL, e);
}

static enum status let_serve(struct db *owner, struct arena *a, void *ctx, struct err *e)
{
    const char *role = *(const char **)ctx;
    struct db_rows rows;
    bool same = false;
    TRY(db_query(owner, a, "SELECT pg_has_role($1, current_user, 'MEMBER')", 1, &role, &rows, e));
    TRY(db_bool(&rows, 0, 0, &same, e));
    if (same) {
        return err_set(e, ST_INVALID,
                       "the role '%s' that is to serve may do all that the owner may; try a role "
                       "of its own, without rights",
                       role);
    }
    return db_query(owner, a, "SELECT let_serve($1::name)", 1, &role, &rows, e);
}

enum status db_role_let_serve(struct db *owner, struct db *server, struct err *e)
{
    struct arena *a = arena_new(1 << 16);
    struct db_rows rows;
    enum status st = db_query(server, a, "SELECT current_user", 0, NULL, &rows, e);
    if (!st) {
        const char *role = db_text(&rows, 0, 0);
        st = db_tx(owner, let_serve, &role, e);
    }
    arena_free(a);
    return st;
}
