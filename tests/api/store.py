"""The store beside a live server: the check and each violation it must see, lost files, what is reaped, what is kept."""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.request

import kit
from kit import in_time, psql, sha256, thrice, until
from rounds import blob_path, kinds, one, wait_round
from silo_client import MODEL, code
from silos import begin, no_violations

EMPTY = hashlib.sha256(b"").hexdigest()


def store(server, *parts):
    return os.path.join(server.dir, "data", "store", *parts)


def check(server, *options):
    """(exit code, rules that are broken, everything said) of a check beside the running server."""
    database = "host=%s user=%s dbname=%s" % (os.environ["PGHOST"], os.environ["PGUSER"], os.environ["PGDATABASE"])
    done = subprocess.run([server.program, "check", "--data", os.path.join(server.dir, "data"), "--database", database,
                           "--unsafe-database", "--log-level", "error", *options],
                          capture_output=True, text=True, timeout=120)
    return done.returncode, {l.split()[0] for l in done.stdout.splitlines() if l.split()[1:2] == ["broken"]}, done.stdout + done.stderr


def new_violations(server, before, *options):
    """Lines of a check that an earlier one did not have."""
    return [l for l in check(server, *options)[2].splitlines()
            if l not in before and l.split()[1:2] not in (["broken"], ["holds"], ["-"]) and "bytes read" not in l]


def trained(server, rounds=2, number=1):
    """A run with that many closed rounds; (run, silo, [uploads that were acknowledged])."""
    run, (ash,) = begin(server, 1, rounds=rounds)
    acks = []
    for n in range(1, number + 1):
        task = ash.task()
        assert task["round"] == n
        data, tokens = ash.update(task, seed=n)
        upload = ash.send(task, data, tokens)
        assert ash.finish(task, upload).status == 200
        acks.append((upload, task["task"], hashlib.sha256(data).hexdigest()))
        wait_round(run, n, "closed")
    return run, ash, acks


def digest_of(run, number, column="weights"):
    return one("SELECT encode(%s, 'hex') FROM checkpoint WHERE run_id = '%s' AND number = %d" % (column, run, number))


def damage(path):
    os.chmod(path, 0o600)
    with open(path, "r+b") as f:
        f.seek(-5, os.SEEK_END)
        byte = f.read(1)
        f.seek(-5, os.SEEK_END)
        f.write(bytes([byte[0] ^ 4]))


def put(path, content=b""):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(content)
    return path


# ---- the check ----

def test_a_check_beside_a_live_server_reads_everything_and_names_each_rule(server):
    run, ash, acks = trained(server)
    rc, broken, said = check(server)
    assert rc in (0, 1), said  # the fixture's rows were put in by hand
    for rule in ("I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I9", "I10", "I11", "I12", "chain"):
        assert any(l.startswith(rule + " ") for l in said.splitlines()), (rule, said)
    assert "not asked; give --acks FILE" in said
    assert "holds   one event for each accepted update" in said or "I11" in broken


def test_what_a_silo_was_told_and_is_not_there_is_found(server):
    run, ash, acks = trained(server)
    before = check(server)[2]
    path = put(os.path.join(server.dir, "acks"), "# acknowledgements\n\n".encode() + "".join(
        "%s %s %s 1\n%s %s\n" % (upload, digest, run, task, digest) for upload, task, digest in acks).encode())
    assert new_violations(server, before, "--acks", path) == ["2 acknowledgements asked about"]
    upload, task, digest = acks[0]
    for line in ("%s %s" % (upload, "0" * 64), "%s %s" % ("u_" + "0" * 26, digest), "%s %s" % ("t_" + "0" * 26, digest)):
        put(path, line.encode() + b"\n")
        (found, _) = new_violations(server, before, "--acks", path)
        assert found == "I1 %s: a silo was told that it counts, and there is no such update" % line, found
    put(path, b"u_1 nonsense\n")
    rc, _, said = check(server, "--acks", path)
    assert rc == 3 and "line 1 is no acknowledgement" in said, said
    assert check(server, "--acks", path + "-none")[0] == 3


