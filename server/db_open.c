/*
 * db_open.c - a round opens: who may have a seat, the draw, the seats and what each is to do.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/fault.h"
#include "common/id.h"
#include "common/limits.h"
#include "server/budget.h"
#include "server/db_event.h"
#include "server/db_round.h"
#include "server/db_run.h"
#include "server/deadline.h"
#include "server/round.h"
#include "server/sampling.h"
#include "server/seat.h"

struct seated {
    const char *silo_id;
    const char *name;
    const char *carried; // id of the sound update of the attempt before, or NULL
    const char *task_id;
    double speed; // tokens/s in this run's newest rounds; 0 when not known
};

struct opening {
    struct arena *a;
    const struct run_row *run;
    const char *round_id;
    int32_t number;
    int32_t attempt;
    double waited_s;
    int eligible;
    int recallable;
    struct seated *silos; // eligible ones, by name until they are drawn
    int seats;
    double fastest; // of the seated, tokens/s
};

static const char SQL_PENDING[] =
    "SELECT q.id, q.number, q.attempt, extract(epoch FROM clock_timestamp() - "
    "greatest(q.created_at,"
    "       (SELECT min(started_at) FROM server_process"
    "         WHERE seen_at > clock_timestamp() - interval '30 seconds')))"
    "  FROM round q WHERE q.run_id = $1 AND q.state = 'pending' FOR NO KEY UPDATE";

/* What the rule of who may get a seat wants to know of each silo. */
static const char SQL_SILOS[] =
    "SELECT s.id, s.name, c.id, s.state = 'active', s.agent IS NOT NULL,"
    "       coalesce(s.tokenizer_sha256, '') = coalesce(r.spec -> 'tokenizer' ->> 'sha256', ''),"
    "       coalesce(x.aside_rounds, 0),"
    "       coalesce(extract(epoch FROM clock_timestamp() - s.seen_at)::double precision, "
    "'infinity')"
    "  FROM silo s"
    "  JOIN run r ON r.id = $1"
    "  LEFT JOIN run_silo x ON (x.run_id, x.silo_id) = (r.id, s.id)"
    "  LEFT JOIN LATERAL (SELECT u.id FROM update u JOIN round p ON p.id = u.round_id"
    "      WHERE p.run_id = r.id AND p.number = $2 AND p.attempt = $3::integer - 1"
    "        AND u.silo_id = s.id AND u.state = 'accepted' AND u.kept) c ON true"
    " WHERE c.id IS NOT NULL OR s.state = 'active'"
    " ORDER BY s.name COLLATE \"C\"";

static enum status read_silo(const struct db_rows *rows, int i, struct round_silo *out,
                             struct err *e)
{
    out->carried = !db_is_null(rows, i, 2);
    TRY(db_bool(rows, i, 3, &out->active, e));
    TRY(db_bool(rows, i, 4, &out->introduced, e));
    TRY(db_bool(rows, i, 5, &out->tokens_fit, e));
    TRY(db_int32(rows, i, 6, &out->aside_rounds, e));
    return db_double(rows, i, 7, &out->silent_s, e);
}

/* The eligible silos by name; with recall those too that sit out. */
static enum status read_eligible(struct db *db, struct opening *o, bool recall, struct err *e)
{
    struct db_rows rows;
    const char *argv[] = {o->run->id, db_arg_int(o->a, o->number), db_arg_int(o->a, o->attempt)};
    TRY(db_query(db, o->a, SQL_SILOS, 3, argv, &rows, e));
    o->silos = arena_alloc(o->a, (size_t)(rows.count + 1) * sizeof(*o->silos));
    o->eligible = 0;
    o->recallable = 0;
    for (int i = 0; i < rows.count && o->recallable < LIMIT_SILOS; i++) {
        struct round_silo s = {0};
        TRY(read_silo(&rows, i, &s, e));
        o->recallable += round_eligible(&s, true);
        if (!round_eligible(&s, recall)) {
            continue;
        }
        char id[ID_LEN + 1];
        id_new('t', id);
        o->silos[o->eligible++] = (struct seated){.silo_id = db_text(&rows, i, 0),
                                                  .name = db_text(&rows, i, 1),
                                                  .carried = db_text(&rows, i, 2),
                                                  .task_id = arena_fmt(o->a, "%s", id)};
    }
    return ST_OK;
}

