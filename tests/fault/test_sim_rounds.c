/*
 * test_sim_rounds.c - whole runs under a virtual clock, with everything that can go wrong.
 *
 * Two servers and some silos over one simulated store (tests/support/sim_store.h), whose
 * transactions ask the running rules. Between any two transactions messages are lost, doubled,
 * replayed much later or overtaken; links are cut; servers and silos die and come back, also
 * between the steps of one request and before its answer; stored updates rot. After every step the
 * invariants must hold, and once the faults end the run must finish. All of it is a function of the
 * seed: a failing one is printed, and `test_sim_rounds --seed N` does the same again, in words.
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
#include "tests/support/sim_store.h"

enum {
    QUICK_SEEDS = 2000,
    EVENTS_MAX = 4096,
    STEPS_MAX = 400000,
    PATIENCE = 12, // seconds until a silo asks again
};
#define END_S 200000.0 // after the faults a run has had all the time it can need

/* ---- what happens ---- */

enum event_kind {
    TO_SERVER = 0,
    TO_SILO,
    SILO_TIMER,
    SILO_BEAT,
    SILO_UP,
    SERVER_UP,
    TENDER,
    FOLDER,
    FOLD_END,
    FINISH,
    CHAOS,
    PEOPLE,
    EVENT_KINDS
};
enum request { CLAIM = 0, BEAT, CREATE, CHUNK, FINISHED, RELEASE };

struct message {
    enum request what;
    int silo, server;
    unsigned id; // of the request, so that its silo knows the answer
    struct sim_task task;
    int upload;
    uint64_t digest;
    const char *code;
    // the answer
    bool found, counted, bad;
    enum hold hold;
};

struct event {
    double at;
    uint64_t order;
    enum event_kind kind;
    int actor;     // silo or server
    unsigned life; // of the actor: what was meant for an earlier one is void
    int stage;
    struct message m;
};

enum phase { IDLE = 0, TRAIN, CREATING, SENDING, FINISHING, RELEASING };

struct silo {
    bool up;
    unsigned life, asked, timer;
    enum phase phase;
    struct sim_task task;
    int upload, server;
    uint64_t digest;
    const char *code;
    double speed;
    // its journal outlives it
    uint64_t trained;
    int trained_number;
};

struct server {
    bool up, folding;
    unsigned life;
    struct sim_fold fold;
};

struct world {
    uint64_t state; // of the random numbers
    uint64_t digest;
    bool trace;
    double now, calm_at;
    uint64_t order;
    struct event heap[EVENTS_MAX];
    int events;
    struct silo silo[SIM_SILOS];
    struct server server[SIM_SERVERS];
    double cut_until[SIM_SILOS][SIM_SERVERS];
    double loss, twice, late;
    int fails_one_in; // trainings end in a failure
    int rots_one_in;  // stored updates
    struct sim_store *store;
    bool over[SIM_UPLOADS]; // its silo was told: the round is over, it does not count
    bool told[SIM_UPLOADS]; // its silo was told: it counts
    long steps;
};

static struct world w;
static struct sim_store store;
static long totals[EVENT_KINDS];
static long total_steps, total_rounds, total_attempts, total_starved, total_recalls, total_carried,
    total_told;

static uint64_t draw(void)
{
    uint64_t z = (w.state += 0x9e3779b97f4a7c15U);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
}

static double unit(void)
{
    return (double)(draw() >> 11) * 0x1p-53;
}

static double between(double a, double b)
{
    return a + (b - a) * unit();
}

static int below(int n)
{
    return (int)(draw() % (uint64_t)n);
}

static bool stormy(void)
{
    return w.now < w.calm_at;
}

static void note(const char *what, int a, int b)
{
    for (const char *p = what; *p; p++) {
        w.digest = (w.digest ^ (uint64_t)(unsigned char)*p) * 0x100000001b3U;
    }
    uint64_t bits = 0;
    memcpy(&bits, &w.now, sizeof(bits));
    w.digest = sim_mix(sim_mix(sim_mix(w.digest, bits), (uint64_t)a), (uint64_t)b);
    if (w.trace) {
        printf("%10.3f  %-24s %d %d\n", w.now, what, a, b);
    }
}

/* ---- the queue ---- */

