/*
 * api_sql.h - the API's objects as SQL expressions, so that each is spelled once.
 *
 * Pieces of statements, joined by the compiler: never with anything from a request.
 */
#ifndef SERVER_API_SQL_H
#define SERVER_API_SQL_H

/* RFC 3339, UTC, milliseconds; null stays null. */
#define TIME_SQL(x) "to_char((" x ") AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')"

/* exp() of a loss; what PostgreSQL cannot hold is null, as every number that is not finite. */
#define PPL_SQL(x) "CASE WHEN (" x ") < 700 THEN exp(" x ") END"

/* A silo is heard of while it spoke within three poll times of 25 s. */
#define SILO_HEARD_SQL(s) "(" s ".seen_at > clock_timestamp() - interval '75 seconds')"

#define EVENT_JSON                                                                                 \
    "json_build_object('id', e.xid || '-' || e.id, 'at', " TIME_SQL(                               \
        "e.at") ", 'kind', e.kind,"                                                                \
                " 'run', e.run_id, 'round', e.round, 'silo', e.silo_id, 'detail', e.detail,"       \
                " 'message', e.message)"

/* c: checkpoint */
#define CHECKPOINT_JSON                                                                            \
    "json_build_object('number', c.number, 'sha256', encode(c.weights, 'hex'),"                    \
    " 'bytes', c.weights_bytes, 'params', c.params,"                                               \
    " 'weights_digest', encode(c.weights_digest, 'hex'), 'eval_loss', c.eval_loss,"                \
    " 'eval_ppl', " PPL_SQL("c.eval_loss") ", 'created_at', " TIME_SQL(                            \
        "c.created_at") ","                                                                        \
                        " 'kept', c.kept, 'step', CASE WHEN c.step IS NOT NULL THEN"               \
                        " json_build_object('codec', c.step_codec, 'bytes', c.step_bytes,"         \
                        " 'error', c.step_error, 'residual', c.step_residual, 'fallback', "        \
                        "c.step_fallback, 'kept', c.step_kept) END,"                               \
                        " 'url', '/api/v1/runs/' || c.run_id || '/checkpoints/' || c.number || "   \
                        "'/weights')"

/* q: round. Seconds so far while it is live. */
#define ROUND_MEMBERS                                                                              \
    "'number', q.number, 'attempt', q.attempt, 'state', q.state,"                                  \
    " 'silos_expected', q.silos_expected, 'quorum', q.quorum,"                                     \
    " 'accepted', u.accepted, 'dropped', t.dropped,"                                               \
    " 'opened_at', " TIME_SQL("q.opened_at") ", 'deadline', " TIME_SQL(                            \
        "q.deadline") ","                                                                          \
                      " 'sealed_at', " TIME_SQL("q.sealed_at") ", 'closed_at', " TIME_SQL(         \
                          "q.closed_at") ","                                                       \
                                         " 'seconds', round(extract(epoch FROM "                   \
                                         "coalesce(q.closed_at, clock_timestamp())"                \
                                         "   - q.opened_at), 3),"                                  \
                                         " 'split', json_build_object('download_s', "              \
                                         "t.download_s, 'train_s', t.train_s,"                     \
                                         "   'upload_s', t.upload_s, 'aggregate_s', "              \
                                         "q.aggregate_s, 'eval_s', c.eval_s),"                     \
                                         " 'train_loss', q.train_loss, 'eval_loss', c.eval_loss,"  \
                                         " 'eval_ppl', " PPL_SQL(                                  \
                                             "c.eval_loss") ", 'tokens', coalesce(q.tokens, "      \
                                                            "u.tokens),"                           \
                                                            " 'upload_bytes', b.up, "              \
                                                            "'download_bytes', b.down, "           \
                                                            "'delta_norm', q.delta_norm,"          \
                                                            " 'outer_step_norm', "                 \
                                                            "q.outer_step_norm, 'manifest', "      \
                                                            "encode(q.manifest, 'hex'),"           \
                                                            " 'base_sha256', "                     \
                                                            "encode(base.weights, 'hex'), "        \
                                                            "'predicted', CASE WHEN "              \
                                                            "q.predicted_s IS NOT NULL THEN "      \
                                                            "json_build_object('seconds', "        \
                                                            "round(q.predicted_s::numeric, 3), "   \
                                                            "'bytes', q.predicted_bytes) END"

