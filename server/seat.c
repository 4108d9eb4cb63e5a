#include "server/seat.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

struct seat seat_new(int silo, bool evaluate, double now)
{
    return (struct seat){.state = SEAT_PENDING,
                         .evaluate = evaluate,
                         .silo = silo,
                         .attempt = 1,
                         .free_at = now,
                         .open_at = evaluate ? (double)INFINITY : now + 2.0 * ROUND_LEASE_S};
}

double seat_open_since(const struct seat *s)
{
    if (!s->evaluate && s->state == SEAT_PENDING) {
        return s->open_at;
    }
    if (!s->evaluate && s->state == SEAT_LEASED) {
        return s->lease_until + ROUND_LEASE_S;
    }
    return (double)INFINITY;
}

/* ---- who may take it ---- */

enum claim seat_claim_own(const struct seat *s, const struct claimant *c, enum run_state run,
                          enum round_state round, double now)
{
    if (s->silo != c->silo || (!s->evaluate && round != ROUND_IS_OPEN)) {
        return CLAIM_NO;
    }
    if (s->state == SEAT_LEASED) {
        bool alive = run == RUN_RUNNING || run == RUN_PAUSED || run == RUN_FINISHED;
        return alive ? CLAIM_AGAIN : CLAIM_NO;
    }
    bool runs = run == RUN_RUNNING || (run == RUN_FINISHED && s->evaluate);
    bool free = s->state == SEAT_PENDING && s->free_at <= now;
    return c->active && runs && free ? CLAIM_OWN : CLAIM_NO;
}

static bool has_seat(const struct seats *r, int silo)
{
    for (int i = 0; i < r->count; i++) {
        enum seat_state state = r->seat[i].state;
        bool sits = state == SEAT_PENDING || state == SEAT_LEASED || state == SEAT_DONE;
        if (r->seat[i].silo == silo && sits) {
            return true;
        }
    }
    return false;
}

/* Spares that may come before it. *drawn: it was in the draw itself. */
static int spares_before(const struct seats *r, int silo, bool *drawn)
{
    int before = 0;
    for (int i = 0; i < r->drawn_count; i++) {
        const struct spare *s = &r->drawn[i];
        if (s->silo == silo) {
            *drawn = true;
            return before;
        }
        before += s->here && !s->aside && !has_seat(r, s->silo);
    }
    *drawn = false;
    return before;
}

int seats_claim_over(const struct seats *r, const struct claimant *c, double now)
{
    if (!c->active || !c->tokens_fit || c->aside || r->run != RUN_RUNNING ||
        r->round != ROUND_IS_OPEN || has_seat(r, c->silo)) {
        return -1;
    }
    bool drawn = false;
    int before = spares_before(r, c->silo, &drawn);
    if (!drawn && r->deadline - now < r->task_s) {
        return -1;
    }
    // Free seats are served in slot order, each to one spare: with three of them, the first three
    // spares need not wait for each other.
    for (int i = 0; i < r->count; i++) {
        double since = seat_open_since(&r->seat[i]);
        if (since <= now) {
            if (before == 0 || since + before * SEAT_TURN_S <= now) {
                return i;
            }
            before--;
        }
    }
    return -1;
}

void seat_take(struct seat *s, int silo, double now)
{
    s->state = SEAT_LEASED;
    s->silo = silo;
    s->epoch++;
    s->lease_until = now + ROUND_LEASE_S;
}

/* ---- holding it ---- */

enum hold seat_hold(const struct seat *s, int silo, int64_t epoch, enum run_state run,
                    enum round_state round)
{
    if (run == RUN_STOPPED || run == RUN_FAILED) {
        return HOLD_RUN_OVER;
    }
    if (!s->evaluate && round != ROUND_IS_OPEN) {
        return HOLD_ROUND_OVER;
    }
    if (s->state == SEAT_DONE) {
        return HOLD_DONE;
    }
    return s->state == SEAT_LEASED && s->silo == silo && s->epoch == epoch ? HOLD_YES : HOLD_LOST;
}

void seat_renew(struct seat *s, double now)
{
    s->lease_until = now + ROUND_LEASE_S;
}

enum accept seat_accept(struct seat *s, enum hold hold, bool counted, bool placed)
{
    if (counted) {
        return ACCEPT_AGAIN;
    }
    if (hold != HOLD_YES) {
        return ACCEPT_REFUSE;
    }
    if (!placed) {
        return ACCEPT_GONE;
    }
    s->state = SEAT_DONE;
    return ACCEPT_COUNT;
}

/* ---- losing it ---- */

/* In lease times: until its own silo may take it again, up to so much more, until others may. */
static const struct {
    const char *code;
    bool counts;
    double own;
    double spread;
    double others;
} reasons[] = {
    {"oom", true, 1.0, 0.0, 0.0},         {"disk_full", true, 1.0, 0.0, 0.0},
    {"bad_data", true, 1.0, 0.0, 0.0},    {"diverged", true, 1.0, 0.0, 0.0},
    {"bad_update", true, 1.0 / 12, 0, 0}, {"transient", true, 1.0 / 12, 11.0 / 12, 1.0},
    {"shutdown", false, 0.0, 0.0, 1.0},
};

bool seat_fail(struct seat *s, const char *code, double draw, bool *counts, double now)
{
    size_t i = 0;
    while (strcmp(reasons[i].code, code) != 0) {
        i++;
        if (i == sizeof(reasons) / sizeof(reasons[0])) {
            return false;
        }
    }
    *counts = reasons[i].counts;
    s->state = SEAT_PENDING;
    if (*counts && s->attempt >= SEAT_ATTEMPTS) {
        s->state = SEAT_FAILED;
    } else if (*counts) {
        s->attempt++;
    }
    s->free_at = now + (reasons[i].own + reasons[i].spread * draw) * ROUND_LEASE_S;
    s->open_at = s->evaluate ? (double)INFINITY : now + reasons[i].others * ROUND_LEASE_S;
    return true;
}

bool seat_expire(struct seat *s, bool gone, double now)
{
    if (s->state != SEAT_LEASED || !gone || s->lease_until + ROUND_LEASE_S >= now) {
        return false;
    }
    s->state = SEAT_PENDING;
    s->free_at = now;
    s->open_at = s->evaluate ? (double)INFINITY : now;
    return true;
}

bool silo_set_aside(int fails)
{
    return fails > 0 && fails % SILO_FAILS_ASIDE == 0;
}

bool silo_left_out(int rounds)
{
    return rounds > 0 && rounds % SILO_LEFT_OUT_SAID == 0;
}

/* ---- when no server lived ---- */

bool outage_counts(double silence_s)
{
    return silence_s > ROUND_LEASE_S / 2.0;
}

void seat_outage(struct seat *s, double now)
{
    if (s->state == SEAT_LEASED) {
        s->lease_until = fmax(s->lease_until, now) + ROUND_LEASE_S;
    } else if (s->state == SEAT_PENDING) {
        s->open_at = fmax(s->open_at, now + 2.0 * ROUND_LEASE_S);
    }
}

double round_outage(double deadline, double cap_at, double silence_s)
{
    return fmin(cap_at, deadline + silence_s);
}