static bool before(const struct event *a, const struct event *b)
{
    return a->at < b->at || (a->at <= b->at && a->order < b->order);
}

static void swap(int i, int j)
{
    struct event t = w.heap[i];
    w.heap[i] = w.heap[j];
    w.heap[j] = t;
}

static void push(struct event e, double in_s)
{
    if (w.events == EVENTS_MAX) {
        (void)snprintf(w.store->broken, sizeof(w.store->broken), "sim: too many events");
        return;
    }
    e.at = w.now + in_s;
    e.order = w.order++;
    int i = w.events++;
    w.heap[i] = e;
    while (i > 0 && before(&w.heap[i], &w.heap[(i - 1) / 2])) {
        swap(i, (i - 1) / 2);
        i = (i - 1) / 2;
    }
}

static struct event pop(void)
{
    struct event top = w.heap[0];
    w.heap[0] = w.heap[--w.events];
    for (int i = 0;;) {
        int least = i;
        for (int c = 2 * i + 1; c <= 2 * i + 2 && c < w.events; c++) {
            least = before(&w.heap[c], &w.heap[least]) ? c : least;
        }
        if (least == i) {
            return top;
        }
        swap(i, least);
        i = least;
    }
}

/* ---- the network ---- */

static double latency(void)
{
    return stormy() && below(20) == 0 ? between(1.0, 20.0) : between(0.001, 0.3);
}

static void carry(enum event_kind kind, int actor, unsigned life, const struct message *m)
{
    struct event e = {.kind = kind, .actor = actor, .life = life, .m = *m};
    if (stormy() && (w.cut_until[m->silo][m->server] > w.now || unit() < w.loss)) {
        note("lost", m->silo, m->server);
        return;
    }
    push(e, latency());
    if (stormy() && unit() < w.twice) {
        push(e, latency());
    }
    if (stormy() && kind == TO_SERVER && unit() < w.late) {
        push(e, between(20.0, 300.0));
    }
}

/* ---- silos ---- */

static void set_timer(int i, double in_s)
{
    struct silo *o = &w.silo[i];
    push((struct event){.kind = SILO_TIMER, .actor = i, .life = o->life, .stage = (int)++o->timer},
         in_s);
}

static void ask(int i, enum request what)
{
    struct silo *o = &w.silo[i];
    struct message m = {.what = what,
                        .silo = i,
                        .server = o->server,
                        .id = what == BEAT ? 0 : ++o->asked,
                        .task = o->task,
                        .upload = o->upload,
                        .digest = o->digest,
                        .code = o->code};
    carry(TO_SERVER, m.server, 0, &m);
    if (what != BEAT) {
        set_timer(i, PATIENCE);
    }
}

static void rest(int i, double in_s)
{
    w.silo[i].phase = IDLE;
    set_timer(i, in_s);
}

static void begin_task(int i, const struct sim_task *t)
{
    struct silo *o = &w.silo[i];
    o->task = *t;
    o->digest = sim_mix(sim_mix(t->base, (uint64_t)i), 11);
    push((struct event){.kind = SILO_BEAT, .actor = i, .life = o->life, .stage = (int)o->asked},
         SEAT_BEAT_S);
    if (o->trained == o->digest && o->trained_number == t->number) {
        o->phase = CREATING; // the attempt before was given up, or the agent restarted
        ask(i, CREATE);
        return;
    }
    o->phase = TRAIN;
    set_timer(i, o->speed * between(0.8, 1.3));
}

static void trained(int i)
{
    static const char *const codes[] = {"oom", "transient", "shutdown", "diverged", "disk_full"};
    struct silo *o = &w.silo[i];
    if (stormy() && below(w.fails_one_in) == 0) {
        o->code = codes[below(5)];
        o->phase = RELEASING;
        ask(i, RELEASE);
        return;
    }
    o->trained = o->digest;
    o->trained_number = o->task.number;
    o->phase = CREATING;
    ask(i, CREATE);
}

static void silo_timer(int i)
{
    static const enum request next[] = {CLAIM, CLAIM, CREATE, CHUNK, FINISHED, RELEASE};
    struct silo *o = &w.silo[i];
    if (o->phase == TRAIN) {
        trained(i);
        return;
    }
    o->server = below(4) ? o->server : below(SIM_SERVERS); // no answer: perhaps from the other
    ask(i, next[o->phase]);
}

