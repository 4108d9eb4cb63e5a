#include "server/check.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/id.h"
#include "server/db_blob.h"
#include "server/mend.h"

enum {
    PAGE = 500,
    TOLD_MAX = 100, // of one rule; the rest is counted
    SAY_EVERY_MS = 10000,
    SAY_EVERY_TTY_MS = 500,
};

/* What is asked, in the order in which it is told. */
static const struct {
    const char *name;
    const char *holds;
} rules[] = {
    {"I1", "what silos were told counts is there"},
    {"I2", "at most one counted update per seat, and per silo"},
    {"I3", "a checkpoint is made of exactly its closed round's updates"},
    {"I4", "a run's head is its newest checkpoint, and no number is missing"},
    {"I5", "one live round per run, and it builds on the head"},
    {"I6", "nothing joined or left a round after its seal, and it had its quorum"},
    {"I7", "a done seat has one update, a leased one an open lease"},
    {"I8", "every file in use is there, and is what its name says"},
    {"I9", "no old file that nobody knows"},
    {"I10", "checkpoints are finite and have their run's size"},
    {"I11", "one event for each accepted update"},
    {"I12", "checkpoints of a run with coded steps come with theirs"},
    {"chain", "events are as they were written"},
};
enum { RULES = sizeof(rules) / sizeof(rules[0]) };

struct tally {
    const struct check_job *job;
    int found[RULES];
    int others; // of rules that are not in the table
    int64_t acks;
    int repaired;
    int64_t files, bytes;             // read
    int64_t files_total, bytes_total; // to read
    int64_t began_ms, said_ms;
    bool progress;
};

static void say(struct tally *t, const char *rule, const char *subject, const char *what)
{
    int *found = &t->others;
    for (int i = 0; i < RULES; i++) {
        if (strcmp(rules[i].name, rule) == 0) {
            found = &t->found[i];
        }
    }
    if (++*found <= TOLD_MAX) {
        (void)printf("%s %s: %s\n", rule, subject, what);
    }
}

/* ---- rows ---- */

static const char SQL_CHAIN[] =
    "SELECT run_id, id FROM (SELECT e.run_id, e.id, e.chain, event_link(lag(e.chain) OVER"
    "        (PARTITION BY e.run_id ORDER BY e.chain_no), e) AS want"
    "   FROM event e WHERE e.chain IS NOT NULL AND e.run_id IS NOT NULL) x"
    " WHERE chain <> want ORDER BY run_id, id LIMIT 100";

static enum status check_rows(struct tally *t, struct arena *a, struct err *e)
{
    struct db *db = t->job->db;
    struct db_rows rows;
    TRY(db_exec(db, "SELECT set_config('statement_timeout', '0', false)", 0, NULL, NULL, e));
    TRY(db_query(db, a,
                 "SELECT rule, subject, what FROM invariant_broken ORDER BY 1, 2 LIMIT 10000", 0,
                 NULL, &rows, e));
    for (int i = 0; i < rows.count; i++) {
        say(t, db_text(&rows, i, 0), db_text(&rows, i, 1), db_text(&rows, i, 2));
    }
    TRY(db_query(db, a, SQL_CHAIN, 0, NULL, &rows, e));
    for (int i = 0; i < rows.count; i++) {
        say(t, "chain", arena_fmt(a, "%s event %s", db_text(&rows, i, 0), db_text(&rows, i, 1)),
            "the event was changed after it was written, or one before it was");
    }
    return ST_OK;
}

/* ---- acknowledgements ---- */

static const char SQL_ACKS[] =
    "SELECT a.id, encode(a.digest, 'hex') FROM unnest($1::text[], $2::bytea[]) a(id, digest)"
    " WHERE NOT EXISTS (SELECT FROM update u WHERE u.digest = a.digest"
    "                      AND (u.upload_id = a.id OR u.task_id = a.id))";

struct ack_page {
    const char *ids[PAGE];
    const char *digests[PAGE];
    int count;
};

static enum status ask_acks(struct tally *t, struct arena *a, struct ack_page *p, struct err *e)
{
    struct db_rows rows = {0};
    const char *argv[] = {db_arg_array(a, p->ids, p->count), db_arg_array(a, p->digests, p->count)};
    TRY(db_query(t->job->db, a, SQL_ACKS, 2, argv, &rows, e));
    for (int i = 0; i < rows.count; i++) {
        say(t, "I1", arena_fmt(a, "%s %s", db_text(&rows, i, 0), db_text(&rows, i, 1)),
            "a silo was told that it counts, and there is no such update");
    }
    t->acks += p->count;
    p->count = 0;
    return ST_OK;
}

