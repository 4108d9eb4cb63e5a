#include "server/http_listen.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/support/check.h"

static void addresses_are_taken_apart(void)
{
    static const struct {
        const char *text, *host;
        int port;
    } good[] = {{"127.0.0.1:8080", "127.0.0.1", 8080},
                {"[::1]:0", "::1", 0},
                {"localhost:65535", "localhost", 65535},
                {":80", "", 80}};
    static const char *const bad[] = {
        "",        "8080",     "127.0.0.1", "a:",       "a:b",   "a:-1",
        "a:65536", "::1:8080", "a:8 ",      "a:123456", "a: 80", "[::1]8080"};
    struct listen_address a;
    struct err e = {0};
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        CHECK_INT(listen_address_parse(&a, good[i].text, &e), ST_OK);
        CHECK_STR(a.host, good[i].host);
        CHECK_INT(a.port, good[i].port);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        CHECK_INT(listen_address_parse(&a, bad[i], &e), ST_INVALID);
    }
}

static void port_zero_lets_the_system_choose_and_a_taken_one_is_said_so(void)
{
    int fd = -1;
    int again = -1;
    int port = 0;
    int other = 0;
    struct err e = {0};
    CHECK_INT(http_listen(&fd, &port, "127.0.0.1:0", false, &e), ST_OK);
    CHECK(port > 0);
    char text[32];
    (void)snprintf(text, sizeof(text), "127.0.0.1:%d", port);
    CHECK_INT(http_listen(&again, &other, text, false, &e), ST_CONFLICT);
    CHECK(strstr(e.msg, "taken") && strstr(e.msg, "; try"));
    CHECK_INT(again, -1);
    (void)close(fd);
}

static void plain_http_stays_on_loopback(void)
{
    int fd = -1;
    int port = 0;
    struct err e = {0};
    CHECK_INT(http_listen(&fd, &port, "0.0.0.0:0", false, &e), ST_DENIED);
    CHECK(strstr(e.msg, "--tls auto") && strstr(e.msg, "--tls-cert"));
    CHECK_INT(http_listen(&fd, &port, ":0", false, &e), ST_DENIED);
    CHECK_INT(http_listen(&fd, &port, "0.0.0.0:0", true, &e), ST_OK);
    (void)close(fd);
    CHECK_INT(http_listen(&fd, &port, "no-such-host.invalid:0", true, &e), ST_INVALID);
}

static void two_addresses_are_judged_before_either_is_taken(void)
{
    static const struct {
        const char *control, *bulk;
        bool tls;
        enum status want;
    } cases[] = {{"127.0.0.1:8080", "127.0.0.1:8081", false, ST_OK},
                 {"127.0.0.1:0", "127.0.0.1:0", false, ST_OK},
                 {"0.0.0.0:8443", "0.0.0.0:8444", true, ST_OK},
                 {"0.0.0.0:8080", "127.0.0.1:8081", false, ST_DENIED},
                 {"127.0.0.1:8080", "0.0.0.0:8081", false, ST_DENIED},
                 {"127.0.0.1:8080", "127.0.0.1:8080", false, ST_INVALID},
                 {"127.0.0.1:8080", "127.1:8080", true, ST_INVALID},
                 {"127.0.0.1", "127.0.0.1:1", true, ST_INVALID},
                 {"127.0.0.1:1", "127.0.0.1:65536", true, ST_INVALID},
                 {"no-such-host.invalid:0", "127.0.0.1:0", true, ST_INVALID}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct err e = {0};
        CHECK_INT(http_listen_check(cases[i].control, cases[i].bulk, cases[i].tls, &e),
                  cases[i].want);
        CHECK_INT(e.msg[0] != '\0', cases[i].want != ST_OK);
    }
}

int main(void)
{
    RUN(addresses_are_taken_apart);
    RUN(port_zero_lets_the_system_choose_and_a_taken_one_is_said_so);
    RUN(plain_http_stays_on_loopback);
    RUN(two_addresses_are_judged_before_either_is_taken);
    return check_end();
}
