#include "client/task.h"

#include <stdio.h>
#include <string.h>

#include "common/arena.h"
#include "tests/support/check.h"

static const char TASK[] =
    "{\"task\":\"t_01J0000000000000000000000A\",\"kind\":\"train\","
    "\"run\":\"r_01J0000000000000000000000A\",\"run_name\":\"tiny-1\",\"round\":3,\"rounds\":20,"
    "\"slot\":0,\"lease\":{\"epoch\":3,\"seconds\":60,\"heartbeat_s\":15},"
    "\"base\":{\"number\":2,\"sha256\":"
    "\"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\",\"bytes\":4244000},"
    "\"plan\":{\"global_step\":128,\"local_steps\":64,\"codec\":\"f32\",\"update_bytes\":4244000,"
    "\"chunk_bytes\":8388608,\"silo_ordinal\":7},\"more\":\"ignored\","
    "\"spec\":{\"name\":\"tiny-1\",\"model\":{\"d_model\":32,\"n_heads\":2,\"n_layers\":2,"
    "\"vocab_size\":320,\"seq_len\":64,\"position\":\"learned\",\"bias\":true},"
    "\"federation\":{\"rounds\":20,\"silos_per_round\":4,\"local_steps\":64},"
    "\"inner\":{\"batch\":8}}}";

/* The task with one piece of its text replaced, read by one of the two. */
static enum status read_with(enum status (*read)(struct task *out, const struct json *doc,
                                                 struct err *e),
                             const char *from, const char *to, struct task *t, struct err *e)
{
    char text[4096];
    const char *at = strstr(TASK, from);
    CHECK(at != NULL);
    (void)snprintf(text, sizeof(text), "%.*s%s%s", (int)(at - TASK), TASK, to, at + strlen(from));
    struct arena *a = arena_new(1 << 20);
    const struct json *doc = NULL;
    enum status st = json_parse(&doc, a, text, strlen(text), e);
    CHECK_INT(st, ST_OK);
    st = read(t, doc, e);
    arena_free(a);
    return st;
}

static enum status parse_with(const char *from, const char *to, struct task *t, struct err *e)
{
    return read_with(task_parse, from, to, t, e);
}

static void a_training_task_is_read(void)
{
    struct task t;
    struct err e = {0};
    CHECK_INT(parse_with("tiny-1", "tiny-1", &t, &e), ST_OK);
    CHECK_STR(t.run_name, "tiny-1");
    CHECK_INT(t.kind, TASK_TRAIN);
    CHECK_INT(t.round, 3);
    CHECK_INT(t.epoch, 3);
    CHECK_NEAR(t.heartbeat_s, 15.0, 0);
    CHECK_INT(t.global_step, 128);
    CHECK_INT(t.local_steps, 64);
    CHECK_INT(t.silo_ordinal, 7);
    CHECK_INT(t.spec.model.d_model, 32);
    CHECK(t.codec_known);
}

static void a_training_is_known_by_what_decides_its_bits(void)
{
    struct task a;
    struct task b;
    struct err e = {0};
    CHECK_INT(parse_with("\"epoch\":3", "\"epoch\":4", &a, &e), ST_OK);
    CHECK_INT(parse_with("t_01J0000000000000000000000A", "t_01J0000000000000000000000B", &b, &e),
              ST_OK);
    struct round_key ka = task_key(&a);
    struct round_key kb = task_key(&b);
    CHECK(round_key_equal(&ka, &kb)); // another task or lease, the same work
    static const char *const other[][2] = {
        {"\"round\":3", "\"round\":4"},
        {"\"global_step\":128", "\"global_step\":192"},
        {"\"local_steps\":64,\"codec\"", "\"local_steps\":65,\"codec\""},
        {"\"silo_ordinal\":7", "\"silo_ordinal\":8"},
        {"e3b0c442", "e3b0c443"}};
    for (size_t i = 0; i < sizeof(other) / sizeof(other[0]); i++) {
        CHECK_INT(parse_with(other[i][0], other[i][1], &b, &e), ST_OK);
        kb = task_key(&b);
        CHECK(!round_key_equal(&ka, &kb));
    }
}

static void an_evaluation_needs_windows_alone(void)
{
    struct task t;
    struct err e = {0};
    CHECK_INT(parse_with("\"kind\":\"train\"", "\"kind\":\"evaluate\"", &t, &e), ST_INVALID);
    CHECK(strstr(e.msg, "windows") != NULL);
}

