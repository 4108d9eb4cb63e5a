/* /api/v1/runs: the runs, what changes them, and how two specs differ. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/hash.h"
#include "common/id.h"
#include "common/limits.h"
#include "common/run_spec.h"
#include "common/schedule.h"
#include "server/api.h"
#include "server/api_run.h"
#include "server/api_sql.h"
#include "server/audit.h"
#include "server/hub.h"
#include "server/idempotent.h"
#include "server/plan.h"
#include "server/server.h"

/* Newest first; the cursor is the id, which sorts by time of birth. */
static const char SQL_LIST[] =
    "SELECT json_build_object(" RUN_MEMBERS "), r.id" RUN_FROM
    " WHERE ($1 = '' OR r.id < $1) AND ($3::text IS NULL OR r.state = $3)"
    "   AND ($4::text IS NULL OR strpos(r.name, lower($4)) > 0)"
    " ORDER BY r.id DESC LIMIT $2";

static const char SQL_LIVE[] = "SELECT " ROUND_JSON ROUND_FROM " WHERE q.run_id = $1"
                               "   AND q.state IN ('pending', 'open', 'aggregating') LIMIT 1";

/* eta_s: rounds left times what the last eight took, gaps between them included. */
static const char SQL_GET[] =
    "SELECT json_build_object(" RUN_MEMBERS ", 'reason', r.reason,"
    " 'initial_eval_loss', zero.eval_loss, 'best_eval_loss', best.eval_loss,"
    " 'best_round', best.number,"
    " 'live_round', $2::json,"
    " 'eta_s', CASE WHEN r.state = 'running' THEN (SELECT round(extract(epoch FROM"
    "      max(closed_at) - min(opened_at)) / count(*) * (r.rounds - coalesce(r.head, 0)), 1)"
    "    FROM (SELECT opened_at, closed_at FROM round WHERE run_id = r.id AND state = 'closed'"
    "           ORDER BY number DESC LIMIT 8) last) END,"
    " 'waiting_for', CASE WHEN r.state IN ('created', 'running') THEN r.waiting_for END,"
    " 'parent', (SELECT json_build_object('run', p.id, 'name', p.name, 'checkpoint',"
    "    r.parent_checkpoint, 'steps', r.steps_before) FROM run p WHERE p.id = r.parent_run),"
    " 'head_checkpoint', (SELECT " CHECKPOINT_JSON
    "    FROM checkpoint c WHERE (c.run_id, c.number) = (r.id, r.head))), r.state" RUN_FROM
    " LEFT JOIN checkpoint zero ON (zero.run_id, zero.number) = (r.id, 0)"
    " LEFT JOIN LATERAL (SELECT number, eval_loss FROM checkpoint"
    "   WHERE run_id = r.id AND eval_loss IS NOT NULL ORDER BY eval_loss, number LIMIT 1) best ON "
    "true"
    " WHERE r.id = $1";

static const char SQL_SPEC[] = "SELECT spec_text FROM run WHERE id = $1";

static const char SQL_EXPERIMENTS[] =
    "SELECT json_build_object('name', experiment, 'runs', count(*),"
    " 'updated_at', " TIME_SQL(
        "max(updated_at)") ")"
                           " FROM run WHERE experiment <> '' GROUP BY experiment ORDER BY "
                           "max(updated_at) DESC LIMIT 1000";

/*
 * A run of that id may be there already when a lost reply made us repeat: then it is ours. Another
 * run of that name is a unique violation.
 */
static const char SQL_CREATE[] =
    "WITH made AS ("
    " INSERT INTO run (id, name, experiment, spec, spec_text, spec_sha256, preset, params)"
    " VALUES ($1, $2, $3, $4::text::jsonb, $4::text, decode($5, 'hex'), $6, $7)"
    " ON CONFLICT (id) DO NOTHING RETURNING id, name"
    ") INSERT INTO event (kind, run_id, message, detail)"
    " SELECT 'run_created', id, 'run ' || name || ' was created', jsonb_build_object('by', "
    "$8::text)"
    "   FROM made";

/*
 * A run that begins with another one's checkpoint, which its row keeps from the cleaner until
 * checkpoint 0 is written from it. Its outer state goes along where the optimizer is the same
 * ($11).
 */
