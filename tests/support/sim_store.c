#include "tests/support/sim_store.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "server/deadline.h"
#include "server/sampling.h"

static const char *const names[SIM_SILOS] = {"ash", "birch", "cedar", "dogwood", "elm", "fir"};

static void broken(struct sim_store *s, const char *fmt, ...)
{
    if (s->broken[0]) {
        return;
    }
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(s->broken, sizeof(s->broken), fmt, ap);
    va_end(ap);
}

uint64_t sim_mix(uint64_t h, uint64_t v)
{
    h ^= v + 0x9e3779b97f4a7c15U + (h << 6) + (h >> 2);
    h *= 0xff51afd7ed558ccdU;
    return h ^ (h >> 33);
}

void sim_init(struct sim_store *s, const struct sim_spec *spec)
{
    // Rounds are written when they are made: to clear them all would be most of a seed's time.
    s->spec = *spec;
    s->run = RUN_RUNNING;
    s->head = 0;
    s->rounds = s->uploads = s->updates = 0;
    s->sample_count = s->starved = s->recalls = s->carried = 0;
    s->checkpoint[0] = (struct sim_checkpoint){.weights = sim_mix(1, spec->seed), .round = -1};
    memset(s->silo, 0, sizeof(s->silo));
    for (int i = 0; i < SIM_SILOS; i++) {
        s->silo[i].seen = -1e9;
    }
    for (int i = 0; i < SIM_SERVERS; i++) {
        s->server_seen[i] = s->server_started[i] = -1e9;
    }
    s->dirty = -1;
    s->broken[0] = '\0';
}

static struct sim_round *live(struct sim_store *s)
{
    struct sim_round *q = s->rounds ? &s->round[s->rounds - 1] : NULL;
    bool lives = q && (q->state == ROUND_IS_PENDING || q->state == ROUND_IS_OPEN ||
                       q->state == ROUND_IS_AGGREGATING);
    return lives ? q : NULL;
}

static void touch(struct sim_store *s, const struct sim_round *q)
{
    s->dirty = (int)(q - s->round);
}

/* ---- who holds what ---- */

static struct sim_lease *open_lease(struct sim_seat *k)
{
    struct sim_lease *l = k->leases ? &k->lease[k->leases - 1] : NULL;
    return l && l->outcome == OUT_HELD ? l : NULL;
}

static void end_lease(struct sim_seat *k, enum sim_outcome outcome)
{
    struct sim_lease *l = open_lease(k);
    if (l) {
        l->outcome = outcome;
    }
}

static enum hold held(const struct sim_store *s, const struct sim_task *t, int silo)
{
    const struct sim_round *q = &s->round[t->round];
    return seat_hold(&q->seat[t->seat].s, silo, t->epoch, s->run, q->state);
}

static void take(struct sim_store *s, struct sim_round *q, int i, int silo, double now)
{
    struct sim_seat *k = &q->seat[i];
    struct sim_lease *before = open_lease(k);
    if (before) {
        before->outcome = before->silo == silo ? OUT_OLD : OUT_EXPIRED;
    }
    seat_take(&k->s, silo, now);
    if (k->s.epoch != k->leases + 1) {
        broken(s, "lease_pk: epoch %lld twice", (long long)k->s.epoch);
    } else if (k->leases == SIM_LEASES) {
        broken(s, "sim: a seat has more than %d leases", SIM_LEASES);
    } else {
        k->lease[k->leases++] = (struct sim_lease){silo, OUT_HELD, now, now};
    }
    touch(s, q);
}

/* A promise of seat.h: whoever beats in time keeps its seat. */
static void check_takeover(struct sim_store *s, const struct sim_seat *k, double now)
{
    const struct sim_lease *l = k->leases ? &k->lease[k->leases - 1] : NULL;
    if (k->s.state == SEAT_LEASED && l && now - l->beat < 2.0 * ROUND_LEASE_S) {
        broken(s, "a seat was taken %.1f s after its silo's last beat", now - l->beat);
    }
}

