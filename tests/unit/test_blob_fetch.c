#include "server/blob_fetch.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "common/clock.h"
#include "tests/support/check.h"
#include "tests/support/tempdir.h"

enum { ASKERS = 12 };

static struct tempdir dir;
static struct blob_store *store;
static struct blob_fetches *fetches;
static atomic_int begun;
static atomic_bool open_gate; // fetches end when it is
static enum status outcome;
static const struct digest ONE = {{1}};
static const struct digest TWO = {{2}};

static enum status slow(struct blob_store *s, const struct digest *d, struct err *e)
{
    (void)s;
    (void)d;
    atomic_fetch_add(&begun, 1);
    while (!atomic_load(&open_gate)) {
        clock_sleep_ms(1);
    }
    return outcome ? err_set(e, outcome, "so it came") : ST_OK;
}

static void fresh(enum status st)
{
    tempdir_make(&dir);
    CHECK_INT(blob_store_open(&store, dir.path, NULL), ST_OK);
    fetches = blob_fetches_new(store, slow);
    atomic_store(&begun, 0);
    atomic_store(&open_gate, false);
    outcome = st;
}

static int under_way(void)
{
    int fetches_now = 0;
    int askers = 0;
    blob_fetches_count(fetches, &fetches_now, &askers);
    return fetches_now;
}

static int waiting(void)
{
    int fetches_now = 0;
    int askers = 0;
    blob_fetches_count(fetches, &fetches_now, &askers);
    return askers;
}

static int begun_now(void)
{
    return atomic_load(&begun);
}

static void until(int (*what)(void), int is)
{
    for (int i = 0; i < 60000 && what() != is; i++) {
        clock_sleep_ms(1);
    }
    CHECK_INT(what(), is);
}

static void gone(void)
{
    atomic_store(&open_gate, true);
    until(under_way, 0);
    blob_fetches_free(fetches);
    blob_store_close(store);
    tempdir_remove(&dir);
}

static enum status ask(const struct digest *d, int64_t patience_ms, bool *coming, struct err *e)
{
    return blob_fetch_wait(fetches, d, patience_ms, coming, e);
}

static void *asker(void *arg)
{
    struct err e = {0};
    bool coming = false;
    enum status st = ask(&ONE, -1, &coming, &e);
    bool told = st == outcome && !coming && (st == ST_OK || strcmp(e.msg, "so it came") == 0);
    atomic_fetch_add((atomic_int *)arg, told ? 1 : 0);
    return NULL;
}

static void ask_together(int *told)
{
    pthread_t threads[ASKERS];
    atomic_int sum = 0;
    for (int i = 0; i < ASKERS; i++) {
        CHECK_INT(pthread_create(&threads[i], NULL, asker, &sum), 0);
    }
    until(waiting, ASKERS); // all of them ask while the first one's is under way
    atomic_store(&open_gate, true);
    for (int i = 0; i < ASKERS; i++) {
        (void)pthread_join(threads[i], NULL);
    }
    *told = atomic_load(&sum);
}

static void many_who_ask_at_once_make_one_fetch(void)
{
    int told = 0;
    fresh(ST_OK);
    ask_together(&told);
    CHECK_INT(told, ASKERS);
    CHECK_INT(atomic_load(&begun), 1);
    gone();
}

static void all_who_wait_get_its_error(void)
{
    int told = 0;
    fresh(ST_CORRUPT);
    ask_together(&told);
    CHECK_INT(told, ASKERS);
    CHECK_INT(atomic_load(&begun), 1);
    gone();
}

static void another_object_is_another_fetch(void)
{
    bool coming = false;
    fresh(ST_OK);
    CHECK_INT(ask(&ONE, 0, &coming, NULL), ST_RETRY);
    CHECK_INT(ask(&TWO, 0, &coming, NULL), ST_RETRY);
    CHECK(coming);
    until(begun_now, 2);
    gone();
}

static void a_fetch_goes_on_when_those_who_asked_have_left(void)
{
    bool coming = false;
    fresh(ST_OK);
    int64_t before = clock_mono_ms();
    CHECK_INT(ask(&ONE, 50, &coming, NULL), ST_RETRY);
    CHECK(coming);
    CHECK(clock_mono_ms() - before >= 50);
    CHECK_INT(ask(&ONE, 0, &coming, NULL), ST_RETRY);
    atomic_store(&open_gate, true);
    until(under_way, 0);
    CHECK_INT(atomic_load(&begun), 1);
    gone();
}

static void an_error_that_nobody_waited_for_is_told_to_the_next(void)
{
    bool coming = true;
    struct err e = {0};
    fresh(ST_CORRUPT);
    CHECK_INT(ask(&ONE, 0, &coming, NULL), ST_RETRY);
    atomic_store(&open_gate, true);
    until(under_way, 0);
    CHECK_INT(ask(&ONE, 0, &coming, &e), ST_CORRUPT);
    CHECK(!coming);
    CHECK_STR(e.msg, "so it came");
    CHECK_INT(atomic_load(&begun), 1);
    CHECK_INT(ask(&ONE, -1, &coming, NULL), ST_CORRUPT); // told once; this is a fetch of its own
    CHECK_INT(atomic_load(&begun), 2);
    gone();
}

int main(void)
{
    RUN(many_who_ask_at_once_make_one_fetch);
    RUN(all_who_wait_get_its_error);
    RUN(another_object_is_another_fetch);
    RUN(a_fetch_goes_on_when_those_who_asked_have_left);
    RUN(an_error_that_nobody_waited_for_is_told_to_the_next);
    return check_end();
}
