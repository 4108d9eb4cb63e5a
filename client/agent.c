#include "client/agent.h"

#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include "client/agent_int.h"
#include "client/options.h"
#include "common/buf.h"
#include "common/clock.h"
#include "common/fault.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/rng.h"
#include "common/text.h"
#include "common/version.h"
#include "kernels/backend.h"

enum {
    TASK_ARENA_MAX = 64 * 1024 * 1024,
    PART_S = 5 // for the last requests before leaving
};

/* ---- signals ---- */

static volatile sig_atomic_t signals_seen;
static volatile sig_atomic_t last_words; // the requests made on the way out are not cancelled

static void on_signal(int sig)
{
    if (signals_seen) {
        _exit(128 + sig);
    }
    signals_seen = 1;
}

bool agent_stopping(void)
{
    return signals_seen != 0;
}

static bool is_cancelled(void *ctx)
{
    (void)ctx;
    return signals_seen && !last_words;
}

static void catch_signals(void)
{
    struct sigaction sa = {.sa_handler = on_signal};
    (void)sigaction(SIGINT, &sa, NULL);
    (void)sigaction(SIGTERM, &sa, NULL);
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    (void)sigaction(SIGPIPE, &ignore, NULL);
}

/* ---- saying ---- */

void agent_say(struct agent *a, const char *fmt, ...)
{
    char text[400];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    (void)text_plain(text);
    if (a->progress.redraw) {
        progress_say(&a->progress, text);
    } else {
        log_info("%s", text);
    }
}

/* For `photon-client status`; a torn or lost one is harmless, so it is not synced. */
static void write_status(struct agent *a, const struct task *t, int64_t step)
{
    char path[STATE_PATH_MAX];
    char tmp[STATE_PATH_MAX + 8];
    char at[32];
    struct buf b;
    buf_init(&b, 8192);
    clock_rfc3339(clock_wall_ms(), at);
    jw_object(&b, NULL);
    jw_str(&b, "server", a->id.url);
    jw_str(&b, "silo", a->id.name);
    jw_int(&b, "pid", getpid());
    jw_str(&b, "status", a->doing);
    jw_str(&b, "run", t ? t->run_name : NULL);
    jw_int(&b, "round", t ? t->round : 0);
    jw_int(&b, "rounds", t ? t->rounds : 0);
    jw_int(&b, "step", step);
    jw_int(&b, "steps", t ? t->local_steps : 0);
    jw_str(&b, "device", a->device);
    jw_num(&b, "tokens_per_s", a->tokens_per_s);
    jw_int(&b, "train_tokens", a->info.train_tokens);
    jw_int(&b, "heldout_tokens", a->info.heldout_tokens);
    jw_int(&b, "updates", a->updates);
    jw_int(&b, "evaluations", a->evaluations);
    jw_int(&b, "sent_bytes", a->sent_bytes);
    jw_int(&b, "received_bytes", a->received_bytes);
    jw_str(&b, "last_error", a->last_error[0] ? a->last_error : NULL);
    jw_str(&b, "at", at);
    jw_end_object(&b);
    (void)snprintf(path, sizeof(path), "%.900s/status.json", a->config->state_dir);
    (void)snprintf(tmp, sizeof(tmp), "%s.tmp", path);
    FILE *f = fopen(tmp, "we");
    if (f) {
        bool ok = fwrite(b.data, 1, b.len, f) == b.len;
        ok = fclose(f) == 0 && ok;
        if (!ok || rename(tmp, path) != 0) {
            log_debug("status.json is not written");
        }
    }
    buf_release(&b);
}

/* The counters of former processes go on. */
static void read_counters(struct agent *a)
{
    char path[STATE_PATH_MAX];
    static char text[8192];
    struct err unused = {0};
    (void)snprintf(path, sizeof(path), "%.900s/status.json", a->config->state_dir);
    struct arena *arena = arena_new(1 << 20);
    const struct json *o = NULL;
    if (file_read(path, text, sizeof(text), &unused) == ST_OK &&
        json_parse(&o, arena, text, strlen(text), &unused) == ST_OK &&
        json_kind(o) == JSON_OBJECT) {
        static const int64_t most = (int64_t)1 << 53;
        (void)!json_want_int(o, "updates", 0, most, &a->updates, &unused);
        (void)!json_want_int(o, "evaluations", 0, most, &a->evaluations, &unused);
        (void)!json_want_int(o, "sent_bytes", 0, most, &a->sent_bytes, &unused);
        (void)!json_want_int(o, "received_bytes", 0, most, &a->received_bytes, &unused);
    }
    arena_free(arena);
}

