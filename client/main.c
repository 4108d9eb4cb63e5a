/*
 * photon-client - a silo's agent: join a federation, then work for it on this machine's own text.
 */
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/acks.h"
#include "client/agent.h"
#include "client/doctor.h"
#include "client/join.h"
#include "client/options.h"
#include "client/passive_wait.h"
#include "client/progress.h"
#include "client/rotate.h"
#include "client/solo_main.h"
#include "client/state.h"
#include "client/trainer.h"
#include "common/json.h"
#include "common/log.h"
#include "common/nearest.h"
#include "common/version.h"

/* ---- start ---- */

static int start_main(int argc, char **argv)
{
    const char *state_dir = NULL;
    const char *device = "auto";
    const char *dtype = "auto";
    const char *format = "text";
    struct option_list dirs = {0};
    int64_t threads = 0;
    int64_t sync_every = 0;
    double mbps = 0.0;
    const char *codec = NULL;
    bool verbose = false;
    const struct option_row rows[] = {
        {"state", 0, OPTION_TEXT, "DIR", "PHOTON_STATE", &state_dir, 0, 0,
         "the silo's folder, as joined"},
        {"data", 0, OPTION_LIST, "DIR[:WEIGHT]", NULL, &dirs, 0, 0,
         "prepared text; several are mixed by weight"},
        {"device", 0, OPTION_TEXT, "NAME", "PHOTON_DEVICE", &device, 0, 0,
         "auto (default), cpu, ref, cuda, or several GPUs: cuda:0,1"},
        {"sync-every", 0, OPTION_INT, "N", "PHOTON_SYNC_EVERY", &sync_every, 0, 1e6,
         "several devices step alone and are averaged every N steps; default every step as one"},
        {"dtype", 0, OPTION_TEXT, "NAME", "PHOTON_DTYPE", &dtype, 0, 0,
         "auto (default): bf16 where it is no slower, else f32; f32; bf16"},
        {"threads", 't', OPTION_INT, "N", "PHOTON_THREADS", &threads, 0, 1024,
         "CPU threads; default all cores"},
        {"max-rate", 0, OPTION_NUM, "MBPS", "PHOTON_MAX_RATE", &mbps, 0, 1e6,
         "move weights no faster, each way, in megabit per second"},
        {"codec", 0, OPTION_TEXT, "NAME", "PHOTON_CODEC", &codec, 0, 0,
         "of updates: f32, bf16, int8, q4, q2, topk or auto; default what the run asks for"},
        {"log-format", 0, OPTION_TEXT, "FORMAT", "PHOTON_LOG_FORMAT", &format, 0, 0,
         "text (default) or json"},
        {"verbose", 'v', OPTION_FLAG, NULL, NULL, &verbose, 0, 0, "log more"},
        {0}};
    struct command_line c = {
        .program = "photon-client start",
        .args = "--state DIR --data DIR",
        .about =
            "Work for the federation until told to stop. The first Ctrl-C ends the current step "
            "and keeps\nwhat was done, a second one ends at once; both are safe.",
        .examples =
            "  photon-client start --state ~/photon --data ~/shards\n"
            "  photon-client start --state ~/photon --data notes:3 --data papers:1 --threads "
            "8",
        .rows = rows};
    enum options_end end = options_parse(&c, argc, argv, NULL, NULL);
    if (end) {
        return options_exit(end);
    }
    if (!state_dir || dirs.count == 0) {
        (void)fprintf(stderr, "photon-client: start needs --state DIR and --data DIR\n");
        return EXIT_USAGE;
    }
    struct err e = {0};
    if (trainer_words_check(device, dtype, &e)) {
        (void)fprintf(stderr, "photon-client: %s\n", e.msg);
        return EXIT_USAGE;
    }
    int rc = EXIT_DONE;
    struct data_source_arg sources[OPTION_LIST_MAX];
    struct arena *a = arena_new(1 << 20);
    for (int i = 0; i < dirs.count && !rc; i++) {
        rc = data_arg_parse(arena_fmt(a, "%s", dirs.items[i]), &sources[i]);
    }
    if (rc) {
        (void)fprintf(stderr, "photon-client: --data takes DIR or DIR:WEIGHT, a weight above 0\n");
        arena_free(a);
        return rc;
    }
    enum codec known = CODEC_F32;
    struct err why = {0};
    if (codec && strcmp(codec, "auto") != 0 && codec_parse(&known, codec, &why)) {
        (void)fprintf(stderr, "photon-client: --codec: %s, or auto\n", why.msg);
        arena_free(a);
        return EXIT_USAGE;
    }
    log_setup(verbose ? LOG_DEBUG : LOG_INFO, strcmp(format, "json") == 0, "photon-client");
    trainer_choices_in(state_dir);
    struct agent_config config = {.state_dir = state_dir,
                                  .sources = sources,
                                  .source_count = dirs.count,
                                  .device = device,
                                  .dtype = dtype,
                                  .threads = (int)threads,
                                  .sync_every = (int)sync_every,
                                  .codec = codec,
                                  .max_mbps = mbps};
    rc = agent_run(&config);
    arena_free(a);
    return rc;
}

