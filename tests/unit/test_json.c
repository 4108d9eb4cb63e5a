#include "common/json.h"

#include <math.h>
#include <string.h>

#include "common/text.h"
#include "tests/support/check.h"

static enum status parse(const char *text, struct err *e)
{
    struct arena *a = arena_new(1 << 20);
    const struct json *v = NULL;
    enum status st = json_parse(&v, a, text, strlen(text), e);
    arena_free(a);
    return st;
}

static void what_is_not_json_is_refused(void)
{
    static const char *const bad[] = {
        "",    "{",    "{\"a\":1}x", "{\"a\":1,\"a\":2}", "{\"a\":1e999}",
        "nul", "[1,]", "{\"a\" 1}",  "\"\\u12\"",         "\"a\\u0000b\"",
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct err e = {0};
        CHECK_INT(parse(bad[i], &e), ST_INVALID);
        CHECK(e.msg[0] != '\0');
    }
}

static void nesting_is_bounded(void)
{
    char deep[200];
    memset(deep, '[', 100);
    memset(deep + 100, ']', 99);
    deep[199] = '\0';
    struct err e = {0};
    CHECK_INT(parse(deep, &e), ST_INVALID);
    CHECK(strstr(e.msg, "nested") != NULL);
}

static void members_are_wanted_by_kind_and_range(void)
{
    static const char text[] = "{\"s\":\"x\",\"n\":3,\"f\":1.5}";
    struct arena *a = arena_new(1 << 20);
    const struct json *o = NULL;
    struct err e = {0};
    CHECK_INT(json_parse(&o, a, text, strlen(text), &e), ST_OK);

    int64_t n = 0;
    const char *s = NULL;
    CHECK_INT(json_want_int(o, "n", 1, 5, &n, &e), ST_OK);
    CHECK_INT(n, 3);
    CHECK_INT(json_want_int(o, "n", 4, 5, &n, &e), ST_INVALID);
    CHECK_INT(json_want_int(o, "f", 0, 5, &n, &e), ST_INVALID);
    CHECK_INT(json_want_str(o, "n", &s, &e), ST_INVALID);
    CHECK_INT(json_want_str(o, "none", &s, &e), ST_INVALID);
    CHECK(strstr(e.msg, "none") != NULL);
    static const char *const keys[] = {"s", "n", NULL};
    CHECK_INT(json_only(o, keys, &e), ST_INVALID);
    CHECK(strstr(e.msg, "'f'") != NULL);
    arena_free(a);
}

static void what_is_written_reads_back(void)
{
    struct buf b;
    buf_init(&b, 1 << 16);
    jw_object(&b, NULL);
    jw_str(&b, "name", "a \"quoted\"\\ line\n\x01");
    jw_int(&b, "n", -7);
    jw_num(&b, "third", 1.0 / 3.0);
    jw_num(&b, "nan", (double)NAN);
    jw_array(&b, "list");
    jw_bool(&b, NULL, true);
    jw_null(&b, NULL);
    jw_end_array(&b);
    jw_end_object(&b);

    struct arena *a = arena_new(1 << 20);
    const struct json *o = NULL;
    struct err e = {0};
    CHECK_INT(json_parse(&o, a, b.data, b.len, &e), ST_OK);
    CHECK_STR(json_str(json_get(o, "name")), "a \"quoted\"\\ line\n\x01");
    CHECK(json_num(json_get(o, "third")) == 1.0 / 3.0);
    CHECK_INT(json_kind(json_get(o, "nan")), JSON_NULL);
    CHECK_INT(json_len(json_get(o, "list")), 2);
    arena_free(a);
    buf_release(&b);
}

static void a_text_cut_within_a_character_is_json_all_the_same(void)
{
    struct buf b;
    buf_init(&b, 1 << 16);
    jw_object(&b, NULL);
    jw_str(&b, "cut", "caf\xc3");
    jw_str(&b, "whole", "caf\xc3\xa9");
    jw_str(&b, "odd", "\xc0\xaf\xed\xa0\x80\xff\"");
    jw_end_object(&b);
    CHECK_STR(b.data, "{\"cut\":\"caf\\ufffd\",\"whole\":\"caf\xc3\xa9\","
                      "\"odd\":\"\\ufffd\\ufffd\\ufffd\\ufffd\\ufffd\\ufffd\\\"\"}");
    CHECK(text_is_utf8(b.data));
    char text[] = "a\xe2\x82"
                  "b\xe2\x82\xac";
    CHECK(!text_is_utf8(text));
    text_repair(text);
    CHECK_STR(text, "a??b\xe2\x82\xac");
    buf_release(&b);
}

int main(void)
{
    RUN(what_is_not_json_is_refused);
    RUN(nesting_is_bounded);
    RUN(members_are_wanted_by_kind_and_range);
    RUN(what_is_written_reads_back);
    RUN(a_text_cut_within_a_character_is_json_all_the_same);
    return check_end();
}
