#include "client/state.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/clock.h"
#include "tests/support/check.h"
#include "tests/support/synced.h"

static const char RUN_ID[] = "r_01J0000000000000000000000A";
static char dir[128];

static void fresh_dir(void)
{
    (void)snprintf(dir, sizeof(dir), "/tmp/photon-state-XXXXXX");
    CHECK(mkdtemp(dir) != NULL);
}

static void remove_dir(void)
{
    char command[200];
    (void)snprintf(command, sizeof(command), "rm -rf '%s'", dir);
    CHECK_INT(system(command), 0); // a folder this test made
}

static struct round_key key_of(int64_t round)
{
    struct round_key k = {
        .round = round, .global_step = (round - 1) * 64, .local_steps = 64, .silo_ordinal = 5};
    (void)snprintf(k.base, sizeof(k.base), "%064d", (int)round);
    return k;
}

static void put(const struct run_state *s, const char *name, const char *text)
{
    char path[STATE_PATH_MAX];
    run_state_path(s, name, path);
    FILE *f = fopen(path, "w");
    CHECK(f != NULL);
    (void)fputs(text, f);
    (void)fclose(f);
}

/* "" when there is no such file. */
static const char *get(const struct run_state *s, const char *name)
{
    static char text[64];
    char path[STATE_PATH_MAX];
    struct err e = {0};
    run_state_path(s, name, path);
    if (file_read(path, text, sizeof(text), &e)) {
        text[0] = '\0';
    }
    return text;
}

static enum status train(struct run_state *s, int64_t round, const char *moments, struct err *e)
{
    struct round_key key = key_of(round);
    if (!(s->j.phase == JOURNAL_TRAIN && round_key_equal(&s->j.key, &key))) {
        TRY(run_state_begin(s, &key, e));
    }
    char path[STATE_PATH_MAX];
    put(s, "snapshot.tmp", "weights");
    run_state_path(s, "snapshot.tmp", path);
    struct snap snap = {.step = 10, .tokens = 1000, .loss_sum = 33.5, .train_s = 1.25};
    TRY(run_state_snap(s, &snap, path, e));
    put(s, STATE_UPDATE, "update");
    put(s, "moments.tmp", moments);
    char next[STATE_PATH_MAX];
    run_state_path(s, "moments.tmp", path);
    run_state_path(s, STATE_MOMENTS_NEXT, next);
    TRY(file_place(path, next, e));
    s->j.bytes = 6;
    s->j.tokens = 2000;
    s->j.train_loss = 3.25;
    return run_state_trained(s, e);
}

static void an_accepted_round_replaces_the_moments(void)
{
    fresh_dir();
    struct run_state s;
    struct err e = {0};
    CHECK_INT(run_state_open(&s, dir, RUN_ID, &e), ST_OK);
    CHECK_INT(s.j.phase, JOURNAL_NONE);
    CHECK_INT(train(&s, 1, "one", &e), ST_OK);
    CHECK_STR(get(&s, STATE_MOMENTS), "");
    CHECK_INT(run_state_settle(&s, true, &e), ST_OK);
    CHECK_STR(get(&s, STATE_MOMENTS), "one");
    CHECK_STR(get(&s, STATE_MOMENTS_NEXT), "");
    CHECK_STR(get(&s, STATE_UPDATE), "update"); // until the next round: the server may ask again
    remove_dir();
}

static void a_refused_round_leaves_the_moments_of_before(void)
{
    fresh_dir();
    struct run_state s;
    struct err e = {0};
    CHECK_INT(run_state_open(&s, dir, RUN_ID, &e), ST_OK);
    CHECK_INT(train(&s, 1, "one", &e), ST_OK);
    CHECK_INT(run_state_settle(&s, true, &e), ST_OK);
    CHECK_INT(train(&s, 2, "two", &e), ST_OK);
    CHECK_INT(run_state_settle(&s, false, &e), ST_OK);
    CHECK_STR(get(&s, STATE_MOMENTS), "one");
    CHECK_STR(get(&s, STATE_MOMENTS_NEXT), "");
    CHECK_INT(s.j.kept, 1);
    CHECK_INT(train(&s, 3, "three", &e), ST_OK);
    CHECK_INT(s.j.kept, 1); // not before the server has decided
    CHECK_INT(run_state_settle(&s, OUTCOME_LATE, &e), ST_OK);
    CHECK_INT(s.j.kept, 3);
    remove_dir();
}

