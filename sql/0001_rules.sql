-- 0001_rules.sql: functions that triggers share. Tables follow in the next files.
--
-- Each file is applied once, in order, in a transaction of its own under the migration lock; the
-- file says no BEGIN or COMMIT. A landed file is never edited: the next change is the next number.
-- Only clock_timestamp() decides about time, so that a long transaction never lives in the past.

-- Refuses every change of state that is not among the trigger's arguments ('open>aggregating', …).
CREATE FUNCTION refuse_other_steps() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.state || '>' || NEW.state = ANY (TG_ARGV) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION '% cannot go from % to %', TG_TABLE_NAME, OLD.state, NEW.state
        USING ERRCODE = 'check_violation', CONSTRAINT = TG_NAME, TABLE = TG_TABLE_NAME;
END
$$;

-- Refuses what the trigger's WHEN clause found; the first argument says it in words.
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '%: %', TG_TABLE_NAME, TG_ARGV[0]
        USING ERRCODE = 'check_violation', CONSTRAINT = TG_NAME, TABLE = TG_TABLE_NAME;
END
$$;

-- Wakes whoever waits for the topic given as the first argument. A hint: waiters look again each second.
CREATE FUNCTION notify_topic() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('photon', TG_ARGV[0]);
    RETURN NULL;
END
$$;

CREATE FUNCTION stamp_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := clock_timestamp();
    RETURN NEW;
END
$$;

CREATE FUNCTION is_finite(v double precision) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT v - v = 0 $$;
COMMENT ON FUNCTION is_finite IS 'False for NaN and both infinities: PostgreSQL says NaN - NaN = NaN.';
