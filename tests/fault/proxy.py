"""The fault proxy (tests/fault/proxy.c) as an object; run as a program it tests the proxy itself.

    with Proxy(build, server_port, seed, "every up cut 4000000") as p: connect to p.port, p.command("rate up 1000000"), ...
"""

import os
import socket
import subprocess
import sys
import threading
import time
import traceback


class Proxy:
    def __init__(self, build, to, seed=1, *commands):
        self.process = subprocess.Popen([os.path.join(build, "tests", "fault", "proxy"), "--to", str(to), "--seed", str(seed),
                                         *commands], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.port = int(self.process.stdout.readline().split()[1])
        self.harms = []  # (kind, direction, byte)
        self.counted = None
        self.changed = threading.Condition()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        self.close()

    def read(self):
        for line in self.process.stdout:
            words = line.split()
            with self.changed:
                if words[0] == "totals":
                    self.counted = dict(up_in=int(words[2]), up_out=int(words[3]), down_in=int(words[5]),
                                        down_out=int(words[6]), connections=int(words[8]), harms=int(words[10]))
                else:
                    self.harms.append((words[0], words[1], int(words[2])))
                self.changed.notify_all()

    def command(self, line):
        self.process.stdin.write(line + "\n")

    def totals(self, timeout_s=10.0):
        """What has passed up to now; every command and harm before is done and known."""
        with self.changed:
            self.counted = None
            self.command("totals")
            if not self.changed.wait_for(lambda: self.counted, timeout_s):
                raise AssertionError("the proxy does not answer")
            return self.counted

    def close(self):
        if self.process.poll() is None:
            self.process.stdin.close()
            self.process.wait(10)
        self.reader.join(10)
        self.process.stdout.close()


# ---- the proxy's own test ----

class Sink:
    """A server that keeps what each connection brings and answers with as many bytes as it was told to."""

    def __init__(self, answer=b""):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.answer = answer
        self.keep = True
        self.got = []
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            s, _ = self.listener.accept()
            self.got.append(bytearray())
            threading.Thread(target=self.one, args=(s, self.got[-1]), daemon=True).start()

    def one(self, s, got):
        try:
            for piece in iter(lambda: s.recv(1 << 20), b""):
                if self.keep:
                    got += piece
            s.sendall(self.answer)
        except OSError:
            pass
        s.close()


def send(port, data):
    """Send, then read to the end: (what came back, whether it ended in an error)."""
    back = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as s:
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
            for piece in iter(lambda: s.recv(1 << 20), b""):
                back += piece
    except OSError:
        return back, True
    return back, False


def until(what, condition, timeout_s=20.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain for: " + what
        time.sleep(0.005)


def differing_bits(a, b):
    return sum(bin(x ^ y).count("1") for x, y in zip(a, b))


DATA = bytes(range(256)) * 4096  # 1 MiB


def test_what_is_not_harmed_passes_unchanged(build):
    sink = Sink(DATA)
    with Proxy(build, sink.port, 1, "rate up 8000000", "delay down 30") as p:
        back, failed = send(p.port, DATA)
        assert not failed and back == DATA and sink.got[0] == DATA
        assert p.totals()["up_out"] == p.totals()["down_in"] == len(DATA) and not p.harms


def test_a_cut_lets_pass_what_came_before_it(build):
    for kind in ("cut", "reset"):
        sink = Sink(DATA)
        with Proxy(build, sink.port, 1, "at up %s 300000" % kind) as p:
            send(p.port, DATA)
            until("the harm", lambda: p.totals()["harms"] == 1)
            assert p.totals()["up_out"] == 300000 and p.harms == [(kind, "up", 300000)]
            until("the sink to be connected to", lambda: sink.got)
            assert len(sink.got[0]) <= 300000 and DATA.startswith(sink.got[0])
        sink = Sink(DATA)
        with Proxy(build, sink.port, 1, "at down %s 300000" % kind) as p:
            back, failed = send(p.port, b"x")
            assert len(back) <= 300000 and DATA.startswith(back) and (failed or len(back) == 300000)


def test_a_flip_changes_one_bit_at_its_place(build):
    sink = Sink(DATA)
    with Proxy(build, sink.port, 1, "at up flip 300000", "at down flip 5") as p:
        back, failed = send(p.port, DATA)
        assert not failed
        assert differing_bits(sink.got[0], DATA) == 1 and sink.got[0][300000] != DATA[300000]
        assert differing_bits(back, DATA) == 1 and back[5] != DATA[5]


def test_a_half_open_connection_stands_still_and_is_reset_at_last(build):
    sink = Sink(DATA)
    with Proxy(build, sink.port, 1, "at up half 1000") as p:
        begin = time.monotonic()
        _, failed = send(p.port, DATA * 8)
        assert failed and time.monotonic() - begin > 1.0


def test_a_replay_sends_the_same_again(build):
    sink = Sink(b"ok")
    with Proxy(build, sink.port, 1, "at up replay 1000") as p:
        assert send(p.port, DATA) == (b"ok", False)
        until("the replay", lambda: len(sink.got) == 2 and len(sink.got[1]) == len(DATA))
        assert sink.got[1] == DATA


def test_the_same_seed_harms_the_same_bytes(build):
    seen = []
    for seed in (7, 7, 8):
        sink = Sink()
        with Proxy(build, sink.port, seed, "every up flip 50000") as p:
            send(p.port, DATA)
            p.totals()
            seen.append((p.harms, bytes(sink.got[0])))
    assert seen[0] == seen[1] != seen[2] and len(seen[0][0]) > 5
    assert differing_bits(seen[0][1], DATA) == len(seen[0][0])


def bench(build):
    """How much it passes in a second, unharmed."""
    sink = Sink()
    sink.keep = False
    block = bytes(1 << 20)
    with Proxy(build, sink.port) as p, socket.create_connection(("127.0.0.1", p.port)) as s:
        begin = time.monotonic()
        for _ in range(2048):
            s.sendall(block)
        s.shutdown(socket.SHUT_WR)
        while s.recv(1):
            pass
        print("%.0f MB/s" % (2048 * len(block) / 1e6 / (time.monotonic() - begin)))


def main(build):
    if "--bench" in sys.argv:
        bench(build)
        return
    tests = [t for name, t in globals().items() if name.startswith("test_")]
    failed = 0
    for t in tests:
        try:
            t(build)
        except Exception:
            failed += 1
            print("  FAIL proxy.%s" % t.__name__)
            traceback.print_exc(limit=4)
    print("%d passed, %d failed" % (len(tests) - failed, failed))
    sys.exit(failed > 0)


if __name__ == "__main__":
    main(sys.argv[1])
