-- What the role that serves may not do: change the tables, or the past. Each statement must be refused for want of a
-- right, and the server's own statements must not be.
BEGIN;
CREATE TABLE IF NOT EXISTS migration (number integer PRIMARY KEY, name text, sha256 bytea); -- photon-server makes it
CREATE ROLE schema_roles_server;
SELECT let_serve('schema_roles_server');
INSERT INTO token (id, hash, role, name) VALUES ('k_' || repeat('0', 26), sha256('x'), 'admin', 'a');
INSERT INTO audit (role, token_id, name, address, action, object, status, request)
    VALUES ('admin', 'k_' || repeat('0', 26), 'a', '::1', 'run_pause', 'r', 200, 'q');
INSERT INTO event (kind, message) VALUES ('run_created', 'x');
SET LOCAL ROLE schema_roles_server;

CREATE FUNCTION pg_temp.denied(statement text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    BEGIN
        EXECUTE statement;
    EXCEPTION WHEN insufficient_privilege THEN
        RETURN;
    END;
    RAISE 'the role that serves was let: %', statement;
END
$$;
SELECT pg_temp.denied(statement) FROM (VALUES
    ('DROP TABLE audit'), ('DROP TABLE run CASCADE'), ('TRUNCATE audit'), ('TRUNCATE event'), ('TRUNCATE run CASCADE'),
    ('ALTER TABLE audit DISABLE TRIGGER ALL'), ('ALTER TABLE audit DISABLE TRIGGER audit_append_only'),
    ('DROP TRIGGER audit_kept ON audit'), ('ALTER TABLE token ADD COLUMN secret text'), ('DROP INDEX audit_by_age'),
    ('CREATE TABLE own (x text)'), ('CREATE TRIGGER t BEFORE INSERT ON token FOR EACH ROW EXECUTE FUNCTION notify_topic()'),
    ('CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE sql AS ''SELECT NULL'''), ('DROP FUNCTION let_serve(name)'),
    ('CREATE RULE r AS ON INSERT TO audit DO INSTEAD NOTHING'),
    ('SET session_replication_role = replica'), ('CREATE ROLE another'),
    ('UPDATE audit SET name = ''b'''), ('UPDATE event SET message = ''y'''), ('DELETE FROM event'), ('DELETE FROM token'),
    ('DELETE FROM run'), ('UPDATE migration SET name = ''x'''), ('INSERT INTO migration VALUES (99, ''x'', ''x'')'),
    ('DELETE FROM migration'), ('INSERT INTO event_kind VALUES (''x'', ''run'')'), ('SELECT let_serve(current_user)'),
    ('COPY audit TO PROGRAM ''cat''')) t (statement);


DO $$
DECLARE
    who text;
BEGIN
    DELETE FROM audit;
EXCEPTION WHEN check_violation THEN
    GET STACKED DIAGNOSTICS who = CONSTRAINT_NAME;
    IF who <> 'audit_kept' THEN
        RAISE 'refused by %', who;
    END IF;
END $$;
DO $$ BEGIN
    IF (SELECT count(*) FROM audit) <> 1 THEN
        RAISE 'the past of the audit log is not as it was';
    END IF;
END $$;

-- What it is there for.
INSERT INTO audit (role, name, address, action, object, status, request) VALUES ('nobody', '', '::1', 'access', 'GET /', 401, 'q');
INSERT INTO event (kind, message) VALUES ('run_created', 'y');
UPDATE event SET chain_no = 1, chain = sha256('x') WHERE message = 'y';
UPDATE token SET used_at = now();
DELETE FROM session;
SELECT count(*) FROM migration;
ROLLBACK;
