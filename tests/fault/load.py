"""Many silos at once, and many that mean ill: how long the honest ones wait, and what the server needs for it.

    load.py BUILD [quick]

Long form: 1,000 silos hold a long poll each while 50 of them at a time upload updates; then 1,300 connections join that
send their head or body a byte a second or hardly read their answer, on both listeners. Quick form: 100, 5 and 60. The
server is the real one with its own PostgreSQL. Printed, and checked in the long form: errors (none), from the commit of
a task to its arrival at the silo that waits for it (99 % within 500 ms), the server's memory (at most 150 MB), the 99th
percentile of a healthy client before and beside the hostile ones (at most double), and when the hostile ones are ended.
"""

import asyncio
import hashlib
import json
import multiprocessing
import os
import random
import resource
import select
import socket
import struct
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
for folder in ("e2e", "api"):
    sys.path.insert(0, os.path.join(HERE, "..", folder))
from harness import World, until  # noqa: E402
from silo_client import BOUNDARY, read_safetensors, write_safetensors  # noqa: E402

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
LONG = {"silos": 1000, "seats": 50, "runs": 2, "rounds": 6, "heads": 1000, "bodies": 200, "readers": 100, "base_s": 20.0,
        "hostile_s": 75.0, "d_model": 256, "slower": 2, "slow_ms": 0.0, "wake_ms": 500.0, "tries": 1}
QUICK = {"silos": 100, "seats": 5, "runs": 1, "rounds": 3, "heads": 40, "bodies": 10, "readers": 10, "base_s": 2.0,
         "hostile_s": 4.0, "d_model": 64, "slower": 20, "slow_ms": 1000.0,
         "wake_ms": 5000.0, "tries": 3}  # a handful of answers: one pause of the machine would be their 99th percentile
MEMORY_MB = 150.0
# What a class of hostile connections may last: its limit, the sweeper's second, and what a busy machine adds.
LIMITS_S = {"head": 10.0, "control body": 30.0, "bulk body": 60.0, "reader": 60.0}
SLACK_S = 3.0
READERS_OF_TOKEN = 15  # one token has 16 transfers at once; a reader over that would have its refusal to read, and be idle


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def new_id(prefix, n):
    text = ""
    for _ in range(26):
        text = ALPHABET[n % 32] + text
        n //= 32
    return prefix + "_" + text


