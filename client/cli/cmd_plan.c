/*
 * cmd_plan.c - photon plan: what a run costs before it runs, and how right that was afterwards.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/cli/api.h"
#include "client/cli/cmd.h"
#include "client/gpu_plan.h"
#include "client/progress.h"
#include "client/spec_file.h"
#include "common/json.h"
#include "common/planner.h"

/* What the command line says of machines and links. */
struct plan_args {
    const char *link, *silo_link, *latency, *memory, *dtype, *run;
    double rate, gpus, peak, mfu, overlap, dp_steps, fold_rate;
    int64_t silos;
    double link_bytes, silo_link_bytes, latency_s, memory_bytes;
    enum dtype computes;
};

/* "100Mbit", "10Gbit", "12.5MB": bytes a second; negative when it is neither. */
static double parse_link(const char *text)
{
    static const struct {
        const char *unit;
        double bytes;
    } units[] = {{"kbit", 125.0}, {"Mbit", 125e3}, {"Gbit", 125e6},
                 {"kB", 1e3},     {"MB", 1e6},     {"GB", 1e9}};
    char *end = NULL;
    double n = strtod(text, &end);
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
        if (strcmp(end, units[i].unit) == 0 && n > 0.0 && isfinite(n)) {
            return n * units[i].bytes;
        }
    }
    return -1.0;
}

/* "80GB", "141GiB": bytes; negative when it is neither. */
static double parse_memory(const char *text)
{
    char *end = NULL;
    double n = strtod(text, &end);
    double unit = strcmp(end, "GB") == 0 ? 1e9 : strcmp(end, "GiB") == 0 ? 1073741824.0 : -1.0;
    return n > 0.0 && n < 1e6 ? n * unit : -1.0;
}

/* "40ms", "0.04s": seconds; negative when it is neither. */
static double parse_latency(const char *text)
{
    char *end = NULL;
    double n = strtod(text, &end);
    double unit = strcmp(end, "ms") == 0 ? 1e-3 : strcmp(end, "s") == 0 ? 1.0 : -1.0;
    return n >= 0.0 && isfinite(n) ? n * unit : -1.0;
}

static bool read_links(struct plan_args *a)
{
    a->link_bytes = parse_link(a->link);
    a->silo_link_bytes = a->silo_link ? parse_link(a->silo_link) : 0.0;
    a->latency_s = parse_latency(a->latency);
    if (a->link_bytes < 0.0 || a->silo_link_bytes < 0.0) {
        (void)fprintf(stderr, "photon: '%s' is no link speed; try 100Mbit, 10Gbit or 12MB\n",
                      a->link_bytes < 0.0 ? a->link : a->silo_link);
        return false;
    }
    if (a->latency_s < 0.0) {
        (void)fprintf(stderr, "photon: '%s' is no latency; try 40ms\n", a->latency);
        return false;
    }
    return true;
}

static bool read_device(struct plan_args *a)
{
    a->memory_bytes = parse_memory(a->memory);
    a->computes = strcmp(a->dtype, "f32") == 0 ? DTYPE_F32 : DTYPE_BF16;
    if (a->memory_bytes < 0.0) {
        (void)fprintf(stderr, "photon: '%s' is no memory of a GPU; try 80GB or 24GiB\n", a->memory);
        return false;
    }
    if (strcmp(a->dtype, "bf16") != 0 && a->computes != DTYPE_F32) {
        (void)fprintf(stderr, "photon: '%s' is no dtype; try bf16 or f32\n", a->dtype);
        return false;
    }
    return true;
}

/* ---- before a run ---- */

/* Everything that is printed. */
struct outlook {
    int64_t params, tokens, rounds, silos;
    struct plan_round round;
    struct plan_cost by[PLAN_TOPOLOGIES];
    struct plan_cost dp; /* data-parallel of the same tokens: a ring of bf16 gradients each step */
    double break_even;   /* bytes a second */
    struct memory_plan memory; /* of each GPU, unless it cannot be: */
    struct err no_memory;
};

