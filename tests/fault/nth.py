"""The n-th call fails, for n = 1, 2, …: memory, writes, syncs, names, room, statements; and the clock jumps. By way of
tests/fault/shim.c, over the programs as they are released."""

import os
import random
import time

from world import REAL, SCRIPTED, Broken, Rig, poll

CALLS = [("write", "ENOSPC"), ("write", "EIO"), ("fsync", "EIO"), ("rename", "EIO"), ("rename", "ENOSPC"),
         ("open", "EDQUOT"), ("fallocate", "ENOSPC"), ("pq", "EIO"), ("pq", "ENOMEM"), ("malloc", "ENOMEM")]
CLOCKS = [3600, -3600, 86400, -86400]
FEW = {"write": 40, "fsync": 40, "rename": 24, "open": 24, "fallocate": 12, "pq": 120, "malloc": 120}


class Nth:
    def __init__(self, rig, seed):
        self.rig, self.rng = rig, random.Random(seed)
        self.shim = rig.shim()
        self.note = rig.path("failed")
        self.made = self.ended = self.aborted = self.trials = 0
        self.harm = None  # what the silo at work was started with: who, call, n

    def env(self, who, call, n, errno):
        under = ("data", "store") if who == "server" else ("alder",)
        return {"LD_PRELOAD": self.shim, "SHIM_UNDER": self.rig.path(*under), "SHIM_FAIL_LOG": self.note,
                "SHIM_FAIL": "%s %d %s" % (call, n, errno)}

    def wait(self, process, patience_s):
        """Until the failure was made, and a little longer."""
        end = time.monotonic() + patience_s
        while time.monotonic() < end and process.poll() is None and not os.path.exists(self.note):
            time.sleep(0.01)
        if os.path.exists(self.note):
            self.made += 1
            end = time.monotonic() + 0.15
            while time.monotonic() < end and process.poll() is None:
                time.sleep(0.01)
            return True
        return False

    def look(self, process, who, call, n):
        code = process.poll()
        if code is None:
            return
        self.ended += 1
        # An allocation of a size that the program itself chose ends it in words (common/mem.h).
        if code == -6 and call == "malloc":
            self.aborted += 1
        elif code < 0:
            raise Broken("the %s died of signal %d when its %d-th %s failed" % (who, -code, n, call))

    def trial(self, who, call, errno, n, patience_s=2.5):
        if os.path.exists(self.note):
            os.unlink(self.note)
        self.trials += 1
        if who == "server":
            self.rig.kill_server()
            process = self.rig.spawn_server("", self.env(who, call, n, errno))
        else:
            self.rig.kill_client("alder")
            self.rig.start_client("alder", "", self.env(who, call, n, errno))
            self.harm = who, call, n
            process = self.rig.clients["alder"]
        hit = self.wait(process, patience_s)
        if who == "server":
            self.look(process, who, call, n)
            if process.poll() is not None or not self.rig.ready():
                self.rig.kill_server()
                self.rig.start_server()
        self.revive()
        return hit

    def revive(self):
        """A silo may end long after its failure, in the last words to the server; one that was not harmed must not end."""
        process = self.rig.clients["alder"]
        if process.poll() is None:
            return
        if not self.harm:
            raise Broken("the silo ended with status %d, and nothing of it had failed" % process.returncode)
        self.look(process, *self.harm)
        self.harm = None
        self.rig.start_client("alder")

    def after(self):
        self.rig.hurry()
        self.revive()
        self.rig.check_rows()
        self.rig.check_acks()

    def progress(self):
        self.rig.hurry()
        before = {run: self.rig.round_of(run) for run in self.rig.runs}
        for run, number in before.items():
            def moved():
                if self.rig.round_of(run) > number:
                    return True
                self.rig.hurry()
                self.revive()
                return False
            poll("run %s to go on" % self.rig.runs[run]["name"], moved, 90, 0.1)

    def clock(self, offset):
        """Both clocks jump in the middle of the work, each its own way."""
        self.rig.kill_server()
        self.rig.kill_client("alder")
        env = {"LD_PRELOAD": self.shim}
        self.rig.start_server("", dict(env, SHIM_CLOCK="%d 300" % offset))
        self.rig.start_client("alder", "", dict(env, SHIM_CLOCK="%d 500" % -offset))
        self.harm = None
        time.sleep(0.6)
        self.trials += 1
        self.progress()


def begin(rig, text):
    rig.start_server()
    rig.enrol(["alder"], text)
    rig.submit(REAL, name="real", federation=dict(REAL["federation"], silos_per_round=1, min_silos=1))
    rig.start_client("alder")
    rig.submit(SCRIPTED)
    rig.add_scripted(3)


def nth_calls(build, plain, text, seed, trials, say=print):
    """trials: how many of all combinations, drawn; 0 for each n up to what FEW says."""
    with Rig(build, plain) as rig:
        begin(rig, text)
        w = Nth(rig, seed)
        w.progress()
        todo = [(who, call, errno, n) for who in ("server", "silo") for call, errno in CALLS
                for n in range(1, FEW[call] + 1) if not (who == "silo" and call in ("pq", "fallocate"))]
        whole = len(todo)
        if trials:
            todo = w.rng.sample(todo, trials)
        start = time.monotonic()
        for i, (who, call, errno, n) in enumerate(todo):
            try:
                w.trial(who, call, errno, n)
                w.after()
                if i % 25 == 24:
                    w.progress()
            except Broken as error:
                raise Broken("%s, %s %d %s: %s" % (who, call, n, errno, error)) from error
        for offset in CLOCKS if not trials else w.rng.sample(CLOCKS, 1):
            w.clock(offset)
        w.progress()
        line = rig.verify()
        say("       %d of %d n-th calls and clocks tried in %.0f s, %d failures made, %d ended the process in order (%d for"
            " want of memory), 0 crashes; %s" % (w.trials, whole + len(CLOCKS), time.monotonic() - start, w.made,
                                                 w.ended - w.aborted, w.aborted, line))
