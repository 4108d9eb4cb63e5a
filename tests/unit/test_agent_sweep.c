/* What a silo keeps for a run goes when the server says so, and for no other reason. */
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/acks.h"
#include "client/agent_int.h"
#include "tests/support/check.h"
#include "tests/support/http_stub.h"

enum { MOMENTS_HEAD = 224 };

static const char RUN_ID[] = "r_01J0000000000000000000000A";
static const char UPLOAD[] = "u_01J0000000000000000000000A";

// ---- the server: one answer about the run, one about its upload ----

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int run_status; // 0: it hangs up
static char run_answer[256];
static char upload_answer[256];

static void answer(int fd, const char *request)
{
    bool upload = strncmp(request, "GET /silo/v1/uploads/", 21) == 0;
    char status[16];
    (void)pthread_mutex_lock(&lock);
    (void)snprintf(status, sizeof(status), "%d X", upload ? 200 : run_status);
    if (upload || run_status) {
        http_stub_json(fd, status, upload ? upload_answer : run_answer);
    }
    (void)pthread_mutex_unlock(&lock);
}

static struct http_stub server = {.answer = answer};

static void says(int status, const char *about_run)
{
    (void)pthread_mutex_lock(&lock);
    run_status = status;
    (void)snprintf(run_answer, sizeof(run_answer), "%s", about_run);
    (void)pthread_mutex_unlock(&lock);
}

static void may_forget(void)
{
    char text[256];
    (void)snprintf(text, sizeof(text), "{\"run\":\"%s\",\"state\":\"stopped\",\"forget\":true}",
                   RUN_ID);
    says(200, text);
}

// ---- a silo with a round of that run, as begun ----

static char dir[64];
static struct agent agent;
static struct agent_config config;
static struct run_state rs;

static void put(const char *name, int32_t arrays)
{
    char path[STATE_PATH_MAX];
    char head[MOMENTS_HEAD] = "PHOTONST";
    run_state_path(&rs, name, path);
    memcpy(head + 204, &arrays, sizeof(arrays)); // as trainer_state.c lays it out
    FILE *f = fopen(path, "w");
    CHECK(f != NULL);
    CHECK_INT(fwrite(head, 1, sizeof(head), f), sizeof(head));
    CHECK_INT(fclose(f), 0);
}

static bool there(const char *name)
{
    char path[STATE_PATH_MAX];
    run_state_path(&rs, name, path);
    return access(path, F_OK) == 0;
}

static bool folder(void)
{
    return access(rs.dir, F_OK) == 0;
}

static void begin(int32_t arrays, bool personal)
{
    struct err e = {0};
    struct round_key key = {.round = 3, .local_steps = 64};
    (void)snprintf(dir, sizeof(dir), "/tmp/photon-sweep-XXXXXX");
    CHECK(mkdtemp(dir) != NULL);
    config = (struct agent_config){.state_dir = dir};
    agent = (struct agent){.config = &config};
    progress_init(&agent.progress, stderr);
    struct transport_config c = {.url = server.url, .token = "secret"};
    CHECK_INT(transport_open(&agent.control, &c, &e), ST_OK);
    CHECK_INT(run_state_open(&rs, dir, RUN_ID, &e), ST_OK);
    rs.j.personal = personal;
    CHECK_INT(run_state_begin(&rs, &key, &e), ST_OK);
    put(STATE_MOMENTS, arrays);
    put("snap-7.state", 3);
    put("snap-7.json", 0);
}

static void end(void)
{
    char command[128];
    transport_close(agent.control);
    (void)snprintf(command, sizeof(command), "rm -rf %s", dir);
    CHECK_INT(system(command), 0);
}