static double task_seconds(const struct sim_store *s, double *m)
{
    double v[SIM_SAMPLES];
    memcpy(v, s->samples, sizeof(v));
    struct deadline_estimate d = deadline_estimate(v, s->sample_count);
    *m = d.known ? d.m * s->spec.tau : 0.0;
    return deadline_task_seconds(&d, 5.0, s->spec.tau);
}

bool sim_claim(struct sim_store *s, int silo, double now, struct sim_task *out)
{
    struct sim_round *q = live(s);
    s->silo[silo].seen = now;
    s->silo[silo].gone = false;
    if (!q) {
        return false;
    }
    struct claimant c = {.silo = silo, .active = true, .aside = s->silo[silo].aside > 0};
    int found = -1;
    for (int pass = 0; pass < 2 && found < 0; pass++) {
        for (int i = 0; i < q->seats && found < 0; i++) {
            enum claim how = seat_claim_own(&q->seat[i].s, &c, s->run, q->state, now);
            found = how == (pass ? CLAIM_OWN : CLAIM_AGAIN) ? i : -1;
        }
    }
    if (found < 0 && q->state == ROUND_IS_OPEN) {
        struct seat seat[SIM_SEATS];
        struct spare drawn[SIM_SILOS];
        for (int i = 0; i < q->seats; i++) {
            seat[i] = q->seat[i].s;
        }
        for (int i = 0; i < q->drawn_count; i++) {
            const struct sim_silo *d = &s->silo[q->drawn[i]];
            drawn[i] = (struct spare){.silo = q->drawn[i],
                                      .here = now - d->seen<ROUND_PATIENCE_S, .aside = d->aside> 0};
        }
        struct seats r = {.run = s->run,
                          .round = q->state,
                          .seat = seat,
                          .count = q->seats,
                          .drawn = drawn,
                          .drawn_count = q->drawn_count,
                          .deadline = q->deadline};
        (void)task_seconds(s, &r.task_s);
        found = seats_claim_over(&r, &c, now);
        if (found >= 0) {
            check_takeover(s, &q->seat[found], now);
        }
    }
    if (found < 0) {
        return false;
    }
    take(s, q, found, silo, now);
    *out = (struct sim_task){.round = (int)(q - s->round),
                             .seat = found,
                             .number = q->number,
                             .epoch = q->seat[found].s.epoch,
                             .base = s->checkpoint[q->number - 1].weights};
    return true;
}

static void renew(struct sim_store *s, const struct sim_task *t, double now)
{
    struct sim_seat *k = &s->round[t->round].seat[t->seat];
    struct sim_lease *l = open_lease(k);
    seat_renew(&k->s, now);
    if (l) {
        l->beat = now;
    }
}

enum hold sim_beat(struct sim_store *s, const struct sim_task *t, int silo, double now)
{
    enum hold hold = held(s, t, silo);
    if (hold == HOLD_YES) {
        renew(s, t, now);
        s->silo[silo].seen = now;
        s->silo[silo].gone = false;
    }
    return hold;
}

/* ---- uploads ---- */

enum hold sim_create(struct sim_store *s, const struct sim_task *t, int silo, uint64_t digest,
                     int *upload)
{
    enum hold hold = held(s, t, silo);
    *upload = -1;
    for (int i = 0; i < s->uploads; i++) {
        const struct sim_upload *u = &s->upload[i];
        if (u->round == t->round && u->seat == t->seat && u->silo == silo && u->digest == digest &&
            u->state != UP_REFUSED) {
            *upload = i;
            return u->state == UP_ACCEPTED ? HOLD_YES : hold; // its finish says that it counted
        }
    }
    if (hold == HOLD_YES) {
        if (s->uploads == SIM_UPLOADS) {
            broken(s, "sim: more than %d uploads", SIM_UPLOADS);
            return HOLD_LOST;
        }
        *upload = s->uploads++;
        s->upload[*upload] = (struct sim_upload){t->round, t->seat, silo, digest, false, UP_OPEN};
    }
    return hold;
}

enum hold sim_chunk(struct sim_store *s, const struct sim_task *t, int silo, int upload, double now)
{
    struct sim_upload *u = &s->upload[upload];
    if (u->state == UP_PLACED || u->state == UP_ACCEPTED) {
        return HOLD_YES; // a repeat of something that is long durable
    }
    enum hold hold = held(s, t, silo);
    if (hold == HOLD_YES && u->state == UP_OPEN) {
        renew(s, t, now);
        u->whole = true;
    }
    return hold;
}