def test_a_damaged_a_short_and_a_missing_file_are_found(server):
    run, ash, acks = trained(server)
    before = check(server)[2]
    digest = digest_of(run, 1)
    (path,) = blob_path(server, digest)
    with open(path, "rb") as f:
        sound = f.read()
    for how in ("bit", "short", "gone"):
        os.chmod(path, 0o600)
        if how == "gone":
            os.rename(path, path + ".away")
        else:
            put(path, sound[:-1] if how == "short" else bytes([sound[0] ^ 1]) + sound[1:])
        (found,) = [l for l in new_violations(server, before) if l.startswith("I8")]
        assert digest in found, found
        if how == "gone":
            os.rename(path + ".away", path)
    put(path, sound)
    assert new_violations(server, before) == []


def test_files_that_nobody_knows_are_found_when_they_are_old(server):
    run, ash, acks = trained(server)
    before = check(server, "--orphan-hours", "0")[2]
    task = ash.task()  # an upload under way is no orphan, however old
    data, tokens = ash.update(task, seed=7)
    created = ash.create(task, data, tokens).json()
    blob = put(store(server, "blobs", EMPTY[:2], EMPTY[2:4], EMPTY))
    tmp = put(store(server, "tmp", "file-c_" + "0" * 26), b"half")
    odd = put(store(server, "blobs", "notes.txt"), b"?")
    try:
        assert new_violations(server, before) == []  # a day is theirs
        found = "\n".join(new_violations(server, before, "--orphan-hours", "0"))
        assert "I9 blobs/%s/%s/%s: no row knows it" % (EMPTY[:2], EMPTY[2:4], EMPTY) in found, found
        assert "I9 tmp/file-c_" in found and "I9 blobs/notes.txt: is none of the store's files" in found, found
        assert created["upload"] not in found, found
    finally:
        for path in (blob, tmp, odd):
            if os.path.exists(path):
                os.remove(path)


def test_a_planted_row_makes_the_check_end_with_1(server):
    run, ash, acks = trained(server)
    before = check(server)[2]
    psql("BEGIN; SET LOCAL session_replication_role = replica; UPDATE run SET head = 0 WHERE id = '%s'; COMMIT" % run)
    try:
        rc, broken, said = check(server)
        assert rc == 1 and "I4" in broken, said
        assert [l.split()[0] for l in new_violations(server, before)][0] == "I4"
    finally:
        psql("BEGIN; SET LOCAL session_replication_role = replica; UPDATE run SET head = 1 WHERE id = '%s'; COMMIT" % run)


# ---- the start ----

def test_an_upload_whose_bytes_are_gone_expires_at_the_start_and_is_sent_again(server):
    run, silos = begin(server, 3, silos_per_round=3, min_silos=3, rounds=1)
    held = {s: s.task() for s in silos}
    sent = {}
    for s in silos:
        data, tokens = s.update(held[s], seed=3)
        upload = s.create(held[s], data, tokens).json()["upload"]
        assert s.chunk(held[s], upload, data[:5000], 0).status == 200
        sent[s] = (upload, data, tokens)
    short, gone, whole = silos
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    os.truncate(store(server, "tmp", sent[short][0]), 4999)
    os.remove(store(server, "tmp", sent[gone][0]))
    server.start()
    for s, state in ((short, "expired"), (gone, "expired"), (whole, "open")):
        got = s.get("/uploads/" + sent[s][0]).json()
        assert got["state"] == state, (s.name, got)
    assert not os.path.exists(store(server, "tmp", sent[short][0]))
    assert kinds(run).count("upload_lost") == 2
    for s in silos:
        upload, data, tokens = sent[s]
        assert s.finish(held[s], s.send(held[s], data, tokens)).status == 200
    wait_round(run, 1, "closed")
    no_violations()


def test_an_upload_that_had_its_name_before_the_crash_goes_on(server):
    run, (ash,) = begin(server, 1, rounds=1)
    task = ash.task()
    data, tokens = ash.update(task, seed=5)
    upload = ash.send(task, data, tokens)
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    digest = hashlib.sha256(data).hexdigest()
    os.makedirs(store(server, "blobs", digest[:2], digest[2:4]), exist_ok=True)
    os.rename(store(server, "tmp", upload), store(server, "blobs", digest[:2], digest[2:4], digest))
    server.start()
    assert ash.get("/uploads/" + upload).json()["state"] == "open"
    assert ash.finish(task, upload).status == 200
    wait_round(run, 1, "closed")
    no_violations()


