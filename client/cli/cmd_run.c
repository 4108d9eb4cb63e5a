/*
 * photon run: submit a run, look at it, watch it, pause it, fetch its checkpoints.
 */
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "client/cli/api.h"
#include "client/cli/cmd.h"
#include "client/cli/submit.h"
#include "client/cli/watch.h"
#include "client/progress.h"
#include "client/spec_edit.h"
#include "common/json.h"
#include "common/limits.h"

static const char *number_text(char out[16], double v)
{
    (void)snprintf(out, 16, isfinite(v) ? "%.4g" : "-", v);
    return out;
}

static bool print_summary(void *ctx, const struct json *r)
{
    struct api *api = ctx;
    if (api->json) {
        api_print_json(api, r);
        return true;
    }
    char ppl[16];
    char tokens[16];
    format_count(tokens, (double)api_integer(r, "tokens", 0));
    (void)printf("%-28s  %-20s %-9s round %3" PRId64 "/%-4" PRId64
                 " ppl %-8s %7s tokens  silos %" PRId64 "/%" PRId64 "\n",
                 api_text(r, "id", "?"), api_text(r, "name", "?"), api_text(r, "state", "?"),
                 api_integer(r, "round", 0), api_integer(r, "rounds", 0),
                 number_text(ppl, api_number(r, "eval_ppl")), tokens,
                 api_integer(r, "silos_live", 0), api_integer(r, "silos_per_round", 0));
    return true;
}

static int list(int argc, char **argv)
{
    struct api_options o = {0};
    const char *state = NULL;
    const struct option_row rows[] = {
        {"state", 0, OPTION_TEXT, "STATE", NULL, &state, 0, 0, "only running, paused, finished, …"},
        API_ROWS(&o),
        {0}};
    struct command_line c = {.program = "photon run list",
                             .about = "Runs, newest first.",
                             .examples = "  photon run list --state running\n"
                                         "  photon run list --json",
                             .rows = rows};
    struct api api;
    int rc = EXIT_DONE;
    if (api_begin(&api, &c, &o, argc, argv, NULL, &rc)) {
        const char *path =
            state ? arena_fmt(api.arena, "/api/v1/runs?state=%s", state) : "/api/v1/runs";
        rc = api_list(&api, path, print_summary, &api);
        api_close(&api);
    }
    return rc;
}

/* What the simple verbs share: one argument, a server, a run that exists. */
static bool open_run(int argc, char **argv, const char *about, const struct option_row *rows,
                     struct api_options *o, struct api *api, const char **id, int *rc)
{
    char program[48];
    (void)snprintf(program, sizeof(program), "photon run %s", argv[0]);
    struct command_line c = {.program = program,
                             .args = "RUN",
                             .about = about,
                             .rows = rows,
                             .args_min = 1,
                             .args_max = 1};
    const char *word = NULL;
    if (!api_begin(api, &c, o, argc, argv, &word, rc)) {
        return false;
    }
    *rc = api_find(api, "run", word, id);
    if (*rc) {
        api_close(api);
    }
    return *rc == EXIT_DONE;
}

static void print_run(struct api *api, const struct json *r)
{
    (void)print_summary(api, r);
    if (api->json) {
        return;
    }
    char a[16];
    char b[16];
    char up[16];
    char down[16];
    format_bytes(up, api_integer(r, "upload_bytes", 0));
    format_bytes(down, api_integer(r, "download_bytes", 0));
    (void)printf("  parameters %" PRId64 ", loss %s (first %s), uploaded %s, downloaded %s\n",
                 api_integer(r, "params", 0), number_text(a, api_number(r, "eval_loss")),
                 number_text(b, api_number(r, "initial_eval_loss")), up, down);
    const struct json *parent = json_get(r, "parent");
    if (parent && json_kind(parent) == JSON_OBJECT) {
        (void)printf("  forked from %s at checkpoint %" PRId64 "\n", api_text(parent, "name", "?"),
                     api_integer(parent, "checkpoint", 0));
    }
    const char *waiting = api_text(r, "waiting_for", NULL);
    const char *reason = api_text(r, "reason", NULL);
    if (waiting) {
        (void)printf("  waiting for %s\n", waiting);
    }
    if (reason) {
        (void)printf("  %s\n", reason);
    }
}

/* A simple verb: one request about the run, at its address + path, and its answer to print. */
static int ask(int argc, char **argv, const char *about, const char *method, const char *path,
               const char *body, void (*print)(struct api *, const struct json *))
{
    struct api_options o = {0};
    const struct option_row rows[] = {API_ROWS(&o), {0}};
    struct api api;
    const char *id = NULL;
    int rc = EXIT_DONE;
    if (!open_run(argc, argv, about, rows, &o, &api, &id, &rc)) {
        return rc;
    }
    struct reply r;
    rc = api_call(&api, method, arena_fmt(api.arena, "/api/v1/runs/%s%s", id, path), body, &r);
    if (!rc) {
        print(&api, r.json);
    }
    api_close(&api);
    return rc;
}

