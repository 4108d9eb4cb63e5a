/* The silo holds a run to its spec, whatever the server's tasks say of it. */
#include <stdio.h>
#include <string.h>

#include "client/agent_int.h"
#include "common/json.h"
#include "tests/support/prepared.h"

static const char SPEC[] =
    "{\"name\":\"tiny-1\",\"model\":{\"d_model\":32,\"n_heads\":2,\"n_layers\":2,"
    "\"vocab_size\":320,\"seq_len\":64,\"position\":\"learned\",\"bias\":true,"
    "\"personal\":[\"norm_f.*\"]},"
    "\"federation\":{\"rounds\":20,\"silos_per_round\":4,\"local_steps\":64},"
    "\"inner\":{\"batch\":8,\"micro_batch\":1}}";

static struct tempdir dir;
static struct data *data;
static struct agent agent;
static struct agent_config config;

static void begin(void)
{
    tempdir_make(&dir);
    prepared_text(&dir, "text", 1);
    struct data_source_arg source = {tempdir_at(&dir, "text"), 1.0};
    CHECK_INT(data_open(&data, &source, 1, NULL), ST_OK);
    config =
        (struct agent_config){.state_dir = dir.path, .device = "cpu", .dtype = "f32", .threads = 1};
    agent = (struct agent){.config = &config, .data = data};
    progress_init(&agent.progress, stderr);
}

static void end(void)
{
    trainer_close(agent.trainer);
    data_close(data);
    tempdir_remove(&dir);
}

/* A task of the run in that round, with one piece of the spec's text replaced. */
static struct task task_of(int round, const char *from, const char *to)
{
    char text[4096];
    const char *at = strstr(SPEC, from);
    CHECK(at != NULL);
    (void)snprintf(text, sizeof(text),
                   "{\"task\":\"t_01J0000000000000000000000A\",\"kind\":\"train\","
                   "\"run\":\"r_01J0000000000000000000000A\",\"run_name\":\"tiny-1\",\"round\":%d,"
                   "\"rounds\":20,\"lease\":{\"epoch\":3,\"heartbeat_s\":15},"
                   "\"base\":{\"number\":%d,\"sha256\":\"%064d\",\"bytes\":4244000},"
                   "\"plan\":{\"global_step\":0,\"local_steps\":64,\"codec\":\"f32\","
                   "\"update_bytes\":4244000,\"chunk_bytes\":8388608,\"silo_ordinal\":7},"
                   "\"spec\":%.*s%s%s}",
                   round, round - 1, round, (int)(at - SPEC), SPEC, to, at + strlen(from));
    struct arena *a = arena_new(1 << 20);
    const struct json *doc = NULL;
    struct task t;
    struct err e = {0};
    CHECK_INT(json_parse(&doc, a, text, strlen(text), &e), ST_OK);
    CHECK_INT(task_parse(&t, doc, &e), ST_OK);
    arena_free(a);
    return t;
}

/* Round 1 was begun under the spec; round 2 may not come with another one. */
static void a_run_with_another_spec_is_not_trained(void)
{
    static const char *const other[][2] = {
        {"\"personal\":[\"norm_f.*\"]", "\"personal\":[]"},
        {"\"rounds\":20,\"silos", "\"fragments\":2,\"rounds\":20,\"silos"},
        {"\"d_model\":32", "\"d_model\":64"},
    };
    struct err e = {0};
    struct run_state rs;
    begin();
    struct task t = task_of(1, SPEC, SPEC);
    struct round_key key = task_key(&t);
    CHECK_INT(run_state_open(&rs, dir.path, t.run, &e), ST_OK);
    CHECK_INT(run_state_hold_spec(&rs, t.spec_sha256, &e), ST_OK);
    CHECK_INT(run_state_begin(&rs, &key, &e), ST_OK);
    for (size_t i = 0; i < sizeof(other) / sizeof(other[0]); i++) {
        t = task_of(2, other[i][0], other[i][1]);
        struct arena *arena = arena_new(1 << 20);
        CHECK_INT(agent_train(&agent, &t, NULL, arena), TASK_FAILED);
        arena_free(arena);
        CHECK_STR(agent.fail_code, "bad_data");
        CHECK(strstr(agent.fail_detail, "another spec") != NULL);
        CHECK(agent.trainer == NULL);
        CHECK_INT(run_state_open(&rs, dir.path, t.run, &e), ST_OK);
        CHECK_INT(rs.j.key.round, 1); // nothing was begun
    }
    end();
}

/* Opening says hello again, for the device's words may be others. */
static bool opens_for(const struct task *t)
{
    agent.hello_due = false;
    CHECK_INT(agent_trainer(&agent, t), TASK_DONE);
    return agent.hello_due;
}

static void a_trainer_is_of_its_run_s_spec(void)
{
    begin();
    struct task t = task_of(1, SPEC, SPEC);
    CHECK(opens_for(&t));
    int64_t params = trainer_params(agent.trainer)->total;
    t = task_of(2, SPEC, SPEC);
    CHECK(!opens_for(&t));
    t = task_of(2, "\"batch\":8", "\"batch\":4");
    CHECK(opens_for(&t));
    t = task_of(2, "\"d_model\":32", "\"d_model\":64");
    CHECK(opens_for(&t));
    CHECK(trainer_params(agent.trainer)->total > params);
    end();
}

int main(void)
{
    RUN(a_run_with_another_spec_is_not_trained);
    RUN(a_trainer_is_of_its_run_s_spec);
    return check_end();
}