bool sim_counted(const struct sim_store *s, int upload)
{
    for (int i = 0; i < s->updates; i++) {
        if (s->update[i].upload == upload) {
            return true;
        }
    }
    return false;
}

enum hold sim_may_finish(struct sim_store *s, const struct sim_task *t, int silo, int upload,
                         bool *counted, double now)
{
    enum hold hold = held(s, t, silo);
    *counted = sim_counted(s, upload);
    if (!*counted && hold == HOLD_YES) {
        renew(s, t, now);
    }
    return hold;
}

void sim_place(struct sim_store *s, int upload)
{
    if (s->upload[upload].state == UP_OPEN && s->upload[upload].whole) {
        s->upload[upload].state = UP_PLACED;
    }
}

static int add_update(struct sim_store *s, struct sim_update u)
{
    if (s->updates == SIM_UPDATES) {
        broken(s, "sim: more than %d updates", SIM_UPDATES);
        return 0;
    }
    u.accepted = true;
    u.events = 1;
    s->update[s->updates] = u;
    return s->updates++;
}

enum accept sim_accept(struct sim_store *s, const struct sim_task *t, int silo, int upload,
                       double rots_at, double now)
{
    struct sim_round *q = &s->round[t->round];
    struct sim_seat *k = &q->seat[t->seat];
    struct sim_upload *u = &s->upload[upload];
    enum accept a =
        seat_accept(&k->s, held(s, t, silo), sim_counted(s, upload), u->state == UP_PLACED);
    if (a != ACCEPT_COUNT) {
        if (a != ACCEPT_AGAIN && sim_counted(s, upload)) {
            broken(s, "silo %d is told that its update does not count, and it does", silo);
        }
        return a;
    }
    if (u->state != UP_PLACED) {
        broken(s, "update_fits: an upload counts that is not whole");
    }
    (void)add_update(s, (struct sim_update){.round = t->round,
                                            .seat = t->seat,
                                            .silo = silo,
                                            .upload = upload,
                                            .carried_from = -1,
                                            .epoch = t->epoch,
                                            .digest = u->digest,
                                            .rots_at = rots_at});
    u->state = UP_ACCEPTED;
    s->silo[silo].fails = 0;
    struct sim_lease *l = open_lease(k);
    if (l) {
        int at = s->sample_count < SIM_SAMPLES ? s->sample_count++ : s->updates % SIM_SAMPLES;
        s->samples[at] = (now - l->claimed) / s->spec.tau;
        l->outcome = OUT_ACCEPTED;
    }
    touch(s, q);
    return a;
}

/* ---- giving back ---- */

static void fail(struct sim_store *s, const struct sim_task *t, int silo, const char *code,
                 double draw, double now)
{
    struct sim_round *q = &s->round[t->round];
    struct sim_seat *k = &q->seat[t->seat];
    struct sim_silo *o = &s->silo[silo];
    bool counts = false;
    if (!seat_fail(&k->s, code, draw, &counts, now)) {
        broken(s, "unknown reason %s", code);
    }
    end_lease(k, counts ? OUT_FAILED : OUT_RELEASED);
    k->failures += counts;
    o->fails += counts;
    if (counts && silo_set_aside(o->fails)) {
        o->aside = SILO_ASIDE_ROUNDS;
    }
    touch(s, q);
}

void sim_release(struct sim_store *s, const struct sim_task *t, int silo, const char *code,
                 double draw, double now)
{
    if (held(s, t, silo) == HOLD_YES) {
        fail(s, t, silo, code, draw, now);
    }
}

void sim_refuse(struct sim_store *s, const struct sim_task *t, int silo, int upload, double now)
{
    struct sim_upload *u = &s->upload[upload];
    enum hold hold = held(s, t, silo);
    if (u->state != UP_OPEN && u->state != UP_PLACED) {
        return;
    }
    u->state = UP_REFUSED;
    if (hold == HOLD_YES) {
        fail(s, t, silo, "bad_update", 0.0, now);
    }
}

/* ---- rounds ---- */

