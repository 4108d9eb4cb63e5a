/* The object store's calls against a store that checks signatures and breaks on purpose. */
#include "server/s3.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/buf.h"
#include "common/mem.h"
#include "common/rng.h"
#include "tests/support/check.h"
#include "tests/support/tempdir.h"

enum { PART = 64 * 1024, LARGEST = 5 * PART, KEYS = 40, OPERATIONS = 500 };

static pid_t stub;
static int stub_in = -1; // the stub lives as long as this is open
static char endpoint[64];
static struct tempdir dir;

/* False: this machine cannot run it. */
static bool stub_start(const char *faults, const char *page)
{
    int to[2];
    int from[2];
    char port[16] = "";
    CHECK_INT(pipe(to), 0);
    CHECK_INT(pipe(from), 0);
    (void)fflush(NULL);
    stub = fork();
    if (stub == 0) {
        (void)dup2(to[0], 0);
        (void)dup2(from[1], 1);
        (void)close(to[1]);
        (void)close(from[0]);
        (void)execlp("python3", "python3", "-B", "tests/support/s3_stub.py", "--faults", faults,
                     "--seed", "11", "--page", page, (char *)NULL);
        _exit(127);
    }
    (void)close(to[0]);
    (void)close(from[1]);
    stub_in = to[1];
    size_t n = 0;
    while (n < sizeof(port) - 1 && !strchr(port, '\n') && read(from[0], port + n, 1) == 1) {
        n++;
    }
    (void)close(from[0]);
    (void)snprintf(endpoint, sizeof(endpoint), "http://127.0.0.1:%.*s", (int)strcspn(port, "\n"),
                   port);
    tempdir_make(&dir);
    return n > 0;
}

static void stub_stop(void)
{
    int how = 0;
    (void)close(stub_in);
    CHECK_INT(waitpid(stub, &how, 0), stub);
    tempdir_remove(&dir);
}

static enum status open_as(struct s3 **s, const char *url, const char *secret, struct err *e)
{
    (void)setenv("AWS_ACCESS_KEY_ID", "AKIATEST", 1);
    (void)setenv("AWS_SECRET_ACCESS_KEY", secret, 1);
    (void)setenv("AWS_SESSION_TOKEN", "a-session-token", 1);
    (void)setenv("AWS_REGION", "eu-north-1", 1);
    struct s3_config c = {
        .url = url, .endpoint = endpoint, .part_bytes = PART, .patience_s = 60.0, .pause_ms = 2};
    return s3_open(s, &c, e);
}

static const char SECRET[] = "not/a+secret=";

/* size bytes that depend on which; the file's descriptor and digest. */
static int file_of(int which, int64_t size, struct digest *d)
{
    char name[32];
    char *bytes = mem_alloc((size_t)size + 1);
    for (int64_t i = 0; i < size; i++) {
        bytes[i] = (char)rng_u64((uint64_t)which + 1, (uint64_t)i);
    }
    sha256_of(bytes, (size_t)size, d);
    (void)snprintf(name, sizeof(name), "f%d", which);
    tempdir_put(&dir, name, bytes, (size_t)size);
    mem_free(bytes);
    FILE *f = fopen(tempdir_at(&dir, name), "rb");
    CHECK(f != NULL);
    int fd = dup(fileno(f));
    CHECK_INT(fclose(f), 0);
    return fd;
}

static void key_of(const struct digest *d, char key[80])
{
    char hex[DIGEST_HEX + 1];
    digest_hex(d, hex);
    (void)snprintf(key, 80, "%.2s/%.2s/%s", hex, hex + 2, hex);
}

static enum status collect(void *ctx, const void *data, size_t len, struct err *e)
{
    (void)e;
    buf_add(ctx, data, len);
    return ST_OK;
}

