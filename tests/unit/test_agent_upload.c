/* The upload's state machine against a server that answers, refuses and breaks
 * off at every turn. */
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "client/acks.h"
#include "client/agent_int.h"
#include "common/clock.h"
#include "tests/support/check.h"
#include "tests/support/http_stub.h"

enum { UPDATE_BYTES = 2500, CHUNK = 1000 };

static const char UPLOAD[] = "u_01J0000000000000000000000A";
static const char RUN_ID[] = "r_01J0000000000000000000000A";

enum fault { FAULT_NONE = 0, FAULT_NO_REPLY, FAULT_LOST_REPLY, FAULT_BUSY, FAULT_COUNT };

/* Stands before libcrypto's own: without waits each is drawn as its least, which is nothing. */
static bool no_waits;

int RAND_bytes(unsigned char *out, int n);
int RAND_bytes(unsigned char *out, int n)
{
    memset(out, 0, (size_t)n);
    return no_waits || getrandom(out, (size_t)n, 0) == n;
}

// ---- the server: durable bytes, and one fault at one request ----

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char update[UPDATE_BYTES];
static char received[UPDATE_BYTES];
static int64_t durable;
static bool created, accepted;
static int requests; // of the upload, heartbeats aside
static int fault_at;
static enum fault fault;
static const char *refuse_finish; // a code, or NULL
static int gone_times;            // a chunk is answered with UPLOAD_GONE so often
static int full_times;            // and a create with this status
static int full_status;
static const char *full_body;
static const char *named;     // the upload
static bool round_closed;     // what heartbeats are told
static int64_t away_until_ms; // every request of the upload gets 503 up to then
static const char *told;      // what GET is answered with, NULL: as it is
static int told_status;

static void reply(int fd, int status, const char *body)
{
    char line[16];
    (void)snprintf(line, sizeof(line), "%d X", status);
    http_stub_json(fd, line, body);
}

static void reply_offset(int fd, int status, const char *code)
{
    char body[256];
    (void)snprintf(body, sizeof(body),
                   "{\"upload\":\"%s\",\"offset\":%" PRId64 ",\"chunk_bytes\":%d,\"state\":\"%s\","
                   "\"code\":\"%s\",\"detail\":\"x\"}",
                   named, durable, CHUNK, accepted ? "accepted" : "open", code);
    reply(fd, status, body);
}

static void take_chunk(int fd, const char *request)
{
    int64_t offset = -1;
    int64_t bytes = 0;
    const char *meta = strstr(request, "{\"offset\":");
    const char *part = strstr(request, "name=\"chunk\"");
    const char *data = part ? strstr(part, "\r\n\r\n") : NULL;
    if (!meta || !data ||
        sscanf(meta, "{\"offset\":%" SCNd64 ",\"bytes\":%" SCNd64, &offset, &bytes) != 2) {
        reply(fd, 400, "{}");
    } else if (gone_times > 0) {
        gone_times--;
        created = false;
        durable = 0;
        reply(fd, 410, "{\"code\":\"UPLOAD_GONE\",\"detail\":\"x\"}");
    } else if (offset != durable) {
        reply_offset(fd, 409, "OFFSET_MISMATCH");
    } else {
        memcpy(received + offset, data + 4, (size_t)bytes);
        durable += bytes;
        reply_offset(fd, 200, "");
    }
}

static void finish_upload(int fd)
{
    char body[128];
    if (refuse_finish) {
        (void)snprintf(body, sizeof(body), "{\"code\":\"%s\",\"detail\":\"x\"}", refuse_finish);
        reply(fd, strcmp(refuse_finish, "BAD_UPDATE") == 0 ? 422 : 409, body);
    } else if (durable < UPDATE_BYTES) {
        reply_offset(fd, 409, "INCOMPLETE");
    } else {
        accepted = true;
        reply(fd, 200, "{\"accepted\":true,\"round\":3}");
    }
}

