#include "tests/support/sim_store_int.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "server/deadline.h"
#include "server/sampling.h"

const char *const sim_names[SIM_SILOS] = {"ash", "birch", "cedar", "dogwood", "elm", "fir"};

void sim_broken(struct sim_store *s, const char *fmt, ...)
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

struct sim_round *sim_live(struct sim_store *s)
{
    struct sim_round *q = s->rounds ? &s->round[s->rounds - 1] : NULL;
    bool lives = q && (q->state == ROUND_IS_PENDING || q->state == ROUND_IS_OPEN ||
                       q->state == ROUND_IS_AGGREGATING);
    return lives ? q : NULL;
}

void sim_touch(struct sim_store *s, const struct sim_round *q)
{
    s->dirty = (int)(q - s->round);
}

/* ---- who holds what ---- */

static struct sim_lease *open_lease(struct sim_seat *k)
{
    struct sim_lease *l = k->leases ? &k->lease[k->leases - 1] : NULL;
    return l && l->outcome == OUT_HELD ? l : NULL;
}

void sim_end_lease(struct sim_seat *k, enum sim_outcome outcome)
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
        sim_broken(s, "lease_pk: epoch %lld twice", (long long)k->s.epoch);
    } else if (k->leases == SIM_LEASES) {
        sim_broken(s, "sim: a seat has more than %d leases", SIM_LEASES);
    } else {
        k->lease[k->leases++] = (struct sim_lease){silo, OUT_HELD, now, now};
    }
    sim_touch(s, q);
}

/* A promise of seat.h: whoever beats in time keeps its seat. */
void sim_check_takeover(struct sim_store *s, const struct sim_seat *k, double now)
{
    const struct sim_lease *l = k->leases ? &k->lease[k->leases - 1] : NULL;
    if (k->s.state == SEAT_LEASED && l && now - l->beat < 2.0 * ROUND_LEASE_S) {
        sim_broken(s, "a seat was taken %.1f s after its silo's last beat", now - l->beat);
    }
}

double sim_task_seconds(const struct sim_store *s, double *m)
{
    double v[SIM_SAMPLES];
    memcpy(v, s->samples, sizeof(v));
    struct deadline_estimate d = deadline_estimate(v, s->sample_count);
    *m = d.known ? d.m * s->spec.tau : 0.0;
    return deadline_task_seconds(&d, 5.0, s->spec.tau);
}

bool sim_claim(struct sim_store *s, int silo, double now, struct sim_task *out)
{
    struct sim_round *q = sim_live(s);
    s->silo[silo].seen = now;
    s->silo[silo].gone = false;
    if (!q) {
        return false;
    }
    struct claimant c = {
        .silo = silo, .active = true, .tokens_fit = true, .aside = s->silo[silo].aside > 0};
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
        (void)sim_task_seconds(s, &r.task_s);
        found = seats_claim_over(&r, &c, now);
        if (found >= 0) {
            sim_check_takeover(s, &q->seat[found], now);
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
            sim_broken(s, "sim: more than %d uploads", SIM_UPLOADS);
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

int sim_add_update(struct sim_store *s, struct sim_update u)
{
    if (s->updates == SIM_UPDATES) {
        sim_broken(s, "sim: more than %d updates", SIM_UPDATES);
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
            sim_broken(s, "silo %d is told that its update does not count, and it does", silo);
        }
        return a;
    }
    if (u->state != UP_PLACED) {
        sim_broken(s, "update_fits: an upload counts that is not whole");
    }
    (void)sim_add_update(s, (struct sim_update){.round = t->round,
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
    sim_touch(s, q);
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
        sim_broken(s, "unknown reason %s", code);
    }
    sim_end_lease(k, counts ? OUT_FAILED : OUT_RELEASED);
    k->failures += counts;
    o->fails += counts;
    if (counts && silo_set_aside(o->fails)) {
        o->aside = SILO_ASIDE_ROUNDS;
    }
    sim_touch(s, q);
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