static const char SQL_FORK[] =
    "WITH made AS ("
    " INSERT INTO run (id, name, experiment, spec, spec_text, spec_sha256, preset, params,"
    "                  parent_run, parent_checkpoint, steps_before, outer_before, from_weights,"
    "                  from_state)"
    " SELECT $1, $2, $3, $4::text::jsonb, $4::text, decode($5, 'hex'), $6, $7, p.id, c.number,"
    "        p.steps_before + c.number::bigint * p.local_steps,"
    "        CASE WHEN $11 AND c.outer_state IS NOT NULL THEN p.outer_before + c.number ELSE 0 END,"
    "        c.weights, CASE WHEN $11 THEN c.outer_state END"
    "   FROM run p JOIN checkpoint c ON c.run_id = p.id AND c.number = $10 AND c.kept"
    "  WHERE p.id = $9 FOR SHARE OF c"
    " ON CONFLICT (id) DO NOTHING RETURNING id, name, parent_run, parent_checkpoint"
    "), said AS ("
    " INSERT INTO event (kind, run_id, message, detail)"
    " SELECT 'run_created', made.id, 'run ' || made.name || ' was forked from ' || p.name ||"
    "        ' at checkpoint ' || made.parent_checkpoint, jsonb_build_object('by', $8::text,"
    "        'parent', made.parent_run, 'checkpoint', made.parent_checkpoint)"
    "   FROM made JOIN run p ON p.id = made.parent_run"
    ") SELECT id FROM made UNION ALL SELECT id FROM run WHERE id = $1";

static const char SQL_SOURCE[] =
    "SELECT r.spec_text, c.number, c.kept FROM run r"
    "  LEFT JOIN checkpoint c ON c.run_id = r.id AND c.number = coalesce($2::integer, r.head)"
    " WHERE r.id = $1";

/* Lock order: the run first. What a stopped run leaves behind, the coordinator clears. */
static const char SQL_ACT[] =
    "WITH changed AS ("
    " UPDATE run SET state = $2, waiting_for = NULL,"
    "   reason = CASE WHEN $2 = 'running' THEN NULL ELSE $5 || ' by ' || $6 END,"
    "   finished_at = CASE WHEN $2 = 'stopped' THEN clock_timestamp() END"
    " WHERE id = $1 AND state = ANY ($3::text[]) RETURNING id, name"
    "), said AS ("
    " INSERT INTO event (kind, run_id, message, detail)"
    " SELECT $4, id, 'run ' || name || ' was ' || $5, jsonb_build_object('by', $6::text) FROM "
    "changed"
    ") SELECT id FROM changed";

static enum status list_runs(struct request *rq, struct response *rs, struct err *e)
{
    static const char *const states[] = {"created", "running", "paused", "finished",
                                         "stopped", "failed",  NULL};
    struct page page;
    if (!page_read(&page, rq, rs)) {
        return ST_OK;
    }
    const char *state = request_query(rq, "state");
    bool known = !state;
    for (const char *const *s = states; *s && !known; s++) {
        known = strcmp(*s, state) == 0;
    }
    if (!known) {
        return bad_parameter(rq, rs, "state", "must be a run's state, such as running");
    }
    const char *argv[] = {page.cursor, page.limit_plus_one, state, request_query(rq, "q")};
    struct db_rows rows;
    TRY(db_query(rq->db, rq->arena, SQL_LIST, 4, argv, &rows, e));
    respond_list(rq, rs, &page, &rows);
    return ST_OK;
}

/* The run as it is now, or 404. *state may be NULL. */
static enum status respond_run(struct request *rq, struct response *rs, int status, const char *id,
                               const char **state, struct err *e)
{
    struct db_rows rows;
    TRY(db_query(rq->db, rq->arena, SQL_LIVE, 1, &id, &rows, e));
    const char *argv[] = {id, rows.count > 0 ? db_text(&rows, 0, 0) : NULL};
    TRY(db_query(rq->db, rq->arena, SQL_GET, 2, argv, &rows, e));
    if (rows.count == 0) {
        return not_found(rq, rs, "run");
    }
    if (state) {
        *state = db_text(&rows, 0, 1);
    }
    respond_json(rq, rs, status, db_text(&rows, 0, 0));
    return ST_OK;
}

