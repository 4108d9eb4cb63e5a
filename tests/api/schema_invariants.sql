-- invariant_broken says nothing of a sound run and finds each planted violation; summaries and the chain
-- of events are what they claim. Violations are planted with every trigger and foreign key switched off.
BEGIN;
CREATE FUNCTION pg_temp.id(prefix text, n integer) RETURNS text LANGUAGE sql AS $$
    SELECT prefix || '_' || lpad(n::text, 26, '0') $$;
CREATE FUNCTION pg_temp.d(text) RETURNS bytea LANGUAGE sql AS $$ SELECT sha256(convert_to($1, 'UTF8')) $$;

-- One closed round of one silo, written as the server writes it.
\set spec '{"federation":{"rounds":2,"silos_per_round":1,"min_silos":1,"local_steps":8}}'
INSERT INTO run (id, name, spec, spec_text, spec_sha256, params) VALUES (pg_temp.id('r', 1), 'one', :'spec'::jsonb, :'spec', pg_temp.d(:'spec'), 10);
INSERT INTO silo (id, name) VALUES (pg_temp.id('s', 1), 'ash'), (pg_temp.id('s', 2), 'birch');
INSERT INTO blob (digest, bytes) SELECT pg_temp.d(x), 100 FROM unnest(ARRAY['w0', 'w1', 'u1']) x;
UPDATE run SET state = 'running';
INSERT INTO checkpoint (run_id, number, weights, weights_bytes, weights_digest, params, finite) VALUES (pg_temp.id('r', 1), 0, pg_temp.d('w0'), 100, pg_temp.d('x'), 10, true);
UPDATE run SET head = 0;
INSERT INTO round (run_id, number, silos_expected, quorum) VALUES (pg_temp.id('r', 1), 1, 1, 1);
UPDATE round SET state = 'open', opened_at = now(), deadline = now(), cap_at = now();
INSERT INTO task (id, kind, run_id, round_id, number, slot, silo_id, plan_tokens) SELECT pg_temp.id('t', 1), 'train', run_id, id, 1, 0, pg_temp.id('s', 1), 1000 FROM round;
UPDATE task SET state = 'leased', lease_epoch = 1, lease_until = now();
INSERT INTO lease (task_id, epoch, silo_id) VALUES (pg_temp.id('t', 1), 1, pg_temp.id('s', 1));
INSERT INTO upload (id, task_id, silo_id, epoch, sha256, bytes, codec, tokens, steps) VALUES (pg_temp.id('u', 1), pg_temp.id('t', 1), pg_temp.id('s', 1), 1, pg_temp.d('u1'), 100, 'f32', 500, 8);
UPDATE upload SET state = 'placed', received = 100;
INSERT INTO update (round_id, slot, task_id, silo_id, lease_epoch, upload_id, digest, bytes, codec, tokens, steps)
    SELECT round_id, 0, id, silo_id, 1, pg_temp.id('u', 1), pg_temp.d('u1'), 100, 'f32', 500, 8 FROM task;
UPDATE lease SET outcome = 'accepted', ended_at = now();
UPDATE task SET state = 'done', lease_until = NULL;
UPDATE upload SET state = 'accepted';
INSERT INTO event (kind, run_id, update_id, message) SELECT 'update_accepted', pg_temp.id('r', 1), id, 'x' FROM update;
UPDATE round SET state = 'aggregating', sealed_at = now(), manifest = (SELECT m FROM manifest_now);
INSERT INTO checkpoint (run_id, number, weights, weights_bytes, weights_digest, params, finite, manifest) SELECT run_id, 1, pg_temp.d('w1'), 100, pg_temp.d('x'), 10, true, manifest FROM round;
UPDATE run SET head = 1;
UPDATE round SET state = 'closed', closed_at = now();
SELECT event_chain(pg_temp.id('r', 1), 100);

