"""A silo whose program is older than the server: it says what to do, and its seat is not held."""

import http.server
import json
import os
import subprocess
import threading

from kit import until
from pins import run_program

TASK = {
    "task": "t_01J0000000000000000000000A", "kind": "train", "run": "r_01J0000000000000000000000A", "run_name": "newer",
    "round": 1, "rounds": 2, "slot": 0, "lease": {"epoch": 5, "seconds": 60, "heartbeat_s": 15},
    "base": {"number": 0, "sha256": "e3" * 32, "bytes": 4244000},
    "plan": {"global_step": 0, "local_steps": 8, "codec": "f32", "update_bytes": 4244000, "chunk_bytes": 8388608,
             "silo_ordinal": 7},
    "spec": {"name": "newer", "model": {"d_model": 32, "n_heads": 2, "n_layers": 2, "vocab_size": 320, "seq_len": 64},
             "federation": {"rounds": 2, "silos_per_round": 1, "local_steps": 8, "telepathy": True}, "inner": {"batch": 8}}}


class NewerServer(http.server.ThreadingHTTPServer):
    """An aggregator with one task, of whose spec this version knows one key too few."""

    daemon_threads = True  # a kept connection must not hold up the end

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = "http://127.0.0.1:%d" % self.server_address[1]
        self.released = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        said = {"silo": "s_01J0000000000000000000000A", "name": "older", "token": "t", "bulk_url": self.server.url, "poll_s": 1}
        if self.path.endswith("/claim"):
            said = TASK
        elif self.path.endswith("/release"):
            self.server.released.append((self.path, body))
            said = {"released": True}
        said = json.dumps(said).encode()
        self.send_response(201 if self.path.endswith("/join") else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)


def test_a_task_of_a_newer_server_is_given_back_with_what_to_do(server):
    newer = NewerServer()
    state, shards, text = (os.path.join(server.dir, "older" + end) for end in ("", "-shards", ".txt"))
    with open(text, "w") as f:
        f.write("It was the best of times, it was the worst of times.\n\n" * 200)
    status, said = run_program(server, "photon", "data", "prepare", text, "-o", shards)
    assert status == 0, said
    status, said = run_program(server, "photon-client", "join", newer.url, "--name", "older", "--state", state,
                               PHOTON_TOKEN="secret")
    assert status == 0, said
    log = open(os.path.join(server.dir, "older.log"), "w+")
    silo = subprocess.Popen([os.path.join(os.path.dirname(server.program), "photon-client"), "start", "--state", state,
                             "--data", shards, "--device", "cpu", "--threads", "1"], stdout=log, stderr=log,
                            stdin=subprocess.DEVNULL)
    try:
        until("the task to be given back", lambda: newer.released, 30)
        assert silo.poll() is None, "an older silo goes on: the next run may be one that it knows"
    finally:
        silo.terminate()
        silo.wait()
        newer.shutdown()
        newer.server_close()
    path, body = newer.released[0]
    assert path == "/silo/v1/tasks/%s/release" % TASK["task"] and body["epoch"] == 5 and body["code"] == "bad_data", body
    log.seek(0)
    for text in (body["detail"], log.read()):
        assert "telepathy" in text and "; try the photon-client of the server's version" in text, text
    log.close()
