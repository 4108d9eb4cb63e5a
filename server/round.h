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
    ROUND_ATTEMPTS = 3,                  /* aborted so often, the run pauses: run_starved */
    ROUND_POLL_S = 25,                   /* a silo that waits is heard of so often */
    ROUND_PATIENCE_S = 3 * ROUND_POLL_S, /* whoever is not here by then is not coming now */
    ROUND_LEASE_S = 60,                  /* of silence before a lease ends; beats renew it */
};

enum run_state {
    RUN_CREATED = 0,
    RUN_RUNNING,
    RUN_PAUSED,
    RUN_FINISHED,
    RUN_STOPPED,
    RUN_FAILED,
    RUN_STATE_COUNT
};

enum round_state {
    ROUND_IS_NONE = 0,
    ROUND_IS_PENDING,
    ROUND_IS_OPEN,
    ROUND_IS_AGGREGATING,
    ROUND_IS_CLOSED,
    ROUND_IS_ABORTED,
    ROUND_STATE_COUNT
};

enum round_verdict { ROUND_WAIT = 0, ROUND_OPEN, ROUND_RECALL, ROUND_SEAL, ROUND_ABORT };

/* A silo, as the draw of a round sees it. */
struct round_silo {
    bool active;
    bool introduced;  /* it said hello, so it is known what it can do */
    bool tokens_fit;  /* its text is in the run's tokens */
    bool carried;     /* its update of the attempt before is sound: it sits, here or not */
    int aside_rounds; /* that it still sits out */
    double silent_s;  /* since it was last heard of */
};

/* May it get a seat? recall: those who sit out are called back, for there are no others. */
bool round_eligible(const struct round_silo *s, bool recall);

/* May a pending round open? */
struct round_opening {
    int eligible;
    int recallable; /* those eligible when who sits out is called back */
    int silos_per_round;
    int quorum;
    double waited_s; /* since it could first have opened */
};

/*
 * With all the silos it wants, at once. With a quorum, when the others have had ROUND_PATIENCE_S to
 * come: a silo that is just being restarted should not miss its seat. Where only those who sit out
 * could make the quorum, ROUND_RECALL: a run must not wait for ever for a round to pass.
 */
enum round_verdict round_may_open(const struct round_opening *o);

/* Seats to draw: over-sampled, but no more than there are silos. */
int round_seats(int eligible, int silos_per_round, int oversample);

/* Updates that seal it at once. */
int round_expected(int eligible, int silos_per_round);

/* Updates without which it is not sealed. */
int round_quorum(int expected, int min_silos);

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

/* A seat that changed hands at claimed_at has the time of a task from then on, within the cap. */
double round_deadline(double deadline, double cap_at, double claimed_at, double task_s);

/* After the abort of that attempt of a running run: the next one, or a pause for a person. */
bool round_tries_again(int attempt);

/* ---- aggregation ---- */

/* May the holder of that epoch publish, or say that an input is damaged? Only the newest may. */
bool round_fence(enum round_state state, int64_t newest, int64_t epoch);

/* One update fewer: is the rest still a quorum? Else the round is aborted, and asks again. */
bool round_keeps_quorum(int accepted, int quorum);

/* ---- names ---- */

/* Of the database's columns; *_COUNT when there is no such state. */
enum run_state run_state_of(const char *name);
enum round_state round_state_of(const char *name);

#endif
