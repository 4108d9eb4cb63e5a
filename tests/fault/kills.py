"""kill -9 at random instants, with the critical lines held open by delays: server, silos, all of PostgreSQL."""

import os
import random
import signal
import threading
import time

from world import NAMES, REAL, SCRIPTED, Broken, Rig, percentile, poll

# Where a delay shows a race; connecting and starting are left out, since their time is a figure of its own.
CRITICAL = ["task.lock", "task.round_locked", "task.locked", "accept.begin", "accept.locked", "accept.counted",
            "accept.committed", "finish.checked", "finish.reply", "place.locked", "place.named", "place.committed",
            "blob.synced", "blob.renamed", "chunk.begun", "upload.synced", "chunk.commit", "chunk.committed",
            "chunk.reply", "create.committed", "create.reply", "claim.locked", "claim.taken", "claim.committed",
            "claim.reply", "open.locked", "open.seated", "seal.locked", "seal.counted", "seal.marked",
            "seal.cancelled", "fold.raised", "fold.made", "checkpoint.written", "checkpoint.placed", "publish.begin",
            "publish.locked", "publish.inserted", "publish.moved", "publish.closed", "publish.committed",
            "gc.marked", "gc.locked", "gc.deleted", "blob.aside.done", "db.work.done", "db.commit", "db.committed"]
CLIENT = ["state.sync.file", "state.synced", "state.renamed", "state.drop", "journal.begin", "journal.begun",
          "journal.trained", "journal.trained.done", "journal.upload", "journal.upload.done", "journal.settle",
          "journal.settled", "send.created", "send.chunk", "send.chunked", "send.finish", "send.finished",
          "update.encoded", "moments.placed", "train.step", "base.fetch", "base.fetched", "claim.got"]


# Until everything serves again, p99, where nothing else keeps the processors: asked of the long form.
SERVER_S, DATABASE_S, QUIET_LOAD = 2.0, 5.0, 1.2


def judge(restarts, returns, loads, cores):
    """A sentence; Broken when a time is over its bound. Figures of a busy machine are told, not judged."""
    load = percentile(loads, 50) / cores
    if load >= QUIET_LOAD:
        return "not judged at a load of %.1f per core" % load
    for what, times, most in (("the server", restarts, SERVER_S), ("PostgreSQL", returns, DATABASE_S)):
        if times and percentile(times, 99) > most:
            raise Broken("after a kill of %s serving again takes %.2f s at p99, more than %.0f s, at a load of %.1f per core"
                         % (what, percentile(times, 99), most, load))
    return "within %.0f and %.0f s at p99, at a load of %.1f per core" % (SERVER_S, DATABASE_S, load)


def delays(rng, places, count, most_ms=70):
    often = {"db.work.done", "db.commit", "db.committed", "state.sync.file", "state.synced", "task.lock"}
    # Whatever was drawn, a transaction is often found open and an accept unanswered.
    rules = "" if places is not CRITICAL else "db.commit=delay:0-50ms@%d/6;accept.counted=delay:0-90ms@%d;" % (
        rng.randrange(1, 1 << 30), rng.randrange(1, 1 << 30))
    return rules + ";".join("%s=delay:0-%dms@%d%s" % (p, most_ms, rng.randrange(1, 1 << 30), "/8" if p in often else "")
                    for p in rng.sample(places, count))