def test_old_files_that_nobody_knows_are_reaped_and_nothing_else(server):
    run, (ash,) = begin(server, 1, rounds=1)
    task = ash.task()
    data, tokens = ash.update(task, seed=6)
    upload = ash.create(task, data, tokens).json()["upload"]
    assert ash.chunk(task, upload, data[:5000], 0).status == 200
    known = psql("SELECT encode(digest, 'hex') FROM blob WHERE state = 'live'")
    on_disk = {d for (d,) in known if blob_path(server, d)}
    server.stop()
    blob = put(store(server, "blobs", EMPTY[:2], EMPTY[2:4], EMPTY))
    tmp = put(store(server, "tmp", "u_" + "0" * 26), b"of an upload that no row knows")
    odd = put(store(server, "tmp", ".keep"))
    server.start()  # with a day's grace: nothing goes
    beat = time.monotonic() + 1.5
    until("a look at the files", lambda: time.monotonic() > beat)
    assert os.path.exists(blob) and os.path.exists(tmp)
    server.stop()
    server.start("--orphan-hours", "0")
    try:
        until("the blob to be reaped", lambda: not os.path.exists(blob))
        until("the temporary file to be reaped", lambda: not os.path.exists(tmp))
    finally:
        server.stop()
        server.start()
    os.remove(odd) if os.path.exists(odd) else None
    gone = {d for d in on_disk if not blob_path(server, d)}
    live = {d for (d,) in psql("SELECT encode(digest, 'hex') FROM blob WHERE state = 'live'")}
    assert not gone & live, "a file that a row needs was removed"
    assert os.path.exists(store(server, "tmp", upload)), "an upload under way was removed"
    assert ash.finish(task, ash.send(task, data, tokens)).status == 200
    wait_round(run, 1, "closed")
    no_violations()


def test_an_upload_that_would_go_below_the_floor_is_507_and_counts_later(server):
    run, (ash,) = begin(server, 1, rounds=1)
    task = ash.task()
    data, tokens = ash.update(task, seed=8)
    server.stop()
    try:
        server.start("--free-floor", "900T", ready=False)
        answer = server.get("/readyz", token=None, check=False)
        assert answer.status == 503 and b"disk" in answer.body, answer.body
        answer = ash.create(task, data, tokens)
        assert answer.status == 507 and code(answer) == "DISK_FULL", answer.body
        assert answer.header("Retry-After")
    finally:
        server.stop()
        server.start()
    assert ash.train(ash.task(), seed=8).status == 200
    wait_round(run, 1, "closed")
    no_violations()


@thrice
def test_weights_go_no_faster_than_the_rate_whatever_the_listener_and_control_goes_on(server):
    model = dict(MODEL, d_model=256, n_heads=4, n_layers=2, vocab_size=4096)
    run, (ash,) = begin(server, 1, model=model)
    digest = ash.task(timeout_s=60)["base"]["sha256"]
    path = "/api/v1/runs/%s/checkpoints/0/weights" % run
    whole = server.get(path).body
    rate = len(whole) * 8 // 2000000  # megabits a second: about two seconds for each
    server.stop()
    server.start("--bulk-rate", str(rate))
    try:
        for bulk in (False, True):
            began = time.monotonic()
            asked = together(2, lambda: server.get(path, bulk=bulk))
            assert all(a.result().body == whole for a in asked) and sha256(whole) == digest
            assert 3.2 < time.monotonic() - began
            in_time(began, 8)
        server.stop()
        server.start("--bulk-rate", "1")  # a quarter of a second for each piece of 32 KiB
        asked = together(8, lambda: server.get(path, check=False))
        began, waits = time.monotonic(), []
        while time.monotonic() - began < 3 or len(waits) < 20:
            before = time.monotonic()
            assert server.get("/healthz", token=None).status == 200
            in_time(before, 1)
            waits.append(time.monotonic() - before)
            until("a moment", lambda: time.monotonic() - before > 0.02)
        if statistics.median(waits) >= 0.25:
            raise kit.Late("others had to wait %.2f s" % statistics.median(waits))
        began = time.monotonic()
        server.stop()  # connections that wait for their turn do not keep it
        in_time(began, 10)
        assert all(a.exception() for a in asked)
    finally:  # also from the midst, where it serves a megabit a second
        if server.process.poll() is None:
            server.stop()
        server.start()
        server.post("/api/v1/runs/%s/actions" % run, {"action": "stop"})