/* Puts the silos into the order of the draw, those with a seat before the spares. */
static void draw(struct opening *o)
{
    size_t n = (size_t)o->eligible;
    struct sampled *order = arena_alloc(o->a, (n + 1) * sizeof(*order));
    struct seated *drawn = arena_alloc(o->a, (n + 1) * sizeof(*drawn));
    for (int i = 0; i < o->eligible; i++) {
        order[i] = (struct sampled){o->silos[i].name, i, o->silos[i].carried != NULL};
    }
    sampling_seats(o->run->spec.seed, o->number, order, o->eligible, o->seats);
    for (size_t i = 0; i < n; i++) {
        drawn[i] = o->silos[order[i].index];
    }
    o->silos = drawn;
}

static enum status say_waiting(struct db *db, const struct opening *o, struct err *e)
{
    int wanted = o->run->spec.federation.silos_per_round;
    const char *text = arena_fmt(o->a, "%d more silo%s (%d of %d are here)", wanted - o->eligible,
                                 wanted - o->eligible == 1 ? "" : "s", o->eligible, wanted);
    const char *argv[] = {o->run->id, text};
    return db_exec(db,
                   "UPDATE run SET waiting_for = $2"
                   " WHERE id = $1 AND waiting_for IS DISTINCT FROM $2",
                   2, argv, NULL, e);
}

/* Seconds per step of the accepted tasks of the last rounds. */
static const char SQL_SAMPLES[] =
    "SELECT extract(epoch FROM l.ended_at - l.claimed_at) / greatest(t.steps, 1)"
    "  FROM round q"
    "  JOIN update u ON u.round_id = q.id AND u.state = 'accepted' AND u.carried_from IS NULL"
    "  JOIN lease l ON (l.task_id, l.epoch) = (u.task_id, u.lease_epoch)"
    "  JOIN task t ON t.id = u.task_id"
    " WHERE q.run_id = $1 AND q.number BETWEEN $2::integer - $3 AND $2";

enum status db_round_estimate(struct db *db, struct arena *a, const char *run_id, int32_t number,
                              struct deadline_estimate *out, struct err *e)
{
    struct db_rows rows;
    const char *argv[] = {run_id, db_arg_int(a, number), db_arg_int(a, DEADLINE_ROUNDS)};
    TRY(db_query(db, a, SQL_SAMPLES, 3, argv, &rows, e));
    double *v = arena_alloc(a, (size_t)(rows.count + 1) * sizeof(*v));
    for (int i = 0; i < rows.count; i++) {
        TRY(db_double(&rows, i, 0, &v[i], e));
    }
    *out = deadline_estimate(v, rows.count);
    return ST_OK;
}

static const char SQL_OPEN[] =
    "UPDATE round SET state = 'open', eligible = $2, silos_expected = $3,"
    "       quorum = $4, opened_at = clock_timestamp(),"
    "       deadline = clock_timestamp() + make_interval(secs => $5),"
    "       cap_at = clock_timestamp() + make_interval(secs => $6) + interval '1 millisecond'"
    " WHERE id = $1";

static const char SQL_SEATS[] =
    "INSERT INTO task (id, kind, run_id, round_id, number, slot, silo_id, steps, plan_tokens, "
    "open_at)"
    " SELECT s.id, 'train', $1, $2, $3, s.place - 1, s.silo_id, s.steps, s.tokens,"
    "        clock_timestamp() + make_interval(secs => $8)"
    "   FROM unnest($4::text[], $5::text[], $6::integer[], $7::bigint[])"
    "        WITH ORDINALITY AS s (id, silo_id, steps, tokens, place)";

/* A seat whose update came in the attempt before: held and done in this transaction. */
static const char SQL_CARRY_LEASE[] =
    "INSERT INTO lease (task_id, epoch, silo_id, agent, claimed_at)"
    " SELECT $1, 1, l.silo_id, l.agent, l.claimed_at"
    "   FROM update u JOIN lease l ON (l.task_id, l.epoch) = (u.task_id, u.lease_epoch)"
    "  WHERE u.id = $2";
