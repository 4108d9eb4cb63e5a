-- 0018_wakes.sql: fewer notifications. PostgreSQL lets one transaction that notifies commit at a time, and it holds the
-- others up until its commit is on the disk: a notification with each claim and each result put all of them in a row.

-- Who shows events looks for new ones four times a second.
DROP TRIGGER event_notify ON event;

-- A task that is done concerns the server that was told so, and that one knows.
DROP TRIGGER task_notify_free ON task;
CREATE TRIGGER task_notify_free AFTER UPDATE OF state ON task FOR EACH ROW
    WHEN (OLD.state <> NEW.state AND NEW.state = 'pending') EXECUTE FUNCTION task_free();

CREATE TRIGGER round_notify AFTER UPDATE OF state ON round FOR EACH ROW
    WHEN (OLD.state <> NEW.state) EXECUTE FUNCTION notify_topic('rounds');
