"""Updates and checkpoints through a wire that is cut: everything arrives, and a cut costs one piece at most.

    transfer.py BUILD [--uploads N] [--mib 16|256|1024] [--silos K] [--cuts MOST] [--seed S] [--seconds S]

A real server and its own PostgreSQL; K silos at a time (tests/fault/send_update.c: the client's own transfer code) fetch
each round's base and send an update through a proxy that cuts or resets the connection at 1 to MOST (20) random bytes of
each upload, and 1 to 5 of each download. Each update must be accepted with the digest it had, what was sent twice
must be no more than what the broken pieces had lost, a download must not fetch a byte twice, and the store must be sound.

SIGINT, SIGTERM and --seconds end it early, as an error does: what was finished by then is checked and told, and each upload
that was not counts as failed. A second signal ends it at once.
"""

import argparse
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "e2e")]
from harness import World, until  # noqa: E402
from proxy import Proxy  # noqa: E402

MODELS = {16: {"d_model": 256, "n_heads": 4, "n_layers": 4, "vocab_size": 4096},
          256: {"d_model": 1024, "n_heads": 16, "n_layers": 4, "vocab_size": 16384},
          1024: {"d_model": 2048, "n_heads": 16, "n_layers": 4, "vocab_size": 32768}}
CHUNK = 64 << 20  # the largest piece the server takes
SAY_EVERY = 10  # uploads
SEND_S = 1200  # one round of one silo


def spec(mib, silos, rounds):
    return {"name": "wire", "seed": 1, "model": dict(MODELS[mib], seq_len=8),
            "federation": {"rounds": rounds, "silos_per_round": silos, "min_silos": silos, "local_steps": 1},
            "inner": {"batch": 1}, "eval": {"every": 100000, "windows": 1}, "keep_checkpoints": 1}


class Ended(Exception):
    """This sitting is to end early."""