static const char SQL_CARRY_UPDATE[] =
    "WITH n AS (INSERT INTO update (round_id, slot, task_id, silo_id, lease_epoch, carried_from,"
    "               digest, bytes, codec, tokens, steps, train_loss, codec_error,"
    "               residual_ratio, fallback_share)"
    "           SELECT $3, $4, $1, u.silo_id, 1, u.id, u.digest, u.bytes, u.codec, u.tokens,"
    "                  u.steps, u.train_loss, u.codec_error, u.residual_ratio,"
    "                  u.fallback_share FROM update u WHERE u.id = $2"
    "           RETURNING id, silo_id)"
    " INSERT INTO event (kind, run_id, round, slot, silo_id, update_id, message, detail)"
    " SELECT 'update_accepted', $5, $6, $4, n.silo_id, n.id,"
    "        'an update was carried over from the attempt before', '{\"carried\": true}' FROM n";

static enum status carry(struct db *db, const struct opening *o, const struct seated *s,
                         const char *slot, struct err *e)
{
    const char *argv[] = {s->task_id, s->carried, o->round_id,
                          slot,       o->run->id, db_arg_int(o->a, o->number)};
    TRY(db_exec(db,
                "UPDATE task SET state = 'leased', lease_epoch = 1, lease_until = clock_timestamp()"
                " WHERE id = $1",
                1, argv, NULL, e));
    TRY(db_exec(db, SQL_CARRY_LEASE, 2, argv, NULL, e));
    TRY(db_exec(db, SQL_CARRY_UPDATE, 6, argv, NULL, e));
    TRY(db_exec(db,
                "UPDATE lease SET outcome = 'accepted', ended_at = clock_timestamp()"
                " WHERE task_id = $1",
                1, argv, NULL, e));
    return db_exec(
        db,
        "UPDATE task SET state = 'done', lease_until = NULL, done_at = clock_timestamp(),"
        "       step = task.steps, tokens = u.tokens, train_loss = u.train_loss"
        "  FROM update u WHERE task.id = $1 AND u.id = $2",
        2, argv, NULL, e);
}

/* Each silo's speed: the median over its newest ten counted trainings of this run, but for those
 * that claim to have taken no time. */
static const char SQL_SPEEDS[] =
    "SELECT silo_id, percentile_cont(0.5) WITHIN GROUP (ORDER BY v) FROM"
    " (SELECT t.silo_id, u.tokens / t.train_s AS v,"
    "         row_number() OVER (PARTITION BY t.silo_id ORDER BY t.number DESC) AS age"
    "    FROM task t JOIN update u ON u.task_id = t.id AND u.state = 'accepted'"
    "   WHERE t.run_id = $1 AND t.kind = 'train' AND t.train_s >= 1e-30) x"
    " WHERE age <= 10 GROUP BY silo_id";

static enum status read_speeds(struct db *db, struct opening *o, struct err *e)
{
    struct db_rows rows;
    const char *argv[] = {o->run->id};
    TRY(db_query(db, o->a, SQL_SPEEDS, 1, argv, &rows, e));
    for (int i = 0; i < rows.count; i++) {
        for (int k = 0; k < o->seats; k++) {
            if (strcmp(o->silos[k].silo_id, db_text(&rows, i, 0)) == 0) {
                TRY(db_double(&rows, i, 1, &o->silos[k].speed, e));
                o->fastest = fmax(o->fastest, o->silos[k].speed);
            }
        }
    }
    return ST_OK;
}

/* A carried update is done, whatever its silo's speed; it may have been of any number of steps. */
static int32_t steps_of(const struct opening *o, const struct seated *s)
{
    const struct run_spec *spec = &o->run->spec;
    int32_t tau = spec->federation.local_steps;
    bool all = spec->federation.local_steps_policy == STEPS_FIXED || s->carried;
    return all ? tau : budget_steps(tau, spec->federation.local_steps_min, s->speed, o->fastest);
}