static void check_content(struct s3 *s, const char *key, const struct digest *want, int64_t size)
{
    struct buf b;
    struct digest got;
    struct err e = {0};
    buf_init(&b, LARGEST + 1);
    CHECK_INT(s3_get(s, key, 0, -1, collect, &b, &e), ST_OK);
    CHECK_INT(b.len, size);
    sha256_of(b.data ? b.data : "", b.len, &got);
    CHECK(digest_equal(&got, want));
    buf_release(&b);
}

static void objects_come_whole_and_go(void)
{
    if (!stub_start("0", "1000")) {
        stub_stop();
        SKIP("python3 plays the store");
    }
    struct s3 *s = NULL;
    struct err e = {0};
    int64_t bytes = -1;
    CHECK_INT(open_as(&s, "s3://bucket-1/some/prefix", SECRET, &e), ST_OK);
    static const int64_t sizes[] = {1, 1000, PART, PART + 1, 3 * PART, LARGEST};
    for (int i = 0; i < 6; i++) {
        struct digest d;
        char key[80];
        int fd = file_of(i, sizes[i], &d);
        key_of(&d, key);
        CHECK_INT(s3_head(s, key, &bytes, &e), ST_NOT_FOUND);
        CHECK_INT(s3_put(s, key, fd, sizes[i], &d, false, &e), ST_OK);
        CHECK_INT(s3_put(s, key, fd, sizes[i], &d, false, &e), ST_OK); // a repeat
        CHECK_INT(s3_put(s, key, fd, sizes[i], &d, true, &e), ST_OK);
        CHECK_INT(s3_head(s, key, &bytes, &e), ST_OK);
        CHECK_INT(bytes, sizes[i]);
        check_content(s, key, &d, sizes[i]);
        CHECK_INT(s3_delete(s, key, &e), ST_OK);
        CHECK_INT(s3_delete(s, key, &e), ST_OK);
        struct buf b;
        buf_init(&b, 100);
        CHECK_INT(s3_get(s, key, 0, -1, collect, &b, &e), ST_NOT_FOUND);
        buf_release(&b);
        CHECK_INT(close(fd), 0);
    }
    s3_close(s);
    stub_stop();
}

static void a_range_is_exactly_that(void)
{
    if (!stub_start("0", "1000")) {
        stub_stop();
        SKIP("python3 plays the store");
    }
    struct s3 *s = NULL;
    struct err e = {0};
    struct digest d;
    char want[500];
    int fd = file_of(1, 500, &d);
    CHECK_INT(pread(fd, want, 500, 0), 500);
    CHECK_INT(open_as(&s, "s3://bucket-1", SECRET, &e), ST_OK);
    CHECK_INT(s3_put(s, "k", fd, 500, &d, false, &e), ST_OK);
    for (int from = 0; from < 500; from += 99) {
        for (int len = 1; from + len <= 500; len += 83) {
            struct buf b;
            buf_init(&b, 1000);
            CHECK_INT(s3_get(s, "k", from, len, collect, &b, &e), ST_OK);
            CHECK_INT(b.len, len);
            CHECK_MEM(b.data, want + from, (size_t)len);
            buf_release(&b);
        }
    }
    struct buf b;
    buf_init(&b, 1000);
    CHECK_INT(s3_get(s, "k", 400, 200, collect, &b, &e), ST_IO); // it has no such bytes
    buf_release(&b);
    CHECK_INT(close(fd), 0);
    s3_close(s);
    stub_stop();
}