static enum status get_run(struct request *rq, struct response *rs, struct err *e)
{
    return respond_run(rq, rs, 200, rq->params[0], NULL, e);
}

static enum status get_spec(struct request *rq, struct response *rs, struct err *e)
{
    struct db_rows rows;
    TRY(db_query(rq->db, rq->arena, SQL_SPEC, 1, rq->params, &rows, e));
    if (rows.count == 0) {
        return not_found(rq, rs, "run");
    }
    respond_json(rq, rs, 200, db_text(&rows, 0, 0));
    return ST_OK;
}

static enum status list_experiments(struct request *rq, struct response *rs, struct err *e)
{
    struct db_rows rows;
    TRY(db_query(rq->db, rq->arena, SQL_EXPERIMENTS, 0, NULL, &rows, e));
    respond_all(rq, rs, &rows);
    return ST_OK;
}

/* ---- creating ---- */

/* 422 with every problem of the spec: a pointer and what to do. */
static enum status refuse_spec(struct request *rq, struct response *rs,
                               const struct spec_problem *problems, int count)
{
    struct problem_item items[SPEC_PROBLEMS_MAX];
    for (int i = 0; i < count; i++) {
        items[i] = (struct problem_item){problems[i].pointer, problems[i].detail};
    }
    const char *detail =
        count == 1 ? arena_fmt(rq->arena, "%s %s", problems[0].pointer, problems[0].detail)
                   : arena_fmt(rq->arena, "the run spec has %d problems", count);
    return problem_items(
        rq, rs, 422, "BAD_SPEC",
        "docs/API.md describes the run spec; ?dry_run=1 checks one and stores nothing", detail,
        items, count);
}

/* A spec without a name gets one that nobody has. */
static void draw_name(struct run_spec *spec, const char *id)
{
    if (!spec->name[0]) {
        (void)snprintf(spec->name, sizeof(spec->name), "run-%s", id + ID_LEN - 8);
        for (char *p = spec->name; *p; p++) {
            *p = (char)(*p >= 'A' && *p <= 'Z' ? *p - 'A' + 'a' : *p);
        }
    }
}

struct fork_of {
    const char *run;
    const char *checkpoint; /* its number */
    bool same_optimizer;
};

/* of NULL: a run that begins with drawn weights. *stored false: what it is to begin with is gone.
 */
static enum status store_run(struct request *rq, const char *id, const struct run_spec *spec,
                             const struct fork_of *of, bool *stored, struct err *e)
{
    const char *text = run_spec_json(rq->arena, spec);
    struct digest d;
    char hex[DIGEST_HEX + 1];
    sha256_of(text, strlen(text), &d);
    digest_hex(&d, hex);
    const char *argv[] = {id,
                          spec->name,
                          spec->experiment,
                          text,
                          hex,
                          spec->preset,
                          arena_fmt(rq->arena, "%" PRId64, model_param_count(&spec->model)),
                          rq->who.name,
                          of ? of->run : NULL,
                          of ? of->checkpoint : NULL,
                          of && of->same_optimizer ? "t" : "f"};
    struct db_rows rows;
    *stored = true;
    TRY(db_query(rq->db, rq->arena, of ? SQL_FORK : SQL_CREATE, of ? 11 : 8, argv, &rows, e));
    *stored = !of || rows.count > 0;
    return ST_OK;
}

/* Kept from attempt to attempt: a repeat must not make a second run. */
static const char *new_run_id(struct request *rq)
{
    if (!rq->state) {
        rq->state = arena_alloc(rq->arena, ID_LEN + 1);
        id_new('r', rq->state);
    }
    return rq->state;
}

static enum status respond_created(struct request *rq, struct response *rs, const char *id,
                                   struct err *e)
{
    hub_wake(rq->server->hub, "events");
    hub_wake(rq->server->hub, "tasks");
    response_header(rs, "Location", arena_fmt(rq->arena, "/api/v1/runs/%s", id));
    return respond_run(rq, rs, 201, id, NULL, e);
}

static enum status name_taken(struct request *rq, struct response *rs, const struct run_spec *spec)
{
    return problem(rq, rs, 409, "NAME_TAKEN", "choose another name",
                   "there is a run named '%s' already", spec->name);
}

