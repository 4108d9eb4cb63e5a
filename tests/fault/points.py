"""Every failpoint of server and silo, one after the other: it dies there, its call fails, it dawdles; each time the
rounds go on afterwards and nothing that was acknowledged is gone."""

import glob
import os
import random
import subprocess
import time

from world import REAL, SCRIPTED, Broken, Rig, poll

ERRNOS = ["EIO", "ENOSPC"]
REACH_S = 60.0
ELSEWHERE = ("migrate.", "bucket.", "s3.")  # at a first start; with a bucket: there is none here


def listed(program):
    out = subprocess.run([program], env=dict(os.environ, PHOTON_FAULT="list"), capture_output=True, text=True, check=True)
    return [(line.split()[1], line.startswith("call")) for line in out.stdout.splitlines()]


def combinations(points):
    for name, is_call in points:
        yield name, "exit"
        yield name, "delay:50ms"
        for errno in ERRNOS if is_call else []:
            yield name, "errno:" + errno


class Walk:
    def __init__(self, rig, seed):
        self.rig, self.rng = rig, random.Random(seed)
        self.reached, self.missed = {}, []
        self.log = rig.path("faults")

    # ---- what brings a process to places that an ordinary round does not pass ----

    def old_files(self):
        """What nobody needs is old enough to go."""
        self.rig.psql("UPDATE blob SET used_at = clock_timestamp() - interval '3 minutes'"
                      " WHERE digest IN (SELECT digest FROM update WHERE NOT kept)")

    def another_run(self):
        run = self.rig.submit(SCRIPTED, name="other-%d" % self.rng.randrange(1 << 30),
                              tokenizer={"sha256": "cd" * 32})
        del self.rig.runs[run]
        poll("the other run to start", lambda: self.rig.psql("SELECT state FROM run WHERE id = '%s'" % run)
             != [["created"]] or self.rig.server.poll() is not None, 20)
        self.rig.door.post("/api/v1/runs/%s/actions" % run, {"action": "stop"})

    def bad_update(self):
        self.rig.scripted[0].bad = True

    def damaged_update(self):
        self.rig.scripted[0].damage = self.rig.path("data", "store", "blobs")

    def silent_silo(self):
        """A silo that took a seat and was never heard of again."""
        self.rig.psql("UPDATE server_process SET started_at = started_at - interval '10 minutes';"
                      "UPDATE silo SET gone = true, seen_at = clock_timestamp() - interval '5 minutes' WHERE id IN"
                      " (SELECT silo_id FROM task WHERE state = 'leased' LIMIT 1);"
                      "UPDATE task t SET lease_until = clock_timestamp() - interval '5 minutes' FROM silo s"
                      " WHERE s.id = t.silo_id AND s.gone AND t.state = 'leased'")

    def orphan(self):
        path = self.rig.path("data", "store", "tmp", "file-c_%026d" % self.rng.randrange(1 << 60))
        with open(path, "w") as f:
            f.write("left by a server that died")
        os.utime(path, (1, 1))

    TRIGGERS = {"gc.": old_files, "blob.aside": old_files, "blob.unlink": damaged_update, "run.": another_run, "abort.": another_run,
                "refuse.": bad_update, "corrupt.": damaged_update, "expire.": silent_silo, "reap.": orphan}

    def trigger(self, name):
        for prefix, act in self.TRIGGERS.items():
            if name.startswith(prefix):
                try:
                    act(self)
                except (OSError, Broken):
                    pass  # the server is gone already: reached, or seen by the caller
                return True
        return False

    # ---- one place ----

    def acted(self, name):
        try:
            with open(self.log) as f:
                return name + "!" in f.read().split("\n")
        except OSError:
            return False

    def await_action(self, name, process, patience_s):
        end = time.monotonic() + patience_s
        again = time.monotonic() + 1.0
        triggered = self.trigger(name)
        while time.monotonic() < end:
            if self.acted(name):
                return True
            if process.poll() is not None:
                return self.acted(name)
            if triggered and time.monotonic() > again:
                again = time.monotonic() + 2.0
                self.trigger(name)
            time.sleep(0.02)
        return False

    def rule(self, name, action):
        extra = "train.step=delay:2500ms#1;" if name.startswith("snapshot.") else ""
        return "%s%s=%s" % (extra, name, action + ("#1" if action.startswith("errno") else ""))

    def ended_well(self, process, action, who):
        if action == "exit":
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                raise Broken("%s did not die" % who)
            if process.returncode != 99:
                raise Broken("%s ended with status %d" % (who, process.returncode))
        elif process.poll() is not None and process.returncode < 0:
            raise Broken("%s died of signal %d" % (who, -process.returncode))

    def progress(self):
        before = {run: self.rig.round_of(run) for run in self.rig.runs}
        for run, number in before.items():
            def moved():
                if self.rig.round_of(run) > number:
                    return True
                self.rig.hurry()  # whatever fails later than the look before
                return False
            poll("run %s to go on" % self.rig.runs[run]["name"], moved, 60, 0.05)

    def at_server(self, name, action):
        if os.path.exists(self.log):
            os.unlink(self.log)
        self.rig.kill_server()
        if name.startswith("gc.") or name.startswith("blob.aside"):
            self.old_files()
        env = {"PHOTON_FAULT_LOG": self.log}
        begin = time.monotonic()
        process = self.rig.spawn_server(self.rule(name, action), env)
        while not name.startswith("start.") and not self.rig.ready() and process.poll() is None:
            if time.monotonic() - begin > 30:
                raise Broken("the server does not serve with %s=%s" % (name, action))
            time.sleep(0.01)
        hit = self.await_action(name, process, REACH_S)
        if hit:
            self.ended_well(process, action, "the server")
        if process.poll() is not None or not hit or action.startswith("errno"):
            if process.poll() is None:
                self.rig.kill_server()
            self.rig.start_server()
        return hit

    def at_client(self, name, action):
        if os.path.exists(self.log):
            os.unlink(self.log)
        self.rig.kill_client("alder")
        if name.startswith("base."):
            for path in glob.glob(self.rig.path("alder", "cache", "*")):
                os.unlink(path)
        self.rig.start_client("alder", self.rule(name, action), {"PHOTON_FAULT_LOG": self.log})
        hit = self.await_action(name, self.rig.clients["alder"], REACH_S)
        if hit:
            self.ended_well(self.rig.clients["alder"], action, "the silo")
            self.rig.hurry()
        if self.rig.clients["alder"].poll() is not None:
            self.rig.start_client("alder")
        return hit

    def lost_device(self):
        """A device that fails each time ends the silo, with the code of the manual; a good one goes on."""
        self.rig.kill_client("alder")
        self.rig.start_client("alder", "train.device=errno:EIO")
        process = self.rig.clients["alder"]

        def ended():
            self.rig.hurry()
            return process.poll() is not None
        poll("the silo to give its device up", ended, 60, 0.1)
        if process.returncode != 7:
            raise Broken("a silo without its device ended with status %d" % process.returncode)
        self.rig.start_client("alder")
        self.progress()

    def step(self, side, name, action):
        hit = (self.at_server if side == "server" else self.at_client)(name, action)
        if not hit:
            self.missed.append("%s=%s" % (name, action))
        if hit:
            self.reached.setdefault(name, []).append(action)
        self.progress()
        self.rig.check_rows()
        self.rig.check_acks()


