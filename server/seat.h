/*
 * seat.h - the rules of a task: who may take it, who holds it, what becomes of it.
 *
 * A task is a seat of a round, or the evaluation of a checkpoint. Values in, values out: no clock,
 * no database. The caller reads a task under its lock, applies an event, and writes the seat that
 * comes out in the same transaction (db_seat.h); the simulation of tests/fault applies the same
 * events to seats of its own. Times are seconds on the caller's axis. Silos are numbers that the
 * caller gives.
 *
 *                .-------- expire, give back --------.
 *                v                                   |
 *     PENDING --take--> LEASED --count--> DONE       |      PENDING, LEASED --seal, abort-->
 * CANCELLED
 *                         '---- fail ----------------+--third failure--> FAILED
 *
 * All times follow from the lease time: beats every quarter of it, a silent silo keeps its seat for
 * two of it, and a spare has a twelfth of it to take a seat before the next one may.
 */
#ifndef SERVER_SEAT_H
#define SERVER_SEAT_H

#include <stdbool.h>
#include <stdint.h>

#include "server/round.h"

enum {
    SEAT_BEAT_S = ROUND_LEASE_S / 4,
    SEAT_TURN_S = ROUND_LEASE_S / 12,
    SEAT_ATTEMPTS = 3,
    SILO_FAILS_ASIDE = 3,  /* failures in a row set a silo aside */
    SILO_ASIDE_ROUNDS = 3, /* for so many rounds */
    SILO_LEFT_OUT_SAID = 3 /* rounds without a seat in a row are an event */
};

enum seat_state {
    SEAT_PENDING = 0,
    SEAT_LEASED,
    SEAT_DONE,
    SEAT_CANCELLED,
    SEAT_FAILED,
    SEAT_STATE_COUNT
};

struct seat {
    enum seat_state state;
    bool evaluate;      /* an evaluation is its own silo's alone */
    int silo;           /* whose it is, or was last */
    int64_t epoch;      /* of its newest lease; 0: none yet */
    int attempt;        /* from 1 */
    double lease_until; /* while leased; renewable after it, until somebody else takes the seat */
    double free_at;     /* while pending: its own silo may take it from here on */
    double open_at;     /* while pending: spares may; INFINITY: never */
};

/* A seat that is drawn for a silo. One that never polls keeps it for two lease times. */
struct seat seat_new(int silo, bool evaluate, double now);

/* From when on another silo may take it; INFINITY: never. */
double seat_open_since(const struct seat *s);

/* ---- who may take it ---- */

/* A silo of the round's draw, in its order. */
struct spare {
    int silo;
    bool here; /* active, and heard of within three poll times */
    bool aside;
};

/* A round as a claim sees it. */
struct seats {
    enum run_state run;
    enum round_state round;
    const struct seat *seat;
    int count;
    const struct spare *drawn; /* seats first, then spares */
    int drawn_count;
    double deadline;
    double task_s; /* what a task takes, as the median says; 0: not known */
};

struct claimant {
    int silo;
    bool active;     /* else it keeps what it holds and gets nothing new */
    bool tokens_fit; /* its text is in the run's tokens; asked of who would take over */
    bool aside;
};

enum claim { CLAIM_NO = 0, CLAIM_AGAIN, CLAIM_OWN, CLAIM_OVER };

/*
 * What it holds or was drawn for. CLAIM_AGAIN: its reply was lost, or the agent started anew; so
 * asking again is always safe.
 */
enum claim seat_claim_own(const struct seat *s, const struct claimant *c, enum run_state run,
                          enum round_state round, double now);

/*
 * The seat of another silo that this one may take over: its index, or -1. Spares come in the order
 * of the draw, not of asking: one waits for those before it that are here, as many as there are
 * free seats being served at once, each for SEAT_TURN_S. A silo that came after the draw is behind
 * all of them, and gets a seat only if what is left until the deadline covers a task.
 */
int seats_claim_over(const struct seats *r, const struct claimant *c, double now);

/* Take it: a new epoch, so that whoever held it before holds it no longer. */
void seat_take(struct seat *s, int silo, double now);

/* ---- holding it ---- */

enum hold { HOLD_LOST = 0, HOLD_YES, HOLD_RUN_OVER, HOLD_ROUND_OVER, HOLD_DONE };

/* Does the silo hold it under that epoch? The first reason why not. */
enum hold seat_hold(const struct seat *s, int silo, int64_t epoch, enum run_state run,
                    enum round_state round);

/* Only with HOLD_YES: a beat, a chunk. */
void seat_renew(struct seat *s, double now);

enum accept { ACCEPT_COUNT = 0, ACCEPT_AGAIN, ACCEPT_REFUSE, ACCEPT_GONE };

/*
 * The finish of an upload. counted: this very upload counted before, so the same answer again,
 * whatever happened since. placed: its file is whole and durable.
 */
enum accept seat_accept(struct seat *s, enum hold hold, bool counted, bool placed);

/* ---- losing it ---- */

/*
 * Given back for a reason of docs/API.md, or "bad_update". What another machine may do better goes
 * elsewhere at once; what passes may come back to its own silo. draw in [0, 1) spreads those who
 * failed together. *counts: as an attempt, and against the silo. False: no such reason.
 */
bool seat_fail(struct seat *s, const char *code, double draw, bool *counts, double now);

/* Take it from a silo that is gone; true when it was time. */
bool seat_expire(struct seat *s, bool gone, double now);

/* Failures in a row, now: does the silo sit out SILO_ASIDE_ROUNDS from here on? */
bool silo_set_aside(int fails);

/* Rounds in a row without a seat: is it time to say so? */
bool silo_left_out(int rounds);

/* ---- when no server lived ---- */

/* Was it so long that silos could not keep their leases? Silence of ours costs nobody a seat. */
bool outage_counts(double silence_s);
void seat_outage(struct seat *s, double now);
double round_outage(double deadline, double cap_at, double silence_s);

#endif
