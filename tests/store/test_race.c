/*
 * Two servers' worth of processes place, refer to, let go, collect and reap a handful of contents
 * over one database and one folder, in random order, with every row change held open for a moment,
 * and are killed now and then. At any moment: what a row needs is there, whole.
 *
 * Then single lines of that: a cleaner whose lock lapses while its machine stands still, and what
 * one that died leaves.
 *
 * Run by tests/store/run.sh with a PostgreSQL of its own. SEED=n repeats a choice of steps.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/rng.h"
#include "server/blob.h"
#include "server/db.h"
#include "server/db_blob.h"
#include "server/migrate.h"
#include "tests/support/check.h"
#include "tests/support/tempdir.h"

enum {
    SERVERS = 2,
    WORKERS = 2,
    CONTENTS = 5,
    STEPS = 150,
    KILLS = 10,
    BYTES = 3000,
    VIOLATION = 9
};

// Before and after each change of a blob's row, and at the COMMIT of its removal, a moment passes.
static const char SCRIPT[] =
    "CREATE TABLE need (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
    "                   digest bytea NOT NULL REFERENCES blob (digest));"
    "CREATE TRIGGER need_live BEFORE INSERT ON need FOR EACH ROW"
    "    EXECUTE FUNCTION blob_must_live('digest');"
    "CREATE FUNCTION nap() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
    "    PERFORM pg_sleep(random() * 0.004);"
    "    IF TG_OP = 'DELETE' THEN RETURN OLD; END IF; RETURN NEW; END $$;"
    "CREATE TRIGGER nap_before BEFORE INSERT OR UPDATE OR DELETE ON blob FOR EACH ROW"
    "    EXECUTE FUNCTION nap();"
    "CREATE TRIGGER nap_after AFTER INSERT OR UPDATE OR DELETE ON blob FOR EACH ROW"
    "    EXECUTE FUNCTION nap();"
    "CREATE CONSTRAINT TRIGGER nap_commit AFTER DELETE ON blob DEFERRABLE INITIALLY DEFERRED"
    "    FOR EACH ROW EXECUTE FUNCTION nap();";

struct worker {
    struct db *db;
    struct blob_store *blobs;
    uint64_t key;
    uint64_t drawn;
    int id;
    int made; // names of temporary files
};

static struct tempdir folder;

static int draw(struct worker *w, int n)
{
    return (int)(rng_u64(w->key, w->drawn++) % (uint64_t)n);
}

static void content(int i, char out[BYTES], struct digest *d)
{
    memset(out, 'a' + i, BYTES);
    sha256_of(out, BYTES, d);
}

static void write_tmp(struct worker *w, int i, char id[64], struct digest *d)
{
    char bytes[BYTES];
    int fd = -1;
    content(i, bytes, d);
    (void)snprintf(id, 64, "file-%d-%d-%d", w->id, (int)getpid(), w->made++);
    if (blob_tmp_create(w->blobs, id, BYTES, &fd, NULL) == ST_OK) {
        (void)!pwrite(fd, bytes, BYTES, 0);
        (void)close(fd);
    }
}

struct step {
    struct worker *w;
    struct digest d;
    const char *tmp; // NULL: the file is said to be there already
};

/* As an upload is placed and accepted. */
static enum status place_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    struct step *s = ctx;
    const char *argv[] = {db_arg_digest(a, &s->d)};
    TRY(s->tmp ? db_blob_place(db, a, s->w->blobs, s->tmp, &s->d, BYTES, e)
               : db_blob_own(db, a, s->w->blobs, &s->d, BYTES, e));
    return db_exec(db, "INSERT INTO need (digest) VALUES ($1)", 1, argv, NULL, e);
}

/* As a fork refers to what is there. */
static enum status refer_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    struct step *s = ctx;
    const char *argv[] = {db_arg_digest(a, &s->d)};
    return db_exec(db,
                   "INSERT INTO need (digest) SELECT digest FROM blob WHERE digest = $1"
                   " AND state = 'live'",
                   1, argv, NULL, e);
}

/* What rows need, with the rows held so that nobody lets go of them meanwhile. */
static enum status look_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    struct step *s = ctx;
    struct db_rows rows;
    TRY(db_query(db, a, "SELECT DISTINCT digest FROM (SELECT digest FROM need FOR SHARE) n", 0,
                 NULL, &rows, e));
    for (int i = 0; i < rows.count; i++) {
        int64_t bytes = 0;
        struct err why = {0};
        TRY(db_digest(&rows, i, 0, &s->d, e));
        if (blob_verify(s->w->blobs, &s->d, &bytes, &why) || bytes != BYTES) {
            (void)fprintf(stderr, "a file that a row needs: %s\n", why.msg);
            _exit(VIOLATION);
        }
    }
    return ST_OK;
}

