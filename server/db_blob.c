#include "server/db_blob.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/fault.h"
#include "common/log.h"
#include "server/mend.h"

enum {
    PAGE = 200,      // rows of one result
    BATCH = 256,     // names asked about in one statement
    NAME_SIZE = 128, // of a temporary file
    PAGE_ARENA = 4 << 20,
};

/* ---- owning ---- */

static const char SQL_LIVE[] =
    "INSERT INTO blob (digest, bytes) VALUES ($1, $2) ON CONFLICT ON CONSTRAINT blob_pk"
    " DO UPDATE SET state = 'live', used_at = clock_timestamp()";

enum status db_blob_own(struct db *db, struct arena *a, struct blob_store *blobs,
                        const struct digest *d, int64_t bytes, struct err *e)
{
    const char *argv[] = {db_arg_digest(a, d), db_arg_int(a, bytes)};
    TRY(db_exec(db, SQL_LIVE, 2, argv, NULL, e));
    int64_t size = 0;
    TRY(blob_stat(blobs, d, &size, e));
    return size == bytes ? ST_OK : err_set(e, ST_CORRUPT, "a placed file has another size");
}

enum status db_blob_place(struct db *db, struct arena *a, struct blob_store *blobs,
                          const char *tmp_id, const struct digest *d, int64_t bytes, struct err *e)
{
    const char *argv[] = {db_arg_digest(a, d), db_arg_int(a, bytes)};
    TRY(db_exec(db, SQL_LIVE, 2, argv, NULL, e));
    FAULT("place.locked");
    return blob_place(blobs, tmp_id, d, e);
}

/* ---- removing what nobody needs ---- */

static const char SQL_MARK_DEAD[] =
    "UPDATE blob b SET state = 'dead' WHERE b.state = 'live'"
    "   AND b.used_at < clock_timestamp() - interval '1 minute'"
    "   AND (b.used_at < clock_timestamp() - interval '1 day'"
    "        OR EXISTS (SELECT FROM checkpoint WHERE NOT kept AND weights = b.digest)"
    "        OR EXISTS (SELECT FROM checkpoint WHERE NOT kept AND outer_state = b.digest)"
    "        OR EXISTS (SELECT FROM checkpoint WHERE NOT step_kept AND step = b.digest)"
    "        OR EXISTS (SELECT FROM update WHERE NOT kept AND digest = b.digest))"
    "   AND NOT blob_in_use(b.digest)";
static const char SQL_DEAD[] =
    "SELECT digest, bytes FROM blob WHERE state = 'dead' AND digest > $2 ORDER BY digest LIMIT $1";
static const char SQL_LOCK_DEAD[] =
    "SELECT 1 FROM blob WHERE digest = $1 AND state = 'dead' FOR UPDATE";
static const char SQL_IN_USE[] = "SELECT blob_in_use($1)";
static const char SQL_REVIVE[] =
    "UPDATE blob SET state = 'live', used_at = clock_timestamp() WHERE digest = $1";
static const char SQL_DELETE[] = "DELETE FROM blob WHERE digest = $1";

static const char SQL_IS_LIVE[] = "SELECT 1 FROM blob WHERE digest = $1 AND state = 'live'";
/*
 * Where there is no row to lock one is made: an insert waits for another one of the same digest, be
 * it that of whoever places this content right now, and that one waits for ours.
 */
static const char SQL_CLAIM[] = "INSERT INTO blob (digest, bytes, state) VALUES ($1, $2, 'dead')"
                                " ON CONFLICT ON CONSTRAINT blob_pk DO NOTHING";

struct removal {
    struct blob_store *blobs;
    struct digest digest;
    int64_t bytes;
    char aside[BLOB_ASIDE_SIZE]; // where the file is; "": where it was
    bool taken;                  // it was taken away, or that was tried
    bool removed;
};

/* A try before, or a process that died, has set the file aside: whoever has a row gets it back. */
static enum status settle_aside(struct db *db, struct arena *a, struct removal *r, struct err *e)
{
    int64_t claimed = 0;
    const char *argv[] = {db_arg_digest(a, &r->digest), db_arg_int(a, r->bytes)};
    TRY(db_exec(db, SQL_CLAIM, 2, argv, &claimed, e));
    r->removed = claimed > 0;
    if (claimed) {
        return db_exec(db, SQL_DELETE, 1, argv, NULL, e); // it stays aside, and goes after COMMIT
    }
    TRY(blob_put_back(r->blobs, r->aside, &r->digest, e));
    r->aside[0] = '\0';
    return ST_OK;
}

static enum status take_away(struct removal *r, struct err *e)
{
    r->taken = true;
    return blob_set_aside(r->blobs, &r->digest, r->aside, e);
}