static void what_cannot_work_is_said_at_the_start(void)
{
    if (!stub_start("0", "1000")) {
        stub_stop();
        SKIP("python3 plays the store");
    }
    struct s3 *s = NULL;
    struct err e = {0};
    CHECK_INT(open_as(&s, "s3://bucket-1", "another secret", &e), ST_DENIED);
    CHECK(strstr(e.msg, "SignatureDoesNotMatch") != NULL);
    CHECK_INT(open_as(&s, "s3://no-such-bucket", SECRET, &e), ST_INVALID);
    CHECK(strstr(e.msg, "NoSuchBucket") != NULL);
    static const char *const bad[] = {"bucket",         "s3://",           "s3://B/../x",
                                      "s3://ab",        "s3://bucket/a b", "s3://bucket//x",
                                      "http://bucket-1"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        CHECK_INT(open_as(&s, bad[i], SECRET, &e), ST_INVALID);
    }
    CHECK_INT(open_as(&s, "s3://bucket-1", "", &e), ST_INVALID);
    (void)snprintf(endpoint, sizeof(endpoint), "http://192.0.2.1:80");
    CHECK_INT(open_as(&s, "s3://bucket-1", SECRET, &e), ST_INVALID);
    CHECK(strstr(e.msg, "in the clear") != NULL);
    (void)snprintf(endpoint, sizeof(endpoint), "http://127.evil.example");
    CHECK_INT(open_as(&s, "s3://bucket-1", SECRET, &e), ST_INVALID);
    CHECK(strstr(e.msg, SECRET) == NULL);
    stub_stop();
}

static void credentials_come_from_a_file_that_others_cannot_read(void)
{
    if (!stub_start("0", "1000")) {
        stub_stop();
        SKIP("python3 plays the store");
    }
    struct s3 *s = NULL;
    struct err e = {0};
    tempdir_text(&dir, "credentials",
                 "[other]\naws_access_key_id = X\naws_secret_access_key = Y\n\n[default]\n"
                 "aws_access_key_id = AKIATEST\naws_secret_access_key=not/a+secret=\n"
                 "aws_session_token = a-session-token\n");
    (void)unsetenv("AWS_SECRET_ACCESS_KEY");
    (void)setenv("AWS_REGION", "eu-north-1", 1);
    struct s3_config c = {.url = "s3://bucket-1",
                          .endpoint = endpoint,
                          .credentials = tempdir_at(&dir, "credentials")};
    CHECK_INT(chmod(c.credentials, 0644), 0);
    CHECK_INT(s3_open(&s, &c, &e), ST_INVALID);
    CHECK_INT(chmod(c.credentials, 0600), 0);
    CHECK_INT(s3_open(&s, &c, &e), ST_OK);
    s3_close(s);
    stub_stop();
}

static void write_credentials(const char *session)
{
    char text[256];
    (void)snprintf(text, sizeof(text),
                   "[default]\naws_access_key_id = AKIATEST\naws_secret_access_key = %s\n"
                   "aws_session_token = %s\n",
                   SECRET, session);
    tempdir_text(&dir, "credentials", text);
    CHECK_INT(chmod(tempdir_at(&dir, "credentials"), 0600), 0);
}

static void credentials_that_were_renewed_are_used_without_a_new_start(void)
{
    if (!stub_start("0", "1000")) {
        stub_stop();
        SKIP("python3 plays the store");
    }
    struct s3 *s = NULL;
    struct err e = {0};
    struct digest d;
    char key[80];
    int64_t bytes = 0;
    int fd = file_of(1, 100, &d);
    key_of(&d, key);
    write_credentials("a-session-token");
    (void)setenv("AWS_REGION", "eu-north-1", 1);
    struct s3_config c = {.url = "s3://bucket-1",
                          .endpoint = endpoint,
                          .credentials = tempdir_at(&dir, "credentials")};
    CHECK_INT(s3_open(&s, &c, &e), ST_OK);
    CHECK_INT(s3_put(s, key, fd, 100, &d, false, &e), ST_OK);
    write_credentials("a-token-that-has-ended");
    CHECK(s3_head(s, key, &bytes, &e) != ST_OK);
    write_credentials("a-session-token");
    CHECK_INT(s3_head(s, key, &bytes, &e), ST_OK);
    tempdir_text(&dir, "credentials", "[default]\n"); // half written
    CHECK_INT(s3_head(s, key, &bytes, &e), ST_OK);
    CHECK_INT(unlink(tempdir_at(&dir, "credentials")), 0);
    CHECK_INT(s3_head(s, key, &bytes, &e), ST_OK);
    CHECK_INT(close(fd), 0);
    s3_close(s);
    stub_stop();
}