/* ---- status ---- */

static const char *text_of(const struct json *o, const char *key)
{
    const char *s = json_str(json_get(o, key));
    return s ? s : "-";
}

static double number_of(const struct json *o, const char *key)
{
    const struct json *v = json_get(o, key);
    return v && json_kind(v) == JSON_NUMBER ? json_num(v) : 0.0;
}

static void print_status(const struct json *o, bool running)
{
    char rate[16];
    char sent[16];
    char received[16];
    format_count(rate, number_of(o, "tokens_per_s"));
    format_bytes(sent, (int64_t)number_of(o, "sent_bytes"));
    format_bytes(received, (int64_t)number_of(o, "received_bytes"));
    (void)printf("silo      %s at %s\nstatus    %s\n", text_of(o, "silo"), text_of(o, "server"),
                 running ? text_of(o, "status") : "not running");
    if (running && json_str(json_get(o, "run"))) {
        (void)printf("task      run %s, round %.0f of %.0f, step %.0f of %.0f\n", text_of(o, "run"),
                     number_of(o, "round"), number_of(o, "rounds"), number_of(o, "step"),
                     number_of(o, "steps"));
    }
    (void)printf("device    %s, %s tok/s\n", text_of(o, "device"), rate);
    (void)printf("text      %.0f tokens, %.0f held out; none of it is sent\n",
                 number_of(o, "train_tokens"), number_of(o, "heldout_tokens"));
    (void)printf("sent      %s in %.0f updates (weight deltas), received %s\n", sent,
                 number_of(o, "updates"), received);
    if (json_str(json_get(o, "last_error"))) {
        (void)printf("error     %s\n", text_of(o, "last_error"));
    }
    (void)printf("as of     %s\n", text_of(o, "at"));
}

/* As the agent wrote it; whether there still is one is not in its file. */
static void print_json(const struct json *o, const char *text, bool running)
{
    (void)printf("{\"running\":%s%s%s\n", running ? "true" : "false", json_len(o) > 0 ? "," : "",
                 strchr(text, '{') + 1);
}