def walk(build, plain, text, seed, share, say=print):
    """share: of all combinations, so many; 1.0 is all of them."""
    with Rig(build, plain) as rig:
        rig.start_server()
        rig.enrol(["alder"], text)
        real = rig.submit(REAL, name="real", eval={"every": 3, "windows": 1},
                   federation=dict(REAL["federation"], silos_per_round=1, min_silos=1))
        rig.start_client("alder")
        rig.submit(SCRIPTED)
        rig.add_scripted(3)
        w = Walk(rig, seed)
        w.progress()
        todo = [("server", n, a) for n, a in combinations(listed(rig.program("photon-server")))
                if not n.startswith(ELSEWHERE)]
        todo += [("silo", n, a) for n, a in combinations(listed(rig.program("photon-client")))]
        whole = len(todo)
        if share < 1.0:
            todo = w.rng.sample([t for t in todo if not slow(t[1])], max(1, int(share * len(todo))))
        begin = time.monotonic()
        for side, name, action in todo:
            try:
                w.step(side, name, action)
            except Broken as error:
                raise Broken("%s=%s: %s" % (name, action, error)) from error
        w.lost_device()
        same = rig.same_bits(real, 8 if share < 1.0 else 100)
        line = rig.verify()
        say("       %d of %d combinations of %d places acted in %.0f s, %d were not reached%s;"
            " %d checkpoints as undisturbed; %s" %
            (sum(map(len, w.reached.values())), whole, len(w.reached), time.monotonic() - begin, len(w.missed),
             " (%s)" % ", ".join(w.missed) if w.missed else "", same, line))
        if len(w.missed) > 0.15 * len(todo) + 1:
            raise Broken("too many places were not reached")


def slow(name):
    return any(name.startswith(p) for p in ("gc.", "blob.aside", "blob.unlink", "blob.replace", "corrupt.", "expire.", "abort.",
                                            "run.", "refuse.", "reap.", "snapshot.", "acks.", "blob.mkdir", "base."))


def first_start(build, plain, say=print):
    """Death within each migration of a first start, and the start after it."""
    with Rig(build, plain) as rig:
        rig.laid_out = True  # from nothing: no copy of a finished folder
        for n in range(1, 4):
            process = rig.spawn_server("migrate.applied=exit#%d" % n)
            process.wait(60)
            if process.returncode != 99:
                raise Broken("the server ended with status %d" % process.returncode)
        rig.start_server()
        rig.check_rows()
        say("       3 first starts died within a migration, the fourth served")
