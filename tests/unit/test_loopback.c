#include "common/loopback.h"

#include "tests/support/check.h"

static void the_machine_itself_is_told_from_names_that_look_like_it(void)
{
    static const char *const good[] = {"localhost",       "127.0.0.1", "127.1.2.3",
                                       "127.255.255.255", "::1",       "[::1]"};
    static const char *const bad[] = {"",
                                      "127.evil.example",
                                      "127.0.0.1.evil.example",
                                      "127.",
                                      "127.0.0.1 ",
                                      "128.0.0.1",
                                      "10.0.0.127",
                                      "0.0.0.0",
                                      "localhost.evil.example",
                                      "[::1].evil.example",
                                      "[::2]",
                                      "[::1"};
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        CHECK(loopback_host(good[i]));
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        CHECK(!loopback_host(bad[i]));
    }
}

int main(void)
{
    RUN(the_machine_itself_is_told_from_names_that_look_like_it);
    return check_end();
}