static struct outlook look_ahead(const struct run_spec *s, const struct plan_args *a)
{
    int64_t silos = a->silos > 0 ? a->silos : s->federation.silos_per_round;
    int64_t step_tokens = (int64_t)s->inner.batch * s->model.seq_len;
    int64_t local = s->federation.local_steps;
    struct outlook o = {.params = model_param_count(&s->model),
                        .rounds = s->federation.rounds,
                        .silos = silos,
                        .tokens = step_tokens * local * s->federation.rounds * silos};
    double step_s = a->rate > 0.0
                        ? (double)step_tokens / a->rate
                        : plan_compute_s(o.params, step_tokens, a->gpus * a->peak * 1e12 * a->mfu);
    o.round = (struct plan_round){.silos = silos,
                                  .up_bytes = plan_update_bytes(s, s->codec.up, s->codec.up_k),
                                  .down_bytes =
                                      s->codec.down == CODEC_F32
                                          ? plan_checkpoint_bytes(s)
                                          : plan_update_bytes(s, s->codec.down, s->codec.down_k),
                                  .link = a->link_bytes,
                                  .silo_link = a->silo_link_bytes,
                                  .latency_s = a->latency_s,
                                  .compute_s = step_s * (double)local,
                                  .overlap = a->overlap,
                                  .ahead_s = step_s * (double)s->federation.overlap_steps};
    // A fold reads every update once and the weights; a digest is the slower part of it.
    o.round.fold_s = ((double)silos * o.round.up_bytes + plan_checkpoint_bytes(s)) / a->fold_rate;
    for (int t = 0; t < PLAN_TOPOLOGIES; t++) {
        o.by[t] = plan_cost((enum plan_topology)t, &o.round, o.rounds);
    }
    struct plan_round dp = o.round;
    dp.up_bytes = dp.down_bytes = 2.0 * (double)o.params;
    dp.compute_s = step_s;
    dp.fold_s = dp.ahead_s = 0.0;
    double steps = (double)(o.rounds * local) * a->dp_steps;
    o.dp = plan_cost(PLAN_RING, &dp, steps < 1.0 ? 1 : (int64_t)steps);
    double n = (double)o.rounds;
    o.break_even = plan_break_even(a->link_bytes, step_s * steps, o.dp.comm_s * steps,
                                   o.round.compute_s * n, o.by[PLAN_SERVER].comm_s * n);
    int32_t gpus = a->gpus < 2.0 ? 1 : a->gpus < 1e3 ? (int32_t)a->gpus : 1000;
    (void)!gpu_plan(&o.memory, s, gpus, a->computes, gpu_memory_usable((int64_t)a->memory_bytes),
                    &o.no_memory);
    return o;
}

static const char *const TOPOLOGIES[] = {"server", "all-reduce", "ring"};

static void print_row(const char *name, const struct plan_cost *c, double gpus)
{
    char comm[16];
    char total[16];
    char bytes[16];
    format_seconds(comm, c->comm_s);
    format_seconds(total, c->total_s);
    format_bytes(bytes, (int64_t)c->bytes);
    (void)printf("%-14s %10s %10s %10s %10.1f %10.1f %%\n", name, comm, total, bytes,
                 c->total_s * gpus / 3600.0, 100.0 * c->utilisation);
}

static void print_outlook(const struct outlook *o, const struct plan_args *a)
{
    char params[16];
    char tokens[16];
    char up[16];
    char down[16];
    char compute[16];
    format_count(params, (double)o->params);
    format_count(tokens, (double)o->tokens);
    format_bytes(up, (int64_t)o->round.up_bytes);
    format_bytes(down, (int64_t)o->round.down_bytes);
    format_seconds(compute, o->round.compute_s);
    (void)printf("parameters %s, tokens %s, rounds %" PRId64 " of %" PRId64 " silos\n"
                 "a silo's round: %s down, %s of compute, %s up\n\n"
                 "%-14s %10s %10s %10s %10s %12s\n",
                 params, tokens, o->rounds, o->silos, down, compute, up, "topology", "comm/round",
                 "wall time", "bytes", "GPU-hours", "utilisation");
    double gpus = a->gpus * (double)o->silos;
    for (int t = 0; t < PLAN_TOPOLOGIES; t++) {
        print_row(TOPOLOGIES[t], &o->by[t], gpus);
    }
    print_row("data-parallel", &o->dp, gpus);
    (void)printf("\ndata-parallel: a ring of bf16 gradients each step, %.3g of the steps; its "
                 "comm/round is a step's\n",
                 a->dp_steps);
    (void)printf("bytes: %.0f times less than data-parallel\n",
                 o->dp.bytes / o->by[PLAN_SERVER].bytes);
    if (isinf(o->break_even)) {
        (void)printf("no link is fast enough for data-parallel to win: it computes no less; see "
                     "--dp-steps\n");
    } else {
        (void)printf("data-parallel wins above %.3g Gbit/s\n", o->break_even * 8e-9);
    }
}

/* The table that the trainer logs before it takes anything. */
static void print_memory(const struct outlook *o, const struct plan_args *a)
{
    char table[640];
    const struct plan_request *r = &o->memory.request;
    if (o->no_memory.st) {
        (void)printf("\nmemory of each GPU of %s: %s\n", a->memory, o->no_memory.msg);
        return;
    }
    memory_plan_table(&o->memory, table, sizeof(table));
    (void)printf("\nmemory of each GPU of %s: %s, batch %d in passes of %d, %s; bytes\n%s",
                 a->memory, a->dtype, r->batch, r->micro_batch, recompute_text(r->recompute),
                 table);
}

