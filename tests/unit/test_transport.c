#include "client/transport.h"

#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/clock.h"
#include "tests/support/check.h"
#include "tests/support/http_stub.h"

// ---- a small server: one connection at a time, each request answered by its path ----

enum { FILE_BYTES = 300000, CUT_AT = 100000 };

static char file_bytes[FILE_BYTES];
enum { LONG = 200 * 1024, LONGER = 300 * 1024 };
static char long_text[LONG + 1], longer_text[LONGER + 1];
static atomic_int flaky_left;    // 503s before /flaky answers
static atomic_int cut_left;      // how often /file breaks off
static atomic_int requests_seen; // of any kind
static char last_request[STUB_REQUEST_MAX];

static void answer(int fd, const char *status, const char *extra, const char *type,
                   const char *body)
{
    char head[1024];
    int n = snprintf(head, sizeof(head),
                     "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n%s"
                     "Connection: close\r\n\r\n",
                     status, type, strlen(body), extra);
    http_stub_send(fd, head, (size_t)n);
    http_stub_send(fd, body, strlen(body));
}

static void serve_file(int fd, bool other_version)
{
    const char *range = strstr(last_request, "Range: bytes=");
    int64_t from = 0;
    if (range && !other_version) {
        (void)sscanf(range, "Range: bytes=%" SCNd64, &from);
    }
    char head[512];
    int n = snprintf(head, sizeof(head), "HTTP/1.1 %s\r\nContent-Length: %" PRId64 "\r\n%s%s",
                     from ? "206 Partial Content" : "200 OK", FILE_BYTES - from,
                     "Accept-Ranges: bytes\r\nConnection: close\r\n", from ? "" : "\r\n");
    if (from) {
        n += snprintf(head + n, sizeof(head) - (size_t)n,
                      "Content-Range: bytes %" PRId64 "-%d/%d\r\n\r\n", from, FILE_BYTES - 1,
                      FILE_BYTES);
    }
    http_stub_send(fd, head, (size_t)n);
    int64_t until = FILE_BYTES;
    if (atomic_load(&cut_left) > 0) {
        atomic_fetch_sub(&cut_left, 1);
        until = from + CUT_AT < FILE_BYTES ? from + CUT_AT : FILE_BYTES;
    }
    http_stub_send(fd, file_bytes + from, (size_t)(until - from));
}

static bool path_is(const char *path)
{
    const char *p = strchr(last_request, ' ');
    return p && strncmp(p + 1, path, strlen(path)) == 0 && p[1 + strlen(path)] == ' ';
}

