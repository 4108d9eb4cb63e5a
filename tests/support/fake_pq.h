/*
 * fake_pq.h - a libpq that says what the test tells it to.
 *
 * Linked in place of -lpq. A test lays out the replies in order; a call that
 * was not foreseen, or a PGresult that was never cleared, fails the test.
 * What db.c sends when it connects is answered by itself and counted.
 */
#ifndef TESTS_SUPPORT_FAKE_PQ_H
#define TESTS_SUPPORT_FAKE_PQ_H

#include <stdbool.h>

struct fake_reply {
    const char *sql;        /* text the statement must contain */
    const char *sqlstate;   /* NULL: success */
    const char *constraint; /* with sqlstate */
    bool lost;              /* connection lost: no reply at all */
    bool unprepared;        /* it is what preparing the statement gets */
    bool command;           /* no rows: PGRES_COMMAND_OK */
    int rows;
    int cols;
    const char *const *fields; /* row-major; NULL entry for SQL null */
    const char *affected;      /* what PQcmdTuples says; NULL: "" */
};

/* Connections succeed, and statements get these replies in order. */
void fake_pq_script(const struct fake_reply *replies, int n);

/* Connections fail with this text; NULL: they succeed again. */
void fake_pq_refuse(const char *text);

/* The peer hangs up: found out by whoever looks. */
void fake_pq_hang_up(void);

/* A notification that will be there at the next look. NULL: none. */
void fake_pq_notify(const char *payload);

int fake_pq_unused(void);
int fake_pq_live_results(void);
int fake_pq_connects(void); /* successful ones since the script was laid out */
int fake_pq_prepared(void); /* statements of the connection that there is */

#endif
