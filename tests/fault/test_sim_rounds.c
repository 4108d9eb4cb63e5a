/*
 * test_sim_rounds.c - whole runs under a virtual clock, with everything that can go wrong.
 *
 * Two servers and some silos over one simulated store (tests/support/sim_store.h, sim_world.h),
 * whose transactions ask the running rules. Between any two transactions messages are lost,
 * doubled, replayed much later or overtaken; links are cut; servers and silos die and come back,
 * also between the steps of one request and before its answer; stored updates rot. After every step
 * the invariants must hold, and once the faults end the run must finish. All of it is a function of
 * the seed: a failing one is printed, and `test_sim_rounds --seed N` does the same again, in words.
 *
 *     test_sim_rounds [--from N] --seeds N | --seed N [--quiet]      SIM_SEEDS=N: of the test
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/support/check.h"
#include "tests/support/sim_world.h"

enum {
    QUICK_SEEDS = 2000,
    STEPS_MAX = 400000,
};
#define END_S 200000.0 // after the faults a run has had all the time it can need

static struct sim_store store;
static long totals[EVENT_KINDS];
static long total_steps, total_rounds, total_attempts, total_starved, total_recalls, total_carried,
    total_told;

/* ---- a seed ---- */

static void begin(uint64_t seed, bool trace)
{
    memset(&w.silo, 0, sizeof(w.silo));
    memset(&w.server, 0, sizeof(w.server));
    memset(&w.cut_until, 0, sizeof(w.cut_until));
    memset(&w.over, 0, sizeof(w.over));
    memset(&w.told, 0, sizeof(w.told));
    w.state = seed * 0x2545f4914f6cdd1dU + 1;
    w.digest = 0xcbf29ce484222325U;
    w.trace = trace;
    w.now = 0.0;
    w.order = 0;
    w.events = 0;
    w.steps = 0;
    w.store = &store;
    struct sim_spec spec = {
        .rounds = 1 + sim_below(3), .silos = 2 + sim_below(SIM_SILOS - 1), .seed = sim_draw()};
    spec.silos_per_round = 1 + sim_below(spec.silos < 4 ? spec.silos : 4);
    spec.min_silos = 1 + sim_below(spec.silos_per_round);
    spec.oversample = sim_below(3);
    spec.tau = 8;
    spec.cap_s = sim_below(4) ? sim_between(150.0, 1200.0) : sim_between(60.0, 150.0);
    sim_init(w.store, &spec);
    w.calm_at = sim_between(50.0, 3000.0);
    w.rots_one_in = 3 + sim_below(20);
    w.fails_one_in = sim_below(4) ? 3 + sim_below(30) : 2;
    w.loss = sim_below(3) ? sim_between(0.0, 0.3) : 0.0;
    w.twice = sim_below(2) ? sim_between(0.0, 0.3) : 0.0;
    w.late = sim_below(2) ? sim_between(0.0, 0.1) : 0.0;
    for (int i = 0; i < SIM_SERVERS; i++) {
        sim_push((struct event){.kind = SERVER_UP, .actor = i}, sim_between(0.0, 20.0));
    }
    for (int i = 0; i < spec.silos; i++) {
        w.silo[i].speed = sim_between(5.0, 60.0);
        w.silo[i].server = sim_below(SIM_SERVERS);
        sim_push((struct event){.kind = SILO_UP, .actor = i}, sim_between(0.0, 60.0));
    }
    sim_push((struct event){.kind = CHAOS}, sim_between(1.0, 80.0));
    sim_push((struct event){.kind = PEOPLE}, 50.0);
}

/* What silos were told, held against what is stored. */
static void check_promises(void)
{
    struct sim_store *s = w.store;
    for (int i = 0; i < s->uploads && !s->broken[0]; i++) {
        if (w.told[i] && !sim_counted(s, i)) {
            (void)snprintf(s->broken, sizeof(s->broken),
                           "I1: upload %d was acknowledged and is not there", i);
        }
        if (w.over[i] && sim_counted(s, i)) {
            (void)snprintf(s->broken, sizeof(s->broken),
                           "upload %d counts, though its silo was told that the round is over", i);
        }
    }
}

