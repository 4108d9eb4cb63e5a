#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "common/mem.h"
#include "server/db.h"

enum { TAKE_TIMEOUT_S = 5 };

struct db_pool {
    pthread_mutex_t lock;
    pthread_cond_t given;
    char *conninfo;
    struct db **idle; // a stack: the connection used last is the one most surely alive
    int idle_count;
    int out_count; // with callers
    int max;
};

struct db_pool *db_pool_new(const char *conninfo, int n)
{
    assert(n > 0);
    struct db_pool *p = mem_alloc(sizeof(*p));
    p->conninfo = mem_alloc(strlen(conninfo) + 1);
    memcpy(p->conninfo, conninfo, strlen(conninfo) + 1);
    p->idle = mem_alloc((size_t)n * sizeof(*p->idle));
    p->max = n;
    pthread_condattr_t attr;
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_mutex_init(&p->lock, NULL);
    (void)pthread_cond_init(&p->given, &attr);
    (void)pthread_condattr_destroy(&attr);
    return p;
}

void db_pool_free(struct db_pool *p)
{
    if (!p) {
        return;
    }
    assert(p->out_count == 0);
    for (int i = 0; i < p->idle_count; i++) {
        db_close(p->idle[i]);
    }
    (void)pthread_cond_destroy(&p->given);
    (void)pthread_mutex_destroy(&p->lock);
    mem_free(p->idle);
    mem_free(p->conninfo);
    mem_free(p);
}

static void put_back(struct db_pool *p, struct db *db)
{
    (void)pthread_mutex_lock(&p->lock);
    p->out_count--;
    if (db) {
        p->idle[p->idle_count++] = db;
    }
    (void)pthread_cond_signal(&p->given);
    (void)pthread_mutex_unlock(&p->lock);
}

/* A place in the pool, and an idle connection when there is one. */
static enum status reserve(struct db_pool *p, struct db **db, struct err *e)
{
    struct timespec until;
    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += TAKE_TIMEOUT_S;

    int rc = 0;
    (void)pthread_mutex_lock(&p->lock);
    while (p->out_count == p->max && rc != ETIMEDOUT) {
        rc = pthread_cond_timedwait(&p->given, &p->lock, &until);
    }
    bool mine = p->out_count < p->max;
    if (mine) {
        p->out_count++;
        *db = p->idle_count > 0 ? p->idle[--p->idle_count] : NULL;
    }
    (void)pthread_mutex_unlock(&p->lock);
    return mine ? ST_OK
                : err_set(e, ST_RETRY, "all %d database connections are busy; try again", p->max);
}

enum status db_pool_take(struct db_pool *p, struct db **out, struct err *e)
{
    struct db *db = NULL;
    TRY(reserve(p, &db, e));
    if (db && !db_alive(db)) {
        db_close(db);
        db = NULL;
    }
    if (!db) {
        enum status st = db_open(&db, p->conninfo, e);
        if (st) {
            put_back(p, NULL);
            return st;
        }
    }
    *out = db;
    return ST_OK;
}

void db_pool_give(struct db_pool *p, struct db *db)
{
    db_rollback(db);
    put_back(p, db);
}

void db_pool_count(struct db_pool *p, int *busy, int *idle)
{
    (void)pthread_mutex_lock(&p->lock);
    *busy = p->out_count;
    *idle = p->idle_count;
    (void)pthread_mutex_unlock(&p->lock);
}