static void json_memory(struct buf *b, const struct outlook *o)
{
    const struct memory_plan *p = &o->memory;
    jw_object(b, "memory");
    if (o->no_memory.st) {
        jw_str(b, "problem", o->no_memory.msg);
    } else {
        jw_int(b, "batch", p->request.batch);
        jw_int(b, "micro_batch", p->request.micro_batch);
        jw_str(b, "recompute", recompute_text(p->request.recompute));
        jw_int(b, "weights", p->weights);
        jw_int(b, "rest", p->rest);
        jw_int(b, "gradients", p->grads);
        jw_int(b, "moments", p->moments);
        jw_int(b, "activations", p->activations);
        jw_int(b, "batch_data", p->batch_data);
        jw_int(b, "total", p->total);
    }
    jw_end_object(b);
}

static void json_cost(struct buf *b, const char *key, const struct plan_cost *c, double gpus)
{
    jw_object(b, key);
    jw_num(b, "comm_s", c->comm_s);
    jw_num(b, "total_s", c->total_s);
    jw_num(b, "bytes", c->bytes);
    jw_num(b, "gpu_hours", c->total_s * gpus / 3600.0);
    jw_num(b, "utilisation", c->utilisation);
    jw_end_object(b);
}

static void json_outlook(const struct outlook *o, const struct plan_args *a)
{
    struct buf b;
    double gpus = a->gpus * (double)o->silos;
    buf_init(&b, 8192);
    jw_object(&b, NULL);
    jw_int(&b, "params", o->params);
    jw_int(&b, "tokens", o->tokens);
    jw_int(&b, "rounds", o->rounds);
    jw_int(&b, "silos", o->silos);
    jw_num(&b, "up_bytes", o->round.up_bytes);
    jw_num(&b, "down_bytes", o->round.down_bytes);
    jw_num(&b, "compute_s", o->round.compute_s);
    jw_num(&b, "fold_s", o->round.fold_s);
    json_cost(&b, "server", &o->by[PLAN_SERVER], gpus);
    json_cost(&b, "all_reduce", &o->by[PLAN_ALL_REDUCE], gpus);
    json_cost(&b, "ring", &o->by[PLAN_RING], gpus);
    json_cost(&b, "data_parallel", &o->dp, gpus);
    if (isinf(o->break_even)) {
        jw_null(&b, "break_even_bytes_per_s");
    } else {
        jw_num(&b, "break_even_bytes_per_s", o->break_even);
    }
    json_memory(&b, o);
    jw_end_object(&b);
    (void)printf("%s\n", b.data);
    buf_release(&b);
}

/* ---- after it ---- */

struct compared {
    struct api *api;
    int rounds;
    double predicted_s, measured_s, predicted_bytes, measured_bytes;
};

static bool compare_round(void *ctx, const struct json *round)
{
    struct compared *c = ctx;
    const struct json *p = json_get(round, "predicted");
    if (!p || json_kind(p) != JSON_OBJECT) {
        return true;
    }
    if (c->api->json) {
        api_print_json(c->api, round);
        return true;
    }
    double bytes = api_number(round, "upload_bytes") + api_number(round, "download_bytes");
    double seconds = api_number(round, "seconds");
    char want[16];
    char got[16];
    char want_bytes[16];
    char got_bytes[16];
    format_seconds(want, api_number(p, "seconds"));
    format_seconds(got, seconds);
    format_bytes(want_bytes, api_integer(p, "bytes", 0));
    format_bytes(got_bytes, (int64_t)bytes);
    (void)printf("%5" PRId64 " %11s %11s %11s %11s\n", api_integer(round, "number", 0), want, got,
                 want_bytes, got_bytes);
    c->rounds++;
    c->predicted_s += api_number(p, "seconds");
    c->measured_s += seconds;
    c->predicted_bytes += api_number(p, "bytes");
    c->measured_bytes += bytes;
    return true;
}

static int compare_run(const char *word, const struct api_options *o)
{
    struct api api;
    const char *id = NULL;
    struct compared c = {.api = &api};
    int rc = api_open(&api, o);
    if (rc) {
        return rc;
    }
    rc = api_find(&api, "run", word, &id);
    if (!rc && !api.json) {
        (void)printf("%5s %11s %11s %11s %11s\n", "round", "predicted", "measured", "predicted",
                     "measured");
        rc = api_list(&api, arena_fmt(api.arena, "/api/v1/runs/%s/rounds", id), compare_round, &c);
    }
    if (api.json) {
        // a line for each round is all
    } else if (!rc && c.rounds > 0) {
        (void)printf("all of these: time %+.1f %%, bytes %+.1f %% against what was predicted\n",
                     100.0 * (c.measured_s / c.predicted_s - 1.0),
                     100.0 * (c.measured_bytes / c.predicted_bytes - 1.0));
    } else if (!rc) {
        (void)printf("no round was predicted yet: that takes one closed round before it\n");
    }
    api_close(&api);
    return rc;
}

