/*
 * test_db.c - what server/db.h does when PostgreSQL misbehaves: by a scripted libpq.
 */
#include "server/db.h"

#include <stdio.h>
#include <string.h>

#include "tests/support/check.h"
#include "tests/support/fake_pq.h"

static struct db *opened(const struct fake_reply *replies, int n)
{
    fake_pq_script(replies, n);
    struct db *db = NULL;
    struct err e = {0};
    CHECK_INT(db_open(&db, "", &e), ST_OK);
    return db;
}

static void closed(struct db *db)
{
    db_close(db);
    CHECK_INT(fake_pq_unused(), 0);
    CHECK_INT(fake_pq_live_results(), 0);
}

static void every_refusal_has_its_status(void)
{
    static const struct {
        const char *sqlstate;
        enum status want;
    } cases[] = {
        {"08006", ST_RETRY},    {"40001", ST_RETRY}, {"40P01", ST_RETRY}, {"57P01", ST_RETRY},
        {"55P03", ST_RETRY},    {"57014", ST_RETRY}, {"53300", ST_RETRY}, {"25P03", ST_RETRY},
        {"23505", ST_CONFLICT}, {"23514", ST_DB},    {"42P01", ST_DB},    {"57", ST_DB},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct fake_reply reply = {.sql = "DELETE", .sqlstate = cases[i].sqlstate};
        struct db *db = opened(&reply, 1);
        struct err e = {0};
        CHECK_INT(db_exec(db, "DELETE FROM x", 0, NULL, NULL, &e), cases[i].want);
        CHECK(strstr(e.msg, cases[i].sqlstate) != NULL);
        closed(db);
    }
}

static void a_refusal_names_the_rule_until_the_next_statement(void)
{
    static const struct fake_reply replies[] = {
        {.sql = "INSERT", .sqlstate = "23505", .constraint = "run_name_once"}, {.sql = "SELECT"}};
    struct db *db = opened(replies, 2);
    struct err e = {0};
    CHECK_INT(db_exec(db, "INSERT 1", 0, NULL, NULL, &e), ST_CONFLICT);
    CHECK_STR(db_constraint(db), "run_name_once");
    CHECK(strstr(e.msg, "run_name_once") != NULL);
    CHECK_INT(db_exec(db, "SELECT 1", 0, NULL, NULL, &e), ST_OK);
    CHECK_STR(db_constraint(db), "");
    closed(db);
}

static void a_refused_connection_is_a_retry_said_in_one_line(void)
{
    fake_pq_script(NULL, 0);
    fake_pq_refuse("connection refused\n\tis the server running?\n");
    struct db *db = NULL;
    struct err e = {0};
    CHECK_INT(db_open(&db, "", &e), ST_RETRY);
    CHECK(db == NULL);
    CHECK_STR(e.msg, "cannot connect: connection refused");
    db_close(db);
}

static void a_lost_connection_is_a_retry_and_the_next_statement_has_a_new_one(void)
{
    static const struct fake_reply replies[] = {{.sql = "SELECT 1", .lost = true},
                                                {.sql = "SELECT 2", .affected = "7"}};
    struct db *db = opened(replies, 2);
    struct err e = {0};
    int64_t n = 0;
    CHECK_INT(db_exec(db, "SELECT 1", 0, NULL, &n, &e), ST_RETRY);
    CHECK_INT(n, 0);
    CHECK_INT(db_exec(db, "SELECT 2", 0, NULL, &n, &e), ST_OK);
    CHECK_INT(n, 7);
    CHECK_INT(fake_pq_connects(), 2);
    closed(db);
}

static void a_query_leaves_its_output_alone_unless_it_succeeds(void)
{
    static const struct fake_reply replies[] = {{.sql = "SELECT", .sqlstate = "42P01"},
                                                {.sql = "SELECT", .lost = true}};
    struct db *db = opened(replies, 2);
    for (int i = 0; i < 2; i++) {
        struct arena *a = arena_new(1 << 16);
        struct db_rows rows;
        memset(&rows, 0x5a, sizeof(rows));
        struct db_rows before = rows;
        struct err e = {0};
        CHECK(db_query(db, a, "SELECT", 0, NULL, &rows, &e) != ST_OK);
        CHECK_MEM(&rows, &before, sizeof(rows));
        arena_free(a);
    }
    closed(db);
}

static int calls;

static enum status one_statement(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    (void)a, (void)ctx;
    calls++;
    return db_exec(db, "UPDATE", 0, NULL, NULL, e);
}