void agent_doing(struct agent *a, const struct task *t, const char *doing, int64_t step)
{
    (void)snprintf(a->doing, sizeof(a->doing), "%s", doing);
    write_status(a, t, step);
}

enum task_end agent_fail(struct agent *a, const char *code, const struct err *e)
{
    a->fail_code = code;
    (void)snprintf(a->fail_detail, sizeof(a->fail_detail), "%s", e->msg);
    (void)snprintf(a->last_error, sizeof(a->last_error), "%s", e->msg);
    log_error("%s: %s", code, e->msg);
    return TASK_FAILED;
}

/* ---- speaking to the server ---- */

/*
 * What ends the agent: an exit code, or -1 to ask again. Only the server's own word does, and that
 * has a code: a 404, a refusal or a page without one comes from whatever stands in its place while
 * it is away. So does another key than the pinned one. A certificate lapses and is renewed, a clock
 * is set: what has been greeted once is waited for, and before that others may try again.
 */
static int fatal(const struct agent *a, const struct reply *r, const struct err *e)
{
    if (strcmp(r->code, "PROTOCOL_MISMATCH") == 0) {
        log_error("%s", e->msg);
        return EXIT_VERSION;
    }
    if (e->st == ST_DENIED && *r->code) {
        log_error("%s; ask the operator for a new join line, then: photon-client join %s --name %s "
                  "--state %s --again",
                  e->msg, a->id.url, a->id.name, a->config->state_dir);
        return EXIT_UNREACHABLE;
    }
    if (!a->greeted && (e->st == ST_DENIED || !retry_allowed(r->http))) {
        log_error("%s", e->msg);
        return EXIT_TEMPORARY;
    }
    return -1;
}

static void nap(int64_t ms)
{
    for (int64_t until = clock_mono_ms() + ms; clock_mono_ms() < until && !agent_stopping();) {
        clock_sleep_ms(100);
    }
}

/* An exit code, or -1 when it is time to ask again. */
static int after_failure(const struct agent *a, const struct reply *r, const struct err *e,
                         int *failures)
{
    int rc = fatal(a, r, e);
    if (rc < 0) {
        uint64_t draw = 0;
        random_bytes(&draw, sizeof(draw));
        int64_t wait = retry_delay_ms((*failures)++, rng_unit(draw, 0), r->retry_after_s);
        log_info("%s; asking again in %.1f s", e->msg, (double)wait / 1000.0);
        nap(wait);
    }
    return rc;
}

static void hello_body(const struct agent *a, struct buf *b)
{
    jw_object(b, NULL);
    jw_str(b, "agent", a->boot);
    jw_str(b, "version", PHOTON_VERSION);
    jw_str(b, "device", a->device);
    jw_num(b, "tokens_per_s", a->tokens_per_s);
    jw_str(b, "tokenizer_sha256", a->info.tokenizer_sha256);
    jw_int(b, "train_tokens", a->info.train_tokens);
    jw_int(b, "heldout_tokens", a->info.heldout_tokens);
    jw_end_object(b);
}

static enum status read_hello(struct agent *a, const struct reply *r, struct err *e)
{
    const char *bulk = NULL;
    const char *name = NULL;
    if (!r->json || json_kind(r->json) != JSON_OBJECT) {
        return err_set(e, ST_INVALID, "what answers at %s is no Photon server", a->id.url);
    }
    TRY(json_want_str(r->json, "bulk_url", &bulk, e));
    TRY(json_want_str(r->json, "name", &name, e));
    (void)snprintf(a->id.name, sizeof(a->id.name), "%s", name);
    const struct json *poll = json_get(r->json, "poll_s");
    a->poll_s = json_is_int(poll, 1, LIMIT_POLL_S) ? (double)json_int(poll) : (double)LIMIT_POLL_S;
    if (!a->bulk || strcmp(a->bulk_url, bulk) != 0) {
        (void)snprintf(a->bulk_url, sizeof(a->bulk_url), "%s", bulk);
        TRY(agent_bulk(a, e));
    }
    a->hello_due = false;
    a->greeted = true;
    return ST_OK;
}

