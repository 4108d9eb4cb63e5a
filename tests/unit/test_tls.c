#include "server/tls.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/clock.h"
#include "server/tls_make.h"
#include "tests/support/check.h"

static char dir[64];
static char own[80]; // a second folder of certificates, as an operator's
static char cert[112];
static char key[112];

static void made_in(const char *folder, const char *host)
{
    bool made = false;
    struct err e = {0};
    CHECK_INT(tls_make(folder, &host, 1, clock_wall_ms() / 1000, &made, &e), ST_OK);
    CHECK(made);
}

static void fresh(void)
{
    (void)snprintf(dir, sizeof(dir), "/tmp/photon-tls-XXXXXX");
    CHECK(mkdtemp(dir) != NULL);
    (void)snprintf(own, sizeof(own), "%s/own", dir);
    (void)snprintf(cert, sizeof(cert), "%s/server.pem", own);
    (void)snprintf(key, sizeof(key), "%s/server.key", own);
    made_in(own, "agg.example.org");
}

static void clear(void)
{
    char command[128];
    (void)snprintf(command, sizeof(command), "rm -r %s", dir);
    CHECK_INT(system(command), 0);
}

static void write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_TRUNC);
    CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    (void)close(fd);
}

static void no_tls_is_asked_for(void)
{
    struct tls_config c = {.data_dir = "/nonexistent", .listen = "127.0.0.1:8080"};
    struct tls *t = NULL;
    struct err e = {0};
    char pin[PIN_TEXT_MAX + 1] = "x";
    CHECK_INT(tls_open(&t, &c, &e), ST_OK);
    CHECK(t == NULL);
    tls_pin(t, pin);
    CHECK_STR(pin, "");
    tls_close(t);
}

static void the_pin_of_what_is_made_outlives_a_restart(void)
{
    char first[PIN_TEXT_MAX + 1];
    char second[PIN_TEXT_MAX + 1];
    struct err e = {0};
    struct pin parsed;
    fresh();
    struct tls_config c = {.data_dir = dir, .make = true, .listen = "0.0.0.0:8443"};
    for (int i = 0; i < 2; i++) {
        struct tls *t = NULL;
        CHECK_INT(tls_open(&t, &c, &e), ST_OK);
        tls_pin(t, i ? second : first);
        tls_close(t);
        c.public_url = "https://[2001:db8::1]:8443/photon"; // a certificate for one host more
    }
    CHECK_STR(second, first);
    CHECK_INT(pin_parse(&parsed, first, &e), ST_OK);
    c.public_url = "https://agg,example.org";
    struct tls *t = NULL;
    CHECK_INT(tls_open(&t, &c, &e), ST_INVALID);
    CHECK(t == NULL && strstr(e.msg, "agg,example.org"));
    clear();
}

static void files_of_ones_own_must_be_in_order(void)
{
    struct err e = {0};
    struct tls *t = NULL;
    fresh();
    struct tls_config c = {.cert = cert, .key = key};
    CHECK_INT(chmod(key, 0644), 0);
    CHECK_INT(tls_open(&t, &c, &e), ST_DENIED);
    CHECK(strstr(e.msg, "chmod 600"));
    CHECK_INT(chmod(key, 0600), 0);
    CHECK_INT(tls_open(&t, &c, &e), ST_OK);
    tls_close(t);
    t = NULL;
    c.key = NULL;
    CHECK_INT(tls_open(&t, &c, &e), ST_INVALID); // one without the other
    c.key = cert;
    CHECK_INT(chmod(cert, 0600), 0);
    CHECK_INT(tls_open(&t, &c, &e), ST_INVALID); // no key in it
    c.key = key;
    write_file(cert, "nonsense");
    CHECK_INT(tls_open(&t, &c, &e), ST_INVALID);
    write_file(cert, "-----BEGIN CERTIFICATE-----\n");
    CHECK_INT(tls_open(&t, &c, &e), ST_INVALID);
    CHECK_INT(unlink(cert), 0);
    CHECK_INT(tls_open(&t, &c, &e), ST_IO);
    CHECK(t == NULL);
    clear();
}

static void a_refresh_takes_up_new_files_or_leaves_all_as_it_was(void)
{
    char other[112];
    char other_key[112];
    char before[PIN_TEXT_MAX + 1];
    char after[PIN_TEXT_MAX + 1];
    struct err e = {0};
    struct tls *t = NULL;
    fresh();
    (void)snprintf(other, sizeof(other), "%s/other", dir);
    made_in(other, "agg.example.org");
    struct tls_config c = {.cert = cert, .key = key};
    CHECK_INT(tls_open(&t, &c, &e), ST_OK);
    tls_pin(t, before);
    CHECK_INT(tls_refresh(t, &e), ST_OK);
    tls_pin(t, after);
    CHECK_STR(after, before);

    (void)snprintf(other_key, sizeof(other_key), "%s/other/server.key", dir);
    CHECK_INT(rename(other_key, key), 0);
    CHECK_INT(tls_refresh(t, &e), ST_INVALID); // the key is there, its certificate not yet
    tls_pin(t, after);
    CHECK_STR(after, before);
    (void)snprintf(other, sizeof(other), "%s/other/server.pem", dir);
    CHECK_INT(rename(other, cert), 0);
    CHECK_INT(tls_refresh(t, &e), ST_OK);
    tls_pin(t, after);
    CHECK(strcmp(after, before) != 0);
    tls_close(t);
    clear();
}

int main(void)
{
    RUN(no_tls_is_asked_for);
    RUN(the_pin_of_what_is_made_outlives_a_restart);
    RUN(files_of_ones_own_must_be_in_order);
    RUN(a_refresh_takes_up_new_files_or_leaves_all_as_it_was);
    return check_end();
}