# ---- what was lost is made again ----

def content(path):
    with open(path, "rb") as f:
        return f.read()


def rebuilt(run):
    return [int(r[0]) for r in psql("SELECT round FROM event WHERE run_id = '%s' AND kind = 'checkpoint_rebuilt' ORDER BY xid, id" % run)]


def wait_rebuilt(run, numbers):
    """Until those are told as made again, in that order; the event comes after the file."""
    until("checkpoints %s of %s to be told as made again" % (numbers, run), lambda: rebuilt(run) == numbers)


def test_a_damaged_base_is_made_again_and_the_round_goes_on(server):
    run, ash, _ = trained(server, rounds=4, number=2)
    task = ash.task()
    data, tokens = ash.update(task, seed=3)
    (path,) = blob_path(server, digest_of(run, 2))
    sound = content(path)
    damage(path)
    assert content(path) != sound
    assert ash.finish(task, ash.send(task, data, tokens)).status == 200
    wait_round(run, 3, "closed")
    assert content(path) == sound
    wait_rebuilt(run, [2])
    no_violations()


def test_damaged_parents_are_made_again_first(server):
    run, (ash,) = begin(server, 1, rounds=4, model=dict(MODEL, bias=True))
    for n in (1, 2):
        assert ash.train(ash.task(), seed=n).status == 200
        wait_round(run, n, "closed")
    paths = [blob_path(server, digest_of(run, n))[0] for n in (0, 1, 2)]
    sound = [content(p) for p in paths]
    task = ash.task()
    data, tokens = ash.update(task, seed=3)
    damage(paths[0])
    os.remove(paths[1])
    os.chmod(paths[2], 0o600)
    os.truncate(paths[2], 100)
    upload = ash.send(task, data, tokens)  # its norm is compared with the base's, so that must be there again
    until("the update to count", lambda: ash.finish(task, upload).status == 200)
    wait_round(run, 3, "closed")
    assert [content(p) for p in paths] == sound
    wait_rebuilt(run, [0, 1, 2])
    no_violations()


def test_a_silo_that_asks_for_a_lost_file_gets_it_made_again(server):
    run, ash, _ = trained(server, rounds=3, number=1)
    digest = digest_of(run, 1)
    (path,) = blob_path(server, digest)
    sound = content(path)
    os.remove(path)
    first = ash.get("/blobs/" + digest, bulk=True)
    assert first.status == 503 and first.header("Retry-After"), first.body
    until("the file to be there again", lambda: os.path.exists(path))
    assert ash.get("/blobs/" + digest, bulk=True).body == sound
    wait_rebuilt(run, [1])  # before it is lost again: one repair would tell of both
    os.remove(path)
    assert server.get("/api/v1/runs/%s/checkpoints/1/weights" % run).status in (200, 503)
    until("the file to be there again", lambda: os.path.exists(path))
    assert server.get("/api/v1/runs/%s/checkpoints/1/weights" % run).body == sound
    wait_rebuilt(run, [1, 1])
    no_violations()


def test_a_file_that_a_silo_takes_twice_is_looked_at(server):
    run, ash, _ = trained(server, rounds=3, number=1)
    digest = digest_of(run, 1)
    (path,) = blob_path(server, digest)
    sound = content(path)
    damage(path)

    def whole():
        return ash.get("/blobs/" + digest, bulk=True).body == sound
    until("the file to be whole again", whole)
    wait_rebuilt(run, [1])
    no_violations()


def test_a_checkpoint_that_cannot_be_made_again_pauses_the_run_and_says_what_to_do(server):
    run, ash, acks = trained(server, rounds=4, number=2)
    task = ash.task()
    data, tokens = ash.update(task, seed=3)
    (base,) = blob_path(server, digest_of(run, 2))
    (update,) = blob_path(server, acks[1][2])
    sound = content(base)
    damage(base)
    os.rename(update, update + ".away")
    assert ash.finish(task, ash.send(task, data, tokens)).status == 200
    until("the run to pause", lambda: server.get("/api/v1/runs/" + run).json()["state"] == "paused")
    reason = server.get("/api/v1/runs/" + run).json()["reason"]
    for words in ("checkpoint 2", ash.name, "for round 2", "then resume"):
        assert words in reason, reason
    epoch = one("SELECT max(agg_epoch) FROM round WHERE run_id = '%s'" % run)
    beat = one("SELECT max(seen_at) + interval '2 s' FROM server_process")
    until("two ticks", lambda: one("SELECT max(seen_at) > '%s' FROM server_process" % beat) == "t")
    assert one("SELECT max(agg_epoch) FROM round WHERE run_id = '%s'" % run) == epoch, "it is tried over and over"
    os.rename(update + ".away", update)
    assert server.post("/api/v1/runs/%s/actions" % run, {"action": "resume"}).status == 200
    wait_round(run, 3, "closed")
    wait_rebuilt(run, [2])
    assert content(base) == sound
    no_violations()


