#include "client/spec_edit.h"

#include <string.h>

#include "tests/support/check.h"

static enum status edit(const char *text, const char *set, char *out, size_t size)
{
    struct arena *a = arena_new(1 << 20);
    const char *result = "";
    struct err e = {0};
    enum status st = spec_edit(a, text, &set, 1, &result, &e);
    (void)snprintf(out, size, "%s", st ? e.msg : result);
    arena_free(a);
    return st;
}

static void a_key_is_changed_where_it_stands(void)
{
    char out[256];
    CHECK_INT(edit("{\"a\":1,\"outer\":{\"lr\":1,\"name\":\"fedavg\"}}", "outer.lr=0.7", out,
                   sizeof(out)),
              ST_OK);
    CHECK_STR(out, "{\"a\":1,\"outer\":{\"name\":\"fedavg\",\"lr\":0.7}}");
}

static void missing_objects_are_made(void)
{
    char out[256];
    CHECK_INT(edit("{}", "a.b.c=true", out, sizeof(out)), ST_OK);
    CHECK_STR(out, "{\"a\":{\"b\":{\"c\":true}}}");
}

static void what_is_no_json_is_a_string(void)
{
    char out[256];
    CHECK_INT(edit("{}", "name=tiny-1", out, sizeof(out)), ST_OK);
    CHECK_STR(out, "{\"name\":\"tiny-1\"}");
    CHECK_INT(edit("{}", "name=say \"hi\"", out, sizeof(out)), ST_OK);
    CHECK_STR(out, "{\"name\":\"say \\\"hi\\\"\"}");
    CHECK_INT(edit("{}", "betas=[0.9,0.95]", out, sizeof(out)), ST_OK);
    CHECK_STR(out, "{\"betas\":[0.9,0.95]}");
    CHECK_INT(edit("{}", "name=", out, sizeof(out)), ST_OK);
    CHECK_STR(out, "{\"name\":\"\"}");
}

static void nonsense_is_refused(void)
{
    static const char *const bad[] = {"novalue", "=1", "a.=1", ".a=1", "a..b=1", "n.x=1"};
    char out[256];
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        CHECK_INT(edit("{\"n\":5}", bad[i], out, sizeof(out)), ST_INVALID);
        CHECK(strstr(out, "--set") != NULL);
    }
    CHECK_INT(edit("[1]", "a=1", out, sizeof(out)), ST_INVALID);
    CHECK_INT(edit("{", "a=1", out, sizeof(out)), ST_INVALID);
}

int main(void)
{
    RUN(a_key_is_changed_where_it_stands);
    RUN(missing_objects_are_made);
    RUN(what_is_no_json_is_a_string);
    RUN(nonsense_is_refused);
    return check_end();
}
