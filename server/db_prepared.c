#include "server/db_prepared.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/mem.h"

/* FNV-1a: statements are our own, nobody picks them to collide. */
static uint32_t hash_of(const char *sql)
{
    uint32_t h = 2166136261U;
    for (const char *c = sql; *c; c++) {
        h = (h ^ (unsigned char)*c) * 16777619U;
    }
    return h;
}

/* Where it is, or the free place for it; -1: there is neither. */
static int place_of(const struct prepared *p, const char *sql, uint32_t hash)
{
    for (uint32_t n = 0; n < PREPARED_MAX; n++) {
        int i = (int)((hash + n) % PREPARED_MAX);
        if (!p->sql[i] || (p->hash[i] == hash && strcmp(p->sql[i], sql) == 0)) {
            return i;
        }
    }
    return -1;
}

/* True from the second time on. */
static bool met_before(struct prepared *p, uint32_t hash)
{
    uint32_t *seen = &p->seen[hash % PREPARED_SEEN];
    bool met = *seen == hash;
    *seen = hash;
    return met;
}

static void drop_old_plans(struct prepared *p, PGconn *conn)
{
    int64_t now = clock_mono_ms();
    if (now - p->planned_ms < PREPARED_PLANS_MS || PQtransactionStatus(conn) != PQTRANS_IDLE) {
        return;
    }
    p->planned_ms = now;
    PQclear(PQexec(conn, "DISCARD PLANS")); // if the connection is lost, what comes next says so
}

PGresult *prepared_run(struct prepared *p, PGconn *conn, const char *sql, int argc,
                       const char *const *argv)
{
    uint32_t hash = hash_of(sql);
    int i = place_of(p, sql, hash);
    if (i < 0 || (!p->sql[i] && !met_before(p, hash))) {
        return PQexecParams(conn, sql, argc, NULL, argv, NULL, NULL, 0);
    }
    drop_old_plans(p, conn);
    char name[16];
    (void)snprintf(name, sizeof(name), "s%d", i);
    if (!p->sql[i]) {
        PGresult *made = PQprepare(conn, name, sql, argc, NULL);
        if (PQresultStatus(made) != PGRES_COMMAND_OK) {
            return made; // the same error that running it would have given
        }
        PQclear(made);
        size_t size = strlen(sql) + 1;
        p->sql[i] = memcpy(mem_alloc(size), sql, size);
        p->hash[i] = hash;
    }
    return PQexecPrepared(conn, name, argc, argv, NULL, NULL, 0);
}

void prepared_forget(struct prepared *p)
{
    for (int i = 0; i < PREPARED_MAX; i++) {
        mem_free(p->sql[i]);
    }
    *p = (struct prepared){.planned_ms = clock_mono_ms()};
}
