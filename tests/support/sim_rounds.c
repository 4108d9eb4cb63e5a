/* The server side of sim_store.h: rounds opened, judged, folded; what people do. */
#include "tests/support/sim_store_int.h"

#include <math.h>
#include <string.h>

#include "server/deadline.h"
#include "server/sampling.h"

/* ---- rounds ---- */

static void prepare(struct sim_store *s, double now)
{
    if (s->run != RUN_RUNNING || s->head >= s->spec.rounds || sim_live(s)) {
        return;
    }
    if (s->rounds == SIM_ROUNDS) {
        sim_broken(s, "sim: more than %d attempts", SIM_ROUNDS);
        return;
    }
    int attempt = 1;
    if (s->rounds && s->round[s->rounds - 1].number == s->head + 1) {
        attempt = s->round[s->rounds - 1].attempt + 1;
    }
    struct sim_round *q = &s->round[s->rounds++];
    q->number = s->head + 1;
    q->attempt = attempt;
    q->state = ROUND_IS_PENDING;
    q->created = now;
    q->seats = q->drawn_count = 0;
    q->agg_epoch = 0;
    q->manifest = 0;
}

int sim_accepted(const struct sim_store *s, int round)
{
    int n = 0;
    for (int i = s->updates - 1; i >= 0 && s->update[i].round >= round; i--) {
        n += s->update[i].round == round && s->update[i].accepted;
    }
    return n;
}

/* The counted update of a seat, or -1. */
int sim_update_of(const struct sim_store *s, int round, int seat)
{
    for (int i = s->updates - 1; i >= 0 && s->update[i].round >= round; i--) {
        if (s->update[i].round == round && s->update[i].seat == seat && s->update[i].accepted) {
            return i;
        }
    }
    return -1;
}

uint64_t sim_manifest_now(const struct sim_store *s, int round)
{
    uint64_t m = 7;
    for (int k = 0; k < s->round[round].seats; k++) {
        int u = sim_update_of(s, round, k);
        if (u >= 0) {
            m = sim_mix(sim_mix(m, (uint64_t)k), s->update[u].digest);
        }
    }
    return m;
}

/* What the update of that silo in the attempt before was, if it is sound; or -1. */
static int carried_update(const struct sim_store *s, const struct sim_round *q, int silo)
{
    int before = (int)(q - s->round) - 1;
    if (q->attempt == 1) {
        return -1;
    }
    for (int i = s->updates - 1; i >= 0 && s->update[i].round >= before; i--) {
        if (s->update[i].round == before && s->update[i].silo == silo && s->update[i].accepted) {
            return i;
        }
    }
    return -1;
}

static void carry(struct sim_store *s, struct sim_round *q, int i, int from)
{
    struct sim_seat *k = &q->seat[i];
    const struct sim_update *u = &s->update[from];
    k->s.state = SEAT_DONE;
    k->s.epoch = 1;
    k->lease[0] = (struct sim_lease){.silo = u->silo, .outcome = OUT_ACCEPTED};
    k->leases = 1;
    s->carried++;
    (void)sim_add_update(s, (struct sim_update){.round = (int)(q - s->round),
                                                .seat = i,
                                                .silo = u->silo,
                                                .upload = -1,
                                                .carried_from = from,
                                                .epoch = 1,
                                                .digest = u->digest,
                                                .rots_at = u->rots_at});
}

static int sample(struct sim_store *s, const struct sim_round *q, bool recall, double now,
                  struct sampled *out, int *recallable)
{
    int n = 0;
    *recallable = 0;
    for (int i = 0; i < s->spec.silos; i++) {
        struct round_silo f = {.active = true,
                               .introduced = s->silo[i].seen > -1e8,
                               .tokens_fit = true,
                               .carried = carried_update(s, q, i) >= 0,
                               .aside_rounds = s->silo[i].aside,
                               .silent_s = now - s->silo[i].seen};
        *recallable += round_eligible(&f, true);
        if (round_eligible(&f, recall)) {
            out[n++] = (struct sampled){sim_names[i], i, f.carried};
        }
    }
    return n;
}

static double waited(const struct sim_store *s, const struct sim_round *q, double now)
{
    double since = INFINITY;
    for (int i = 0; i < SIM_SERVERS; i++) {
        if (now - s->server_seen[i] < 30.0) {
            since = fmin(since, s->server_started[i]);
        }
    }
    return now - (isinf(since) ? q->created : fmax(q->created, since));
}