/* Until the server answers; an exit code, or -1 to go on. */
static int hello(struct agent *a)
{
    struct buf body;
    int rc = -1;
    buf_init(&body, 4096);
    hello_body(a, &body);
    transport_timeout(a->control, 30.0);
    for (int failures = 0; a->hello_due && rc < 0;) {
        struct arena *arena = arena_new(TASK_ARENA_MAX);
        struct reply r;
        struct err e = {0};
        enum status st =
            transport_call(a->control, arena, "POST", "/silo/v1/hello", body.data, &r, &e);
        st = st ? st : read_hello(a, &r, &e);
        if (st) {
            rc = r.cancelled ? EXIT_DONE : after_failure(a, &r, &e, &failures);
        }
        arena_free(arena);
    }
    buf_release(&body);
    return rc;
}

static void release(struct agent *a, const struct task *t, const char *code, const char *detail)
{
    struct arena *arena = arena_new(TASK_ARENA_MAX);
    struct buf body;
    struct reply r;
    struct err e = {0};
    buf_init(&body, 4096);
    jw_object(&body, NULL);
    jw_int(&body, "epoch", t->epoch);
    jw_str(&body, "code", code);
    jw_str(&body, "detail", detail);
    jw_end_object(&body);
    last_words = 1;
    transport_timeout(a->control, (double)PART_S);
    // Without this request the lease runs out by itself, only later.
    if (transport_call_retry(a->control, arena, "POST",
                             arena_fmt(arena, "/silo/v1/tasks/%s/release", t->id), body.data,
                             (double)PART_S, &r, &e)) {
        log_warn("the task is not given back: %s", e.msg);
    }
    last_words = 0;
    transport_timeout(a->control, 30.0);
    buf_release(&body);
    arena_free(arena);
}

static void after_task(struct agent *a, const struct task *t, struct beat *b, enum task_end end)
{
    char why[240];
    switch (end) {
    case TASK_FAILED:
        release(a, t, a->fail_code, a->fail_detail);
        break;
    case TASK_LEAVING:
        release(a, t, "shutdown", "the agent was told to stop");
        break;
    case TASK_DROPPED:
        beat_reason(b, why, sizeof(why));
        agent_say(a, "round %" PRId64 " is dropped: %s", t->round,
                  why[0] ? why : "the lease is not ours any more");
        break;
    case TASK_REFUSED:
    case TASK_LATE:
    case TASK_DONE:
    default:
        break;
    }
}

static enum status start_beat(struct agent *a, const struct task *t, struct beat **out,
                              struct err *e)
{
    struct beat_config bc = {.url = a->id.url,
                             .token = a->id.token,
                             .ca_file = a->id.ca_file,
                             .pin = a->id.pin,
                             .fresh_token = agent_fresh_token,
                             .fresh_ctx = &a->folder,
                             .task = t->id,
                             .epoch = t->epoch,
                             .heartbeat_s = t->heartbeat_s};
    return beat_start(out, &bc, e);
}

/* A newer server may ask for what this version has not: the operator hears of it, others get the
 * seat. */
static void refuse_task(struct agent *a, const struct json *doc, const char *why)
{
    struct task t;
    char text[400];
    (void)snprintf(text, sizeof(text),
                   "a task is not understood by photon-client " PHOTON_VERSION
                   ": %s; try the photon-client of the server's version",
                   why);
    log_error("%s", text);
    if (doc && task_parse_lease(&t, doc, NULL) == ST_OK) {
        release(a, &t, "bad_data", text);
    }
}

/* Takes the beat over; NULL: it has none yet. */
static void work(struct agent *a, const struct task *t, struct beat *b, struct arena *arena)
{
    struct err e = {0};
    if (!b && start_beat(a, t, &b, &e)) {
        (void)agent_fail(a, "transient", &e);
        release(a, t, a->fail_code, a->fail_detail);
        return;
    }
    enum task_end end =
        t->kind == TASK_TRAIN ? agent_train(a, t, b, arena) : agent_evaluate(a, t, b, arena);
    after_task(a, t, b, end);
    beat_stop(b, (double)PART_S);
}

static int device_is_lost(const struct agent *a)
{
    log_error("the device %s failed %d times in a row and is taken for lost; look at the driver's "
              "log, try photon-client doctor",
              a->device, a->device_failures);
    return EXIT_NO_DEVICE;
}

/* An exit code, or -1 to go on. */
static int after_work(struct agent *a)
{
    if (!a->held.there) {
        agent_doing(a, NULL, "waiting", 0);
    }
    return agent_lost_device(a) ? device_is_lost(a) : -1;
}

/* ---- a task in the hand ---- */

static enum status ask_for_task(struct agent *a, struct arena *arena, struct reply *r,
                                struct err *e)
{
    transport_timeout(a->control, a->poll_s + 15.0);
    enum status st = transport_call(
        a->control, arena, "POST", "/silo/v1/tasks/claim",
        arena_fmt(arena, "{\"agent\":\"%s\",\"wait_s\":%d}", a->boot, (int)a->poll_s), r, e);
    transport_timeout(a->control, 30.0);
    return st;
}

