#include "server/auth.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "common/clock.h"
#include "server/server.h"

enum { CACHE_SIZE = 1024, CACHE_MS = 1000 }; // a revoked token is refused within a second

static const char ALPHABET[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

void secret_new(char out[SECRET_LEN + 1], struct digest *digest)
{
    unsigned char raw[33] = {0}; // 32 random bytes and the padding of the last group
    random_bytes(raw, 32);
    char *p = out;
    memcpy(p, "pht_", 4);
    p += 4;
    for (int bit = 0; bit < 256; bit += 6) {
        unsigned two = ((unsigned)raw[bit / 8] << 8) | raw[bit / 8 + 1];
        *p++ = ALPHABET[(two >> (10 - bit % 8)) & 63U];
    }
    *p = '\0';
    sha256_of(out, SECRET_LEN, digest);
}

bool secret_valid(const char *text)
{
    return strlen(text) == SECRET_LEN && strncmp(text, "pht_", 4) == 0 &&
           strspn(text + 4, ALPHABET) == SECRET_LEN - 4;
}

bool cookie_get(const char *header, const char *name, char *out, size_t size)
{
    size_t name_len = strlen(name);
    const char *p = header;
    while (*p) {
        p += strspn(p, "; \t");
        size_t len = strcspn(p, ";");
        if (len > name_len && strncmp(p, name, name_len) == 0 && p[name_len] == '=') {
            const char *value = p + name_len + 1;
            size_t n = len - name_len - 1;
            while (n > 0 && (value[n - 1] == ' ' || value[n - 1] == '\t')) {
                n--;
            }
            if (n == 0 || n >= size) {
                return false;
            }
            memcpy(out, value, n);
            out[n] = '\0';
            return true;
        }
        p += len;
    }
    return false;
}

const char *bearer_secret(const char *header)
{
    if (strncasecmp(header, "Bearer ", 7) != 0) {
        return NULL;
    }
    const char *secret = header + 7;
    secret += strspn(secret, " ");
    return secret_valid(secret) ? secret : NULL;
}

const char *role_name(enum role r)
{
    static const char *const names[] = {"nobody", "viewer", "admin", "silo", "join"};
    return names[r];
}

static enum role role_parse(const char *name)
{
    for (int r = ROLE_VIEWER; r <= ROLE_JOIN; r++) {
        if (name && strcmp(name, role_name((enum role)r)) == 0) {
            return (enum role)r;
        }
    }
    return ROLE_NONE;
}

/* ---- the memory of a second ---- */

static struct {
    pthread_mutex_t lock;
    struct {
        struct digest digest;
        struct principal who;
        int64_t until_ms;
    } slots[CACHE_SIZE];
} cache = {.lock = PTHREAD_MUTEX_INITIALIZER};

static size_t slot_of(const struct digest *d)
{
    return (((size_t)d->bytes[0] << 8) | d->bytes[1]) % CACHE_SIZE;
}

static bool cache_get(const struct digest *d, struct principal *out)
{
    size_t i = slot_of(d);
    (void)pthread_mutex_lock(&cache.lock);
    bool hit = clock_mono_ms() < cache.slots[i].until_ms && digest_equal(&cache.slots[i].digest, d);
    if (hit) {
        *out = cache.slots[i].who;
    }
    (void)pthread_mutex_unlock(&cache.lock);
    return hit;
}

static void cache_put(const struct digest *d, const struct principal *who, int64_t read_ms)
{
    size_t i = slot_of(d);
    (void)pthread_mutex_lock(&cache.lock);
    cache.slots[i].digest = *d;
    cache.slots[i].who = *who;
    cache.slots[i].until_ms = read_ms + CACHE_MS; // from before the query: never older than that
    (void)pthread_mutex_unlock(&cache.lock);
}

void auth_forget(void)
{
    (void)pthread_mutex_lock(&cache.lock);
    for (size_t i = 0; i < CACHE_SIZE; i++) {
        cache.slots[i].until_ms = 0;
    }
    (void)pthread_mutex_unlock(&cache.lock);
}

/* A token, or the session of one; noting its use costs a write at most once a minute. */
static const char SQL_LOOKUP[] =
    "WITH found AS ("
    " SELECT t.hash, t.id, t.role, t.silo_id, t.name, t.revoked_at, t.expires_at FROM token t"
    "  WHERE t.hash = decode($1, 'hex')"
    " UNION ALL"
    " SELECT s.hash, t.id, t.role, t.silo_id, t.name, t.revoked_at,"
    "        least(s.expires_at, t.expires_at)"
    "   FROM session s JOIN token t ON t.id = s.token_id WHERE s.hash = decode($1, 'hex')"
    "), valid AS ("
    " SELECT * FROM found f WHERE revoked_at IS NULL"
    "    AND (expires_at IS NULL OR expires_at > clock_timestamp())"
    "    AND NOT EXISTS (SELECT FROM silo s WHERE s.id = f.silo_id AND s.state = 'revoked')"
    "), used AS ("
    " UPDATE token SET used_at = clock_timestamp() WHERE id IN (SELECT id FROM valid)"
    "    AND (used_at IS NULL OR used_at < clock_timestamp() - interval '1 minute')"
    ") SELECT encode(hash, 'hex'), id, role, silo_id, name FROM valid";

static void copy(char *out, size_t size, const char *text)
{
    (void)snprintf(out, size, "%s", text ? text : "");
}

enum status auth_lookup(struct principal *out, struct db *db, struct arena *a, const char *secret,
                        struct err *e)
{
    if (!secret_valid(secret)) {
        return err_set(e, ST_NOT_FOUND, "no such token");
    }
    struct digest d;
    sha256_of(secret, SECRET_LEN, &d);
    if (cache_get(&d, out)) {
        return ST_OK;
    }
    int64_t read_ms = clock_mono_ms();
    char hex[DIGEST_HEX + 1];
    digest_hex(&d, hex);
    const char *argv[] = {hex};
    struct db_rows rows;
    TRY(db_query(db, a, SQL_LOOKUP, 1, argv, &rows, e));
    if (rows.count == 0) {
        return err_set(e, ST_NOT_FOUND, "no such token");
    }
    struct digest stored;
    TRY(digest_parse(&stored, db_text(&rows, 0, 0), e));
    if (!digest_equal(&stored, &d)) { // the index found it; this comparison takes constant time
        return err_set(e, ST_NOT_FOUND, "no such token");
    }
    struct principal who = {.role = role_parse(db_text(&rows, 0, 2))};
    copy(who.secret, sizeof(who.secret), hex);
    copy(who.token_id, sizeof(who.token_id), db_text(&rows, 0, 1));
    copy(who.silo_id, sizeof(who.silo_id), db_text(&rows, 0, 3));
    copy(who.name, sizeof(who.name), db_text(&rows, 0, 4));
    cache_put(&d, &who, read_ms);
    *out = who;
    return ST_OK;
}

/* ---- one request ---- */

static enum status refuse_nobody(struct request *rq, struct response *rs, const char *detail)
{
    (void)problem(rq, rs, 401, "UNAUTHENTICATED", "try another token; an admin makes them", "%s",
                  detail);
    response_header(rs, "WWW-Authenticate", "Bearer realm=\"photon\"");
    return ST_OK;
}

/* "viewer or admin" */
static const char *roles_text(struct arena *a, unsigned roles)
{
    const char *text = "";
    for (int r = ROLE_VIEWER; r <= ROLE_JOIN; r++) {
        if (roles & (1U << r)) {
            text = arena_fmt(a, "%s%s%s", text, text[0] ? " or " : "", role_name((enum role)r));
        }
    }
    return text;
}

static bool is_write(const struct request *rq)
{
    return strcmp(rq->method, "GET") != 0 && strcmp(rq->method, "HEAD") != 0;
}

bool origin_is_of(const char *origin, const char *url)
{
    const char *mark = strstr(url, "://");
    if (!mark) {
        return false;
    }
    size_t host = (size_t)(mark + 3 - url);
    size_t n = host + strcspn(url + host, "/?#");
    const char *usual = strncasecmp(url, "https:", 6) == 0 ? ":443" : ":80";
    size_t port = strlen(usual);
    if (n > host + port && strncmp(url + n - port, usual, port) == 0) {
        n -= port; // browsers leave it out
    }
    return strlen(origin) == n && strncasecmp(origin, url, n) == 0;
}

/* Browsers name the page that writes in Origin; it must be ours: its host is the Host asked. */
bool origin_allowed(const struct request *rq)
{
    if (request_header(rq, "Authorization")) {
        return true;
    }
    const char *origin = request_header(rq, "Origin");
    const char *host = request_header(rq, "Host");
    if (!origin || !host) {
        return false;
    }
    const char *scheme = rq->server->tls ? "https://" : "http://";
    size_t n = strlen(scheme);
    if (strncasecmp(origin, scheme, n) == 0 && strcasecmp(origin + n, host) == 0) {
        return true;
    }
    return rq->server->public_url && origin_is_of(origin, rq->server->public_url);
}

enum status auth_check(struct request *rq, struct response *rs, unsigned roles, struct err *e)
{
    const char *header = request_header(rq, "Authorization");
    const char *cookies = request_header(rq, "Cookie");
    char cookie[SECRET_LEN + 1];
    const char *secret = NULL;
    bool by_cookie = false;
    if (header) {
        secret = bearer_secret(header);
        if (!secret) {
            return refuse_nobody(rq, rs, "the Authorization header is no bearer token");
        }
    } else if (cookies && cookie_get(cookies, "photon", cookie, sizeof(cookie))) {
        secret = cookie;
        by_cookie = true;
    } else {
        return refuse_nobody(rq, rs, "this needs a token");
    }

    enum status st = auth_lookup(&rq->who, rq->db, rq->arena, secret, e);
    if (st == ST_NOT_FOUND) {
        return refuse_nobody(rq, rs, "this token is unknown, expired or revoked");
    }
    if (st) {
        return st;
    }
    if (by_cookie && is_write(rq) && !origin_allowed(rq)) {
        return problem(rq, rs, 403, "FORBIDDEN", "write from the dashboard itself, or with a token",
                       "a change by cookie must come from this server's own page");
    }
    if (!(roles & (1U << rq->who.role))) {
        return problem(rq, rs, 403, "FORBIDDEN", "use a token of that role",
                       "this needs the role %s, the token has %s", roles_text(rq->arena, roles),
                       role_name(rq->who.role));
    }
    return ST_OK;
}
