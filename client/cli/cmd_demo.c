/*
 * photon demo: a federation on this machine, from nothing to a falling perplexity.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/cli/cmd.h"
#include "client/cli/demo.h"
#include "client/cli/watch.h"
#include "client/state.h"
#include "common/clock.h"

enum { STALL_MS = 15 * 60 * 1000 };

static volatile sig_atomic_t signals_seen;

static void on_signal(int sig)
{
    (void)sig;
    signals_seen = 1;
}

bool demo_stopping(void)
{
    return signals_seen != 0;
}

/* ---- where it lives ---- */

/* Can a user that is not us reach this folder? PostgreSQL does not run as root. */
static bool reachable(const char *path)
{
    char p[DEMO_PATH_MAX];
    (void)snprintf(p, sizeof(p), "%s", path);
    for (char *c = p + 1; *c; c++) {
        if (*c == '/') {
            struct stat s;
            *c = '\0';
            if (stat(p, &s) == 0 && (s.st_mode & S_IXOTH) == 0) {
                return false;
            }
            *c = '/';
        }
    }
    return true;
}

static void default_state(char out[DEMO_PATH_MAX])
{
    char cwd[400];
    const char *home = getenv("XDG_STATE_HOME");
    if (getcwd(cwd, sizeof(cwd)) && access(cwd, W_OK) == 0) {
        (void)snprintf(out, DEMO_PATH_MAX, "%s/photon-demo", cwd);
    } else if (home && *home) {
        (void)snprintf(out, DEMO_PATH_MAX, "%.400s/photon-demo", home);
    } else {
        (void)snprintf(out, DEMO_PATH_MAX, "/var/tmp/photon-demo");
    }
    if (geteuid() == 0 && !reachable(out)) {
        (void)snprintf(out, DEMO_PATH_MAX, "/var/lib/photon-demo");
    }
}