static void hold(struct agent *a, struct arena *arena)
{
    const struct task *t = &a->held.task;
    struct err e = {0};
    a->held.there = true;
    if (start_beat(a, t, &a->held.beat, &e)) {
        a->held.beat = NULL; // tried again when the work begins
    }
    const struct task_step *s = t->step_count > 0 ? &t->steps[t->step_count - 1] : NULL;
    const char *step =
        s ? arena_fmt(arena, "%s %" PRId64 " %s", s->sha256, s->bytes, s->base_sha256) : "";
    agent_prefetch(a, arena_fmt(arena, "%s %" PRId64, t->base_sha256, t->base_bytes), step, arena);
}

enum claim_result agent_claim_held(struct agent *a)
{
    struct arena *arena = arena_new(TASK_ARENA_MAX);
    struct reply r;
    struct err e = {0};
    enum claim_result got = CLAIM_NONE;
    if (ask_for_task(a, arena, &r, &e)) {
        a->hello_due = true; // it may be a new server, at a new bulk address
        got = CLAIM_FAILED;
    } else if (r.http == 200) {
        FAULT("claim.got");
        got = CLAIM_FAILED;
        if (r.json && task_parse(&a->held.task, r.json, &e) == ST_OK) {
            hold(a, arena);
            got = CLAIM_GOT;
        }
    } else {
        agent_prefetch(a, r.base, r.step, arena);
    }
    arena_free(arena);
    return got;
}

static int work_held(struct agent *a)
{
    struct arena *arena = arena_new(TASK_ARENA_MAX);
    struct task t = a->held.task;
    struct beat *b = a->held.beat;
    a->held.there = false;
    a->held.beat = NULL;
    work(a, &t, b, arena);
    arena_free(arena);
    return after_work(a);
}

/* On the way out. */
static void release_held(struct agent *a)
{
    if (a->held.there) {
        release(a, &a->held.task, "shutdown", "the agent was told to stop");
        beat_stop(a->held.beat, 0.0);
        a->held.there = false;
    }
}

/* ---- the loop ---- */

static void show_waiting(struct agent *a)
{
    struct progress_values v = progress_none();
    v.up_bytes = a->sent_bytes;
    v.down_bytes = a->received_bytes;
    v.note = "waiting for a task";
    progress_show(&a->progress, &v, false);
}

/* One claim and what follows from it; an exit code, or -1 to go on. */
static int turn(struct agent *a, int *failures)
{
    struct arena *arena = arena_new(TASK_ARENA_MAX);
    struct reply r;
    struct err e = {0};
    int rc = -1;
    enum status st = ask_for_task(a, arena, &r, &e);
    if (st && !r.cancelled) {
        rc = after_failure(a, &r, &e, failures);
        a->hello_due = true; // it may be a new server, at a new bulk address
    } else if (!st && r.http == 200) {
        FAULT("claim.got");
        struct task t;
        *failures = 0;
        if (!r.json || task_parse(&t, r.json, &e)) {
            refuse_task(a, r.json, r.json ? e.msg : "no JSON");
            nap(10000);
        } else {
            work(a, &t, NULL, arena);
            rc = after_work(a);
        }
    } else if (!st) {
        *failures = 0;
        show_waiting(a);
        agent_prefetch(a, r.base, r.step, arena);
    }
    arena_free(arena);
    return rc;
}

/* Another silo's token, of whoever joined anew in this folder, is not for this one's server. */
bool agent_fresh_token(void *ctx, char *out, size_t size)
{
    const struct silo_folder *f = ctx;
    struct silo_identity now;
    struct err e = {0};
    if (identity_read(f->state_dir, &now, &e) || strcmp(now.silo, f->silo) != 0) {
        return false;
    }
    (void)snprintf(out, size, "%s", now.token);
    return true;
}

static enum status open_control(struct agent *a, struct err *e)
{
    transport_close(a->control);
    a->control = NULL;
    struct transport_config c = {.url = a->id.url,
                                 .token = a->id.token,
                                 .ca_file = a->id.ca_file,
                                 .pin = a->id.pin,
                                 .fresh_token = agent_fresh_token,
                                 .fresh_ctx = &a->folder,
                                 .cancelled = is_cancelled};
    return transport_open(&a->control, &c, e);
}

/* `photon-client rotate` has put a new token into the folder: go on with that one. No task is at
 * work, so nobody else uses the connections; a held task's beat takes the token up by itself. */
