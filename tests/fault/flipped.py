"""Bits flipped in what a silo downloads: coded steps (codec.down) and whole checkpoints.

    flipped.py BUILD [--trials N] [--seed S]

A real server and its own PostgreSQL; the client's own download code (tests/fault/send_update.c) gets the base of each round
through the proxy, again and again: for every rung of codec.down in turn, one bit of the step changes on its way, or one in
each of the first two or three tries of it. The silo must refuse each by its digest and ask again; after the third it
must take the whole checkpoint instead. The base of round 1 has no step: there a bit of the whole changes. What the silo
has in the end must be the server's checkpoint, byte for byte, and the store must be sound.

Places are drawn over all that an answer has, its head included. A bit there may be in words that nobody heeds, or break
the connection; the file must be right all the same. The summary counts the trials by what came of them.
"""

import argparse
import collections
import hashlib
import json
import os
import random
import subprocess
import sys
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "e2e")]
from harness import World  # noqa: E402
from proxy import Proxy  # noqa: E402
from transfer import check_store, start  # noqa: E402

RUNGS = ("bf16", "int8", "q4", "q2", "topk")
ROUNDS = 3  # bases without a step and with one, twice
MODEL = {"d_model": 64, "n_heads": 2, "n_layers": 2, "vocab_size": 320, "seq_len": 64}
HEAD = 1024  # bytes that the head of an answer has, at most
TRIES = 3  # of one file by its digest (client/agent_base.c)
LINE_S = 180


class Silo:
    """send_update and what it says: a line for each transfer, its log beside."""

    def __init__(self, world, name, port, uploads):
        self.name, self.said = name, world.path(name + "-send.log")
        self.log = open(self.said, "w")
        self.process = subprocess.Popen(
            ["timeout", str(LINE_S * ROUNDS * 10), os.path.join(world.build, "tests", "fault", "send_update"), world.path(name),
             world.url, "http://127.0.0.1:%d" % port, str(uploads), "--fetch", "--again"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, bufsize=1)

    def line(self, want):
        text = self.process.stdout.readline()
        assert text, "%s ended with status %s:\n%s" % (self.name, self.process.wait(), self.log_since(0)[-3000:])
        line = json.loads(text)
        assert line["transfer"] == want, line
        return line

    def log_since(self, at):
        with open(self.said, errors="replace") as f:
            return f.read()[at:]

    def say(self, word):
        self.process.stdin.write(word + "\n")

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.log.close()


def sha256_of(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


class Trials:
    def __init__(self, world, run, silo, proxy, draw, seen):
        self.world, self.run, self.silo, self.proxy, self.draw, self.seen = world, run, silo, proxy, draw, seen

    def places(self, size, step):
        """Where bits change, counted from now: one, or one in each of the first tries."""
        times = self.draw.choice((1, 1, 1, 2, TRIES)) if step else self.draw.choice((1, 1, 2))
        if times == 1:
            return [self.draw.randrange(HEAD // 2 + size)]
        # Each well within the body of its try, wherever exactly the head before it ended.
        return [i * size + self.draw.randrange(times * HEAD, size - times * HEAD) for i in range(times)]

    def one(self, number, base):
        size = base["step"]["bytes"] if base["step"] else base["bytes"]
        places = self.places(size, base["step"])
        harms, at = self.proxy.totals()["harms"], len(self.silo.log_since(0))
        for place in places:
            self.proxy.command("at down flip +%d" % place)
        self.proxy.totals()
        self.silo.say("again")
        line = self.silo.line("download")
        what = (number, base, places, line)
        assert self.proxy.totals()["harms"] == harms + len(places), "no bit was changed: %s" % (what,)
        said = self.silo.log_since(at)
        refused = said.count("the download has digest")
        made = "was made by 1 step" in said
        in_body = all(place >= HEAD for place in places)
        assert self.right(base), "the silo has another checkpoint: %s" % (what,)
        if in_body:
            assert refused == len(places), "%d refusals: %s\n%s" % (refused, what, said)
            assert made == (base["step"] is not None and len(places) < TRIES), "%s\n%s" % (what, said)
            assert line["received"] >= size * len(places), what
        kind = "step" if base["step"] else "whole"
        self.seen["%s, %s" % (kind, "head" if not in_body else "%d of its tries" % len(places))] += 1
        self.seen["refused by digest"] += refused
        self.seen["bits"] += len(places)
        if base["step"]:
            self.seen["made by its step" if made else "whole instead"] += 1

    def right(self, base):
        return sha256_of(self.world.path(self.silo.name, "cache", base["sha256"] + ".safetensors")) == base["sha256"]

    def round(self, number, trials):
        """All that happens to the base of that round, then its update."""
        self.silo.line("download")
        base = self.world.get("/api/v1/runs/%s/checkpoints/%d" % (self.run, number - 1))
        assert bool(base["step"]) == (number > 1), base
        for _ in range(trials):
            self.one(number, base)
        self.silo.say("on")
        assert self.silo.line("upload")["end"] == 0


def spec(codec):
    return {"name": "flipped-" + codec, "seed": 1, "model": MODEL, "codec": {"down": codec},
            "federation": {"rounds": ROUNDS, "silos_per_round": 1, "min_silos": 1, "local_steps": 1},
            "inner": {"batch": 1}, "eval": {"every": 100000, "windows": 1}}


def flip(build, trials, seed):
    seen, draw, begin = collections.Counter(), random.Random(seed), time.monotonic()
    each = -(-trials // (len(RUNGS) * ROUNDS))
    with World(build) as world:
        start(world, build, ["flipped"])
        for codec in RUNGS:
            run = world.post("/api/v1/runs", spec(codec))["id"]
            with Proxy(world.build, world.bulk_port, seed) as proxy:
                silo = Silo(world, "flipped", proxy.port, ROUNDS)
                try:
                    t = Trials(world, run, silo, proxy, draw, seen)
                    for number in range(1, ROUNDS + 1):
                        t.round(number, each)
                    assert silo.process.wait(LINE_S) == 0, silo.log_since(0)[-3000:]
                finally:
                    silo.close()
            world.post("/api/v1/runs/%s/actions" % run, {"action": "stop"})  # nobody is there for its last evaluation
        world.stop_server()
        check_store(world)
    done = each * len(RUNGS) * ROUNDS
    print(json.dumps({"trials": done, "wrong_checkpoints": 0, "seed": seed, "by": dict(sorted(seen.items())),
                      "seconds": round(time.monotonic() - begin)}))
    return done


def main():
    p = argparse.ArgumentParser()
    p.add_argument("build")
    p.add_argument("--trials", type=int, default=30)
    p.add_argument("--seed", type=int, default=1)
    o = p.parse_args()
    try:
        print("%d passed, 0 failed" % flip(o.build, o.trials, o.seed))
    except Exception:
        traceback.print_exc(limit=6)
        print("0 passed, 1 failed")
        sys.exit(1)


if __name__ == "__main__":
    main()
