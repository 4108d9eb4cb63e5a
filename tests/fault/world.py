"""The real programs for the rig: a server with its own PostgreSQL, real silos and scripted ones, killed at will,
and the oracle that says afterwards whether anything was lost or counted twice."""

import array
import atexit
import glob
import hashlib
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import http.client

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [os.path.join(ROOT, "tests", "api"), os.path.join(ROOT, "tests", "e2e")]
sys.dont_write_bytecode = True

from harness import free_ports  # noqa: E402
from kit import Answer  # noqa: E402
import silo_client  # noqa: E402

TOKENIZER = "ab" * 32  # what the scripted silos say their text is made with, so that real ones are not asked
REAL = {"name": "real", "seed": 7,
        "model": {"d_model": 16, "n_heads": 2, "n_layers": 1, "vocab_size": 320, "seq_len": 16},
        "federation": {"rounds": 100000, "silos_per_round": 3, "min_silos": 2, "local_steps": 2},
        "inner": {"batch": 1, "warmup": 1}, "codec": {"down": "int8"}, "eval": {"every": 100000, "windows": 1},
        "keep_checkpoints": 0}
SCRIPTED = {"name": "scripted", "seed": 8, "tokenizer": {"sha256": TOKENIZER},
            "model": {"d_model": 8, "n_heads": 1, "n_layers": 1, "vocab_size": 32, "seq_len": 8},
            "federation": {"rounds": 100000, "silos_per_round": 3, "min_silos": 2, "local_steps": 1},
            "inner": {"batch": 1, "warmup": 1}, "eval": {"every": 100000, "windows": 1}, "keep_checkpoints": 0}
NAMES = ["alder", "birch", "cedar"]


class Broken(Exception):
    """Something that must hold does not."""


def poll(what, condition, timeout_s=60.0, pause_s=0.01):
    end = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Broken("waited %.0f s in vain for: %s" % (timeout_s, what))
        time.sleep(pause_s)


def percentile(values, p):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * p / 100.0))] if values else 0.0


def children(pid):
    found = []
    for path in glob.glob("/proc/[0-9]*/stat"):
        try:
            with open(path) as f:
                text = f.read()
        except OSError:
            continue
        if int(text.rsplit(")", 1)[1].split()[1]) == pid:
            found.append(int(path.split("/")[2]))
    return found


class Door:
    """Requests to one server, as silo_client.Silo makes them."""

    def __init__(self, port, bulk_port, token=None, timeout_s=10):
        self.port, self.bulk_port, self.token, self.timeout_s = port, bulk_port, token, timeout_s

    def call(self, method, path, body=None, token="admin", headers=None, check=True, bulk=False, raw=None, timeout=None):
        sent = dict(headers or {})
        token = self.token if token == "admin" else token
        if token:
            sent.setdefault("Authorization", "Bearer " + token)
        data = json.dumps(body).encode() if body is not None else raw
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        port = self.bulk_port if bulk else self.port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout or self.timeout_s)
        try:
            connection.request(method, path, data, sent)
            got = connection.getresponse()
            return Answer(method, got.status, got.getheaders(), got.read())
        finally:
            connection.close()

    def post(self, path, body, **options):
        return self.call("POST", path, body, **options)