class Silos:
    """Rows for silos and their tokens, as a thousand joins would leave them."""

    def __init__(self, world, count, prefix, state="active"):
        self.silos = []
        rows = []
        for i in range(count):
            secret = "pht_" + "".join(random.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") for _ in range(43))
            n = random.getrandbits(120)
            silo, name = new_id("s", n), "%s-%04d" % (prefix, i)
            rows.append("INSERT INTO silo (id, name, state, agent, seen_at, gone) VALUES ('%s', '%s', '%s', 'load', clock_timestamp(), false);"
                        "INSERT INTO token (id, hash, role, name, silo_id) VALUES ('%s', '\\x%s', 'silo', '%s', '%s');"
                        % (silo, name, state, new_id("k", n), hashlib.sha256(secret.encode()).hexdigest(), name, silo))
            self.silos.append((name, secret))
        psql(world, "BEGIN;" + "".join(rows) + "COMMIT;")


def psql(world, sql):
    done = subprocess.run(["psql", "-X", "-q", "-A", "-t", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-h",
                           world.path("server", "pg-socket"), "-U", "photon", "postgres"], input=sql, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


class Connection:
    """One kept-alive connection; dialled when it is first needed and after it was closed."""

    def __init__(self, port, source=None):
        self.port, self.source = port, source
        self.reader = self.writer = None

    async def call(self, method, path, secret, body=b"", headers=()):
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = ["%s %s HTTP/1.1" % (method, path), "Host: x", "Authorization: Bearer " + secret, "Photon-Protocol: 1"]
        if method == "POST":
            head.append("Content-Length: %d" % len(body))
        self.writer.write("\r\n".join(head + list(headers)).encode() + b"\r\n\r\n" + body)
        await self.writer.drain()
        text = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        status, length, keep = int(text.split()[1]), 0, True
        for line in text.split("\r\n")[1:]:
            name, _, value = line.partition(":")
            if name.lower() == "content-length":
                length = int(value)
            keep = keep and not (name.lower() == "connection" and value.strip() == "close")
        answer = await self.reader.readexactly(length) if length else b""
        if not keep:
            self.close()
        return status, answer

    async def post(self, path, secret, body):
        return await self.call("POST", path, secret, json.dumps(body).encode(), ["Content-Type: application/json"])

    def close(self):
        if self.writer:
            self.writer.close()
        self.reader = self.writer = None


class Uploader:
    """Sends updates, in a process of its own: what it computes must not delay the clock of those that poll."""

    def __init__(self, ports, pipe):
        self.ports, self.pipe = ports, pipe
        self.headers = {}  # of a base file
        self.now = self.most = 0

    async def base_header(self, bulk, secret, task):
        digest = task["base"]["sha256"]
        status, data = await bulk.call("GET", "/silo/v1/blobs/" + digest, secret)
        if status != 200 or len(data) != task["base"]["bytes"]:
            raise AssertionError("a base file: %d" % status)
        if digest not in self.headers:
            header, body = read_safetensors(data)
            header.pop("__metadata__")
            self.headers[digest] = (header, struct.pack("<f", 1e-5) * (len(body) // 4))
        return self.headers[digest]

    async def upload(self, name, secret, task):
        control, bulk = Connection(self.ports[0]), Connection(self.ports[1])
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            header, body = await self.base_header(bulk, secret, task)
            steps = task["plan"]["local_steps"]
            tokens = steps * task["spec"]["inner"]["batch"] * task["spec"]["model"]["seq_len"]
            said = {"format": "pt", "kind": "update", "run": task["run_name"], "round": "%08d" % task["round"],
                    "base": task["base"]["sha256"], "codec": "f32", "silo": name, "tokens": "%016d" % tokens,
                    "steps": "%016d" % steps}
            data = write_safetensors(dict({"__metadata__": said}, **header), body)
            epoch = task["lease"]["epoch"]
            status, body = await control.post("/silo/v1/uploads", secret, {
                "task": task["task"], "epoch": epoch, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data),
                "codec": "f32", "tokens": tokens, "steps": steps, "train_loss": 5.5,
                "timings": {"download_s": 0.1, "train_s": 1.5, "encode_s": 0.1}})
            if status not in (200, 201):
                raise AssertionError("create: %d %s" % (status, body[:200]))
            upload = json.loads(body)["upload"]
            chunk = task["plan"]["chunk_bytes"] // 4
            for at in range(0, len(data), chunk):
                await self.send_chunk(bulk, secret, task, upload, data[at:at + chunk], at)
            status = 202
            while status == 202:
                status, body = await control.post("/silo/v1/uploads/%s/finish" % upload, secret, {"epoch": epoch, "upload_s": 0.5})
            if status != 200:
                raise AssertionError("finish: %d %s" % (status, body[:200]))
            said = None
        except (OSError, AssertionError, asyncio.IncompleteReadError) as error:
            said = "%s: %s" % (type(error).__name__, str(error)[:160])
        finally:
            self.now -= 1
            control.close()
            bulk.close()
        self.pipe.send((task["task"], said, self.most))

    async def send_chunk(self, bulk, secret, task, upload, piece, offset):
        meta = json.dumps({"offset": offset, "bytes": len(piece), "sha256": hashlib.sha256(piece).hexdigest()})
        body = ("--%s\r\nContent-Disposition: form-data; name=\"meta\"\r\nContent-Type: application/json\r\n\r\n%s\r\n--%s\r\n"
                "Content-Disposition: form-data; name=\"chunk\"\r\nContent-Type: application/octet-stream\r\n\r\n"
                % (BOUNDARY, meta, BOUNDARY)).encode() + piece + ("\r\n--%s--\r\n" % BOUNDARY).encode()
        status, text = await bulk.call("POST", "/silo/v1/uploads/" + upload, secret, body, [
            "Content-Type: multipart/form-data; boundary=" + BOUNDARY,
            "Photon-Lease: %s:%d" % (task["task"], task["lease"]["epoch"])])
        if status != 200:
            raise AssertionError("chunk: %d %s" % (status, text[:200]))


class Load:
    """The silos that poll."""

    def __init__(self, world):
        self.world = world
        self.arrived = {}  # (task, epoch) -> Unix times: asked, answered
        self.errors = []
        self.uploads = self.uploading_most = self.parked = 0
        self.uploading = {}  # task -> its silo waits for this
        self.stop = False
        self.pipe, theirs = multiprocessing.Pipe()
        multiprocessing.Process(target=uploader, args=((world.port, world.bulk_port), theirs), daemon=True).start()

    def uploaded(self):
        task, error, self.uploading_most = self.pipe.recv()
        if error:
            self.errors.append("upload: " + error)
        else:
            self.uploads += 1
        self.uploading.pop(task).set_result(None)

    async def work(self, name, secret, control, task):
        if task["kind"] == "evaluate":
            status, body = await control.post("/silo/v1/tasks/%s/result" % task["task"], secret, {
                "epoch": task["lease"]["epoch"], "nll": 40.0, "tokens": 7, "bytes": 7, "seconds": 0.1, "download_s": 0.1})
            if status != 200:
                raise AssertionError("result: %d %s" % (status, body[:200]))
            return
        self.uploading[task["task"]] = asyncio.get_running_loop().create_future()
        self.pipe.send((name, secret, task))
        await self.uploading[task["task"]]

    async def silo(self, name, secret):
        """Poll; upload when there is something to do; until told to stop."""
        control = Connection(self.world.port)
        while not self.stop:
            try:
                asked = time.time()
                self.parked += 1
                try:
                    status, body = await control.post("/silo/v1/tasks/claim", secret, {"agent": "load", "wait_s": 25})
                finally:
                    self.parked -= 1
                if status == 204:
                    continue
                if status != 200:
                    raise AssertionError("claim: %d %s" % (status, body[:200]))
                now = time.time()
                task = json.loads(body)
                self.arrived[(task["task"], task["lease"]["epoch"])] = (asked, now)
                await self.work(name, secret, control, task)
            except (OSError, AssertionError, asyncio.IncompleteReadError) as error:
                self.errors.append("%s: %s: %s" % (name, type(error).__name__, str(error)[:160]))
                control.close()
                await asyncio.sleep(1.0)
        control.close()


def uploader(ports, pipe):
    async def serve():
        u, running = Uploader(ports, pipe), set()

        def start():
            task = asyncio.ensure_future(u.upload(*pipe.recv()))
            running.add(task)
            task.add_done_callback(running.discard)
        asyncio.get_running_loop().add_reader(pipe.fileno(), start)
        await asyncio.Event().wait()
    raise_file_limit()
    asyncio.run(serve())


# ---- the healthy client and the hostile ones are processes of their own ----

def healthy(port, silos, pipe):
    """Asks /readyz and claims, in turns, each claim as the next of these silos, since one silo may not ask so often; answers
    each line of the pipe with what it measured since the last."""
    import http.client
    import itertools
    took = {"readyz": [], "claim": []}
    bad = []
    body = json.dumps({"agent": "healthy", "wait_s": 0})
    connection = None
    for _, secret in itertools.cycle(silos):
        headers = {"Authorization": "Bearer " + secret, "Photon-Protocol": "1", "Content-Type": "application/json"}
        if pipe.poll():
            if pipe.recv() == "end":
                return
            pipe.send((took, bad))
            took, bad = {"readyz": [], "claim": []}, []
        for kind, method, path, text in (("readyz", "GET", "/readyz", None), ("claim", "POST", "/silo/v1/tasks/claim", body)):
            start = time.monotonic()
            try:
                connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                connection.request(method, path, text, headers if text else {})
                answer = connection.getresponse()
                answer.read()
                if answer.status not in (200, 204):
                    bad.append("%s: %d" % (kind, answer.status))
            except (OSError, http.client.HTTPException) as error:
                bad.append("%s: %s" % (kind, error))
                connection = None
            took[kind].append((time.monotonic() - start) * 1e3)
            time.sleep(0.01)


class Hostile:
    def __init__(self, size, ports, secrets, weights):
        self.size, self.ports, self.secrets, self.weights = size, ports, secrets, weights
        self.lasted = {kind: [] for kind in LIMITS_S}
        self.refused = 0
        self.open = 0
        self.open_most = 0

    async def one(self, kind, bulk, start, drip, source):
        """Connect, send what it starts with, then drip until the server has enough of it."""
        loop = asyncio.get_running_loop()
        s = socket.socket()
        s.setblocking(False)
        s.bind((source, 0))
        if kind == "reader":
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        began = time.monotonic()
        try:
            await loop.sock_connect(s, ("127.0.0.1", self.ports[1 if bulk else 0]))
            self.open += 1
            self.open_most = max(self.open_most, self.open)
            await loop.sock_sendall(s, start)
            while True:
                if drip:
                    await loop.sock_sendall(s, drip)
                    try:
                        got = await asyncio.wait_for(loop.sock_recv(s, 4096), 1.0)
                        if not got or b" 401 " in got or b" 400 " in got or b" 429 " in got:
                            break
                    except asyncio.TimeoutError:
                        pass
                else:
                    await self.dawdle(loop, s)
                    break
        except OSError:
            pass
        finally:
            self.open -= 1
            s.close()
        self.lasted[kind].append(time.monotonic() - began)

    async def dawdle(self, loop, s):
        """Read 64 bytes a second until the connection has ended. The connection itself is asked: what the kernel on this
        side had taken before can be read on for seconds, and is no longer the server's."""
        gone = select.poll()
        gone.register(s, select.POLLRDHUP)
        while not gone.poll(0):
            await asyncio.sleep(0.25)
            await loop.sock_recv(s, 16)

    def wave(self):
        """Half on each listener, from four addresses that are not the healthy client's."""
        plan = []
        for i in range(self.size["heads"]):
            plan.append(("head", i % 2 == 1, b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ", b"a"))
        for i in range(self.size["bodies"]):
            name, secret = self.secrets[i % len(self.secrets)]
            if i % 2:
                start = ("POST /silo/v1/uploads/u_00000000000000000000000000 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n"
                         "Photon-Protocol: 1\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000000\r\n\r\n")
            else:
                start = ("POST /silo/v1/tasks/claim HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nPhoton-Protocol: 1\r\n"
                         "Content-Type: application/json\r\nContent-Length: 60000\r\n\r\n{")
            plan.append(("bulk body" if i % 2 else "control body", i % 2 == 1, (start % secret).encode(), b" "))
        for i in range(self.size["readers"]):
            path, tokens = self.weights
            plan.append(("reader", i % 2 == 1, ("GET %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n"
                                               % (path, tokens[i // 2 % len(tokens)])).encode(), b""))
        random.shuffle(plan)
        return [self.one(kind, bulk, start, drip, "127.0.0.%d" % (2 + n % 4)) for n, (kind, bulk, start, drip) in enumerate(plan)]

    async def run(self, seconds):
        tasks = []
        for one in self.wave():  # about a thousand new connections a second, as a flood is
            tasks.append(asyncio.ensure_future(one))
            await asyncio.sleep(0.001)
        await asyncio.wait(tasks, timeout=seconds)
        left = sum(not t.done() for t in tasks)
        for t in tasks:
            t.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return left


def hostile(size, ports, secrets, weights, pipe):
    raise_file_limit()
    h = Hostile(size, ports, secrets, weights)
    left = asyncio.run(h.run(size["hostile_s"]))
    pipe.send((h.lasted, left, h.open_most))


def raise_file_limit():
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


# ---- one sitting ----

def memory_mb(pid, what):
    with open("/proc/%d/status" % pid) as f:
        return [int(line.split()[1]) / 1024 for line in f if line.startswith(what)][0]


def spec(name, size):
    return {"name": name, "model": {"d_model": size["d_model"], "n_heads": 2, "n_layers": 2, "vocab_size": 320, "seq_len": 8},
            "federation": {"rounds": size["rounds"], "silos_per_round": size["seats"], "min_silos": size["seats"],
                           "local_steps": 2}, "inner": {"batch": 2}, "eval": {"every": 1000, "windows": 1}}


async def wait_for(what, condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited %.0f s in vain for: %s" % (seconds, what)
        await asyncio.sleep(0.1)


def figures(world, load, runs):
    """From the commit of a task of these runs to its arrival: one clock, since all is one machine. A silo that was at work
    for another run when its seat was made is no sleeper: its wait is its own, and it is only counted."""
    rows = psql(world, "SELECT t.id, extract(epoch FROM t.created_at), l.epoch, t.kind FROM task t"
                       " JOIN lease l ON l.task_id = t.id WHERE l.epoch = 1 AND t.run_id IN ('%s');" % "', '".join(runs))
    wakes, busy = {"train": [], "evaluate": []}, 0
    for task, made, epoch, kind in rows:
        asked, arrived = load.arrived.get((task, int(epoch)), (None, None))
        if asked is None:
            continue
        if asked < float(made):
            wakes[kind].append((arrived - float(made)) * 1e3)
        else:
            busy += kind == "train"
    return wakes["train"], wakes["evaluate"], busy


async def sitting(world, size):
    load = Load(world)
    asyncio.get_running_loop().add_reader(load.pipe.fileno(), load.uploaded)
    honest = Silos(world, size["silos"], "silo").silos
    watchers = Silos(world, 5, "healthy", "paused").silos
    ill = Silos(world, 20, "ill", "paused").silos
    here, there = multiprocessing.Pipe()
    probe = multiprocessing.Process(target=healthy, args=(world.port, watchers, there), daemon=True)
    probe.start()

    def measured():
        here.send("more")
        return here.recv()

    print("memory at the start: %.0f MB" % memory_mb(world.server.pid, "VmRSS"))
    tasks = []
    for name, secret in honest:
        tasks.append(asyncio.ensure_future(load.silo(name, secret)))
        await asyncio.sleep(0.001)
    await wait_for("every poll to be parked", lambda: load.parked == size["silos"], 60)
    measured()
    print("memory with every poll parked: %.0f MB" % memory_mb(world.server.pid, "VmRSS"))

    # 1: all parked, some of them woken and uploading, again and again.
    uploads, arrived = size["runs"] * size["rounds"] * size["seats"], []
    for turn in range(size["tries"]):
        runs = [(await asyncio.to_thread(world.post, "/api/v1/runs", spec("load-%d-%d" % (turn, n), size)))["id"]
                for n in range(size["runs"])]
        started = time.monotonic()
        await wait_for("%d uploads" % uploads, lambda: load.uploads >= (turn + 1) * uploads or len(load.errors) > 20, 600)
        took = time.monotonic() - started
        wakes, herd, occupied = await asyncio.to_thread(figures, world, load, runs)
        arrived.append(len(wakes) + occupied)
        if percentile(wakes, 0.99) <= size["wake_ms"]:
            break
    busy, bad = measured()
    rss, peak = memory_mb(world.server.pid, "VmRSS"), memory_mb(world.server.pid, "VmHWM")
    print("polls: %d parked, %d uploads in %.1f s, at most %d at once, %d errors" % (
        size["silos"], load.uploads, took, load.uploading_most, len(load.errors)))
    print("wake-up of %d tasks: median %.0f ms, p99 %.0f ms, longest %.0f ms; %d seats of silos at work elsewhere" % (
        len(wakes), percentile(wakes, 0.5), percentile(wakes, 0.99), max(wakes), occupied))
    print("server's memory %.0f MB, at most %.0f MB" % (rss, peak))
    if herd:
        print("every silo evaluates the last checkpoint, %d at once: median %.0f ms, p99 %.0f ms" % (
            size["silos"], percentile(herd, 0.5), percentile(herd, 0.99)))
    print("healthy client beside them: readyz p99 %.1f ms, claim p99 %.1f ms" % (
        percentile(busy["readyz"], 0.99), percentile(busy["claim"], 0.99)))

    # 2: the healthy client without and with hostile company; the polls stay parked all the while.
    await asyncio.sleep(1.0)
    measured()
    await asyncio.sleep(size["base_s"])
    before, more = measured()
    bad += more
    head = await asyncio.to_thread(world.get, "/api/v1/runs/%s" % runs[0])
    tokens = [(await asyncio.to_thread(world.post, "/api/v1/tokens", {"role": "viewer", "name": "reader-%d" % n}))["secret"]
              for n in range(size["readers"] // READERS_OF_TOKEN + 1)]
    weights = head["head_checkpoint"]["url"], tokens
    for _ in range(size["tries"]):
        mine, theirs = multiprocessing.Pipe()
        enemy = multiprocessing.Process(target=hostile, args=(size, (world.port, world.bulk_port), ill, weights, theirs), daemon=True)
        enemy.start()
        beside = {"readyz": [], "claim": []}
        while not mine.poll():
            await asyncio.sleep(1.0)
            got, more = measured()
            bad += more
            for kind in beside:
                beside[kind] += got[kind]
        lasted, left, most = mine.recv()
        if not slowed(before, beside, size):
            break
    peak = memory_mb(world.server.pid, "VmHWM")
    for kind in beside:
        print("healthy client, %s: p99 %.1f ms alone (%d), %.1f ms beside %d hostile connections (%d)" % (
            kind, percentile(before[kind], 0.99), len(before[kind]), percentile(beside[kind], 0.99), most, len(beside[kind])))
    print("hostile connections: " + ", ".join("%s %d ended within %.1f s" % (k, len(v), max(v or [0.0])) for k, v in
                                              lasted.items()) + "; %d not ended" % left)
    print("errors of the healthy client: %d; server's memory at most %.0f MB" % (len(bad), peak))
    load.stop = True
    for t in tasks:
        t.cancel()
    here.send("end")
    await asyncio.gather(*tasks, return_exceptions=True)
    return {"load": load, "wakes": wakes, "arrived": min(arrived), "peak": peak, "before": before, "beside": beside, "bad": bad, "lasted": lasted,
            "left": left}


def slowed(before, beside, size):
    """Of the healthy client: what takes too long beside hostile connections, in sentences."""
    wrong = []
    for kind in beside:
        alone, among = percentile(before[kind], 0.99), percentile(beside[kind], 0.99)
        if among > max(size["slower"] * alone, size["slow_ms"]):
            wrong.append("%s p99 went from %.1f to %.1f ms" % (kind, alone, among))
    return wrong


def judge(r, size, quick):
    """Sentences that do not hold. The quick form asks of a busy machine nothing that depends on its speed."""
    wrong = []
    if r["load"].errors:
        wrong.append("errors of silos: %s" % r["load"].errors[:3])
    if r["bad"]:
        wrong.append("errors of the healthy client: %s" % r["bad"][:3])
    if r["arrived"] < size["runs"] * size["rounds"] * size["seats"]:
        wrong.append("only %d tasks arrived" % r["arrived"])
    if len(r["wakes"]) < (3 if quick else 200):
        wrong.append("only %d silos slept when their seat was made" % len(r["wakes"]))
    wake = percentile(r["wakes"], 0.99)
    if wake > size["wake_ms"]:
        wrong.append("wake-up p99 is %.0f ms" % wake)
    if r["peak"] > MEMORY_MB:
        wrong.append("memory is %.0f MB" % r["peak"])
    wrong += slowed(r["before"], r["beside"], size)
    if quick:
        return wrong
    if r["left"]:
        wrong.append("%d hostile connections were not ended" % r["left"])
    for kind, limit in LIMITS_S.items():
        if r["lasted"][kind] and max(r["lasted"][kind]) > limit + SLACK_S:
            wrong.append("a hostile %s lasted %.1f s" % (kind, max(r["lasted"][kind])))
    return wrong


def main(build, quick):
    raise_file_limit()
    size = QUICK if quick else LONG
    with World(build) as world:
        world.start_server()
        r = asyncio.run(sitting(world, size))
        assert world.server.poll() is None, "the server died"
    wrong = judge(r, size, quick)
    for sentence in wrong:
        print("  FAIL " + sentence)
    print("%d passed, %d failed" % (0 if wrong else 1, len(wrong)))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], "quick" in sys.argv[2:]))