static int plan(int argc, char **argv)
{
    struct api_options o = {0};
    struct plan_args a = {.link = "1Gbit",
                          .latency = "20ms",
                          .gpus = 1.0,
                          .peak = 989.0,
                          .mfu = 0.4,
                          .memory = "80GB",
                          .dtype = "bf16",
                          .dp_steps = 1.0,
                          .fold_rate = 1.2e9};
    const struct option_row rows[] = {
        {"link", 0, OPTION_TEXT, "SPEED", NULL, &a.link, 0, 0, "of the server: 1Gbit"},
        {"silo-link", 0, OPTION_TEXT, "SPEED", NULL, &a.silo_link, 0, 0, "of the slowest silo"},
        {"latency", 0, OPTION_TEXT, "TIME", NULL, &a.latency, 0, 0, "one way: 20ms"},
        {"silos", 0, OPTION_INT, "N", NULL, &a.silos, 1, 100000, "instead of the spec's"},
        {"rate", 0, OPTION_NUM, "TOKENS", NULL, &a.rate, 0, 1e12, "tokens a second of a silo"},
        {"gpus", 0, OPTION_NUM, "N", NULL, &a.gpus, 0.01, 1e6, "of a silo; 1"},
        {"peak", 0, OPTION_NUM, "TFLOPS", NULL, &a.peak, 1e-3, 1e6, "of one; 989, an H100 in bf16"},
        {"mfu", 0, OPTION_NUM, "SHARE", NULL, &a.mfu, 1e-3, 1.0, "of the peak that is used; 0.4"},
        {"memory", 0, OPTION_TEXT, "SIZE", NULL, &a.memory, 0, 0, "of one GPU; 80GB, an H100's"},
        {"dtype", 0, OPTION_TEXT, "TYPE", NULL, &a.dtype, 0, 0,
         "a GPU computes in, bf16 or f32; bf16"},
        {"overlap", 0, OPTION_NUM, "SHARE", NULL, &a.overlap, 0.0, 1.0,
         "of communication behind compute; 0"},
        {"dp-steps", 0, OPTION_NUM, "SHARE", NULL, &a.dp_steps, 1e-3, 1e3,
         "steps data-parallel needs for the same loss; 1"},
        {"run", 0, OPTION_TEXT, "RUN", NULL, &a.run, 0, 0,
         "a run's rounds: predicted beside measured"},
        API_ROWS(&o),
        {0}};
    struct command_line c = {
        .program = "photon plan",
        .args = "[SPEC]",
        .about = "What a spec costs before it runs: wall time, bytes and GPU-hours by topology, "
                 "and the link above which\ndata-parallel wins; then what each GPU holds, in the "
                 "pass that "
                 "would be chosen for it.\nWith --run, what a run's rounds took beside what was "
                 "predicted.",
        .examples = "  photon plan spec.json --link 100Mbit --latency 40ms\n"
                    "  photon plan spec.json --rate 40000 --dp-steps 0.6 --json\n"
                    "  photon plan spec.json --gpus 8 --memory 141GB\n"
                    "  photon plan --run tiny-1",
        .rows = rows,
        .args_max = 1};
    const char *path = NULL;
    enum options_end end = options_parse(&c, argc, argv, &path, NULL);
    if (end) {
        return options_exit(end);
    }
    if (a.run) {
        return compare_run(a.run, &o);
    }
    if (!path || !read_links(&a) || !read_device(&a)) {
        if (!path) {
            (void)fprintf(stderr, "photon: no spec is given; try photon plan spec.json\n");
        }
        return EXIT_USAGE;
    }
    struct run_spec s;
    struct err e = {0};
    if (spec_file_read(&s, path, "plan", &e)) {
        (void)fprintf(stderr, "photon: %s\n", e.msg);
        return EXIT_CONFIG;
    }
    struct outlook l = look_ahead(&s, &a);
    if (o.json) {
        json_outlook(&l, &a);
    } else {
        print_outlook(&l, &a);
        print_memory(&l, &a);
    }
    return EXIT_DONE;
}

const struct cmd cmds_plan[] = {
    {"plan", NULL, "what a run costs before it runs, and how right that was", plan, false}, {0}};