static void handle(int fd, const char *request)
{
    if (strstr(request, "/heartbeat ") && round_closed) {
        reply(fd, 409, "{\"code\":\"ROUND_CLOSED\",\"detail\":\"x\"}");
        return;
    }
    if (strstr(request, "/heartbeat ")) {
        reply(fd, 200, "{\"order\":\"continue\",\"lease_s\":60}");
        return;
    }
    enum fault now = requests++ == fault_at ? fault : FAULT_NONE;
    int to = now == FAULT_LOST_REPLY ? -1 : fd; // the work is done, the answer goes nowhere
    if (now == FAULT_NO_REPLY) {
        return;
    }
    if (now == FAULT_BUSY || clock_mono_ms() < away_until_ms) {
        reply(fd, 503, "{}");
    } else if (told && strncmp(request, "GET ", 4) == 0) {
        reply(to, told_status, told);
    } else if (strncmp(request, "POST /silo/v1/uploads ", 22) == 0 && full_times > 0) {
        full_times--;
        reply(fd, full_status, full_body);
    } else if (strncmp(request, "POST /silo/v1/uploads ", 22) == 0) {
        created = true;
        reply_offset(to, 201, "");
    } else if (!created) {
        reply(to, 410, "{\"code\":\"UPLOAD_GONE\",\"detail\":\"x\"}");
    } else if (strstr(request, "/finish ")) {
        finish_upload(to);
    } else if (strncmp(request, "GET ", 4) == 0) {
        reply_offset(to, 200, "");
    } else {
        take_chunk(to, request);
    }
}

static void answer(int fd, const char *request)
{
    (void)pthread_mutex_lock(&lock);
    handle(fd, request);
    (void)pthread_mutex_unlock(&lock);
}

static struct http_stub server = {.answer = answer};

static void start_server(void)
{
    for (int i = 0; i < UPDATE_BYTES; i++) {
        update[i] = (char)((uint32_t)i * 2654435761u >> 24);
    }
    http_stub_start(&server);
}

// ---- a silo with a finished round ----

static char dir[64];
static struct agent agent;
static struct agent_config config;
static struct task task;
static struct run_state rs;

static void put(const char *name, const char *bytes, size_t len)
{
    char path[STATE_PATH_MAX];
    run_state_path(&rs, name, path);
    FILE *f = fopen(path, "w");
    CHECK(f != NULL);
    CHECK_INT(fwrite(bytes, 1, len, f), len);
    CHECK_INT(fclose(f), 0);
}

static const char *moments(void)
{
    static char text[32];
    char path[STATE_PATH_MAX];
    struct err e = {0};
    run_state_path(&rs, STATE_MOMENTS, path);
    return file_read(path, text, sizeof(text), &e) == ST_OK ? text : "";
}

/* Acknowledgements on disk. */
static int64_t noted(void)
{
    FILE *null = fopen("/dev/null", "w");
    int64_t count = -1;
    struct err e = {0};
    CHECK_INT(acks_print(dir, null, &count, &e), ST_OK);
    (void)fclose(null);
    return count;
}

static void begin(enum fault what, int at)
{
    struct err e = {0};
    struct round_key key = {.round = 3, .local_steps = 64};
    struct digest d;
    durable = 0;
    created = accepted = false;
    requests = 0;
    fault = what;
    fault_at = at;
    refuse_finish = NULL;
    gone_times = 0;
    full_times = 0;
    named = UPLOAD;
    no_waits = false;
    round_closed = false;
    away_until_ms = 0;
    told = NULL;
    memset(received, 0, sizeof(received));
    (void)snprintf(dir, sizeof(dir), "/tmp/photon-upload-XXXXXX");
    CHECK(mkdtemp(dir) != NULL);
    config = (struct agent_config){.state_dir = dir};
    agent = (struct agent){.config = &config, .tokens_per_s = (double)NAN};
    progress_init(&agent.progress, stderr);
    struct transport_config c = {.url = server.url, .token = "secret"};
    CHECK_INT(transport_open(&agent.control, &c, &e), ST_OK);
    CHECK_INT(transport_open(&agent.bulk, &c, &e), ST_OK);
    task = (struct task){.id = "t_01J0000000000000000000000A",
                         .round = 3,
                         .rounds = 9,
                         .epoch = 2,
                         .heartbeat_s = 5,
                         .local_steps = 64,
                         .chunk_bytes = CHUNK};
    CHECK_INT(run_state_open(&rs, dir, RUN_ID, &e), ST_OK);
    CHECK_INT(run_state_begin(&rs, &key, &e), ST_OK);
    put(STATE_MOMENTS, "before", 6);
    put(STATE_MOMENTS_NEXT, "after", 5);
    put(STATE_UPDATE, update, sizeof(update));
    sha256_of(update, sizeof(update), &d);
    digest_hex(&d, rs.j.sha256);
    rs.j.bytes = UPDATE_BYTES;
    rs.j.tokens = 1000;
    CHECK_INT(run_state_trained(&rs, &e), ST_OK);
}