static enum status create_once(struct request *rq, struct response *rs, struct err *e)
{
    struct run_spec spec;
    struct spec_problem problems[SPEC_PROBLEMS_MAX];
    int count = 0;
    struct err bad = {0};
    if (run_spec_parse(&spec, rq->json, problems, &count, &bad)) {
        return refuse_spec(rq, rs, problems, count);
    }
    const char *id = new_run_id(rq);
    draw_name(&spec, id);
    const char *dry = request_query(rq, "dry_run");
    if (dry && strcmp(dry, "1") != 0 && strcmp(dry, "0") != 0) {
        return bad_parameter(rq, rs, "dry_run", "must be 1 or 0");
    }
    if (dry && dry[0] == '1') {
        struct buf b;
        buf_init(&b, 64 * 1024);
        plan_print(&b, rq->arena, &spec);
        respond_buf(rq, rs, 200, &b);
        return ST_OK;
    }
    bool stored = false;
    audit_as(rq, "run_create", id);
    enum status st = store_run(rq, id, &spec, NULL, &stored, e);
    if (st == ST_CONFLICT) {
        return name_taken(rq, rs, &spec);
    }
    TRY(st);
    return respond_created(rq, rs, id, e);
}

static enum status create_run(struct request *rq, struct response *rs, struct err *e)
{
    return idempotent(create_once, rq, rs, e);
}

/* ---- forking ---- */

/*
 * base with the members of patch over it; where both have an object, member by member. An outer
 * optimizer that is named anew comes without the other one's numbers. The outermost object gets
 * another name, or none.
 */
static void merge(struct buf *b, struct arena *a, const char *key, const struct json *base,
                  const struct json *patch, const char *name)
{
    jw_object(b, key);
    if (name) {
        jw_str(b, "name", name);
    }
    for (const struct json *m = json_first(base); m; m = json_next(m)) {
        const struct json *over = patch ? json_get(patch, json_key(m)) : NULL;
        bool both = over && json_kind(over) == JSON_OBJECT && json_kind(m) == JSON_OBJECT;
        bool anew = both && strcmp(json_key(m), "outer") == 0 && json_get(over, "name");
        if (!key && strcmp(json_key(m), "name") == 0) {
            continue;
        }
        if (both && !anew) {
            merge(b, a, json_key(m), m, over, NULL);
        } else {
            jw_raw(b, json_key(m), json_print(a, over ? over : m));
        }
    }
    for (const struct json *m = patch ? json_first(patch) : NULL; m; m = json_next(m)) {
        if (!json_get(base, json_key(m))) {
            jw_raw(b, json_key(m), json_print(a, m));
        }
    }
    jw_end_object(b);
}

/* What a fork may change: all but what its weights and its silos' text are made for. */
static bool fork_may_change(struct request *rq, struct response *rs, const struct json *patch)
{
    static const char *const fixed[] = {"model", "tokenizer", "name"};
    if (patch && json_kind(patch) != JSON_OBJECT) {
        (void)bad_member(rq, rs, "/spec", "must be an object");
        return false;
    }
    for (size_t i = 0; patch && i < sizeof(fixed) / sizeof(fixed[0]); i++) {
        if (json_get(patch, fixed[i])) {
            (void)bad_member(rq, rs, arena_fmt(rq->arena, "/spec/%s", fixed[i]),
                             i == 2 ? "is given beside the spec, as /name"
                                    : "stays as it is in a fork: weights are of one model");
            return false;
        }
    }
    return true;
}

/* The parent's spec with the changes asked for. False with ST_OK: rs is a 422. */
static enum status fork_spec(struct request *rq, struct response *rs, const char *parent_text,
                             const char *name, struct run_spec *parent, struct run_spec *out,
                             bool *ok, struct err *e)
{
    const struct json *doc = NULL;
    struct spec_problem problems[SPEC_PROBLEMS_MAX];
    int count = 0;
    *ok = false;
    TRY(json_parse(&doc, rq->arena, parent_text, strlen(parent_text), e));
    TRY(run_spec_parse(parent, doc, problems, &count, e));
    struct buf b;
    buf_init(&b, LIMIT_CONTROL_BODY);
    merge(&b, rq->arena, NULL, doc, json_get(rq->json, "spec"), name);
    const char *text = b.full ? "" : arena_fmt(rq->arena, "%s", b.data);
    buf_release(&b);
    struct err bad = {0};
    if (json_parse(&doc, rq->arena, text, strlen(text), &bad)) {
        return bad_member(rq, rs, "/spec", bad.msg);
    }
    if (run_spec_parse(out, doc, problems, &count, &bad)) {
        return refuse_spec(rq, rs, problems, count);
    }
    *ok = true;
    return ST_OK;
}

