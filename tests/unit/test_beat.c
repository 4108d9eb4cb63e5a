/* What a task's sign of life takes for an order, and what it does with a token that was traded. */
#include "client/beat.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "tests/support/check.h"
#include "tests/support/http_stub.h"

// ---- the server: one answer for the old token, another for the new one ----

struct said {
    const char *status, *body;
};

static const struct said fine = {"200 OK", "{\"order\":\"continue\",\"lease_s\":60}"};
static const struct said refused = {"401 X", "{\"code\":\"UNAUTHENTICATED\",\"detail\":\"x\"}"};
static _Atomic(const struct said *) to_old;
static atomic_int heard_old, heard_new;

static void answer(int fd, const char *request)
{
    bool new = strstr(request, "Authorization: Bearer new\r\n") != NULL;
    const struct said *s = new ? &fine : atomic_load(&to_old);
    http_stub_json(fd, s->status, s->body);
    atomic_fetch_add(new ? &heard_new : &heard_old, 1);
}

static struct http_stub server = {.answer = answer};

// ---- a task's beat ----

static struct beat *begin(const struct said *s, bool (*fresh_token)(void *, char *, size_t))
{
    struct beat *b = NULL;
    struct err e = {0};
    struct beat_config c = {.url = server.url,
                            .token = "old",
                            .fresh_token = fresh_token,
                            .task = "t_01J0000000000000000000000A",
                            .heartbeat_s = 0.1};
    atomic_store(&to_old, s);
    atomic_store(&heard_old, 0);
    atomic_store(&heard_new, 0);
    CHECK_INT(beat_start(&b, &c, &e), ST_OK);
    return b;
}

/* Until so many heartbeats were answered. */
static void wait_for(atomic_int *heard, int n)
{
    for (int64_t until = clock_mono_ms() + 30000; clock_mono_ms() < until;) {
        if (atomic_load(heard) >= n) {
            return;
        }
        clock_sleep_ms(5);
    }
    CHECK(!"heartbeats came in time");
}

static enum beat_order order_within_bounds(struct beat *b)
{
    for (int64_t until = clock_mono_ms() + 30000; clock_mono_ms() < until;) {
        if (beat_order(b) != BEAT_CONTINUE) {
            break;
        }
        clock_sleep_ms(5);
    }
    return beat_order(b);
}

static bool traded(void *ctx, char *out, size_t size)
{
    (void)ctx;
    (void)snprintf(out, size, "new");
    return true;
}

static bool not_traded(void *ctx, char *out, size_t size)
{
    (void)ctx;
    (void)snprintf(out, size, "old");
    return true;
}

static void a_token_that_was_traded_ends_no_task(void)
{
    struct beat *b = begin(&refused, traded);
    wait_for(&heard_new, 2);
    CHECK_INT(beat_order(b), BEAT_CONTINUE);
    beat_stop(b, 0.0);
    CHECK_INT(atomic_load(&heard_old), 1);
}

static void a_refused_token_ends_it(void)
{
    struct beat *b = begin(&refused, not_traded);
    CHECK_INT(order_within_bounds(b), BEAT_DENIED);
    beat_stop(b, 0.0);
    b = begin(&refused, NULL);
    CHECK_INT(order_within_bounds(b), BEAT_DENIED);
    beat_stop(b, 0.0);
}

static void what_the_server_says_is_an_order(void)
{
    static const struct {
        struct said said;
        enum beat_order order;
    } cases[] = {{{"409 X", "{\"code\":\"STALE_LEASE\"}"}, BEAT_STALE},
                 {{"409 X", "{\"code\":\"ROUND_CLOSED\"}"}, BEAT_CLOSED},
                 {{"410 X", "{\"code\":\"RUN_STOPPED\"}"}, BEAT_STOPPED},
                 {{"404 X", "{\"code\":\"NOT_FOUND\"}"}, BEAT_STALE},
                 {{"403 X", "{\"code\":\"FORBIDDEN\"}"}, BEAT_DENIED},
                 {{"200 X", "{\"order\":\"cancel\"}"}, BEAT_CANCEL}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct beat *b = begin(&cases[i].said, NULL);
        CHECK_INT(order_within_bounds(b), cases[i].order);
        beat_stop(b, 0.0);
    }
}

/* A proxy before a server that is down, a page to log in at. */
static void what_something_else_says_is_none(void)
{
    static const struct said cases[] = {{"404 X", "<html>no such page</html>"},
                                        {"403 X", "<html>forbidden</html>"},
                                        {"401 X", "{}"},
                                        {"409 X", ""},
                                        {"410 X", "{}"},
                                        {"200 X", "<html>please log in</html>"},
                                        {"503 X", "{}"}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct beat *b = begin(&cases[i], NULL);
        wait_for(&heard_old, 2); // the first one's answer was read before the second was sent
        CHECK_INT(beat_order(b), BEAT_CONTINUE);
        beat_stop(b, 0.0);
    }
}

int main(void)
{
    http_stub_start(&server);
    RUN(a_token_that_was_traded_ends_no_task);
    RUN(a_refused_token_ends_it);
    RUN(what_the_server_says_is_an_order);
    RUN(what_something_else_says_is_none);
    return check_end();
}
