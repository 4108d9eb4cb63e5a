#include "client/solo_main.h"

#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/doctor.h"
#include "client/solo.h"
#include "client/spec_file.h"
#include "client/trainer.h"
#include "common/buf.h"
#include "common/json.h"

/* ---- shared ---- */

static volatile sig_atomic_t signals_seen;

static void on_signal(int sig)
{
    if (signals_seen) {
        _exit(128 + sig);
    }
    signals_seen = 1;
}

void solo_catch_signals(void)
{
    struct sigaction sa = {.sa_handler = on_signal};
    (void)sigaction(SIGINT, &sa, NULL);
    (void)sigaction(SIGTERM, &sa, NULL);
}

bool solo_stopping(void)
{
    return signals_seen != 0;
}

int solo_exit(enum status st)
{
    switch (st) {
    case ST_OK:
        return EXIT_DONE;
    case ST_INVALID:
    case ST_NOT_FOUND:
    case ST_CONFLICT:
        return EXIT_CONFIG;
    case ST_NOMEM:
    case ST_DEVICE:
        return EXIT_NO_DEVICE;
    case ST_RETRY:
    case ST_LIMIT:
        return EXIT_TEMPORARY;
    case ST_DENIED:
    case ST_CORRUPT:
    case ST_IO:
    case ST_DB:
    case ST_NET:
    case ST_COUNT:
        break;
    }
    return EXIT_FAILED;
}

int solo_device(const char *program, const char *text, const char *dtype, const char **out)
{
    struct err e = {0};
    *out = text;
    if (trainer_words_check(text, dtype, &e)) {
        (void)fprintf(stderr, "%s: %s\n", program, e.msg);
        return EXIT_USAGE;
    }
    return EXIT_DONE;
}

int solo_sources(const char *program, struct arena *a, const struct option_list *dirs,
                 struct data_source_arg *out)
{
    for (int i = 0; i < dirs->count; i++) {
        int rc = data_arg_parse(arena_fmt(a, "%s", dirs->items[i]), &out[i]);
        if (rc) {
            (void)fprintf(stderr, "%s: '%s' is not DIR or DIR:WEIGHT, a weight above 0\n", program,
                          dirs->items[i]);
            return rc;
        }
    }
    return EXIT_DONE;
}

/* ---- train ---- */

struct train_args {
    const char *program;
    struct option_list data;
    struct option_list eval;
    const char *dir;
    const char *device, *dtype;
    int64_t threads, steps, eval_every, save_every, log_every, windows;
    bool json, quiet, local;
};

static void print_report(const struct solo_report *r, bool json)
{
    if (!json) {
        return;
    }
    struct buf b;
    buf_init(&b, 4096);
    jw_object(&b, NULL);
    jw_int(&b, "steps", r->steps);
    jw_int(&b, "tokens", r->tokens);
    jw_num(&b, "eval_loss", r->eval_loss);
    jw_num(&b, "eval_ppl", exp(r->eval_loss));
    jw_bool(&b, "stopped", r->stopped);
    jw_end_object(&b);
    (void)printf("%s\n", b.data);
    buf_release(&b);
}

static enum status train(const struct train_args *t, const struct run_spec *spec,
                         const char *device, const struct data_source_arg *sources,
                         const struct data_source_arg *heldout, struct solo_report *r,
                         struct err *e)
{
    struct data *data = NULL;
    struct data *eval = NULL;
    TRY(data_open(&data, sources, t->data.count, e));
    enum status st = t->eval.count > 0 ? data_open(&eval, heldout, t->eval.count, e) : ST_OK;
    int64_t steps = (int64_t)spec->federation.rounds * spec->federation.local_steps;
    int64_t every = (int64_t)spec->eval.every * spec->federation.local_steps;
    struct solo_config c = {.spec = spec,
                            .data = data,
                            .heldout = eval ? eval : data,
                            .dir = t->dir,
                            .steps = t->steps > 0 ? t->steps : steps,
                            .eval_every = t->eval_every > 0 ? t->eval_every : every,
                            .log_every = t->log_every,
                            .windows = t->windows >= 0 ? t->windows : spec->eval.windows,
                            .device = device,
                            .dtype = t->dtype,
                            .threads = (int)t->threads,
                            .measure_peak = !t->quiet,
                            .quiet = t->quiet,
                            .stopping = solo_stopping};
    c.save_every = t->save_every > 0 ? t->save_every : c.eval_every;
    solo_catch_signals();
    st = st ? st : solo_train(&c, r, e);
    data_close(eval);
    data_close(data);
    return st;
}

