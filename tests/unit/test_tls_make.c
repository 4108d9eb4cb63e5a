#include "server/tls_make.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/support/check.h"

enum { TEXT_MAX = 16384 };

static const int64_t DAY = 86400;
static const int64_t NOW = 1800000000; // January 2027
static const char *const HOSTS[] = {"agg.example.org", "10.0.0.1", "::1"};
static const char *const FILES[] = {"ca.key", "ca.pem", "server.key", "server.pem"};

static char dir[64];

static const char *path_of(const char *name)
{
    static char path[4][128];
    static int turn;
    turn = (turn + 1) % 4;
    (void)snprintf(path[turn], sizeof(path[turn]), "%s/%s", dir, name);
    return path[turn];
}

static void fresh(void)
{
    (void)snprintf(dir, sizeof(dir), "/tmp/photon-tls-XXXXXX");
    CHECK(mkdtemp(dir) != NULL);
}

static void clear(void)
{
    for (size_t i = 0; i < sizeof(FILES) / sizeof(FILES[0]); i++) {
        (void)unlink(path_of(FILES[i]));
    }
    CHECK_INT(rmdir(dir), 0); // and nothing else was left
}

static void text_of(const char *name, char out[TEXT_MAX])
{
    int fd = open(path_of(name), O_RDONLY);
    CHECK(fd >= 0);
    ssize_t n = fd >= 0 ? read(fd, out, TEXT_MAX - 1) : 0;
    out[n > 0 ? n : 0] = '\0';
    (void)close(fd);
}

static void put(const char *name, const char *text, mode_t mode)
{
    int fd = open(path_of(name), O_WRONLY | O_CREAT | O_TRUNC, mode);
    CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    CHECK_INT(fchmod(fd, mode), 0);
    (void)close(fd);
}

/* 1: made, 0: nothing to do; else the negative status. */
static int make_at(int64_t now, const char *const *hosts, int count, struct err *e)
{
    bool made = false;
    enum status st = tls_make(dir, hosts, count, now, &made, e);
    return st ? -(int)st : made;
}

static int make(int64_t now)
{
    struct err e = {0};
    return make_at(now, HOSTS, 3, &e);
}

static struct tls_facts facts(void)
{
    char cert[TEXT_MAX];
    char key[TEXT_MAX];
    struct tls_facts f = {0};
    struct err e = {0};
    text_of("server.pem", cert);
    text_of("server.key", key);
    CHECK_INT(tls_inspect(&f, cert, key, &e), ST_OK);
    return f;
}

static bool has_key_of(const struct tls_facts *first)
{
    struct tls_facts f = facts();
    return digest_equal(&f.key, &first->key);
}

static void four_files_are_made_once(void)
{
    char before[4][TEXT_MAX];
    char after[TEXT_MAX];
    fresh();
    CHECK_INT(make(NOW), 1);
    for (int i = 0; i < 4; i++) {
        struct stat info;
        CHECK_INT(stat(path_of(FILES[i]), &info), 0);
        CHECK_INT(info.st_mode & 0777, i % 2 ? 0644 : 0600);
        text_of(FILES[i], before[i]);
    }
    struct tls_facts f = facts();
    CHECK_INT(f.ends_s, NOW + TLS_DAYS * DAY);
    CHECK(!f.vouched);
    CHECK_INT(make(NOW + 60), 0);
    for (int i = 0; i < 4; i++) {
        text_of(FILES[i], after);
        CHECK_STR(after, before[i]);
    }
    // The chain is sent whole.
    CHECK(strstr(before[3], before[1]) != NULL);
    clear();
}

static void a_renewal_keeps_the_key_and_the_authority(void)
{
    char ca[TEXT_MAX];
    char again[TEXT_MAX];
    fresh();
    CHECK_INT(make(NOW), 1);
    text_of("ca.pem", ca);
    struct tls_facts first = facts();
    int64_t last = NOW + (TLS_DAYS - TLS_RENEW_DAYS) * DAY;
    CHECK_INT(make(last - 1), 0);
    CHECK_INT(make(last), 1);
    struct tls_facts second = facts();
    CHECK(digest_equal(&first.key, &second.key));
    CHECK_INT(second.ends_s, last + TLS_DAYS * DAY);
    text_of("ca.pem", again);
    CHECK_STR(again, ca);
    CHECK_INT(make(NOW + TLS_CA_DAYS * DAY), 1); // both are long over
    CHECK(has_key_of(&first));
    text_of("ca.pem", again);
    CHECK(strcmp(again, ca) != 0);
    CHECK_INT(make(NOW), 1); // a clock that went back: what is not yet valid helps nobody
    CHECK(has_key_of(&first));
    CHECK_INT(make(NOW), 0);
    clear();
}

static void other_hosts_are_another_certificate_of_the_same_key(void)
{
    static const char *const other[] = {"agg.example.org", "10.0.0.2", "::1"};
    struct err e = {0};
    fresh();
    CHECK_INT(make(NOW), 1);
    struct tls_facts first = facts();
    CHECK_INT(make_at(NOW, other, 3, &e), 1);
    CHECK_INT(make_at(NOW, other, 3, &e), 0);
    CHECK_INT(make_at(NOW, other, 2, &e), 1);
    CHECK(has_key_of(&first));
    clear();
}

