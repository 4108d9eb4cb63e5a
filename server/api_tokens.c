/* /api/v1/tokens, /api/v1/login, /api/v1/me: who may speak, and a browser's way to say so. */
#include <inttypes.h>
#include <string.h>

#include "common/hash.h"
#include "common/id.h"
#include "common/limits.h"
#include "server/api.h"
#include "server/api_sql.h"
#include "server/audit.h"
#include "server/auth.h"
#include "server/hub.h"
#include "server/server.h"

enum { TTL_MIN_S = 60, TTL_MAX_S = 30 * 86400, TTL_DEFAULT_S = 7 * 86400, SESSION_S = 7 * 86400 };

#define TOKEN_MEMBERS                                                                              \
    "'id', t.id, 'role', t.role, 'name', t.name, 'created_at', " TIME_SQL(                         \
        "t.created_at") ","                                                                        \
                        " 'expires_at', " TIME_SQL("t.expires_at") ", 'revoked_at', " TIME_SQL(    \
                            "t.revoked_at") ","                                                    \
                                            " 'last_used_at', " TIME_SQL("t.used_at")

static const char SQL_LIST[] = "SELECT json_build_object(" TOKEN_MEMBERS "), t.id FROM token t"
                               " WHERE $1 = '' OR t.id < $1 ORDER BY t.id DESC LIMIT $2";

static const char SQL_CREATE[] =
    "WITH t AS ("
    " INSERT INTO token (id, hash, role, name, expires_at)"
    " VALUES ($1, decode($2, 'hex'), $3, $4, clock_timestamp() + make_interval(secs => $5::double "
    "precision))"
    " RETURNING *"
    "), said AS ("
    " INSERT INTO event (kind, message, detail)"
    " SELECT 'token_created', 'a ' || role || ' token was made for ' || name,"
    "        jsonb_build_object('token', id, 'by', $6::text) FROM t"
    ") SELECT json_build_object(" TOKEN_MEMBERS ", 'secret', $7::text) FROM t";

static const char SQL_REVOKE[] =
    "WITH dead AS ("
    " UPDATE token SET revoked_at = clock_timestamp() WHERE id = $1 AND revoked_at IS NULL"
    " RETURNING id, name, role"
    "), said AS ("
    " INSERT INTO event (kind, message, detail)"
    " SELECT 'token_revoked', 'the ' || role || ' token of ' || name || ' was revoked',"
    "        jsonb_build_object('token', id, 'by', $2::text) FROM dead"
    ") SELECT id FROM token WHERE id = $1";

/* Old sessions are swept by whoever logs in. */
static const char SQL_LOGIN[] =
    "WITH old AS (DELETE FROM session WHERE expires_at < clock_timestamp())"
    " INSERT INTO session (hash, token_id, expires_at)"
    " VALUES (decode($1, 'hex'), $2, clock_timestamp() + make_interval(secs => $3::double "
    "precision))";

static const char SQL_LOGOUT[] = "DELETE FROM session WHERE hash = decode($1, 'hex')";

static enum status get_me(struct request *rq, struct response *rs, struct err *e)
{
    (void)e;
    struct buf b;
    buf_init(&b, 1024);
    jw_object(&b, NULL);
    jw_str(&b, "role", role_name(rq->who.role));
    jw_str(&b, "name", rq->who.name);
    jw_end_object(&b);
    respond_buf(rq, rs, 200, &b);
    return ST_OK;
}

static enum status list_tokens(struct request *rq, struct response *rs, struct err *e)
{
    struct page page;
    if (!page_read(&page, rq, rs)) {
        return ST_OK;
    }
    const char *argv[] = {page.cursor, page.limit_plus_one};
    struct db_rows rows;
    TRY(db_query(rq->db, rq->arena, SQL_LIST, 2, argv, &rows, e));
    respond_list(rq, rs, &page, &rows);
    return ST_OK;
}

/* As the table's constraints say, but with words: silos have plain names,
 * others any without controls. */