static void beat(int i, int asked)
{
    struct silo *o = &w.silo[i];
    if (o->phase == IDLE || o->phase == RELEASING) {
        return;
    }
    ask(i, BEAT);
    push((struct event){.kind = SILO_BEAT, .actor = i, .life = o->life, .stage = asked},
         SEAT_BEAT_S);
}

static void silo_told(int i, const struct message *m)
{
    struct silo *o = &w.silo[i];
    bool same = m->task.round == o->task.round && m->task.epoch == o->task.epoch &&
                m->task.seat == o->task.seat;
    if (m->what == BEAT) {
        if (m->hold != HOLD_YES && same && o->phase == TRAIN) {
            rest(i, between(0.1, 2.0)); // somebody else has it: stop
        }
        return;
    }
    if (m->id != o->asked) {
        return; // the answer to what it has long asked again
    }
    if (m->what == CLAIM) {
        if (m->found) {
            begin_task(i, &m->task);
        } else {
            rest(i, between(1.0, 5.0));
        }
    } else if (m->what == FINISHED && m->counted) {
        w.told[m->upload] = true;
        rest(i, 0.1);
    } else if (m->what == RELEASE || m->hold != HOLD_YES || m->bad) {
        if (m->what == FINISHED && m->hold == HOLD_ROUND_OVER) {
            w.over[m->upload] = true;
        }
        if (m->bad) {
            o->trained = 0; // thrown away: it trains anew
        }
        rest(i, between(0.1, 2.0));
    } else if (m->what == CREATE) {
        o->upload = m->upload;
        bool hasty = stormy() && below(40) == 0; // says that it is done, and is not
        o->phase = hasty ? FINISHING : SENDING;
        ask(i, hasty ? FINISHED : CHUNK);
    } else if (m->what == CHUNK) {
        o->phase = FINISHING;
        ask(i, FINISHED);
    }
}

static void silo_dies(int i)
{
    struct silo *o = &w.silo[i];
    note("silo dies", i, (int)o->phase);
    o->up = false;
    o->life++;
    push((struct event){.kind = SILO_UP, .actor = i, .life = o->life},
         below(3) ? between(0.5, 30.0) : between(30.0, 400.0));
}

/* ---- servers ---- */

static void server_dies(int i)
{
    note("server dies", i, 0);
    w.server[i].up = false;
    w.server[i].folding = false;
    w.server[i].life++;
    push((struct event){.kind = SERVER_UP, .actor = i, .life = w.server[i].life},
         below(3) ? between(0.2, 5.0) : between(5.0, 200.0));
}

/* After each transaction of a request: its server may die before the next, or before it answers. */
static bool survives(int server)
{
    if (stormy() && below(250) == 0) {
        server_dies(server);
        return false;
    }
    return true;
}

static void reply(const struct message *m)
{
    if (survives(m->server)) {
        carry(TO_SILO, m->silo, w.silo[m->silo].life, m);
    }
}

/* A finish is several transactions with time between them. */
static void finish(struct message m, int stage)
{
    if (stage == 0) {
        m.hold = sim_may_finish(w.store, &m.task, m.silo, m.upload, &m.counted, w.now);
        if (m.counted || m.hold != HOLD_YES) {
            reply(&m);
            return;
        }
    } else if (stage == 1) {
        if (stormy() && below(40) == 0) {
            m.bad = true;
            sim_refuse(w.store, &m.task, m.silo, m.upload, w.now);
            reply(&m);
            return;
        }
        sim_place(w.store, m.upload);
    } else {
        bool rots = stormy() && below(w.rots_one_in) == 0;
        double rots_at = rots ? w.now + between(0.0, 60.0) : (double)INFINITY;
        enum accept a = sim_accept(w.store, &m.task, m.silo, m.upload, rots_at, w.now);
        m.counted = a == ACCEPT_COUNT || a == ACCEPT_AGAIN;
        m.bad = a == ACCEPT_GONE;
        m.hold = HOLD_YES;
        if (a == ACCEPT_REFUSE) {
            m.hold = sim_may_finish(w.store, &m.task, m.silo, m.upload, &m.counted, w.now);
        }
        note(m.counted ? "counts" : "does not count", m.silo, m.task.round);
        reply(&m);
        return;
    }
    if (survives(m.server)) {
        push((struct event){.kind = FINISH,
                            .actor = m.server,
                            .life = w.server[m.server].life,
                            .stage = stage + 1,
                            .m = m},
             stormy() && below(10) == 0 ? between(1.0, 90.0) : between(0.001, 0.5));
    }
}