static int run(const struct train_args *t, const char *spec_path)
{
    struct data_source_arg sources[OPTION_LIST_MAX];
    struct data_source_arg heldout[OPTION_LIST_MAX];
    struct run_spec spec;
    struct solo_report r;
    struct err e = {0};
    const char *device = NULL;
    struct arena *a = arena_new(1 << 20);
    int rc = solo_device(t->program, t->device, t->dtype, &device);
    rc = rc ? rc : solo_sources(t->program, a, &t->data, sources);
    rc = rc ? rc : solo_sources(t->program, a, &t->eval, heldout);
    if (!rc) {
        enum status st = spec_file_read(&spec, spec_path, "train", &e);
        st = st ? st : train(t, &spec, device, sources, heldout, &r, &e);
        if (st) {
            (void)fprintf(stderr, "%s: %s\n", t->program, e.msg);
            rc = solo_exit(st);
        } else {
            print_report(&r, t->json);
            rc = r.stopped ? EXIT_TEMPORARY : EXIT_DONE;
        }
    }
    arena_free(a);
    return rc;
}

int solo_main(const char *program, int argc, char **argv)
{
    struct train_args t = {
        .program = program, .device = "auto", .dtype = "auto", .log_every = 10, .windows = -1};
    const struct option_row rows[] = {
        {"data", 0, OPTION_LIST, "DIR[:WEIGHT]", NULL, &t.data, 0, 0,
         "prepared text; several are mixed by weight (required)"},
        {"output", 'o', OPTION_TEXT, "DIR", NULL, &t.dir, 0, 0,
         "checkpoints, metrics, state; a training that is there goes on (required)"},
        {"eval", 0, OPTION_LIST, "DIR", NULL, &t.eval, 0, 0,
         "whose held-out text is evaluated (default: that of --data)"},
        {"windows", 0, OPTION_INT, "N", NULL, &t.windows, 0, 1e9,
         "held-out sequences per evaluation, 0 all (default: the spec's eval.windows)"},
        {"steps", 0, OPTION_INT, "N", NULL, &t.steps, 1, 1e12,
         "steps in all (default: the spec's rounds x local_steps)"},
        {"eval-every", 0, OPTION_INT, "N", NULL, &t.eval_every, 1, 1e12,
         "steps (default: local_steps x eval.every)"},
        {"save-every", 0, OPTION_INT, "N", NULL, &t.save_every, 1, 1e12,
         "steps between two checkpoints (default: as evaluations)"},
        {"log-every", 0, OPTION_INT, "N", NULL, &t.log_every, 1, 1e12,
         "steps between two lines of metrics.jsonl (default 10)"},
        {"local", 0, OPTION_FLAG, NULL, NULL, &t.local, 0, 0,
         "on this machine alone; it is what train does, said aloud"},
        TRAIN_ROWS(&t),
        {0}};
    struct command_line c = {
        .program = program,
        .args = "SPEC --data DIR -o DIR",
        .about =
            "Train a run spec's model on this machine alone, without a server: the silos' own\n"
            "trainer, as the centralized baseline of a federation. The first Ctrl-C keeps what\n"
            "was done; the same command goes on from there.",
        .examples =
            "  photon train spec.json --data data/books -o runs/books\n"
            "  photon train spec.json --data news:2 --data web:1 -o runs/mix --device cuda:0",
        .rows = rows,
        .args_min = 1,
        .args_max = 1};
    const char *spec = NULL;
    enum options_end end = options_parse(&c, argc, argv, &spec, NULL);
    if (end) {
        return end == OPTIONS_DONE ? EXIT_DONE : EXIT_USAGE;
    }
    if (t.dir) {
        trainer_choices_in(t.dir);
    }
    if (t.data.count == 0 || !t.dir) {
        (void)fprintf(stderr, "%s: needs --data DIR and -o DIR\n", program);
        return EXIT_USAGE;
    }
    return run(&t, spec);
}