static void an_undecided_round_may_not_be_forgotten(void)
{
    fresh_dir();
    struct run_state s;
    struct err e = {0};
    CHECK_INT(run_state_open(&s, dir, RUN_ID, &e), ST_OK);
    CHECK_INT(train(&s, 1, "one", &e), ST_OK);
    struct round_key two = key_of(2);
    CHECK_INT(run_state_begin(&s, &two, &e), ST_CONFLICT);
    remove_dir();
}

static void the_journal_reads_back(void)
{
    fresh_dir();
    struct run_state s;
    struct run_state again;
    struct err e = {0};
    CHECK_INT(run_state_open(&s, dir, RUN_ID, &e), ST_OK);
    CHECK_INT(train(&s, 7, "x", &e), ST_OK);
    CHECK_INT(run_state_upload(&s, "u_01J0000000000000000000000A", &e), ST_OK);
    CHECK_INT(run_state_open(&again, dir, RUN_ID, &e), ST_OK);
    CHECK_MEM(&again.j, &s.j, sizeof(s.j));
    remove_dir();
}

static void a_run_keeps_the_spec_that_it_began_with(void)
{
    fresh_dir();
    struct run_state s;
    struct err e = {0};
    CHECK_INT(run_state_open(&s, dir, RUN_ID, &e), ST_OK);
    CHECK_INT(train(&s, 1, "x", &e), ST_OK); // by a version that did not note it
    CHECK_INT(run_state_hold_spec(&s, "one", &e), ST_OK);
    CHECK_INT(run_state_settle(&s, OUTCOME_COUNTED, &e), ST_OK);
    CHECK_INT(train(&s, 2, "y", &e), ST_OK);

    struct run_state again;
    CHECK_INT(run_state_open(&again, dir, RUN_ID, &e), ST_OK);
    CHECK_INT(run_state_hold_spec(&again, "one", &e), ST_OK);
    CHECK_INT(run_state_hold_spec(&again, "another", &e), ST_INVALID);
    CHECK(strstr(e.msg, again.dir) != NULL);
    CHECK_MEM(&again.j, &s.j, sizeof(s.j));
    remove_dir();
}

static void the_newest_snapshot_is_found(void)
{
    fresh_dir();
    struct run_state s;
    struct err e = {0};
    struct round_key one = key_of(1);
    char path[STATE_PATH_MAX];
    struct snap snap;
    CHECK_INT(run_state_open(&s, dir, RUN_ID, &e), ST_OK);
    CHECK_INT(run_state_begin(&s, &one, &e), ST_OK);
    CHECK(!run_state_snap_best(&s, &snap, path));
    for (int64_t step = 5; step <= 15; step += 5) {
        put(&s, "snapshot.tmp", "w");
        run_state_path(&s, "snapshot.tmp", path);
        struct snap made = {
            .step = step, .tokens = 100 * step, .loss_sum = 0.1 * (double)step, .train_s = 2.0};
        CHECK_INT(run_state_snap(&s, &made, path, &e), ST_OK);
    }
    CHECK(run_state_snap_best(&s, &snap, path));
    CHECK_INT(snap.step, 15);
    CHECK_INT(snap.tokens, 1500);
    CHECK(snap.loss_sum == 0.1 * 15.0); // to the last bit
    CHECK(strstr(path, "snap-15.state") != NULL);
    put(&s, "snap-20.state", "state without its numbers");
    CHECK(run_state_snap_best(&s, &snap, path));
    CHECK_INT(snap.step, 15);
    struct round_key two = key_of(2);
    CHECK_INT(run_state_begin(&s, &two, &e), ST_OK);
    CHECK(!run_state_snap_best(&s, &snap, path));
    remove_dir();
}