def test_a_repair_by_hand_makes_checkpoints_again_and_says_what_it_cannot(server):
    run, ash, acks = trained(server, rounds=4, number=2)
    before = check(server)[2]
    digests = [digest_of(run, n) for n in (0, 1, 2)]
    paths = [blob_path(server, d)[0] for d in digests]
    sound = [content(p) for p in paths]
    (update,) = blob_path(server, acks[0][2])
    damage(paths[0])
    os.remove(paths[2])
    found = new_violations(server, before)
    assert len(found) == 2 and all(l.startswith("I8") for l in found), found
    said = new_violations(server, before, "--repair")
    assert sorted(l.split()[1].rstrip(":") for l in said if l.startswith("repaired ")) == sorted([digests[0], digests[2]]), said
    assert "2 files repaired" in said
    assert [content(p) for p in paths] == sound
    sound_update = content(update)
    damage(update)
    damage(paths[1])
    (first, second) = [l for l in new_violations(server, before, "--repair") if l.startswith("I8")]
    assert "it is no checkpoint's file" in first + second and "of %s for round 1" % ash.name in first + second, (first, second)
    put(update, sound_update)
    assert [l for l in new_violations(server, before, "--repair") if l.startswith("I8")] == []
    assert content(paths[1]) == sound[1]
    no_violations()


# ---- a bucket ----

