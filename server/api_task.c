/*
 * A silo's task over HTTP: claim it (a long poll), keep its lease, send metrics and the result of
 * an evaluation, give it back. What of it changes rows is server/db_task.h.
 */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "common/clock.h"
#include "common/fault.h"
#include "common/limits.h"
#include "common/log.h"
#include "server/api.h"
#include "server/api_silo.h"
#include "server/checkpoint.h"
#include "server/db_silo.h"
#include "server/db_step.h"
#include "server/hub.h"
#include "server/server.h"

enum {
    DETAIL_MAX = 500,
    METRIC_NAME_MAX = 40,
};

/* ---- claim ---- */

static void print_plan(struct buf *b, const struct task *t, const struct run_spec *spec,
                       const char *silo_name)
{
    jw_object(b, "plan");
    if (t->evaluate) {
        jw_int(b, "windows", spec->eval.windows);
    } else {
        jw_int(b, "global_step",
               t->steps_before + (int64_t)(t->number - 1) * spec->federation.local_steps);
        jw_int(b, "local_steps", t->steps);
        jw_str(b, "codec", spec->codec.up_auto ? "auto" : codec_name(spec->codec.up));
        jw_int(b, "update_bytes",
               checkpoint_update_bytes(spec, silo_name, spec->codec.up, t->number));
        jw_int(b, "chunk_bytes", SILO_CHUNK_BYTES);
        jw_int(b, "silo_ordinal", inner_silo_ordinal(silo_name));
    }
    jw_end_object(b);
}

/* The oldest first; what a silo does with them is its own affair. */
static void print_steps(struct buf *b, const struct step_row *steps, int count)
{
    char hex[DIGEST_HEX + 1];
    jw_array(b, "steps");
    for (int i = count - 1; i >= 0; i--) {
        jw_object(b, NULL);
        jw_int(b, "number", steps[i].number);
        digest_hex(&steps[i].base, hex);
        jw_str(b, "base", hex);
        digest_hex(&steps[i].sha256, hex);
        jw_str(b, "sha256", hex);
        jw_int(b, "bytes", steps[i].bytes);
        jw_str(b, "codec", codec_name(steps[i].codec));
        jw_end_object(b);
    }
    jw_end_array(b);
}

static enum status respond_task(struct request *rq, struct response *rs, const struct task *t,
                                struct err *e)
{
    struct run_spec spec;
    const struct step_row *steps = NULL;
    int step_count = 0;
    TRY(silo_parse_spec(&spec, rq->arena, t->spec_text, e));
    TRY(db_step_chain(rq->db, rq->arena, t->run_id, t->base, &steps, &step_count, e));
    char hex[DIGEST_HEX + 1];
    digest_hex(&t->base_sha256, hex);
    struct buf b;
    buf_init(&b, LIMIT_CONTROL_BODY);
    jw_object(&b, NULL);
    jw_str(&b, "task", t->id);
    jw_str(&b, "kind", t->evaluate ? "evaluate" : "train");
    jw_str(&b, "run", t->run_id);
    jw_str(&b, "run_name", t->run_name);
    jw_int(&b, "round", t->number);
    jw_int(&b, "rounds", t->rounds);
    jw_int(&b, "slot", t->slot);
    jw_object(&b, "lease");
    jw_int(&b, "epoch", t->epoch);
    jw_int(&b, "seconds", LEASE_S);
    jw_int(&b, "heartbeat_s", HEARTBEAT_S);
    jw_end_object(&b);
    jw_object(&b, "base");
    jw_int(&b, "number", t->base);
    jw_str(&b, "sha256", hex);
    jw_int(&b, "bytes", t->base_bytes);
    if (step_count > 0) {
        print_steps(&b, steps, step_count);
    }
    jw_end_object(&b);
    print_plan(&b, t, &spec, rq->who.name);
    jw_raw(&b, "spec", t->spec_text);
    jw_end_object(&b);
    FAULT("claim.reply");
    respond_buf(rq, rs, 200, &b);
    return ST_OK;
}

/* What a poll keeps from attempt to attempt. */
struct poll {
    const char *agent;
    double until_s;
};

static struct poll *start_poll(struct request *rq, struct response *rs)
{
    static const char *const keys[] = {"agent", "wait_s", NULL};
    double wait = 0.0;
    const char *agent = NULL;
    if (!silo_protocol(rq, rs) || !only_members(rq, rs, keys) ||
        !(agent = silo_text(rq, rs, "agent", SILO_AGENT_MAX, true)) ||
        !silo_number(rq, rs, rq->json, "wait_s", 0.0, &wait)) {
        return NULL;
    }
    struct poll *p = arena_alloc(rq->arena, sizeof(*p));
    p->agent = agent;
    p->until_s = clock_mono_s() + (isnan(wait) ? 0.0 : fmin(wait, LIMIT_POLL_S));
    return p;
}