static enum task_end upload(void)
{
    struct err e = {0};
    struct beat *b = NULL;
    struct beat_config bc = {
        .url = server.url, .token = "secret", .task = task.id, .epoch = 2, .heartbeat_s = 5};
    CHECK_INT(beat_start(&b, &bc, &e), ST_OK);
    for (int64_t until = clock_mono_ms() + 10000; round_closed && clock_mono_ms() < until;) {
        if (beat_order(b) == BEAT_CLOSED) {
            break;
        }
        clock_sleep_ms(1);
    }
    struct arena *a = arena_new(1 << 24);
    enum task_end end = agent_upload(&agent, &task, &rs, b, a);
    arena_free(a);
    beat_stop(b, 0.0);
    return end;
}

static void finish(void)
{
    char command[100];
    transport_close(agent.control);
    transport_close(agent.bulk);
    (void)snprintf(command, sizeof(command), "rm -rf '%s'", dir);
    CHECK_INT(system(command), 0);
}

static void an_update_goes_up_in_chunks(void)
{
    begin(FAULT_NONE, -1);
    CHECK_INT(upload(), TASK_DONE);
    CHECK(accepted);
    CHECK_INT(requests, 5); // create, three chunks, finish
    CHECK_MEM(received, update, sizeof(update));
    CHECK_INT(agent.sent_bytes, UPDATE_BYTES);
    CHECK_STR(moments(), "after");
    CHECK_INT(noted(), 1);
    finish();
}

/* No reply, a reply that is lost after the work was done, a server that
 * is busy: at each request. */
static void a_break_at_any_request_costs_nothing(void)
{
    for (enum fault f = FAULT_NO_REPLY; f < FAULT_COUNT; f++) {
        for (int at = 0; at < 5; at++) {
            begin(f, at);
            CHECK_INT(upload(), TASK_DONE);
            CHECK(accepted);
            CHECK(requests <= 7);
            CHECK_MEM(received, update, sizeof(update));
            CHECK_STR(moments(), "after");
            finish();
        }
    }
}

static void a_lost_upload_is_made_again(void)
{
    begin(FAULT_NONE, -1);
    gone_times = 1;
    CHECK_INT(upload(), TASK_DONE);
    CHECK_MEM(received, update, sizeof(update));
    finish();
}

static void an_upload_that_is_always_lost_is_given_back(void)
{
    begin(FAULT_NONE, -1);
    no_waits = true;
    gone_times = 1000;
    CHECK_INT(upload(), TASK_FAILED);
    CHECK_STR(agent.fail_detail, "the server lost the upload 5 times");
    CHECK_INT(1000 - gone_times, 5);
    CHECK_INT(rs.j.phase, JOURNAL_TRAINED);
    finish();
}

/* A server without room, or a proxy before one that is down, has lost nothing. */
static void a_create_that_must_wait_is_asked_for_without_end(void)
{
    static const struct {
        int status;
        const char *body;
    } cases[] = {{503, "{}"},
                 {507, "{\"code\":\"STORAGE_FULL\",\"detail\":\"x\"}"},
                 {429, "{\"code\":\"RATE_LIMITED\",\"detail\":\"x\"}"},
                 {404, "<html>no such page</html>"}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        begin(FAULT_NONE, -1);
        no_waits = true;
        full_times = 20;
        full_status = cases[i].status;
        full_body = cases[i].body;
        CHECK_INT(upload(), TASK_DONE);
        CHECK_INT(full_times, 0);
        CHECK_MEM(received, update, sizeof(update));
        finish();
    }
}

/* What is no id would be cut in the journal and break the lines of the acknowledgements. */
static void an_upload_has_an_id_or_is_none(void)
{
    static const char *const names[] = {"", "u_1", "u_01J0000000000000000000000A x",
                                        "u_01J000000000000000000\\n000A",
                                        "r_01J0000000000000000000000A"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        begin(FAULT_NONE, -1);
        named = names[i];
        CHECK_INT(upload(), TASK_FAILED);
        CHECK_STR(rs.j.upload, "");
        CHECK_INT(noted(), 0);
        finish();
    }
}

static void a_late_update_keeps_the_moments(void)
{
    begin(FAULT_NONE, -1);
    refuse_finish = "ROUND_CLOSED";
    CHECK_INT(upload(), TASK_LATE);
    CHECK_STR(moments(), "after");
    CHECK_INT(rs.j.phase, JOURNAL_SETTLED);
    CHECK_INT(noted(), 0);
    finish();
}

static void a_bad_update_rolls_the_moments_back(void)
{
    begin(FAULT_NONE, -1);
    refuse_finish = "BAD_UPDATE";
    CHECK_INT(upload(), TASK_REFUSED);
    CHECK_STR(moments(), "before");
    CHECK_INT(rs.j.phase, JOURNAL_SETTLED);
    finish();
}

