"""A second server over the same store is asked to stop: what is in hand ends well, what waits is told, and soon."""

import json
import os
import select
import signal
import socket
import subprocess
import time

from kit import ROOT, SOON_S, free_port, in_time, psql, thrice, until
from silo_client import Silo
from silos import begin, fresh_name, other_runs_off


class Second:
    """Another server, with a socket as a service manager's."""

    def __init__(self, server):
        self.server = server
        self.token = server.token
        self.port, self.bulk_port = free_port(), free_port()
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.path = os.path.join(server.dir, "notify-%d" % self.port)
        self.manager.bind(self.path)
        self.manager.settimeout(30)
        database = "host=%s user=%s dbname=%s" % (os.environ["PGHOST"], os.environ["PGUSER"], os.environ["PGDATABASE"])
        with open(os.path.join(server.dir, "server.log"), "a") as log:
            self.process = subprocess.Popen(
                [server.program, "--data", os.path.join(server.dir, "data"), "--database", database, "--unsafe-database",
                 "--listen", "127.0.0.1:%d" % self.port, "--bulk-listen", "127.0.0.1:%d" % self.bulk_port,
                 "--web", os.path.join(ROOT, "web")], stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=ROOT,
                env=dict(os.environ, NOTIFY_SOCKET=self.path, WATCHDOG_USEC="2000000"))

    def __enter__(self):
        assert self.hears() == b"READY=1"
        return self

    def __exit__(self, *what):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.manager.close()
        os.unlink(self.path)

    def hears(self):
        return self.manager.recv(200)

    def ask(self, text, bulk=False):
        s = socket.create_connection(("127.0.0.1", self.bulk_port if bulk else self.port), timeout=30)
        s.sendall(text)
        return s

    def post(self, silo, path, body):
        text = json.dumps(body)
        return self.ask(("POST /silo/v1%s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nPhoton-Protocol: 1\r\nContent-Type: "
                         "application/json\r\nContent-Length: %d\r\n\r\n%s" % (path, silo.token, len(text), text)).encode())


def test_a_service_manager_hears_of_start_life_and_end(server):
    with Second(server) as second:
        assert second.hears() == b"WATCHDOG=1"
        assert second.hears() == b"WATCHDOG=1"
        second.process.send_signal(signal.SIGTERM)
        until("the word that it stops", lambda: second.hears() == b"STOPPING=1")
        assert second.process.wait(20) == 0


def writers(upload):
    """How many chunks of it have begun."""
    return int(psql("SELECT writer_epoch FROM upload WHERE id = '%s'" % upload)[0][0])


@thrice
def test_a_stop_answers_polls_and_lets_a_chunk_finish(server):
    _, (silo,) = begin(server)
    task = silo.task()
    data, tokens = silo.update(task)
    upload = silo.create(task, data, tokens).json()["upload"]
    polls = []
    idle = Silo(server, fresh_name("silo"))
    with Second(server) as second:
        body = silo.chunk_body(data, 0)
        headers = silo.chunk_headers(task, Host="x", Authorization="Bearer " + silo.token, **{"Content-Length": str(len(body))})
        head = "POST /silo/v1/uploads/%s HTTP/1.1\r\n" % upload + "".join("%s: %s\r\n" % h for h in headers.items()) + "\r\n"
        chunk = second.ask(head.encode() + body[:len(body) // 2], bulk=True)
        until("the chunk to be under way", lambda: writers(upload) >= 1)

        def one_too_many():
            polls.append(second.post(idle, "/tasks/claim", {"agent": "idle", "wait_s": 25}))
            return select.select(polls, [], [], 0.1)[0]
        until("a poll to be refused, as eight are parked", one_too_many)
        start = time.monotonic()
        second.process.send_signal(signal.SIGTERM)
        told = [poll.recv(4096).split()[1] for poll in polls]
        in_time(start)  # they do not wait for the chunk
        assert set(told) == {b"204", b"429"} and told.count(b"204") >= 8, told
        try:
            chunk.sendall(body[len(body) // 2:])
            answer = chunk.recv(4096)
        except OSError:
            answer = b""
        in_time(start, 4)  # after five seconds it is cut off
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        assert second.process.wait(20) == 0
        for s in (chunk, *polls):
            s.close()
    assert silo.finish(task, upload).status == 200


@thrice
def test_a_stop_takes_ten_seconds_at_most_whatever_hangs(server):
    _, (silo,) = begin(server)
    task = silo.task()
    data, tokens = silo.update(task)
    upload = silo.create(task, data, tokens).json()["upload"]
    with Second(server) as second:
        body = silo.chunk_body(data, 0)
        headers = silo.chunk_headers(task, Host="x", Authorization="Bearer " + silo.token, **{"Content-Length": str(len(body))})
        head = "POST /silo/v1/uploads/%s HTTP/1.1\r\n" % upload + "".join("%s: %s\r\n" % h for h in headers.items()) + "\r\n"
        chunk = second.ask(head.encode() + body[:10], bulk=True)  # and never the rest
        until("the chunk to be under way", lambda: writers(upload) >= 1)
        start = time.monotonic()
        second.process.send_signal(signal.SIGTERM)
        assert second.process.wait(30) == 0
        in_time(start, 10 + SOON_S)
        chunk.close()
    before = writers(upload)
    with Second(server) as second:  # a second signal does not wait for anything
        chunk = second.ask(head.encode() + body[:10], bulk=True)
        until("the chunk to be under way", lambda: writers(upload) > before)
        second.process.send_signal(signal.SIGTERM)
        until("the word that it stops", lambda: second.hears() == b"STOPPING=1")
        second.process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        assert second.process.wait(30) in (0, 128 + signal.SIGTERM)
        in_time(start)
        chunk.close()


def test_a_dead_servers_lock_is_taken_over(server):
    """As of one that was stopped in mid-work: its session lives, its sign of life does not come."""
    run, (silo,) = begin(server, rounds=1)
    task = silo.task()  # checkpoint 0 is made: there is no work on the run until the update comes
    held = subprocess.Popen(["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", "photon_server"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL, text=True)
    try:
        held.stdin.write("SET application_name = 'p_00000000000000000000000000';\n"
                         "SELECT pg_advisory_lock(hashtextextended('%s', 0));\nSELECT pg_sleep(120);\n" % run)
        held.stdin.flush()
        until("the lock to be held", lambda: psql("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND"
                                                  " ((classid::bigint << 32) | objid::bigint) = hashtextextended('%s', 0)" % run))
        assert silo.train(task).status == 200
        until("the round to be closed", lambda: psql("SELECT 1 FROM checkpoint WHERE run_id = '%s' AND number = 1" % run), 30)
    finally:
        held.kill()
        held.wait()
    other_runs_off(server)
