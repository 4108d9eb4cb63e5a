"""The chain of events: made beside the rounds, however many events there are, by one session at a time, and whole at any time."""

import contextlib

from kit import Psql, psql, until
from rounds import one, wait_round
from silos import begin, no_violations
from store import check, new_violations

MANY = 12000
KEY = 17017  # no one else's lock


def add_events(run, n):
    psql("INSERT INTO event (kind, run_id, message) SELECT 'metrics_added', '%s', 'point ' || i FROM generate_series(1, %d) i"
         % (run, n))


def chained(run):
    return int(one("SELECT count(*) FROM event WHERE run_id = '%s' AND chain IS NOT NULL" % run))


def all_chained(run):
    return one("SELECT count(*) FROM event WHERE run_id = '%s' AND chain IS NULL" % run) == "0"


@contextlib.contextmanager
def held_at(run, number):
    """The link of that number and those after it wait."""
    holder = Psql()
    holder.ask("SELECT pg_advisory_lock(%d)" % KEY)
    psql("CREATE FUNCTION link_waits() RETURNS trigger LANGUAGE plpgsql AS"
         " $$ BEGIN PERFORM pg_advisory_xact_lock(%d); RETURN NEW; END $$;"
         "CREATE TRIGGER link_waits BEFORE UPDATE ON event FOR EACH ROW WHEN (OLD.run_id = '%s' AND NEW.chain_no >= %d)"
         " EXECUTE FUNCTION link_waits()" % (KEY, run, number))
    try:
        yield
    finally:
        holder.ask("SELECT pg_advisory_unlock(%d)" % KEY)
        holder.stop()
        psql("DROP FUNCTION link_waits CASCADE")


def test_a_round_with_very_many_events_closes_and_they_are_chained_beside_it(server):
    run, (ash,) = begin(server, 1, rounds=1)
    task = ash.task()
    data, tokens = ash.update(task)
    upload = ash.send(task, data, tokens)
    before = check(server)[2]
    with held_at(run, 2000):  # far enough that a first piece is done, wherever it begins
        add_events(run, MANY)
        assert ash.finish(task, upload).status == 200
        wait_round(run, 1, "closed")
        until("the first of them to be chained", lambda: chained(run) > 500)
        assert new_violations(server, before) == []  # whole as far as it goes
        assert chained(run) < 2000
    ash.evaluate(ash.task("evaluate"))
    until("the run to end", lambda: one("SELECT state FROM run WHERE id = '%s'" % run) == "finished")
    until("all of them to be chained", lambda: all_chained(run), 30)
    assert chained(run) > MANY and new_violations(server, before) == []
    (last,) = psql("SELECT max(chain_no), count(*) FROM event WHERE run_id = '%s'" % run)
    assert last[0] == last[1], "numbers are missing"
    no_violations()


def test_a_changed_event_is_found(server):
    run, _ = begin(server, 1)
    add_events(run, 3)
    until("the events to be chained", lambda: all_chained(run))
    before = check(server)[2]
    say = "BEGIN; SET LOCAL session_replication_role = replica; UPDATE event SET message = '%s' WHERE run_id = '%s'" \
          " AND message = '%s'; COMMIT"
    psql(say % ("never", run, "point 2"))
    try:
        rc, broken, _ = check(server)
        assert rc == 1 and "chain" in broken
        (found,) = [l for l in new_violations(server, before) if l.startswith("chain " + run)]
        assert "was changed after it was written" in found, found
    finally:
        psql(say % ("point 2", run, "never"))
    assert new_violations(server, before) == []


def test_two_sessions_chain_one_run_in_turn_and_what_is_cut_is_done_again(server):
    run, _ = begin(server, 1)
    before = check(server)[2]
    other = Psql()
    link = "SELECT event_chain('%s', 5)" % run
    try:
        for end in ("ROLLBACK", "COMMIT"):
            other.ask("BEGIN; SELECT pg_advisory_xact_lock(hashtextextended('%s', 1))" % run)  # the server's own look is over
            add_events(run, 20)
            assert other.ask(link) == ["5"]
            psql("SET lock_timeout = '2s'")
            assert psql(link) == [["0"]]
            assert not all_chained(run)
            other.ask(end)
            until("the server to chain the rest", lambda: all_chained(run))
            assert new_violations(server, before) == []
    finally:
        psql("RESET lock_timeout")
        other.stop()


def test_a_stopped_run_is_chained_to_its_end(server):
    run, _ = begin(server, 1)
    assert server.post("/api/v1/runs/%s/actions" % run, {"action": "stop"}).status == 200
    until("its stop to be chained",
          lambda: one("SELECT chain IS NOT NULL FROM event WHERE run_id = '%s' AND kind = 'run_stopped'" % run) == "t")
    until("all of it to be chained", lambda: all_chained(run))