static void a_stale_lease_leaves_the_round_undecided(void)
{
    begin(FAULT_NONE, -1);
    refuse_finish = "STALE_LEASE";
    CHECK_INT(upload(), TASK_DROPPED);
    CHECK_STR(moments(), "before");
    CHECK_INT(rs.j.phase, JOURNAL_TRAINED);
    refuse_finish = NULL; // claimed again: what is durable there is not sent twice
    requests = 0;
    CHECK_INT(upload(), TASK_DONE);
    CHECK_INT(requests, 2);
    CHECK_STR(moments(), "after");
    finish();
}

/* The heartbeat has heard that the round is over, and the server is away when the upload asks. */
static void a_closed_round_is_no_reason_for_a_storm(void)
{
    begin(FAULT_NONE, -1);
    round_closed = true;
    refuse_finish = "ROUND_CLOSED";
    away_until_ms = clock_mono_ms() + 400;
    CHECK_INT(upload(), TASK_LATE);
    CHECK(requests < 40); // without pauses they are hundreds
    finish();
}

/* The round is over and its silo died before it heard what became of its update. */
static enum status resolve(int status, const char *text)
{
    struct err e = {0};
    begin(FAULT_NONE, -1);
    CHECK_INT(run_state_upload(&rs, UPLOAD, &e), ST_OK);
    told = text;
    told_status = status;
    struct arena *a = arena_new(1 << 24);
    enum status st = agent_resolve(&agent, &rs, a, &e);
    arena_free(a);
    return st;
}

#define ABOUT_IT "\"upload\":\"u_01J0000000000000000000000A\""

static void what_says_nothing_of_the_upload_settles_nothing(void)
{
    static const struct {
        int status;
        const char *text;
    } cases[] = {
        {401, "{\"code\":\"TOKEN_REVOKED\"}"},
        {403, "<html>the proxy forbids it</html>"},
        {404, "<html>the proxy knows no such page</html>"},
        {410, "{}"},
        {400, "{\"code\":\"BAD_REQUEST\"}"},
        {200, "<html>please log in</html>"},
        {200, "{}"},
        {200, "{\"upload\":\"u_01J0000000000000000000000B\",\"outcome\":{\"accepted\":true}}"},
        {200, "{" ABOUT_IT ",\"state\":\"accepted\"}"},
        {200, "{" ABOUT_IT ",\"outcome\":{\"accepted\":\"yes\"}}"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        CHECK(resolve(cases[i].status, cases[i].text) != ST_OK);
        CHECK_INT(rs.j.phase, JOURNAL_TRAINED); // asked again the next time
        CHECK_STR(moments(), "before");
        CHECK_INT(noted(), 0);
        finish();
    }
}

static void the_servers_word_settles(void)
{
    static const struct {
        int status;
        const char *text, *moments;
        int noted;
    } cases[] = {
        {200, "{" ABOUT_IT ",\"outcome\":{\"accepted\":true}}", "after", 1},
        {200, "{" ABOUT_IT ",\"outcome\":null}", "after", 0},
        {200, "{" ABOUT_IT ",\"outcome\":{\"accepted\":false,\"code\":\"ROUND_CLOSED\"}}", "after",
         0},
        {200, "{" ABOUT_IT ",\"outcome\":{\"accepted\":false,\"code\":\"BAD_UPDATE\"}}", "before",
         0},
        {404, "{\"code\":\"NOT_FOUND\"}", "after", 0}, // restored from before it
        {410, "{\"code\":\"UPLOAD_GONE\"}", "after", 0},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        CHECK_INT(resolve(cases[i].status, cases[i].text), ST_OK);
        CHECK_INT(rs.j.phase, JOURNAL_SETTLED);
        CHECK_STR(moments(), cases[i].moments);
        CHECK_INT(noted(), cases[i].noted);
        finish();
    }
}

int main(void)
{
    start_server();
    RUN(an_update_goes_up_in_chunks);
    RUN(a_break_at_any_request_costs_nothing);
    RUN(a_lost_upload_is_made_again);
    RUN(an_upload_that_is_always_lost_is_given_back);
    RUN(a_create_that_must_wait_is_asked_for_without_end);
    RUN(an_upload_has_an_id_or_is_none);
    RUN(a_late_update_keeps_the_moments);
    RUN(a_bad_update_rolls_the_moments_back);
    RUN(a_stale_lease_leaves_the_round_undecided);
    RUN(a_closed_round_is_no_reason_for_a_storm);
    RUN(what_says_nothing_of_the_upload_settles_nothing);
    RUN(the_servers_word_settles);
    return check_end();
}
