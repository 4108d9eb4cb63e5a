#include "server/db_silo.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    SEEN_EVERY_S = 5,   // polls come each second while parked; the row need not
    OTHER_AGENT_S = 60, // two agents heard of within this are two at once
};

/* ---- hello and polls ---- */

struct hello {
    const char *silo_id;
    const struct silo_hello *h;
};

static enum status silo_event(struct db *db, struct arena *a, const char *kind, const char *silo_id,
                              const char *message, struct err *e)
{
    const char *argv[] = {kind, silo_id, message};
    (void)a;
    return db_exec(db, "INSERT INTO event (kind, silo_id, message) VALUES ($1, $2, $3)", 3, argv,
                   NULL, e);
}

static enum status hello_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    const struct hello *c = ctx;
    const struct silo_hello *h = c->h;
    struct db_rows rows;
    const char *find[] = {c->silo_id, h->agent, db_arg_int(a, OTHER_AGENT_S)};
    TRY(db_query(db, a,
                 "SELECT name, gone, coalesce(agent <> $2 AND NOT gone AND"
                 "       seen_at > clock_timestamp() - make_interval(secs => $3), false)"
                 "  FROM silo WHERE id = $1 FOR NO KEY UPDATE",
                 3, find, &rows, e));
    if (rows.count == 0) {
        return err_set(e, ST_NOT_FOUND, "there is no such silo");
    }
    const char *name = db_text(&rows, 0, 0);
    bool gone = false;
    bool other = false;
    TRY(db_bool(&rows, 0, 1, &gone, e));
    TRY(db_bool(&rows, 0, 2, &other, e));
    const char *argv[] = {c->silo_id,
                          h->agent,
                          h->version,
                          h->device,
                          isnan(h->tokens_per_s) ? NULL : db_arg_double(a, h->tokens_per_s),
                          h->tokenizer_sha256,
                          db_arg_int(a, h->train_tokens),
                          db_arg_int(a, h->heldout_tokens)};
    TRY(db_exec(db,
                "UPDATE silo SET agent = $2, version = $3, device = $4,"
                "       tokens_per_s = coalesce($5, tokens_per_s), tokenizer_sha256 = $6,"
                "       train_tokens = $7, heldout_tokens = $8, phase = 'waiting',"
                "       seen_at = clock_timestamp(), gone = false"
                " WHERE id = $1",
                8, argv, NULL, e));
    if (gone) {
        TRY(silo_event(db, a, "silo_seen", c->silo_id,
                       arena_fmt(a, "%s is here with %s", name, h->device), e));
    }
    if (other) {
        TRY(silo_event(db, a, "silo_agents", c->silo_id,
                       arena_fmt(a, "%s was started anew, or two agents use its token", name), e));
    }
    return ST_OK;
}

enum status db_silo_hello(struct db *db, const char *silo_id, const struct silo_hello *h,
                          struct err *e)
{
    struct hello c = {silo_id, h};
    return db_tx(db, hello_tx, &c, e);
}

struct seen {
    const char *silo_id, *agent;
};

static enum status seen_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    const struct seen *s = ctx;
    struct db_rows rows;
    const char *argv[] = {s->silo_id, s->agent, db_arg_int(a, SEEN_EVERY_S)};
    TRY(db_query(db, a,
                 "UPDATE silo n SET seen_at = clock_timestamp(), gone = false, agent = $2,"
                 "       phase = CASE WHEN EXISTS (SELECT FROM task t WHERE t.silo_id = n.id"
                 "                                  AND t.state = 'leased') THEN n.phase"
                 "                    ELSE 'waiting' END"
                 "  FROM silo o WHERE o.id = n.id AND n.id = $1 AND (n.gone OR n.seen_at IS NULL"
                 "       OR n.seen_at < clock_timestamp() - make_interval(secs => $3)"
                 // Whoever polls has nothing in hand: the page must not say otherwise for long.
                 "       OR (n.phase <> 'waiting' AND NOT EXISTS (SELECT FROM task t"
                 "           WHERE t.silo_id = n.id AND t.state = 'leased')))"
                 " RETURNING o.gone, n.name",
                 3, argv, &rows, e));
    bool gone = false;
    if (rows.count > 0) {
        TRY(db_bool(&rows, 0, 0, &gone, e));
    }
    return gone ? silo_event(db, a, "silo_seen", s->silo_id,
                             arena_fmt(a, "%s is here again", db_text(&rows, 0, 1)), e)
                : ST_OK;
}

enum status db_silo_seen(struct db *db, const char *silo_id, const char *agent, struct err *e)
{
    struct seen s = {silo_id, agent};
    return db_tx(db, seen_tx, &s, e);
}