class Kills:
    """Until each of the victims was killed as often as was asked for."""

    def __init__(self, rig, seed, server, client, database, stops, say=print):
        self.rig, self.rng, self.say = rig, random.Random(seed), say
        self.want = {"server": server, "client": client, "database": database, "stop": stops}
        self.done = dict.fromkeys(self.want, 0)
        self.restarts, self.returns, self.loads = [], [], []
        self.failure = None
        self.clients_over = threading.Event()

    # ---- silos, in a thread of their own ----

    def kill_clients(self, seed):
        rng = random.Random(seed)
        try:
            while self.done["client"] < self.want["client"] and not self.clients_over.is_set():
                time.sleep(rng.uniform(0.02, 0.5))
                name = rng.choice(sorted(self.rig.clients))
                code = self.rig.clients[name].poll()
                if code is not None:
                    raise Broken("%s ended by itself with status %d" % (name, code))
                self.rig.kill_client(name)
                self.rig.start_client(name, delays(rng, CLIENT, 4, 40))
                self.done["client"] += 1
        except Exception as error:  # told by the main thread
            self.failure = error

    # ---- the others ----

    def kill_server(self):
        time.sleep(self.rng.uniform(0.02, 0.4))
        code = self.rig.server.poll()
        if code is not None:
            raise Broken("the server ended by itself with status %d" % code)
        self.rig.kill_server()
        self.restarts.append(self.rig.start_server(delays(self.rng, CRITICAL, 8)))

    def at_work(self, patience_s=5.0):
        """Until something was acknowledged since the last kill: who still waits for a server can lose nothing."""
        before, end = self.rig.acknowledged(), time.monotonic() + patience_s
        while self.rig.acknowledged() == before and time.monotonic() < end:
            time.sleep(0.02)

    def kill_database(self):
        self.at_work()
        time.sleep(self.rng.uniform(0.0, 0.3))
        before = self.rig.postmaster()
        begin = time.monotonic()
        if self.rng.random() < 0.3:
            self.rig.server.kill()
            self.rig.kill_postgres()
            self.rig.server.wait()
            self.rig.start_server(delays(self.rng, CRITICAL, 8))
        else:
            self.rig.kill_postgres()
        poll("PostgreSQL to be back", lambda: self.rig.postmaster() not in (0, before) and self.rig.ready(), 60)
        self.returns.append(time.monotonic() - begin)

    def stop_one(self):
        process = self.rng.choice([self.rig.server] + list(self.rig.clients.values()))
        process.send_signal(signal.SIGSTOP)
        time.sleep(self.rng.uniform(0.1, 2.0))
        process.send_signal(signal.SIGCONT)

    def left(self):
        return [k for k in ("server", "database", "stop") if self.done[k] < self.want[k]]

    def run(self, every_s=20.0):
        self.rig.kill_server()
        self.rig.start_server(delays(self.rng, CRITICAL, 8))
        killer = threading.Thread(target=self.kill_clients, args=(self.rng.random(),), daemon=True)
        killer.start()
        acts = {"server": self.kill_server, "database": self.kill_database, "stop": self.stop_one}
        looked, acks, moved = time.monotonic(), 0, time.monotonic()
        try:
            while self.left() or killer.is_alive():
                if self.failure:
                    raise self.failure
                kinds = self.left()
                if kinds:
                    kind = self.rng.choices(kinds, [self.want[k] - self.done[k] for k in kinds])[0]
                    acts[kind]()
                    self.loads.append(os.getloadavg()[0])
                    self.done[kind] += 1
                else:
                    time.sleep(0.2)
                if time.monotonic() - looked > every_s:
                    looked = time.monotonic()
                    line = self.rig.verify(store=False)
                    self.say("       %s: %s" % (self.figures(), line))
                    if self.rig.acknowledged() > acks:
                        acks, moved = self.rig.acknowledged(), looked
                    if looked - moved > 180:
                        raise Broken("nothing was acknowledged for three minutes")
        finally:
            self.clients_over.set()
            killer.join(30)
        if self.failure:
            raise self.failure

    def figures(self):
        return "%(server)d server, %(client)d silo, %(database)d PostgreSQL kills, %(stop)d stops" % self.done

    def times(self):
        return ("serving after a kill: server p50 %.2f p99 %.2f max %.2f s, PostgreSQL p50 %.2f p99 %.2f max %.2f s" %
                (percentile(self.restarts, 50), percentile(self.restarts, 99), max(self.restarts or [0]),
                 percentile(self.returns, 50), percentile(self.returns, 99), max(self.returns or [0])))


def begin(rig, text, clients=NAMES, scripted=3):
    rig.start_server()
    if clients:
        rig.enrol(clients, text)
        rig.submit(REAL, name="real", federation=dict(REAL["federation"], silos_per_round=len(clients),
                                                      min_silos=min(2, len(clients))))
        for name in clients:
            rig.start_client(name)
    if scripted:
        rig.submit(SCRIPTED)
        rig.add_scripted(scripted)


def settle(rig):
    """Undisturbed for a moment: rounds must go on, on both runs."""
    rig.kill_server()
    rig.start_server()
    before = {run: rig.round_of(run) for run in rig.runs}
    for run, number in before.items():
        poll("run %s to go on after all that" % rig.runs[run]["name"], lambda: rig.round_of(run) > number + 1, 150, 0.2)


def random_kills(build, plain, text, seed, server, client, database, stops, say=print, every_s=20.0, timed=False):
    """timed: the times until all serves again must keep within their bounds."""
    with Rig(build, plain) as rig:
        begin(rig, text)
        kills = Kills(rig, seed, server, client, database, stops, say)
        begin_s = time.monotonic()
        kills.run(every_s)
        took = time.monotonic() - begin_s
        settle(rig)
        for process in rig.clients.values():
            process.kill()
        code = rig.stop_server()
        if code != 0:
            raise Broken("the server ended with status %d when asked to stop" % code)
        # The store once more without anybody at work: photon-server check starts its PostgreSQL by itself.
        rig.start_server()
        line = rig.verify()
        say("       %s in %.0f s; %s" % (kills.figures(), took, line))
        say("       0 acknowledged updates lost, 0 counted twice, 0 invariants broken; %s" % kills.times())
        if timed:
            say("       times %s" % judge(kills.restarts, kills.returns, kills.loads, os.cpu_count()))
        return kills