static int show(int argc, char **argv)
{
    return ask(argc, argv, "One run in full; RUN is its name or id.", "GET", "", NULL, print_run);
}

static int spec(int argc, char **argv)
{
    return ask(argc, argv, "The run's spec with every default written out.", "GET", "/spec", NULL,
               api_print_json);
}

static void print_line(struct api *api, const struct json *r)
{
    (void)print_summary(api, r);
}

static int act(int argc, char **argv)
{
    char body[64];
    (void)snprintf(body, sizeof(body), "{\"action\":\"%s\"}", argv[0]);
    return ask(argc, argv, "Change a run's state; RUN is its name or id.", "POST", "/actions", body,
               print_line);
}

/* ---- fork ---- */

static const char *fork_body(struct arena *a, int64_t checkpoint, const char *name,
                             const struct option_list *sets, struct err *e)
{
    const char *spec = NULL;
    if (spec_edit(a, "{}", sets->items, sets->count, &spec, e)) {
        return NULL;
    }
    struct buf b;
    buf_init(&b, LIMIT_CONTROL_BODY);
    jw_object(&b, NULL);
    if (checkpoint >= 0) {
        jw_int(&b, "checkpoint", checkpoint);
    }
    if (name) {
        jw_str(&b, "name", name);
    }
    jw_raw(&b, "spec", spec);
    jw_end_object(&b);
    const char *body = b.full ? NULL : arena_fmt(a, "%s", b.data);
    if (b.full) {
        (void)err_set(e, ST_LIMIT, "the changes are over %d bytes", LIMIT_CONTROL_BODY);
    }
    buf_release(&b);
    return body;
}

static void print_fork(struct api *api, const struct json *r)
{
    if (api->json) {
        api_print_json(api, r);
        return;
    }
    const struct json *parent = json_get(r, "parent");
    (void)printf("%s\n", api_text(r, "id", "?"));
    if (!api->quiet && parent) {
        (void)fprintf(stderr, "run %s begins with checkpoint %" PRId64 " of %s\n",
                      api_text(r, "name", "?"), api_integer(parent, "checkpoint", 0),
                      api_text(parent, "name", "?"));
    }
}

static int fork_run(int argc, char **argv)
{
    struct api_options o = {0};
    int64_t checkpoint = -1;
    const char *name = NULL;
    struct option_list sets = {0};
    const struct option_row rows[] = {
        {"checkpoint", 'n', OPTION_INT, "N", NULL, &checkpoint, 0, 1e9, "default the newest"},
        {"name", 0, OPTION_TEXT, "NAME", NULL, &name, 0, 0, "of the new run; default one is drawn"},
        {"set", 0, OPTION_LIST, "KEY=VALUE", NULL, &sets, 0, 0, "change one key: inner.lr=0.0003"},
        API_ROWS(&o),
        {0}};
    struct command_line c = {
        .program = "photon run fork",
        .args = "RUN",
        .about = "Start a run that begins with a checkpoint of RUN. It has RUN's spec but for what "
                 "--set changes;\nmodel and tokenizer stay. The outer state goes along where the "
                 "outer optimizer is the same.",
        .examples = "  photon run fork tiny-1\n"
                    "  photon run fork tiny-1 --checkpoint 12 --name tiny-1b --set inner.lr=0.0003",
        .rows = rows,
        .args_min = 1,
        .args_max = 1};
    const char *word = NULL;
    struct api api;
    int rc = EXIT_DONE;
    if (!api_begin(&api, &c, &o, argc, argv, &word, &rc)) {
        return rc;
    }
    const char *id = NULL;
    struct err e = {0};
    struct reply r;
    const char *body = fork_body(api.arena, checkpoint, name, &sets, &e);
    if (!body) {
        (void)fprintf(stderr, "photon: %s\n", e.msg);
        rc = EXIT_USAGE;
    }
    rc = rc ? rc : api_find(&api, "run", word, &id);
    rc = rc ? rc
            : api_call(&api, "POST", arena_fmt(api.arena, "/api/v1/runs/%s/fork", id), body, &r);
    if (!rc) {
        print_fork(&api, r.json);
    }
    api_close(&api);
    return rc;
}

static volatile sig_atomic_t interrupted;

static void on_signal(int sig)
{
    interrupted = sig;
}

static bool is_interrupted(void *ctx)
{
    (void)ctx;
    return interrupted != 0;
}

static int watch(int argc, char **argv)
{
    struct api_options o = {0};
    const struct option_row rows[] = {API_ROWS(&o), {0}};
    struct api api;
    const char *id = NULL;
    int rc = EXIT_DONE;
    if (!open_run(argc, argv,
                  "Follow a run until it ends: exit 0 when it finished, 1 when it failed or was "
                  "stopped.\nCtrl-C ends the watching, not the run.",
                  rows, &o, &api, &id, &rc)) {
        return rc;
    }
    struct sigaction sa = {.sa_handler = on_signal};
    (void)sigaction(SIGINT, &sa, NULL);
    (void)sigaction(SIGTERM, &sa, NULL);
    struct watch w = {.api = &api, .run = id, .stop = is_interrupted};
    rc = watch_run(&w);
    api_close(&api);
    return interrupted ? 128 + (int)interrupted : rc;
}