static enum status collect(struct worker *w, struct err *e)
{
    TRY(db_exec(w->db, "UPDATE blob SET used_at = used_at - interval '2 days' WHERE random() < 0.5",
                0, NULL, NULL, e));
    return db_blob_collect(w->db, w->blobs, e);
}

/* Refusals are part of it: a step that came too late changes nothing. */
static void one_step(struct worker *w)
{
    struct err e = {0};
    struct step s = {.w = w};
    char id[64];
    char bytes[BYTES];
    int removed = 0;
    enum status st = ST_OK;
    content(draw(w, CONTENTS), bytes, &s.d);
    switch (draw(w, 8)) {
    case 0:
    case 1:
        write_tmp(w, draw(w, CONTENTS), id, &s.d);
        s.tmp = id;
        st = db_tx(w->db, place_tx, &s, &e);
        blob_tmp_remove(w->blobs, id);
        break;
    case 2: // as a checkpoint: placed first, owned later
        write_tmp(w, draw(w, CONTENTS), id, &s.d);
        st = blob_place(w->blobs, id, &s.d, &e);
        st = st ? st : db_tx(w->db, place_tx, &s, &e);
        break;
    case 3:
        st = db_tx(w->db, refer_tx, &s, &e);
        break;
    case 4:
        st = db_exec(w->db, "DELETE FROM need WHERE random() < 0.6", 0, NULL, NULL, &e);
        break;
    case 5:
        st = collect(w, &e);
        break;
    case 6:
        st = db_blob_reap(w->db, w->blobs, 0, &removed, &e);
        break;
    default:
        st = db_tx(w->db, look_tx, &s, &e);
        break;
    }
    (void)st;
}

static int work(int id, uint64_t seed, int steps)
{
    struct worker w = {.id = id, .key = rng_key(seed, "race"), .drawn = (uint64_t)id << 32};
    struct err e = {0};
    if (db_open(&w.db, "", &e) || blob_store_open(&w.blobs, folder.path, &e)) {
        (void)fprintf(stderr, "%s\n", e.msg);
        return 1;
    }
    for (int i = 0; i < steps; i++) {
        one_step(&w);
    }
    struct step s = {.w = &w};
    int st = db_tx(w.db, look_tx, &s, &e) ? 1 : 0;
    blob_store_close(w.blobs);
    db_close(w.db);
    return st;
}

static pid_t start(int id, uint64_t seed)
{
    (void)fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        _exit(work(id, seed, STEPS));
    }
    return pid;
}

static void prepare(void)
{
    struct db *db = NULL;
    struct err e = {0};
    enum status st = db_open(&db, "", &e);
    st = st ? st : migrate(db, "sql", &e);
    st = st ? st : db_script(db, SCRIPT, &e);
    CHECK_STR(e.msg, "");
    CHECK_INT(st, ST_OK);
    db_close(db);
}

static void what_a_row_needs_is_there_whatever_runs_beside(void)
{
    uint64_t seed = getenv("SEED") ? strtoull(getenv("SEED"), NULL, 10) : (uint64_t)clock_wall_ms();
    pid_t pids[SERVERS * WORKERS];
    int kills = 0;
    int running = SERVERS * WORKERS;
    struct worker chance = {.key = rng_key(seed, "kills")};
    tempdir_make(&folder);
    prepare();
    for (int i = 0; i < running; i++) {
        pids[i] = start(i, seed);
    }
    int64_t next_ms = clock_mono_ms() + 100;
    int64_t until = clock_mono_ms() + 600000;
    while (running > 0) {
        int how = 0;
        pid_t pid = waitpid(-1, &how, WNOHANG);
        for (int i = 0; pid > 0 && i < SERVERS * WORKERS; i++) {
            bool killed = WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL;
            if (pids[i] == pid && killed) {
                pids[i] = start(i + SERVERS * WORKERS * kills, seed);
            } else if (pids[i] == pid) {
                if (how != 0) {
                    (void)fprintf(stderr, "SEED=%" PRIu64 "\n", seed);
                }
                CHECK_INT(how, 0);
                pids[i] = 0;
                running--;
            }
        }
        if (kills < KILLS && clock_mono_ms() > next_ms) {
            int i = draw(&chance, SERVERS * WORKERS);
            if (pids[i] > 0) {
                (void)kill(pids[i], SIGKILL);
                kills++;
            }
            next_ms = clock_mono_ms() + 50 + draw(&chance, 200);
        }
        CHECK(clock_mono_ms() < until);
        clock_sleep_ms(5);
    }
    CHECK_INT(work(1000, seed, 0), 0);
    (void)printf("%d steps in %d processes, %d kills\n", SERVERS * WORKERS * STEPS,
                 SERVERS * WORKERS, kills);
    tempdir_remove(&folder);
}