class Sitting:
    """What the silos share: how far all of it is, and why it ends early, if it does."""

    def __init__(self, uploads):
        self.uploads, self.done, self.why = uploads, 0, None
        self.lock = threading.RLock()  # a signal's handler runs in a thread that may hold it
        self.running = set()
        self.began = time.monotonic()

    def seconds(self):
        return time.monotonic() - self.began

    def end(self, why):
        with self.lock:
            self.why = self.why or why
            for process in self.running:
                process.terminate()

    def ended_by(self, number, frame):
        signal.signal(number, signal.SIG_DFL)
        self.end(signal.Signals(number).name)

    def uploaded(self, count):
        with self.lock:
            before, self.done = self.done, self.done + count
            if self.done // SAY_EVERY > before // SAY_EVERY:
                print("%d of %d uploads, %.0f s, about %.0f s to go" % (
                    self.done, self.uploads, self.seconds(), self.seconds() / self.done * max(0, self.uploads - self.done)),
                    flush=True)

    def run(self, *command):
        """What the program says; Ended when it did not come to its end because nothing else will."""
        with self.lock:
            if self.why:
                raise Ended(self.why)
            # A session of its own: Ctrl-C is for us, who then end it.
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                       start_new_session=True)
            self.running.add(process)
        try:
            said, why = process.communicate(timeout=SEND_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise AssertionError("%s: not done in %d s" % (command[0], SEND_S))
        finally:
            with self.lock:
                self.running.discard(process)
        if process.returncode != 0 and self.why:
            raise Ended(self.why)
        assert process.returncode == 0, "%s: status %d\n%s" % (command[0], process.returncode, why[-3000:])
        return said


class Silo:
    """One silo and its own wire; its uploads one after the other."""

    def __init__(self, sitting, world, name, mib, most, seed):
        self.sitting, self.world, self.name, self.most = sitting, world, name, most
        self.bytes = mib << 20
        self.draw = random.Random(seed)
        self.proxy = Proxy(world.build, world.bulk_port, seed)
        self.lines = []
        self.cuts = 0
        self.error = None

    def arm(self):
        """Where this upload and this download will be cut."""
        for way, most in (("up", self.most), ("down", 5)):
            for _ in range(self.draw.randint(1, most)):
                self.proxy.command("at %s %s +%d" % (way, self.draw.choice(("cut", "reset")), self.draw.randrange(self.bytes)))

    def one(self):
        self.proxy.command("clear")
        self.arm()
        before = len(self.proxy.harms)
        lines = self.send()
        self.proxy.totals()
        harms = self.proxy.harms[before:]
        cuts = len([h for h in harms if h[1] == "up"])
        self.cuts += len(harms)
        for line in lines:
            self.check(line, cuts)
            self.lines.append(line)
        self.sitting.uploaded(sum(line["transfer"] == "upload" for line in lines))

    def send(self, *options):
        """One round's base and update; what the driver says of them."""
        said = self.sitting.run(os.path.join(self.world.build, "tests", "fault", "send_update"), self.world.path(self.name),
                                self.world.url, "http://127.0.0.1:%d" % self.proxy.port, "1", "--fetch", *options)
        return list(map(json.loads, said.splitlines()))

    def check(self, line, cuts):
        if line["transfer"] == "download":
            assert line["received"] == line["bytes"], "a download fetched again what it had: %s" % line
            return
        twice = line["sent"] - line["bytes"]
        assert line["end"] == 0 and cuts >= 1, line
        assert 0 <= twice <= line["broken"] * line["lost"], "more was sent again than was lost: %s" % line
        assert line["lost"] <= line["largest"] <= CHUNK, "a cut cost more than a piece: %s" % line

    def run(self, uploads):
        try:
            while len(self.of("upload")) < uploads:
                self.one()
        except Ended:
            pass
        except Exception:
            self.error = traceback.format_exc(limit=5)
            self.sitting.end("an error of " + self.name)  # a round waits for every silo

    def of(self, what):
        return [line for line in self.lines if line["transfer"] == what]


def check_accepted(world, run, silos):
    """The server counted each of them, byte for byte."""
    for silo in silos:
        for line in silo.of("upload"):
            tasks = world.get("/api/v1/runs/%s/rounds/%d" % (run, line["round"]))["tasks"]
            got = [t["update_sha256"] for t in tasks if t["silo_name"] == silo.name and t["state"] == "done"]
            assert got == [line["sha256"]], "round %d of %s: %s" % (line["round"], silo.name, got)


def check_store(world):
    done = subprocess.run([os.path.join(world.bin, "photon-server"), "check", "--data", world.path("server")],
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, "check: status %d\n%s%s" % (done.returncode, done.stdout, done.stderr)


def all_at_once(silos, *options):
    """A whole round of all silos without harm: [lines], and how long it took."""
    lines, errors = [], []

    def one(s):
        try:
            s.proxy.command("clear")
            lines.extend(s.send(*options))
        except Exception:
            errors.append(traceback.format_exc(limit=5))
    begin = time.monotonic()
    threads = [threading.Thread(target=one, args=(s,)) for s in silos]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors, errors[0]
    return lines, time.monotonic() - begin


def check_limits(world, silos):
    """No faster than told: all together by the server's --bulk-rate, each way by the client's --max-rate."""
    world.stop_server()
    world.start_server("--bulk-rate", "400")
    lines, seconds = all_at_once(silos)
    moved = sum(line["bytes"] for line in lines)
    assert len(lines) == 2 * len(silos) and seconds > 0.9 * moved / 50e6, "%d bytes in %.2f s" % (moved, seconds)
    world.stop_server()
    world.start_server()
    lines, _ = all_at_once(silos, "--rate", "20000000")
    for line in lines:
        assert line["seconds"] > 0.8 * line["bytes"] / 20e6, line
    return len(silos) * 2


def check_counted(world, run, silo):
    """A download that was cut counts for what left, not for what was asked for."""
    with open(world.path(silo.name, "silo.json")) as f:
        token = json.load(f)["token"]
    head = world.run(run)["head_checkpoint"]
    before = world.run(run)["download_bytes"]
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.connect(("127.0.0.1", world.bulk_port))
        s.sendall(("GET /silo/v1/blobs/%s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nPhoton-Protocol: 1\r\n\r\n"
                   % (head["sha256"], token)).encode())
        got = 0
        while got < 1 << 20:
            got += len(s.recv(65536))
    counted = until("the cut download to be counted", lambda: world.run(run)["download_bytes"] - before)
    assert got - 4096 <= counted < head["bytes"] / 2, "%d of %d bytes were read, %d were counted" % (got, head["bytes"], counted)


def start(world, build, silos):
    world.build = os.path.abspath(build)
    world.start_server()
    text = world.path("text.txt")
    with open(text, "w") as f:
        f.write("a line of text that nobody trains on\n\n" * 2000)
    for name in silos:
        world.join(name, text)


def tell(sitting, silos, mib, seed):
    up = [line for s in silos for line in s.of("upload")]
    down = [line for s in silos for line in s.of("download")]
    print(json.dumps({"uploads": sitting.uploads, "of_mib": mib, "downloads": len(down), "cuts": sum(s.cuts for s in silos),
                      "finished": len(up), "not_done": sitting.uploads - len(up), "ended_by": sitting.why,
                      "broken_pieces": sum(line["broken"] for line in up),
                      "sent_again_mib": round(sum(line["sent"] - line["bytes"] for line in up) / 2**20, 1),
                      "most_for_one_cut_mib": round(max([line["lost"] for line in up], default=0) / 2**20, 1),
                      "fetched_again_bytes": sum(line["received"] - line["bytes"] for line in down),
                      "seed": seed, "seconds": round(sitting.seconds())}), flush=True)
    return len(up) + len(down)


def cut(build, uploads, mib, count, most, seed, seconds):
    """(passed, failed)"""
    names = ["wire-%d" % i for i in range(count)]
    each = -(-uploads // count)
    sitting, silos = Sitting(each * count), []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, sitting.ended_by)
    if seconds:
        timer = threading.Timer(seconds, sitting.end, ["its deadline"])
        timer.daemon = True
        timer.start()
    try:
        more = cut_all(build, sitting, silos, names, each, mib, most, seed)
    finally:
        passed = tell(sitting, silos, mib, seed)
    return passed + more, sitting.uploads - sitting.done


def cut_all(build, sitting, silos, names, each, mib, most, seed):
    """Fills silos; how much else was tried."""
    more = 0
    with World(build) as world:
        start(world, build, names)
        run = world.post("/api/v1/runs", spec(mib, len(names), each + 3))["id"]
        silos += [Silo(sitting, world, name, mib, most, seed * 1000 + i) for i, name in enumerate(names)]
        try:
            threads = [threading.Thread(target=s.run, args=(each,)) for s in silos]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            for s in silos:
                assert not s.error, s.error
            check_accepted(world, run, silos)
            if not sitting.why:
                check_counted(world, run, silos[0])
                more = check_limits(world, silos) if mib == 16 else 0
        finally:
            for s in silos:
                s.proxy.close()
        check_store(world)
    return more + 1


def main():
    p = argparse.ArgumentParser()
    p.add_argument("build")
    p.add_argument("--uploads", type=int, default=3)
    p.add_argument("--mib", type=int, choices=sorted(MODELS), default=16)
    p.add_argument("--silos", type=int, default=1)
    p.add_argument("--cuts", type=int, default=20)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--seconds", type=float, default=0.0)
    o = p.parse_args()
    try:
        passed, failed = cut(o.build, o.uploads, o.mib, o.silos, o.cuts, o.seed, o.seconds)
        print("%d passed, %d failed" % (passed, failed))
        sys.exit(failed > 0)
    except Exception:
        traceback.print_exc(limit=6)
        print("0 passed, 1 failed")
        sys.exit(1)


if __name__ == "__main__":
    main()
