#include "server/auth.h"

#include <string.h>

#include "tests/support/check.h"

static void a_secret_is_well_formed_and_never_the_same(void)
{
    char a[SECRET_LEN + 1];
    char b[SECRET_LEN + 1];
    struct digest da;
    struct digest db;
    struct digest again;
    secret_new(a, &da);
    secret_new(b, &db);
    CHECK(secret_valid(a));
    CHECK(secret_valid(b));
    CHECK(strcmp(a, b) != 0);
    sha256_of(a, SECRET_LEN, &again);
    CHECK(digest_equal(&da, &again));
    CHECK(!digest_equal(&da, &db));
}

static void every_letter_of_a_secret_is_drawn(void)
{
    char first[SECRET_LEN + 1];
    bool varied[SECRET_LEN] = {false};
    struct digest d;
    secret_new(first, &d);
    for (int n = 0; n < 64; n++) {
        char next[SECRET_LEN + 1];
        secret_new(next, &d);
        for (int i = 0; i < SECRET_LEN; i++) {
            varied[i] = varied[i] || next[i] != first[i];
        }
    }
    for (int i = 0; i < SECRET_LEN; i++) {
        CHECK_INT(varied[i], i >= 4); // all but the prefix
    }
}

static void what_is_no_secret_is_not_looked_up(void)
{
    static const char *const bad[] = {
        "",
        "pht_",
        "pht_short",
        "xxx_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "pht_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "pht_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "pht_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA' ",
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        CHECK(!secret_valid(bad[i]));
    }
}

static void an_origin_is_scheme_host_and_port(void)
{
    static const char *const same[][2] = {
        {"https://agg.example.org", "https://agg.example.org"},
        {"https://agg.example.org", "https://agg.example.org/"},
        {"https://agg.example.org", "https://Agg.example.org:443/photon?x"},
        {"http://agg.example.org", "http://agg.example.org:80"},
        {"https://agg.example.org:8443", "https://agg.example.org:8443/"},
    };
    static const char *const other[][2] = {
        {"http://agg.example.org", "https://agg.example.org"},
        {"https://agg.example.org", "https://agg.example.org:80"},
        {"https://agg.example.org", "https://agg.example.org:8443"},
        {"https://agg.example.org.evil.example", "https://agg.example.org"},
        {"https://agg.example", "https://agg.example.org"},
        {"null", "https://agg.example.org"},
        {"", "https://agg.example.org"},
        {"", ""},
    };
    for (size_t i = 0; i < sizeof(same) / sizeof(same[0]); i++) {
        CHECK(origin_is_of(same[i][0], same[i][1]));
    }
    for (size_t i = 0; i < sizeof(other) / sizeof(other[0]); i++) {
        CHECK(!origin_is_of(other[i][0], other[i][1]));
    }
}

static const char SECRET[] = "pht_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

static void a_bearer_token_is_read_whatever_the_schemes_case(void)
{
    char header[80] = "Bearer pht_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    CHECK_STR(bearer_secret(header), SECRET);
    header[0] = 'b';
    CHECK_STR(bearer_secret(header), SECRET);
    CHECK(bearer_secret("Basic pht_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA") == NULL);
    CHECK(bearer_secret("Bearer") == NULL);
    CHECK(bearer_secret("Bearer ") == NULL);
    CHECK(bearer_secret("") == NULL);
}

static void a_cookie_is_found_by_its_whole_name(void)
{
    char v[8];
    CHECK(cookie_get("photon=a", "photon", v, sizeof(v)));
    CHECK_STR(v, "a");
    CHECK(cookie_get("x=1; photon=b ; y=2", "photon", v, sizeof(v)));
    CHECK_STR(v, "b");
    CHECK(cookie_get("notphoton=1;photon=c", "photon", v, sizeof(v)));
    CHECK_STR(v, "c");
    CHECK(!cookie_get("photons=1", "photon", v, sizeof(v)));
    CHECK(!cookie_get("photon", "photon", v, sizeof(v)));
    CHECK(!cookie_get("photon=", "photon", v, sizeof(v)));
    CHECK(!cookie_get("", "photon", v, sizeof(v)));
    CHECK(!cookie_get("photon=12345678", "photon", v, sizeof(v))); // no room
    CHECK(cookie_get("photon=1234567", "photon", v, sizeof(v)));
}

int main(void)
{
    RUN(a_secret_is_well_formed_and_never_the_same);
    RUN(every_letter_of_a_secret_is_drawn);
    RUN(what_is_no_secret_is_not_looked_up);
    RUN(an_origin_is_scheme_host_and_port);
    RUN(a_bearer_token_is_read_whatever_the_schemes_case);
    RUN(a_cookie_is_found_by_its_whole_name);
    return check_end();
}