/* One silo speaks for the task of another, with all that it could have overheard. */
static void steal(struct message m)
{
    m.silo = (m.silo + 1) % w.store->spec.silos;
    m.digest++;
    if (sim_create(w.store, &m.task, m.silo, m.digest, &m.upload) == HOLD_YES) {
        (void)sim_chunk(w.store, &m.task, m.silo, m.upload, w.now);
        sim_place(w.store, m.upload);
        (void)sim_accept(w.store, &m.task, m.silo, m.upload, (double)INFINITY, w.now);
    }
    sim_release(w.store, &m.task, m.silo, "oom", 0.0, w.now);
}

static void serve(struct message m)
{
    if (m.what == CREATE && stormy() && below(20) == 0) {
        steal(m);
    }
    switch (m.what) {
    case CLAIM:
        m.found = sim_claim(w.store, m.silo, w.now, &m.task);
        if (m.found) {
            note("claimed", m.silo, m.task.round * 100 + m.task.seat);
        }
        break;
    case BEAT:
        m.hold = sim_beat(w.store, &m.task, m.silo, w.now);
        break;
    case CREATE:
        m.hold = sim_create(w.store, &m.task, m.silo, m.digest, &m.upload);
        break;
    case CHUNK:
        m.hold = sim_chunk(w.store, &m.task, m.silo, m.upload, w.now);
        break;
    case FINISHED:
        finish(m, 0);
        return;
    case RELEASE:
        sim_release(w.store, &m.task, m.silo, m.code, unit(), w.now);
        break;
    default:
        break;
    }
    reply(&m);
}

static void folder(int i)
{
    struct server *v = &w.server[i];
    push((struct event){.kind = FOLDER, .actor = i, .life = v->life}, between(1.0, 3.0));
    if (v->folding) {
        return;
    }
    sim_fold_begin(w.store, &v->fold, w.now);
    if (v->fold.found && survives(i)) {
        note("folds", i, v->fold.round);
        if (stormy() && v->fold.count > 0 && below(6) == 0) { // rots after this one has read it
            w.store->update[v->fold.update[below(v->fold.count)]].rots_at = w.now + 0.01;
        }
        v->folding = true; // for seconds, or as one that is stopped: the fence must hold it off
        push((struct event){.kind = FOLD_END, .actor = i, .life = v->life},
             stormy() && below(2) == 0 ? between(5.0, 100.0) : between(0.5, 4.0));
    }
}

static void tend(int i)
{
    const struct sim_store *s = w.store;
    int rounds = s->rounds;
    enum round_state state = rounds ? s->round[rounds - 1].state : ROUND_IS_NONE;
    sim_tend(w.store, i, w.now);
    if (s->rounds && (s->rounds != rounds || s->round[rounds - 1].state != state)) {
        note("round", s->rounds - 1, (int)s->round[s->rounds - 1].state);
    }
    if (survives(i)) {
        push((struct event){.kind = TENDER, .actor = i, .life = w.server[i].life},
             between(1.5, 3.0));
    }
}

static void server_up(int i)
{
    struct server *v = &w.server[i];
    v->up = true;
    note("server up", i, 0);
    sim_arrive(w.store, i, w.now);
    push((struct event){.kind = TENDER, .actor = i, .life = v->life}, between(0.1, 1.0));
    push((struct event){.kind = FOLDER, .actor = i, .life = v->life}, between(0.1, 1.0));
}

/* ---- what people and chance do ---- */

