/*
 * photon sim: a federation of virtual silos on this machine.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/cli/cmd.h"
#include "client/cli/sim.h"
#include "client/doctor.h"
#include "client/mix.h"
#include "client/solo_main.h"
#include "client/spec_file.h"
#include "common/json.h"
#include "common/limits.h"
#include "common/mem.h"

enum { WORDS_MAX = 256 };

static const double SPEED_MIN = 1e-3;
static const double SPEED_MAX = 1e12; // tokens per second

struct sim_args {
    struct option_list silos;   // [NAME=]DIR[:WEIGHT][,DIR...]
    struct option_list sources; // DIR
    struct option_list eval;
    const char *words[WORDS_MAX]; // the spec, then more of the last list
    int word_count;
    const char *dir, *mix, *speeds, *device, *dtype;
    int64_t count, threads, windows;
    double drop;
    bool json, quiet;
};

static const char PROGRAM[] = "photon sim";

/* ---- silos ---- */

static enum status bad_silo(const char *text, struct err *e)
{
    return err_set(e, ST_INVALID,
                   "'%.100s' is no silo; try NAME=DIR, or NAME=DIR:WEIGHT,DIR:WEIGHT", text);
}

/* What the spec of a silo allows to be called one. */
static bool good_name(const char *s, size_t len)
{
    bool ok = len > 0 && len < sizeof(((struct sim_silo *)0)->name) && *s != '.' && *s != '-';
    for (size_t i = 0; i < len; i++) {
        ok = ok && (strchr("abcdefghijklmnopqrstuvwxyz0123456789._-", s[i]) != NULL);
    }
    return ok;
}

/* NAME=DIR[:WEIGHT][,DIR[:WEIGHT]...]; without NAME= the last part of the first DIR is the name. */
static enum status open_named(struct arena *a, const char *text, struct sim_silo *out,
                              struct err *e)
{
    char *copy = arena_fmt(a, "%s", text);
    char *list = strchr(copy, '=');
    struct data_source_arg sources[OPTION_LIST_MAX];
    int count = 0;
    list = list ? list + 1 : copy;
    char *rest = NULL;
    for (char *p = strtok_r(list, ",", &rest); p && count < OPTION_LIST_MAX;
         p = strtok_r(NULL, ",", &rest)) {
        if (data_arg_parse(p, &sources[count++])) {
            return bad_silo(text, e);
        }
    }
    if (count == 0) {
        return bad_silo(text, e);
    }
    const char *name = copy;
    size_t len = list == copy ? 0 : (size_t)(list - 1 - copy);
    if (list == copy) {
        len = strlen(sources[0].dir);
        while (len > 1 && sources[0].dir[len - 1] == '/') {
            len--;
        }
        size_t start = len;
        while (start > 0 && sources[0].dir[start - 1] != '/') {
            start--;
        }
        name = sources[0].dir + start;
        len -= start;
    }
    if (!good_name(name, len)) {
        return err_set(e, ST_INVALID, "'%.*s' is no silo's name: a-z 0-9 . _ - are; try NAME=DIR",
                       (int)(len < 80 ? len : 80), name);
    }
    (void)snprintf(out->name, sizeof(out->name), "%.*s", (int)len, name);
    return data_open(&out->data, sources, count, e);
}

/* Silo k of the mix: the sources it has a share of. */
static enum status open_mixed(const struct sim_args *s, const struct mix *m, uint64_t seed, int k,
                              struct sim_silo *out, struct err *e)
{
    double shares[OPTION_LIST_MAX];
    struct data_source_arg sources[OPTION_LIST_MAX];
    int count = 0;
    mix_shares(m, seed, k, s->sources.count, shares);
    for (int i = 0; i < s->sources.count; i++) {
        if (shares[i] > 0.0) {
            sources[count++] = (struct data_source_arg){s->sources.items[i], shares[i]};
        }
    }
    (void)snprintf(out->name, sizeof(out->name), "silo-%02d", k);
    return data_open(&out->data, sources, count, e);
}

static int by_name(const void *a, const void *b)
{
    const struct sim_silo *x = a;
    const struct sim_silo *y = b;
    return strcmp(x->name, y->name);
}