static void respond(int fd)
{
    if (path_is("/ok")) {
        answer(fd, "200 OK", "", "application/json", "{\"answer\":42}");
    } else if (path_is("/empty")) {
        http_stub_send(fd, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n", 46);
    } else if (path_is("/problem")) {
        answer(fd, "409 Conflict", "", "application/problem+json",
               "{\"type\":\"about:blank\",\"title\":\"Conflict\",\"status\":409,\"code\":\"ROUND_"
               "CLOSED\","
               "\"detail\":\"round 3 is closed\",\"hint\":\"claim the next\",\"offset\":7}");
    } else if (path_is("/denied")) {
        answer(fd, "401 Unauthorized", "", "text/plain", "no");
    } else if (path_is("/long")) {
        answer(fd, "503 Service Unavailable", "", "text/plain", long_text);
    } else if (path_is("/longer")) {
        answer(fd, "200 OK", "", "application/json", longer_text);
    } else if (path_is("/new") || path_is("/new-file")) { // for who has a new token
        bool good = strstr(last_request, "Authorization: Bearer new\r\n") != NULL;
        if (!good) {
            answer(fd, "401 Unauthorized", "", "application/json",
                   "{\"code\":\"UNAUTHENTICATED\"}");
        } else if (path_is("/new")) {
            answer(fd, "200 OK", "", "application/json", "{\"answer\":42}");
        } else {
            serve_file(fd, false);
        }
    } else if (path_is("/flaky")) {
        if (atomic_load(&flaky_left) > 0) {
            atomic_fetch_sub(&flaky_left, 1);
            answer(fd, "503 Service Unavailable", "", "text/plain", "busy");
        } else {
            answer(fd, "200 OK", "", "application/json", "{}");
        }
    } else if (path_is("/file") || path_is("/changed")) {
        serve_file(fd, path_is("/changed"));
    } else if (path_is("/gone")) {
        answer(fd, "416 Range Not Satisfiable", "", "text/plain", "");
    } else if (path_is("/hang")) {
        char byte = 0;
        (void)recv(fd, &byte, 1, 0); // until the client hangs up
    } else {
        answer(fd, "404 Not Found", "", "text/plain", "nothing here");
    }
}

static void note_and_respond(int fd, const char *request)
{
    (void)snprintf(last_request, sizeof(last_request), "%s", request);
    atomic_fetch_add(&requests_seen, 1);
    respond(fd);
}

static struct http_stub server = {.answer = note_and_respond};

static void start_server(void)
{
    for (int i = 0; i < FILE_BYTES; i++) {
        file_bytes[i] = (char)((uint32_t)i * 7919u >> 3);
    }
    memset(long_text, 'x', LONG);
    memset(longer_text, ' ', LONGER);
    http_stub_start(&server);
}

static struct transport *open_it(bool (*cancelled)(void *))
{
    struct transport *t = NULL;
    struct err e = {0};
    struct transport_config c = {.url = server.url, .token = "secret", .cancelled = cancelled};
    CHECK_INT(transport_open(&t, &c, &e), ST_OK);
    return t;
}

// ---- the rules ----

static void only_https_and_loopback_are_spoken_to(void)
{
    static const char *const good[] = {"https://agg.example.org", "https://10.0.0.1:8443",
                                       "http://127.0.0.1:8080", "http://localhost:1",
                                       "http://[::1]:8080"};
    static const char *const bad[] = {"http://agg.example.org",
                                      "http://10.0.0.1:8080",
                                      "http://127.evil.example",
                                      "ftp://127.0.0.1",
                                      "",
                                      "127.0.0.1 :x",
                                      "file:///etc/passwd",
                                      "http://127.0.0.1.example.org@evil.example"};
    struct err e = {0};
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        CHECK_INT(transport_url_check(good[i], &e), ST_OK);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        CHECK_INT(transport_url_check(bad[i], &e), ST_INVALID);
    }
}

static void a_pin_is_taken_to_the_letter_and_for_tls_alone(void)
{
    static const char pin[] = "sha256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
    struct transport_config c = {.url = "HTTPS://127.0.0.1:1", .pin = pin};
    struct transport *t = NULL;
    struct err e = {0};
    CHECK_INT(transport_open(&t, &c, &e), ST_OK);
    transport_close(t);
    t = NULL;
    c.pin = "pins.pem"; // libcurl would read the file
    CHECK_INT(transport_open(&t, &c, &e), ST_INVALID);
    c.pin = pin;
    c.url = server.url;
    CHECK_INT(transport_open(&t, &c, &e), ST_INVALID);
    CHECK(t == NULL && strstr(e.msg, "; try https://"));
    c.pin = "";
    CHECK_INT(transport_open(&t, &c, &e), ST_OK);
    transport_close(t);
}

static void only_what_may_succeed_later_is_repeated(void)
{
    static const int again[] = {0, 408, 425, 429, 500, 502, 503, 504, 507};
    static const int final[] = {200, 201, 204, 400, 401, 403, 404,
                                405, 409, 410, 411, 412, 413, 422};
    for (size_t i = 0; i < sizeof(again) / sizeof(again[0]); i++) {
        CHECK(retry_allowed(again[i]));
    }
    for (size_t i = 0; i < sizeof(final) / sizeof(final[0]); i++) {
        CHECK(!retry_allowed(final[i]));
    }
}

static void waits_grow_to_a_minute_and_obey_the_server(void)
{
    static const double almost_one = 0.999999;
    CHECK_INT(retry_delay_ms(0, 0.0, -1.0), 0);
    CHECK_INT(retry_delay_ms(0, almost_one, -1.0), 999);
    CHECK_INT(retry_delay_ms(3, almost_one, -1.0), 7999);
    for (int attempt = 6; attempt < 100; attempt += 7) {
        CHECK_INT(retry_delay_ms(attempt, almost_one, -1.0), 59999);
        CHECK_INT(retry_delay_ms(attempt, 0.5, -1.0), 30000);
    }
    CHECK(retry_delay_ms(0, 0.0, 10.0) >= 10000);
    CHECK(retry_delay_ms(9, almost_one, 10.0) >= 10000);
    CHECK(retry_delay_ms(0, almost_one, 1e12) <= 3700000); // not for ever
}

