#include "client/cli/watch.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "client/progress.h"
#include "common/buf.h"
#include "common/clock.h"

enum { POLL_MS = 1000, SLICE_MS = 200, ROUNDS_MAX = 50, ARENA_MAX = 64 * 1024 * 1024 };

struct follow {
    const struct watch *w;
    struct progress progress;
    int64_t seen; /* newest closed round that was printed; -1: none yet */
    int64_t heard_ms;
};

static bool stopped(const struct watch *w)
{
    return w->stop && w->stop(w->ctx);
}

static struct progress_values round_values(const struct json *run, const struct json *round)
{
    struct progress_values v = progress_none();
    v.round = api_integer(round, "number", -1);
    v.rounds = api_integer(run, "rounds", -1);
    v.loss = api_number(round, "train_loss");
    v.ppl = api_number(round, "eval_ppl");
    double seconds = api_number(round, "seconds");
    double tokens = api_number(round, "tokens");
    v.tokens_per_s = seconds > 0.0 ? tokens / seconds : (double)NAN;
    v.up_bytes = api_integer(round, "upload_bytes", -1);
    v.down_bytes = api_integer(round, "download_bytes", -1);
    v.eta_s = api_number(run, "eta_s");
    return v;
}

static void say_round(struct follow *f, const struct json *run, const struct json *round)
{
    struct api *api = f->w->api;
    if (f->w->round) {
        f->w->round(f->w->ctx, round);
    }
    if (api->json) {
        api_print_json(api, round);
        return;
    }
    char text[240];
    struct progress_values v = round_values(run, round);
    char took[48];
    char seconds[16];
    format_seconds(seconds, api_number(round, "seconds"));
    (void)snprintf(took, sizeof(took), "took %s, %" PRId64 " of %" PRId64 " silos", seconds,
                   api_integer(round, "accepted", 0), api_integer(round, "silos_expected", 0));
    v.note = isfinite(api_number(round, "seconds")) ? took : NULL;
    if (f->progress.redraw) {
        progress_line(text, sizeof(text), &v);
    } else {
        progress_pairs(text, sizeof(text), &v);
    }
    progress_say(&f->progress, text);
}

/* A closed round is shown once its evaluation is in, or the next has closed too. */
static bool complete(const struct json *round, int64_t newest, bool over)
{
    return isfinite(api_number(round, "eval_ppl")) || over ||
           api_integer(round, "number", 0) + 1 < newest;
}

static bool is_closed(const struct json *round)
{
    return strcmp(api_text(round, "state", ""), "closed") == 0;
}

static void say_rounds(struct follow *f, const struct json *run, const struct json *items,
                       bool over)
{
    int count = items && json_kind(items) == JSON_ARRAY ? json_len(items) : 0;
    int64_t newest = api_integer(run, "round", 0);
    for (int i = count - 1; i >= 0; i--) { // newest first as it comes: print oldest first
        const struct json *round = json_at(items, i);
        int64_t n = api_integer(round, "number", -1);
        if (!is_closed(round) || n <= f->seen) {
            continue;
        }
        if (!complete(round, newest, over)) {
            return;
        }
        say_round(f, run, round);
        f->seen = n;
    }
}

/* How far the live round's training is: the mean over its silos. */
static void add_steps(struct follow *f, struct arena *a, struct progress_values *v)
{
    struct reply r;
    struct err unused = {0};
    const char *path = arena_fmt(a, "/api/v1/runs/%s/rounds/%" PRId64, f->w->run, v->round);
    if (transport_call(f->w->api->transport, a, "GET", path, NULL, &r, &unused) || !r.json) {
        return;
    }
    const struct json *tasks = json_get(r.json, "tasks");
    int count = tasks && json_kind(tasks) == JSON_ARRAY ? json_len(tasks) : 0;
    int64_t done = 0;
    int64_t all = 0;
    int64_t silos = 0;
    for (int i = 0; i < count; i++) {
        const struct json *t = json_at(tasks, i);
        int64_t steps = api_integer(t, "steps", 0);
        if (strcmp(api_text(t, "kind", ""), "train") == 0 && steps > 0) {
            bool whole = strcmp(api_text(t, "state", ""), "done") == 0;
            done += whole ? steps : api_integer(t, "step", 0);
            all += steps;
            silos++;
        }
    }
    if (silos > 0) {
        v->step = done / silos;
        v->steps = all / silos;
    }
}

static void show_live(struct follow *f, struct arena *a, const struct json *run)
{
    if (f->w->api->json || f->w->api->quiet) {
        return;
    }
    struct progress_values v = progress_none();
    const struct json *live = json_get(run, "live_round");
    char note[120];
    const char *waiting = api_text(run, "waiting_for", NULL);
    const char *state = api_text(run, "state", "");
    v.rounds = api_integer(run, "rounds", -1);
    v.round = api_integer(run, "round", 0);
    v.ppl = api_number(run, "eval_ppl");
    v.eta_s = api_number(run, "eta_s");
    (void)snprintf(note, sizeof(note), "%s", state);
    if (live && json_kind(live) == JSON_OBJECT) {
        v.round = api_integer(live, "number", v.round);
        v.loss = api_number(live, "train_loss");
        (void)snprintf(note, sizeof(note), "%s, %" PRId64 " of %" PRId64 " updates in",
                       api_text(live, "state", ""), api_integer(live, "accepted", 0),
                       api_integer(live, "silos_expected", 0));
        add_steps(f, a, &v);
    }
    if (waiting) {
        (void)snprintf(note, sizeof(note), "waiting for %s", waiting);
    }
    v.note = note;
    progress_show(&f->progress, &v, false);
}