static bool name_fits(const char *name, bool silo)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyz0123456789._-";
    size_t len = strlen(name);
    if (len == 0 || len > 63) {
        return false;
    }
    if (silo) {
        return strspn(name, plain) == len && !strchr("._-", name[0]);
    }
    for (const char *p = name; *p; p++) { // C1 controls are two bytes, U+0080 to U+009F
        unsigned char next = (unsigned char)p[1];
        if ((unsigned char)*p < 0x20 || *p == 0x7f ||
            ((unsigned char)*p == 0xc2 && next >= 0x80 && next < 0xa0)) {
            return false;
        }
    }
    return true;
}

/* False: rs is a 422. */
static bool read_wish(struct request *rq, struct response *rs, const char **role, const char **name,
                      int64_t *ttl_s)
{
    static const char *const keys[] = {"role", "name", "ttl_s", NULL};
    if (!only_members(rq, rs, keys)) {
        return false;
    }
    *role = want_member(rq, rs, "role");
    *name = *role ? want_member(rq, rs, "name") : NULL;
    if (!*name) {
        return false;
    }
    if (strcmp(*role, "viewer") != 0 && strcmp(*role, "admin") != 0 && strcmp(*role, "join") != 0) {
        (void)bad_member(rq, rs, "/role", "must be viewer, admin or join");
        return false;
    }
    bool join = strcmp(*role, "join") == 0;
    if (!name_fits(*name, join)) {
        (void)bad_member(rq, rs, "/name",
                         join ? "must be a silo's name: 1 to 63 of a-z 0-9 . _ -, beginning with a "
                                "letter or a digit"
                              : "must have 1 to 63 bytes and no control characters");
        return false;
    }
    const struct json *ttl = json_get(rq->json, "ttl_s");
    if (ttl && !json_is_int(ttl, TTL_MIN_S, TTL_MAX_S)) {
        (void)bad_member(rq, rs, "/ttl_s", "must be a whole number from 60 to 2592000 (30 days)");
        return false;
    }
    *ttl_s = ttl ? json_int(ttl) : TTL_DEFAULT_S;
    return true;
}

static enum status create_token(struct request *rq, struct response *rs, struct err *e)
{
    const char *role = NULL;
    const char *name = NULL;
    int64_t ttl_s = 0;
    if (!read_wish(rq, rs, &role, &name, &ttl_s)) {
        return ST_OK;
    }
    char id[ID_LEN + 1];
    char secret[SECRET_LEN + 1];
    char hex[DIGEST_HEX + 1];
    struct digest d;
    id_new('k', id);
    secret_new(secret, &d);
    digest_hex(&d, hex);
    audit_as(rq, "token_create", id);
    const char *argv[] = {id,           hex,   role, name, arena_fmt(rq->arena, "%" PRId64, ttl_s),
                          rq->who.name, secret};
    struct db_rows rows;
    TRY(db_query(rq->db, rq->arena, SQL_CREATE, 7, argv, &rows, e));
    respond_json(rq, rs, 201, db_text(&rows, 0, 0));
    response_header(rs, "Location", arena_fmt(rq->arena, "/api/v1/tokens/%s", id));
    response_header(rs, "Cache-Control", "no-store");
    return ST_OK;
}

static enum status revoke_token(struct request *rq, struct response *rs, struct err *e)
{
    audit_as(rq, "token_revoke", rq->params[0]);
    const char *argv[] = {rq->params[0], rq->who.name};
    struct db_rows rows;
    TRY(db_query(rq->db, rq->arena, SQL_REVOKE, 2, argv, &rows, e));
    if (rows.count == 0) {
        return not_found(rq, rs, "token");
    }
    auth_forget();
    hub_wake(rq->server->hub, "tokens");
    respond_empty(rs, 204);
    return ST_OK;
}

static void set_cookie(struct request *rq, struct response *rs, const char *value, int max_age_s)
{
    response_header(rs, "Set-Cookie",
                    arena_fmt(rq->arena,
                              "photon=%s; Path=/; Max-Age=%d; HttpOnly; SameSite=Strict%s", value,
                              max_age_s, rq->server->https ? "; Secure" : ""));
    response_header(rs, "Cache-Control", "no-store");
}