static void a_problem_document_is_taken_apart(void)
{
    static const char text[] =
        "{\"code\":\"SPEC_INVALID\",\"detail\":\"the spec is wrong\",\"errors\":"
        "[{\"pointer\":\"/model/d_model\",\"detail\":\"must be even\"}]}";
    struct arena *a = arena_new(1 << 20);
    struct reply r = {.http = 422};
    struct err e = {0};
    CHECK_INT(json_parse(&r.json, a, text, sizeof(text) - 1, &e), ST_OK);
    reply_read_problem(&r, a);
    CHECK_STR(r.code, "SPEC_INVALID");
    CHECK_STR(r.detail, "the spec is wrong: /model/d_model: must be even");
    CHECK_STR(r.hint, "");
    static const char said[] = "{\"detail\":\"/a must be even\",\"errors\":[{\"pointer\":\"/a\","
                               "\"detail\":\"must be even\"}]}";
    struct reply twice = {.http = 422};
    CHECK_INT(json_parse(&twice.json, a, said, sizeof(said) - 1, &e), ST_OK);
    reply_read_problem(&twice, a);
    CHECK_STR(twice.detail, "/a must be even"); // not said twice
    struct reply odd = {.http = 500};
    CHECK_INT(json_parse(&odd.json, a, "[1,{\"code\":5}]", 14, &e), ST_OK);
    reply_read_problem(&odd, a);
    CHECK_STR(odd.code, "");
    arena_free(a);
}

// ---- over a socket ----

static void a_reply_is_read_and_the_caller_named(void)
{
    struct transport *t = open_it(NULL);
    struct arena *a = arena_new(1 << 24);
    struct reply r;
    struct err e = {0};
    CHECK_INT(transport_call(t, a, "POST", "/ok", "{\"x\":1}", &r, &e), ST_OK);
    CHECK_INT(r.http, 200);
    CHECK_INT(json_int(json_get(r.json, "answer")), 42);
    CHECK(strstr(last_request, "POST /ok HTTP/1.1\r\n") != NULL);
    CHECK(strstr(last_request, "Authorization: Bearer secret\r\n") != NULL);
    CHECK(strstr(last_request, "Photon-Protocol: 1\r\n") != NULL);
    CHECK(strstr(last_request, "\r\n\r\n{\"x\":1}") != NULL);
    CHECK_INT(transport_call(t, a, "GET", "/empty", NULL, &r, &e), ST_OK);
    CHECK_INT(r.http, 204);
    CHECK(r.json == NULL);
    CHECK_INT(transport_call(t, a, "DELETE", "/ok", NULL, &r, &e), ST_OK);
    CHECK(strstr(last_request, "DELETE /ok HTTP/1.1\r\n") != NULL);
    arena_free(a);
    transport_close(t);
}

static void a_refusal_has_code_and_hint(void)
{
    struct transport *t = open_it(NULL);
    struct arena *a = arena_new(1 << 24);
    struct reply r;
    struct err e = {0};
    CHECK_INT(transport_call_retry(t, a, "GET", "/problem", NULL, 0.0, &r, &e), ST_CONFLICT);
    CHECK_STR(r.code, "ROUND_CLOSED");
    CHECK_STR(e.msg, "ROUND_CLOSED: round 3 is closed; claim the next");
    CHECK_INT(transport_call_retry(t, a, "GET", "/denied", NULL, 0.0, &r, &e), ST_DENIED);
    CHECK(strstr(e.msg, "a valid token") != NULL);
    arena_free(a);
    transport_close(t);
}

static void an_unavailable_server_is_asked_again(void)
{
    struct transport *t = open_it(NULL);
    struct arena *a = arena_new(1 << 24);
    struct reply r;
    struct err e = {0};
    atomic_store(&flaky_left, 1);
    CHECK_INT(transport_call_retry(t, a, "GET", "/flaky", NULL, 30.0, &r, &e), ST_OK);
    atomic_store(&flaky_left, 1000);
    CHECK_INT(transport_call_retry(t, a, "GET", "/flaky", NULL, 0.001, &r, &e), ST_RETRY);
    atomic_store(&flaky_left, 0);
    arena_free(a);
    transport_close(t);
}