/* ---- join ---- */

struct join {
    const char *token_id, *name;
    const struct digest *hash;
    char silo_id[ID_LEN + 1];
    char new_token_id[ID_LEN + 1];
    struct refusal no;
};

/*
 * The silo of that name, made when there is none. A join token says whose silo it makes: an admin
 * gave it that name. For a silo that is there already it is a new key, and the old ones end.
 */
static enum status join_silo(struct db *db, struct arena *a, struct join *j, bool *made,
                             struct err *e)
{
    struct db_rows rows;
    const char *find[] = {j->name};
    TRY(db_query(db, a, "SELECT id, state FROM silo WHERE name = $1 FOR NO KEY UPDATE", 1, find,
                 &rows, e));
    *made = rows.count == 0;
    if (*made) {
        id_new('s', j->silo_id);
        const char *argv[] = {j->silo_id, j->name};
        enum status st =
            db_exec(db, "INSERT INTO silo (id, name) VALUES ($1, $2)", 2, argv, NULL, e);
        return st == ST_CONFLICT ? err_set(e, ST_RETRY, "the silo is being made") : st;
    }
    (void)snprintf(j->silo_id, sizeof(j->silo_id), "%s", db_text(&rows, 0, 0));
    if (strcmp(db_text(&rows, 0, 1), "revoked") == 0) {
        refuse(&j->no, 409, "SILO_REVOKED",
               "the silo '%s' was revoked; a join token with another name makes a new one",
               j->name);
    }
    return ST_OK;
}

/* May this token still be exchanged? It may while nobody has used what it was exchanged for. */
static enum status join_check(struct db *db, struct arena *a, struct join *j, struct err *e)
{
    struct db_rows rows;
    const char *argv[] = {j->token_id};
    TRY(db_query(db, a,
                 "SELECT name, silo_id, coalesce(revoked_at <= clock_timestamp()"
                 "       OR expires_at <= clock_timestamp(), false)"
                 "  FROM token WHERE id = $1 AND role = 'join' FOR NO KEY UPDATE",
                 1, argv, &rows, e));
    bool over = true;
    if (rows.count > 0) {
        TRY(db_bool(&rows, 0, 2, &over, e));
    }
    if (over) {
        refuse(&j->no, 401, "UNAUTHENTICATED", "the join token is revoked or expired");
        return ST_OK;
    }
    const char *name = db_text(&rows, 0, 0);
    if (strcmp(name, j->name) != 0) {
        refuse(&j->no, 409, "NAME_MISMATCH", "the join token was made for '%s'", name);
        return ST_OK;
    }
    const char *silo_id = db_text(&rows, 0, 1);
    if (!silo_id) {
        return ST_OK;
    }
    // Revoked or not: who revokes a silo's token does not mean its old join token to open the door.
    const char *used[] = {silo_id, j->token_id};
    TRY(db_query(
        db, a,
        "SELECT 1 FROM token t JOIN token k ON k.id = $2 WHERE t.silo_id = $1"
        "    AND t.role = 'silo' AND t.used_at IS NOT NULL AND t.created_at >= k.created_at"
        " LIMIT 1",
        2, used, &rows, e));
    if (rows.count > 0) {
        refuse(&j->no, 409, "TOKEN_USED", "the join token was used by '%s'", name);
    }
    return ST_OK;
}

static enum status join_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    struct join *j = ctx;
    bool made = false;
    j->no = (struct refusal){0};
    TRY(join_check(db, a, j, e));
    if (j->no.code) {
        return ST_OK;
    }
    TRY(join_silo(db, a, j, &made, e));
    if (j->no.code) {
        return ST_OK;
    }
    const char *old[] = {j->silo_id, j->new_token_id};
    TRY(db_exec(db,
                "UPDATE token SET revoked_at = clock_timestamp()"
                " WHERE silo_id = $1 AND id <> $2 AND role = 'silo' AND revoked_at IS NULL",
                2, old, NULL, e));
    const char *token[] = {j->new_token_id, db_arg_digest(a, j->hash), j->name, j->silo_id};
    TRY(db_exec(db,
                "INSERT INTO token (id, hash, role, name, silo_id) VALUES ($1, $2, 'silo', $3, $4)"
                " ON CONFLICT (id) DO NOTHING", // a commit whose answer was lost
                4, token, NULL, e));
    const char *mark[] = {j->token_id, j->silo_id};
    TRY(db_exec(db, "UPDATE token SET silo_id = $2 WHERE id = $1", 2, mark, NULL, e));
    return silo_event(db, a, "silo_joined", j->silo_id,
                      arena_fmt(a, made ? "%s joined" : "%s joined anew", j->name), e);
}