/* "u_… <digest> …" or "t_… <digest> …"; a line that is empty or begins with # is passed over. */
static enum status read_ack(struct ack_page *p, struct arena *a, const char *line, int number,
                            struct err *e)
{
    char id[64] = "";
    char hex[80] = "";
    struct digest d;
    int words = sscanf(line, "%63s %79s", id, hex);
    if (words < 1 || id[0] == '#') {
        return ST_OK;
    }
    if (words < 2 || !(id_valid('u', id) || id_valid('t', id)) || digest_parse(&d, hex, NULL)) {
        return err_set(e, ST_INVALID,
                       "line %d is no acknowledgement; try the output of photon-client acks",
                       number);
    }
    p->ids[p->count] = arena_fmt(a, "%s", id);
    p->digests[p->count++] = db_arg_digest(a, &d);
    return ST_OK;
}

static enum status check_acks(struct tally *t, struct err *e)
{
    FILE *f = fopen(t->job->acks, "re");
    if (!f) {
        return err_set(e, ST_NOT_FOUND, "cannot read '%.120s': %s; try another --acks",
                       t->job->acks, strerror(errno));
    }
    char line[512];
    enum status st = ST_OK;
    bool more = true;
    for (int number = 0; more && !st;) {
        struct arena *a = arena_new((size_t)8 << 20);
        struct ack_page page = {.count = 0};
        while (page.count < PAGE && !st && (more = fgets(line, sizeof(line), f) != NULL)) {
            st = read_ack(&page, a, line, ++number, e);
        }
        st = st ? st : ask_acks(t, a, &page, e);
        arena_free(a);
    }
    (void)fclose(f);
    return st;
}

/* ---- files ---- */

static void say_progress(struct tally *t)
{
    int64_t now = clock_mono_ms();
    bool tty = isatty(STDERR_FILENO) == 1;
    if (now - t->said_ms < (tty ? SAY_EVERY_TTY_MS : SAY_EVERY_MS)) {
        return;
    }
    t->said_ms = now;
    double share = t->bytes_total > 0 ? (double)t->bytes / (double)t->bytes_total : 1.0;
    double left_s =
        share > 0.0 ? (double)(now - t->began_ms) / 1000.0 * (1.0 - share) / share : 0.0;
    (void)fprintf(stderr, "%s%" PRId64 " of %" PRId64 " files, %.0f %%, about %.0f s left%s",
                  tty ? "\r\033[K" : "", t->files, t->files_total, 100.0 * share, left_s,
                  tty ? "" : "\n");
    t->progress = tty;
}

struct reading {
    struct tally *t;
    struct sha256 *hash;
    int64_t bytes;
};

static enum status read_some(void *ctx, const void *data, size_t len, struct err *e)
{
    (void)e;
    struct reading *r = ctx;
    sha256_add(r->hash, data, len);
    r->bytes += (int64_t)len;
    r->t->bytes += (int64_t)len;
    say_progress(r->t);
    return ST_OK;
}

/* Whole, and what its name says? */
static enum status read_file(struct tally *t, const struct digest *want, int64_t size,
                             struct err *e)
{
    struct digest got;
    struct reading r = {.t = t, .hash = sha256_new()};
    enum status st = blob_scan(t->job->blobs, want, read_some, &r, e);
    sha256_end(r.hash, &got);
    sha256_free(r.hash);
    TRY(st);
    return r.bytes == size && digest_equal(&got, want)
               ? ST_OK
               : err_set(e, ST_CORRUPT, "the file's content is not what its name says");
}

static enum status still_live(struct db *db, const struct digest *d, bool *live, struct err *e)
{
    struct arena *a = arena_new(1 << 20);
    struct db_rows rows = {0};
    const char *argv[] = {db_arg_digest(a, d)};
    enum status st = db_query(db, a, "SELECT 1 FROM blob WHERE digest = $1 AND state = 'live'", 1,
                              argv, &rows, e);
    *live = rows.count > 0;
    arena_free(a);
    return st;
}

/* ST_OK: it is sound now. Else why says what is wrong with it, and why it cannot be helped. */
static enum status repair(struct tally *t, const struct digest *d, const char *hex, struct err *why)
{
    struct mend m = {.db = t->job->db, .blobs = t->job->blobs, .threads = t->job->threads};
    struct err e = {0};
    int rebuilt = 0;
    enum status st = mend_file(&m, d, &rebuilt, &e);
    if (!st) {
        (void)printf("repaired %s: %s; it was made again, bit for bit\n", hex, why->msg);
        t->repaired++;
        return ST_OK;
    }
    char was[100];
    (void)snprintf(was, sizeof(was), "%.99s", why->msg);
    return err_set(why, st, "%s; it cannot be made again: %.120s", was, e.msg);
}