static void prepare(struct sim_store *s, double now)
{
    if (s->run != RUN_RUNNING || s->head >= s->spec.rounds || live(s)) {
        return;
    }
    if (s->rounds == SIM_ROUNDS) {
        broken(s, "sim: more than %d attempts", SIM_ROUNDS);
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

static int accepted(const struct sim_store *s, int round)
{
    int n = 0;
    for (int i = s->updates - 1; i >= 0 && s->update[i].round >= round; i--) {
        n += s->update[i].round == round && s->update[i].accepted;
    }
    return n;
}

/* The counted update of a seat, or -1. */
static int update_of(const struct sim_store *s, int round, int seat)
{
    for (int i = s->updates - 1; i >= 0 && s->update[i].round >= round; i--) {
        if (s->update[i].round == round && s->update[i].seat == seat && s->update[i].accepted) {
            return i;
        }
    }
    return -1;
}

static uint64_t manifest_now(const struct sim_store *s, int round)
{
    uint64_t m = 7;
    for (int k = 0; k < s->round[round].seats; k++) {
        int u = update_of(s, round, k);
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
    (void)add_update(s, (struct sim_update){.round = (int)(q - s->round),
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
            out[n++] = (struct sampled){names[i], i, f.carried};
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
        broken(s, "an update that counted before has no seat in the next attempt");
    }
    for (int i = 0; i < s->spec.silos && q->attempt == 1; i++) {
        s->silo[i].aside -= s->silo[i].aside > 0;
    }
    touch(s, q);
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
            end_lease(k, OUT_CANCELLED);
        }
    }
}

static void abort_round(struct sim_store *s, struct sim_round *q, double now)
{
    q->state = ROUND_IS_ABORTED;
    cancel_seats(q);
    touch(s, q);
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
    double task_s = task_seconds(s, &m);
    double claimed = redispatched(q);
    if (task_s > 0.0 && claimed > -1e9) {
        q->deadline = round_deadline(q->deadline, q->cap, claimed, task_s);
    }
    struct round_progress p = {.expected = q->expected,
                               .quorum = q->quorum,
                               .accepted = accepted(s, (int)(q - s->round)),
                               .deadline_passed = q->deadline <= now,
                               .cap_passed = q->cap <= now};
    for (int i = 0; i < q->seats; i++) {
        p.pending += q->seat[i].s.state == SEAT_PENDING;
        p.leased += q->seat[i].s.state == SEAT_LEASED;
    }
    enum round_verdict v = round_judge(&p);
    if (v == ROUND_SEAL) {
        q->state = ROUND_IS_AGGREGATING;
        q->manifest = manifest_now(s, (int)(q - s->round));
        cancel_seats(q);
        touch(s, q);
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
                        broken(s, "a seat is open at once after an outage");
                    }
                }
            }
        }
    }
    s->server_started[server] = s->server_seen[server] = now;
}

void sim_tend(struct sim_store *s, int server, double now)
{
    struct sim_round *q = live(s);
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
                check_takeover(s, &was, now);
                end_lease(k, OUT_EXPIRED);
                touch(s, q);
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
    struct sim_round *q = live(s);
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
        int u = update_of(s, f->round, k);
        if (u >= 0) {
            f->update[f->count++] = u;
            if (f->damaged < 0 && s->update[u].rots_at <= now) {
                f->damaged = u;
            }
        }
    }
}

static uint64_t sum(const struct sim_store *s, uint64_t base, const int *update, int n)
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
    touch(s, q);
    int round = (int)(q - s->round);
    if (round_keeps_quorum(accepted(s, round), q->quorum)) {
        q->manifest = manifest_now(s, round);
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
        broken(s, "run_head_by_one: the head is %d, not %d", s->head, q->number - 1);
        return;
    }
    s->checkpoint[q->number] =
        (struct sim_checkpoint){.weights = sum(s, f->base, f->update, f->count),
                                .manifest = q->manifest,
                                .round = f->round};
    s->head = q->number;
    q->state = ROUND_IS_CLOSED;
    touch(s, q);
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

/* ---- invariants ---- */