/* Only a COMMIT that is known to have succeeded removes; putting back what nobody needs is
 * harmless: it is found again as a file that no row knows. */
static enum status removal_run(struct db *db, db_tx_fn *fn, struct removal *r, struct err *e)
{
    struct err why = {0};
    enum status st = db_tx(db, fn, r, e);
    if (!st) {
        blob_tmp_remove(r->blobs, r->aside);
        return ST_OK;
    }
    if (r->aside[0] && blob_put_back(r->blobs, r->aside, &r->digest, &why)) {
        log_warn("%s; the next collection tries again", why.msg);
    }
    if (r->taken && blob_is_remote(r->blobs)) {
        struct arena *a = arena_new(PAGE_ARENA);
        struct db_rows rows = {0};
        const char *argv[] = {db_arg_digest(a, &r->digest)};
        if (db_query(db, a, SQL_IS_LIVE, 1, argv, &rows, &why) == ST_OK && rows.count > 0) {
            mend_want(&r->digest);
        }
        arena_free(a);
    }
    return st;
}

/*
 * The question is a statement of its own, after the lock: what was committed while we waited for
 * the lock is seen by it, and nothing can come after it until we are done.
 */
static enum status remove_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    struct removal *r = ctx;
    struct db_rows rows;
    bool in_use = true;
    const char *argv[] = {db_arg_digest(a, &r->digest)};
    if (r->aside[0]) {
        return settle_aside(db, a, r, e);
    }
    FAULT("gc.marked");
    TRY(db_query(db, a, SQL_LOCK_DEAD, 1, argv, &rows, e));
    if (rows.count == 0) {
        return ST_OK; // somebody wants it, or has removed it
    }
    FAULT("gc.locked");
    TRY(db_query(db, a, SQL_IN_USE, 1, argv, &rows, e));
    TRY(db_bool(&rows, 0, 0, &in_use, e));
    if (in_use) {
        return db_exec(db, SQL_REVIVE, 1, argv, NULL, e);
    }
    TRY(db_exec(db, SQL_DELETE, 1, argv, NULL, e)); // a reference of any kind refuses this
    FAULT("gc.deleted");
    TRY(take_away(r, e));
    FAULT("gc.removed");
    return ST_OK;
}

static enum status collect_page(struct db *db, struct arena *a, struct blob_store *blobs,
                                struct digest *after, bool *more, struct err *e)
{
    struct db_rows rows;
    const char *argv[] = {db_arg_int(a, PAGE), db_arg_digest(a, after)};
    TRY(db_query(db, a, SQL_DEAD, 2, argv, &rows, e));
    *more = rows.count == PAGE;
    for (int i = 0; i < rows.count; i++) {
        struct removal r = {.blobs = blobs};
        struct err why = {0};
        TRY(db_digest(&rows, i, 0, &r.digest, e));
        TRY(db_int64(&rows, i, 1, &r.bytes, e));
        *after = r.digest;
        enum status st = removal_run(db, remove_tx, &r, &why);
        if (st == ST_RETRY) {
            return err_set(e, st, "%s", why.msg);
        }
        if (st) { // one that cannot be removed must not keep the others
            char hex[DIGEST_HEX + 1];
            digest_hex(&r.digest, hex);
            log_warn("the unused file %.12s stays for now: %s", hex, why.msg);
        }
    }
    return ST_OK;
}

struct leftovers {
    struct db *db;
    struct blob_store *blobs;
};

/* Who set it aside may be at work yet: then the row's lock makes us wait for it. */
static enum status settle_one(void *ctx, const struct blob_entry *f, struct err *e)
{
    const struct leftovers *l = ctx;
    struct removal r = {.blobs = l->blobs, .digest = f->digest, .bytes = f->bytes};
    struct err why = {0};
    (void)snprintf(r.aside, sizeof(r.aside), "%.119s", f->name);
    enum status st = db_tx(l->db, remove_tx, &r, &why);
    if (!st) {
        blob_tmp_remove(l->blobs, r.aside);
    } else if (st != ST_RETRY) {
        log_warn("tmp/%s stays for now: %s", f->name, why.msg);
    }
    return st == ST_RETRY ? err_set(e, st, "%s", why.msg) : ST_OK;
}

enum status db_blob_collect(struct db *db, struct blob_store *blobs, struct err *e)
{
    struct digest after = {{0}};
    bool more = true;
    struct leftovers l = {db, blobs};
    TRY(blob_walk_aside(blobs, settle_one, &l, e));
    TRY(db_exec(db, SQL_MARK_DEAD, 0, NULL, NULL, e));
    while (more) {
        struct arena *a = arena_new(PAGE_ARENA);
        enum status st = collect_page(db, a, blobs, &after, &more, e);
        arena_free(a);
        TRY(st);
    }
    return ST_OK;
}

/* ---- files without a row ---- */

