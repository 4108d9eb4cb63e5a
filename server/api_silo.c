#include "server/api_silo.h"

#include <math.h>
#include <string.h>

#include "common/id.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/text.h"
#include "common/version.h"
#include "server/api.h"
#include "server/audit.h"
#include "server/auth.h"
#include "server/db_silo.h"
#include "server/hub.h"
#include "server/server.h"

enum { TEXT_MAX = 120 };

/* ---- refusals ---- */

bool silo_protocol(struct request *rq, struct response *rs)
{
    const char *version = request_header(rq, "Photon-Protocol");
    if (version && strcmp(version, PHOTON_PROTOCOL) == 0) {
        return true;
    }
    (void)problem(rq, rs, 409, "PROTOCOL_MISMATCH",
                  "run the photon-client that belongs to this server's version",
                  "this server speaks Photon-Protocol " PHOTON_PROTOCOL ", the request %s%.20s",
                  version ? "says " : "does not say which", version ? version : "");
    return false;
}

static const struct {
    const char *code, *hint;
} hints[] = {
    {"STALE_LEASE", "stop this task and claim again"},
    {"ROUND_CLOSED", "claim again; the work stays in the silo's own state"},
    {"OTHER_UPDATE_COUNTED", "claim again"},
    {"RUN_STOPPED", "drop this task and claim again"},
    {"UPLOAD_GONE", "create the upload again and send the file from its beginning"},
    {"UPLOAD_BUSY", "ask for the upload's offset and go on from there"},
    {"OFFSET_MISMATCH", "go on from offset"},
    {"INCOMPLETE", "send the rest from offset, then finish again"},
    {"TOKEN_ROTATED", "use the newer one; if it is lost, ask an admin for a join token"},
    {"TOKEN_USED", "ask an admin for a new join token"},
    {"NAME_MISMATCH", "join with the name that the token was made for"},
    {"SILO_REVOKED", "ask an admin for a join token with another name"},
    {"NOT_THE_PLANNED_SIZE", "write the update as docs/API.md, \"Files\", says"},
    {"DIGEST_MISMATCH", "send the chunk again"},
    {"TOO_MANY_NAMES", "use the names that the silo has points of already"},
};

enum status respond_refusal(struct request *rq, struct response *rs, const struct refusal *no)
{
    const char *hint = NULL;
    for (size_t i = 0; i < sizeof(hints) / sizeof(hints[0]); i++) {
        if (strcmp(hints[i].code, no->code) == 0) {
            hint = hints[i].hint;
        }
    }
    (void)problem(rq, rs, no->status, no->code, hint, "%s", no->detail);
    if (no->offset >= 0) {
        problem_add_int(rq, rs, "offset", no->offset);
    }
    return ST_OK;
}

enum status respond_disk_full(struct request *rq, struct response *rs)
{
    (void)problem(rq, rs, 507, "DISK_FULL", "wait; an operator has to make room",
                  "there is no room for this upload");
    response_header(rs, "Retry-After", "60");
    return ST_OK;
}

/* ---- reading requests ---- */

/* A member that must be a whole number; false: rs is a 422. */
bool silo_want_int(struct request *rq, struct response *rs, const char *key, int64_t min,
                   int64_t max, int64_t *out)
{
    struct err e = {0};
    if (json_want_int(rq->json, key, min, max, out, &e) == ST_OK) {
        return true;
    }
    (void)bad_member(rq, rs, arena_fmt(rq->arena, "/%s", key), e.msg);
    return false;
}

double silo_measured(double number)
{
    return fabs(number) < SILO_NUMBER_MIN ? 0.0 : number;
}

/* A number that may be absent or null, which gives NAN. */
bool silo_number(struct request *rq, struct response *rs, const struct json *o, const char *key,
                 double min, double *out)
{
    const struct json *v = json_get(o, key);
    *out = NAN;
    if (!v || json_kind(v) == JSON_NULL) {
        return true;
    }
    if (json_kind(v) == JSON_NUMBER && json_num(v) >= min && fabs(json_num(v)) <= SILO_NUMBER_MAX) {
        *out = silo_measured(json_num(v));
        return true;
    }
    (void)bad_member(rq, rs, arena_fmt(rq->arena, "/%s", key),
                     "must be a number in range, or null");
    return false;
}

