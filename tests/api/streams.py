"""Server-Sent Events: live, resumed without gap or double, filtered, ended with their token."""

import time

from fixture import NOBODY, OTHER, RUN
from kit import Stream, in_time, psql, thrice, until

STREAMS_MAX = 256  # LIMIT_STREAMS of common/limits.h


def say(text, run=OTHER):
    psql("INSERT INTO event (kind, run_id, message) VALUES ('run_paused', '%s', '%s')" % (run, text))


def hears(stream, text):
    """The event comes. Others may come before it: what was written while events were chained is seen a little later."""
    for _ in range(200):
        event = stream.event()
        assert event and event["event"] != "reset", event
        if '"%s"' % text in event["data"]:
            return
    raise AssertionError("many events, but not " + text)


def ends_soon(stream):
    """Comments keep a stream that should have ended alive, so its blocks are counted."""
    start = time.monotonic()
    for _ in range(3):
        if stream.block() is None:
            break
    else:
        raise AssertionError("the stream goes on")
    in_time(start)


@thrice
def test_an_event_arrives_within_a_second(server):
    stream = Stream(server)
    assert stream.status == 200 and stream.headers["content-type"] == "text/event-stream"
    first = stream.block()
    assert first["retry"] == "3000" and "-" in first["id"]
    start = time.monotonic()
    say("hello")
    event = stream.event()
    assert event["event"] == "run" and '"hello"' in event["data"]
    in_time(start)
    server.api.validate({"$ref": "#/components/schemas/Event"}, __import__("json").loads(event["data"]), "event")
    stream.close()


def test_a_stream_resumes_without_gap_or_double(server):
    stream = Stream(server)
    stream.block()
    say("one")
    last = stream.event()["id"]
    stream.close()
    for i in range(25):
        say("missed %d" % i)
    for resumed in (Stream(server, headers={"Last-Event-ID": last}), Stream(server, "?after=" + last)):
        say("after")
        seen = [resumed.event()["data"] for _ in range(25)]
        assert all('"missed %d"' % i in text for i, text in enumerate(seen)), seen
        assert '"after"' in resumed.event()["data"]
        resumed.close()


def test_events_of_transactions_that_commit_late_are_not_skipped(server):
    """An id drawn early and committed late lies below ids that were read long before."""
    import os
    import subprocess
    stream = Stream(server)
    stream.block()
    slow = subprocess.Popen(["psql", "-X", "-q"], stdin=subprocess.PIPE, env=os.environ, text=True)
    slow.stdin.write("BEGIN; INSERT INTO event (kind, run_id, message) VALUES ('run_paused', '%s', 'early');\n" % OTHER)
    slow.stdin.flush()
    until("the slow transaction", lambda: psql("SELECT 1 FROM pg_stat_activity WHERE state = 'idle in transaction'"
                                                " AND query LIKE '%''early''%'"))
    say("late")
    time.sleep(1.5)  # long enough for the reader to look past it
    slow.stdin.write("COMMIT;\n")
    slow.stdin.close()
    slow.wait()
    seen = []
    while not seen or '"late"' not in seen[-1]:  # what was said before may still come, and comes first
        seen.append(stream.event()["data"])
    assert sum('"early"' in text for text in seen) == 1, seen
    stream.close()


def test_a_stream_of_one_run_shows_no_other(server):
    stream = Stream(server, "?run=" + RUN)
    stream.block()
    say("not for you")
    say("for you", RUN)
    assert '"for you"' in stream.event()["data"]
    stream.close()
    assert server.get("/api/v1/stream?run=r_" + NOBODY).status == 404


def test_too_many_missed_events_are_a_reset(server):
    psql("INSERT INTO event (kind, run_id, message) SELECT 'run_paused', '%s', 'flood' FROM generate_series(1, 10050)" % OTHER)
    stream = Stream(server, "?after=0-0")
    event = stream.event()
    assert event["event"] == "reset"
    say("after the flood")
    hears(stream, "after the flood")
    stream.close()