DO $$ BEGIN
    IF EXISTS (SELECT FROM invariant_broken) THEN
        RAISE 'a sound run is called broken: %', (SELECT string_agg(rule || ' ' || what, ', ') FROM invariant_broken);
    END IF;
    IF (SELECT m FROM manifest_now) <> sha256('\x00000000'::bytea || pg_temp.d('u1') || '\x00000000000001f4'::bytea) THEN
        RAISE 'manifest_now is not the digest of slot, digest and tokens';
    END IF;
END $$;

CREATE FUNCTION pg_temp.finds(the_rule text, planted text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    seen boolean;
BEGIN
    BEGIN
        SET LOCAL session_replication_role = replica;
        EXECUTE planted;
        SELECT the_rule IN (SELECT rule FROM invariant_broken) INTO seen;
        RAISE division_by_zero; -- only to undo it
    EXCEPTION WHEN division_by_zero THEN NULL;
    END;
    IF NOT seen THEN
        RAISE '% does not see: %', the_rule, planted;
    END IF;
END
$$;
SELECT pg_temp.finds('I2', 'DROP INDEX update_seat_counts_once; DROP INDEX update_silo_counts_once; INSERT INTO update (round_id, slot, task_id, silo_id, lease_epoch, carried_from, digest, bytes, codec, tokens, steps) SELECT round_id, slot, task_id, silo_id, lease_epoch, id, digest, bytes, codec, tokens, steps FROM update');
SELECT pg_temp.finds('I3', $q$UPDATE checkpoint SET manifest = pg_temp.d('other') WHERE number = 1$q$);
SELECT pg_temp.finds('I4', 'UPDATE run SET head = 0');
SELECT pg_temp.finds('I4', 'DELETE FROM checkpoint WHERE number = 0');
SELECT pg_temp.finds('I5', $q$INSERT INTO round (run_id, number, silos_expected, quorum) VALUES (pg_temp.id('r', 1), 1, 1, 1) ON CONFLICT DO NOTHING; UPDATE round SET state = 'pending', opened_at = NULL, deadline = NULL, cap_at = NULL, closed_at = NULL, manifest = NULL$q$);
SELECT pg_temp.finds('I6', $q$UPDATE update SET state = 'excluded'$q$);
SELECT pg_temp.finds('I6', 'UPDATE update SET tokens = 499');
SELECT pg_temp.finds('I7', $q$UPDATE task SET state = 'cancelled'$q$);
SELECT pg_temp.finds('I7', $q$UPDATE task SET lease_epoch = 0, state = 'cancelled'$q$);
SELECT pg_temp.finds('I7', 'UPDATE lease SET outcome = NULL, ended_at = NULL');
SELECT pg_temp.finds('I7', $q$UPDATE task SET state = 'leased', lease_until = now()$q$);
SELECT pg_temp.finds('I7', $q$UPDATE lease SET silo_id = pg_temp.id('s', 2)$q$);
SELECT pg_temp.finds('I8', $q$UPDATE blob SET state = 'dead' WHERE digest = pg_temp.d('w0')$q$);
SELECT pg_temp.finds('I8', $q$DELETE FROM blob WHERE digest = pg_temp.d('u1')$q$);
SELECT pg_temp.finds('I12', $q$UPDATE checkpoint SET (outer_state, step, step_bytes, step_codec, step_error, step_residual, step_fallback)
    = (weights, weights, 9, 'q4', 0, 0, 0) WHERE number = 1$q$);
SELECT pg_temp.finds('I8', $q$UPDATE checkpoint SET (outer_state, step, step_bytes, step_codec, step_error, step_residual, step_fallback)
    = (weights, pg_temp.d('u1'), 9, 'q4', 0, 0, 0) WHERE number = 1; UPDATE blob SET state = 'dead' WHERE digest = pg_temp.d('u1')$q$);
SELECT pg_temp.finds('I10', 'UPDATE checkpoint SET params = 9 WHERE number = 1');
SELECT pg_temp.finds('I11', 'DELETE FROM event');
SELECT pg_temp.finds('I11', $q$DROP INDEX event_accepted_once; INSERT INTO event (kind, update_id, message) SELECT 'update_accepted', id, 'twice' FROM update$q$);

-- Who needs a file: every foreign key to blob counts, also that of a table nobody knew of when this was written.
INSERT INTO blob (digest, bytes) VALUES (pg_temp.d('spare'), 100);
CREATE TABLE other_need (file bytea REFERENCES blob (digest));
DO $$ BEGIN
    IF (SELECT string_agg(encode(digest, 'hex'), '') FROM blob WHERE NOT blob_in_use(digest)) <> encode(pg_temp.d('spare'), 'hex') THEN
        RAISE 'blob_in_use misses a file of a checkpoint or an update, or sees a need where there is none';
    END IF;
    INSERT INTO other_need VALUES (pg_temp.d('spare'));
    IF NOT blob_in_use(pg_temp.d('spare')) THEN
        RAISE 'blob_in_use does not see a new kind of reference';
    END IF;
    UPDATE checkpoint SET kept = false WHERE number = 0;
    IF blob_in_use(pg_temp.d('w0')) THEN
        RAISE 'a checkpoint that is let go still needs its file';
    END IF;
END $$;

-- The chain: every link follows from the one before it, and a changed row is noticed.
INSERT INTO event (kind, run_id, message) VALUES ('round_closed', pg_temp.id('r', 1), 'second'), ('run_paused', pg_temp.id('r', 1), 'third');
SELECT event_chain(pg_temp.id('r', 1), 100);
DO $$
DECLARE
    broken text := 'SELECT count(*) FROM (SELECT e.chain, event_link(lag(e.chain) OVER (PARTITION BY e.run_id ORDER BY e.chain_no), e) AS want FROM event e) x WHERE chain <> want';
    n bigint;
BEGIN
    EXECUTE broken INTO n;
    IF n <> 0 OR (SELECT max(chain_no) FROM event) <> 3 THEN
        RAISE 'the chain does not hold: % links of % are broken', n, (SELECT max(chain_no) FROM event);
    END IF;
    SET LOCAL session_replication_role = replica;
    UPDATE event SET message = 'never' WHERE message = 'second';
    EXECUTE broken INTO n;
    IF n <> 1 THEN
        RAISE 'a changed event breaks % links instead of 1', n;
    END IF;
    SET LOCAL session_replication_role = origin;
END $$;

-- The summary of a curve is that of its points, in whatever order and however often they came.
INSERT INTO metric (run_id, silo_id, round, step, name, value) VALUES
    (pg_temp.id('r', 1), pg_temp.id('s', 1), 1, 3, 'train_loss', 5), (pg_temp.id('r', 1), pg_temp.id('s', 1), 1, 4, 'train_loss', 4);
INSERT INTO metric (run_id, silo_id, round, step, name, value) VALUES
    (pg_temp.id('r', 1), pg_temp.id('s', 1), 1, 1, 'train_loss', 9), (pg_temp.id('r', 1), pg_temp.id('s', 1), 1, 4, 'train_loss', 99),
    (pg_temp.id('r', 1), NULL, 1, 8, 'train_loss', 1) ON CONFLICT DO NOTHING;
DO $$ BEGIN
    IF (SELECT (points, last, last_step, min, max, first, first_step)::text FROM metric_latest WHERE silo_id IS NOT NULL) <> '(3,4,4,4,9,9,1)' THEN
        RAISE 'metric_latest says %', (SELECT (points, last, last_step, min, max, first, first_step)::text FROM metric_latest WHERE silo_id IS NOT NULL);
    END IF;
    IF (SELECT count(*) FROM metric_latest) <> 2 THEN
        RAISE 'a curve of all silos and one of a silo are not the same curve';
    END IF;
END $$;
ROLLBACK;
