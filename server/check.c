#include "server/check.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "common/mem.h"

enum { READ_SIZE = 1 << 20, PAGE = 500 };

struct tally {
    int broken;
    int64_t files;
    int64_t bytes;
};

static void say(struct tally *t, const char *rule, const char *subject, const char *what)
{
    (void)printf("%s %s: %s\n", rule, subject, what);
    t->broken++;
}

static const char SQL_CHAIN[] =
    "SELECT run_id, id FROM (SELECT e.run_id, e.id, e.chain, event_link(lag(e.chain) OVER"
    "        (PARTITION BY e.run_id ORDER BY e.chain_no), e) AS want"
    "   FROM event e WHERE e.chain IS NOT NULL AND e.run_id IS NOT NULL) x"
    " WHERE chain <> want ORDER BY run_id, id LIMIT 100";

static enum status check_rows(struct db *db, struct arena *a, struct tally *t, struct err *e)
{
    struct db_rows rows;
    TRY(db_exec(db, "SELECT set_config('statement_timeout', '0', false)", 0, NULL, NULL, e));
    TRY(db_query(db, a, "SELECT rule, subject, what FROM invariant_broken ORDER BY 1, 2", 0, NULL,
                 &rows, e));
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

static enum status digest_of(int fd, struct digest *out, int64_t *bytes, struct err *e)
{
    char *block = mem_alloc(READ_SIZE);
    struct sha256 *h = sha256_new();
    ssize_t n = 0;
    *bytes = 0;
    while ((n = read(fd, block, READ_SIZE)) > 0) {
        sha256_add(h, block, (size_t)n);
        *bytes += n;
    }
    sha256_end(h, out);
    sha256_free(h);
    mem_free(block);
    return n < 0 ? err_set(e, ST_IO, "cannot read a blob") : ST_OK;
}

static void check_file(struct blob_store *blobs, const struct digest *want, int64_t size,
                       struct tally *t)
{
    struct err e = {0};
    struct digest got;
    char hex[DIGEST_HEX + 1];
    int fd = -1;
    int64_t bytes = 0;
    digest_hex(want, hex);
    if (blob_open(blobs, want, &fd, &bytes, &e)) {
        say(t, "I8", hex, e.msg);
        return;
    }
    enum status st = digest_of(fd, &got, &bytes, &e);
    (void)close(fd);
    if (st) {
        say(t, "I8", hex, e.msg);
    } else if (bytes != size || !digest_equal(&got, want)) {
        say(t, "I8", hex, "the file's content is not what its name says");
    }
    t->files++;
    t->bytes += bytes;
}

/* A page at a time: a large store has more rows than one result should hold. */
static enum status check_files(struct db *db, struct blob_store *blobs, struct tally *t,
                               struct err *e)
{
    struct digest last = {{0}};
    bool first = true;
    for (;;) {
        struct arena *a = arena_new((size_t)4 << 20);
        struct db_rows rows = {0};
        const char *argv[] = {db_arg_digest(a, &last), first ? "t" : "f", db_arg_int(a, PAGE)};
        enum status st = db_query(db, a,
                                  "SELECT digest, bytes FROM blob WHERE state = 'live'"
                                  "   AND (digest > $1 OR $2) ORDER BY digest LIMIT $3",
                                  3, argv, &rows, e);
        for (int i = 0; i < rows.count && !st; i++) {
            int64_t size = 0;
            st = db_digest(&rows, i, 0, &last, e);
            st = st ? st : db_int64(&rows, i, 1, &size, e);
            if (!st) {
                check_file(blobs, &last, size, t);
            }
        }
        bool more = rows.count == PAGE;
        first = false;
        arena_free(a);
        if (st || !more) {
            return st;
        }
    }
}

enum status check_all(struct db *db, struct blob_store *blobs, int *broken, struct err *e)
{
    struct tally t = {0};
    struct arena *a = arena_new((size_t)64 << 20);
    enum status st = check_rows(db, a, &t, e);
    arena_free(a);
    TRY(st);
    TRY(check_files(db, blobs, &t, e));
    (void)printf("%d violation%s; %" PRId64 " files, %" PRId64 " bytes read\n", t.broken,
                 t.broken == 1 ? "" : "s", t.files, t.bytes);
    *broken = t.broken;
    return ST_OK;
}