struct seen {
    int count;
    int64_t bytes;
    char last[80];
};

static enum status see(void *ctx, const char *key, int64_t bytes, int64_t age_s, struct err *e)
{
    (void)e;
    struct seen *seen = ctx;
    CHECK(strcmp(key, seen->last) > 0); // each once, in order
    CHECK(age_s < 3600);
    (void)snprintf(seen->last, sizeof(seen->last), "%s", key);
    seen->bytes += bytes;
    seen->count++;
    return ST_OK;
}

static void a_listing_has_every_object_once_over_pages(void)
{
    if (!stub_start("0", "3")) {
        stub_stop();
        SKIP("python3 plays the store");
    }
    struct s3 *s = NULL;
    struct s3 *other = NULL;
    struct err e = {0};
    struct digest d;
    int fd = file_of(1, 10, &d);
    CHECK_INT(open_as(&s, "s3://bucket-1/p", SECRET, &e), ST_OK);
    CHECK_INT(open_as(&other, "s3://bucket-1/p2", SECRET, &e), ST_OK);
    CHECK_INT(s3_put(other, "x", fd, 10, &d, false, &e), ST_OK); // of a neighbour
    for (int i = 0; i < 10; i++) {
        char key[20];
        (void)snprintf(key, sizeof(key), "key-%d", i);
        CHECK_INT(s3_put(s, key, fd, 10, &d, false, &e), ST_OK);
    }
    struct seen seen = {0};
    CHECK_INT(s3_list(s, see, &seen, &e), ST_OK);
    CHECK_INT(seen.count, 10);
    CHECK_INT(seen.bytes, 100);
    CHECK_INT(close(fd), 0);
    s3_close(s);
    s3_close(other);
    stub_stop();
}

/* One request of ten fails before its work or comes late, and one of ten after it or is cut. */
static void no_object_is_ever_partial_whatever_breaks(void)
{
    if (!stub_start("0.1", "1000")) {
        stub_stop();
        SKIP("python3 plays the store");
    }
    struct s3 *s = NULL;
    struct err e = {0};
    struct digest d[KEYS];
    int64_t size[KEYS];
    int fd[KEYS];
    bool there[KEYS] = {false};
    CHECK_INT(open_as(&s, "s3://bucket-1/x", SECRET, &e), ST_OK);
    for (int i = 0; i < KEYS; i++) {
        size[i] = 1 + (int64_t)(rng_u64(5, (uint64_t)i) % LARGEST);
        fd[i] = file_of(i, size[i], &d[i]);
    }
    int done[4] = {0};
    for (int n = 0; n < OPERATIONS; n++) {
        int i = (int)(rng_u64(6, (uint64_t)n) % KEYS);
        int what = (int)(rng_u64(7, (uint64_t)n) % 4);
        int64_t bytes = -1;
        char key[80];
        key_of(&d[i], key);
        if (what <= 1 || !there[i]) {
            CHECK_INT(s3_put(s, key, fd[i], size[i], &d[i], n % 5 == 0, &e), ST_OK);
            there[i] = true;
        } else if (what == 2) {
            check_content(s, key, &d[i], size[i]);
        } else {
            CHECK_INT(s3_delete(s, key, &e), ST_OK);
            there[i] = false;
        }
        CHECK_INT(s3_head(s, key, &bytes, &e), there[i] ? ST_OK : ST_NOT_FOUND);
        CHECK(!there[i] || bytes == size[i]);
        done[what]++;
    }
    int sound = 0;
    for (int i = 0; i < KEYS; i++) {
        char key[80];
        key_of(&d[i], key);
        if (there[i]) {
            check_content(s, key, &d[i], size[i]);
            sound++;
        }
        CHECK_INT(close(fd[i]), 0);
    }
    struct seen seen = {0};
    CHECK_INT(s3_list(s, see, &seen, &e), ST_OK);
    CHECK_INT(seen.count, sound);
    (void)printf("%d operations: %d puts, %d gets, %d deletes; %d objects, 0 partial\n", OPERATIONS,
                 done[0] + done[1], done[2], done[3], sound);
    s3_close(s);
    stub_stop();
}