static void a_spec_has_a_digest_of_its_own(void)
{
    struct task a;
    struct task b;
    struct err e = {0};
    CHECK_INT(parse_with("\"round\":3", "\"round\":4", &a, &e), ST_OK);
    CHECK_INT(parse_with("\"inner\":{", "\"inner\": {", &b, &e), ST_OK);
    CHECK_STR(a.spec_sha256, b.spec_sha256); // of what it says, not of its text
    CHECK_INT(parse_with("\"d_model\"", "\"personal\":[\"wpe.weight\"],\"d_model\"", &b, &e),
              ST_OK);
    CHECK(strcmp(a.spec_sha256, b.spec_sha256) != 0);
}

static void what_is_missing_or_odd_is_named(void)
{
    static const char *const bad[][3] = {
        {"\"kind\":\"train\"", "\"kind\":\"dance\"", "dance"},
        {"t_01J0000000000000000000000A", "../../../etc", "task"},
        {"r_01J0000000000000000000000A", "r_", "run"},
        {"\"heartbeat_s\":15", "\"heartbeat_s\":0", "heartbeat_s"},
        {"e3b0c44298fc", "E3B0C44298FC", "SHA-256"},
        {"\"bytes\":4244000}", "\"bytes\":-1}", "bytes"},
        {"\"local_steps\":64,\"codec\"", "\"local_steps\":0,\"codec\"", "local_steps"},
        {"\"chunk_bytes\":8388608", "\"chunk_bytes\":1e12", "chunk_bytes"},
        {"\"d_model\":32", "\"d_model\":33", "spec"},
        {"\"plan\":{", "\"plan\":[],\"plam\":{", "plan"},
        // Of fragment -1 are personal and frozen tensors; so is what round 0 would send.
        {"\"round\":3", "\"round\":0", "round"},
        {"\"number\":2,", "\"number\":0,\"steps\":[{}],", "steps"},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct task t;
        struct err e = {0};
        memset(&t, 0x5a, sizeof(t));
        struct task before = t;
        CHECK_INT(parse_with(bad[i][0], bad[i][1], &t, &e), ST_INVALID);
        CHECK(strstr(e.msg, bad[i][2]) != NULL);
        CHECK_MEM(&t, &before, sizeof(t));
    }
}

static void a_task_of_a_newer_server_can_be_given_back(void)
{
    static const char *const newer[][2] = {{"\"kind\":\"train\"", "\"kind\":\"dance\""},
                                           {"\"rounds\":20,\"silos", "\"waves\":2,\"silos"},
                                           {"\"plan\":{", "\"plan\":[],\"plam\":{"}};
    for (size_t i = 0; i < sizeof(newer) / sizeof(newer[0]); i++) {
        struct task t;
        struct err e = {0};
        CHECK_INT(parse_with(newer[i][0], newer[i][1], &t, &e), ST_INVALID);
        CHECK_INT(read_with(task_parse_lease, newer[i][0], newer[i][1], &t, &e), ST_OK);
        CHECK_STR(t.id, "t_01J0000000000000000000000A");
        CHECK_INT(t.epoch, 3);
    }
    struct task t;
    struct err e = {0};
    memset(&t, 0x5a, sizeof(t));
    struct task before = t;
    CHECK_INT(read_with(task_parse_lease, "t_01J0000000000000000000000A", "../../../etc", &t, &e),
              ST_INVALID);
    CHECK_INT(read_with(task_parse_lease, "\"epoch\":3", "\"epoch\":-1", &t, &e), ST_INVALID);
    CHECK_MEM(&t, &before, sizeof(t));
}

static void an_unknown_codec_is_not_guessed(void)
{
    struct task t;
    struct err e = {0};
    CHECK_INT(parse_with("\"codec\":\"f32\"", "\"codec\":\"q9\"", &t, &e), ST_OK);
    CHECK(!t.codec_known);
}

int main(void)
{
    RUN(a_training_task_is_read);
    RUN(a_training_is_known_by_what_decides_its_bits);
    RUN(an_evaluation_needs_windows_alone);
    RUN(a_spec_has_a_digest_of_its_own);
    RUN(what_is_missing_or_odd_is_named);
    RUN(a_task_of_a_newer_server_can_be_given_back);
    RUN(an_unknown_codec_is_not_guessed);
    return check_end();
}