static void open_now(struct sim_store *s, struct sim_round *q, struct sampled *silos, int n,
                     double now)
{
    q->seats = round_seats(n, s->spec.silos_per_round, s->spec.oversample);
    sampling_seats(s->spec.seed, q->number, silos, n, q->seats);
    q->expected = round_expected(n, s->spec.silos_per_round);
    q->quorum = round_quorum(q->expected, s->spec.min_silos);
    q->state = ROUND_IS_OPEN;
    q->opened = now;
    q->cap = now + s->spec.cap_s;
    double v[SIM_SAMPLES];
    memcpy(v, s->samples, sizeof(v));
    struct deadline_estimate d = deadline_estimate(v, s->sample_count);
    q->deadline = now + deadline_seconds(&d, 5.0, s->spec.tau, 2 * ROUND_LEASE_S, s->spec.cap_s);
    q->drawn_count = n;
    int carried = s->carried;
    for (int i = 0; i < n; i++) {
        q->drawn[i] = silos[i].index;
        if (i < q->seats) {
            struct sim_seat *k = &q->seat[i];
            k->s = seat_new(silos[i].index, false, now);
            k->drawn_for = silos[i].index;
            k->failures = k->leases = 0;
            int from = carried_update(s, q, silos[i].index);
            if (from >= 0) {
                carry(s, q, i, from);
            }
        }
    }
    for (int i = 0; i < SIM_SILOS; i++) {
        carried += carried_update(s, q, i) >= 0;
    }
    if (carried != s->carried) {
        sim_broken(s, "an update that counted before has no seat in the next attempt");
    }
    for (int i = 0; i < s->spec.silos && q->attempt == 1; i++) {
        s->silo[i].aside -= s->silo[i].aside > 0;
    }
    sim_touch(s, q);
}

static void try_open(struct sim_store *s, struct sim_round *q, double now)
{
    struct sampled silos[SIM_SILOS];
    int recallable = 0;
    int n = sample(s, q, false, now, silos, &recallable);
    struct round_opening o = {.eligible = n,
                              .recallable = recallable,
                              .silos_per_round = s->spec.silos_per_round,
                              .quorum = s->spec.min_silos,
                              .waited_s = waited(s, q, now)};
    enum round_verdict v = round_may_open(&o);
    if (v == ROUND_RECALL) {
        s->recalls++;
        n = sample(s, q, true, now, silos, &recallable);
        for (int i = 0; i < SIM_SILOS; i++) {
            s->silo[i].aside = 0;
        }
    }
    if (v != ROUND_WAIT) {
        open_now(s, q, silos, n, now);
    }
}

static void cancel_seats(struct sim_round *q)
{
    for (int i = 0; i < q->seats; i++) {
        struct sim_seat *k = &q->seat[i];
        if (k->s.state == SEAT_PENDING || k->s.state == SEAT_LEASED) {
            k->s.state = SEAT_CANCELLED;
            sim_end_lease(k, OUT_CANCELLED);
        }
    }
}

static void abort_round(struct sim_store *s, struct sim_round *q, double now)
{
    q->state = ROUND_IS_ABORTED;
    cancel_seats(q);
    sim_touch(s, q);
    if (s->run != RUN_RUNNING) {
        return;
    }
    if (round_tries_again(q->attempt)) {
        prepare(s, now);
    } else {
        s->run = RUN_PAUSED;
        s->starved++;
    }
}

/* The newest claim of a seat at work that changed hands; -INFINITY: none. */
static double redispatched(const struct sim_round *q)
{
    double newest = -(double)INFINITY;
    for (int i = 0; i < q->seats; i++) {
        const struct sim_seat *k = &q->seat[i];
        const struct sim_lease *l = k->leases ? &k->lease[k->leases - 1] : NULL;
        bool moved = false;
        for (int j = 0; l && j < k->leases - 1; j++) {
            moved = moved || k->lease[j].silo != l->silo;
        }
        if (moved && l->outcome == OUT_HELD) {
            newest = fmax(newest, l->claimed);
        }
    }
    return newest;
}

static void judge(struct sim_store *s, struct sim_round *q, double now)
{
    double m = 0.0;
    double task_s = sim_task_seconds(s, &m);
    double claimed = redispatched(q);
    if (task_s > 0.0 && claimed > -1e9) {
        q->deadline = round_deadline(q->deadline, q->cap, claimed, task_s);
    }
    struct round_progress p = {.expected = q->expected,
                               .quorum = q->quorum,
                               .accepted = sim_accepted(s, (int)(q - s->round)),
                               .deadline_passed = q->deadline <= now,
                               .cap_passed = q->cap <= now};
    for (int i = 0; i < q->seats; i++) {
        p.pending += q->seat[i].s.state == SEAT_PENDING;
        p.leased += q->seat[i].s.state == SEAT_LEASED;
    }
    enum round_verdict v = round_judge(&p);
    if (v == ROUND_SEAL) {
        q->state = ROUND_IS_AGGREGATING;
        q->manifest = sim_manifest_now(s, (int)(q - s->round));
        cancel_seats(q);
        sim_touch(s, q);
    } else if (v == ROUND_ABORT) {
        abort_round(s, q, now);
    }
}

/* ---- servers ---- */

