/*
 * db_prepared.h - statements that a connection has run before: PostgreSQL parses and plans them
 * once. For db.c alone.
 *
 * A claim is some ten short statements; reading and planning them anew each time took most of the
 * database's processor time. What is run once (a search somebody put together) is not kept.
 *
 * A plan is made for tables as large as they are then, so plans are thrown away now and then; a
 * statement must be sound with one that is half a minute old: what joins a table with itself, or
 * asks for each of many rows whether another exists, needs an index for it.
 */
#ifndef SERVER_DB_PREPARED_H
#define SERVER_DB_PREPARED_H

#include <libpq-fe.h>
#include <stdint.h>

enum {
    PREPARED_MAX = 512, // of one connection; a power of two. The rest is run unprepared
    PREPARED_SEEN = 1024,
    PREPARED_PLANS_MS = 30000,
};

struct prepared {
    char *sql[PREPARED_MAX]; // by hash; NULL: free
    uint32_t hash[PREPARED_MAX];
    uint32_t seen[PREPARED_SEEN]; // hashes of what was run once
    int64_t planned_ms;
};

/* As PQexecParams() with text parameters. Parameters are UTF-8. */
PGresult *prepared_run(struct prepared *p, PGconn *conn, const char *sql, int argc,
                       const char *const *argv);

/* The connection is another one now, or has ended. */
void prepared_forget(struct prepared *p);

#endif