/* Of long refusals the arena would have room for two. */
static void an_outage_may_last(void)
{
    struct transport *t = open_it(NULL);
    struct arena *a = arena_new(512 * 1024);
    struct reply r;
    struct err e = {0};
    int before = atomic_load(&requests_seen);
    CHECK_INT(transport_call_retry(t, a, "GET", "/long", NULL, 3.0, &r, &e), ST_RETRY);
    CHECK_INT(r.http, 503);
    CHECK_INT(r.len, LONG); // what came last is the caller's
    CHECK_INT(r.text[LONG - 1], 'x');
    for (int i = 0; i < 4; i++) {
        CHECK_INT(transport_call_retry(t, a, "GET", "/long", NULL, 0.001, &r, &e), ST_RETRY);
    }
    CHECK(atomic_load(&requests_seen) - before >= 5);
    arena_free(a);
    transport_close(t);
}

static void a_reply_beyond_measure_is_none(void)
{
    struct transport *t = open_it(NULL);
    struct arena *a = arena_new(512 * 1024);
    struct reply r;
    struct err e = {0};
    CHECK_INT(transport_call(t, a, "GET", "/longer", NULL, &r, &e), ST_NET);
    CHECK_INT(r.http, 0);
    CHECK(strstr(e.msg, "no Photon server"));
    arena_free(a);
    transport_close(t);
}

static void nobody_there_is_no_answer(void)
{
    struct transport *t = NULL;
    struct arena *a = arena_new(1 << 24);
    struct reply r;
    struct err e = {0};
    struct transport_config c = {.url = "http://127.0.0.1:1"};
    CHECK_INT(transport_open(&t, &c, &e), ST_OK);
    CHECK_INT(transport_call(t, a, "GET", "/", NULL, &r, &e), ST_NET);
    CHECK_INT(r.http, 0);
    CHECK(!r.cancelled);
    arena_free(a);
    transport_close(t);
}

static atomic_int cancel_now;

static bool cancelled(void *ctx)
{
    (void)ctx;
    return atomic_load(&cancel_now) != 0;
}

static void *cancel_soon(void *ctx)
{
    int before = *(int *)ctx;
    for (int64_t until = clock_mono_ms() + 10000;
         atomic_load(&requests_seen) == before && clock_mono_ms() < until;) {
        clock_sleep_ms(5);
    }
    atomic_store(&cancel_now, 1);
    return NULL;
}

static void a_waiting_request_can_be_cancelled(void)
{
    struct transport *t = open_it(cancelled);
    struct arena *a = arena_new(1 << 24);
    struct reply r;
    struct err e = {0};
    pthread_t thread;
    int before = atomic_load(&requests_seen);
    atomic_store(&cancel_now, 0);
    CHECK_INT(pthread_create(&thread, NULL, cancel_soon, &before), 0);
    double begin = clock_mono_s();
    CHECK_INT(transport_call_retry(t, a, "GET", "/hang", NULL, 0.0, &r, &e), ST_NET);
    CHECK(r.cancelled);
    CHECK(clock_mono_s() - begin < 10.0);
    (void)pthread_join(thread, NULL);
    arena_free(a);
    transport_close(t);
}

static void fresh_file(char path[64])
{
    (void)snprintf(path, 64, "/tmp/photon-transport-XXXXXX");
    CHECK(mkdtemp(path) != NULL);
    (void)snprintf(path + strlen(path), 64 - strlen(path), "/f");
}

static void remove_file(const char *path)
{
    char part[80];
    char dir[64];
    (void)snprintf(part, sizeof(part), "%s.part", path);
    (void)snprintf(dir, sizeof(dir), "%.*s", (int)strlen(path) - 2, path);
    (void)unlink(path);
    (void)unlink(part);
    CHECK_INT(rmdir(dir), 0);
}

static void check_file(const char *path)
{
    static char got[FILE_BYTES + 1];
    FILE *f = fopen(path, "r");
    CHECK(f != NULL);
    CHECK_INT(fread(got, 1, sizeof(got), f), FILE_BYTES);
    (void)fclose(f);
    CHECK_MEM(got, file_bytes, FILE_BYTES);
}

static bool give_token(void *ctx, char *out, size_t size)
{
    const char *token = *(const char **)ctx;
    if (token) {
        (void)snprintf(out, size, "%s", token);
    }
    return token != NULL;
}

static struct transport *open_guarded(const char **now)
{
    struct transport *t = NULL;
    struct err e = {0};
    struct transport_config c = {
        .url = server.url, .token = "old", .fresh_token = give_token, .fresh_ctx = now};
    CHECK_INT(transport_open(&t, &c, &e), ST_OK);
    return t;
}