/* Round 2 on top of a settled round 1; stops at the first failure, as a process that dies does. */
static enum status second_round(bool keep, struct err *e)
{
    struct run_state s;
    TRY(run_state_open(&s, dir, RUN_ID, e));
    TRY(train(&s, 2, "two", e));
    TRY(run_state_upload(&s, "u_01J0000000000000000000000A", e));
    return run_state_settle(&s, keep, e);
}

/*
 * Whatever instant a process dies at, the next one finds moments of before or after the round, as
 * the journal says, and carrying on ends where an undisturbed process ends.
 */
static void dies_at_every_step(bool keep)
{
    int steps = 0;
    for (int n = 0;; n++) {
        fresh_dir();
        struct run_state s;
        struct err e = {0};
        CHECK_INT(run_state_open(&s, dir, RUN_ID, &e), ST_OK);
        CHECK_INT(train(&s, 1, "one", &e), ST_OK);
        CHECK_INT(run_state_settle(&s, true, &e), ST_OK);

        durable_fail_after(n);
        enum status st = second_round(keep, &e);
        bool fired = durable_fail_fired();
        durable_fail_after(-1);
        CHECK_INT(st != ST_OK, fired);

        CHECK_INT(run_state_open(&s, dir, RUN_ID, &e), ST_OK);
        bool settled = s.j.phase == JOURNAL_SETTLED && s.j.key.round == 2;
        CHECK_STR(get(&s, STATE_MOMENTS), settled && keep ? "two" : "one");
        if (s.j.phase == JOURNAL_TRAINED) {
            CHECK_STR(get(&s, STATE_MOMENTS_NEXT), "two");
            CHECK_STR(get(&s, STATE_UPDATE), "update");
        } else {
            CHECK_STR(get(&s, STATE_MOMENTS_NEXT), "");
        }
        if (!settled) { // and it goes on
            if (s.j.phase != JOURNAL_TRAINED) {
                CHECK_INT(train(&s, 2, "two", &e), ST_OK);
            }
            CHECK_INT(run_state_settle(&s, keep, &e), ST_OK);
        }
        CHECK_STR(get(&s, STATE_MOMENTS), keep ? "two" : "one");
        remove_dir();
        steps = n;
        if (!fired) {
            break;
        }
    }
    CHECK(steps >= 12);
}

static void dying_at_any_step_of_an_accepted_round_loses_nothing(void)
{
    dies_at_every_step(true);
}

static void dying_at_any_step_of_a_refused_round_rolls_back(void)
{
    dies_at_every_step(false);
}

static void a_damaged_journal_is_said_and_not_guessed(void)
{
    fresh_dir();
    struct run_state s;
    struct err e = {0};
    CHECK_INT(run_state_open(&s, dir, RUN_ID, &e), ST_OK);
    put(&s, "journal.json", "{\"phase\":\"tra");
    CHECK_INT(run_state_open(&s, dir, RUN_ID, &e), ST_CORRUPT);
    CHECK(strstr(e.msg, "journal.json is damaged") != NULL);
    remove_dir();
}

static void a_run_id_cannot_leave_the_folder(void)
{
    fresh_dir();
    struct run_state s;
    struct err e = {0};
    CHECK_INT(run_state_open(&s, dir, "../../etc", &e), ST_INVALID);
    CHECK_INT(run_state_open(&s, dir, "", &e), ST_INVALID);
    remove_dir();
}

static void the_identity_reads_back_and_is_private(void)
{
    fresh_dir();
    struct silo_identity id = {.url = "http://127.0.0.1:1",
                               .silo = "s_01J0000000000000000000000A",
                               .name = "hospital-a",
                               .token = "secret",
                               .pin = "sha256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="};
    struct silo_identity back;
    struct err e = {0};
    CHECK_INT(identity_read(dir, &back, &e), ST_NOT_FOUND);
    CHECK_INT(identity_write(dir, &id, &e), ST_OK);
    CHECK_INT(identity_read(dir, &back, &e), ST_OK);
    CHECK_MEM(&back, &id, sizeof(id));
    char path[200];
    struct stat st;
    (void)snprintf(path, sizeof(path), "%s/silo.json", dir);
    CHECK_INT(stat(path, &st), 0);
    CHECK_INT(st.st_mode & 0777, 0600);
    remove_dir();
}