/* RATE,RATE,...: one of each silo, in the order in which they were given. */
static enum status take_speeds(const char *text, struct sim_silo *silos, int count, struct err *e)
{
    const char *p = text;
    for (int k = 0; k < count; k++) {
        char *end = NULL;
        double v = strtod(p, &end);
        bool last = k == count - 1;
        if (end == p || *end != (last ? '\0' : ',') || !(v >= SPEED_MIN && v <= SPEED_MAX)) {
            return err_set(e, ST_INVALID,
                           "--speeds '%.80s' does not say a speed above 0 for each of %d silos; "
                           "try tokens per second in their order, as 1000,400,400",
                           text, count);
        }
        silos[k].speed = v;
        p = end + 1;
    }
    return ST_OK;
}

static enum status open_silos(const struct sim_args *s, const struct run_spec *spec,
                              struct arena *a, struct sim_silo *out, int count, struct err *e)
{
    struct mix m = {.kind = MIX_IID};
    if (s->sources.count > 0) {
        TRY(mix_parse(&m, s->mix, e));
    }
    for (int k = 0; k < count; k++) {
        TRY(s->sources.count > 0 ? open_mixed(s, &m, spec->seed, k, &out[k], e)
                                 : open_named(a, s->silos.items[k], &out[k], e));
        out[k].ordinal = inner_silo_ordinal(out[k].name);
    }
    if (s->speeds) {
        TRY(take_speeds(s->speeds, out, count, e));
    }
    qsort(out, (size_t)count, sizeof(*out), by_name);
    for (int k = 1; k < count; k++) {
        if (strcmp(out[k - 1].name, out[k].name) == 0) {
            return err_set(e, ST_INVALID, "two silos are called '%s'; try NAME=DIR", out[k].name);
        }
    }
    return ST_OK;
}

/* ---- running ---- */

static void print_report(const struct sim_report *r)
{
    struct buf b;
    buf_init(&b, 4096);
    jw_object(&b, NULL);
    jw_int(&b, "round", r->round);
    jw_str(&b, "sha256", r->sha256);
    jw_int(&b, "tokens", r->tokens);
    jw_int(&b, "upload_bytes", r->upload_bytes);
    jw_int(&b, "download_bytes", r->download_bytes);
    jw_num(&b, "eval_loss", r->eval_loss);
    jw_num(&b, "eval_ppl", exp(r->eval_loss));
    jw_end_object(&b);
    (void)printf("%s\n", b.data);
    buf_release(&b);
}

static enum status simulate(const struct sim_args *s, const struct run_spec *spec,
                            const char *device, struct sim_silo *silos, int count,
                            const struct data_source_arg *heldout, struct err *e)
{
    struct data *eval = NULL;
    struct sim_report r = {0};
    enum status st = s->eval.count > 0 ? data_open(&eval, heldout, s->eval.count, e) : ST_OK;
    struct sim_config c = {.spec = spec,
                           .silos = silos,
                           .silo_count = count,
                           .eval = eval,
                           .windows = s->windows,
                           .drop = s->drop,
                           .dir = s->dir,
                           .device = device,
                           .dtype = s->dtype,
                           .threads = (int)s->threads,
                           .aggregate_threads = 1,
                           .quiet = s->quiet,
                           .stopping = solo_stopping};
    solo_catch_signals();
    st = st ? st : sim_run(&c, &r, e);
    data_close(eval);
    if (!st && s->json) {
        print_report(&r);
    } else if (!st && !s->quiet) {
        (void)fprintf(stderr, "checkpoint %" PRId32 " is %s\n", r.round, r.sha256);
    }
    return st;
}