static void a_refused_token_makes_room_for_another(void)
{
    static const char *const no_use[] = {NULL, "old", "wrong", "new\r\nHost: evil"};
    struct arena *a = arena_new(1 << 24);
    struct reply r;
    struct err e = {0};
    for (size_t i = 0; i < sizeof(no_use) / sizeof(no_use[0]); i++) {
        const char *now = no_use[i];
        struct transport *t = open_guarded(&now);
        int before = atomic_load(&requests_seen);
        CHECK_INT(transport_call(t, a, "GET", "/new", NULL, &r, &e), ST_DENIED);
        CHECK(atomic_load(&requests_seen) - before <= 2);
        transport_close(t);
    }
    const char *now = "new";
    struct transport *t = open_guarded(&now);
    CHECK_INT(transport_call(t, a, "GET", "/new", NULL, &r, &e), ST_OK);
    CHECK_INT(json_int(json_get(r.json, "answer")), 42);
    int before = atomic_load(&requests_seen);
    CHECK_INT(transport_call(t, a, "GET", "/new", NULL, &r, &e), ST_OK); // it stays
    CHECK_INT(atomic_load(&requests_seen) - before, 1);
    transport_close(t);
    arena_free(a);
}

static void files_both_ways_take_the_other_token_too(void)
{
    struct arena *a = arena_new(1 << 24);
    struct reply r;
    struct err e = {0};
    const char *now = "new";
    struct transport *t = open_guarded(&now);
    char path[64];
    struct digest digest;
    fresh_file(path);
    sha256_of(file_bytes, FILE_BYTES, &digest);
    struct download d = {.path = "/new-file", .file = path, .digest = &digest, .bytes = FILE_BYTES};
    CHECK_INT(transport_download(t, a, &d, &r, &e), ST_OK);
    check_file(path);
    transport_close(t);
    t = open_guarded(&now);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    struct chunk c = {.path = "/new", .lease = "t_1:3", .fd = fd, .bytes = 6, .meta = "{}"};
    CHECK_INT(transport_chunk(t, a, &c, &r, &e), ST_OK);
    CHECK_INT(c.sent, 6);
    (void)close(fd);
    transport_close(t);
    arena_free(a);
    remove_file(path);
}

static void a_cut_download_goes_on_where_it_was(void)
{
    struct transport *t = open_it(NULL);
    struct arena *a = arena_new(1 << 24);
    char path[64];
    struct digest digest;
    struct reply r;
    struct err e = {0};
    fresh_file(path);
    sha256_of(file_bytes, FILE_BYTES, &digest);
    struct download d = {.path = "/file", .file = path, .digest = &digest, .bytes = FILE_BYTES};
    atomic_store(&cut_left, 2);
    CHECK_INT(transport_download(t, a, &d, &r, &e), ST_NET);
    CHECK(access(path, F_OK) != 0);
    CHECK_INT(transport_download(t, a, &d, &r, &e), ST_NET);
    CHECK(strstr(last_request, "Range: bytes=100000-\r\n") != NULL);
    CHECK(strstr(last_request, "If-Range: \"") != NULL);
    CHECK_INT(transport_download(t, a, &d, &r, &e), ST_OK);
    CHECK_INT(d.received, FILE_BYTES); // each byte crossed once
    check_file(path);
    arena_free(a);
    transport_close(t);
    remove_file(path);
}

static void another_version_starts_the_download_anew(void)
{
    struct transport *t = open_it(NULL);
    struct arena *a = arena_new(1 << 24);
    char path[64];
    char part[80];
    struct digest digest;
    struct reply r;
    struct err e = {0};
    fresh_file(path);
    (void)snprintf(part, sizeof(part), "%s.part", path);
    FILE *f = fopen(part, "w");
    CHECK(f != NULL);
    (void)fputs("of another version", f);
    (void)fclose(f);
    sha256_of(file_bytes, FILE_BYTES, &digest);
    struct download d = {.path = "/changed", .file = path, .digest = &digest, .bytes = FILE_BYTES};
    CHECK_INT(transport_download(t, a, &d, &r, &e), ST_OK);
    check_file(path);
    arena_free(a);
    transport_close(t);
    remove_file(path);
}