enum status db_silo_join(struct db *db, const char *join_token_id, const char *name,
                         const struct digest *token_hash, char *silo_id, struct refusal *no,
                         struct err *e)
{
    struct join j = {.token_id = join_token_id, .name = name, .hash = token_hash};
    id_new('k', j.new_token_id);
    TRY(db_tx(db, join_tx, &j, e));
    (void)snprintf(silo_id, ID_LEN + 1, "%s", j.silo_id);
    *no = j.no;
    return ST_OK;
}

/* ---- what became of a run ---- */

static const char SQL_RUN[] =
    "SELECT r.state, coalesce(r.finished_at < clock_timestamp() - make_interval(secs => $3), false)"
    "  FROM run r JOIN run_silo x ON x.run_id = r.id AND x.silo_id = $2 WHERE r.id = $1";

enum status db_silo_run(struct db *db, struct arena *a, const char *silo_id, const char *run_id,
                        const char **state, bool *forget, struct err *e)
{
    struct db_rows rows;
    const char *argv[] = {run_id, silo_id, db_arg_int(a, SILO_RUN_KEEP_S)};
    TRY(db_query(db, a, SQL_RUN, 3, argv, &rows, e));
    if (rows.count == 0) {
        return err_set(e, ST_NOT_FOUND, "this silo takes part in no such run");
    }
    TRY(db_bool(&rows, 0, 1, forget, e));
    *state = db_text(&rows, 0, 0);
    return ST_OK;
}

/* ---- files and traffic ---- */

enum status db_traffic_add(struct db *db, const char *run_id, int32_t number, const char *silo_id,
                           int64_t upload_bytes, int64_t download_bytes, struct err *e)
{
    struct arena *a = arena_new(1 << 16);
    const char *argv[] = {run_id, db_arg_int(a, number), silo_id, db_arg_int(a, upload_bytes),
                          db_arg_int(a, download_bytes)};
    enum status st =
        db_exec(db,
                "WITH of_day AS ("
                " INSERT INTO traffic_day AS t (silo_id, day, upload_bytes, download_bytes)"
                " VALUES ($3, today(), $4, $5) ON CONFLICT ON CONSTRAINT traffic_day_pk DO UPDATE"
                "    SET upload_bytes = t.upload_bytes + excluded.upload_bytes,"
                "        download_bytes = t.download_bytes + excluded.download_bytes"
                ") INSERT INTO traffic AS t (run_id, number, silo_id, upload_bytes, download_bytes)"
                " VALUES ($1, $2, $3, $4, $5) ON CONFLICT ON CONSTRAINT traffic_pk DO UPDATE"
                "    SET upload_bytes = t.upload_bytes + excluded.upload_bytes,"
                "        download_bytes = t.download_bytes + excluded.download_bytes",
                5, argv, NULL, e);
    arena_free(a);
    return st;
}

/* The task at hand says what a download is for; without one, the newest checkpoint that is this
 * file, or that it leads to: a step may be one of a chain to the task's base. */
static const char SQL_BLOB[] =
    "SELECT c.run_id, coalesce(t.number, c.number)"
    "  FROM checkpoint c"
    "  JOIN run_silo x ON x.run_id = c.run_id AND x.silo_id = $1"
    "  LEFT JOIN task t ON (t.run_id, t.silo_id, t.state) = (c.run_id, $1, 'leased')"
    "        AND (t.base = c.number OR (c.kept_step = $2 AND t.base > c.number))"
    " WHERE c.kept_weights = $2 OR c.kept_step = $2"
    " ORDER BY t.number IS NULL, c.number DESC LIMIT 1";

enum status db_silo_blob(struct db *db, const char *silo_id, const struct digest *d, char *run_id,
                         int32_t *number, struct err *e)
{
    struct arena *a = arena_new(1 << 20);
    struct db_rows rows;
    const char *argv[] = {silo_id, db_arg_digest(a, d)};
    enum status st = db_query(db, a, SQL_BLOB, 2, argv, &rows, e);
    if (!st && rows.count == 0) {
        st = err_set(e, ST_NOT_FOUND, "no run that this silo takes part in has such a file");
    }
    if (!st) {
        st = db_int32(&rows, 0, 1, number, e);
    }
    if (!st) {
        (void)snprintf(run_id, ID_LEN + 1, "%s", db_text(&rows, 0, 0));
    }
    arena_free(a);
    return st;
}