def test_a_place_of_another_database_resets_its_stream_and_stops_no_other(server):
    until("no stream is open", lambda: say("tick") or "photon_streams 0" in server.get("/metrics").body.decode(), 20)
    (xmax,) = psql("SELECT pg_snapshot_xmax(pg_current_snapshot())")[0]
    strange = Stream(server, "?after=%d-1" % (int(xmax) + 10**6))
    assert strange.event()["event"] == "reset"
    ahead = Stream(server, "?after=%s-99999999" % psql("SELECT max(xid::text::bigint) FROM event")[0][0])
    other = Stream(server)
    other.block()
    say("heard by all")
    hears(other, "heard by all")
    hears(strange, "heard by all")
    for stream in (strange, ahead, other):
        stream.close()


@thrice
def test_a_revoked_token_ends_its_streams_within_a_second(server):
    token = server.post("/api/v1/tokens", {"role": "viewer", "name": "watcher"}).json()
    stream = Stream(server, token=token["secret"])
    stream.block()
    server.call("DELETE", "/api/v1/tokens/" + token["id"])
    ends_soon(stream)
    stream.close()


@thrice
def test_logging_out_ends_the_streams_of_that_session_alone(server):
    def login():
        return server.post("/api/v1/login", {"token": server.token}, token=None).header("Set-Cookie").split(";")[0]
    mine, other = login(), login()
    leaving, staying, bearer = Stream(server, headers={"Cookie": mine}), Stream(
        server, token=None, headers={"Cookie": other}), Stream(server)
    for stream in (leaving, staying, bearer):
        stream.block()
    origin = "http://127.0.0.1:%d" % server.port
    assert server.call("DELETE", "/api/v1/login", token=None, headers={"Cookie": mine, "Origin": origin}).status == 204
    ends_soon(leaving)
    say("heard by who stayed")
    for stream in (staying, bearer):
        hears(stream, "heard by who stayed")
        stream.close()
    ending = Stream(server, headers={"Cookie": other})
    ending.block()
    psql("UPDATE session SET created_at = clock_timestamp() - interval '1 s', expires_at = clock_timestamp()")
    ends_soon(ending)
    leaving.close()
    ending.close()


def test_clients_that_vanish_leave_no_stream_behind(server):
    def streams():
        for line in server.get("/metrics").body.decode().splitlines():
            if line.startswith("photon_streams "):
                return int(line.split()[1])
    until("the streams of earlier tests to end", lambda: say("tick") or streams() == 0, 20)
    open_ones = [Stream(server) for _ in range(20)]
    until("twenty streams", lambda: streams() == 20)
    for stream in open_ones:
        stream.close()
    until("no stream", lambda: say("tick") or streams() == 0, 20)


def test_all_the_streams_that_are_allowed_are_served_and_looked_after(server):
    """Every look at the log asks for the readers of all of them. One stream more is refused, and none ends for it."""
    def streams(count):
        return "photon_streams %d\n" % count in server.get("/metrics").body.decode()
    until("the streams of earlier tests to end", lambda: say("tick") or streams(0), 20)
    token = server.post("/api/v1/tokens", {"role": "viewer", "name": "one of many"}).json()
    ending = Stream(server, token=token["secret"])
    staying = [Stream(server) for _ in range(STREAMS_MAX - 1)]
    beyond = Stream(server)
    assert beyond.status == 503
    for text in ("heard by all", "once more", "and again"):  # a look at the readers lies between two of them
        say(text)
        for stream in [ending] + staying:
            hears(stream, text)
    assert streams(STREAMS_MAX)
    server.call("DELETE", "/api/v1/tokens/" + token["id"])
    until("the stream of the revoked token to end", lambda: streams(STREAMS_MAX - 1))
    while ending.block() is not None:
        pass
    say("heard by who stayed")
    for stream in staying:
        hears(stream, "heard by who stayed")
    for stream in [ending, beyond] + staying:
        stream.close()
    until("no stream", lambda: say("tick") or streams(0), 20)
