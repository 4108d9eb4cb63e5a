/*
 * round.h - the rules of a round: when it opens, when it is sealed, when it is given up.
 *
 * Facts in, verdict out: no clock, no database. The caller reads a round under its lock, asks here,
 * and writes the verdict in the same transaction. Which state may follow which is refused a second
 * time by the trigger round_step.
 *
 *     PENDING --open--> OPEN --seal--> AGGREGATING --publish--> CLOSED
 *        '---------------'-- abort -------'  (attempt + 1, sound updates carried over)
 */
#ifndef SERVER_ROUND_H
#define SERVER_ROUND_H

#include <stdbool.h>
#include <stdint.h>

enum {
    ROUND_ATTEMPTS = 3,    /* aborted so often, the run pauses: run_starved */
    ROUND_PATIENCE_S = 75, /* three poll times: whoever is not here by then is not coming now */
    ROUND_LEASE_S = 60,    /* the lease time that the rules below are stated in */
};

enum round_verdict { ROUND_WAIT = 0, ROUND_OPEN, ROUND_SEAL, ROUND_ABORT };

/* May a pending round open? */
struct round_opening {
    int eligible;
    int silos_per_round;
    int quorum;
    double waited_s; /* since it could first have opened */
};

/*
 * With all the silos it wants, at once. With a quorum, when the others have had ROUND_PATIENCE_S to
 * come: a silo that is just being restarted should not miss its seat.
 */
enum round_verdict round_may_open(const struct round_opening *o);

/* Seats to draw: over-sampled, but no more than there are silos. */
int round_seats(int eligible, int silos_per_round, int oversample);

/* Updates that seal it at once. */
int round_expected(int eligible, int silos_per_round);

/* An open round. */
struct round_progress {
    int expected;
    int quorum;
    int accepted;
    int pending; /* seats that wait for a silo */
    int leased;
    bool deadline_passed;
    bool cap_passed;
};

/*
 * Seal with all expected updates; with a quorum when nobody is at work any more, or when the
 * deadline has passed. Abort when a quorum can no longer come: no seat left, or the cap has passed.
 */
enum round_verdict round_judge(const struct round_progress *p);

#endif
