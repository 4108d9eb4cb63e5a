-- 0009_store.sql: who needs a file, and what is said of files that were lost.

INSERT INTO event_kind (kind, topic) VALUES ('upload_lost', 'task'), ('checkpoint_rebuilt', 'checkpoint');

-- Every foreign key to blob counts, of whatever table, so that a new kind of reference is seen by the cleaner on the day it is made.
CREATE FUNCTION blob_in_use(d bytea) RETURNS boolean LANGUAGE plpgsql STABLE COST 10000 AS $$
DECLARE
    k   record;
    yes boolean;
BEGIN
    IF EXISTS (SELECT FROM upload WHERE sha256 = d AND state IN ('open', 'placed')) THEN
        RETURN true;
    END IF;
    FOR k IN SELECT c.conrelid::regclass AS place, a.attname AS field
               FROM pg_constraint c
               JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
              WHERE c.contype = 'f' AND c.confrelid = 'blob'::regclass
    LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE %I = $1)', k.place, k.field) INTO yes USING d;
        IF yes THEN
            RETURN true;
        END IF;
    END LOOP;
    RETURN false;
END
$$;
COMMENT ON FUNCTION blob_in_use(bytea) IS 'Does a kept checkpoint, a kept update, an upload under way or any other row need this file?';
CREATE INDEX upload_by_sha256 ON upload (sha256) WHERE state IN ('open', 'placed');

-- A new reference to a file that is about to be removed would come too late: its row must be live, and this keeps it so.
CREATE FUNCTION blob_must_live() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    now_is text;
BEGIN
    SELECT state INTO now_is FROM blob WHERE digest = (to_jsonb(NEW) ->> TG_ARGV[0])::bytea FOR SHARE;
    IF now_is <> 'live' THEN -- where there is no row at all the foreign key refuses
        RAISE EXCEPTION '% refused: its file is about to be removed', TG_TABLE_NAME
            USING ERRCODE = 'foreign_key_violation', CONSTRAINT = TG_NAME, TABLE = TG_TABLE_NAME;
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER checkpoint_weights_live BEFORE INSERT ON checkpoint FOR EACH ROW EXECUTE FUNCTION blob_must_live('weights');
CREATE TRIGGER checkpoint_state_live BEFORE INSERT ON checkpoint FOR EACH ROW EXECUTE FUNCTION blob_must_live('outer_state');
CREATE TRIGGER update_file_live BEFORE INSERT ON update FOR EACH ROW EXECUTE FUNCTION blob_must_live('digest');