static const char SQL_UNKNOWN_BLOBS[] =
    "SELECT d.n - 1 FROM unnest($1::bytea[]) WITH ORDINALITY AS d(digest, n)"
    " WHERE NOT EXISTS (SELECT FROM blob b WHERE b.digest = d.digest)";
// Only an open upload may still be written; a checkpoint's file is younger than a day.
static const char SQL_UNKNOWN_TMP[] =
    "SELECT t.n - 1 FROM unnest($1::text[]) WITH ORDINALITY AS t(id, n)"
    " WHERE NOT EXISTS (SELECT FROM upload u WHERE u.id = t.id AND u.state = 'open')";

/* Old files of one kind, until there are enough of them to be asked about. */
struct batch {
    struct blob_entry entries[BATCH];
    char names[BATCH][NAME_SIZE];
    int count;
};

struct search {
    struct db *db;
    int64_t age_s;
    db_orphan_fn *fn;
    void *ctx;
    struct batch blobs, tmp;
};

static enum status ask(struct search *s, struct batch *b, bool tmp, struct err *e)
{
    struct arena *a = arena_new(PAGE_ARENA);
    const char *items[BATCH];
    struct db_rows rows = {0};
    for (int i = 0; i < b->count; i++) {
        items[i] = tmp ? b->names[i] : db_arg_digest(a, &b->entries[i].digest);
    }
    const char *argv[] = {db_arg_array(a, items, b->count)};
    enum status st =
        b->count ? db_query(s->db, a, tmp ? SQL_UNKNOWN_TMP : SQL_UNKNOWN_BLOBS, 1, argv, &rows, e)
                 : ST_OK;
    for (int i = 0; i < rows.count && !st; i++) {
        int64_t n = 0;
        st = db_int64(&rows, i, 0, &n, e);
        if (!st) {
            b->entries[n].name = b->names[n];
            st = s->fn(s->ctx, &b->entries[n], e);
        }
    }
    b->count = 0;
    arena_free(a);
    return st;
}

static enum status on_entry(void *ctx, const struct blob_entry *f, struct err *e)
{
    struct search *s = ctx;
    if (f->age_s < s->age_s) {
        return ST_OK;
    }
    if (f->strange || (f->tmp && strlen(f->name) >= NAME_SIZE)) {
        return s->fn(s->ctx, f, e);
    }
    struct batch *b = f->tmp ? &s->tmp : &s->blobs;
    b->entries[b->count] = *f;
    (void)snprintf(b->names[b->count], NAME_SIZE, "%.127s", f->name);
    b->count++;
    return b->count == BATCH ? ask(s, b, f->tmp, e) : ST_OK;
}

enum status db_blob_orphans(struct db *db, struct blob_store *blobs, int64_t age_s,
                            db_orphan_fn *fn, void *ctx, struct err *e)
{
    struct arena *a = arena_new(PAGE_ARENA);
    struct search *s = arena_alloc(a, sizeof(*s));
    *s = (struct search){.db = db, .age_s = age_s, .fn = fn, .ctx = ctx};
    enum status st = blob_walk(blobs, on_entry, s, e);
    st = st ? st : ask(s, &s->blobs, false, e);
    st = st ? st : ask(s, &s->tmp, true, e);
    arena_free(a);
    return st;
}

static enum status reap_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    struct removal *r = ctx;
    int64_t claimed = 0;
    const char *argv[] = {db_arg_digest(a, &r->digest), db_arg_int(a, r->bytes)};
    r->removed = false;
    if (r->aside[0]) {
        return settle_aside(db, a, r, e);
    }
    TRY(db_exec(db, SQL_CLAIM, 2, argv, &claimed, e));
    if (!claimed) {
        return ST_OK;
    }
    FAULT("reap.claimed");
    TRY(db_exec(db, SQL_DELETE, 1, argv, NULL, e)); // a reference without its row refuses this
    TRY(take_away(r, e));
    r->removed = true;
    return ST_OK;
}

/*
 * What is older than the database was never its own: an empty database that was given the store of
 * another one, by mistake or to be restored into, must not take that for rubbish. A bucket knows
 * times to the second: what is of the database's first one counts as older.
 */
static const char SQL_AGE[] =
    "SELECT floor(extract(epoch FROM clock_timestamp() - min(applied_at)))::bigint"
    " FROM migration";

struct reaping {
    struct db *db;
    struct blob_store *blobs;
    int64_t age_s; // of the database
    int removed, older;
};

static enum status age_of_database(struct db *db, int64_t *age_s, struct err *e)
{
    struct arena *a = arena_new(PAGE_ARENA);
    struct db_rows rows;
    enum status st = db_query(db, a, SQL_AGE, 0, NULL, &rows, e);
    st = st ? st : db_int64(&rows, 0, 0, age_s, e);
    arena_free(a);
    return st;
}

