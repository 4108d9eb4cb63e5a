#include "server/guard.h"

#include <string.h>

#include "tests/support/check.h"

static struct guard_header header(const char *name, const char *value)
{
    return (struct guard_header){name, strlen(name), value, strlen(value)};
}

static enum status judge(struct guard_result *r, const char *method, const char *target,
                         const struct guard_header *h, int count)
{
    struct err e = {0};
    enum status st = guard_check(r, method, target, h, count, &e);
    CHECK_INT(st == ST_OK, e.msg[0] == '\0');
    return st;
}

/* A sound request with one header more. */
static enum status with(const char *method, const char *name, const char *value)
{
    struct guard_header h[] = {header("Host", "a"), header(name, value)};
    struct guard_result r;
    return judge(&r, method, "/", h, 2);
}

static void a_sound_head_passes_and_says_its_length(void)
{
    struct guard_header h[] = {header("host", "localhost:8080"), header("CONTENT-LENGTH", "17")};
    struct guard_result r;
    CHECK_INT(judge(&r, "POST", "/api/v1/runs?dry_run=1", h, 2), ST_OK);
    CHECK_INT(r.content_length, 17);
    CHECK(!r.chunked);
    h[1] = header("Transfer-Encoding", "Chunked");
    CHECK_INT(judge(&r, "POST", "/", h, 2), ST_OK);
    CHECK_INT(r.content_length, -1);
    CHECK(r.chunked);
}

static void exactly_one_host_is_needed(void)
{
    struct guard_header h[] = {header("Host", "a"), header("host", "a")};
    struct guard_result r;
    CHECK_INT(judge(&r, "GET", "/", h, 0), ST_INVALID);
    CHECK_INT(judge(&r, "GET", "/", h, 1), ST_OK);
    CHECK_INT(judge(&r, "GET", "/", h, 2), ST_INVALID);
}

static void a_length_that_two_readers_may_read_differently_is_refused(void)
{
    static const char *const bad[] = {
        "", "+1", "-1", "1 ", "0x10", "1,1", "9223372036854775808", "18446744073709551616"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        CHECK_INT(with("POST", "Content-Length", bad[i]), ST_INVALID);
    }
    struct guard_header h[] = {header("Host", "a"), header("Content-Length", "1"),
                               header("Content-Length", "1")};
    struct guard_result r;
    CHECK_INT(judge(&r, "POST", "/", h, 3), ST_INVALID);
    h[2] = header("Transfer-Encoding", "chunked");
    CHECK_INT(judge(&r, "POST", "/", h, 3), ST_INVALID);
}

static void only_chunked_is_a_transfer_encoding(void)
{
    static const char *const bad[] = {"",         "gzip",    "gzip, chunked", "chunked, chunked",
                                      "xchunked", "identity"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        CHECK_INT(with("POST", "Transfer-Encoding", bad[i]), ST_INVALID);
    }
}

static void names_are_tokens_and_values_hold_no_nul(void)
{
    CHECK_INT(with("GET", "Content-Length ", "0"), ST_INVALID); // a space before the colon
    CHECK_INT(with("GET", "X\tY", "0"), ST_INVALID);
    struct guard_header h[] = {header("Host", "a"), {"X", 1, "a\0b", 3}};
    struct guard_result r;
    CHECK_INT(judge(&r, "GET", "/", h, 2), ST_INVALID);
    CHECK_INT(judge(&r, "GE T", "/", h, 1), ST_INVALID);
    CHECK_INT(judge(&r, "", "/", h, 1), ST_INVALID);
}

static void bodies_come_with_the_methods_that_have_them(void)
{
    CHECK_INT(with("GET", "Content-Length", "1"), ST_INVALID);
    CHECK_INT(with("GET", "Content-Length", "0"), ST_OK);
    CHECK_INT(with("DELETE", "Transfer-Encoding", "chunked"), ST_INVALID);
    CHECK_INT(with("PUT", "Content-Length", "1"), ST_OK);
}

static void targets_that_decode_into_something_else_are_refused(void)
{
    static const char *const bad[] = {"",       "*",        "http://a/",   "/a%00", "/?a=%00",
                                      "/a%2fb", "/a%2Fb",   "/%2e%2e/etc", "/..",   "/a/../b",
                                      "/a\\b",  "/a b",     "/a\x01",      "/\xff", "/a#b",
                                      "/a%5cb", "/a/%2E./b"};
    static const char *const good[] = {"/", "/a..b/...", "/?q=a%2fb", "/runs/r_1?cmp=..", "/a%20b"};
    struct guard_header h[] = {header("Host", "a")};
    struct guard_result r;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        CHECK_INT(judge(&r, "GET", bad[i], h, 1), ST_INVALID);
    }
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        CHECK_INT(judge(&r, "GET", good[i], h, 1), ST_OK);
    }
}

static void headers_are_counted(void)
{
    struct guard_header h[GUARD_HEADERS_MAX + 1];
    h[0] = header("Host", "a");
    for (int i = 1; i <= GUARD_HEADERS_MAX; i++) {
        h[i] = header("X", "y");
    }
    struct guard_result r;
    CHECK_INT(judge(&r, "GET", "/", h, GUARD_HEADERS_MAX), ST_OK);
    CHECK_INT(judge(&r, "GET", "/", h, GUARD_HEADERS_MAX + 1), ST_INVALID);
}

int main(void)
{
    RUN(a_sound_head_passes_and_says_its_length);
    RUN(exactly_one_host_is_needed);
    RUN(a_length_that_two_readers_may_read_differently_is_refused);
    RUN(only_chunked_is_a_transfer_encoding);
    RUN(names_are_tokens_and_values_hold_no_nul);
    RUN(bodies_come_with_the_methods_that_have_them);
    RUN(targets_that_decode_into_something_else_are_refused);
    RUN(headers_are_counted);
    return check_end();
}