static void a_key_is_never_replaced(void)
{
    static const char *const keys[] = {"server.key", "ca.key"};
    static const int64_t late = (int64_t)(TLS_DAYS - 1) * 86400;
    char key[TEXT_MAX];
    char cert[TEXT_MAX];
    char now[TEXT_MAX];
    fresh();
    CHECK_INT(make(NOW), 1);
    text_of("server.pem", cert);
    for (int i = 0; i < 2; i++) {
        struct err e = {0};
        text_of(keys[i], key);
        CHECK_INT(unlink(path_of(keys[i])), 0);
        CHECK_INT(make_at(NOW + late, HOSTS, 3, &e), -ST_CORRUPT);
        CHECK(strstr(e.msg, "is gone; try a backup"));
        CHECK(access(path_of(keys[i]), F_OK) != 0);
        put(keys[i], "-----BEGIN PRIVATE KEY-----\n", 0600);
        CHECK_INT(make_at(NOW + late, HOSTS, 3, &e), -ST_CORRUPT);
        CHECK(strstr(e.msg, "is damaged; try a backup"));
        put(keys[i], key, 0644);
        CHECK_INT(make_at(NOW + late, HOSTS, 3, &e), -ST_DENIED);
        CHECK(strstr(e.msg, "chmod 600"));
        CHECK_INT(chmod(path_of(keys[i]), 0600), 0);
        text_of("server.pem", now);
        CHECK_STR(now, cert); // each refusal left it as it was
        CHECK_INT(make(NOW), 0);
    }
    // To serve, the authority's key may lie elsewhere.
    CHECK_INT(unlink(path_of("ca.key")), 0);
    CHECK_INT(make(NOW), 0);
    clear();
}

static void a_key_put_in_the_place_of_the_other_is_taken(void)
{
    char key[TEXT_MAX];
    fresh();
    CHECK_INT(make(NOW), 1);
    struct tls_facts first = facts();
    text_of("ca.key", key); // any will do
    put("server.key", key, 0600);
    CHECK_INT(make(NOW), 1);
    CHECK(!has_key_of(&first));
    CHECK_INT(make(NOW), 0);
    clear();
}

static void what_is_not_a_key_is_made_again(void)
{
    static const char *const certs[] = {"server.pem", "ca.pem"};
    fresh();
    CHECK_INT(make(NOW), 1);
    struct tls_facts first = facts();
    for (int i = 0; i < 2; i++) {
        put(certs[i], "nonsense", 0644);
        CHECK_INT(make(NOW), 1);
        CHECK_INT(unlink(path_of(certs[i])), 0);
        CHECK_INT(make(NOW), 1);
        CHECK_INT(make(NOW), 0);
        CHECK(has_key_of(&first));
    }
    put("server.pem.new", "half of a certif", 0644); // a crash while it was written
    CHECK_INT(unlink(path_of("server.pem")), 0);
    CHECK_INT(make(NOW), 1);
    clear();
}

static void a_host_that_no_certificate_can_name_is_refused(void)
{
    static const char *const bad[] = {
        "", "a b", "a,DNS:evil", "a\nb", ".a", "10.0.0.1:80", "[::1]", "@section", "b\xc3\xbc"};
    struct err e = {0};
    fresh();
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        CHECK_INT(make_at(NOW, &bad[i], 1, &e), -ST_INVALID);
    }
    CHECK_INT(make_at(NOW, bad, 0, &e), -ST_INVALID);
    clear();                                  // nothing was written
    CHECK_INT(make_at(NOW, HOSTS, 3, &e), 1); // the folder is made where it is missing
    clear();
}

static void a_certificate_and_a_key_must_belong_together(void)
{
    // PKCS #8 under the password "secret", made with openssl genpkey.
    static const char locked[] =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\n"
        "MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAiY3EJ89vZ1ngICCAAw\n"
        "DAYIKoZIhvcNAgkFADAdBglghkgBZQMEAQIEEOdm8F6GTvrUZfnMgn92IcEEgZD6\n"
        "DUr76XhqTdx8K/uv7x5psFnM2s+nqxTq+anhmpTqX2UJrO4m/gL7Gnw75xOWWJrU\n"
        "IGwu74d5yY0cFW1a/QpT/E7tJQsdrR2812jMXIibwpNihRVik3BkmKg3qidbRCzy\n"
        "9gtRSPSvdOCFb2Q2/eRrWQ754pyt+MNPlZIboS6KLzXSfQnRx5sB8QoUWlE9bTc=\n"
        "-----END ENCRYPTED PRIVATE KEY-----\n";
    char cert[TEXT_MAX];
    char key[TEXT_MAX];
    char ca_key[TEXT_MAX];
    struct tls_facts f;
    struct err e = {0};
    fresh();
    CHECK_INT(make(NOW), 1);
    text_of("server.pem", cert);
    text_of("server.key", key);
    text_of("ca.key", ca_key);
    CHECK_INT(tls_inspect(&f, cert, key, &e), ST_OK);
    CHECK_INT(tls_inspect(&f, cert, ca_key, &e), ST_INVALID);
    CHECK(strstr(e.msg, "; try its own"));
    CHECK_INT(tls_inspect(&f, cert, cert, &e), ST_INVALID);
    CHECK_INT(tls_inspect(&f, cert, locked, &e), ST_INVALID); // and nobody is asked for a password
    CHECK(strstr(e.msg, "without a password"));
    CHECK_INT(tls_inspect(&f, key, key, &e), ST_INVALID);
    CHECK_INT(tls_inspect(&f, "", "", &e), ST_INVALID);
    clear();
}

int main(void)
{
    RUN(four_files_are_made_once);
    RUN(a_renewal_keeps_the_key_and_the_authority);
    RUN(other_hosts_are_another_certificate_of_the_same_key);
    RUN(a_key_is_never_replaced);
    RUN(a_key_put_in_the_place_of_the_other_is_taken);
    RUN(what_is_not_a_key_is_made_again);
    RUN(a_host_that_no_certificate_can_name_is_refused);
    RUN(a_certificate_and_a_key_must_belong_together);
    return check_end();
}