#define ROUND_FROM                                                                                 \
    " FROM round q"                                                                                \
    " LEFT JOIN checkpoint base ON (base.run_id, base.number) = (q.run_id, q.base)"                \
    " LEFT JOIN checkpoint c ON (c.run_id, c.number) = (q.run_id, q.number) AND q.state = "        \
    "'closed'"                                                                                     \
    " CROSS JOIN LATERAL (SELECT count(*) AS accepted, coalesce(sum(tokens), 0) AS tokens"         \
    "   FROM update WHERE round_id = q.id AND state = 'accepted') u"                               \
    " CROSS JOIN LATERAL (SELECT count(*) FILTER (WHERE state IN ('cancelled', 'failed')) AS "     \
    "dropped,"                                                                                     \
    "     max(download_s) FILTER (WHERE state = 'done') AS download_s,"                            \
    "     max(train_s) FILTER (WHERE state = 'done') AS train_s,"                                  \
    "     max(upload_s) FILTER (WHERE state = 'done') AS upload_s"                                 \
    "   FROM task WHERE round_id = q.id) t"                                                        \
    " CROSS JOIN LATERAL (SELECT coalesce(sum(upload_bytes), 0) AS up,"                            \
    "     coalesce(sum(download_bytes), 0) AS down"                                                \
    "   FROM traffic WHERE (run_id, number) = (q.run_id, q.number)) b"

#define ROUND_JSON "json_build_object(" ROUND_MEMBERS ")"

/* r: run, l: its newest evaluation, b: its bytes, n: its tokens */
#define RUN_MEMBERS                                                                                \
    "'id', r.id, 'name', r.name, 'experiment', r.experiment, 'state', r.state,"                    \
    " 'round', coalesce(r.head, 0), 'rounds', r.rounds, 'preset', r.preset, 'params', r.params,"   \
    " 'tokens', n.tokens, 'eval_loss', l.eval_loss, 'eval_ppl', " PPL_SQL(                         \
        "l.eval_loss") ","                                                                         \
                       " 'silos_live', h.silos, 'silos_per_round', r.silos_per_round,"             \
                       " 'created_at', " TIME_SQL("r.created_at") ", 'updated_at', " TIME_SQL(     \
                           "r.updated_at") ","                                                     \
                                           " 'finished_at', " TIME_SQL(                            \
                                               "r.finished_at") ", 'upload_bytes', b.up, "         \
                                                                "'download_bytes', b.down"

#define RUN_FROM                                                                                   \
    " FROM run r"                                                                                  \
    " LEFT JOIN LATERAL (SELECT eval_loss FROM checkpoint"                                         \
    "   WHERE run_id = r.id AND eval_loss IS NOT NULL ORDER BY number DESC LIMIT 1) l ON true"     \
    " CROSS JOIN LATERAL (SELECT coalesce(sum(tokens), 0) AS tokens"                               \
    "   FROM round WHERE run_id = r.id AND state = 'closed') n"                                    \
    " CROSS JOIN LATERAL (SELECT coalesce(sum(upload_bytes), 0) AS up,"                            \
    "     coalesce(sum(download_bytes), 0) AS down FROM traffic WHERE run_id = r.id) b"            \
    " CROSS JOIN (SELECT count(*) AS silos FROM silo s"                                            \
    "   WHERE s.state = 'active' AND " SILO_HEARD_SQL("s") ") h"

/* What a silo does now, from its state, its sign of life and what its last heartbeat said. */
#define SILO_STATUS_SQL                                                                            \
    "CASE WHEN s.state <> 'active' THEN s.state"                                                   \
    " WHEN s.seen_at IS NULL OR NOT " SILO_HEARD_SQL(                                              \
        "s") " THEN 'gone'"                                                                        \
             " ELSE CASE s.phase WHEN 'train' THEN 'training' WHEN 'encode' THEN 'training'"       \
             "   WHEN 'evaluate' THEN 'evaluating' WHEN 'download' THEN 'downloading'"             \
             "   WHEN 'upload' THEN 'uploading' ELSE 'waiting' END END"

/* s: silo, n: what it did, b: its bytes */
#define SILO_MEMBERS                                                                               \
    "'id', s.id, 'name', s.name, 'state', s.state, 'status', " SILO_STATUS_SQL ","                 \
    " 'last_seen_at', " TIME_SQL(                                                                  \
        "s.seen_at") ", 'device', s.device, 'version', s.version,"                                 \
                     " 'tokens_per_s', s.tokens_per_s, 'tokens', n.tokens, 'rounds', n.rounds,"    \
                     " 'upload_bytes', b.up, 'download_bytes', b.down, 'failures', s.failures"

#endif