/* A cleaner or a repair may have been between: it is said when it is so twice, with a live row. */
static enum status check_file(struct tally *t, const struct digest *want, int64_t size,
                              struct err *e)
{
    struct err why = {0};
    char hex[DIGEST_HEX + 1];
    bool live = true;
    enum status found = read_file(t, want, size, &why);
    for (int again = 0; again < 2 && found && live; again++) {
        int64_t before = t->bytes;
        found = read_file(t, want, size, &why);
        t->bytes = before; // the total counts each file once
        TRY(still_live(t->job->db, want, &live, e));
    }
    digest_hex(want, hex);
    if (found && live && t->job->repair) {
        found = repair(t, want, hex, &why);
    }
    if (found && live) {
        say(t, "I8", hex, why.msg);
    }
    t->files++;
    return ST_OK;
}

static enum status count_files(struct tally *t, struct err *e)
{
    struct arena *a = arena_new(1 << 20);
    struct db_rows rows;
    enum status st = db_query(t->job->db, a,
                              "SELECT count(*), coalesce(sum(bytes), 0)::bigint FROM blob"
                              " WHERE state = 'live'",
                              0, NULL, &rows, e);
    st = st ? st : db_int64(&rows, 0, 0, &t->files_total, e);
    st = st ? st : db_int64(&rows, 0, 1, &t->bytes_total, e);
    arena_free(a);
    t->began_ms = t->said_ms = clock_mono_ms();
    return st;
}

/* A page at a time: a large store has more rows than one result should hold. */
static enum status check_files(struct tally *t, struct err *e)
{
    struct digest last = {{0}};
    bool first = true;
    for (;;) {
        struct arena *a = arena_new((size_t)4 << 20);
        struct db_rows rows = {0};
        const char *argv[] = {db_arg_digest(a, &last), first ? "t" : "f", db_arg_int(a, PAGE)};
        enum status st = db_query(t->job->db, a,
                                  "SELECT digest, bytes FROM blob WHERE state = 'live'"
                                  "   AND (digest > $1 OR $2) ORDER BY digest LIMIT $3",
                                  3, argv, &rows, e);
        for (int i = 0; i < rows.count && !st; i++) {
            int64_t size = 0;
            st = db_digest(&rows, i, 0, &last, e);
            st = st ? st : db_int64(&rows, i, 1, &size, e);
            st = st ? st : check_file(t, &last, size, e);
        }
        bool more = rows.count == PAGE;
        first = false;
        arena_free(a);
        if (st || !more) {
            return st;
        }
    }
}

static enum status say_orphan(void *ctx, const struct blob_entry *f, struct err *e)
{
    (void)e;
    struct tally *t = ctx;
    char what[120];
    char name[340];
    (void)snprintf(name, sizeof(name), "%s%s", f->tmp ? "tmp/" : "", f->name);
    (void)snprintf(what, sizeof(what), "%s (%" PRId64 " bytes, %" PRId64 " h old)",
                   f->strange ? "is none of the store's files"
                   : f->tmp   ? "belongs to no upload under way"
                              : "no row knows it",
                   f->bytes, f->age_s / 3600);
    say(t, "I9", name, what);
    return ST_OK;
}

/* ---- all of it ---- */

static int report(const struct tally *t)
{
    int broken = t->others;
    if (t->progress) {
        (void)fprintf(stderr, "\r\033[K");
    }
    for (int i = 0; i < RULES; i++) {
        broken += t->found[i];
        if (t->found[i]) {
            (void)printf("%-6s broken  %s: %d found\n", rules[i].name, rules[i].holds, t->found[i]);
        } else if (i == 0 && !t->job->acks) {
            (void)printf("%-6s -       %s: not asked; give --acks FILE\n", rules[i].name,
                         rules[i].holds);
        } else {
            (void)printf("%-6s holds   %s\n", rules[i].name, rules[i].holds);
        }
    }
    if (t->job->acks) {
        (void)printf("%" PRId64 " acknowledgements asked about\n", t->acks);
    }
    if (t->job->repair) {
        (void)printf("%d files repaired\n", t->repaired);
    }
    (void)printf("%d violation%s; %" PRId64 " files, %" PRId64 " bytes read\n", broken,
                 broken == 1 ? "" : "s", t->files, t->bytes);
    return broken;
}

enum status check_all(const struct check_job *job, int *broken, struct err *e)
{
    struct tally t = {.job = job};
    struct arena *a = arena_new((size_t)64 << 20);
    enum status st = check_rows(&t, a, e);
    arena_free(a);
    TRY(st);
    if (job->acks) {
        TRY(check_acks(&t, e));
    }
    TRY(count_files(&t, e));
    TRY(check_files(&t, e));
    TRY(db_blob_orphans(job->db, job->blobs, job->orphan_age_s, say_orphan, &t, e));
    *broken = report(&t);
    return ST_OK;
}
