"""The power is cut: a process dies, and what it wrote and had not synced is gone; a name whose folder was not synced too.

tests/fault/shim.c notes what the process did to its files. PostgreSQL keeps its own promises, and is only killed."""

import os
import random
import time

from world import REAL, SCRIPTED, Broken, Rig, poll

SERVER = ["upload.synced", "chunk.commit", "chunk.committed", "chunk.reply", "blob.synced", "blob.renamed",
          "place.named", "place.committed", "finish.checked", "accept.begin", "accept.committed", "finish.reply",
          "checkpoint.written", "checkpoint.placed", "fold.made", "publish.begin", "publish.committed"]
CLIENT = ["state.synced", "state.renamed", "journal.begun", "journal.trained.done", "journal.upload.done",
          "journal.settled", "update.encoded", "moments.placed", "send.created", "send.chunked", "send.finish",
          "send.finished", "base.fetched", "claim.got"]


class Disk:
    """What one process left unsynced, from its shim's log."""

    def __init__(self, log):
        self.log, self.read = log, 0
        self.dirty, self.names = {}, []
        self.lost_ranges = self.lost_names = 0

    def follow(self):
        try:
            with open(self.log) as f:
                f.seek(self.read)
                text = f.read()
        except OSError:
            return
        text = text[:text.rfind("\n") + 1]  # of a line that is being written nothing yet
        self.read += len(text)
        for line in text.splitlines():
            words = line.split(" ")
            if words[0] == "W" and len(words) == 4:
                self.dirty.setdefault(words[1], []).append((int(words[2]), int(words[3])))
            elif words[0] == "S":
                self.dirty.pop(words[1], None)
                self.names = [n for n in self.names if os.path.dirname(n[1]) != words[1]]
            elif words[0] == "R" and len(words) == 3:
                if words[1] in self.dirty:
                    self.dirty[words[2]] = self.dirty.pop(words[1])
                else:
                    self.dirty.pop(words[2], None)
                self.names.append((words[1], words[2]))

    def cut(self, fresh_names):
        """Worst of all that may happen. fresh_names: a name that was given may be gone again."""
        self.follow()
        for path, ranges in self.dirty.items():
            try:
                os.chmod(path, 0o600)  # a placed file is read-only, to its owner too
                fd = os.open(path, os.O_WRONLY)
            except OSError:
                continue
            size = os.fstat(fd).st_size
            for at, count in ranges:
                count = min(count, size - at)
                if count > 0:
                    os.pwrite(fd, bytes(count), at)
                    self.lost_ranges += 1
            os.close(fd)
        for old, new in reversed(self.names if fresh_names else []):
            if os.path.exists(new) and not os.path.exists(old):
                os.rename(new, old)
                self.lost_names += 1
        self.dirty, self.names = {}, []


class Power:
    def __init__(self, rig, seed, lie=False):
        self.rig, self.rng, self.lie = rig, random.Random(seed), lie
        self.shim = rig.shim()
        self.server = Disk(rig.path("server.shim"))
        self.client = Disk(rig.path("alder.shim"))
        self.cuts = 0

    def env(self, disk, under):
        env = {"LD_PRELOAD": self.shim, "SHIM_UNDER": self.rig.path(*under), "SHIM_LOG": disk.log}
        return dict(env, SHIM_LIE="1") if self.lie else env

    def start_server(self, faults=""):
        self.rig.spawn_server(faults, self.env(self.server, ("data", "store")))
        poll("the server to serve", lambda: self.rig.server.poll() is not None or self.rig.ready(), 60)

    def start_client(self, faults=""):
        self.rig.start_client("alder", faults, self.env(self.client, ("alder",)))

    def await_death(self, process, disk):
        """Where the rule says, or at some moment when it says nothing soon; under a lie, once there is what can be lost."""
        end = time.monotonic() + (60.0 if self.lie else 0.0)
        while process.poll() is None and not disk.dirty and time.monotonic() < end:
            time.sleep(0.005)
            disk.follow()
        end = time.monotonic() + self.rng.uniform(0.3, 1.5)
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
        if process.poll() is None:
            process.kill()
        process.wait()

    def rule(self, places):
        return "%s=exit#%d" % (self.rng.choice(places), self.rng.randrange(1, 5))

    def cut_server(self):
        self.rig.kill_server()
        self.server.follow()
        self.start_server(self.rule(SERVER))
        self.await_death(self.rig.server, self.server)
        self.server.cut(True)
        self.start_server()
        if self.rig.server.poll() is not None:
            raise Broken("the server ended with status %d after a cut" % self.rig.server.returncode)

    def cut_client(self):
        self.rig.kill_client("alder")
        self.client.follow()
        self.start_client(self.rule(CLIENT))
        self.await_death(self.rig.clients["alder"], self.client)
        self.client.cut(False)
        self.start_client()
        time.sleep(0.2)
        if self.rig.clients["alder"].poll() is not None:
            raise Broken("the silo ended with status %d after a cut" % self.rig.clients["alder"].returncode)


def power_cuts(build, plain, text, seed, cuts, say=print, lie=False):
    with Rig(build, plain) as rig:
        p = Power(rig, seed, lie)
        rig.lay_out()
        p.start_server()
        with open(rig.path("data", "admin-token")) as f:
            rig.door.token = f.read().strip()
        rig.enrol(["alder"], text)
        real = rig.submit(REAL, name="real", federation=dict(REAL["federation"], silos_per_round=1, min_silos=1))
        p.start_client()
        rig.submit(SCRIPTED)
        rig.add_scripted(3)
        begin = time.monotonic()
        for n in range(cuts):
            p.cut_server() if p.rng.random() < 0.6 else p.cut_client()
            before = {run: rig.round_of(run) for run in rig.runs}
            for run, number in before.items():
                poll("run %s to go on after a cut" % rig.runs[run]["name"],
                     lambda: rig.round_of(run) > number or rig.server.poll() is not None, 8 if lie else 60, 0.05)
            rig.check_rows()
            rig.check_acks()
            if n % 10 == 9 or n == cuts - 1:
                rig.check_store()
        same = rig.same_bits(real, min(25, 2 * cuts))
        line = rig.verify()
        say("       %d power cuts in %.0f s: %d unsynced writes and %d unsynced names lost; %d checkpoints as undisturbed; %s" %
            (cuts, time.monotonic() - begin, p.server.lost_ranges + p.client.lost_ranges, p.server.lost_names, same, line))


def lying_disk(build, plain, text, seed, say=print):
    """A planted bug that needs no build: syncs that do nothing. A rig that sees nothing then proves nothing."""
    try:
        power_cuts(build, plain, text, seed, 12, lambda line: None, lie=True)
    except Broken as seen:
        say("       syncs that do nothing are seen: %s" % seen)
        return
    raise Broken("syncs did nothing, and nobody saw it")
