-- What the schema itself must refuse: every named rule, each by a statement that breaks it alone.
-- At the end the catalogue is asked which rules were never seen to refuse anything: that fails too.
BEGIN;
CREATE TEMP TABLE hit (rule text PRIMARY KEY);

-- The statement must be refused, by that rule and no other. What it did is undone.
CREATE FUNCTION pg_temp.refused(rule text, statement text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    who text;
    said text;
BEGIN
    BEGIN
        EXECUTE statement;
        SET CONSTRAINTS ALL IMMEDIATE;
    EXCEPTION WHEN integrity_constraint_violation THEN
        GET STACKED DIAGNOSTICS who = CONSTRAINT_NAME, said = MESSAGE_TEXT;
    END;
    IF who IS NULL THEN
        RAISE 'let in, though % forbids it: %', rule, statement;
    ELSIF who <> rule THEN
        RAISE 'refused by % instead of %: % (%)', who, rule, statement, said;
    END IF;
    INSERT INTO hit VALUES (rule) ON CONFLICT DO NOTHING;
END
$$;

CREATE FUNCTION pg_temp.id(prefix text, n integer) RETURNS text LANGUAGE sql AS $$
    SELECT prefix || '_' || lpad(n::text, 26, '0') $$;
CREATE FUNCTION pg_temp.d(text) RETURNS bytea LANGUAGE sql AS $$ SELECT sha256(convert_to($1, 'UTF8')) $$;

CREATE FUNCTION pg_temp.new_run(n integer, the_name text, spec text) RETURNS void LANGUAGE sql AS $$
    INSERT INTO run (id, name, spec, spec_text, spec_sha256, params)
    VALUES (pg_temp.id('r', n), the_name, spec::jsonb, spec, pg_temp.d(spec), 10) $$;
\set good '{"federation":{"rounds":2,"silos_per_round":2,"min_silos":2,"local_steps":8}}'

-- ---- a run with two silos, an open round with two seats, one held and one free ----
SELECT pg_temp.new_run(1, 'one', :'good');
INSERT INTO silo (id, name) VALUES (pg_temp.id('s', 1), 'ash'), (pg_temp.id('s', 2), 'birch'), (pg_temp.id('s', 3), 'cedar');
INSERT INTO run_silo (run_id, silo_id) VALUES (pg_temp.id('r', 1), pg_temp.id('s', 1));
INSERT INTO token (id, hash, role, name, silo_id) VALUES
    (pg_temp.id('k', 1), pg_temp.d('k1'), 'admin', 'a', NULL), (pg_temp.id('k', 2), pg_temp.d('k2'), 'silo', 'ash', pg_temp.id('s', 1));
INSERT INTO blob (digest, bytes) SELECT pg_temp.d(x), 100 FROM unnest(ARRAY['w0', 'w1', 'u1', 'u2', 's1']) x;
UPDATE run SET state = 'running', started_at = now() WHERE id = pg_temp.id('r', 1);
INSERT INTO checkpoint (run_id, number, weights, weights_bytes, weights_digest, params, finite)
    VALUES (pg_temp.id('r', 1), 0, pg_temp.d('w0'), 100, pg_temp.d('x0'), 10, true);
UPDATE run SET head = 0 WHERE id = pg_temp.id('r', 1);
INSERT INTO round (run_id, number, silos_expected, quorum) VALUES (pg_temp.id('r', 1), 1, 2, 2);
UPDATE round SET state = 'open', opened_at = now(), deadline = now(), cap_at = now() WHERE number = 1;
INSERT INTO task (id, kind, run_id, round_id, number, slot, silo_id, steps, plan_tokens)
    SELECT pg_temp.id('t', n), 'train', run_id, id, 1, n - 1, pg_temp.id('s', n), 8, 1000
      FROM round, generate_series(1, 2) n;
INSERT INTO task (id, kind, run_id, number, slot, silo_id, plan_tokens)
    VALUES (pg_temp.id('t', 9), 'evaluate', pg_temp.id('r', 1), 0, 0, pg_temp.id('s', 1), 0);
UPDATE task SET state = 'leased', lease_epoch = 1, lease_until = now() WHERE id = pg_temp.id('t', 1);
INSERT INTO lease (task_id, epoch, silo_id) VALUES (pg_temp.id('t', 1), 1, pg_temp.id('s', 1));
INSERT INTO upload (id, task_id, silo_id, epoch, sha256, bytes, codec, tokens, steps)
    VALUES (pg_temp.id('u', 1), pg_temp.id('t', 1), pg_temp.id('s', 1), 1, pg_temp.d('u1'), 100, 'f32', 500, 8);

-- ---- run ----
SELECT pg_temp.refused('run_id_pattern', $q$INSERT INTO run (id, name, spec, spec_text, spec_sha256, params) SELECT 'r_short', 'n', spec, spec_text, spec_sha256, 1 FROM run$q$);
SELECT pg_temp.refused('run_name_once', format('SELECT pg_temp.new_run(2, %L, %L)', 'one', :'good'));
SELECT pg_temp.refused('run_name_plain', format('SELECT pg_temp.new_run(2, %L, %L)', 'no <b>', :'good'));
SELECT pg_temp.refused('run_experiment_plain', $q$UPDATE run SET experiment = '../x'$q$);
SELECT pg_temp.refused('run_spec_is_text', $q$INSERT INTO run (id, name, spec, spec_text, spec_sha256, params) SELECT pg_temp.id('r', 2), 'n', spec || '{"a":1}', spec_text, spec_sha256, 1 FROM run$q$);
SELECT pg_temp.refused('run_spec_digest', $q$INSERT INTO run (id, name, spec, spec_text, spec_sha256, params) SELECT pg_temp.id('r', 2), 'n', spec, spec_text, pg_temp.d('x'), 1 FROM run$q$);
SELECT pg_temp.refused('run_params_counted', $q$INSERT INTO run (id, name, spec, spec_text, spec_sha256, params) SELECT pg_temp.id('r', 2), 'n', spec, spec_text, spec_sha256, 0 FROM run$q$);
SELECT pg_temp.refused('run_rounds_counted', format('SELECT pg_temp.new_run(2, %L, %L)', 'n', replace(:'good', '"rounds":2', '"rounds":0')));
SELECT pg_temp.refused('run_quorum_possible', format('SELECT pg_temp.new_run(2, %L, %L)', 'n', replace(:'good', '"min_silos":2', '"min_silos":3')));
SELECT pg_temp.refused('run_step', $q$UPDATE run SET state = 'unheard'$q$);
SELECT pg_temp.refused('run_step', $q$UPDATE run SET state = 'created'$q$);
SELECT pg_temp.refused('run_end_has_time', $q$UPDATE run SET state = 'stopped'$q$);
SELECT pg_temp.refused('run_end_has_time', $q$UPDATE run SET finished_at = now()$q$);
SELECT pg_temp.refused('run_finished_whole', $q$UPDATE run SET state = 'finished', finished_at = now()$q$);
SELECT pg_temp.refused('run_begins_created', $q$INSERT INTO run (id, name, spec, spec_text, spec_sha256, params, state) SELECT pg_temp.id('r', 2), 'n', spec, spec_text, spec_sha256, 1, 'running' FROM run$q$);
SELECT pg_temp.refused('run_spec_immutable', $q$UPDATE run SET params = 11$q$);
SELECT pg_temp.refused('run_head_by_one', $q$UPDATE run SET head = 2$q$);
SELECT pg_temp.refused('run_head_by_one', $q$UPDATE run SET head = NULL$q$);
SELECT pg_temp.refused('run_head_fk', $q$UPDATE run SET head = 1$q$);
SELECT pg_temp.refused('run_head_in_rounds', $q$ALTER TABLE run DISABLE TRIGGER run_head_by_one; UPDATE run SET head = 3$q$);
SELECT pg_temp.refused('run_state_known', $q$ALTER TABLE run DISABLE TRIGGER run_step; UPDATE run SET state = 'unheard'$q$);

-- ---- a run that begins where another one was ----
CREATE FUNCTION pg_temp.fork(parent text, checkpoint integer, steps bigint, outer_steps integer, weights bytea, state bytea) RETURNS void LANGUAGE sql AS $$
    INSERT INTO run (id, name, spec, spec_text, spec_sha256, params, parent_run, parent_checkpoint, steps_before, outer_before, from_weights, from_state)
    SELECT pg_temp.id('r', 2), 'n', spec, spec_text, spec_sha256, 10, parent, checkpoint, steps, outer_steps, weights, fork.state FROM run $$;
SELECT pg_temp.refused('run_parent_fk', $q$SELECT pg_temp.fork(pg_temp.id('r', 1), 7, 8, 0, pg_temp.d('w0'), NULL)$q$);
SELECT pg_temp.refused('run_parent_whole', $q$SELECT pg_temp.fork(pg_temp.id('r', 1), NULL, 8, 0, pg_temp.d('w0'), NULL)$q$);
SELECT pg_temp.refused('run_parent_other', $q$SELECT pg_temp.fork(pg_temp.id('r', 2), 0, 8, 0, pg_temp.d('w0'), NULL)$q$);
SELECT pg_temp.refused('run_before_of_fork', $q$SELECT pg_temp.fork(NULL, NULL, 8, 0, NULL, NULL)$q$);
SELECT pg_temp.refused('run_before_of_fork', $q$SELECT pg_temp.fork(pg_temp.id('r', 1), 0, -1, 0, pg_temp.d('w0'), NULL)$q$);
SELECT pg_temp.refused('run_from_weights_fk', $q$SELECT pg_temp.fork(pg_temp.id('r', 1), 0, 8, 0, pg_temp.d('nowhere'), NULL)$q$);
SELECT pg_temp.refused('run_from_state_fk', $q$SELECT pg_temp.fork(pg_temp.id('r', 1), 0, 8, 0, pg_temp.d('w0'), pg_temp.d('nowhere'))$q$);
SELECT pg_temp.refused('run_from_until_zero', $q$SELECT pg_temp.fork(pg_temp.id('r', 1), 0, 8, 0, NULL, NULL)$q$);
SELECT pg_temp.refused('run_from_until_zero', $q$UPDATE run SET from_weights = pg_temp.d('w0')$q$);
SELECT pg_temp.refused('run_lineage_immutable', $q$UPDATE run SET steps_before = 8$q$);
SELECT pg_temp.refused('run_from_weights_live', $q$UPDATE blob SET state = 'dead' WHERE digest = pg_temp.d('w1'); SELECT pg_temp.fork(pg_temp.id('r', 1), 0, 8, 0, pg_temp.d('w1'), NULL)$q$);
SELECT pg_temp.refused('run_from_state_live', $q$UPDATE blob SET state = 'dead' WHERE digest = pg_temp.d('s1'); SELECT pg_temp.fork(pg_temp.id('r', 1), 0, 8, 0, pg_temp.d('w0'), pg_temp.d('s1'))$q$);

-- ---- silo, run_silo, token ----
SELECT pg_temp.refused('silo_id_pattern', $q$INSERT INTO silo (id, name) VALUES ('s_1', 'x')$q$);
SELECT pg_temp.refused('silo_name_once', $q$INSERT INTO silo (id, name) VALUES (pg_temp.id('s', 4), 'ash')$q$);
SELECT pg_temp.refused('silo_name_plain', $q$INSERT INTO silo (id, name) VALUES (pg_temp.id('s', 4), '<img src=x>')$q$);
SELECT pg_temp.refused('silo_state_known', $q$INSERT INTO silo (id, name, state) VALUES (pg_temp.id('s', 4), 'x', 'asleep')$q$);
SELECT pg_temp.refused('silo_phase_known', $q$UPDATE silo SET phase = 'dancing'$q$);
SELECT pg_temp.refused('silo_fails_count', $q$UPDATE silo SET fails = 1$q$);
SELECT pg_temp.refused('silo_step', $q$UPDATE silo SET state = 'revoked'; UPDATE silo SET state = 'active'$q$);
SELECT pg_temp.refused('run_silo_run_fk', $q$UPDATE run_silo SET run_id = pg_temp.id('r', 7)$q$);
SELECT pg_temp.refused('run_silo_silo_fk', $q$UPDATE run_silo SET silo_id = pg_temp.id('s', 7)$q$);
SELECT pg_temp.refused('run_silo_counts', $q$UPDATE run_silo SET left_out = -1$q$);
SELECT pg_temp.refused('token_id_pattern', $q$INSERT INTO token (id, hash, role, name) VALUES ('k_1', pg_temp.d('z'), 'admin', 'x')$q$);
SELECT pg_temp.refused('token_hash_once', $q$INSERT INTO token (id, hash, role, name) VALUES (pg_temp.id('k', 3), pg_temp.d('k1'), 'admin', 'x')$q$);
SELECT pg_temp.refused('token_hash_sha256', $q$INSERT INTO token (id, hash, role, name) VALUES (pg_temp.id('k', 3), 'secret', 'admin', 'x')$q$);
SELECT pg_temp.refused('token_role_known', $q$INSERT INTO token (id, hash, role, name) VALUES (pg_temp.id('k', 3), pg_temp.d('z'), 'root', 'x')$q$);
SELECT pg_temp.refused('token_name_short', $q$INSERT INTO token (id, hash, role, name) VALUES (pg_temp.id('k', 3), pg_temp.d('z'), 'admin', '')$q$);
SELECT pg_temp.refused('token_silo_fk', $q$INSERT INTO token (id, hash, role, name, silo_id) VALUES (pg_temp.id('k', 3), pg_temp.d('z'), 'silo', 'x', pg_temp.id('s', 7))$q$);
SELECT pg_temp.refused('token_of_silo', $q$INSERT INTO token (id, hash, role, name) VALUES (pg_temp.id('k', 3), pg_temp.d('z'), 'silo', 'x')$q$);
SELECT pg_temp.refused('token_of_silo', $q$INSERT INTO token (id, hash, role, name, silo_id) VALUES (pg_temp.id('k', 3), pg_temp.d('z'), 'admin', 'x', pg_temp.id('s', 1))$q$);
SELECT pg_temp.refused('token_immutable', $q$UPDATE token SET role = 'viewer'$q$);
SELECT pg_temp.refused('token_immutable', $q$UPDATE token SET revoked_at = now(); UPDATE token SET revoked_at = NULL$q$);
SELECT pg_temp.refused('token_immutable', $q$UPDATE token SET silo_id = pg_temp.id('s', 2) WHERE role = 'silo'$q$);

-- ---- blob, checkpoint ----
SELECT pg_temp.refused('blob_digest_sha256', $q$INSERT INTO blob (digest, bytes) VALUES ('x', 1)$q$);
SELECT pg_temp.refused('blob_bytes_counted', $q$INSERT INTO blob (digest, bytes) VALUES (pg_temp.d('z'), -1)$q$);
SELECT pg_temp.refused('blob_state_known', $q$UPDATE blob SET state = 'undead'$q$);
SELECT pg_temp.refused('blob_immutable', $q$UPDATE blob SET bytes = 101$q$);
CREATE FUNCTION pg_temp.checkpoint(number integer, weights bytea, manifest bytea, params bigint, finite boolean) RETURNS void LANGUAGE sql AS $$
    INSERT INTO checkpoint (run_id, number, weights, weights_bytes, weights_digest, manifest, params, finite)
    VALUES (pg_temp.id('r', 1), number, weights, 100, pg_temp.d('x'), manifest, params, finite) $$;
SELECT pg_temp.refused('checkpoint_pk', $q$SELECT pg_temp.checkpoint(0, pg_temp.d('w1'), NULL, 10, true)$q$);
SELECT pg_temp.refused('checkpoint_run_fk', $q$INSERT INTO checkpoint (run_id, number, weights, weights_bytes, weights_digest, params, finite) VALUES (pg_temp.id('r', 7), 0, pg_temp.d('w0'), 100, pg_temp.d('x'), 10, true)$q$);
SELECT pg_temp.refused('checkpoint_from_zero', $q$SELECT pg_temp.checkpoint(-1, pg_temp.d('w1'), pg_temp.d('m'), 10, true)$q$);
SELECT pg_temp.refused('checkpoint_parent_fk', $q$SELECT pg_temp.checkpoint(2, pg_temp.d('w1'), pg_temp.d('m'), 10, true)$q$);
SELECT pg_temp.refused('checkpoint_weights_sha256', $q$SELECT pg_temp.checkpoint(1, 'x', pg_temp.d('m'), 10, true)$q$);
SELECT pg_temp.refused('checkpoint_manifest_known', $q$SELECT pg_temp.checkpoint(1, pg_temp.d('w1'), NULL, 10, true)$q$);
SELECT pg_temp.refused('checkpoint_finite', $q$SELECT pg_temp.checkpoint(1, pg_temp.d('w1'), pg_temp.d('m'), 10, false)$q$);
SELECT pg_temp.refused('checkpoint_sizes', $q$SELECT pg_temp.checkpoint(1, pg_temp.d('w1'), pg_temp.d('m'), 1000, true)$q$);
SELECT pg_temp.refused('checkpoint_weights_fk', $q$SELECT pg_temp.checkpoint(1, pg_temp.d('nowhere'), pg_temp.d('m'), 10, true)$q$);
SELECT pg_temp.refused('checkpoint_state_fk', $q$INSERT INTO checkpoint (run_id, number, weights, weights_bytes, weights_digest, params, finite, manifest, outer_state) VALUES (pg_temp.id('r', 1), 1, pg_temp.d('w1'), 100, pg_temp.d('x'), 10, true, pg_temp.d('m'), pg_temp.d('nowhere'))$q$);
SELECT pg_temp.refused('checkpoint_weights_live', $q$UPDATE blob SET state = 'dead' WHERE digest = pg_temp.d('w1'); INSERT INTO checkpoint (run_id, number, weights, weights_bytes, weights_digest, params, finite, manifest) VALUES (pg_temp.id('r', 1), 1, pg_temp.d('w1'), 100, pg_temp.d('x'), 10, true, pg_temp.d('m'))$q$);
SELECT pg_temp.refused('checkpoint_state_live', $q$UPDATE blob SET state = 'dead' WHERE digest = pg_temp.d('s1'); INSERT INTO checkpoint (run_id, number, weights, weights_bytes, weights_digest, params, finite, manifest, outer_state) VALUES (pg_temp.id('r', 1), 1, pg_temp.d('w1'), 100, pg_temp.d('x'), 10, true, pg_temp.d('m'), pg_temp.d('s1'))$q$);
SELECT pg_temp.refused('checkpoint_state_sha256', $q$INSERT INTO checkpoint (run_id, number, weights, weights_bytes, weights_digest, params, finite, manifest, outer_state) VALUES (pg_temp.id('r', 1), 1, pg_temp.d('w1'), 100, pg_temp.d('x'), 10, true, pg_temp.d('m'), 'x')$q$);
-- Checkpoint 1 with such a step.
CREATE FUNCTION pg_temp.step(step bytea, bytes bigint, error double precision, state text DEFAULT 's1') RETURNS void LANGUAGE sql AS $$
    INSERT INTO checkpoint (run_id, number, weights, weights_bytes, weights_digest, params, finite, manifest, outer_state,
                            step, step_bytes, step_codec, step_error, step_residual, step_fallback)
    VALUES (pg_temp.id('r', 1), 1, pg_temp.d('w1'), 100, pg_temp.d('x'), 10, true, pg_temp.d('m'),
            CASE WHEN state <> '' THEN pg_temp.d(state) END, step, bytes, 'q4', error, 0, 0) $$;
SELECT pg_temp.refused('checkpoint_step_whole', $q$SELECT pg_temp.step(NULL, 9, 0)$q$);
SELECT pg_temp.refused('checkpoint_step_sha256', $q$SELECT pg_temp.step('x', 9, 0)$q$);
SELECT pg_temp.refused('checkpoint_step_leads', $q$SELECT pg_temp.step(pg_temp.d('u1'), 9, 0, '')$q$);
SELECT pg_temp.refused('checkpoint_step_size', $q$SELECT pg_temp.step(pg_temp.d('u1'), 0, 0)$q$);
SELECT pg_temp.refused('checkpoint_step_sound', $q$SELECT pg_temp.step(pg_temp.d('u1'), 9, 'NaN')$q$);
SELECT pg_temp.refused('checkpoint_step_fk', $q$SELECT pg_temp.step(pg_temp.d('nowhere'), 9, 0)$q$);
SELECT pg_temp.refused('checkpoint_step_live', $q$UPDATE blob SET state = 'dead' WHERE digest = pg_temp.d('u1'); SELECT pg_temp.step(pg_temp.d('u1'), 9, 0)$q$);
SELECT pg_temp.refused('checkpoint_step_immutable', $q$SELECT pg_temp.step(pg_temp.d('u1'), 9, 0); UPDATE checkpoint SET step_error = 1 WHERE number = 1$q$);
SELECT pg_temp.refused('checkpoint_step_immutable', $q$SELECT pg_temp.step(pg_temp.d('u1'), 9, 0); UPDATE checkpoint SET step_kept = false; UPDATE checkpoint SET step_kept = true$q$);
SELECT pg_temp.refused('checkpoint_eval_whole', $q$UPDATE checkpoint SET eval_nll = 1$q$);
SELECT pg_temp.refused('checkpoint_eval_finite', $q$UPDATE checkpoint SET eval_nll = 'NaN', eval_tokens = 1, eval_bytes = 1, eval_silos = 1$q$);
SELECT pg_temp.refused('checkpoint_immutable', $q$UPDATE checkpoint SET weights = pg_temp.d('w1')$q$);
SELECT pg_temp.refused('checkpoint_immutable', $q$UPDATE checkpoint SET kept = false; UPDATE checkpoint SET kept = true$q$);
SELECT pg_temp.refused('checkpoint_not_deleted', $q$DELETE FROM checkpoint$q$);

-- ---- round ----
SELECT pg_temp.refused('round_one_live', $q$INSERT INTO round (run_id, number, attempt, silos_expected, quorum) VALUES (pg_temp.id('r', 1), 1, 2, 2, 2)$q$);
SELECT pg_temp.refused('round_attempt_once', $q$UPDATE round SET state = 'aborted', closed_at = now(); INSERT INTO round (run_id, number, silos_expected, quorum) VALUES (pg_temp.id('r', 1), 1, 2, 2)$q$);
SELECT pg_temp.refused('round_base_fk', $q$UPDATE round SET state = 'aborted', closed_at = now(); INSERT INTO round (run_id, number, silos_expected, quorum) VALUES (pg_temp.id('r', 1), 2, 2, 2)$q$);
SELECT pg_temp.refused('round_from_one', $q$UPDATE round SET state = 'aborted', closed_at = now(); INSERT INTO round (run_id, number, silos_expected, quorum) VALUES (pg_temp.id('r', 1), 0, 2, 2)$q$);
SELECT pg_temp.refused('round_run_fk', $q$INSERT INTO round (run_id, number, silos_expected, quorum) VALUES (pg_temp.id('r', 7), 1, 2, 2)$q$);
SELECT pg_temp.refused('round_quorum', $q$UPDATE round SET quorum = 3$q$);
SELECT pg_temp.refused('round_quorum', $q$UPDATE round SET quorum = 0$q$);
SELECT pg_temp.refused('round_predicted_whole', $q$UPDATE round SET predicted_s = 1$q$);
SELECT pg_temp.refused('round_predicted_finite', $q$UPDATE round SET predicted_s = -1, predicted_bytes = 1$q$);
SELECT pg_temp.refused('round_predicted_finite', $q$UPDATE round SET predicted_s = 'NaN', predicted_bytes = 1$q$);
SELECT pg_temp.refused('round_open_has_times', $q$UPDATE round SET opened_at = NULL, deadline = NULL, cap_at = NULL$q$);
SELECT pg_temp.refused('round_times_together', $q$UPDATE round SET deadline = NULL$q$);
SELECT pg_temp.refused('round_deadline_capped', $q$UPDATE round SET deadline = cap_at + interval '1 s'$q$);
SELECT pg_temp.refused('round_seal_has_time', $q$UPDATE round SET state = 'aggregating', manifest = pg_temp.d('m')$q$);
SELECT pg_temp.refused('round_close_has_time', $q$UPDATE round SET state = 'aborted'$q$);
SELECT pg_temp.refused('round_manifest_known', $q$UPDATE round SET state = 'aggregating', sealed_at = now()$q$);
SELECT pg_temp.refused('round_manifest_known', $q$UPDATE round SET manifest = pg_temp.d('m')$q$);
SELECT pg_temp.refused('round_manifest_sha256', $q$UPDATE round SET state = 'aggregating', sealed_at = now(), manifest = 'x'$q$);
SELECT pg_temp.refused('round_step', $q$UPDATE round SET state = 'closed', closed_at = now()$q$);
SELECT pg_temp.refused('round_step', $q$UPDATE round SET state = 'aborted', closed_at = now(); UPDATE round SET state = 'open', closed_at = NULL$q$);
SELECT pg_temp.refused('round_begins_pending', $q$INSERT INTO round (run_id, number, silos_expected, quorum, state) VALUES (pg_temp.id('r', 1), 1, 2, 2, 'open')$q$);
SELECT pg_temp.refused('round_identity', $q$UPDATE round SET number = 2$q$);
SELECT pg_temp.refused('round_identity', $q$UPDATE round SET agg_epoch = 5; UPDATE round SET agg_epoch = 4$q$);
SELECT pg_temp.refused('round_state_known', $q$ALTER TABLE round DISABLE TRIGGER round_step; UPDATE round SET state = 'unheard'$q$);
SELECT pg_temp.refused('round_closed_once', $q$
    UPDATE round SET state = 'aggregating', sealed_at = now(), manifest = pg_temp.d('m');
    UPDATE round SET state = 'closed', closed_at = now();
    INSERT INTO round (run_id, number, attempt, silos_expected, quorum) VALUES (pg_temp.id('r', 1), 1, 2, 2, 2);
    UPDATE round SET state = 'open', opened_at = now(), deadline = now(), cap_at = now() WHERE attempt = 2;
    UPDATE round SET state = 'aggregating', sealed_at = now(), manifest = pg_temp.d('m') WHERE attempt = 2;
    UPDATE round SET state = 'closed', closed_at = now() WHERE attempt = 2$q$);

-- ---- task ----
CREATE FUNCTION pg_temp.seat(n integer, slot integer, silo integer) RETURNS void LANGUAGE sql AS $$
    INSERT INTO task (id, kind, run_id, round_id, number, slot, silo_id, plan_tokens)
    SELECT pg_temp.id('t', n), 'train', run_id, id, 1, slot, pg_temp.id('s', silo), 1000 FROM round $$;
SELECT pg_temp.refused('task_id_pattern', $q$INSERT INTO task (id, kind, run_id, number, slot, silo_id, plan_tokens) VALUES ('t_1', 'evaluate', pg_temp.id('r', 1), 0, 0, pg_temp.id('s', 2), 0)$q$);
SELECT pg_temp.refused('task_kind_known', $q$INSERT INTO task (id, kind, run_id, number, slot, silo_id, plan_tokens) VALUES (pg_temp.id('t', 3), 'dream', pg_temp.id('r', 1), 0, 0, pg_temp.id('s', 2), 0)$q$);
SELECT pg_temp.refused('task_round_of_train', $q$INSERT INTO task (id, kind, run_id, number, slot, silo_id, plan_tokens) VALUES (pg_temp.id('t', 3), 'train', pg_temp.id('r', 1), 1, 0, pg_temp.id('s', 2), 0)$q$);
SELECT pg_temp.refused('task_run_fk', $q$ALTER TABLE task DROP CONSTRAINT task_base_fk; INSERT INTO task (id, kind, run_id, number, slot, silo_id, plan_tokens) VALUES (pg_temp.id('t', 3), 'evaluate', pg_temp.id('r', 7), 0, 0, pg_temp.id('s', 2), 0)$q$);
SELECT pg_temp.refused('task_round_fk', $q$INSERT INTO task (id, kind, run_id, round_id, number, slot, silo_id, plan_tokens) VALUES (pg_temp.id('t', 3), 'train', pg_temp.id('r', 1), 999999, 1, 5, pg_temp.id('s', 3), 0)$q$);
SELECT pg_temp.refused('task_base_fk', $q$INSERT INTO task (id, kind, run_id, number, slot, silo_id, plan_tokens) VALUES (pg_temp.id('t', 3), 'evaluate', pg_temp.id('r', 1), 5, 0, pg_temp.id('s', 2), 0)$q$);
SELECT pg_temp.refused('task_silo_fk', $q$INSERT INTO task (id, kind, run_id, number, slot, silo_id, plan_tokens) VALUES (pg_temp.id('t', 3), 'evaluate', pg_temp.id('r', 1), 0, 0, pg_temp.id('s', 7), 0)$q$);
SELECT pg_temp.refused('task_seat_once', $q$SELECT pg_temp.seat(3, 0, 3)$q$);
SELECT pg_temp.refused('task_silo_once', $q$SELECT pg_temp.seat(3, 2, 1)$q$);
SELECT pg_temp.refused('task_evaluate_once', $q$INSERT INTO task (id, kind, run_id, number, slot, silo_id, plan_tokens) VALUES (pg_temp.id('t', 3), 'evaluate', pg_temp.id('r', 1), 0, 1, pg_temp.id('s', 1), 0)$q$);
SELECT pg_temp.refused('task_lease_has_end', $q$UPDATE task SET lease_until = NULL WHERE state = 'leased'$q$);
SELECT pg_temp.refused('task_lease_has_end', $q$UPDATE task SET lease_until = now() WHERE state = 'pending'$q$);
SELECT pg_temp.refused('task_lease_numbered', $q$UPDATE task SET state = 'leased', lease_until = now() WHERE id = pg_temp.id('t', 2)$q$);
SELECT pg_temp.refused('task_counts', $q$UPDATE task SET attempt = 4$q$);
SELECT pg_temp.refused('task_eval_whole', $q$UPDATE task SET nll = 1, eval_tokens = 1, eval_bytes = 1 WHERE kind = 'evaluate'$q$);
SELECT pg_temp.refused('task_eval_whole', $q$UPDATE task SET nll = 1 WHERE kind = 'evaluate'$q$);
SELECT pg_temp.refused('task_eval_finite', $q$
    UPDATE task SET state = 'leased', lease_epoch = 1, lease_until = now() WHERE kind = 'evaluate';
    UPDATE task SET state = 'done', lease_until = NULL, nll = 'Infinity', eval_tokens = 1, eval_bytes = 1 WHERE kind = 'evaluate'$q$);
SELECT pg_temp.refused('task_phase_known', $q$UPDATE task SET phase = 'dancing'$q$);
SELECT pg_temp.refused('task_step', $q$UPDATE task SET state = 'done', lease_epoch = 1 WHERE id = pg_temp.id('t', 2)$q$);
SELECT pg_temp.refused('task_step', $q$UPDATE task SET state = 'cancelled' WHERE id = pg_temp.id('t', 2); UPDATE task SET state = 'pending' WHERE id = pg_temp.id('t', 2)$q$);
SELECT pg_temp.refused('task_begins_pending', $q$INSERT INTO task (id, kind, run_id, number, slot, silo_id, plan_tokens, state) VALUES (pg_temp.id('t', 3), 'evaluate', pg_temp.id('r', 1), 0, 0, pg_temp.id('s', 2), 0, 'cancelled')$q$);
SELECT pg_temp.refused('task_identity', $q$UPDATE task SET slot = 7$q$);
SELECT pg_temp.refused('task_identity', $q$UPDATE task SET lease_epoch = 0 WHERE state = 'leased'$q$);
SELECT pg_temp.refused('task_silo_kept', $q$UPDATE task SET silo_id = pg_temp.id('s', 3) WHERE id = pg_temp.id('t', 1)$q$);
SELECT pg_temp.refused('task_state_known', $q$ALTER TABLE task DISABLE TRIGGER task_step; UPDATE task SET state = 'unheard' WHERE id = pg_temp.id('t', 2)$q$);

-- ---- lease ----
SELECT pg_temp.refused('lease_pk', $q$INSERT INTO lease (task_id, epoch, silo_id, outcome, ended_at) VALUES (pg_temp.id('t', 1), 1, pg_temp.id('s', 2), 'expired', now())$q$);
SELECT pg_temp.refused('lease_one_open', $q$INSERT INTO lease (task_id, epoch, silo_id) VALUES (pg_temp.id('t', 1), 2, pg_temp.id('s', 1))$q$);
SELECT pg_temp.refused('lease_task_fk', $q$INSERT INTO lease (task_id, epoch, silo_id) VALUES (pg_temp.id('t', 7), 1, pg_temp.id('s', 1))$q$);
SELECT pg_temp.refused('lease_silo_fk', $q$INSERT INTO lease (task_id, epoch, silo_id) VALUES (pg_temp.id('t', 2), 1, pg_temp.id('s', 7))$q$);
SELECT pg_temp.refused('lease_epoch_counted', $q$INSERT INTO lease (task_id, epoch, silo_id) VALUES (pg_temp.id('t', 2), 0, pg_temp.id('s', 1))$q$);
SELECT pg_temp.refused('lease_outcome_known', $q$UPDATE lease SET outcome = 'forgotten', ended_at = now()$q$);
SELECT pg_temp.refused('lease_end_has_time', $q$UPDATE lease SET outcome = 'expired'$q$);
SELECT pg_temp.refused('lease_ends_once', $q$UPDATE lease SET outcome = 'expired', ended_at = now(); UPDATE lease SET outcome = 'accepted'$q$);

-- ---- upload ----
SELECT pg_temp.refused('upload_id_pattern', $q$INSERT INTO upload (id, task_id, silo_id, epoch, sha256, bytes, codec, tokens, steps) VALUES ('u_1', pg_temp.id('t', 1), pg_temp.id('s', 1), 1, pg_temp.d('z'), 1, 'f32', 1, 1)$q$);
SELECT pg_temp.refused('upload_lease_fk', $q$INSERT INTO upload (id, task_id, silo_id, epoch, sha256, bytes, codec, tokens, steps) VALUES (pg_temp.id('u', 2), pg_temp.id('t', 1), pg_temp.id('s', 2), 1, pg_temp.d('z'), 1, 'f32', 1, 1)$q$);
SELECT pg_temp.refused('upload_sha256', $q$INSERT INTO upload (id, task_id, silo_id, epoch, sha256, bytes, codec, tokens, steps) VALUES (pg_temp.id('u', 2), pg_temp.id('t', 1), pg_temp.id('s', 1), 1, 'x', 1, 'f32', 1, 1)$q$);
SELECT pg_temp.refused('upload_once', $q$INSERT INTO upload (id, task_id, silo_id, epoch, sha256, bytes, codec, tokens, steps) VALUES (pg_temp.id('u', 2), pg_temp.id('t', 1), pg_temp.id('s', 1), 1, pg_temp.d('u1'), 100, 'f32', 1, 1)$q$);
SELECT pg_temp.refused('upload_bytes_bounded', $q$UPDATE upload SET received = 101$q$);
SELECT pg_temp.refused('upload_counts', $q$INSERT INTO upload (id, task_id, silo_id, epoch, sha256, bytes, codec, tokens, steps) VALUES (pg_temp.id('u', 2), pg_temp.id('t', 1), pg_temp.id('s', 1), 1, pg_temp.d('z'), 1, 'f32', -1, 1)$q$);
SELECT pg_temp.refused('upload_placed_whole', $q$UPDATE upload SET state = 'placed'$q$);
SELECT pg_temp.refused('upload_refused_why', $q$UPDATE upload SET state = 'refused'$q$);
SELECT pg_temp.refused('upload_step', $q$UPDATE upload SET received = 100, state = 'accepted'$q$);
SELECT pg_temp.refused('upload_step', $q$UPDATE upload SET state = 'expired'; UPDATE upload SET state = 'open'$q$);
SELECT pg_temp.refused('upload_begins_open', $q$INSERT INTO upload (id, task_id, silo_id, epoch, sha256, bytes, codec, tokens, steps, state) VALUES (pg_temp.id('u', 2), pg_temp.id('t', 1), pg_temp.id('s', 1), 1, pg_temp.d('z'), 1, 'f32', 1, 1, 'expired')$q$);
SELECT pg_temp.refused('upload_identity', $q$UPDATE upload SET received = 50; UPDATE upload SET received = 49$q$);
SELECT pg_temp.refused('upload_identity', $q$UPDATE upload SET tokens = 501$q$);
SELECT pg_temp.refused('upload_coding_finite', $q$UPDATE upload SET codec_error = 'NaN'$q$);
SELECT pg_temp.refused('upload_state_known', $q$ALTER TABLE upload DISABLE TRIGGER upload_step; UPDATE upload SET state = 'unheard'$q$);

-- ---- update ----
UPDATE upload SET received = 100, state = 'placed';
CREATE FUNCTION pg_temp.accept(upload text, carried bigint, file text, n bigint, size bigint) RETURNS void LANGUAGE sql AS $$
    INSERT INTO update (round_id, slot, task_id, silo_id, lease_epoch, upload_id, carried_from, digest, bytes, codec, tokens, steps)
    SELECT round_id, slot, id, silo_id, lease_epoch, upload, carried, pg_temp.d(file), size, 'f32', n, 8
      FROM task WHERE id = pg_temp.id('t', 1) $$;
SELECT pg_temp.refused('update_fits', $q$SELECT pg_temp.accept(pg_temp.id('u', 1), NULL, 'u1', 1001, 100)$q$); -- over the plan
SELECT pg_temp.refused('update_fits', $q$SELECT pg_temp.accept(pg_temp.id('u', 1), NULL, 'u2', 500, 100)$q$);  -- another file
SELECT pg_temp.refused('update_fits', $q$UPDATE round SET state = 'aggregating', sealed_at = now(), manifest = pg_temp.d('m'); SELECT pg_temp.accept(pg_temp.id('u', 1), NULL, 'u1', 500, 100)$q$);
SELECT pg_temp.refused('update_fits', $q$UPDATE task SET lease_epoch = 2 WHERE id = pg_temp.id('t', 1);
    INSERT INTO update (round_id, slot, task_id, silo_id, lease_epoch, upload_id, digest, bytes, codec, tokens, steps)
    SELECT round_id, slot, id, silo_id, 1, pg_temp.id('u', 1), pg_temp.d('u1'), 100, 'f32', 500, 8 FROM task WHERE id = pg_temp.id('t', 1)$q$); -- a stale lease
SELECT pg_temp.refused('update_one_source', $q$SELECT pg_temp.accept(NULL, NULL, 'u1', 500, 100)$q$);
SELECT pg_temp.refused('update_counts', $q$SELECT pg_temp.accept(pg_temp.id('u', 1), NULL, 'u1', 0, 100)$q$);
SELECT pg_temp.accept(pg_temp.id('u', 1), NULL, 'u1', 500, 100);
SELECT pg_temp.refused('update_upload_once', $q$ALTER TABLE update DISABLE TRIGGER update_fits; INSERT INTO update (round_id, slot, task_id, silo_id, lease_epoch, upload_id, digest, bytes, codec, tokens, steps, state) SELECT round_id, slot, task_id, silo_id, lease_epoch, upload_id, digest, bytes, codec, tokens, steps, 'excluded' FROM update$q$);
SELECT pg_temp.refused('update_seat_counts_once', $q$INSERT INTO upload (id, task_id, silo_id, epoch, sha256, bytes, codec, tokens, steps) VALUES (pg_temp.id('u', 2), pg_temp.id('t', 1), pg_temp.id('s', 1), 1, pg_temp.d('u2'), 100, 'f32', 500, 8);
    UPDATE upload SET received = 100, state = 'placed' WHERE id = pg_temp.id('u', 2);
    SELECT pg_temp.accept(pg_temp.id('u', 2), NULL, 'u2', 500, 100)$q$);
SELECT pg_temp.refused('update_silo_counts_once', $q$ALTER TABLE update DISABLE TRIGGER update_fits;
    INSERT INTO update (round_id, slot, task_id, silo_id, lease_epoch, carried_from, digest, bytes, codec, tokens, steps) SELECT round_id, 1, task_id, silo_id, lease_epoch, id, digest, bytes, codec, tokens, steps FROM update$q$);
SELECT pg_temp.refused('update_seat_fk', $q$ALTER TABLE update DISABLE TRIGGER update_fits;
    INSERT INTO update (round_id, slot, task_id, silo_id, lease_epoch, carried_from, digest, bytes, codec, tokens, steps, state) SELECT round_id, 7, task_id, silo_id, lease_epoch, id, digest, bytes, codec, tokens, steps, 'excluded' FROM update$q$);
SELECT pg_temp.refused('update_lease_fk', $q$ALTER TABLE update DISABLE TRIGGER update_fits;
    INSERT INTO update (round_id, slot, task_id, silo_id, lease_epoch, carried_from, digest, bytes, codec, tokens, steps, state) SELECT round_id, slot, task_id, silo_id, 9, id, digest, bytes, codec, tokens, steps, 'excluded' FROM update$q$);
SELECT pg_temp.refused('update_upload_fk', $q$ALTER TABLE update DISABLE TRIGGER update_fits;
    INSERT INTO update (round_id, slot, task_id, silo_id, lease_epoch, upload_id, digest, bytes, codec, tokens, steps, state) SELECT round_id, slot, task_id, silo_id, lease_epoch, pg_temp.id('u', 7), digest, bytes, codec, tokens, steps, 'excluded' FROM update$q$);
SELECT pg_temp.refused('update_carried_fk', $q$ALTER TABLE update DISABLE TRIGGER update_fits;
    INSERT INTO update (round_id, slot, task_id, silo_id, lease_epoch, carried_from, digest, bytes, codec, tokens, steps, state) SELECT round_id, slot, task_id, silo_id, lease_epoch, 999999, digest, bytes, codec, tokens, steps, 'excluded' FROM update$q$);
SELECT pg_temp.refused('update_blob_fk', $q$ALTER TABLE update DISABLE TRIGGER update_fits;
    INSERT INTO update (round_id, slot, task_id, silo_id, lease_epoch, carried_from, digest, bytes, codec, tokens, steps, state) SELECT round_id, slot, task_id, silo_id, lease_epoch, id, pg_temp.d('nowhere'), bytes, codec, tokens, steps, 'excluded' FROM update$q$);
SELECT pg_temp.refused('update_file_live', $q$ALTER TABLE update DISABLE TRIGGER update_fits; UPDATE blob SET state = 'dead' WHERE digest = pg_temp.d('u1');
    INSERT INTO update (round_id, slot, task_id, silo_id, lease_epoch, carried_from, digest, bytes, codec, tokens, steps, state) SELECT round_id, slot, task_id, silo_id, lease_epoch, id, digest, bytes, codec, tokens, steps, 'excluded' FROM update$q$);
SELECT pg_temp.refused('update_digest_sha256', $q$ALTER TABLE update DISABLE TRIGGER update_fits;
    INSERT INTO update (round_id, slot, task_id, silo_id, lease_epoch, carried_from, digest, bytes, codec, tokens, steps, state) SELECT round_id, slot, task_id, silo_id, lease_epoch, id, 'x', bytes, codec, tokens, steps, 'excluded' FROM update$q$);
SELECT pg_temp.refused('update_finite', $q$UPDATE update SET norm = 'NaN'$q$);
SELECT pg_temp.refused('update_coding_finite', $q$UPDATE update SET fallback_share = 1.5$q$);
SELECT pg_temp.refused('update_step', $q$UPDATE update SET state = 'corrupt'; UPDATE update SET state = 'accepted'$q$);
SELECT pg_temp.refused('update_state_known', $q$ALTER TABLE update DISABLE TRIGGER update_step; UPDATE update SET state = 'unheard'$q$);
SELECT pg_temp.refused('update_immutable', $q$UPDATE update SET tokens = 1$q$);
SELECT pg_temp.refused('update_immutable', $q$UPDATE update SET kept = false; UPDATE update SET kept = true$q$);
-- A blob in use cannot go, one that is let go can.
SELECT pg_temp.refused('update_blob_fk', $q$DELETE FROM blob WHERE digest = pg_temp.d('u1')$q$);
DO $$ BEGIN
    UPDATE update SET kept = false;
    DELETE FROM blob WHERE digest = pg_temp.d('u1');
    RAISE division_by_zero; -- only to undo it
EXCEPTION WHEN division_by_zero THEN NULL; END $$;

-- ---- event, metric and the rest ----
INSERT INTO event (kind, run_id, message) VALUES ('run_created', pg_temp.id('r', 1), 'made');
SELECT pg_temp.refused('event_kind_topic_known', $q$INSERT INTO event_kind VALUES ('x', 'gossip')$q$);
SELECT pg_temp.refused('event_kind_fk', $q$INSERT INTO event (kind, message) VALUES ('gossip', 'x')$q$);
SELECT pg_temp.refused('event_run_fk', $q$INSERT INTO event (kind, run_id, message) VALUES ('run_created', pg_temp.id('r', 7), 'x')$q$);
SELECT pg_temp.refused('event_silo_fk', $q$INSERT INTO event (kind, silo_id, message) VALUES ('silo_seen', pg_temp.id('s', 7), 'x')$q$);
SELECT pg_temp.refused('event_update_fk', $q$INSERT INTO event (kind, update_id, message) VALUES ('update_accepted', 999999, 'x')$q$);
SELECT pg_temp.refused('event_detail_object', $q$INSERT INTO event (kind, message, detail) VALUES ('run_created', 'x', '[]')$q$);
SELECT pg_temp.refused('event_accepted_what', $q$INSERT INTO event (kind, message) VALUES ('update_accepted', 'x')$q$);
SELECT pg_temp.refused('event_accepted_once', $q$INSERT INTO event (kind, update_id, message) SELECT 'update_accepted', u.id, 'x' FROM update u, generate_series(1, 2)$q$);
SELECT pg_temp.refused('event_chain_whole', $q$UPDATE event SET chain_no = 1$q$);
SELECT pg_temp.refused('event_append_only', $q$UPDATE event SET message = 'never happened'$q$);
SELECT pg_temp.refused('event_append_only', $q$SELECT event_chain(pg_temp.id('r', 1), 100); UPDATE event SET chain = pg_temp.d('x')$q$);
SELECT pg_temp.refused('event_chain_once', $q$INSERT INTO event (kind, run_id, message, chain_no, chain) SELECT 'run_created', pg_temp.id('r', 1), 'x', 1, pg_temp.d('x') FROM generate_series(1, 2)$q$);
SELECT pg_temp.refused('event_kept', $q$DELETE FROM event$q$);
SELECT pg_temp.refused('event_not_emptied', $q$TRUNCATE event$q$);
SELECT pg_temp.refused('metric_point_once', $q$INSERT INTO metric (run_id, round, step, name, value) SELECT pg_temp.id('r', 1), 1, 1, 'x', v FROM generate_series(1, 2) v$q$);
SELECT pg_temp.refused('metric_run_fk', $q$INSERT INTO metric (run_id, round, step, name, value) VALUES (pg_temp.id('r', 7), 1, 1, 'x', 1)$q$);
SELECT pg_temp.refused('metric_silo_fk', $q$INSERT INTO metric (run_id, silo_id, round, step, name, value) VALUES (pg_temp.id('r', 1), pg_temp.id('s', 7), 1, 1, 'x', 1)$q$);
SELECT pg_temp.refused('metric_name_plain', $q$INSERT INTO metric (run_id, round, step, name, value) VALUES (pg_temp.id('r', 1), 1, 1, 'No', 1)$q$);
SELECT pg_temp.refused('metric_counts', $q$INSERT INTO metric (run_id, round, step, name, value) VALUES (pg_temp.id('r', 1), 1, -1, 'x', 1)$q$);
SELECT pg_temp.refused('metric_finite', $q$INSERT INTO metric (run_id, round, step, name, value) VALUES (pg_temp.id('r', 1), 1, 1, 'x', 'NaN')$q$);
SELECT pg_temp.refused('metric_finite', $q$INSERT INTO metric (run_id, round, step, name, value) VALUES (pg_temp.id('r', 1), 1, 1, 'x', '-Infinity')$q$);
SELECT pg_temp.refused('metric_latest_once', $q$INSERT INTO metric (run_id, round, step, name, value) VALUES (pg_temp.id('r', 1), 1, 1, 'x', 1); INSERT INTO metric_latest SELECT * FROM metric_latest$q$);
SELECT pg_temp.refused('traffic_run_fk', $q$INSERT INTO traffic (run_id, number, silo_id) VALUES (pg_temp.id('r', 7), 1, pg_temp.id('s', 1))$q$);
SELECT pg_temp.refused('traffic_silo_fk', $q$INSERT INTO traffic (run_id, number, silo_id) VALUES (pg_temp.id('r', 1), 1, pg_temp.id('s', 7))$q$);
SELECT pg_temp.refused('traffic_counts', $q$INSERT INTO traffic (run_id, number, silo_id, upload_bytes) VALUES (pg_temp.id('r', 1), 1, pg_temp.id('s', 1), -1)$q$);
SELECT pg_temp.refused('traffic_day_silo_fk', $q$INSERT INTO traffic_day (silo_id, day) VALUES (pg_temp.id('s', 7), today())$q$);
SELECT pg_temp.refused('traffic_day_counts', $q$INSERT INTO traffic_day (silo_id, day, upload_bytes) VALUES (pg_temp.id('s', 1), today(), -1)$q$);
SELECT pg_temp.refused('idempotency_key_token_fk', $q$INSERT INTO idempotency_key (token_id, key, request) VALUES (pg_temp.id('k', 7), 'x', pg_temp.d('x'))$q$);
SELECT pg_temp.refused('idempotency_key_short', $q$INSERT INTO idempotency_key (token_id, key, request) VALUES (pg_temp.id('k', 1), 'a b', pg_temp.d('x'))$q$);
SELECT pg_temp.refused('idempotency_key_request', $q$INSERT INTO idempotency_key (token_id, key, request) VALUES (pg_temp.id('k', 1), 'x', 'x')$q$);
SELECT pg_temp.refused('idempotency_key_answer', $q$INSERT INTO idempotency_key (token_id, key, request, status) VALUES (pg_temp.id('k', 1), 'x', pg_temp.d('x'), 200)$q$);
SELECT pg_temp.refused('idempotency_key_pk', $q$INSERT INTO idempotency_key (token_id, key, request) SELECT pg_temp.id('k', 1), 'x', pg_temp.d('x') FROM generate_series(1, 2)$q$);

-- ---- the audit log ----
INSERT INTO audit (role, token_id, name, address, action, object, status, request, at) VALUES
    ('admin', pg_temp.id('k', 1), 'a', '::1', 'run_pause', 'r', 200, 'q', DEFAULT),
    ('nobody', NULL, '', '::1', 'access', 'GET /', 401, 'q', clock_timestamp() - interval '91 days');
SELECT pg_temp.refused('audit_token_fk', $q$INSERT INTO audit (role, token_id, name, address, action, object, status, request) VALUES ('admin', pg_temp.id('k', 7), 'a', '', 'x', '', 200, '')$q$);
SELECT pg_temp.refused('audit_role_known', $q$INSERT INTO audit (role, token_id, name, address, action, object, status, request) VALUES ('king', pg_temp.id('k', 1), 'a', '', 'x', '', 200, '')$q$);
SELECT pg_temp.refused('audit_who', $q$INSERT INTO audit (role, name, address, action, object, status, request) VALUES ('admin', 'a', '', 'x', '', 200, '')$q$);
SELECT pg_temp.refused('audit_action_plain', $q$INSERT INTO audit (role, name, address, action, object, status, request) VALUES ('nobody', '', '', 'Do it', '', 200, '')$q$);
SELECT pg_temp.refused('audit_texts_short', $q$INSERT INTO audit (role, name, address, action, object, status, request) VALUES ('nobody', '', '', 'x', repeat('x', 201), 200, '')$q$);
SELECT pg_temp.refused('audit_status_http', $q$INSERT INTO audit (role, name, address, action, object, status, request) VALUES ('nobody', '', '', 'x', '', 0, '')$q$);
SELECT pg_temp.refused('audit_left_out_count', $q$INSERT INTO audit (role, name, address, action, object, status, request, left_out) VALUES ('nobody', '', '', 'x', '', 401, '', -1)$q$);
SELECT pg_temp.refused('audit_append_only', $q$UPDATE audit SET name = 'somebody else'$q$);
SELECT pg_temp.refused('audit_append_only', $q$UPDATE audit SET at = at - interval '1 year'$q$);
SELECT pg_temp.refused('audit_kept', $q$DELETE FROM audit WHERE action = 'run_pause'$q$);
SELECT pg_temp.refused('audit_not_emptied', $q$TRUNCATE audit$q$);
DELETE FROM audit WHERE at < clock_timestamp() - interval '90 days'; -- what is old may be forgotten

-- ---- which rules were never seen at work? ----
CREATE TEMP VIEW rule AS
    SELECT conname::text AS name FROM pg_constraint
     WHERE connamespace = 'public'::regnamespace AND contype IN ('c', 'u', 'f')
    UNION SELECT t.tgname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid
     WHERE NOT t.tgisinternal AND c.relnamespace = 'public'::regnamespace
       AND p.proname IN ('refuse', 'refuse_other_steps', 'update_must_fit')
    UNION SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
     WHERE i.indisunique AND NOT i.indisprimary AND c.relnamespace = 'public'::regnamespace;
DO $$
DECLARE
    never text;
BEGIN
    SELECT string_agg(name, ', ' ORDER BY name) INTO never FROM rule
     WHERE name NOT IN (SELECT rule FROM hit)
       AND name NOT IN ('run_spec_is_object', -- the generated columns refuse an array before it
                        'lease_of_silo', 'round_of_run') -- there for foreign keys: wider than the primary key
       AND name NOT LIKE 'session%';
    IF never IS NOT NULL THEN
        RAISE 'never seen to refuse anything: %', never;
    END IF;
END $$;
ROLLBACK;