static void check_seat(struct sim_store *s, int round, int seat)
{
    const struct sim_seat *k = &s->round[round].seat[seat];
    int counted = 0;
    int rows = 0;
    for (int i = s->updates - 1; i >= 0 && s->update[i].round >= round; i--) {
        const struct sim_update *u = &s->update[i];
        if (u->round != round || u->seat != seat) {
            continue;
        }
        rows++;
        counted += u->accepted;
        bool real = u->epoch >= 1 && u->epoch <= k->leases;
        const struct sim_lease *l = real ? &k->lease[u->epoch - 1] : NULL;
        if (!l || l->silo != u->silo || l->outcome != OUT_ACCEPTED) {
            broken(s, "I7: an update whose lease is another silo's, or was not accepted");
        }
        if (u->events != 1) {
            broken(s, "I11: an update has %d events", u->events);
        }
    }
    if (counted > 1) {
        broken(s, "I2: %d counted updates for one seat", counted);
    }
    if ((k->s.state == SEAT_DONE) != (rows == 1)) {
        broken(s, "I7: done without its update, or the other way round");
    }
    const struct sim_lease *last = k->leases ? &k->lease[k->leases - 1] : NULL;
    bool open = last && last->outcome == OUT_HELD;
    if (open != (k->s.state == SEAT_LEASED) ||
        (open && (k->s.epoch != k->leases || k->s.silo != last->silo))) {
        broken(s, "I7: an open lease without a leased task, or the other way round");
    }
    if (k->failures > SEAT_ATTEMPTS) {
        broken(s, "a seat failed %d times", k->failures);
    }
}

static void check_round(struct sim_store *s, int round)
{
    const struct sim_round *q = &s->round[round];
    bool by[SIM_SILOS] = {0};
    int sits[SIM_SILOS] = {0};
    for (int k = 0; k < q->seats; k++) {
        check_seat(s, round, k);
        int u = update_of(s, round, k);
        if (u >= 0 && by[s->update[u].silo]) {
            broken(s, "I2: two counted updates of one silo");
        }
        if (u >= 0) {
            by[s->update[u].silo] = true;
        }
        enum seat_state state = q->seat[k].s.state;
        if (state == SEAT_PENDING || state == SEAT_LEASED || state == SEAT_DONE) {
            if (sits[q->seat[k].s.silo]++) {
                broken(s, "task_silo_once: a silo has two seats of a round");
            }
        }
    }
    bool sealed = q->state == ROUND_IS_AGGREGATING || q->state == ROUND_IS_CLOSED;
    if (sealed && q->manifest != manifest_now(s, round)) {
        broken(s, "I6: updates changed after the seal");
    }
    if (sealed && accepted(s, round) < q->quorum) {
        broken(s, "I6: below quorum");
    }
    if (q->state == ROUND_IS_CLOSED) {
        int list[SIM_SEATS];
        int n = 0;
        for (int k = 0; k < q->seats; k++) {
            int u = update_of(s, round, k);
            if (u >= 0) {
                list[n++] = u;
            }
        }
        const struct sim_checkpoint *c = &s->checkpoint[q->number];
        if (c->round != round || c->manifest != q->manifest ||
            c->weights != sum(s, s->checkpoint[q->number - 1].weights, list, n)) {
            broken(s, "I3: checkpoint %d is not its parent plus its round's manifest", q->number);
        }
    }
}

bool sim_check(struct sim_store *s, bool whole)
{
    if (s->dirty >= 0) {
        check_round(s, s->dirty);
    }
    s->dirty = -1;
    const struct sim_round *q = live(s);
    if (q && q->number != s->head + 1) {
        broken(s, "I5: a live round that does not build on head");
    }
    for (int r = 0; whole && r < s->rounds; r++) {
        check_round(s, r);
        bool lives = s->round[r].state != ROUND_IS_CLOSED && s->round[r].state != ROUND_IS_ABORTED;
        if (lives && r != s->rounds - 1) {
            broken(s, "I5: two live rounds");
        }
        for (int o = 0; o < r; o++) {
            if (s->round[o].number == s->round[r].number && s->round[o].state == ROUND_IS_CLOSED) {
                broken(s, "I4: round %d was closed and opened again", s->round[r].number);
            }
        }
    }
    return !s->broken[0];
}