static void a_folder_has_one_agent(void)
{
    fresh_dir();
    int a = -1;
    int b = -1;
    struct err e = {0};
    CHECK_INT(state_lock(dir, &a, &e), ST_OK);
    CHECK_INT(state_lock(dir, &b, &e), ST_CONFLICT);
    CHECK(state_in_use(dir) && state_in_use(dir));
    (void)close(a);
    CHECK_INT(state_lock(dir, &b, &e), ST_OK);
    (void)close(b);
    remove_dir();
}

static void a_file_is_synced_before_it_is_named_and_its_folder_after(void)
{
    fresh_dir();
    char path[STATE_PATH_MAX];
    (void)snprintf(path, sizeof(path), "%s/journal.json", dir);
    synced_clear();
    CHECK_INT(file_write(path, "{}", 2, NULL), ST_OK);
    int file = synced_at("journal.json.tmp");
    int name = synced_at("rename journal.json.tmp");
    CHECK(file >= 0 && name > file);
    CHECK(synced_last(dir) > name);
    remove_dir();
}

/* All that decides the bits of a round: with one of it changed, nothing of before may go on. */
static void a_round_goes_on_only_under_the_same_key(void)
{
    struct round_key k = key_of(3);
    struct round_key other[] = {k, k, k, k, k};
    CHECK(round_key_equal(&k, &other[0]));
    other[0].round++;
    other[1].base[0] = 'f';
    other[2].global_step++;
    other[3].local_steps++;
    other[4].silo_ordinal++;
    for (int i = 0; i < 5; i++) {
        CHECK(!round_key_equal(&k, &other[i]));
    }
}

/* A monitor has the lock shared, for an instant; start outlasts that. */
static void looking_at_a_folder_hinders_nobody(void)
{
    fresh_dir();
    struct err e = {0};
    char path[STATE_PATH_MAX];
    int lock = -1;
    (void)snprintf(path, sizeof(path), "%s/lock", dir);
    CHECK(!state_in_use(dir));
    CHECK(access(path, F_OK) != 0);
    int looks = open(path, O_RDONLY | O_CREAT | O_CLOEXEC, 0600);
    CHECK(looks >= 0);
    CHECK_INT(flock(looks, LOCK_SH | LOCK_NB), 0);
    CHECK(!state_in_use(dir)); // two may look
    int64_t begin = clock_mono_ms();
    CHECK_INT(state_lock(dir, &lock, &e), ST_CONFLICT); // this one never stops looking
    CHECK(clock_mono_ms() - begin >= 900);
    (void)close(looks);
    CHECK_INT(state_lock(dir, &lock, &e), ST_OK);
    CHECK(state_in_use(dir));
    (void)close(lock);
    CHECK(!state_in_use(dir));
    remove_dir();
}

int main(void)
{
    RUN(a_round_goes_on_only_under_the_same_key);
    RUN(a_file_is_synced_before_it_is_named_and_its_folder_after);
    RUN(an_accepted_round_replaces_the_moments);
    RUN(a_refused_round_leaves_the_moments_of_before);
    RUN(an_undecided_round_may_not_be_forgotten);
    RUN(the_journal_reads_back);
    RUN(a_run_keeps_the_spec_that_it_began_with);
    RUN(the_newest_snapshot_is_found);
    RUN(dying_at_any_step_of_an_accepted_round_loses_nothing);
    RUN(dying_at_any_step_of_a_refused_round_rolls_back);
    RUN(a_damaged_journal_is_said_and_not_guessed);
    RUN(a_run_id_cannot_leave_the_folder);
    RUN(the_identity_reads_back_and_is_private);
    RUN(a_folder_has_one_agent);
    RUN(looking_at_a_folder_hinders_nobody);
    return check_end();
}
