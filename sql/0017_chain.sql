-- 0017_chain.sql: events are chained beside the rounds, some at a time. All at once in the transaction that publishes a
-- round they took longer than a statement may, after some hundred thousand of them, and that round never closed.

DROP FUNCTION event_chain(text);
DROP INDEX event_unchained;
CREATE INDEX event_unchained ON event (run_id, xid, id) WHERE chain IS NULL AND run_id IS NOT NULL;
COMMENT ON COLUMN event.chain IS 'SHA-256 of the chain before it and the row, per run; null until a server has come round to it.';

-- Chain the run's oldest events that are not chained yet, at most so many; how many they were. None while another session
-- is at the same run: it goes on there, and each statement here sees what a session before it has committed. Without sorts
-- the events come from their index, so that few of very many take no longer than few.
CREATE FUNCTION event_chain(the_run text, most integer) RETURNS integer LANGUAGE plpgsql SET enable_sort = off AS $$
DECLARE
    e        event;
    last_no  bigint;
    last     bytea;
    n        integer := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended(the_run, 1)) THEN -- 0 is the key of its aggregation
        RETURN 0;
    END IF;
    SELECT chain_no, chain INTO last_no, last FROM event
     WHERE run_id = the_run AND chain_no IS NOT NULL ORDER BY chain_no DESC LIMIT 1;
    last_no := coalesce(last_no, 0);
    FOR e IN SELECT * FROM event WHERE run_id = the_run AND chain IS NULL ORDER BY xid, id LIMIT most LOOP
        n := n + 1;
        last := event_link(last, e);
        UPDATE event SET chain_no = last_no + n, chain = last WHERE id = e.id;
    END LOOP;
    RETURN n;
END
$$;