/* ---- a store of somebody else's: PHOTON_TEST_BUCKET, PHOTON_TEST_ENDPOINT and AWS_… say which
 * ---- */

enum { REAL_PART = 5 << 20, REAL_KEYS = 1003 }; // what S3 takes for a part; more than one page

/* Put, repeated, put anew, read whole and from the middle, removed. */
static void real_object(struct s3 *s, int which, int64_t size)
{
    struct err e = {0};
    struct digest d;
    char key[80];
    int64_t bytes = -1;
    int fd = file_of(which, size, &d);
    key_of(&d, key);
    CHECK_INT(s3_head(s, key, &bytes, &e), ST_NOT_FOUND);
    CHECK_INT(s3_put(s, key, fd, size, &d, false, &e), ST_OK);
    CHECK_INT(s3_put(s, key, fd, size, &d, false, &e), ST_OK);
    CHECK_INT(s3_put(s, key, fd, size, &d, true, &e), ST_OK);
    CHECK_INT(s3_head(s, key, &bytes, &e), ST_OK);
    CHECK_INT(bytes, size);
    struct buf b;
    struct digest got;
    buf_init(&b, (size_t)size + 1);
    CHECK_INT(s3_get(s, key, 0, -1, collect, &b, &e), ST_OK);
    sha256_of(b.data, b.len, &got);
    CHECK(digest_equal(&got, &d));
    struct buf part;
    buf_init(&part, (size_t)size + 1);
    CHECK_INT(s3_get(s, key, size / 2, size - size / 2, collect, &part, &e), ST_OK);
    CHECK_INT(part.len, size - size / 2);
    CHECK_MEM(part.data, b.data + size / 2, part.len);
    buf_release(&part);
    buf_release(&b);
    CHECK_INT(s3_delete(s, key, &e), ST_OK);
    CHECK_INT(s3_delete(s, key, &e), ST_OK);
    CHECK_INT(s3_head(s, key, &bytes, &e), ST_NOT_FOUND);
    CHECK_INT(close(fd), 0);
}

/* What lies in the way is not what its name says: it is replaced where that is asked for. */
static void real_replacement(struct s3 *s)
{
    struct err e = {0};
    struct digest d[2];
    int64_t bytes = -1;
    int fd[2] = {file_of(1, 100, &d[0]), file_of(2, 200, &d[1])};
    CHECK_INT(s3_put(s, "k", fd[0], 100, &d[0], false, &e), ST_OK);
    CHECK_INT(s3_put(s, "k", fd[1], 200, &d[1], true, &e), ST_OK);
    CHECK_INT(s3_head(s, "k", &bytes, &e), ST_OK);
    CHECK_INT(bytes, 200);
    CHECK_INT(s3_delete(s, "k", &e), ST_OK);
    CHECK_INT(close(fd[0]), 0);
    CHECK_INT(close(fd[1]), 0);
}

static void real_listing(struct s3 *s, struct s3 *neighbour)
{
    struct err e = {0};
    struct digest d;
    char key[20];
    int fd = file_of(1, 10, &d);
    CHECK_INT(s3_put(neighbour, "x", fd, 10, &d, false, &e), ST_OK);
    for (int i = 0; i < REAL_KEYS; i++) {
        (void)snprintf(key, sizeof(key), "key-%04d", i);
        CHECK_INT(s3_put(s, key, fd, 10, &d, true, &e), ST_OK);
    }
    struct seen seen = {0};
    CHECK_INT(s3_list(s, see, &seen, &e), ST_OK);
    CHECK_INT(seen.count, REAL_KEYS);
    CHECK_INT(seen.bytes, 10 * REAL_KEYS);
    for (int i = 0; i < REAL_KEYS; i++) {
        (void)snprintf(key, sizeof(key), "key-%04d", i);
        CHECK_INT(s3_delete(s, key, &e), ST_OK);
    }
    CHECK_INT(s3_delete(neighbour, "x", &e), ST_OK);
    seen = (struct seen){0};
    CHECK_INT(s3_list(s, see, &seen, &e), ST_OK);
    CHECK_INT(seen.count, 0);
    CHECK_INT(close(fd), 0);
}