/* The round is trained, its update was sent, and no answer came. */
static void send_unanswered(const char *outcome)
{
    struct err e = {0};
    put(STATE_UPDATE, 0);
    put(STATE_MOMENTS_NEXT, 2);
    (void)snprintf(rs.j.sha256, sizeof(rs.j.sha256), "%064d", 7);
    rs.j.bytes = MOMENTS_HEAD;
    CHECK_INT(run_state_trained(&rs, &e), ST_OK);
    CHECK_INT(run_state_upload(&rs, UPLOAD, &e), ST_OK);
    (void)pthread_mutex_lock(&lock);
    (void)snprintf(upload_answer, sizeof(upload_answer), "{\"upload\":\"%s\",\"outcome\":%s}",
                   UPLOAD, outcome);
    (void)pthread_mutex_unlock(&lock);
}

static int64_t noted(void)
{
    FILE *null = fopen("/dev/null", "w");
    int64_t count = -1;
    struct err e = {0};
    CHECK_INT(acks_print(dir, null, &count, &e), ST_OK);
    (void)fclose(null);
    return count;
}

// ---- the tests ----

static void an_ended_run_leaves_nothing(void)
{
    begin(2, false);
    may_forget();
    agent_sweep(&agent);
    CHECK(!folder());
    end();
}

static void nothing_goes_without_the_servers_word(void)
{
    static const struct {
        int status;
        const char *body;
    } cases[] = {
        {0, ""}, // no answer
        {503, "{}"},
        {404, "{\"code\":\"NOT_FOUND\"}"}, // restored from before the run, or of an older version
        {401, "{}"},
        {200, "true"},
        {200, "{\"forget\":true}"},
        {200, "{\"run\":\"r_01J0000000000000000000000B\",\"forget\":true}"},
        {200, "{\"run\":\"r_01J0000000000000000000000A\",\"forget\":false}"},
        {200, "{\"run\":\"r_01J0000000000000000000000A\",\"forget\":\"true\"}"},
        {200, "{\"run\":\"r_01J0000000000000000000000A\",\"state\":\"stopped\"}"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        begin(2, false);
        says(cases[i].status, cases[i].body);
        agent_sweep(&agent);
        CHECK(there(STATE_MOMENTS) && there("journal.json") && there("snap-7.state"));
        end();
    }
}

static void personal_tensors_stay(void)
{
    begin(3, true);
    may_forget();
    agent_sweep(&agent);
    CHECK(there(STATE_MOMENTS) && there("journal.json"));
    CHECK(!there("snap-7.state") && !there("snap-7.json"));
    end();
}

/* Weights that were kept for fragments or steps ahead are the run's. */
static void weights_of_the_run_go(void)
{
    begin(3, false);
    may_forget();
    agent_sweep(&agent);
    CHECK(!folder());
    end();
}

static void an_update_is_settled_before_it_goes(void)
{
    begin(2, false);
    may_forget();
    send_unanswered("{\"accepted\":true}");
    agent_sweep(&agent);
    CHECK_INT(noted(), 1);
    CHECK(!folder());
    end();
}

static void folders_are_asked_for_now_and_then(void)
{
    begin(2, false);
    says(200, "{}");
    agent_sweep(&agent);
    CHECK(folder());
    may_forget();
    agent_sweep(&agent); // at once: not yet
    CHECK(folder());
    agent.sweep_ms = 0;
    agent_sweep(&agent);
    CHECK(!folder());
    end();
}

static void what_is_not_ours_is_left_alone(void)
{
    char path[STATE_PATH_MAX];
    begin(2, false);
    may_forget();
    run_state_path(&rs, "notes", path);
    CHECK_INT(mkdir(path, 0700), 0);
    agent_sweep(&agent);
    CHECK(folder() && there("notes") && !there(STATE_MOMENTS));
    end();
}

int main(void)
{
    http_stub_start(&server);
    RUN(an_ended_run_leaves_nothing);
    RUN(nothing_goes_without_the_servers_word);
    RUN(personal_tensors_stay);
    RUN(weights_of_the_run_go);
    RUN(an_update_is_settled_before_it_goes);
    RUN(folders_are_asked_for_now_and_then);
    RUN(what_is_not_ours_is_left_alone);
    return check_end();
}