/* The parent's spec text and the checkpoint's number. NULL: rs says what is not there. */
static enum status fork_source(struct request *rq, struct response *rs, const char **spec_text,
                               const char **number, struct err *e)
{
    const struct json *wanted = json_get(rq->json, "checkpoint");
    *spec_text = NULL;
    if (wanted && !json_is_int(wanted, 0, INT32_MAX)) {
        return bad_member(rq, rs, "/checkpoint", "must be a checkpoint's number");
    }
    struct db_rows rows;
    const char *argv[] = {rq->params[0], wanted ? db_arg_int(rq->arena, json_int(wanted)) : NULL};
    TRY(db_query(rq->db, rq->arena, SQL_SOURCE, 2, argv, &rows, e));
    if (rows.count == 0) {
        return not_found(rq, rs, "run");
    }
    if (db_is_null(&rows, 0, 1)) {
        return not_found(rq, rs, "checkpoint");
    }
    *number = db_text(&rows, 0, 1);
    bool kept = false;
    TRY(db_bool(&rows, 0, 2, &kept, e));
    if (!kept) {
        return problem(rq, rs, 404, "CHECKPOINT_REMOVED", "fork from a newer one",
                       "the file of checkpoint %s is past its keeping", *number);
    }
    *spec_text = db_text(&rows, 0, 0);
    return ST_OK;
}

static enum status fork_once(struct request *rq, struct response *rs, struct err *e)
{
    static const char *const keys[] = {"checkpoint", "name", "spec", NULL};
    if (!only_members(rq, rs, keys) || !fork_may_change(rq, rs, json_get(rq->json, "spec"))) {
        return ST_OK;
    }
    const char *name = json_get(rq->json, "name") ? want_member(rq, rs, "name") : NULL;
    if (json_get(rq->json, "name") && !name) {
        return ST_OK;
    }
    struct run_spec parent;
    struct run_spec spec;
    struct fork_of of = {.run = rq->params[0]};
    const char *text = NULL;
    bool ok = false;
    TRY(fork_source(rq, rs, &text, &of.checkpoint, e));
    if (!text) {
        return ST_OK;
    }
    TRY(fork_spec(rq, rs, text, name, &parent, &spec, &ok, e));
    if (!ok) {
        return ST_OK;
    }
    const char *id = new_run_id(rq);
    draw_name(&spec, id);
    // Fragments have seen different numbers of outer steps, which only their own run knows.
    of.same_optimizer = spec.outer.name == parent.outer.name && schedule_fragments(&spec) == 1 &&
                        schedule_fragments(&parent) == 1;
    audit_as(rq, "run_fork", id);
    bool stored = false;
    enum status st = store_run(rq, id, &spec, &of, &stored, e);
    if (st == ST_CONFLICT) {
        return name_taken(rq, rs, &spec);
    }
    TRY(st);
    if (!stored) {
        return problem(rq, rs, 404, "CHECKPOINT_REMOVED", "fork from a newer one",
                       "the file of checkpoint %s was removed just now", of.checkpoint);
    }
    return respond_created(rq, rs, id, e);
}

static enum status fork_run(struct request *rq, struct response *rs, struct err *e)
{
    return idempotent(fork_once, rq, rs, e);
}

/* ---- pause, resume, stop ---- */

static const struct run_action {
    const char *name;
    const char *to;
    const char *from; /* as a PostgreSQL array */
    const char *kind;
    const char *said;
} actions[] = {
    {"pause", "paused", "{running}", "run_paused", "paused"},
    {"resume", "running", "{paused}", "run_resumed", "resumed"},
    {"stop", "stopped", "{created,running,paused}", "run_stopped", "stopped"},
};

