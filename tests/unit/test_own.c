/* What a silo keeps for itself, when the file of it is of no use any more. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "client/agent_int.h"
#include "client/own.h"
#include "tests/support/check.h"
#include "tests/support/training.h"

enum { VERSION_AT = 8, MOMENTS_AT = 300 };

static char path[128];

/* The file of a few steps, with one bit of this byte another. */
static void keep_damaged(const struct run_spec *spec, off_t at)
{
    struct trainer_config c = config();
    struct trainer *t = opened(&c);
    struct err e = {0};
    char byte = 0;
    for (int i = 0; i < 3; i++) {
        (void)step(t, i);
    }
    (void)snprintf(path, sizeof(path), "%s/moments.state", folder);
    CHECK_INT(own_save(t, spec, path, &e), ST_OK);
    trainer_close(t);
    int fd = open(path, O_RDWR);
    CHECK_INT(pread(fd, &byte, 1, at), 1);
    byte = (char)(byte ^ 4);
    CHECK_INT(pwrite(fd, &byte, 1, at), 1);
    (void)close(fd);
}

static void a_round_begins_without_the_moments_that_cannot_be_loaded(void)
{
    static const off_t damages[] = {VERSION_AT, MOMENTS_AT};
    const struct run_spec spec = {.inner_state = INNER_STATE_KEEP};
    for (int i = 0; i < 2; i++) {
        struct trainer_config c = config();
        struct own own = {.path = path, .kept = 1};
        struct err e = {0};
        keep_damaged(&spec, damages[i]);
        struct trainer *fresh = opened(&c);
        struct trainer *t = opened(&c);
        (void)step(t, 0); // a round of before: its moments must not stay either
        CHECK_INT(own_load(t, &spec, &own, &e), ST_OK);
        int fd = weights_file(trainer_params(t), trainer_params(t)->total);
        CHECK_INT(trainer_load_weights(t, fd, BEFORE, &e), ST_OK);
        (void)close(fd);
        (void)step(t, 5);
        (void)step(fresh, 5);
        check_same_weights(t, fresh);
        trainer_close(t);
        trainer_close(fresh);
    }
}

static void weights_that_are_nowhere_else_are_not_replaced_unasked(void)
{
    static const off_t damages[] = {VERSION_AT, MOMENTS_AT};
    const struct run_spec spec = {.inner_state = INNER_STATE_KEEP, .personal = {.count = 1}};
    for (int i = 0; i < 2; i++) {
        struct trainer_config c = config();
        struct own own = {.path = path, .kept = 1};
        struct err e = {0};
        keep_damaged(&spec, damages[i]);
        struct trainer *t = opened(&c);
        enum status st = own_load(t, &spec, &own, &e);
        CHECK_STR(agent_start_code(st), "bad_data");
        CHECK(strstr(e.msg, path) != NULL);
        CHECK(strstr(e.msg, "; try a backup of it") != NULL);
        CHECK(strstr(e.msg, "remove it to start from the checkpoint") != NULL);
        own.path = NULL; // as it was told
        CHECK_INT(own_load(t, &spec, &own, &e), ST_OK);
        trainer_close(t);
    }
}

int main(void)
{
    engine = ENGINES[0];
    folder_make();
    RUN(a_round_begins_without_the_moments_that_cannot_be_loaded);
    RUN(weights_that_are_nowhere_else_are_not_replaced_unasked);
    (void)unlink(path);
    (void)rmdir(folder);
    return check_end();
}