static bool is_over(const char *state)
{
    return strcmp(state, "finished") == 0 || strcmp(state, "failed") == 0 ||
           strcmp(state, "stopped") == 0;
}

static void say_end(struct follow *f, const struct json *run, const char *state)
{
    struct api *api = f->w->api;
    const char *reason = api_text(run, "reason", NULL);
    if (api->json) {
        struct buf b;
        buf_init(&b, 8192);
        jw_object(&b, NULL);
        jw_bool(&b, "terminal", true);
        jw_str(&b, "run", api_text(run, "id", f->w->run));
        jw_str(&b, "state", state);
        jw_str(&b, "reason", reason);
        jw_int(&b, "round", api_integer(run, "round", 0));
        jw_num(&b, "eval_loss", api_number(run, "eval_loss"));
        jw_num(&b, "eval_ppl", api_number(run, "eval_ppl"));
        jw_end_object(&b);
        (void)printf("%s\n", b.data);
        (void)fflush(stdout);
        buf_release(&b);
        return;
    }
    char text[240];
    (void)snprintf(text, sizeof(text), "run %s is %s after %" PRId64 " of %" PRId64 " rounds%s%s",
                   api_text(run, "name", f->w->run), state, api_integer(run, "round", 0),
                   api_integer(run, "rounds", 0), reason ? ": " : "", reason ? reason : "");
    progress_say(&f->progress, text);
}

/* One look at the run. *rc is set when it is over. */
static enum status look(struct follow *f, struct arena *a, bool *over, int *rc, struct reply *r,
                        struct err *e)
{
    struct api *api = f->w->api;
    TRY(transport_call(api->transport, a, "GET", arena_fmt(a, "/api/v1/runs/%s", f->w->run), NULL,
                       r, e));
    const struct json *run = r->json;
    if (!run) {
        return err_set(e, ST_CORRUPT, "the server's answer is not JSON");
    }
    const char *state = api_text(run, "state", "");
    // The last evaluation may come a moment after the last round has closed.
    bool last_eval = api_integer(run, "round", 0) < 1 || isfinite(api_number(run, "eval_ppl"));
    *over = is_over(state);
    struct reply list;
    TRY(transport_call(api->transport, a, "GET",
                       arena_fmt(a, "/api/v1/runs/%s/rounds?limit=%d", f->w->run, ROUNDS_MAX), NULL,
                       &list, e));
    say_rounds(f, run, list.json ? json_get(list.json, "items") : NULL, *over && last_eval);
    if (!*over) {
        show_live(f, a, run);
        return ST_OK;
    }
    *rc = strcmp(state, "finished") == 0 ? EXIT_DONE : EXIT_FAILED;
    say_end(f, run, state);
    return ST_OK;
}

static bool silent_too_long(struct follow *f, const struct err *e)
{
    double quiet_s = f->w->quiet_s > 0.0 ? f->w->quiet_s : 60.0;
    if ((double)(clock_mono_ms() - f->heard_ms) / 1000.0 < quiet_s) {
        return false;
    }
    progress_end(&f->progress);
    (void)fprintf(stderr, "photon: %s\n", e->msg);
    return true;
}

int watch_run(const struct watch *w)
{
    struct follow f = {.w = w, .seen = -1, .heard_ms = clock_mono_ms()};
    progress_init(&f.progress, w->api->json ? stderr : stdout);
    int rc = EXIT_TEMPORARY;
    for (bool over = false; !over && !stopped(w);) {
        struct arena *a = arena_new(ARENA_MAX);
        struct err e = {0};
        struct reply r;
        struct api at = *w->api;
        struct watch inner = *w;
        at.arena = a; // a long watch must not grow: what one look reads goes with its arena
        inner.api = &at;
        f.w = &inner;
        enum status st = look(&f, a, &over, &rc, &r, &e);
        if (!st) {
            f.heard_ms = clock_mono_ms();
        } else if (!retry_allowed(r.http)) {
            progress_end(&f.progress);
            (void)fprintf(stderr, "photon: %s\n", e.msg);
            rc = api_exit_code(&r, st);
            over = true;
        } else if (silent_too_long(&f, &e)) {
            rc = EXIT_UNREACHABLE;
            over = true;
        }
        f.w = w;
        arena_free(a);
        for (int ms = 0; !over && ms < POLL_MS && !stopped(w); ms += SLICE_MS) {
            clock_sleep_ms(SLICE_MS);
        }
    }
    progress_end(&f.progress);
    return rc;
}