static enum status act_once(struct request *rq, struct response *rs, struct err *e)
{
    static const char *const keys[] = {"action", NULL};
    const char *name = only_members(rq, rs, keys) ? want_member(rq, rs, "action") : NULL;
    if (!name) {
        return ST_OK;
    }
    const struct run_action *act = NULL;
    for (size_t i = 0; i < sizeof(actions) / sizeof(actions[0]); i++) {
        if (strcmp(actions[i].name, name) == 0) {
            act = &actions[i];
        }
    }
    if (!act) {
        return bad_member(rq, rs, "/action", "must be pause, resume or stop");
    }
    audit_as(rq, arena_fmt(rq->arena, "run_%s", act->name), rq->params[0]);
    const char *argv[] = {rq->params[0], act->to, act->from, act->kind, act->said, rq->who.name};
    struct db_rows rows;
    TRY(db_query(rq->db, rq->arena, SQL_ACT, 6, argv, &rows, e));
    bool changed = rows.count > 0;
    const char *state = "";
    TRY(respond_run(rq, rs, 200, rq->params[0], &state, e));
    // Asked for what it is already, it answers the same again: a lost reply costs nothing.
    if (rs->status == 200 && !changed && strcmp(state, act->to) != 0) {
        return problem(rq, rs, 409, "RUN_STATE", "read the run's state again",
                       "a run that is %s cannot be asked to %s", state, act->name);
    }
    if (changed) {
        hub_wake(rq->server->hub, "events");
        hub_wake(rq->server->hub, "tasks");
    } else if (rs->status == 200) {
        audit_as(rq, NULL, NULL);
    }
    return ST_OK;
}

static enum status act_on_run(struct request *rq, struct response *rs, struct err *e)
{
    return idempotent(act_once, rq, rs, e);
}

// clang-format off
const struct route routes_runs[] = {
    {"GET", "/api/v1/runs", ROLES_PEOPLE, LISTENER_CONTROL, 0, list_runs, NULL},
    {"POST", "/api/v1/runs", ROLES_ADMIN | ROUTE_AUDITED, LISTENER_CONTROL, LIMIT_CONTROL_BODY, create_run, NULL},
    {"GET", "/api/v1/runs/{run}", ROLES_PEOPLE, LISTENER_CONTROL, 0, get_run, NULL},
    {"POST", "/api/v1/runs/{run}/actions", ROLES_ADMIN | ROUTE_AUDITED, LISTENER_CONTROL, LIMIT_CONTROL_BODY, act_on_run, NULL},
    {"POST", "/api/v1/runs/{run}/fork", ROLES_ADMIN | ROUTE_AUDITED, LISTENER_CONTROL, LIMIT_CONTROL_BODY, fork_run, NULL},
    {"GET", "/api/v1/runs/{run}/spec", ROLES_PEOPLE, LISTENER_CONTROL, 0, get_spec, NULL},
    {"GET", "/api/v1/experiments", ROLES_PEOPLE, LISTENER_CONTROL, 0, list_experiments, NULL},
    {"GET", "/api/v1/diff", ROLES_PEOPLE, LISTENER_CONTROL, 0, api_diff, NULL},
    {"GET", "/api/v1/runs/{run}/rounds", ROLES_PEOPLE, LISTENER_CONTROL, 0, api_rounds, NULL},
    {"GET", "/api/v1/runs/{run}/rounds/{n}", ROLES_PEOPLE, LISTENER_CONTROL, 0, api_round, NULL},
    {"GET", "/api/v1/runs/{run}/silos", ROLES_PEOPLE, LISTENER_CONTROL, 0, api_run_silos, NULL},
    {"GET", "/api/v1/runs/{run}/checkpoints", ROLES_PEOPLE, LISTENER_CONTROL, 0, api_checkpoints, NULL},
    {"GET", "/api/v1/runs/{run}/checkpoints/{n}", ROLES_PEOPLE, LISTENER_CONTROL, 0, api_checkpoint, NULL},
    {"GET", "/api/v1/runs/{run}/checkpoints/{n}/weights", ROLES_PEOPLE, LISTENER_CONTROL | LISTENER_BULK, 0, api_weights, NULL},
    {"GET", "/api/v1/runs/{run}/metrics", ROLES_PEOPLE, LISTENER_CONTROL, 0, api_metrics, NULL},
    {"GET", "/api/v1/runs/{run}/events", ROLES_PEOPLE, LISTENER_CONTROL, 0, api_events, NULL},
    {NULL, NULL, 0, 0, 0, NULL, NULL},
};
// clang-format on
