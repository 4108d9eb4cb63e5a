/* Whose turn it is in http_work.c: one worker, and all around the queues faked. */
#include "server/http_int.h"

#include <string.h>

#include "common/clock.h"
#include "server/audit.h"
#include "server/auth.h"
#include "server/db.h"
#include "server/hub.h"
#include "server/server.h"
#include "tests/support/check.h"

static struct server server;
static struct http http = {.server = &server};
static void (*wake)(void *ctx, const char *topic);
static atomic_bool gate_open;
static atomic_int at_gate;
static atomic_int answered;
static char turns[8]; // names of those that were parked, as they came to their second attempt

/* ---- what http_work.c asks of others ---- */

enum status audit_run(handler_fn *fn, struct request *rq, struct response *rs, struct err *e)
{
    return fn(rq, rs, e);
}

void auth_forget(void)
{
}

bool conn_peer_gone(const struct conn *conn)
{
    (void)conn;
    return false;
}

int conns_sweep(struct conns *c, double now_s)
{
    (void)c;
    (void)now_s;
    return 0;
}

enum status db_pool_take(struct db_pool *p, struct db **db, struct err *e)
{
    (void)p;
    (void)e;
    *db = NULL;
    return ST_OK;
}

void db_pool_give(struct db_pool *p, struct db *db)
{
    (void)p;
    (void)db;
}

enum status exchange_authenticate(struct exchange *x, struct err *e)
{
    (void)x;
    (void)e;
    return ST_OK;
}

enum status exchange_may_ask(struct exchange *x, struct err *e)
{
    (void)x;
    (void)e;
    return ST_OK;
}

void exchange_finish(struct exchange *x, enum status st, const struct err *e)
{
    (void)x;
    (void)st;
    (void)e;
}

void exchange_resume(struct exchange *x)
{
    (void)x;
    atomic_fetch_add(&answered, 1);
}

struct herald *herald_new(struct server *s, struct work *w)
{
    (void)s;
    (void)w;
    return NULL;
}

void herald_poke(struct herald *h)
{
    (void)h;
}

void herald_stop(struct herald *h)
{
    (void)h;
}

void hub_subscribe(struct hub *h, void (*fn)(void *ctx, const char *topic), void *ctx)
{
    (void)h;
    (void)ctx; // the work itself, which the tests have
    wake = fn;
}

void paced_tick(struct paced *p, int64_t now_ms)
{
    (void)p;
    (void)now_ms;
}

/* ---- the requests ---- */

static enum status waits(struct request *rq, struct response *rs, struct err *e)
{
    (void)e;
    if (rq->attempt == 0) {
        response_park(rs, "some", clock_mono_s() + 3600);
    } else {
        turns[strlen(turns)] = rq->who.token_id[0];
        respond_empty(rs, 204);
    }
    return ST_OK;
}

static enum status holds_the_worker(struct request *rq, struct response *rs, struct err *e)
{
    (void)rq;
    (void)e;
    atomic_fetch_add(&at_gate, 1);
    while (!atomic_load(&gate_open)) {
        clock_sleep_ms(1);
    }
    respond_empty(rs, 204);
    return ST_OK;
}

static const struct route WAITS = {.method = "GET", .handler = waits};
static const struct route HOLDS = {.method = "GET", .handler = holds_the_worker};

static struct exchange *submit(struct exchange *x, const struct route *route, const char *token)
{
    *x = (struct exchange){.http = &http, .listener = LISTENER_CONTROL, .match = {.route = route}};
    x->rq.conn = x;
    x->rq.who.token_id[0] = token[0];
    work_submit(http.work, x);
    return x;
}

static void wait_for(atomic_int *count, int want)
{
    while (atomic_load(count) < want) {
        clock_sleep_ms(1);
    }
}

/* Three were parked, c after b after a, and are woken together while the worker is held; then
 * those tokens are called, and the worker goes on. In which order the three have their turn. */
static const char *order(const char *const *called, int count, bool can_wait)
{
    static struct exchange waiting[3];
    static struct exchange holding;
    static const char *const names[] = {"a", "b", "c"};
    atomic_store(&gate_open, false);
    atomic_store(&at_gate, 0);
    atomic_store(&answered, 0);
    memset(turns, 0, sizeof(turns));
    for (int i = 0; i < 3; i++) {
        submit(&waiting[i], &WAITS, names[i]);
    }
    submit(&holding, &HOLDS, "h");
    wait_for(&at_gate, 1); // after the three, which have come to their place by then
    CHECK_INT(work_parked(http.work), 3);
    wake(http.work, "some");
    CHECK_INT(work_parked(http.work), 0);
    work_call(http.work, called, count, can_wait);
    atomic_store(&gate_open, true);
    wait_for(&answered, 4);
    return turns;
}

static void who_was_woken_has_its_turn_in_the_order_of_the_list(void)
{
    CHECK_STR(order(NULL, 0, false), "cba");
}

static void who_is_called_while_it_waits_for_its_turn_goes_first(void)
{
    CHECK_STR(order((const char *[]){"a"}, 1, false), "acb");
    CHECK_STR(order((const char *[]){"b"}, 1, false), "bca");
    CHECK_STR(order((const char *[]){"a", "b"}, 2, false), "bac");
}

static void who_is_called_for_what_can_wait_keeps_its_turn(void)
{
    CHECK_STR(order((const char *[]){"a"}, 1, true), "cba");
}

int main(void)
{
    http.work = work_new(&http, 1);
    RUN(who_was_woken_has_its_turn_in_the_order_of_the_list);
    RUN(who_is_called_while_it_waits_for_its_turn_goes_first);
    RUN(who_is_called_for_what_can_wait_keeps_its_turn);
    atomic_store(&gate_open, true);
    work_drain(http.work); // it ends when nothing is queued or at work by its own count
    work_stop(http.work);
    return check_end();
}