static void a_transaction_is_repeated_after_a_deadlock_or_a_lost_connection(void)
{
    static const struct fake_reply replies[] = {
        {.sql = "BEGIN"},
        {.sql = "UPDATE", .sqlstate = "40P01"},
        {.sql = "ROLLBACK"},
        {.sql = "BEGIN"},
        {.sql = "UPDATE", .lost = true},
        {.sql = "ROLLBACK", .lost = true},
        {.sql = "BEGIN"},
        {.sql = "UPDATE"},
        {.sql = "COMMIT", .lost = true},
        {.sql = "BEGIN"},
        {.sql = "UPDATE"},
        {.sql = "COMMIT"},
    };
    struct db *db = opened(replies, 12);
    struct err e = {0};
    calls = 0;
    CHECK_INT(db_tx(db, one_statement, NULL, &e), ST_OK);
    CHECK_INT(calls, 4);
    CHECK_INT(fake_pq_connects(), 3);
    closed(db);
}

static void a_transaction_is_not_repeated_for_ever(void)
{
    static struct fake_reply replies[18];
    for (int i = 0; i < 18; i += 3) {
        replies[i] = (struct fake_reply){.sql = "BEGIN"};
        replies[i + 1] = (struct fake_reply){.sql = "UPDATE", .sqlstate = "40001"};
        replies[i + 2] = (struct fake_reply){.sql = "ROLLBACK"};
    }
    struct db *db = opened(replies, 18);
    struct err e = {0};
    calls = 0;
    CHECK_INT(db_tx(db, one_statement, NULL, &e), ST_RETRY);
    CHECK_INT(calls, 6);
    closed(db);
}

static void what_cannot_help_to_repeat_is_tried_once(void)
{
    static const struct fake_reply replies[] = {
        {.sql = "BEGIN"},
        {.sql = "UPDATE", .sqlstate = "23505", .constraint = "c"},
        {.sql = "ROLLBACK"}};
    struct db *db = opened(replies, 3);
    struct err e = {0};
    calls = 0;
    CHECK_INT(db_tx(db, one_statement, NULL, &e), ST_CONFLICT);
    CHECK_INT(calls, 1);
    CHECK_STR(db_constraint(db), "c"); // the reason outlives the rollback
    closed(db);
}

static enum status swallow(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    CHECK_INT(one_statement(db, a, ctx, e), ST_DB); // and a careless caller goes on
    return ST_OK;
}

static void a_failed_transaction_never_passes_for_committed(void)
{
    static const struct fake_reply replies[] = {
        {.sql = "BEGIN"}, {.sql = "UPDATE", .sqlstate = "23514"}, {.sql = "COMMIT"}};
    struct db *db = opened(replies, 3);
    struct err e = {0};
    CHECK_INT(db_tx(db, swallow, NULL, &e), ST_DB);
    closed(db);
}

static void fields_that_are_not_what_they_should_be_are_corrupt(void)
{
    static const char digest[] =
        "\\x0001020304050607000102030405060700010203040506070001020304050607";
    static const char *const row[] = {NULL,  "12x",   "99999999999", "t",
                                      "yes", "\\x0g", digest,        "1e3"};
    struct fake_reply reply = {.sql = "SELECT", .rows = 1, .cols = 8, .fields = row};
    struct db *db = opened(&reply, 1);
    struct arena *a = arena_new(1 << 16);
    struct db_rows rows;
    struct err e = {0};
    CHECK_INT(db_query(db, a, "SELECT", 0, NULL, &rows, &e), ST_OK);

    int64_t i64 = 5;
    int32_t i32 = 5;
    double d = 5;
    bool b = false;
    struct digest hash;
    const uint8_t *bytes = NULL;
    size_t len = 0;
    CHECK_INT(db_int64(&rows, 0, 0, &i64, &e), ST_CORRUPT);
    CHECK_INT(db_int64(&rows, 0, 1, &i64, &e), ST_CORRUPT);
    CHECK_INT(db_int32(&rows, 0, 2, &i32, &e), ST_CORRUPT);
    CHECK_INT(db_double(&rows, 0, 1, &d, &e), ST_CORRUPT);
    CHECK_INT(db_bool(&rows, 0, 4, &b, &e), ST_CORRUPT);
    CHECK_INT(db_bytes(&rows, 0, 5, a, &bytes, &len, &e), ST_CORRUPT);
    CHECK_INT(db_digest(&rows, 0, 5, &hash, &e), ST_CORRUPT);
    CHECK_INT(i64 + i32, 10);
    CHECK(bytes == NULL && db_is_null(&rows, 0, 0));

    CHECK_INT(db_int64(&rows, 0, 2, &i64, &e), ST_OK);
    CHECK(i64 == 99999999999);
    CHECK_INT(db_bool(&rows, 0, 3, &b, &e), ST_OK);
    CHECK(b);
    CHECK_INT(db_double(&rows, 0, 7, &d, &e), ST_OK);
    CHECK(d > 999 && d < 1001);
    CHECK_INT(db_digest(&rows, 0, 6, &hash, &e), ST_OK);
    CHECK_INT(hash.bytes[31], 7);
    CHECK_INT(db_bytes(&rows, 0, 6, a, &bytes, &len, &e), ST_OK);
    CHECK_INT(len, 32);
    CHECK_STR(db_arg_bytes(a, bytes, len), digest); // there and back
    CHECK_STR(db_arg_digest(a, &hash), digest);
    arena_free(a);
    closed(db);
}