/* A short string, without control characters: administrators read it in terminals. "" when it may
 * be absent and is. NULL: rs is a 422. */
const char *silo_text(struct request *rq, struct response *rs, const char *key, size_t max,
                      bool required)
{
    const struct json *v = json_get(rq->json, key);
    if (!required && (!v || json_kind(v) == JSON_NULL)) {
        return "";
    }
    const char *text = want_member(rq, rs, key);
    if (text && strlen(text) > max) {
        (void)bad_member(rq, rs, arena_fmt(rq->arena, "/%s", key), "is too long");
        return NULL;
    }
    char *plain = text ? arena_fmt(rq->arena, "%s", text) : NULL;
    if (plain) {
        (void)text_plain(plain);
    }
    return plain;
}

bool silo_path_id(struct request *rq, struct response *rs, char prefix, const char *what)
{
    if (id_valid(prefix, rq->params[0])) {
        return true;
    }
    (void)not_found(rq, rs, what);
    return false;
}

/* ---- join and hello ---- */

static enum status join(struct request *rq, struct response *rs, struct err *e)
{
    static const char *const keys[] = {"name", NULL};
    if (!silo_protocol(rq, rs) || !only_members(rq, rs, keys)) {
        return ST_OK;
    }
    const char *name = silo_text(rq, rs, "name", 63, true);
    if (!name) {
        return ST_OK;
    }
    char secret[SECRET_LEN + 1];
    char silo_id[ID_LEN + 1];
    struct digest hash;
    struct refusal no = {0};
    secret_new(secret, &hash);
    audit_as(rq, "silo_join", name);
    TRY(db_silo_join(rq->db, rq->who.token_id, name, &hash, silo_id, &no, e));
    if (no.code) {
        return respond_refusal(rq, rs, &no);
    }
    audit_as(rq, "silo_join", silo_id);
    log_info("silo joined silo=%s name=%s", silo_id, name);
    struct buf b;
    buf_init(&b, 1024);
    jw_object(&b, NULL);
    jw_str(&b, "silo", silo_id);
    jw_str(&b, "name", name);
    jw_str(&b, "token", secret);
    jw_end_object(&b);
    respond_buf(rq, rs, 201, &b);
    return ST_OK;
}

/* Where bulk is: as configured, else the host the silo came to, with bulk's port. */
static const char *bulk_url(struct request *rq)
{
    const struct server *s = rq->server;
    if (s->bulk_url) {
        return s->bulk_url;
    }
    const char *host = request_header(rq, "Host");
    host = host ? host : "127.0.0.1";
    size_t len = host[0] == '[' ? strcspn(host, "]") + 1 : strcspn(host, ":");
    return arena_fmt(rq->arena, "%s://%.*s:%d", s->tls ? "https" : "http", (int)len, host,
                     s->bulk_port);
}

static bool read_hello(struct request *rq, struct response *rs, struct silo_hello *h)
{
    static const char *const keys[] = {
        "agent",        "version",        "device", "tokens_per_s", "tokenizer_sha256",
        "train_tokens", "heldout_tokens", NULL};
    *h = (struct silo_hello){0};
    return only_members(rq, rs, keys) &&
           (h->agent = silo_text(rq, rs, "agent", SILO_AGENT_MAX, true)) != NULL &&
           (h->version = silo_text(rq, rs, "version", TEXT_MAX, true)) != NULL &&
           (h->device = silo_text(rq, rs, "device", TEXT_MAX, true)) != NULL &&
           (h->tokenizer_sha256 = silo_text(rq, rs, "tokenizer_sha256", DIGEST_HEX, false)) !=
               NULL &&
           silo_number(rq, rs, rq->json, "tokens_per_s", 0.0, &h->tokens_per_s) &&
           silo_want_int(rq, rs, "train_tokens", 0, INT64_MAX, &h->train_tokens) &&
           silo_want_int(rq, rs, "heldout_tokens", 0, INT64_MAX, &h->heldout_tokens);
}