class Journal:
    """What a scripted silo was told counts, on the disk before anything else happens."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.acks = []
        self.lock = threading.Lock()

    def append(self, ack):
        with self.lock:
            os.write(self.fd, (json.dumps(ack) + "\n").encode())
            os.fdatasync(self.fd)
            self.acks.append(ack)

    def taken(self):
        with self.lock:
            return list(self.acks)


class Scripted(silo_client.Silo):
    """A silo of a few lines that never tires: it asks again at once, under the same key, whatever breaks."""

    def __init__(self, door, name, journal):
        super().__init__(door, name)
        self.journal, self.check = journal, False
        self.stop = threading.Event()
        self.doors = [door]
        self.tokenizer = TOKENIZER
        self.refused = {}
        self.bad = False  # send something that is no number, once
        self.damage = None  # harm the next update behind the server's back: the folder of the blobs
        self.thread = threading.Thread(target=self.work, daemon=True)

    def start(self):
        assert self.hello(tokenizer_sha256=self.tokenizer).status == 200
        self.thread.start()

    def work(self):
        rng = random.Random(self.name)
        share = NAMES.index(self.name.split("-")[0]) + 1 if self.name.split("-")[0] in NAMES else 1
        while not self.stop.is_set():
            self.server = rng.choice(self.doors)
            try:
                answer = self.claim(1)
                if answer.status != 200:
                    self.stop.wait(0.05 if answer.status == 204 else 0.2)
                    continue
                task = answer.json()
                if task["kind"] == "evaluate":
                    self.evaluate(task)
                    continue
                self.train_once(task, share * 1e-3)
            except (OSError, AssertionError, KeyError, ValueError, http.client.HTTPException):
                self.stop.wait(0.03)  # no answer is no refusal

    def train_once(self, task, scale):
        bad, self.bad = self.bad, False
        data, tokens = self.update(task, pattern=float("nan") if bad else scale * (1 + task["round"] % 7))
        for _ in range(6):  # the same file again under the same key
            try:
                upload = self.send(task, data, tokens, chunk_bytes=len(data) // 2 + 1)
                answer = self.finish(task, upload)
            except (OSError, http.client.HTTPException):
                self.stop.wait(0.03)
                continue
            if answer.status == 200 and self.damage and self.harm(hashlib.sha256(data).hexdigest()):
                return  # it will be found, and asked for again
            if answer.status == 200:
                self.journal.append({"silo": self.id, "run": task["run"], "round": task["round"], "upload": upload,
                                     "sha256": hashlib.sha256(data).hexdigest()})
                return
            if answer.status < 500:
                code = silo_client.code(answer) + ("" if not bad else " of a bad one")
                self.refused[code] = self.refused.get(code, 0) + 1
                return


    def harm(self, digest):
        folder, self.damage = self.damage, None
        try:
            path = os.path.join(folder, digest[:2], digest[2:4], digest)
            os.chmod(path, 0o600)
            with open(path, "r+b") as f:
                f.seek(-1, 2)
                f.write(b"\x55")
            return True
        except OSError:
            return False


class Rig:
    """A data folder, what serves it and who talks to it."""

    template = None

    def __init__(self, build, plain=None, dir=None):
        self.laid_out = False
        self.build, self.plain = os.path.abspath(build), os.path.abspath(plain or build)
        self.dir = dir or tempfile.mkdtemp(prefix="photon-fault-")
        os.chmod(self.dir, 0o755)
        self.port, self.bulk_port = free_ports(2)
        self.door = Door(self.port, self.bulk_port)
        self.server, self.clients, self.scripted = None, {}, []
        self.journal = Journal(self.path("acks"))
        self.env = dict(os.environ, OMP_WAIT_POLICY="passive", OMP_NUM_THREADS="1")
        for name in ("PHOTON_FAULT", "PHOTON_FAULT_LOG", "LD_PRELOAD"):
            self.env.pop(name, None)
        self.runs = {}
        self.enrolled, self.specs = [], {}
        self.recomputed = {}

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        self.close(bool(kind) and not os.environ.get("PHOTON_KEEP"))
        if not (kind and os.environ.get("PHOTON_KEEP")):
            shutil.rmtree(self.dir, ignore_errors=True)

    def close(self, show=False):
        for silo in self.scripted:
            silo.stop.set()
        for process in list(self.clients.values()) + [self.server]:
            if process and process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()
        for silo in self.scripted:
            silo.thread.join(15) if silo.thread.ident else None
        pid = self.postmaster()
        if pid:
            os.kill(pid, signal.SIGQUIT)
            poll("PostgreSQL to end", lambda: self.postmaster() != pid, 30)
        if show:
            for path in sorted(glob.glob(self.path("*.log"))) + [self.path("data", "pg.log")]:
                if os.path.exists(path):
                    with open(path, errors="replace") as f:
                        print("---- %s\n%s" % (os.path.basename(path), "".join(f.readlines()[-12:])))

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    def program(self, name):
        return os.path.join(self.build, "bin", name)

    # ---- the server ----

    def spawn_server(self, faults="", env=None, options=()):
        log = open(self.path("server.log"), "a")
        more = dict(self.env, **(env or {}))
        if faults:
            more["PHOTON_FAULT"] = faults
        self.server = subprocess.Popen(
            [self.program("photon-server"), "--data", self.path("data"), "--listen", "127.0.0.1:%d" % self.port,
             "--bulk-listen", "127.0.0.1:%d" % self.bulk_port, "--log-level", "info", *options],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=more, start_new_session=True, cwd=ROOT)
        log.close()
        return self.server

    def ready(self):
        try:
            return Door(self.port, self.bulk_port, timeout_s=5).call("GET", "/readyz", token=None).status == 200
        except (OSError, http.client.HTTPException):
            return False

    def lay_out(self):
        """A folder that a server has made, stopped in order: a copy is faster than initdb, each time anew."""
        if not Rig.template:
            Rig.template = tempfile.mkdtemp(prefix="photon-fault-")
            atexit.register(shutil.rmtree, Rig.template, True)
            os.chmod(Rig.template, 0o755)
            first = Rig(self.build, self.plain, Rig.template)
            first.laid_out = True
            first.start_server()
            first.stop_server()
        self.laid_out = True
        subprocess.run(["cp", "-a", os.path.join(Rig.template, "data"), self.dir], check=True)

    def start_server(self, faults="", env=None, options=(), timeout_s=60.0):
        """Seconds from the start of the process to the first answer of /readyz."""
        if not self.laid_out:
            self.lay_out()
        begin = time.monotonic()
        self.spawn_server(faults, env, options)

        def serving():
            if self.server.poll() is not None:
                raise Broken("the server ended with status %d" % self.server.returncode)
            return self.ready()
        poll("the server to serve", serving, timeout_s)
        took = time.monotonic() - begin
        if not self.door.token:
            with open(self.path("data", "admin-token")) as f:
                self.door.token = f.read().strip()
        return took

    def kill_server(self):
        self.server.kill()
        self.server.wait()

    def stop_server(self, timeout_s=60):
        self.server.send_signal(signal.SIGTERM)
        try:
            self.server.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill_server()
            raise Broken("the server did not stop when asked")
        return self.server.returncode

    # ---- PostgreSQL ----

    def postmaster(self):
        try:
            with open(self.path("data", "pg", "postmaster.pid")) as f:
                pid = int(f.readline())
            with open("/proc/%d/stat" % pid) as f:
                return pid if f.read().rsplit(")", 1)[1].split()[0] != "Z" else 0
        except (OSError, ValueError):
            return 0

    def kill_postgres(self):
        """All of it: the postmaster first, so that it starts nothing in their place."""
        pid = self.postmaster()
        if not pid:
            return
        rest = children(pid)
        for p in [pid] + rest + children(pid):
            try:
                os.kill(p, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def psql(self, sql, tries=40):
        for left in range(tries, 0, -1):
            done = subprocess.run(["psql", "-X", "-q", "-A", "-t", "-F", "\t", "-v", "ON_ERROR_STOP=1"], input=sql,
                                  capture_output=True, text=True, env=dict(self.env, **self.pg_env()))
            if done.returncode == 0:
                return [line.split("\t") for line in done.stdout.splitlines()]
            if left == 1 or "ERROR" in done.stderr:
                raise Broken("psql: " + done.stderr)
            time.sleep(0.25)

    def pg_env(self):
        return {"PGHOST": self.path("data", "pg-socket"), "PGUSER": "photon", "PGDATABASE": "postgres"}

    # ---- silos ----

    def enrol(self, names, text):
        for name in names:
            self.enrolled.append(name)
            data = self.path(name + "-data")
            subprocess.run([os.path.join(self.plain, "bin", "photon"), "data", "prepare", text, "-o", data], check=True,
                           capture_output=True, env=self.env)
            secret = self.door.post("/api/v1/tokens", {"role": "join", "name": name}).json()["secret"]
            token = self.path(name + ".token")
            with open(token, "w") as f:
                f.write(secret)
            os.chmod(token, 0o600)
            subprocess.run([self.program("photon-client"), "join", "http://127.0.0.1:%d" % self.port, "--name", name,
                            "--token-file", token, "--state", self.path(name)], check=True, capture_output=True,
                           env=self.env)

    def start_client(self, name, faults="", env=None):
        log = open(self.path(name + ".log"), "a")
        more = dict(self.env, **(env or {}))
        if faults:
            more["PHOTON_FAULT"] = faults
        self.clients[name] = subprocess.Popen(
            [self.program("photon-client"), "start", "--state", self.path(name), "--data", self.path(name + "-data"),
             "--device", "cpu", "--threads", "1"],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=more, start_new_session=True, cwd=ROOT)
        log.close()

    def kill_client(self, name):
        self.clients[name].kill()
        self.clients[name].wait()

    def add_scripted(self, count=3, doors=None, tokenizer=TOKENIZER, group=""):
        for i in range(count):
            silo = Scripted(self.door, "%s-scripted%s" % (NAMES[i], group), self.journal)
            silo.tokenizer = tokenizer
            silo.doors = doors or [self.door]
            silo.start()
            self.scripted.append(silo)

    def submit(self, spec, **more):
        answer = self.door.post("/api/v1/runs", dict(spec, **more))
        if answer.status != 201:
            raise Broken("the run was refused: %d %s" % (answer.status, answer.body[:300]))
        self.runs[answer.json()["id"]] = spec
        self.specs[answer.json()["id"]] = dict(spec, **more)
        return answer.json()["id"]

    def round_of(self, run):
        rows = self.psql("SELECT coalesce(head, -1) FROM run WHERE id = '%s'" % run)
        return int(rows[0][0])

    def hurry(self):
        """A silo that failed sits out for up to a minute: not here."""
        self.psql("UPDATE silo SET fails = 0 WHERE fails > 0; UPDATE run_silo SET aside_rounds = 0 WHERE aside_rounds > 0;"
                  "UPDATE task SET free_at = clock_timestamp() WHERE state = 'pending' AND free_at > clock_timestamp()")

    # ---- the oracle ----

    def told(self):
        """Uploads that real silos were told count, from the file that they sync before they act on it."""
        seen = set()
        for name in self.enrolled:
            try:
                with open(self.path(name, "acks")) as f:
                    lines = f.read().split("\n")[:-1]
            except OSError:
                continue
            seen.update(line.split()[0] for line in lines if len(line.split()) == 4)
        return seen

    def acknowledged(self):
        return len(self.journal.taken()) + len(self.told())

    def check_acks(self):
        """I1: each acknowledged update is there, and counted by its round unless that round was begun anew."""
        told = {a["upload"] for a in self.journal.taken()} | self.told()
        counted = {row[0] for row in self.psql("SELECT upload_id FROM update WHERE state = 'accepted'"
                                               " AND upload_id IS NOT NULL")}
        lost = sorted(told - counted)
        if lost:
            raise Broken("%d of %d acknowledged updates are lost, one is %s" % (len(lost), len(told), lost[0]))
        for silo in self.scripted:
            if silo.refused.get("BAD_UPDATE"):
                raise Broken("a sound update was refused as bad")
            if silo.refused.get("INCOMPLETE"):
                raise Broken("a chunk that was acknowledged is not there")
        # A number of a run is closed once; whatever it counted is in its manifest (I3, I6), each silo once (I2).
        twice = self.psql("SELECT run_id, number, silo_id, count(*) FROM (SELECT q.run_id, q.number, u.silo_id FROM update u"
                          " JOIN round q ON q.id = u.round_id WHERE u.state = 'accepted' AND q.state = 'closed') x"
                          " GROUP BY 1, 2, 3 HAVING count(*) > 1")
        if twice:
            raise Broken("counted twice: %s" % twice[0])

    def check_rows(self):
        broken = self.psql("SELECT rule, subject, what FROM invariant_broken")
        if broken:
            raise Broken("%d invariants are broken, one is %s" % (len(broken), broken[0]))

    def check_store(self):
        """photon-server check, beside a server that serves or without one."""
        options = [] if "PHOTON_DATABASE" not in self.env else ["--database", self.env["PHOTON_DATABASE"]]
        done = subprocess.run([self.program("photon-server"), "check", "--data", self.path("data"), *options],
                              capture_output=True, text=True, env=self.env, timeout=300, cwd=ROOT)
        if done.returncode != 0:
            raise Broken("photon-server check: status %d\n%s%s" % (done.returncode, done.stdout[-600:], done.stderr[-600:]))
        return done.stdout.strip().splitlines()[-1]

    def shim(self):
        """The library that fails or notes calls; the loader would go on without it, and nothing would ever fail."""
        path = os.path.join(self.plain, "tests", "fault", "shim.so")
        if not os.path.exists(path):
            raise Broken("%s is missing: make test-fault builds it" % path)
        return path

    def file(self, digest):
        """A stored safetensors file: its header and its data."""
        with open(self.path("data", "store", "blobs", digest[:2], digest[2:4], digest), "rb") as f:
            data = f.read()
        if hashlib.sha256(data).hexdigest() != digest:
            raise Broken("a stored file is not what its name says: " + digest)
        (n,) = struct.unpack("<Q", data[:8])
        return json.loads(data[8:8 + n]), data[8 + n:]

    def blob(self, digest):
        return array.array("f", self.file(digest)[1])

    def stepped(self, parent, step):
        """The parent's weights less a step on the rung int8 (common/codec_file.h): what silos make of them."""
        header, data = self.file(step)
        whole, weights = self.file(parent)
        x = array.array("f", weights)
        for name, at in whole.items():
            if name == "__metadata__":
                continue
            first, last = (offset // 4 for offset in at["data_offsets"])
            if name + ":q8" not in header:
                raise Broken("a step's tensor %s went one rung up: unheard of in this model" % name)
            part = {key: data[slice(*header[name + key]["data_offsets"])] for key in (":q8", ":scale")}
            codes = array.array("b", part[":q8"])
            scales = array.array("H", part[":scale"])
            for i in range(first, last):
                (scale,) = struct.unpack("<f", struct.pack("<I", scales[(i - first) // 256] << 16))
                x[i] = x[i] - codes[i - first] * scale  # rounded once, as the product is exact
        return x

    def recompute(self, run, most=50):
        """The newest closed rounds again from their parent and their updates: the same values, bit for bit. Where
        checkpoints go down as steps, the sum is that of the state's y, and the weights are the parent's less the step."""
        rows = self.psql("SELECT c.number, encode(c.weights, 'hex'), encode(p.weights, 'hex'),"
                         "  coalesce(encode(c.outer_state, 'hex'), ''), coalesce(encode(p.outer_state, 'hex'), ''),"
                         "  coalesce(encode(c.step, 'hex'), ''),"
                         "  (SELECT string_agg(encode(u.digest, 'hex') || ':' || u.tokens, ',' ORDER BY u.slot)"
                         "     FROM update u WHERE u.round_id = q.id AND u.state = 'accepted')"
                         "  FROM checkpoint c JOIN checkpoint p ON (p.run_id, p.number) = (c.run_id, c.number - 1)"
                         "  JOIN round q ON (q.run_id, q.number, q.state) = (c.run_id, c.number, 'closed')"
                         " WHERE c.run_id = '%s' AND c.number > %d ORDER BY c.number DESC LIMIT %d"
                         % (run, self.recomputed.get(run, (0, 0))[1], most))
        done, top = self.recomputed.get(run, (0, 0))
        for number, child, parent, state, state_before, step, updates in rows:
            try:
                parts = [(self.blob(u.split(":")[0]), float(u.split(":")[1])) for u in updates.split(",")]
                if step and self.stepped(parent, step).tobytes() != self.blob(child).tobytes():
                    raise Broken("checkpoint %s of %s is not its parent less its step" % (number, run))
                want, x = self.blob(state or child), self.blob(state_before or parent)
            except FileNotFoundError:
                continue  # past its keeping
            total = sum(t for _, t in parts)
            got = array.array("f", x)
            for i, value in enumerate(x):
                delta = 0.0
                for values, tokens in parts:
                    delta += (tokens / total) * values[i]
                got[i] = value - delta
            if got.tobytes() != want.tobytes():
                raise Broken("checkpoint %s of %s is not its parent and its %d updates" % (number, run, len(parts)))
            done += 1
            top = max(top, int(number))
        self.recomputed[run] = (done, top)
        return done

    def same_bits(self, run, most=25):
        """The same run again, undisturbed: each checkpoint must have the same weights."""
        spec = dict(self.specs[run], name="again")
        self.door.post("/api/v1/runs/%s/actions" % run, {"action": "pause"})
        rounds = min(most, self.round_of(run))
        again = self.submit(spec)  # of as many rounds, for the learning rate follows their number
        poll("the undisturbed run to come so far", lambda: self.round_of(again) >= rounds, 240, 0.1)
        self.door.post("/api/v1/runs/%s/actions" % again, {"action": "stop"})
        rows = self.psql("SELECT a.number FROM checkpoint a JOIN checkpoint b ON b.number = a.number"
                         " WHERE a.run_id = '%s' AND b.run_id = '%s' AND a.weights_digest <> b.weights_digest"
                         " ORDER BY 1 LIMIT 1" % (run, again))
        if rows:
            raise Broken("checkpoint %s is not what an undisturbed run gives" % rows[0][0])
        return rounds

    def verify(self, store=True):
        """Everything that must hold, now; a line of figures."""
        self.check_rows()
        self.check_acks()
        done = sum(self.recompute(run) for run in self.runs)
        line = self.check_store() if store else ""
        return "%d acknowledged, %d checkpoints recomputed%s" % (self.acknowledged(), done, "; " + line if line else "")