static void a_wrong_digest_is_never_given_a_name(void)
{
    struct transport *t = open_it(NULL);
    struct arena *a = arena_new(1 << 24);
    char path[64];
    char part[80];
    struct digest digest = {{1}};
    struct reply r;
    struct err e = {0};
    fresh_file(path);
    (void)snprintf(part, sizeof(part), "%s.part", path);
    struct download d = {.path = "/file", .file = path, .digest = &digest, .bytes = FILE_BYTES};
    CHECK_INT(transport_download(t, a, &d, &r, &e), ST_CORRUPT);
    CHECK(access(path, F_OK) != 0);
    CHECK(access(part, F_OK) != 0);
    d.bytes = FILE_BYTES - 1; // more comes than was said
    CHECK_INT(transport_download(t, a, &d, &r, &e), ST_CORRUPT);
    CHECK(strstr(e.msg, "the server sent more than the") != NULL);
    CHECK(access(path, F_OK) != 0);
    CHECK(access(part, F_OK) != 0);
    arena_free(a);
    transport_close(t);
    remove_file(path);
}

static void a_missing_file_is_a_decision_and_leaves_none(void)
{
    struct transport *t = open_it(NULL);
    struct arena *a = arena_new(1 << 24);
    char path[64];
    struct reply r;
    struct err e = {0};
    fresh_file(path);
    struct download d = {.path = "/nothing", .file = path, .bytes = -1};
    CHECK_INT(transport_download(t, a, &d, &r, &e), ST_NOT_FOUND);
    CHECK_INT(r.http, 404);
    CHECK(access(path, F_OK) != 0);
    arena_free(a);
    transport_close(t);
    remove_file(path);
}

static void a_chunk_is_two_parts_of_exact_size(void)
{
    struct transport *t = open_it(NULL);
    struct arena *a = arena_new(1 << 24);
    struct reply r;
    struct err e = {0};
    char name[] = "/tmp/photon-chunk-XXXXXX";
    int fd = mkstemp(name);
    (void)unlink(name);
    CHECK_INT(write(fd, "0123456789abcdef", 16), 16);
    struct chunk c = {.path = "/ok",
                      .lease = "t_1:3",
                      .fd = fd,
                      .offset = 10,
                      .bytes = 6,
                      .meta = "{\"offset\":10}"};
    CHECK_INT(transport_chunk(t, a, &c, &r, &e), ST_OK);
    CHECK(strstr(last_request, "Content-Type: multipart/form-data; boundary=") != NULL);
    CHECK(strstr(last_request, "Content-Length: ") != NULL);
    CHECK(strstr(last_request, "Expect: 100-continue\r\n") != NULL);
    CHECK(strstr(last_request, "Photon-Lease: t_1:3\r\n") != NULL);
    const char *meta = strstr(last_request, "name=\"meta\"");
    const char *body = strstr(last_request, "name=\"chunk\"");
    CHECK(meta != NULL && body != NULL && meta < body);
    CHECK(strstr(meta, "\r\n\r\n{\"offset\":10}\r\n--") != NULL);
    CHECK(strstr(body, "\r\n\r\nabcdef\r\n--") != NULL);
    c.bytes = 60; // longer than the file: the request must not go through
    CHECK(transport_chunk(t, a, &c, &r, &e) != ST_OK);
    (void)close(fd);
    arena_free(a);
    transport_close(t);
}

int main(void)
{
    start_server();
    RUN(only_https_and_loopback_are_spoken_to);
    RUN(a_pin_is_taken_to_the_letter_and_for_tls_alone);
    RUN(only_what_may_succeed_later_is_repeated);
    RUN(waits_grow_to_a_minute_and_obey_the_server);
    RUN(a_problem_document_is_taken_apart);
    RUN(a_reply_is_read_and_the_caller_named);
    RUN(a_refusal_has_code_and_hint);
    RUN(an_unavailable_server_is_asked_again);
    RUN(an_outage_may_last);
    RUN(a_reply_beyond_measure_is_none);
    RUN(nobody_there_is_no_answer);
    RUN(a_waiting_request_can_be_cancelled);
    RUN(a_refused_token_makes_room_for_another);
    RUN(files_both_ways_take_the_other_token_too);
    RUN(a_cut_download_goes_on_where_it_was);
    RUN(another_version_starts_the_download_anew);
    RUN(a_wrong_digest_is_never_given_a_name);
    RUN(a_missing_file_is_a_decision_and_leaves_none);
    RUN(a_chunk_is_two_parts_of_exact_size);
    return check_end();
}