static int find_programs(struct demo *d)
{
    ssize_t n = readlink("/proc/self/exe", d->bin, sizeof(d->bin) - 1);
    d->bin[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(d->bin, '/');
    if (slash) {
        *slash = '\0';
    }
    static const char *const names[] = {"photon-server", "photon-client"};
    for (int i = 0; i < 2; i++) {
        char path[DEMO_PATH_MAX];
        (void)snprintf(path, sizeof(path), "%.480s/%s", d->bin, names[i]);
        if (access(path, X_OK) != 0) {
            (void)fprintf(stderr, "photon demo: no %s beside this program; try make\n", names[i]);
            return EXIT_CONFIG;
        }
    }
    return EXIT_DONE;
}

static int open_state(struct demo *d, const char *given, int *lock)
{
    struct err e = {0};
    if (given && given[0] == '/') {
        (void)snprintf(d->state, sizeof(d->state), "%.400s", given);
    } else if (given) {
        char cwd[256];
        (void)snprintf(d->state, sizeof(d->state), "%s/%.200s",
                       getcwd(cwd, sizeof(cwd)) ? cwd : ".", given);
    } else {
        default_state(d->state);
    }
    if (dir_make(d->state, &e)) {
        (void)fprintf(stderr, "photon demo: %s\n", e.msg);
        return EXIT_CONFIG;
    }
    // Traversable, because PostgreSQL's user must pass; what is secret in it is private by itself.
    (void)chmod(d->state, 0755);
    if (state_lock(d->state, lock, &e)) {
        (void)fprintf(stderr,
                      "photon demo: a demo runs in %s already; stop it, or try --state DIR\n",
                      d->state);
        return EXIT_FAILED;
    }
    return EXIT_DONE;
}

/* ---- watching ---- */

static bool should_stop(void *ctx)
{
    struct demo *d = ctx;
    if (demo_stopping()) {
        return true;
    }
    if (!demo_tend(d)) {
        d->failed = true;
        return true;
    }
    if (d->exit_after && clock_mono_ms() - d->heard_ms > STALL_MS) {
        d->failed = true;
        (void)snprintf(d->why, sizeof(d->why), "no round has closed for 15 minutes");
        return true;
    }
    return false;
}

static void on_round(void *ctx, const struct json *round)
{
    struct demo *d = ctx;
    d->heard_ms = clock_mono_ms();
    d->closed = api_integer(round, "number", d->closed);
}

static void print_address(const struct demo *d)
{
    char path[DEMO_PATH_MAX];
    static char token[4096];
    struct err e = {0};
    (void)snprintf(path, sizeof(path), "%.400s/admin-token", d->state);
    if (file_read(path, token, sizeof(token), &e)) {
        token[0] = '\0';
    }
    token[strcspn(token, "\r\n")] = '\0';
    (void)printf("\n  Dashboard:  %s/runs/%s#%s\n", d->url, d->run, token);
    (void)printf("  Logs:       %s/logs\n  Ctrl-C stops everything; the next start goes on from "
                 "there.\n\n",
                 d->state);
    (void)fflush(stdout);
}

/* After the last round the page stays up, until somebody has seen enough. */
static void linger(struct demo *d)
{
    (void)printf(
        "The run is over; the dashboard stays up until Ctrl-C. Another start trains anew.\n");
    (void)fflush(stdout);
    while (!demo_stopping() && demo_tend(d)) {
        clock_sleep_ms(200);
    }
}

static int train(struct demo *d)
{
    struct err e = {0};
    if (demo_submit(d, &e)) {
        (void)fprintf(stderr, "photon demo: %s\n", e.msg);
        return EXIT_FAILED;
    }
    print_address(d);
    d->heard_ms = clock_mono_ms();
    struct watch w = {.api = &d->api,
                      .run = d->run,
                      .stop = should_stop,
                      .round = on_round,
                      .ctx = d,
                      .quiet_s = 120.0};
    int rc = watch_run(&w);
    if (d->failed) {
        (void)fprintf(stderr, "photon demo: FAILED: %s\n", d->why);
        return EXIT_FAILED;
    }
    if (demo_stopping()) {
        return d->exit_after ? 130 : EXIT_DONE;
    }
    if (d->exit_after) {
        return demo_check(d);
    }
    if (rc == EXIT_DONE) {
        linger(d);
    }
    return rc;
}

static int work(struct demo *d)
{
    struct err e = {0};
    int rc = EXIT_FAILED;
    if (demo_load(d, &e) || demo_prepare(d, &e) || demo_launch(d, &e)) {
        if (!demo_stopping()) {
            (void)fprintf(stderr, "\nphoton demo: %s\n", e.msg);
        }
        rc = demo_stopping() ? 130 : EXIT_FAILED;
    } else {
        rc = train(d);
    }
    if (demo_stopping()) {
        (void)printf("\nStopping; what was trained is kept in %s\n", d->state);
        (void)fflush(stdout);
    }
    demo_stop(d);
    return rc;
}

static bool parse_kill(struct demo *d, const char *text)
{
    return !text || (sscanf(text, "%" SCNd64 "@%" SCNd64, &d->kill_silo, &d->kill_round) == 2 &&
                     d->kill_silo > 0 && d->kill_round > 0);
}

static int demo(int argc, char **argv)
{
    static struct demo d;
    const char *state = NULL;
    const char *kill_text = NULL;
    const struct option_row rows[] = {
        {"rounds", 'n', OPTION_INT, "N", NULL, &d.rounds, 1, 100000, "how many; default 20"},
        {"exit", 0, OPTION_FLAG, NULL, NULL, &d.exit_after, 0, 0,
         "end after the last round; 0 only if the training worked"},
        {"port", 'p', OPTION_INT, "PORT", NULL, &d.port_wanted, 1, 65534,
         "of the dashboard; default 8080 or the next free one"},
        {"state", 0, OPTION_TEXT, "DIR", NULL, &state, 0, 0,
         "where everything is kept; default ./photon-demo (as root, where no other user can reach "
         "that: /var/lib/photon-demo)"},
        {"data", 0, OPTION_TEXT, "DIR", NULL, &d.data, 0, 0,
         "your own text: a subfolder or a .txt, .jsonl (.gz) file per silo"},
        {"silos", 0, OPTION_INT, "N", NULL, &d.silos_wanted, 1, DEMO_SILOS_MAX,
         "how many; default 4, with --data all there are"},
        {"kill", 0, OPTION_TEXT, "K@R", NULL, &kill_text, 0, 0,
         "kill -9 silo K in the middle of round R, and start it again"},
        {0}};
    struct command_line c = {
        .program = "photon demo",
        .about =
            "Train one small model across silos of real text on this machine: a server with its "
            "own PostgreSQL,\nsilos that join as real ones do, a dashboard. A second start goes "
            "on where the first was stopped.",
        .examples = "  photon demo\n  photon demo --rounds 6 --exit --kill 2@3",
        .rows = rows};
    enum options_end end = options_parse(&c, argc, argv, NULL, NULL);
    if (end) {
        return options_exit(end);
    }
    if (!parse_kill(&d, kill_text)) {
        (void)fprintf(stderr, "photon demo: --kill is SILO@ROUND, as 2@3\n");
        return EXIT_USAGE;
    }
    struct sigaction sa = {.sa_handler = on_signal};
    (void)sigaction(SIGINT, &sa, NULL);
    (void)sigaction(SIGTERM, &sa, NULL);
    (void)sigaction(SIGHUP, &sa, NULL);
    int lock = -1;
    int rc = find_programs(&d);
    rc = rc ? rc : open_state(&d, state, &lock);
    rc = rc ? rc : work(&d);
    if (lock >= 0) {
        (void)close(lock);
    }
    return rc;
}

const struct cmd cmds_demo[] = {
    {"demo", NULL, "a whole federation on this machine: start here", demo}, {0}};