/* ---- a lock that lapses ---- */

static int64_t ask(struct db *db, const char *sql)
{
    struct arena *a = arena_new(1 << 20);
    struct db_rows rows;
    struct err e = {0};
    int64_t n = 0;
    enum status st = db_query(db, a, sql, 0, NULL, &rows, &e);
    st = st || rows.count == 0 || db_is_null(&rows, 0, 0) ? st : db_int64(&rows, 0, 0, &n, &e);
    CHECK_STR(e.msg, "");
    CHECK_INT(st, ST_OK);
    arena_free(a);
    return n;
}

static void wait_for(struct db *db, const char *sql)
{
    int64_t until = clock_mono_ms() + 20000;
    while (ask(db, sql) == 0 && clock_mono_ms() < until) {
        clock_sleep_ms(5);
    }
    CHECK(clock_mono_ms() < until);
}

static enum status count_one(void *ctx, const struct blob_entry *f, struct err *e)
{
    (void)f, (void)e;
    ++*(int *)ctx;
    return ST_OK;
}

static int set_aside_now(struct blob_store *s)
{
    int n = 0;
    CHECK_INT(blob_walk_aside(s, count_one, &n, NULL), ST_OK);
    return n;
}

static bool is_whole(struct blob_store *s, const struct digest *d)
{
    int64_t bytes = 0;
    return blob_verify(s, d, &bytes, NULL) == ST_OK && bytes == BYTES;
}

/* Nothing but one content, with a row or without. */
static void begin(struct worker *w, struct step *s, bool row)
{
    char id[64];
    struct err e = {0};
    *w = (struct worker){.id = 2000};
    *s = (struct step){.w = w};
    tempdir_make(&folder);
    CHECK_INT(db_open(&w->db, "", &e), ST_OK);
    CHECK_INT(blob_store_open(&w->blobs, folder.path, &e), ST_OK);
    (void)ask(w->db, "WITH n AS (DELETE FROM need) SELECT 0");
    (void)ask(w->db, "WITH b AS (DELETE FROM blob) SELECT 0");
    write_tmp(w, 0, id, &s->d);
    s->tmp = id;
    CHECK_INT(row ? db_tx(w->db, place_tx, s, &e) : blob_place(w->blobs, id, &s->d, &e), ST_OK);
    s->tmp = NULL;
}

static void end(struct worker *w)
{
    blob_store_close(w->blobs);
    db_close(w->db);
    tempdir_remove(&folder);
}

static void let_go(struct worker *w)
{
    (void)ask(w->db, "WITH n AS (DELETE FROM need) SELECT 0");
    (void)ask(w->db, "WITH b AS (UPDATE blob SET used_at = used_at - interval '2 days') SELECT 0");
}

static pid_t start_cleaner(bool reap)
{
    (void)fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        struct db *db = NULL;
        struct blob_store *s = NULL;
        int removed = 0;
        // It waits as long as the test holds it up, which may itself be held up.
        bool bad = db_open(&db, "", NULL) ||
                   db_script(db, "SET lock_timeout = 0; SET statement_timeout = 0;", NULL) ||
                   blob_store_open(&s, folder.path, NULL) ||
                   (reap ? db_blob_reap(db, s, 0, &removed, NULL) : db_blob_collect(db, s, NULL));
        _exit(bad ? 1 : 0);
    }
    return pid;
}

/*
 * A cleaner has deleted the row and stands still, as a machine that is paused; its session is ended
 * as PostgreSQL ends one that is idle for ten seconds; the content gets a row again, which finds
 * the file; then the cleaner goes on.
 */