static int run(const struct sim_args *s)
{
    struct data_source_arg heldout[OPTION_LIST_MAX];
    struct run_spec spec;
    struct err e = {0};
    const char *device = NULL;
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    int count = s->sources.count > 0 ? (int)s->count : s->silos.count;
    struct sim_silo *silos = mem_alloc((size_t)(count + 1) * sizeof(*silos));
    int rc = solo_device(PROGRAM, s->device, s->dtype, &device);
    rc = rc ? rc : solo_sources(PROGRAM, a, &s->eval, heldout);
    if (!rc) {
        enum status st = spec_file_read(&spec, s->words[0], "sim", &e);
        if (!st && s->sources.count > 0 && s->count == 0) {
            st = err_set(&e, ST_INVALID, "how many silos mix the sources? try --count 4");
        }
        st = st ? st : open_silos(s, &spec, a, silos, count, &e);
        st = st ? st : simulate(s, &spec, device, silos, count, heldout, &e);
        if (st) {
            (void)fprintf(stderr, "%s: %s\n", PROGRAM, e.msg);
            rc = solo_exit(st);
        }
    }
    for (int k = 0; k < count; k++) {
        data_close(silos[k].data);
    }
    mem_free(silos);
    arena_free(a);
    return rc;
}

static int sim(int argc, char **argv)
{
    struct sim_args s = {.mix = "iid", .device = "auto", .dtype = "auto"};
    const struct option_row rows[] = {
        {"silos", 0, OPTION_LIST, "[NAME=]DIR", NULL, &s.silos, 0, 0,
         "a silo's prepared text; several, each with DIR[:WEIGHT],DIR[:WEIGHT]"},
        {"sources", 0, OPTION_LIST, "DIR", NULL, &s.sources, 0, 0,
         "instead: text that --count silos share by --mix"},
        {"count", 0, OPTION_INT, "N", NULL, &s.count, 1, LIMIT_SILOS, "silos that share sources"},
        {"mix", 0, OPTION_TEXT, "HOW", NULL, &s.mix, 0, 0,
         "iid (default), genre (one source each), dirichlet:ALPHA"},
        {"drop", 0, OPTION_NUM, "SHARE", NULL, &s.drop, 0, 0.999,
         "of seats whose update never comes, drawn from the seed"},
        {"speeds", 0, OPTION_TEXT, "RATE,...", NULL, &s.speeds, 0, 0,
         "tokens per second of each silo, in their order, for local_steps_policy dylu"},
        {"eval", 0, OPTION_LIST, "DIR", NULL, &s.eval, 0, 0,
         "evaluate on the held-out text of these instead of each silo's own"},
        {"windows", 0, OPTION_INT, "N", NULL, &s.windows, 0, 1e9,
         "sequences of --eval per evaluation, spread over it (default 0: all)"},
        {"output", 'o', OPTION_TEXT, "DIR", NULL, &s.dir, 0, 0,
         "checkpoints, metrics, state; a simulation that is there goes on (required)"},
        TRAIN_ROWS(&s),
        {0}};
    struct command_line c = {
        .program = PROGRAM,
        .args = "SPEC --silos DIR... -o DIR",
        .about =
            "Play a whole federation in one process: the aggregator's own rules and sums, silos\n"
            "that train as photon-client does, one after the other; no network, no database. The\n"
            "checkpoints are those of the real thing, byte for byte. Ctrl-C and the same command\n"
            "again go on after the last whole round.",
        .examples = "  photon sim spec.json --silos data/a data/b data/c -o sims/abc\n"
                    "  photon sim spec.json --sources data/news data/web --count 8 --mix "
                    "dirichlet:0.3 --drop 0.1 -o sims/mix",
        .rows = rows,
        .args_min = 1,
        .args_max = WORDS_MAX};
    enum options_end end = options_parse(&c, argc, argv, s.words, &s.word_count);
    if (end) {
        return end == OPTIONS_DONE ? EXIT_DONE : EXIT_USAGE;
    }
    bool both = s.silos.count > 0 && s.sources.count > 0;
    if (both || s.silos.count + s.sources.count == 0 || !s.dir) {
        (void)fprintf(stderr, "%s: needs -o DIR and either --silos or --sources\n", PROGRAM);
        return EXIT_USAGE;
    }
    struct option_list *list = s.silos.count > 0 ? &s.silos : &s.sources;
    for (int i = 1; i < s.word_count; i++) {
        if (list->count == OPTION_LIST_MAX) {
            (void)fprintf(stderr, "%s: at most %d of them\n", PROGRAM, OPTION_LIST_MAX);
            return EXIT_USAGE;
        }
        list->items[list->count++] = s.words[i];
    }
    return run(&s);
}

const struct cmd cmds_sim[] = {
    {"sim", NULL, "play a whole federation in one process", sim, .trains = true}, {0}};