static enum status hello(struct request *rq, struct response *rs, struct err *e)
{
    struct silo_hello h;
    if (!silo_protocol(rq, rs) || !read_hello(rq, rs, &h)) {
        return ST_OK;
    }
    TRY(db_silo_hello(rq->db, rq->who.silo_id, &h, e));
    struct buf b;
    buf_init(&b, 2048);
    jw_object(&b, NULL);
    jw_str(&b, "silo", rq->who.silo_id);
    jw_str(&b, "name", rq->who.name);
    jw_str(&b, "bulk_url", bulk_url(rq));
    jw_int(&b, "poll_s", LIMIT_POLL_S);
    jw_str(&b, "server_version", PHOTON_VERSION);
    jw_end_object(&b);
    respond_buf(rq, rs, 200, &b);
    return ST_OK;
}

/* May the silo forget it? */
static enum status run_fate(struct request *rq, struct response *rs, struct err *e)
{
    const char *state = NULL;
    bool forget = false;
    if (!silo_protocol(rq, rs) || !silo_path_id(rq, rs, 'r', "run")) {
        return ST_OK;
    }
    TRY(db_silo_run(rq->db, rq->arena, rq->who.silo_id, rq->params[0], &state, &forget, e));
    struct buf b;
    buf_init(&b, 512);
    jw_object(&b, NULL);
    jw_str(&b, "run", rq->params[0]);
    jw_str(&b, "state", state);
    jw_bool(&b, "forget", forget);
    jw_end_object(&b);
    respond_buf(rq, rs, 200, &b);
    return ST_OK;
}

/* ---- stored specs, runs to look at ---- */

enum status silo_parse_spec(struct run_spec *out, struct arena *a, const char *text, struct err *e)
{
    const struct json *doc = NULL;
    struct spec_problem problems[SPEC_PROBLEMS_MAX];
    int count = 0;
    TRY(json_parse(&doc, a, text, strlen(text), e));
    return run_spec_parse(out, doc, problems, &count, e);
}

void silo_wake_run(struct request *rq, const char *run_id)
{
    hub_wake(rq->server->hub, arena_fmt(rq->arena, "run:%s", run_id));
}

// clang-format off
const struct route routes_silo[] = {
    {"POST", "/silo/v1/join",                    (1U << ROLE_JOIN) | ROUTE_AUDITED, LISTENER_CONTROL, LIMIT_CONTROL_BODY, join, NULL},
    {"POST", "/silo/v1/token",                   ROLES_SILO | ROUTE_AUDITED, LISTENER_CONTROL, LIMIT_CONTROL_BODY, api_rotate, NULL},
    {"POST", "/silo/v1/hello",                   ROLES_SILO, LISTENER_CONTROL, LIMIT_CONTROL_BODY, hello, NULL},
    {"GET",  "/silo/v1/runs/{run}",              ROLES_SILO, LISTENER_CONTROL, 0, run_fate, NULL},
    {"POST", "/silo/v1/tasks/claim",             ROLES_SILO, LISTENER_CONTROL, LIMIT_CONTROL_BODY, api_task_claim, NULL},
    {"POST", "/silo/v1/tasks/{task}/heartbeat",  ROLES_SILO, LISTENER_CONTROL, LIMIT_CONTROL_BODY, api_task_heartbeat, NULL},
    {"POST", "/silo/v1/tasks/{task}/metrics",    ROLES_SILO, LISTENER_CONTROL, LIMIT_METRICS_BODY, api_task_metrics, NULL},
    {"POST", "/silo/v1/tasks/{task}/result",     ROLES_SILO, LISTENER_CONTROL, LIMIT_CONTROL_BODY, api_task_result, NULL},
    {"POST", "/silo/v1/tasks/{task}/release",    ROLES_SILO, LISTENER_CONTROL, LIMIT_CONTROL_BODY, api_task_release, NULL},
    {"POST", "/silo/v1/uploads",                 ROLES_SILO, LISTENER_CONTROL, LIMIT_CONTROL_BODY, api_upload_create, NULL},
    {"GET",  "/silo/v1/uploads/{upload}",        ROLES_SILO, LISTENER_CONTROL, 0, api_upload_get, NULL},
    {"POST", "/silo/v1/uploads/{upload}/finish", ROLES_SILO, LISTENER_CONTROL, LIMIT_CONTROL_BODY, api_upload_finish, NULL},
    {0},
};
// clang-format on