static void lapse(bool reap)
{
    struct worker w;
    struct step s;
    struct err e = {0};
    char id[64];
    int how = 0;
    begin(&w, &s, !reap);
    let_go(&w);
    (void)ask(w.db, "SELECT 0 FROM pg_advisory_lock(7)");
    pid_t pid = start_cleaner(reap);
    wait_for(w.db, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted");
    CHECK_INT(kill(pid, SIGSTOP), 0);
    (void)ask(w.db, "SELECT pg_advisory_unlock(7)::int");
    wait_for(w.db, "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'");
    (void)ask(w.db, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                    " WHERE state = 'idle in transaction'");
    wait_for(w.db, "SELECT 1 WHERE NOT EXISTS (SELECT FROM pg_stat_activity"
                   "  WHERE state LIKE 'idle in transaction%')");
    write_tmp(&w, 0, id, &s.d);
    s.tmp = id;
    CHECK_INT(db_tx(w.db, place_tx, &s, &e), ST_OK);
    CHECK(is_whole(w.blobs, &s.d));
    CHECK_INT(kill(pid, SIGCONT), 0);
    CHECK_INT(waitpid(pid, &how, 0), pid);
    CHECK_INT(how, 0);
    CHECK(is_whole(w.blobs, &s.d));
    CHECK_INT(set_aside_now(w.blobs), 0);
    end(&w);
}

/* Its row is dead, and somebody has it in hand who finds the file: the cleaner waits for that. */
static void a_cleaner_asks_before_it_takes(void)
{
    struct worker w;
    struct step s;
    struct err e = {0};
    int how = 0;
    begin(&w, &s, true);
    let_go(&w);
    (void)ask(w.db, "WITH b AS (UPDATE blob SET state = 'dead') SELECT 0");
    CHECK_INT(db_begin(w.db, &e), ST_OK);
    CHECK_INT(db_tx(w.db, place_tx, &s, &e), ST_OK); // within that transaction
    pid_t pid = start_cleaner(false);
    wait_for(w.db, "SELECT count(*) FROM pg_locks WHERE NOT granted");
    CHECK(is_whole(w.blobs, &s.d));
    CHECK_INT(db_commit(w.db, &e), ST_OK);
    CHECK_INT(waitpid(pid, &how, 0), pid);
    CHECK_INT(how, 0);
    CHECK(is_whole(w.blobs, &s.d));
    CHECK_INT(ask(w.db, "SELECT count(*) FROM blob WHERE state = 'live'"), 1);
    end(&w);
}

static void a_cleaner_whose_lock_has_lapsed_takes_nothing(void)
{
    struct db *db = NULL;
    struct err e = {0};
    CHECK_INT(db_open(&db, "", &e), ST_OK);
    CHECK_INT(db_script(db,
                        "CREATE FUNCTION wait_here() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                        "    PERFORM pg_advisory_xact_lock(7); RETURN NULL; END $$;"
                        "CREATE TRIGGER wait_after AFTER DELETE ON blob FOR EACH ROW"
                        "    EXECUTE FUNCTION wait_here();",
                        &e),
              ST_OK);
    db_close(db);
    lapse(false);
    lapse(true);
}

/* What a cleaner leaves that died before its COMMIT, after it, and with a lock that had lapsed. */
static void what_a_dead_cleaner_set_aside_goes_by_its_row(void)
{
    enum { NEEDED, NEEDED_AND_PLACED, LET_GO, NO_ROW, CASES };
    for (int i = 0; i < CASES; i++) {
        struct worker w;
        struct step s;
        struct err e = {0};
        char name[BLOB_ASIDE_SIZE];
        char id[64];
        int removed = 0;
        begin(&w, &s, i != NO_ROW);
        CHECK_INT(blob_set_aside(w.blobs, &s.d, name, &e), ST_OK);
        CHECK_INT(set_aside_now(w.blobs), 1);
        if (i == NEEDED_AND_PLACED) {
            write_tmp(&w, 0, id, &s.d);
            CHECK_INT(blob_place(w.blobs, id, &s.d, &e), ST_OK);
        } else if (i == LET_GO) {
            let_go(&w);
        }
        CHECK_INT(db_blob_reap(w.db, w.blobs, 0, &removed, &e), ST_OK); // does not ask for its row
        CHECK_INT(set_aside_now(w.blobs), 1);
        CHECK_INT(db_blob_collect(w.db, w.blobs, &e), ST_OK);
        CHECK_INT(set_aside_now(w.blobs), 0);
        CHECK_INT(is_whole(w.blobs, &s.d), i == NEEDED || i == NEEDED_AND_PLACED);
        CHECK_INT(ask(w.db, "SELECT count(*) FROM blob"), i == NEEDED || i == NEEDED_AND_PLACED);
        end(&w);
    }
}

int main(void)
{
    if (!getenv("PGHOST")) {
        (void)printf("tests/store/run.sh runs this with a PostgreSQL of its own\n");
        return 1;
    }
    RUN(what_a_row_needs_is_there_whatever_runs_beside);
    RUN(a_cleaner_asks_before_it_takes);
    RUN(a_cleaner_whose_lock_has_lapsed_takes_nothing);
    RUN(what_a_dead_cleaner_set_aside_goes_by_its_row);
    return check_end();
}