static void array_parameters_quote_what_needs_it(void)
{
    struct arena *a = arena_new(1 << 16);
    static const char *const items[] = {"plain", "with \"quotes\" and \\", ""};
    CHECK_STR(db_arg_array(a, items, 3), "{\"plain\",\"with \\\"quotes\\\" and \\\\\",\"\"}");
    CHECK_STR(db_arg_array(a, items, 0), "{}");
    arena_free(a);
}

static void a_listener_hears_loses_and_listens_again(void)
{
    static const struct fake_reply replies[] = {{.sql = "LISTEN photon"}, {.sql = "LISTEN photon"}};
    struct db *db = opened(replies, 2);
    struct err e = {0};
    char topic[8];
    CHECK_INT(db_listen(db, "photon", &e), ST_OK);
    fake_pq_notify("a topic that is too long");
    CHECK_INT(db_wait_notify(db, 0, -1, topic, sizeof(topic), &e), ST_OK);
    CHECK_STR(topic, "a topic");
    CHECK_INT(db_wait_notify(db, 0, -1, topic, sizeof(topic), &e), ST_OK);
    CHECK_STR(topic, "");
    fake_pq_hang_up();
    fake_pq_refuse("gone");
    CHECK_INT(db_wait_notify(db, 0, -1, topic, sizeof(topic), &e), ST_RETRY);
    fake_pq_refuse(NULL);
    CHECK_INT(db_wait_notify(db, 0, -1, topic, sizeof(topic), &e), ST_OK);
    CHECK_INT(fake_pq_connects(), 2);
    closed(db);
}

static void a_pool_replaces_dead_connections_and_rolls_back_what_was_left_open(void)
{
    static const struct fake_reply replies[] = {{.sql = "BEGIN"}, {.sql = "ROLLBACK"}};
    fake_pq_script(replies, 2);
    struct db_pool *p = db_pool_new("", 2);
    struct db *db = NULL;
    struct err e = {0};
    CHECK_INT(db_pool_take(p, &db, &e), ST_OK);
    CHECK_INT(db_begin(db, &e), ST_OK);
    db_pool_give(p, db);
    CHECK_INT(db_pool_take(p, &db, &e), ST_OK);
    CHECK_INT(fake_pq_connects(), 1); // the same one again
    db_pool_give(p, db);
    fake_pq_hang_up();
    CHECK_INT(db_pool_take(p, &db, &e), ST_OK);
    CHECK_INT(fake_pq_connects(), 2);
    db_pool_give(p, db);
    fake_pq_hang_up();
    fake_pq_refuse("down");
    CHECK_INT(db_pool_take(p, &db, &e), ST_RETRY);
    fake_pq_refuse(NULL);
    CHECK_INT(db_pool_take(p, &db, &e), ST_OK); // the place was not lost with the connection
    db_pool_give(p, db);
    db_pool_free(p);
    CHECK_INT(fake_pq_unused(), 0);
}

static void an_address_that_libpq_cannot_read_is_refused_without_its_password(void)
{
    struct err e = {0};
    CHECK_INT(db_conninfo_check("photon", &e), ST_OK); // a database's name
    CHECK_INT(db_conninfo_check("", &e), ST_OK);
    CHECK_INT(db_conninfo_check("postgresql://me:secret@[::1/photon", &e), ST_INVALID);
    CHECK(!strstr(e.msg, "secret") && strstr(e.msg, "; try"));
    CHECK_INT(db_conninfo_check("user=me password=sec ret", &e), ST_INVALID);
    CHECK(!strstr(e.msg, "ret"));
}

static void what_a_connection_meets_again_is_prepared_once(void)
{
    static const struct fake_reply replies[] = {
        {.sql = "SELECT 1"},
        {.sql = "SELECT 1"},
        {.sql = "SELECT 1"},
        {.sql = "SELECT 2"},
        {.sql = "SELECT 1", .lost = true},
        {.sql = "SELECT 1"},
        {.sql = "SELECT 1"},
    };
    struct db *db = opened(replies, 7);
    struct err e = {0};
    static const char *const run[] = {"SELECT 1", "SELECT 1", "SELECT 1", "SELECT 2"};
    static const int prepared[] = {0, 1, 1, 1};
    for (int i = 0; i < 4; i++) {
        CHECK_INT(db_exec(db, run[i], 0, NULL, NULL, &e), ST_OK);
        CHECK_INT(fake_pq_prepared(), prepared[i]);
    }
    CHECK_INT(db_exec(db, "SELECT 1", 0, NULL, NULL, &e), ST_RETRY);
    for (int i = 0; i < 2; i++) { // another connection knows none of them
        CHECK_INT(db_exec(db, "SELECT 1", 0, NULL, NULL, &e), ST_OK);
        CHECK_INT(fake_pq_prepared(), i);
    }
    closed(db);
}

