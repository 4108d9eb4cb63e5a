#include "common/status.h"

#include <string.h>

#include "tests/support/check.h"

static enum status fail(struct err *e)
{
    return err_set(e, ST_DB, "there is no table 'round'");
}

static void a_failure_is_kept_with_its_words_and_its_place(void)
{
    struct err e = {0};
    CHECK_INT(fail(&e), ST_DB);
    CHECK_INT(e.st, ST_DB);
    CHECK_STR(e.msg, "there is no table 'round'");
    CHECK(e.line > 0 && strstr(e.file, "test_status.c"));
}

static void a_strangers_words_move_no_terminal(void)
{
    struct err e = {0};
    CHECK_INT(err_set(&e, ST_INVALID, "it says '%s'", "\x1b[2J\n"), ST_INVALID);
    CHECK_STR(e.msg, "it says ' [2J '");
}

static void nobody_need_listen(void)
{
    CHECK_INT(fail(NULL), ST_DB);
}

static void words_may_quote_those_they_replace(void)
{
    struct err e = {0};
    (void)fail(&e);
    CHECK_INT(err_set(&e, ST_RETRY, "0004.sql cannot be applied: %.180s; try again", e.msg),
              ST_RETRY);
    CHECK_STR(e.msg, "0004.sql cannot be applied: there is no table 'round'; try again");
}

static void words_end_where_the_room_ends(void)
{
    struct err e;
    memset(&e, 0x5a, sizeof(e));
    char long_text[2 * sizeof(e.msg)];
    memset(long_text, 'x', sizeof(long_text) - 1);
    long_text[sizeof(long_text) - 1] = '\0';
    CHECK_INT(err_set(&e, ST_LIMIT, "%s", long_text), ST_LIMIT);
    CHECK_INT(strlen(e.msg), sizeof(e.msg) - 1);
}

static void every_status_has_a_name_of_its_own(void)
{
    for (int a = 0; a < ST_COUNT; a++) {
        CHECK(strcmp(status_name((enum status)a), "unknown") != 0);
        for (int b = 0; b < a; b++) {
            CHECK(strcmp(status_name((enum status)a), status_name((enum status)b)) != 0);
        }
    }
    CHECK_STR(status_name(ST_COUNT), "unknown");
}

int main(void)
{
    RUN(a_failure_is_kept_with_its_words_and_its_place);
    RUN(a_strangers_words_move_no_terminal);
    RUN(nobody_need_listen);
    RUN(words_may_quote_those_they_replace);
    RUN(words_end_where_the_room_ends);
    RUN(every_status_has_a_name_of_its_own);
    return check_end();
}
