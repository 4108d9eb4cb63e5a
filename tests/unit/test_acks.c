#include "client/acks.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "client/durable.h"
#include "tests/support/check.h"
#include "tests/support/synced.h"
#include "tests/support/tempdir.h"

static const char UPLOAD[] = "u_01J0000000000000000000000A";
static const char RUN_ID[] = "r_01J0000000000000000000000A";
static const char SHA[] = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

static const char *printed(const struct tempdir *t, int64_t want)
{
    static char text[4096];
    FILE *f = fopen(tempdir_at(t, "out"), "w+");
    CHECK(f != NULL);
    int64_t count = -1;
    CHECK_INT(acks_print(t->path, f, &count, NULL), ST_OK);
    CHECK_INT(count, want);
    rewind(f);
    text[fread(text, 1, sizeof(text) - 1, f)] = '\0';
    CHECK_INT(fclose(f), 0);
    return text;
}

static void what_was_told_is_printed_in_its_order(void)
{
    struct tempdir t;
    tempdir_make(&t);
    CHECK_STR(printed(&t, 0), "");
    CHECK_INT(acks_note(t.path, UPLOAD, SHA, RUN_ID, 3, NULL), ST_OK);
    CHECK_INT(acks_note(t.path, UPLOAD, SHA, RUN_ID, 4, NULL), ST_OK);
    char want[512];
    (void)snprintf(want, sizeof(want), "%s %s %s 3\n%s %s %s 4\n", UPLOAD, SHA, RUN_ID, UPLOAD, SHA,
                   RUN_ID);
    CHECK_STR(printed(&t, 2), want);
    tempdir_remove(&t);
}

static void a_line_that_a_crash_has_torn_is_left_out_and_costs_no_other(void)
{
    struct tempdir t;
    tempdir_make(&t);
    char whole[300];
    (void)snprintf(whole, sizeof(whole), "%s %s %s 7\n", UPLOAD, SHA, RUN_ID);
    for (size_t cut = 1; cut < strlen(whole); cut++) {
        tempdir_put(&t, "acks", whole, cut);
        CHECK_STR(printed(&t, 0), "");
        CHECK_INT(acks_note(t.path, UPLOAD, SHA, RUN_ID, 7, NULL), ST_OK);
        const char *text = printed(&t, cut >= 93 ? 2 : 1);
        size_t len = strlen(text);
        CHECK(len >= strlen(whole));
        CHECK_STR(text + len - strlen(whole), whole);
    }
    tempdir_remove(&t);
}

static void an_acknowledgement_is_synced_before_it_is_acted_on(void)
{
    struct tempdir t;
    tempdir_make(&t);
    synced_clear();
    CHECK_INT(acks_note(t.path, UPLOAD, SHA, RUN_ID, 3, NULL), ST_OK);
    CHECK(synced_at("acks") >= 0);
    CHECK(synced_last(t.path + 1) > synced_at("acks"));
    tempdir_remove(&t);
}

int main(void)
{
    RUN(what_was_told_is_printed_in_its_order);
    RUN(a_line_that_a_crash_has_torn_is_left_out_and_costs_no_other);
    RUN(an_acknowledgement_is_synced_before_it_is_acted_on);
    return check_end();
}