static int status_main(int argc, char **argv)
{
    const char *state_dir = NULL;
    bool json = false;
    const struct option_row rows[] = {
        {"state", 0, OPTION_TEXT, "DIR", "PHOTON_STATE", &state_dir, 0, 0, "the silo's folder"},
        {"json", 0, OPTION_FLAG, NULL, NULL, &json, 0, 0, "print JSON on stdout"},
        {0}};
    struct command_line c = {
        .program = "photon-client status",
        .args = "--state DIR",
        .about = "What the silo does now, what it has sent and received. With --json "
                 "\"running\" says whether the\nagent is there; the rest is as "
                 "it wrote it last.",
        .examples = "  photon-client status --state ~/photon",
        .rows = rows};
    enum options_end end = options_parse(&c, argc, argv, NULL, NULL);
    if (end) {
        return options_exit(end);
    }
    if (!state_dir) {
        (void)fprintf(stderr, "photon-client: try --state DIR\n");
        return EXIT_USAGE;
    }
    static char text[16384];
    char path[STATE_PATH_MAX];
    struct err e = {0};
    struct arena *a = arena_new(1 << 20);
    const struct json *o = NULL;
    (void)snprintf(path, sizeof(path), "%.900s/status.json", state_dir);
    int rc = EXIT_DONE;
    if (file_read(path, text, sizeof(text), &e) || json_parse(&o, a, text, strlen(text), &e) ||
        json_kind(o) != JSON_OBJECT) {
        (void)fprintf(stderr, "photon-client: %s; try photon-client start first\n", e.msg);
        rc = EXIT_CONFIG;
    } else if (json) {
        print_json(o, text, state_in_use(state_dir));
    } else {
        print_status(o, state_in_use(state_dir));
    }
    arena_free(a);
    return rc;
}

/* ---- verbs ---- */

static int train_main(int argc, char **argv)
{
    return solo_main("photon-client train", argc, argv);
}

static const struct verb {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *about;
} verbs[] = {{"join", join_main, "make a folder a silo of a server"},
             {"start", start_main, "work for the federation until told to stop"},
             {"train", train_main, "train alone, without a server: the centralized baseline"},
             {"status", status_main, "what the silo does now, what it has sent"},
             {"acks", acks_main, "what the server told it counts, for the operator's check"},
             {"doctor", doctor_main, "look for what could keep it from working"},
             {"rotate", rotate_main, "a new token, while the old one still works"},
             {"leave", leave_main, "forget the silo's token"}};

enum { VERBS = sizeof(verbs) / sizeof(verbs[0]) };

static void help(FILE *to)
{
    (void)fprintf(to,
                  "Usage: photon-client VERB [OPTIONS]\n\n"
                  "A silo's agent: trains on this machine's own text, sends only weight deltas.\n\n"
                  "Examples:\n"
                  "  photon-client join https://agg.example.org:8443 --name hospital-a --state "
                  "~/photon\n"
                  "  photon data prepare ~/texts -o ~/shards\n"
                  "  photon-client start --state ~/photon --data ~/shards\n\nVerbs:\n");
    for (int i = 0; i < VERBS; i++) {
        (void)fprintf(to, "  %-10s %s\n", verbs[i].name, verbs[i].about);
    }
    (void)fprintf(to, "\nEvery verb has --help. Exit codes: 0 done, 1 failed, 2 usage, 3 "
                      "configuration, 4 unreachable or not\nallowed, 6 incompatible version, 7 no "
                      "device, 70 bug, 75 try again.\n");
}

int main(int argc, char **argv)
{
    log_setup(LOG_INFO, false, "photon-client");
    if (argc < 2) {
        help(stderr);
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        help(stdout);
        return EXIT_DONE;
    }
    if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "version") == 0) {
        (void)printf("photon-client " PHOTON_VERSION " (silo protocol " PHOTON_PROTOCOL ")\n");
        return EXIT_DONE;
    }
    const char *names[VERBS + 1] = {NULL};
    for (int i = 0; i < VERBS; i++) {
        names[i] = verbs[i].name;
        if (strcmp(argv[1], verbs[i].name) == 0) {
            if (verbs[i].run == start_main || verbs[i].run == train_main) {
                passive_wait(argv); // before any thread, and before anything is read or written
            }
            return verbs[i].run(argc - 1, argv + 1);
        }
    }
    const char *near = nearest(argv[1], names);
    (void)fprintf(stderr, "photon-client: unknown verb '%s'; %s%s\n", argv[1],
                  near ? "did you mean " : "try --help", near ? near : "");
    return EXIT_USAGE;
}