static enum status reap_one(void *ctx, const struct blob_entry *f, struct err *e)
{
    struct reaping *w = ctx;
    struct digest whose;
    if (f->tmp && blob_is_aside(f->name, &whose)) {
        return ST_OK; // the next collection's matter, which asks for its row
    }
    if (f->tmp) {
        blob_tmp_remove(w->blobs, f->name);
        w->removed++;
        return ST_OK;
    }
    if (f->strange) {
        return ST_OK; // not ours to remove; the check tells
    }
    if (f->age_s >= w->age_s) {
        w->older++;
        return ST_OK;
    }
    struct removal r = {.blobs = w->blobs, .digest = f->digest, .bytes = f->bytes};
    struct err why = {0};
    enum status st = removal_run(w->db, reap_tx, &r, &why);
    if (st && st != ST_RETRY) { // one that cannot be removed must not keep the others
        log_warn("%s stays for now: %s", f->name, why.msg);
        st = ST_OK;
    }
    w->removed += !st && r.removed ? 1 : 0;
    return st ? err_set(e, st, "%s", why.msg) : ST_OK;
}

enum status db_blob_reap(struct db *db, struct blob_store *blobs, int64_t age_s, int *removed,
                         struct err *e)
{
    struct reaping w = {.db = db, .blobs = blobs};
    TRY(age_of_database(db, &w.age_s, e));
    enum status st = db_blob_orphans(db, blobs, age_s, reap_one, &w, e);
    *removed = w.removed;
    if (w.older > 0) {
        log_warn("%d files that no row knows are older than the database and stay; is it the right "
                 "one?",
                 w.older);
    }
    return st;
}

/* ---- uploads whose bytes are gone ---- */

static const char SQL_OPEN_UPLOADS[] =
    "SELECT id, received, sha256, bytes FROM upload WHERE state = 'open' AND received > 0"
    "   AND id > $1 ORDER BY id LIMIT $2";
static const char SQL_LOSE[] =
    "WITH u AS (UPDATE upload SET state = 'expired', detail = 'its file was lost'"
    "     WHERE id = $1 AND state = 'open' RETURNING task_id, silo_id, received)"
    " INSERT INTO event (kind, run_id, round, slot, silo_id, message, detail)"
    " SELECT 'upload_lost', t.run_id, t.number, t.slot, u.silo_id,"
    "        format('the %s bytes that %s had sent for round %s are no longer on the disk; it sends"
    " them again', u.received, s.name, t.number), jsonb_build_object('task', t.id)"
    "   FROM u JOIN task t ON t.id = u.task_id JOIN silo s ON s.id = u.silo_id";

static enum status look_at_upload(struct db *db, struct blob_store *blobs,
                                  const struct db_rows *rows, int i, int *lost, struct err *e)
{
    const char *id = db_text(rows, i, 0);
    int64_t received = 0;
    int64_t bytes = 0;
    int64_t there = 0;
    struct digest d;
    TRY(db_int64(rows, i, 1, &received, e));
    TRY(db_digest(rows, i, 2, &d, e));
    TRY(db_int64(rows, i, 3, &bytes, e));
    if (blob_tmp_size(blobs, id, &there, NULL) == ST_OK && there >= received) {
        return ST_OK;
    }
    // It may have got its name already, by a server that died before its commit.
    enum status st = received == bytes ? blob_stat(blobs, &d, &there, e) : ST_NOT_FOUND;
    if (st && st != ST_NOT_FOUND) {
        return st;
    }
    if (!st && there == bytes) {
        return ST_OK;
    }
    int64_t hit = 0;
    TRY(db_exec(db, SQL_LOSE, 1, &id, &hit, e));
    log_warn("the file of upload %s is lost: its silo sends it again", id);
    blob_tmp_remove(blobs, id);
    *lost += hit > 0 ? 1 : 0;
    return ST_OK;
}

enum status db_blob_lost_uploads(struct db *db, struct blob_store *blobs, int *lost, struct err *e)
{
    char after[40] = "";
    enum status st = ST_OK;
    bool more = true;
    *lost = 0;
    while (more && !st) {
        struct arena *a = arena_new(PAGE_ARENA);
        struct db_rows rows = {0};
        const char *argv[] = {after, db_arg_int(a, BATCH)};
        st = db_query(db, a, SQL_OPEN_UPLOADS, 2, argv, &rows, e);
        for (int i = 0; i < rows.count && !st; i++) {
            st = look_at_upload(db, blobs, &rows, i, lost, e);
        }
        more = rows.count == BATCH;
        if (rows.count > 0) {
            (void)snprintf(after, sizeof(after), "%s", db_text(&rows, rows.count - 1, 0));
        }
        arena_free(a);
    }
    return st;
}