static enum status make_seats(struct db *db, const struct opening *o, struct err *e)
{
    const struct run_spec *spec = &o->run->spec;
    size_t n = (size_t)o->seats + 1;
    const char **ids = arena_alloc(o->a, n * sizeof(*ids));
    const char **silos = arena_alloc(o->a, n * sizeof(*silos));
    const char **steps = arena_alloc(o->a, n * sizeof(*steps));
    const char **tokens = arena_alloc(o->a, n * sizeof(*tokens));
    for (int i = 0; i < o->seats; i++) {
        const struct seated *s = &o->silos[i];
        int64_t count = steps_of(o, s);
        ids[i] = s->task_id;
        silos[i] = s->silo_id;
        steps[i] = db_arg_int(o->a, count);
        tokens[i] = db_arg_int(o->a, count * spec->inner.batch * spec->model.seq_len);
    }
    const char *argv[] = {o->run->id,
                          o->round_id,
                          db_arg_int(o->a, o->number),
                          db_arg_array(o->a, ids, o->seats),
                          db_arg_array(o->a, silos, o->seats),
                          db_arg_array(o->a, steps, o->seats),
                          db_arg_array(o->a, tokens, o->seats),
                          db_arg_double(o->a, seat_new(0, false, 0.0).open_at)};
    TRY(db_exec(db, SQL_SEATS, 8, argv, NULL, e));
    for (int i = 0; i < o->seats; i++) {
        const struct seated *s = &o->silos[i];
        if (s->carried) {
            TRY(carry(db, o, s, db_arg_int(o->a, i), e));
        }
    }
    return ST_OK;
}

/* Fairness: who was eligible and got no seat is counted; who sits out comes a round closer. */
static const char SQL_LEFT_OUT[] =
    "INSERT INTO run_silo AS x (run_id, silo_id, left_out)"
    " SELECT $1, s.id, CASE WHEN seated.name IS NULL THEN 1 ELSE 0 END"
    "   FROM unnest($2::text[]) AS drawn (name)"
    "   JOIN silo s ON s.name = drawn.name"
    "   LEFT JOIN unnest($3::text[]) AS seated (name) ON seated.name = drawn.name"
    " ON CONFLICT ON CONSTRAINT run_silo_pk DO UPDATE"
    "    SET left_out = CASE excluded.left_out WHEN 0 THEN 0 ELSE x.left_out + 1 END"
    " RETURNING x.silo_id, x.left_out, (SELECT name FROM silo WHERE id = x.silo_id)";

static enum status count_left_out(struct db *db, const struct opening *o, const char *all,
                                  const char *seated, struct err *e)
{
    const char *run[] = {o->run->id, all, seated};
    TRY(db_exec(db,
                "UPDATE run_silo SET aside_rounds = aside_rounds - 1"
                " WHERE run_id = $1 AND aside_rounds > 0",
                1, run, NULL, e));
    struct db_rows rows;
    TRY(db_query(db, o->a, SQL_LEFT_OUT, 3, run, &rows, e));
    for (int i = 0; i < rows.count; i++) {
        int32_t rounds = 0;
        TRY(db_int32(&rows, i, 1, &rounds, e));
        if (silo_left_out(rounds)) {
            const char *message = arena_fmt(o->a, "%s got no seat for %" PRId32 " rounds in a row",
                                            db_text(&rows, i, 2), rounds);
            TRY(db_event(db, o->a,
                         &(struct event){.kind = "silo_left_out",
                                         .run_id = o->run->id,
                                         .round = o->number,
                                         .silo_id = db_text(&rows, i, 0),
                                         .message = message},
                         e));
        }
    }
    return ST_OK;
}

static enum status say_opened(struct db *db, const struct opening *o, struct err *e)
{
    int carried = 0;
    for (int i = 0; i < o->seats; i++) {
        carried += o->silos[i].carried != NULL;
    }
    const char *again = o->attempt > 1 ? arena_fmt(o->a,
                                                   ", attempt %" PRId32 " with %d update%s "
                                                   "carried over",
                                                   o->attempt, carried, carried == 1 ? "" : "s")
                                       : "";
    return db_event(
        db, o->a,
        &(struct event){.kind = "round_opened",
                        .run_id = o->run->id,
                        .round = o->number,
                        .message = arena_fmt(o->a, "round %" PRId32 " opened with %d silo%s%s",
                                             o->number, o->seats, o->seats == 1 ? "" : "s", again),
                        .detail = arena_fmt(o->a,
                                            "{\"seats\":%d,\"eligible\":%d,\"attempt\":%" PRId32
                                            ",\"carried\":%d}",
                                            o->seats, o->eligible, o->attempt, carried)},
        e);
}

