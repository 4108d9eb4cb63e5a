-- 0018_wakes.sql: fewer notifications, and less to look through. PostgreSQL lets one transaction that notifies commit at a
-- time, and it holds the others up until its commit is on the disk: a notification with each claim and each result put all
-- of them in a row.

-- Who shows events looks for new ones four times a second.
DROP TRIGGER event_notify ON event;

-- A task that is done concerns the server that was told so, and that one knows.
DROP TRIGGER task_notify_free ON task;
CREATE TRIGGER task_notify_free AFTER UPDATE OF state ON task FOR EACH ROW
    WHEN (OLD.state <> NEW.state AND NEW.state = 'pending') EXECUTE FUNCTION task_free();

CREATE TRIGGER round_notify AFTER UPDATE OF state ON round FOR EACH ROW
    WHEN (OLD.state <> NEW.state) EXECUTE FUNCTION notify_topic('rounds');

-- Whether a run is being evaluated is asked again and again: not of all that it ever evaluated.
CREATE INDEX task_evaluating ON task (run_id, number) WHERE kind = 'evaluate' AND state IN ('pending', 'leased');