/* What to fetch while there is nothing to do: the base, and the step to it from the one before. */
static enum status respond_idle(struct request *rq, struct response *rs, struct err *e)
{
    struct next_base b;
    const struct step_row *steps = NULL;
    int count = 0;
    TRY(db_task_next_base(rq->db, rq->arena, rq->who.silo_id, &b, e));
    respond_empty(rs, 204);
    if (!b.found) {
        return ST_OK;
    }
    response_header(rs, "Photon-Base", arena_fmt(rq->arena, "%s %" PRId64, b.sha256, b.bytes));
    TRY(db_step_chain(rq->db, rq->arena, b.run_id, b.number, &steps, &count, e));
    if (count > 0) {
        char step[DIGEST_HEX + 1];
        char base[DIGEST_HEX + 1];
        digest_hex(&steps[0].sha256, step);
        digest_hex(&steps[0].base, base);
        response_header(rs, "Photon-Step",
                        arena_fmt(rq->arena, "%s %" PRId64 " %s", step, steps[0].bytes, base));
    }
    return ST_OK;
}

enum status api_task_claim(struct request *rq, struct response *rs, struct err *e)
{
    if (!rq->state) {
        rq->state = start_poll(rq, rs);
        if (!rq->state) {
            return ST_OK;
        }
        const struct poll *first = rq->state;
        TRY(db_silo_seen(rq->db, rq->who.silo_id, first->agent, e));
    }
    if (atomic_load(&rq->server->stopping)) {
        respond_empty(rs, 204);
        return ST_OK;
    }
    const struct poll *p = rq->state;
    struct task t;
    bool found = false;
    TRY(db_task_claim(rq->db, rq->arena, rq->who.silo_id, p->agent, &t, &found, e));
    if (found) {
        log_debug("task claimed task=%s epoch=%" PRId64 " silo=%s", t.id, t.epoch, rq->who.name);
        return respond_task(rq, rs, &t, e);
    }
    if (rq->expired || clock_mono_s() >= p->until_s) {
        return respond_idle(rq, rs, e);
    }
    response_park(rs, "tasks", p->until_s);
    return ST_OK;
}

/* ---- while it is held ---- */

static bool known_word(const char *word, const char *const *words)
{
    while (*words && strcmp(*words, word) != 0) {
        words++;
    }
    return *words != NULL;
}

enum status api_task_heartbeat(struct request *rq, struct response *rs, struct err *e)
{
    static const char *const keys[] = {"epoch", "step", "phase", "tokens_per_s", NULL};
    static const char *const phases[] = {"download", "train", "encode", "upload", "evaluate", NULL};
    struct heartbeat hb = {0};
    if (!silo_protocol(rq, rs) || !silo_path_id(rq, rs, 't', "task") ||
        !only_members(rq, rs, keys) || !silo_want_int(rq, rs, "epoch", 0, INT64_MAX, &hb.epoch) ||
        !silo_want_int(rq, rs, "step", 0, LIMIT_STEPS, &hb.step) ||
        !silo_number(rq, rs, rq->json, "tokens_per_s", 0.0, &hb.tokens_per_s)) {
        return ST_OK;
    }
    const char *phase = silo_text(rq, rs, "phase", 16, false);
    if (!phase) {
        return ST_OK;
    }
    if (phase[0] && !known_word(phase, phases)) {
        return bad_member(rq, rs, "/phase", "is none of download, train, encode, upload, evaluate");
    }
    hb.phase = phase[0] ? phase : NULL;
    bool drain = false;
    struct refusal no = {0};
    TRY(db_task_heartbeat(rq->db, rq->params[0], rq->who.silo_id, &hb, &drain, &no, e));
    if (no.code) {
        return respond_refusal(rq, rs, &no);
    }
    respond_json(rq, rs, 200,
                 arena_fmt(rq->arena, "{\"order\":\"%s\",\"lease_s\":%d}",
                           drain ? "drain" : "continue", LEASE_S));
    return ST_OK;
}

static bool metric_name_ok(const char *s)
{
    size_t len = strlen(s);
    return len >= 1 && len <= METRIC_NAME_MAX && s[0] >= 'a' && s[0] <= 'z' &&
           strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789_") == len;
}

/*
 * Points that are null are left out, for a number that is not finite cannot be drawn, and so are
 * those that are as good as infinite: a run that diverges must still be able to say so. False: rs
 * is a 422.
 */
static bool read_points(struct request *rq, struct response *rs, const struct json *list,
                        struct metric_point *out, int *count)
{
    static const char *const keys[] = {"step", "name", "value", NULL};
    *count = 0;
    const struct json *p = NULL;
    int n = json_len(list);
    for (int i = 0; i < n; i++) {
        struct err e = {0};
        struct metric_point m;
        p = json_at(list, i);
        const char *at = arena_fmt(rq->arena, "/points/%d", i);
        if (json_kind(p) != JSON_OBJECT || json_only(p, keys, &e) ||
            json_want_int(p, "step", 0, INT64_MAX, &m.step, &e) ||
            json_want_str(p, "name", &m.name, &e) || !metric_name_ok(m.name)) {
            (void)bad_member(rq, rs, at, e.msg[0] ? e.msg : "is no point of a curve");
            return false;
        }
        const struct json *value = json_get(p, "value");
        bool null = !value || json_kind(value) == JSON_NULL;
        if (!null && json_kind(value) != JSON_NUMBER) {
            (void)bad_member(rq, rs, arena_fmt(rq->arena, "%s/value", at),
                             "must be a number, or null");
            return false;
        }
        m.value = null ? (double)NAN : json_num(value);
        if (fabs(m.value) <= SILO_NUMBER_MAX) {
            m.value = silo_measured(m.value);
            out[(*count)++] = m;
        }
    }
    return true;
}