static enum status open_now(struct db *db, struct opening *o, struct err *e)
{
    const struct run_spec *spec = &o->run->spec;
    o->seats =
        round_seats(o->eligible, spec->federation.silos_per_round, spec->federation.oversample);
    draw(o);
    if (spec->federation.local_steps_policy == STEPS_DYLU) {
        TRY(read_speeds(db, o, e));
    }
    const char **names = arena_alloc(o->a, (size_t)o->eligible * sizeof(*names));
    for (int i = 0; i < o->eligible; i++) {
        names[i] = o->silos[i].name;
    }
    const char *all = db_arg_array(o->a, names, o->eligible);
    const char *seated = db_arg_array(o->a, names, o->seats);

    struct deadline_estimate d;
    TRY(db_round_estimate(db, o->a, o->run->id, o->number, &d, e));
    double cap_s = spec->federation.deadline_s;
    double deadline_s = deadline_seconds(&d, spec->federation.deadline_k,
                                         spec->federation.local_steps, 2 * ROUND_LEASE_S, cap_s);
    int expected = round_expected(o->eligible, spec->federation.silos_per_round);
    const char *argv[] = {o->round_id,
                          all,
                          db_arg_int(o->a, expected),
                          db_arg_int(o->a, round_quorum(expected, spec->federation.min_silos)),
                          db_arg_double(o->a, deadline_s),
                          db_arg_double(o->a, cap_s)};
    TRY(db_exec(db, SQL_OPEN, 6, argv, NULL, e));
    TRY(db_exec(db, "UPDATE run SET waiting_for = NULL WHERE id = $1", 1, &o->run->id, NULL, e));
    if (o->attempt == 1) {
        TRY(count_left_out(db, o, all, seated, e));
    }
    if (o->number == 1) {
        TRY(db_round_ask_evaluation(db, o->a, o->run->id, 0, e));
    }
    TRY(make_seats(db, o, e));
    FAULT("open.seated");
    return say_opened(db, o, e);
}

/* Who sits out is needed for a quorum. */
static enum status call_back(struct db *db, const struct opening *o, struct err *e)
{
    TRY(db_exec(db, "UPDATE run_silo SET aside_rounds = 0 WHERE run_id = $1 AND aside_rounds > 0",
                1, &o->run->id, NULL, e));
    return db_event(db, o->a,
                    &(struct event){.kind = "silo_aside",
                                    .run_id = o->run->id,
                                    .round = o->number,
                                    .message = "silos that sat out are called back, for without "
                                               "them there is no quorum"},
                    e);
}

static enum status open_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    struct run_row run;
    TRY(db_run_lock(db, a, ctx, &run, e));
    if (!run.found || run.state != RUN_RUNNING) {
        return ST_OK;
    }
    struct db_rows rows;
    const char *argv[] = {run.id};
    TRY(db_query(db, a, SQL_PENDING, 1, argv, &rows, e));
    if (rows.count == 0) {
        return ST_OK;
    }
    FAULT("open.locked");
    struct opening o = {.a = a, .run = &run, .round_id = db_text(&rows, 0, 0)};
    TRY(db_int32(&rows, 0, 1, &o.number, e));
    TRY(db_int32(&rows, 0, 2, &o.attempt, e));
    TRY(db_double(&rows, 0, 3, &o.waited_s, e));
    TRY(read_eligible(db, &o, false, e));
    struct round_opening facts = {.eligible = o.eligible,
                                  .recallable = o.recallable,
                                  .silos_per_round = run.spec.federation.silos_per_round,
                                  .quorum = run.spec.federation.min_silos,
                                  .waited_s = o.waited_s};
    enum round_verdict verdict = round_may_open(&facts);
    if (verdict == ROUND_RECALL) {
        TRY(read_eligible(db, &o, true, e));
        TRY(call_back(db, &o, e));
    }
    return verdict == ROUND_WAIT ? say_waiting(db, &o, e) : open_now(db, &o, e);
}

enum status db_round_open(struct db *db, const char *run_id, struct err *e)
{
    char id[ID_LEN + 1];
    (void)snprintf(id, sizeof(id), "%s", run_id);
    return db_tx(db, open_tx, id, e);
}