static void chaos(void)
{
    if (!stormy()) {
        return;
    }
    int silo = below(w.store->spec.silos);
    int server = below(SIM_SERVERS);
    switch (below(8)) {
    case 0:
    case 1:
    case 2:
        if (w.silo[silo].up) {
            silo_dies(silo);
        }
        break;
    case 3:
        if (w.server[server].up) {
            server_dies(server);
        }
        break;
    case 4:
        for (int i = 0; i < SIM_SERVERS; i++) {
            if (w.server[i].up) {
                server_dies(i);
            }
        }
        break;
    case 5:
        w.cut_until[silo][server] = w.now + between(1.0, 300.0);
        break;
    case 6:
        for (int i = 0; i < SIM_SERVERS; i++) {
            w.cut_until[silo][i] = w.now + between(1.0, 200.0);
        }
        break;
    default:
        note("pause", 0, 0);
        sim_pause(w.store);
        break;
    }
    push((struct event){.kind = CHAOS}, between(1.0, 80.0));
}

static void step(const struct event *e)
{
    bool of_server = e->kind == TENDER || e->kind == FOLDER || e->kind == FOLD_END ||
                     e->kind == FINISH || e->kind == SERVER_UP;
    bool of_silo =
        e->kind == TO_SILO || e->kind == SILO_TIMER || e->kind == SILO_BEAT || e->kind == SILO_UP;
    if ((of_server && e->life != w.server[e->actor].life) ||
        (of_silo && e->life != w.silo[e->actor].life)) {
        return;
    }
    switch (e->kind) {
    case TO_SERVER:
        if (w.server[e->actor].up) {
            serve(e->m);
        }
        break;
    case TO_SILO:
        silo_told(e->actor, &e->m);
        break;
    case SILO_TIMER:
        if ((unsigned)e->stage == w.silo[e->actor].timer) {
            silo_timer(e->actor);
        }
        break;
    case SILO_BEAT:
        if (e->m.what == CLAIM) {
            beat(e->actor, e->stage);
        }
        break;
    case SILO_UP:
        note("silo up", e->actor, 0);
        w.silo[e->actor].up = true;
        rest(e->actor, 0.01);
        break;
    case SERVER_UP:
        server_up(e->actor);
        break;
    case TENDER:
        tend(e->actor);
        break;
    case FOLDER:
        folder(e->actor);
        break;
    case FOLD_END:
        w.server[e->actor].folding = false;
        sim_fold_end(w.store, &w.server[e->actor].fold, w.now);
        note("folded", e->actor, w.store->head);
        break;
    case FINISH:
        finish(e->m, e->stage);
        break;
    case CHAOS:
        chaos();
        break;
    case PEOPLE:
        sim_resume(w.store, w.now);
        push((struct event){.kind = PEOPLE}, between(20.0, 200.0));
        break;
    case EVENT_KINDS:
    default:
        break;
    }
}

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
        .rounds = 1 + below(3), .silos = 2 + below(SIM_SILOS - 1), .seed = draw()};
    spec.silos_per_round = 1 + below(spec.silos < 4 ? spec.silos : 4);
    spec.min_silos = 1 + below(spec.silos_per_round);
    spec.oversample = below(3);
    spec.tau = 8;
    spec.cap_s = below(4) ? between(150.0, 1200.0) : between(60.0, 150.0);
    sim_init(w.store, &spec);
    w.calm_at = between(50.0, 3000.0);
    w.rots_one_in = 3 + below(20);
    w.fails_one_in = below(4) ? 3 + below(30) : 2;
    w.loss = below(3) ? between(0.0, 0.3) : 0.0;
    w.twice = below(2) ? between(0.0, 0.3) : 0.0;
    w.late = below(2) ? between(0.0, 0.1) : 0.0;
    for (int i = 0; i < SIM_SERVERS; i++) {
        push((struct event){.kind = SERVER_UP, .actor = i}, between(0.0, 20.0));
    }
    for (int i = 0; i < spec.silos; i++) {
        w.silo[i].speed = between(5.0, 60.0);
        w.silo[i].server = below(SIM_SERVERS);
        push((struct event){.kind = SILO_UP, .actor = i}, between(0.0, 60.0));
    }
    push((struct event){.kind = CHAOS}, between(1.0, 80.0));
    push((struct event){.kind = PEOPLE}, 50.0);
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
        struct event e = pop();
        w.now = e.at;
        w.steps++;
        totals[e.kind]++;
        step(&e);
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