enum status api_task_metrics(struct request *rq, struct response *rs, struct err *e)
{
    static const char *const keys[] = {"epoch", "points", NULL};
    int64_t epoch = 0;
    if (!silo_protocol(rq, rs) || !silo_path_id(rq, rs, 't', "task") ||
        !only_members(rq, rs, keys) || !silo_want_int(rq, rs, "epoch", 0, INT64_MAX, &epoch)) {
        return ST_OK;
    }
    const struct json *list = json_get(rq->json, "points");
    if (!list || json_kind(list) != JSON_ARRAY) {
        return bad_member(rq, rs, "/points", "must be a list");
    }
    if (json_len(list) > LIMIT_METRICS_POINTS) {
        return problem(rq, rs, 413, "TOO_MANY_POINTS", "send them in several batches",
                       "a batch has %d points at most", LIMIT_METRICS_POINTS);
    }
    struct metric_point *points = arena_alloc(rq->arena, LIMIT_METRICS_POINTS * sizeof(*points));
    int count = 0;
    if (!read_points(rq, rs, list, points, &count)) {
        return ST_OK;
    }
    int64_t stored = 0;
    struct refusal no = {0};
    TRY(db_task_metrics(rq->db, rq->params[0], rq->who.silo_id, epoch, points, count, &stored, &no,
                        e));
    if (no.code) {
        return respond_refusal(rq, rs, &no);
    }
    respond_json(rq, rs, 200, arena_fmt(rq->arena, "{\"stored\":%" PRId64 "}", stored));
    return ST_OK;
}

/* ---- its end ---- */

enum status api_task_result(struct request *rq, struct response *rs, struct err *e)
{
    static const char *const keys[] = {"epoch",   "nll",        "tokens", "bytes",
                                       "seconds", "download_s", NULL};
    struct eval_result r = {0};
    int64_t epoch = 0;
    if (!silo_protocol(rq, rs) || !silo_path_id(rq, rs, 't', "task") ||
        !only_members(rq, rs, keys) || !silo_want_int(rq, rs, "epoch", 0, INT64_MAX, &epoch) ||
        !silo_number(rq, rs, rq->json, "nll", 0.0, &r.nll) ||
        !silo_want_int(rq, rs, "tokens", 1, INT64_MAX, &r.tokens) ||
        !silo_want_int(rq, rs, "bytes", 0, INT64_MAX, &r.bytes) ||
        !silo_number(rq, rs, rq->json, "seconds", 0.0, &r.seconds) ||
        !silo_number(rq, rs, rq->json, "download_s", 0.0, &r.download_s)) {
        return ST_OK;
    }
    if (isnan(r.nll)) {
        return bad_member(rq, rs, "/nll", "must be a number that is not negative");
    }
    char run_id[ID_LEN + 1] = "";
    struct refusal no = {0};
    TRY(db_task_result(rq->db, rq->params[0], rq->who.silo_id, epoch, &r, run_id, &no, e));
    if (no.code) {
        return respond_refusal(rq, rs, &no);
    }
    silo_wake_run(rq, run_id);
    respond_json(rq, rs, 200, "{\"counted\":true}");
    return ST_OK;
}

enum status api_task_release(struct request *rq, struct response *rs, struct err *e)
{
    static const char *const keys[] = {"epoch", "code", "detail", NULL};
    static const char *const codes[] = {"oom",       "disk_full", "bad_data", "diverged",
                                        "transient", "shutdown",  NULL};
    int64_t epoch = 0;
    if (!silo_protocol(rq, rs) || !silo_path_id(rq, rs, 't', "task") ||
        !only_members(rq, rs, keys) || !silo_want_int(rq, rs, "epoch", 0, INT64_MAX, &epoch)) {
        return ST_OK;
    }
    const char *code = silo_text(rq, rs, "code", 32, true);
    const char *detail = code ? silo_text(rq, rs, "detail", DETAIL_MAX, false) : NULL;
    if (!detail) {
        return ST_OK;
    }
    if (!known_word(code, codes)) {
        return bad_member(rq, rs, "/code",
                          "is none of oom, disk_full, bad_data, diverged, transient, shutdown");
    }
    struct refusal no = {0};
    TRY(db_task_release(rq->db, rq->params[0], rq->who.silo_id, epoch, code, detail, &no, e));
    if (no.code) {
        return respond_refusal(rq, rs, &no);
    }
    hub_wake(rq->server->hub, "rounds"); // it may have been the last one that was waited for
    log_info("task given back task=%s silo=%s code=%s", rq->params[0], rq->who.name, code);
    respond_json(rq, rs, 200, "{\"released\":true}");
    return ST_OK;
}