class Bucket:
    """A server of its own, with a database of its own, over the object store that tests/support/s3_stub.py plays."""

    def __init__(self, server, faults):
        self.kept = dict(os.environ)
        psql("DROP DATABASE IF EXISTS bucket; CREATE DATABASE bucket")
        self.stub = subprocess.Popen([sys.executable, "-B", os.path.join(kit.ROOT, "tests", "support", "s3_stub.py"),
                                      "--faults", str(faults), "--page", "7"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.port = int(self.stub.stdout.readline())
        os.environ.update(PGDATABASE="bucket", AWS_ACCESS_KEY_ID="AKIATEST", AWS_SECRET_ACCESS_KEY="not/a+secret=",
                          AWS_SESSION_TOKEN="a-session-token", AWS_REGION="eu-north-1")
        self.options = ("--store", "s3://bucket-1/p", "--s3-endpoint", "http://127.0.0.1:%d" % self.port)
        self.server = kit.Server(os.path.dirname(os.path.dirname(server.program)))
        self.server.program = server.program

    def __enter__(self):
        self.server.start(*self.options)
        return self

    def __exit__(self, kind, value, trace):
        if kind:
            print(self.server.log_tail())
        if self.server.process.poll() is None:
            self.server.process.kill()
            self.server.process.wait()
        self.server.remove()
        self.stub.stdin.close()
        self.stub.wait(10)
        os.environ.clear()
        os.environ.update(self.kept)

    def ask(self, path="/_stub"):
        with urllib.request.urlopen("http://127.0.0.1:%d%s" % (self.port, path), timeout=10) as answer:
            return json.loads(answer.read())

    def objects(self):
        """Digest by name, after a look that each object is what its name says."""
        held = self.ask()["objects"]
        partial = [name for name, (_, digest) in held.items() if not name.endswith(digest)]
        assert partial == [], partial
        return {name.rsplit("/", 1)[1] for name in held}

    def gets(self, digest):
        return sum(n for name, n in self.ask()["gets"].items() if name.endswith(digest))

    def forget_cache(self):
        for name in os.listdir(store(self.server, "cache")):  # not the folder: a running server has it open
            shutil.rmtree(store(self.server, "cache", name))

    def again(self):
        self.server.process.send_signal(signal.SIGKILL)
        self.server.process.wait()
        self.forget_cache()
        self.server.start(*self.options)


def fetched(ask):
    """The answer to that once the file is here: one that takes long to come out of the bucket is to be asked for again."""
    def answer():
        got = ask()
        return None if got.status == 503 else got
    return until("the file to be fetched", answer, 120)


def test_a_bucket_holds_what_a_folder_would(server):
    with Bucket(server, 0.05) as b:
        run, (ash,) = begin(b.server, 1, rounds=6)
        for n in (1, 2):
            assert ash.train(ash.task(timeout_s=60), seed=n).status == 200
            wait_round(run, n, "closed")
        assert os.listdir(store(b.server, "blobs")) == [], "blobs beside the bucket"
        assert {digest_of(run, n) for n in (0, 1, 2)} <= b.objects()
        weights = b.server.get("/api/v1/runs/%s/checkpoints/2/weights" % run).body
        b.again()  # nothing of the cache is needed
        assert fetched(lambda: b.server.get("/api/v1/runs/%s/checkpoints/2/weights" % run)).body == weights
        part = b.server.get("/api/v1/runs/%s/checkpoints/2/weights" % run, headers={"Range": "bytes=100-199"})
        assert part.status == 206 and part.body == weights[100:200]
        b.again()
        task = ash.task(timeout_s=60)
        fetched(lambda: ash.get("/blobs/" + task["base"]["sha256"], bulk=True))
        data, tokens = ash.update(task, seed=3)
        damaged = digest_of(run, 2)
        b.forget_cache()
        b.ask("/_stub/damage/" + damaged)
        upload = ash.send(task, data, tokens)
        until("the update to count", lambda: ash.finish(task, upload).status == 200, 60)
        wait_round(run, 3, "closed")
        wait_rebuilt(run, [2])
        assert damaged in b.objects()
        for n in (4, 5):
            task = ash.task(timeout_s=60)
            assert ash.train(task, seed=n).status == 200
            wait_round(run, n, "closed")
        gone = [digest_of(run, n) for n in (0, 1, 2)]
        psql("UPDATE blob SET used_at = used_at - interval '2 min'")
        b.again()  # files are looked at first thing
        until("old checkpoints to leave the bucket", lambda: not b.objects() & set(gone), 60)
        assert {digest_of(run, n) for n in (3, 4, 5)} <= b.objects()
        b.ask("/_stub/faults/0")
        rc, broken, said = check(b.server, *b.options)
        assert rc == 0, said
        rc, broken, said = check(b.server, *b.options, "--orphan-hours", "0")
        assert broken <= {"I9"}, said
        state = b.ask()
        assert state["refused"] == 0, "a signature did not hold"
        no_violations()


def test_an_empty_database_does_not_empty_the_bucket_of_another(server):
    with Bucket(server, 0) as b:
        begin(b.server, 1, rounds=1)
        until("a checkpoint in the bucket", b.objects)
        b.server.stop()
        objects = b.objects()
        psql("DROP DATABASE IF EXISTS bucket_empty")
        psql("CREATE DATABASE bucket_empty")
        os.environ["PGDATABASE"] = "bucket_empty"
        empty = kit.Server(os.path.dirname(os.path.dirname(server.program)))
        empty.program = server.program
        try:
            empty.start(*b.options, "--orphan-hours", "0")
            until("the keeper to look", lambda: "older than the database" in empty.log_tail())
            assert b.objects() == objects
        finally:
            if empty.process and empty.process.poll() is None:
                empty.process.kill()
                empty.process.wait()
            empty.remove()


def test_a_large_object_is_served_in_little_memory(server):
    """Out of the bucket by way of the cache's disk, not of memory: what a download adds does not depend on its size."""
    model = dict(MODEL, d_model=256, n_heads=4, n_layers=8, vocab_size=16384)

    def peak_kb(b):
        with open("/proc/%d/status" % b.server.process.pid) as f:
            return next(int(line.split()[1]) for line in f if line.startswith("VmHWM"))

    with Bucket(server, 0) as b:
        run, (ash,) = begin(b.server, 1, model=model)
        task = ash.task(timeout_s=60)
        b.again()  # the process that made the checkpoint had it in parts in its memory
        before = peak_kb(b)
        answer = fetched(lambda: ash.get("/blobs/" + task["base"]["sha256"], bulk=True))
        assert answer.status == 200 and hashlib.sha256(answer.body).hexdigest() == task["base"]["sha256"]
        more = (peak_kb(b) - before) * 1024
        assert len(answer.body) > 32 << 20 and more < len(answer.body) // 4, (len(answer.body), more)
        b.server.post("/api/v1/runs/%s/actions" % run, {"action": "stop"})


def together(count, ask):
    """Futures of the answers to that many who ask at once."""
    pool = concurrent.futures.ThreadPoolExecutor(count)
    asked = [pool.submit(ask) for _ in range(count)]
    pool.shutdown(wait=False)
    return asked


def busy_connections(server):
    return sum(int(line.split()[1]) for line in server.get("/metrics").body.decode().splitlines()
               if line.startswith("photon_db_connections") and 'state="busy"' in line)


@thrice
def test_many_who_ask_for_a_cold_object_make_one_fetch_and_keep_nobody_waiting(server):
    with Bucket(server, 0) as b:
        run, (ash,) = begin(b.server, 1)
        digest = ash.task(timeout_s=60)["base"]["sha256"]
        weights = "/api/v1/runs/%s/checkpoints/0/weights" % run
        rest = {"Range": "bytes=1-"}  # a silo that takes a whole file twice makes the keeper read it
        whole = b.server.get(weights).body
        b.options += ("--workers", "1")
        b.again()
        for count, ask in ((16, lambda: ash.get("/blobs/" + digest, bulk=True, headers=rest)),
                           (8, lambda: b.server.get(weights, headers=rest)),
                           (8, lambda: b.server.get(weights, bulk=True, headers=rest))):
            b.forget_cache()
            b.ask("/_stub/hold")
            before = b.gets(digest)
            began = time.monotonic()
            asked = together(count, ask)
            until("the fetch to begin", lambda: b.gets(digest) > before)
            for _ in range(5):  # the worker and the database's connections are there for others
                assert ash.get("/runs/%s" % run).status in (200, 404)
                assert b.server.get("/api/v1/runs/" + run).status == 200
            # They may all look at one moment, and between two looks they hold none.
            until("the database's connections to be given back", lambda: 1 <= busy_connections(b.server) <= 3)
            done = any(a.done() for a in asked)
            in_time(began, 15)  # after twenty seconds they are told to ask again
            assert not done, "others had to wait"
            b.ask("/_stub/go")
            answers = [a.result() for a in asked]
            in_time(began, 20)
            for answer in answers:
                assert answer.status == 206 and answer.body == whole[1:]
            assert b.gets(digest) == before + 1, (count, b.gets(digest), before)
        b.server.post("/api/v1/runs/%s/actions" % run, {"action": "stop"})


@thrice
def test_a_finish_whose_base_is_in_the_bucket_alone_keeps_no_worker(server):
    with Bucket(server, 0) as b:
        run, (ash,) = begin(b.server, 1, rounds=1)
        task = ash.task(timeout_s=60)
        digest = task["base"]["sha256"]
        data, tokens = ash.update(task, seed=1)
        upload = ash.send(task, data, tokens)
        b.options += ("--workers", "1")
        b.again()  # the norm of the base is not known any more either
        b.ask("/_stub/hold")
        beat = {"epoch": task["lease"]["epoch"], "step": 1, "phase": "train", "tokens_per_s": 1.0}
        began = time.monotonic()
        (finish,) = together(1, lambda: ash.finish(task, upload))
        until("the fetch to begin", lambda: b.gets(digest) == 1)
        assert ash.post("/tasks/%s/heartbeat" % task["task"], beat).status == 200
        done = finish.done()
        in_time(began, 10)  # after fifteen seconds it is told to ask again
        assert not done, "a heartbeat had to wait"
        try:
            b.server.get("/api/v1/runs/%s/checkpoints/0/weights" % run, timeout=0.5)
            raise AssertionError("it was not asked to wait")
        except TimeoutError:
            pass
        b.ask("/_stub/go")
        answer = finish.result()
        in_time(began, 15)
        assert answer.status == 200
        assert ash.get("/blobs/" + digest, bulk=True).status == 200
        assert b.gets(digest) == 1
        wait_round(run, 1, "closed")


def cached(b, name, size, age_s=0):
    """A file in the cache under that digest; its blocks are taken and nothing is written."""
    path = put(store(b.server, "cache", name[:2], name[2:4], name))
    with open(path, "r+b") as f:
        os.posix_fallocate(f.fileno(), 0, size)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


@contextlib.contextmanager
def piece_of_disk(folder):
    """A size much larger than what others write to this disk meanwhile; if they did, what failed is Late."""
    def not_others():
        du = subprocess.run(["du", "-sB1", folder], capture_output=True, text=True)  # files may go meanwhile
        return shutil.disk_usage(folder).free + int(du.stdout.split()[0])
    before, piece = not_others(), shutil.disk_usage(folder).free // 16
    try:
        yield piece
    except AssertionError as failed:
        if abs(not_others() - before) > piece // 4:
            raise kit.Late("others have moved what is free on this disk") from failed
        raise


@thrice
def test_the_cache_gives_way_and_its_bytes_count_as_room(server):
    with Bucket(server, 0) as b, piece_of_disk(b.server.dir) as piece:
        b.server.stop()
        new = cached(b, "ab" * 32, piece)
        olds = [cached(b, "%02x" % i * 32, piece, age_s=1000 * i) for i in (1, 2, 3)]
        free = shutil.disk_usage(b.server.dir).free
        options, b.options = b.options, b.options + ("--free-floor", "%dM" % ((free + piece * 3 // 2) // 2 >> 20))
        b.server.start(*b.options)
        until("the oldest of the cache to go", lambda: not os.path.exists(olds[2]) and not os.path.exists(olds[1]))
        seen = one("SELECT max(seen_at) + interval '3 s' FROM server_process")
        until("the keeper to look again", lambda: one("SELECT max(seen_at) > '%s' FROM server_process" % seen) == "t")
        assert os.path.exists(olds[0]) and os.path.exists(new), "more than was needed went"
        b.server.stop()
        os.remove(olds[0])

        free = shutil.disk_usage(b.server.dir).free
        b.options = options + ("--free-floor", "%dM" % (free + piece * 3 // 2 >> 20))
        b.server.start(*b.options, ready=False)
        answer = b.server.get("/readyz", token=None, check=False)
        assert answer.status == 503 and b"disk" in answer.body and os.path.exists(new), answer.body
        b.server.stop()
        b.options = options + ("--free-floor", "%dM" % (free + piece // 2 >> 20))
        b.server.start(*b.options)  # ready: the cache's bytes count
        run, (ash,) = begin(b.server, 1, rounds=1)
        task = ash.task(timeout_s=60)
        assert not os.path.exists(new), "the checkpoint took what is to be kept free"
        assert ash.train(task, seed=1).status == 200
        wait_round(run, 1, "closed")


def test_a_bucket_that_cannot_be_is_said_at_the_start(server):
    with Bucket(server, 0) as b:
        b.server.stop()
        listen = ["--data", os.path.join(b.server.dir, "data"), "--listen", "127.0.0.1:0", "--unsafe-database", "--database",
                  "host=%s user=%s dbname=bucket" % (os.environ["PGHOST"], os.environ["PGUSER"])]
        for options, want, words in ((["--store", "s3://none-such", *b.options[2:]], 3, "NoSuchBucket"),
                                     (["--store", "bucket", *b.options[2:]], 3, "s3://bucket/prefix"),
                                     (["--store", "s3://bucket-1", "--s3-endpoint", "http://192.0.2.1"], 3, "in the clear")):
            done = subprocess.run([b.server.program, *options, *listen], capture_output=True, text=True, timeout=60)
            assert done.returncode == want and words in done.stderr, (options, done.returncode, done.stderr[-300:])
        put(store(b.server, "blobs", "aa", "bb", "x"))
        done = subprocess.run([b.server.program, *b.options, *listen], capture_output=True, text=True, timeout=60)
        assert done.returncode == 3 and "has blobs of its own" in done.stderr, done.stderr[-300:]
        os.remove(store(b.server, "blobs", "aa", "bb", "x"))
        os.environ["AWS_SECRET_ACCESS_KEY"] = "something-else"
        done = subprocess.run([b.server.program, *b.options, *listen], capture_output=True, text=True, timeout=60)
        assert done.returncode == 4 and "SignatureDoesNotMatch" in done.stderr, done.stderr[-300:]
        assert "something-else" not in done.stderr
        shutil.rmtree(store(b.server, "blobs"))
        b.server.process = None
        os.environ["AWS_SECRET_ACCESS_KEY"] = "not/a+secret="
        b.server.start(*b.options)