static enum status login(struct request *rq, struct response *rs, struct err *e)
{
    static const char *const keys[] = {"token", NULL};
    if (!only_members(rq, rs, keys)) {
        return ST_OK;
    }
    const char *secret = want_member(rq, rs, "token");
    if (!secret) {
        return ST_OK;
    }
    if (!rq->db) {
        return err_set(e, ST_RETRY, "no database connection");
    }
    struct principal who;
    audit_as(rq, "login", "");
    enum status st = auth_lookup(&who, rq->db, rq->arena, secret, e);
    if (st == ST_NOT_FOUND) {
        (void)problem(rq, rs, 401, "UNAUTHENTICATED", "ask an admin for a new one",
                      "this token is unknown, expired or revoked");
        response_header(rs, "WWW-Authenticate", "Bearer realm=\"photon\"");
        return ST_OK;
    }
    TRY(st);
    rq->who = who;
    if (who.role != ROLE_VIEWER && who.role != ROLE_ADMIN) {
        return problem(rq, rs, 403, "FORBIDDEN", "use a viewer's or an admin's token",
                       "a %s token opens no page", role_name(who.role));
    }
    char session[SECRET_LEN + 1];
    char hex[DIGEST_HEX + 1];
    struct digest d;
    secret_new(session, &d);
    digest_hex(&d, hex);
    const char *argv[] = {hex, who.token_id, arena_fmt(rq->arena, "%d", SESSION_S)};
    struct db_rows rows;
    TRY(db_query(rq->db, rq->arena, SQL_LOGIN, 3, argv, &rows, e));
    respond_empty(rs, 204);
    set_cookie(rq, rs, session, SESSION_S);
    return ST_OK;
}

static enum status logout(struct request *rq, struct response *rs, struct err *e)
{
    const char *cookies = request_header(rq, "Cookie");
    char session[SECRET_LEN + 1];
    if (rq->db && cookies && cookie_get(cookies, "photon", session, sizeof(session))) {
        if (!origin_allowed(rq)) {
            return problem(rq, rs, 403, "FORBIDDEN", NULL,
                           "a change by cookie must come from this server's own page");
        }
        struct digest d;
        char hex[DIGEST_HEX + 1];
        sha256_of(session, strlen(session), &d);
        digest_hex(&d, hex);
        enum status st = auth_lookup(&rq->who, rq->db, rq->arena, session, e);
        if (st != ST_OK && st != ST_NOT_FOUND) {
            return st;
        }
        audit_as(rq, st == ST_OK ? "logout" : NULL, "");
        const char *argv[] = {hex};
        struct db_rows rows;
        TRY(db_query(rq->db, rq->arena, SQL_LOGOUT, 1, argv, &rows, e));
        auth_forget();
    }
    respond_empty(rs, 204);
    set_cookie(rq, rs, "", 0);
    return ST_OK;
}

// clang-format off
const struct route routes_tokens[] = {
    {"POST", "/api/v1/login", ROLES_ANYBODY | ROUTE_AUDITED, LISTENER_CONTROL, 4096, login, NULL},
    {"DELETE", "/api/v1/login", ROLES_ANYBODY | ROUTE_AUDITED, LISTENER_CONTROL, 0, logout, NULL},
    {"GET", "/api/v1/me", ROLES_PEOPLE, LISTENER_CONTROL, 0, get_me, NULL},
    {"GET", "/api/v1/tokens", ROLES_ADMIN, LISTENER_CONTROL, 0, list_tokens, NULL},
    {"POST", "/api/v1/tokens", ROLES_ADMIN | ROUTE_AUDITED, LISTENER_CONTROL, 4096, create_token, NULL},
    {"DELETE", "/api/v1/tokens/{token}", ROLES_ADMIN | ROUTE_AUDITED, LISTENER_CONTROL, 0, revoke_token, NULL},
    {NULL, NULL, 0, 0, 0, NULL, NULL},
};
// clang-format on