static int take_up_token(struct agent *a)
{
    struct silo_identity now;
    struct err e = {0};
    if (identity_read(a->config->state_dir, &now, &e) || strcmp(now.token, a->id.token) == 0 ||
        strcmp(now.silo, a->id.silo) != 0) {
        return -1;
    }
    a->id = now;
    transport_close(a->bulk); // hello opens it anew
    a->bulk = NULL;
    a->hello_due = true;
    if (open_control(a, &e)) {
        log_error("%s", e.msg);
        return EXIT_CONFIG;
    }
    log_info("the silo has a new token");
    return -1;
}

static int loop(struct agent *a)
{
    int failures = 0;
    a->hello_due = true;
    bool first = true;
    while (!agent_stopping()) {
        int rc = take_up_token(a);
        if (rc >= 0) {
            return rc;
        }
        if (a->hello_due) {
            rc = hello(a);
            if (rc >= 0) {
                return rc;
            }
            if (first) {
                char tokens[16];
                format_count(tokens, (double)a->info.train_tokens);
                agent_say(a, "silo %s at %s: %s, %s tokens of text; waiting for a task", a->id.name,
                          a->id.url, a->device, tokens);
                first = false;
            }
            agent_doing(a, NULL, "waiting", 0);
        }
        if (!a->held.there) {
            agent_sweep(a);
        }
        rc = a->held.there ? work_held(a) : turn(a, &failures);
        if (rc >= 0) {
            return rc;
        }
    }
    return EXIT_DONE;
}

/* ---- opening ---- */

static void describe_device(struct agent *a, const struct backend *be)
{
    (void)snprintf(a->backend, sizeof(a->backend), "%s", be->ops->name);
    if (be->threads > 0) {
        (void)snprintf(a->device, sizeof(a->device), "%s, %d thread%s", be->ops->name, be->threads,
                       be->threads == 1 ? "" : "s");
    } else {
        (void)snprintf(a->device, sizeof(a->device), "%s", be->ops->name);
    }
}

static int open_parts(struct agent *a, int *lock)
{
    const struct agent_config *c = a->config;
    struct err e = {0};
    char cache[STATE_PATH_MAX];
    char steps[STATE_PATH_MAX];
    (void)snprintf(cache, sizeof(cache), "%.900s/cache", c->state_dir);
    (void)snprintf(steps, sizeof(steps), "%.900s/steps", c->state_dir);
    if (identity_read(c->state_dir, &a->id, &e)) {
        log_error("%s%s", e.msg, e.st == ST_NOT_FOUND ? "; try photon-client join first" : "");
        return EXIT_CONFIG;
    }
    a->folder.state_dir = c->state_dir;
    (void)snprintf(a->folder.silo, sizeof(a->folder.silo), "%s", a->id.silo);
    if (dir_make(cache, &e) || dir_make(steps, &e) || state_lock(c->state_dir, lock, &e) ||
        data_open(&a->data, c->sources, c->source_count, &e)) {
        log_error("%s", e.msg);
        return e.st == ST_CONFLICT ? EXIT_FAILED : EXIT_CONFIG;
    }
    data_info(a->data, &a->info);
    struct backend *be = NULL;
    if (backend_open(&be, c->device, c->threads, &e)) {
        log_error("%s; try --device auto, or photon-client doctor", e.msg);
        return EXIT_NO_DEVICE;
    }
    describe_device(a, be);
    backend_close(be);
    if (open_control(a, &e)) {
        log_error("%s", e.msg);
        return EXIT_CONFIG;
    }
    return EXIT_DONE;
}

int agent_run(const struct agent_config *c)
{
    struct agent a = {.config = c, .tokens_per_s = (double)NAN};
    uint8_t boot[16];
    random_bytes(boot, sizeof(boot));
    for (size_t i = 0; i < sizeof(boot); i++) {
        (void)snprintf(a.boot + 2 * i, 3, "%02x", boot[i]);
    }
    int lock = -1;
    catch_signals();
    progress_init(&a.progress, stderr);
    int rc = open_parts(&a, &lock);
    if (!rc) {
        read_counters(&a);
        rc = loop(&a);
        release_held(&a);
        progress_end(&a.progress);
        agent_doing(&a, NULL, "stopped", 0);
    }
    agent_ahead_drop(&a);
    trainer_close(a.trainer);
    data_close(a.data);
    transport_close(a.bulk);
    transport_close(a.control);
    if (lock >= 0) {
        (void)close(lock);
    }
    return rc;
}