void sim_arrive(struct sim_store *s, int server, double now)
{
    double silence = now - fmax(s->server_seen[0], s->server_seen[1]);
    if (silence < 1e8 && outage_counts(silence)) {
        for (int r = 0; r < s->rounds; r++) {
            struct sim_round *q = &s->round[r];
            if (q->state == ROUND_IS_OPEN) {
                q->deadline = round_outage(q->deadline, q->cap, silence);
                for (int i = 0; i < q->seats; i++) {
                    seat_outage(&q->seat[i].s, now);
                    if (seat_open_since(&q->seat[i].s) < now + ROUND_LEASE_S) {
                        sim_broken(s, "a seat is open at once after an outage");
                    }
                }
            }
        }
    }
    s->server_started[server] = s->server_seen[server] = now;
}

void sim_tend(struct sim_store *s, int server, double now)
{
    struct sim_round *q = sim_live(s);
    s->server_seen[server] = now;
    for (int i = 0; i < s->spec.silos; i++) {
        if (now - s->silo[i].seen > ROUND_PATIENCE_S &&
            now - s->server_started[server] > ROUND_PATIENCE_S) {
            s->silo[i].gone = true;
        }
    }
    for (int i = 0; q && q->state == ROUND_IS_OPEN && i < q->seats; i++) {
        struct sim_seat *k = &q->seat[i];
        if (k->s.state == SEAT_LEASED) {
            struct seat before = k->s;
            if (seat_expire(&k->s, s->silo[k->s.silo].gone, now)) {
                struct sim_seat was = {.s = before, .leases = 1};
                was.lease[0] = k->lease[k->leases - 1];
                sim_check_takeover(s, &was, now);
                sim_end_lease(k, OUT_EXPIRED);
                sim_touch(s, q);
            }
        }
    }
    if (q && q->state == ROUND_IS_OPEN) {
        judge(s, q, now);
    } else if (s->run == RUN_RUNNING && q && q->state == ROUND_IS_PENDING) {
        try_open(s, q, now);
    } else if (s->run == RUN_RUNNING && !q && s->head == s->spec.rounds) {
        s->run = RUN_FINISHED;
    } else if (s->run == RUN_RUNNING && !q) {
        prepare(s, now);
    }
}

void sim_fold_begin(struct sim_store *s, struct sim_fold *f, double now)
{
    struct sim_round *q = sim_live(s);
    f->found = q && q->state == ROUND_IS_AGGREGATING;
    if (!f->found) {
        return;
    }
    f->round = (int)(q - s->round);
    f->epoch = ++q->agg_epoch;
    f->base = s->checkpoint[q->number - 1].weights;
    f->count = 0;
    f->damaged = -1;
    for (int k = 0; k < q->seats; k++) {
        int u = sim_update_of(s, f->round, k);
        if (u >= 0) {
            f->update[f->count++] = u;
            if (f->damaged < 0 && s->update[u].rots_at <= now) {
                f->damaged = u;
            }
        }
    }
}

uint64_t sim_sum(const struct sim_store *s, uint64_t base, const int *update, int n)
{
    uint64_t w = base;
    for (int i = 0; i < n; i++) {
        w = sim_mix(w, s->update[update[i]].digest);
    }
    return w;
}

static void corrupt(struct sim_store *s, struct sim_round *q, int update, double now)
{
    s->update[update].accepted = false;
    sim_touch(s, q);
    int round = (int)(q - s->round);
    if (round_keeps_quorum(sim_accepted(s, round), q->quorum)) {
        q->manifest = sim_manifest_now(s, round);
        q->agg_epoch++;
    } else {
        abort_round(s, q, now);
    }
}

void sim_fold_end(struct sim_store *s, const struct sim_fold *f, double now)
{
    struct sim_round *q = &s->round[f->round];
    if (!round_fence(q->state, q->agg_epoch, f->epoch)) {
        return;
    }
    if (f->damaged >= 0) {
        if (s->update[f->damaged].accepted) {
            corrupt(s, q, f->damaged, now);
        }
        return;
    }
    if (s->head != q->number - 1) {
        sim_broken(s, "run_head_by_one: the head is %d, not %d", s->head, q->number - 1);
        return;
    }
    s->checkpoint[q->number] =
        (struct sim_checkpoint){.weights = sim_sum(s, f->base, f->update, f->count),
                                .manifest = q->manifest,
                                .round = f->round};
    s->head = q->number;
    q->state = ROUND_IS_CLOSED;
    sim_touch(s, q);
    prepare(s, now);
}

/* ---- people ---- */

void sim_pause(struct sim_store *s)
{
    s->run = s->run == RUN_RUNNING ? RUN_PAUSED : s->run;
}

void sim_resume(struct sim_store *s, double now)
{
    if (s->run == RUN_PAUSED) {
        s->run = RUN_RUNNING;
        prepare(s, now);
    }
}