/* ---- checkpoint download ---- */

static int newest_checkpoint(struct api *api, const char *id, int64_t want, const struct json **out)
{
    struct reply r;
    int rc = EXIT_DONE;
    if (want >= 0) {
        rc = api_call(api, "GET",
                      arena_fmt(api->arena, "/api/v1/runs/%s/checkpoints/%" PRId64, id, want), NULL,
                      &r);
        *out = r.json;
        return rc;
    }
    rc = api_call(api, "GET", arena_fmt(api->arena, "/api/v1/runs/%s/checkpoints?limit=1", id),
                  NULL, &r);
    const struct json *items = !rc && r.json ? json_get(r.json, "items") : NULL;
    *out = items && json_kind(items) == JSON_ARRAY ? json_at(items, 0) : NULL;
    if (!rc && !*out) {
        (void)fprintf(stderr, "photon: the run has no checkpoint yet\n");
        rc = EXIT_FAILED;
    }
    return rc;
}

static int fetch_checkpoint(struct api *api, const struct json *ckpt, const char *file)
{
    struct digest digest;
    struct err e = {0};
    const char *url = api_text(ckpt, "url", "");
    if (digest_parse(&digest, api_text(ckpt, "sha256", ""), &e) || url[0] != '/') {
        (void)fprintf(stderr, "photon: the server's answer is not a checkpoint\n");
        return EXIT_VERSION;
    }
    struct download d = {
        .path = url, .file = file, .digest = &digest, .bytes = api_integer(ckpt, "bytes", -1)};
    enum status st = ST_OK;
    struct reply r;
    for (int attempt = 0; attempt < 5; attempt++) { // each goes on from what the last one left
        st = transport_download(api->transport, api->arena, &d, &r, &e);
        if (!st || (st != ST_NET && st != ST_RETRY)) {
            break;
        }
        (void)fprintf(stderr, "photon: %s; going on\n", e.msg);
    }
    if (st) {
        (void)fprintf(stderr, "photon: %s\n", e.msg);
        return r.http || st == ST_NET ? api_exit_code(&r, st) : EXIT_FAILED;
    }
    return EXIT_DONE;
}

static int checkpoint_download(int argc, char **argv)
{
    struct api_options o = {0};
    int64_t number = -1;
    const char *file = NULL;
    const struct option_row rows[] = {
        {"number", 'n', OPTION_INT, "N", NULL, &number, 0, 1e9, "which one; default the newest"},
        {"output", 'o', OPTION_TEXT, "FILE", NULL, &file, 0, 0, "default RUN-N.safetensors"},
        API_ROWS(&o),
        {0}};
    struct command_line c = {
        .program = "photon run checkpoint download",
        .args = "RUN",
        .about = "Fetch a checkpoint's weights as safetensors; a broken download is resumed, the "
                 "digest is checked.",
        .examples = "  photon run checkpoint download tiny-1\n"
                    "  photon run checkpoint download tiny-1 -n 12 -o model.safetensors",
        .rows = rows,
        .args_min = 1,
        .args_max = 1};
    const char *word = NULL;
    struct api api;
    int rc = EXIT_DONE;
    if (!api_begin(&api, &c, &o, argc, argv, &word, &rc)) {
        return rc;
    }
    const char *id = NULL;
    const struct json *ckpt = NULL;
    rc = api_find(&api, "run", word, &id);
    rc = rc ? rc : newest_checkpoint(&api, id, number, &ckpt);
    if (!rc) {
        if (!file) {
            file = arena_fmt(api.arena, "%s-%" PRId64 ".safetensors", word,
                             api_integer(ckpt, "number", 0));
        }
        rc = fetch_checkpoint(&api, ckpt, file);
    }
    if (!rc && api.json) {
        api_print_json(&api, ckpt);
    } else if (!rc) {
        (void)printf("%s  %s\n", api_text(ckpt, "sha256", ""), file);
    }
    api_close(&api);
    return rc;
}

const struct cmd cmds_run[] = {{"run", "submit", "start a run from a spec", run_submit},
                               {"run", "list", "runs, newest first", list},
                               {"run", "show", "one run", show},
                               {"run", "watch", "follow a run until it ends", watch},
                               {"run", "pause", "no new rounds; the live one is completed", act},
                               {"run", "resume", "let a paused run go on", act},
                               {"run", "stop", "end a run for good; its checkpoints stay", act},
                               {"run", "fork", "a new run from a checkpoint of one", fork_run},
                               {"run", "spec", "the spec with every default written out", spec},
                               {"run", "checkpoint download", "fetch weights", checkpoint_download},
                               {0}};
