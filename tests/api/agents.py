"""What an agent at work does when something else answers for its server, and when it gets a new token."""

import contextlib
import hashlib
import http.server
import json
import os
import re
import signal
import ssl
import subprocess
import threading
import time

from kit import until
from pins import make_certificate, run_program

PAGE = (200, {"Content-Type": "text/html"}, b"<html>We will be back soon.</html>")
NO_PAGE = (404, {"Content-Type": "text/html"}, b"<html>No such page.</html>")
BASE = hashlib.sha256(b"a checkpoint that never comes").hexdigest()


def problem(status, code):
    return status, {"Content-Type": "application/problem+json"}, json.dumps({"code": code, "detail": "as told"}).encode()


class Played(http.server.ThreadingHTTPServer):
    """An aggregator without tasks. `says` may put words into its mouth: (path) -> an answer, or None."""

    daemon_threads = True  # a kept connection must not hold up the end

    def __init__(self, certificate=None):
        super().__init__(("127.0.0.1", 0), Answer)
        self.certificate = certificate  # (file, key), or None: no TLS
        self.url = "http%s://127.0.0.1:%d" % ("s" if certificate else "", self.server_address[1])
        self.says = lambda path: None
        self.heard = []  # (what was asked for, with which token)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def get_request(self):
        peer, address = super().get_request()
        if self.certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self.certificate)
            peer = context.wrap_socket(peer, server_side=True, do_handshake_on_connect=False)
        return peer, address

    def handle_error(self, request, client_address):
        pass  # a peer that does not believe us hangs up

    def count(self, path, token=None):
        return len([1 for heard in list(self.heard) if heard[0] == path and token in (None, heard[1])])


class Answer(http.server.BaseHTTPRequestHandler):  # HTTP/1.0: each request has a connection of its own
    def log_message(self, *args):
        pass

    def usual(self, path):
        if path == "/silo/v1/tasks/claim":
            time.sleep(0.1)
            return 204, {"Photon-Base": BASE + " 1000"}, b""
        if path.startswith("/silo/v1/blobs/"):
            return problem(404, "NOT_FOUND")
        said = {"silo": "s_01J0000000000000000000000A", "name": "elder", "bulk_url": self.server.url, "poll_s": 1,
                "token": "first" if path == "/silo/v1/join" else "second", "old_expires_at": "soon"}
        return 200, {"Content-Type": "application/json"}, json.dumps(said).encode()

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = "blob" if "/blobs/" in self.path else self.path.split("/silo/v1/")[-1]
        status, headers, body = self.server.says(path) or self.usual(self.path)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.server.heard.append((path, self.headers.get("Authorization", "").split(" ")[-1]))

    do_GET = do_POST = answer


@contextlib.contextmanager
def a_silo_of(server, played, name, *join):
    """(the running agent, its folder, what it has said up to now)"""
    state, shards, text = (os.path.join(server.dir, name + end) for end in ("", "-shards", ".txt"))
    with open(text, "w") as f:
        f.write("It was the best of times, it was the worst of times.\n\n" * 200)
    for words in (("photon", "data", "prepare", text, "-o", shards),
                  ("photon-client", "join", played.url, "--name", name, "--state", state, *join)):
        status, said = run_program(server, *words, PHOTON_TOKEN="secret")
        assert status == 0, said
    with open(os.path.join(server.dir, name + ".log"), "w+") as log:
        agent = subprocess.Popen([os.path.join(os.path.dirname(server.program), "photon-client"), "start", "--state", state,
                                  "--data", shards, "--device", "cpu", "--threads", "1"], stdout=log, stderr=log,
                                 stdin=subprocess.DEVNULL)

        def said():
            with open(log.name) as f:
                return f.read()
        try:
            yield agent, state, said
        finally:
            agent.kill()
            agent.wait()
            played.shutdown()
            played.server_close()


def goes_on(agent, played, path="tasks/claim", token=None):
    """It asks again, and again: what it was told in between did not end it."""
    before = played.count(path, token)
    until("the agent to go on", lambda: agent.poll() is not None or played.count(path, token) >= before + 2, 120)
    assert agent.poll() is None, agent.returncode


def test_what_answers_in_the_servers_place_is_waited_for(server):
    played = Played()
    with a_silo_of(server, played, "patient") as (agent, _, said):
        goes_on(agent, played)
        left = {"tasks/claim": [NO_PAGE], "hello": [NO_PAGE, PAGE, (403, {}, b"")]}
        played.says = lambda path: left[path].pop() if left.get(path) else None
        until("them to be heard", lambda: agent.poll() is not None or not any(left.values()), 120)
        goes_on(agent, played)
        assert "is no Photon server" in said() and "asking again" in said(), said()


def test_the_servers_own_word_ends_an_agent(server):
    for name, answer, code in (("denied", problem(401, "UNAUTHENTICATED"), 4), ("newer", problem(409, "PROTOCOL_MISMATCH"), 6)):
        for told in ({"tasks/claim": NO_PAGE, "hello": answer}, {"tasks/claim": answer}):
            played = Played()
            with a_silo_of(server, played, "%s-%d" % (name, len(told))) as (agent, _, said):
                goes_on(agent, played)
                played.says = told.get
                assert agent.wait(120) == code, said()


def test_an_agent_that_was_never_greeted_may_be_started_again(server):
    played = Played()
    played.says = lambda path: PAGE if path == "hello" else None
    with a_silo_of(server, played, "ungreeted") as (agent, _, said):
        assert agent.wait(60) == 75 and "is no Photon server" in said(), said()


def test_a_certificate_that_is_not_good_now_may_be_again(server):
    good, bad = (make_certificate(server.dir, name, "IP:127.0.0.1") for name in ("good", "lapsed"))
    played = Played(good)
    with a_silo_of(server, played, "trusting", "--ca-file", good[0]) as (agent, state, said):
        goes_on(agent, played)
        played.certificate = bad
        until("it to be seen", lambda: agent.poll() is not None or re.search("certificate of .* is not trusted.*asking again", said()), 60)
        played.certificate = good
        goes_on(agent, played)
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(60) == 0, said()


def test_every_connection_takes_up_a_new_token(server):
    played = Played()
    with a_silo_of(server, played, "trader") as (agent, state, _):
        goes_on(agent, played, "blob", "first")
        status, said = run_program(server, "photon-client", "rotate", "--state", state)
        assert status == 0, said
        goes_on(agent, played, "tasks/claim", "second")
        until("the old one to rest", lambda: played.count("tasks/claim", "second") >= 3)
        played.heard.clear()
        goes_on(agent, played, "blob")
        assert played.count("blob", "second") >= 2 and played.count("blob", "first") == 0, played.heard