/* True: all held. The digest of the trace is in w.digest. */
static bool run_seed(uint64_t seed, bool trace)
{
    begin(seed, trace);
    struct sim_store *s = w.store;
    while (s->run != RUN_FINISHED && w.events > 0 && w.now < END_S && w.steps < STEPS_MAX) {
        struct event e = sim_pop();
        w.now = e.at;
        w.steps++;
        totals[e.kind]++;
        sim_step(&e);
        if (!sim_check(s, false)) {
            break;
        }
    }
    (void)sim_check(s, true);
    check_promises();
    if (!s->broken[0] && s->run != RUN_FINISHED) {
        (void)snprintf(
            s->broken, sizeof(s->broken),
            "the run does not end: checkpoint %d of %d at %.0f s, faults ended at %.0f s", s->head,
            s->spec.rounds, w.now, w.calm_at);
    }
    total_steps += w.steps;
    total_rounds += s->head;
    total_attempts += s->rounds;
    total_starved += s->starved;
    total_recalls += s->recalls;
    total_carried += s->carried;
    for (int i = 0; i < s->uploads; i++) {
        total_told += w.told[i];
    }
    return !s->broken[0];
}

static bool say_failure(uint64_t seed)
{
    printf("  seed %" PRIu64 ": %s (at %.3f s, trace %016" PRIx64
           "); again, in words: --seed %" PRIu64 "\n",
           seed, w.store->broken, w.now, w.digest, seed);
    return false;
}

static bool run_seeds(uint64_t from, long n)
{
    struct timespec a;
    struct timespec b;
    (void)clock_gettime(CLOCK_MONOTONIC, &a);
    for (long i = 0; i < n; i++) {
        if (!run_seed(from + (uint64_t)i, false)) {
            return say_failure(from + (uint64_t)i);
        }
    }
    (void)clock_gettime(CLOCK_MONOTONIC, &b);
    printf("  %ld seeds from %" PRIu64 ": 0 violations in %ld steps, %ld rounds closed in %ld "
           "attempts, %ld updates acknowledged, %ld carried over, %ld deaths of servers, %ld of "
           "silos, %ld runs starved, %ld recalls; %.1f s\n",
           n, from, total_steps, total_rounds, total_attempts, total_told, total_carried,
           totals[SERVER_UP] - 2 * n, totals[SILO_UP], total_starved, total_recalls,
           (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) / 1e9);
    return true;
}

static void every_seed_keeps_the_invariants_and_ends(void)
{
    const char *wanted = getenv("SIM_SEEDS");
    CHECK(run_seeds(1, wanted ? strtol(wanted, NULL, 10) : QUICK_SEEDS));
    // What never happened would prove nothing.
    CHECK(total_carried > 0 && total_starved > 0 && total_recalls > 0);
    CHECK(total_attempts > total_rounds && total_told > total_rounds);
}

static void a_seed_replays_identically(void)
{
    for (uint64_t seed = 1; seed <= 20; seed++) {
        CHECK(run_seed(seed, false));
        uint64_t first = w.digest;
        long steps = w.steps;
        CHECK(run_seed(seed + 1000, false));
        CHECK(w.digest != first);
        CHECK(run_seed(seed, false));
        CHECK(w.digest == first);
        CHECK_INT(w.steps, steps);
    }
}

static int one_seed(uint64_t seed, bool trace)
{
    bool ok = run_seed(seed, trace);
    printf("  seed %" PRIu64 ": %s, trace %016" PRIx64 "\n", seed, ok ? "all held" : store.broken,
           w.digest);
    return ok ? 0 : 1;
}

int main(int argc, char **argv)
{
    uint64_t from = 1;
    for (int i = 1; i + 1 < argc; i += 2) {
        uint64_t n = strtoull(argv[i + 1], NULL, 10);
        if (strcmp(argv[i], "--seed") == 0) {
            return one_seed(n, i + 2 == argc);
        }
        if (strcmp(argv[i], "--seeds") == 0) {
            return run_seeds(from, (long)n) ? 0 : 1;
        }
        if (strcmp(argv[i], "--from") != 0) {
            break;
        }
        from = n;
    }
    if (argc > 1) {
        (void)fprintf(stderr, "test_sim_rounds [--from N] --seeds N | --seed N [--quiet]\n");
        return 2;
    }
    RUN(every_seed_keeps_the_invariants_and_ends);
    RUN(a_seed_replays_identically);
    return check_end();
}