static struct s3_config real_config(char url[120])
{
    (void)snprintf(url, 120, "%.80s/photon-test", getenv("PHOTON_TEST_BUCKET"));
    return (struct s3_config){
        .url = url, .endpoint = getenv("PHOTON_TEST_ENDPOINT"), .part_bytes = REAL_PART};
}

static void a_store_of_somebody_else_refuses_what_was_damaged_on_its_way(void)
{
    struct s3 *s = NULL;
    struct err e = {0};
    struct digest d[2];
    char url[120];
    int64_t bytes = -1;
    tempdir_make(&dir);
    int fd[2] = {file_of(1, 100, &d[0]), file_of(2, 200, &d[1])};
    struct s3_config c = real_config(url);
    CHECK_INT(s3_open(&s, &c, &e), ST_OK);
    CHECK_INT(s3_put(s, "k", fd[1], 200, &d[1], true, &e), ST_OK);
    CHECK_INT(s3_put(s, "k", fd[0], 100, &d[1], true, &e), ST_IO); // not what the digest says
    CHECK_INT(s3_head(s, "k", &bytes, &e), ST_OK);
    CHECK_INT(bytes, 200);
    CHECK_INT(s3_delete(s, "k", &e), ST_OK);
    CHECK_INT(close(fd[0]), 0);
    CHECK_INT(close(fd[1]), 0);
    s3_close(s);
    tempdir_remove(&dir);
}

static void a_store_of_somebody_else_does_what_ours_does(void)
{
    struct s3 *s = NULL;
    struct s3 *neighbour = NULL;
    struct err e = {0};
    char url[120];
    tempdir_make(&dir);
    struct s3_config c = real_config(url);
    CHECK_INT(s3_open(&s, &c, &e), ST_OK);
    CHECK_STR(e.msg, "");
    (void)snprintf(url, sizeof(url), "%.80s/photon-test2", getenv("PHOTON_TEST_BUCKET"));
    CHECK_INT(s3_open(&neighbour, &c, &e), ST_OK);
    static const int64_t sizes[] = {1, 1000, REAL_PART, REAL_PART + 1, 3 * (int64_t)REAL_PART + 7};
    for (int i = 0; i < 5; i++) {
        real_object(s, i, sizes[i]);
    }
    real_replacement(s);
    real_listing(s, neighbour);
    s3_close(neighbour);
    s3_close(s);
    c.url = "s3://photon-no-such-bucket";
    CHECK_INT(s3_open(&s, &c, &e), ST_INVALID);
    CHECK(strstr(e.msg, "NoSuchBucket") != NULL);
    c.url = url;
    (void)setenv("AWS_SECRET_ACCESS_KEY", "another-secret", 1);
    CHECK_INT(s3_open(&s, &c, &e), ST_DENIED);
    tempdir_remove(&dir);
}

int main(void)
{
    (void)signal(SIGPIPE, SIG_IGN);
    if (getenv("PHOTON_TEST_BUCKET")) {
        RUN(a_store_of_somebody_else_refuses_what_was_damaged_on_its_way);
        RUN(a_store_of_somebody_else_does_what_ours_does);
        return check_end();
    }
    RUN(objects_come_whole_and_go);
    RUN(a_range_is_exactly_that);
    RUN(what_cannot_work_is_said_at_the_start);
    RUN(credentials_come_from_a_file_that_others_cannot_read);
    RUN(credentials_that_were_renewed_are_used_without_a_new_start);
    RUN(a_listing_has_every_object_once_over_pages);
    RUN(no_object_is_ever_partial_whatever_breaks);
    return check_end();
}
