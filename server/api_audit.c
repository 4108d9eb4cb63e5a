/* /api/v1/audit: who changed what, for administrators. */
#include <string.h>

#include "common/id.h"
#include "server/api.h"
#include "server/api_sql.h"

enum { ACTION_MAX = 40, CURSOR_DIGITS = 18 };

static const char SQL_LIST[] = "SELECT json_build_object('id', a.id::text, 'at', " TIME_SQL(
    "a.at") ", 'role', a.role, 'token', a.token_id, 'name', a.name, 'address', a.address,"
            " 'action', a.action, 'object', a.object, 'status', a.status,"
            " 'left_out', a.left_out, 'request', a.request), a.id"
            "  FROM audit a WHERE ($1 = '' OR a.id < nullif($1, '')::bigint)"
            "   AND ($3::text IS NULL OR a.action = $3)"
            "   AND ($4::text IS NULL OR a.token_id = $4)"
            " ORDER BY a.id DESC LIMIT $2";

static bool is_cursor(const char *text)
{
    size_t len = strlen(text);
    return len <= CURSOR_DIGITS && strspn(text, "0123456789") == len;
}

static enum status list_audit(struct request *rq, struct response *rs, struct err *e)
{
    struct page page;
    if (!page_read(&page, rq, rs)) {
        return ST_OK;
    }
    if (!is_cursor(page.cursor)) {
        return bad_parameter(rq, rs, "cursor", "must be a next_cursor of an earlier answer");
    }
    const char *action = request_query(rq, "action");
    if (action && (strspn(action, "abcdefghijklmnopqrstuvwxyz_") != strlen(action) ||
                   strlen(action) > ACTION_MAX)) {
        return bad_parameter(rq, rs, "action", "must be a word such as run_pause");
    }
    const char *token = request_query(rq, "token");
    if (token && !id_valid('k', token)) {
        return bad_parameter(rq, rs, "token", "must be a token's id");
    }
    const char *argv[] = {page.cursor, page.limit_plus_one, action, token};
    struct db_rows rows;
    TRY(db_query(rq->db, rq->arena, SQL_LIST, 4, argv, &rows, e));
    respond_list(rq, rs, &page, &rows);
    return ST_OK;
}

const struct route routes_audit[] = {
    {"GET", "/api/v1/audit", ROLES_ADMIN, LISTENER_CONTROL, 0, list_audit, NULL},
    {NULL, NULL, 0, 0, 0, NULL, NULL},
};
