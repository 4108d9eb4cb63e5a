"""Two servers over one database and one folder, each killed, stopped and robbed of its sessions in turn: one child per
checkpoint, whoever made it."""

import random
import re
import signal
import subprocess
import time

import kills
from harness import free_ports
from world import ROOT, SCRIPTED, Broken, Door, Rig, poll

RACES = ["fold.raised", "fold.made", "checkpoint.written", "checkpoint.placed", "publish.begin", "publish.locked",
         "publish.inserted", "publish.moved", "publish.closed", "publish.committed", "seal.locked", "seal.counted",
         "seal.marked", "seal.cancelled", "open.locked", "open.seated", "accept.locked", "accept.counted",
         "claim.locked", "claim.taken", "place.locked", "place.named", "blob.synced", "blob.renamed", "task.lock",
         "chunk.commit", "upload.synced", "gc.marked", "gc.locked", "gc.deleted"]


class Twin:
    """One of the two."""

    def __init__(self, rig, name, database):
        self.rig, self.name, self.database = rig, name, database
        self.port, self.bulk_port = free_ports(2)
        self.door = Door(self.port, self.bulk_port)
        self.process = None

    def start(self, faults=""):
        with open(self.rig.path("%s.log" % self.name), "a") as log:
            self.process = subprocess.Popen(
                [self.rig.program("photon-server"), "--data", self.rig.path("data"), "--database", self.database,
                 "--listen", "127.0.0.1:%d" % self.port, "--bulk-listen", "127.0.0.1:%d" % self.bulk_port],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, cwd=ROOT,
                env=dict(self.rig.env, PHOTON_FAULT=faults))
        # It may have come to the failpoint at which it falls asleep before anybody asked.
        poll("%s to serve" % self.name, lambda: self.alive() and (self.asleep() or self.serves()), 60)

    def alive(self):
        if self.process.poll() is not None:
            raise Broken("%s ended by itself with status %d" % (self.name, self.process.returncode))
        return True

    def serves(self):
        try:
            return self.door.call("GET", "/readyz", token=None, timeout=5).status == 200
        except OSError:
            return False

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()

    def said(self, text):
        with open(self.rig.path("%s.log" % self.name), errors="replace") as f:
            return len(re.findall(text, f.read()))


    def asleep(self):
        try:
            with open("/proc/%d/stat" % self.process.pid) as f:
                return f.read().rsplit(")", 1)[1].split()[0] == "T"
        except OSError:
            return False


def rob(rig):
    """Ends the sessions that hold a lock on a run's aggregation: whoever holds one is asleep, and must not matter."""
    rig.psql("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted")


def heads(rig):
    return sum(int(row[0]) for row in rig.psql("SELECT coalesce(head, 0) FROM run"))


class Struggle:
    def __init__(self, rig, twins, rng):
        self.rig, self.twins, self.rng = rig, twins, rng
        self.done = {"kill": 0, "stop": 0, "rob": 0, "stall": 0}

    def kill(self, one):
        one.kill()
        one.start(kills.delays(self.rng, RACES, 6, 40))

    def stop(self, one):
        one.process.send_signal(signal.SIGSTOP)
        time.sleep(self.rng.uniform(0.05, 0.5))
        one.process.send_signal(signal.SIGCONT)

    def rob(self, one):
        one.process.send_signal(signal.SIGSTOP)
        rob(self.rig)
        time.sleep(self.rng.uniform(0.05, 0.5))
        one.process.send_signal(signal.SIGCONT)

    def stall(self, one):
        """It falls asleep with a checkpoint in its hands, loses its sessions, and wakes when another is published."""
        one.kill()
        place = self.rng.choice(["fold.made", "checkpoint.placed", "publish.begin", "fold.raised"])
        one.start("%s=stop#%d" % (place, self.rng.randrange(1, 3)))
        end = time.monotonic() + 5
        while time.monotonic() < end and not one.asleep():
            time.sleep(0.02)
        if one.asleep():
            rob(self.rig)
            before, end = heads(self.rig), time.monotonic() + 3
            while time.monotonic() < end and heads(self.rig) <= before + 1:
                time.sleep(0.05)
            one.process.send_signal(signal.SIGCONT)

    def act(self):
        time.sleep(self.rng.uniform(0.05, 0.4))
        one = self.rng.choice(self.twins)
        one.alive()
        act = self.rng.choices(["kill", "stop", "rob", "stall"], [4, 3, 2, 2])[0]
        getattr(self, act)(one)
        self.done[act] += 1


def two_servers(build, plain, seed, rounds, say=print, groups=3):
    rng = random.Random(seed)
    with Rig(build, plain) as rig:
        rig.start_server()  # makes the folder and its PostgreSQL, which lives on when this one is killed
        for i in range(groups):
            rig.submit(SCRIPTED, name="scripted-%d" % i, tokenizer={"sha256": "%02x" % (i + 1) * 32},
                       federation=dict(SCRIPTED["federation"], silos_per_round=2, min_silos=2))
        rig.kill_server()
        at = "host=%s user=%%s dbname=postgres" % rig.path("data", "pg-socket")
        rig.env["PHOTON_DATABASE"], rig.env["PHOTON_MIGRATE_DATABASE"] = at % "photon_server", at % "photon"
        twins = [Twin(rig, name, rig.env["PHOTON_DATABASE"]) for name in ("left", "right")]
        fight = Struggle(rig, twins, rng)
        try:
            for twin in twins:
                twin.door.token = rig.door.token
                twin.start()
            rig.door = twins[0].door
            for i in range(groups):
                rig.add_scripted(2, [t.door for t in twins], tokenizer="%02x" % (i + 1) * 32, group=str(i))
            begin, looked, moved, top = time.monotonic(), time.monotonic(), time.monotonic(), 0
            while top < rounds:
                fight.act()
                now = heads(rig)
                moved = time.monotonic() if now > top else moved
                top = now
                if time.monotonic() - moved > 120:
                    raise Broken("no round in two minutes")
                if time.monotonic() - looked > 20:
                    looked = time.monotonic()
                    line = rig.verify(store=False)
                    say("       round %d, %s: %s" % (top, fight.done, line))
            took = time.monotonic() - begin
            line = rig.verify(store=False)
            facts = rig.psql("SELECT count(*), count(DISTINCT (run_id, parent)), (SELECT sum(head) FROM run)"
                             " FROM checkpoint WHERE number > 0")[0]
            if len(set(facts)) != 1:
                raise Broken("not one child per checkpoint: %s" % facts)
            late = sum(t.said("cannot be published: 23") for t in twins)
            if late:
                raise Broken("%d times a checkpoint was stopped by a constraint alone" % late)
            made = [t.said("checkpoint [0-9]+ of [0-9]+ updates") for t in twins]
            fenced = sum(t.said("was published by somebody else") for t in twins)
        finally:
            for silo in rig.scripted:
                silo.stop.set()
            for twin in twins:
                twin.kill()
        line += "; " + rig.check_store()
        d = fight.done
        say("       %s rounds by two servers in %.0f s (%d and %d checkpoints, %d more made twice and fenced off), %d"
            " kills, %d stops, %d with the sessions ended, %d asleep over a checkpoint; one child per checkpoint; %s"
            % (facts[0], took, made[0], made[1], fenced, d["kill"] + d["stall"], d["stop"], d["rob"], d["stall"], line))