static void what_cannot_be_prepared_fails_as_it_would_have_run(void)
{
    static const struct fake_reply replies[] = {
        {.sql = "DELETE"},
        {.sql = "DELETE", .sqlstate = "42P01", .unprepared = true},
        {.sql = "DELETE", .lost = true, .unprepared = true},
        {.sql = "DELETE"},
    };
    struct db *db = opened(replies, 4);
    struct err e = {0};
    static const enum status want[] = {ST_OK, ST_DB, ST_RETRY, ST_OK};
    for (int i = 0; i < 4; i++) {
        CHECK_INT(db_exec(db, "DELETE", 0, NULL, NULL, &e), want[i]);
        CHECK_INT(fake_pq_prepared(), 0);
    }
    CHECK_INT(fake_pq_connects(), 2);
    closed(db);
}

static void a_statement_prepared_for_other_tables_gets_a_new_connection(void)
{
    static const char *const gone[] = {"0A000", "26000", "42P05"};
    for (int k = 0; k < 3; k++) {
        const struct fake_reply replies[] = {
            {.sql = "SELECT 1"}, {.sql = "BEGIN"},    {.sql = "SELECT 1", .sqlstate = gone[k]},
            {.sql = "ROLLBACK"}, {.sql = "SELECT 1"},
        };
        struct db *db = opened(replies, 5);
        struct err e = {0};
        CHECK_INT(db_exec(db, "SELECT 1", 0, NULL, NULL, &e), ST_OK);
        CHECK_INT(db_begin(db, &e), ST_OK);
        CHECK_INT(db_exec(db, "SELECT 1", 0, NULL, NULL, &e), ST_RETRY);
        CHECK(!db_alive(db));
        CHECK_INT(db_exec(db, "SELECT 1", 0, NULL, NULL, &e),
                  ST_RETRY); // not within the transaction
        CHECK_INT(fake_pq_connects(), 1);
        db_rollback(db);
        CHECK_INT(db_exec(db, "SELECT 1", 0, NULL, NULL, &e), ST_OK);
        CHECK_INT(fake_pq_connects(), 2);
        CHECK(db_alive(db));
        closed(db);
    }
}

static void more_statements_than_are_kept_still_run(void)
{
    enum { MANY = 700, TIMES = 3 };
    static char texts[MANY][16];
    static struct fake_reply replies[MANY * TIMES];
    for (int i = 0; i < MANY; i++) {
        (void)snprintf(texts[i], sizeof(texts[0]), "SELECT %d;", i);
    }
    for (int i = 0; i < MANY * TIMES; i++) { // twice in a row, so that it is met; then all again
        replies[i] = (struct fake_reply){.sql = texts[i < MANY * 2 ? i / 2 : i % MANY]};
    }
    struct db *db = opened(replies, MANY * TIMES);
    struct err e = {0};
    for (int i = 0; i < MANY * TIMES; i++) {
        CHECK_INT(db_exec(db, replies[i].sql, 0, NULL, NULL, &e), ST_OK);
    }
    CHECK_INT(fake_pq_prepared(), 512); // and no more
    closed(db);
}

int main(void)
{
    RUN(what_a_connection_meets_again_is_prepared_once);
    RUN(what_cannot_be_prepared_fails_as_it_would_have_run);
    RUN(a_statement_prepared_for_other_tables_gets_a_new_connection);
    RUN(more_statements_than_are_kept_still_run);
    RUN(an_address_that_libpq_cannot_read_is_refused_without_its_password);
    RUN(every_refusal_has_its_status);
    RUN(a_refusal_names_the_rule_until_the_next_statement);
    RUN(a_refused_connection_is_a_retry_said_in_one_line);
    RUN(a_lost_connection_is_a_retry_and_the_next_statement_has_a_new_one);
    RUN(a_query_leaves_its_output_alone_unless_it_succeeds);
    RUN(a_transaction_is_repeated_after_a_deadlock_or_a_lost_connection);
    RUN(a_transaction_is_not_repeated_for_ever);
    RUN(what_cannot_help_to_repeat_is_tried_once);
    RUN(a_failed_transaction_never_passes_for_committed);
    RUN(fields_that_are_not_what_they_should_be_are_corrupt);
    RUN(array_parameters_quote_what_needs_it);
    RUN(a_listener_hears_loses_and_listens_again);
    RUN(a_pool_replaces_dead_connections_and_rolls_back_what_was_left_open);
    return check_end();
}
