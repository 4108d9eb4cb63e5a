"""Bits flipped on the wire and updates meant to do harm: none of it may come near a checkpoint.

    tests/support/pg_temp.sh python3 -B tests/fault/hostile.py BUILD [--flips N] [--updates N] [--seed S]

Flips: a chunk's body (framing, meta part, weights) arrives with one bit changed. Either it is refused and the durable
offset stands where it stood, or the bit was in words nobody heeds and the bytes stored are right: the upload is finished
afterwards and must be accepted under the digest it had before.

Updates: each is sent whole with honest digests, and is not what was asked for: its values, header, metadata, size, lease
or declared digest; below f32 (tests/fault/coded.py) its scales, levels, codes, places, padding or rung as well. Each must
be refused before it counts; the head of its run must stay the checkpoint it was. The server is the real one, over HTTP;
the counts are printed, by rung and with the layer that refused. A sound one on each rung is welcome all the same.
"""

import argparse
import collections
import hashlib
import json
import os
import random
import struct
import subprocess
import sys
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "api"))
import coded  # noqa: E402
import kit  # noqa: E402
import silos  # noqa: E402
from kit import psql, until  # noqa: E402
from silo_client import code, read_safetensors  # noqa: E402

# Odd sizes, so that codes leave bits over; more than one tile.
MODEL = {"d_model": 18, "n_heads": 1, "n_layers": 1, "vocab_size": 321, "seq_len": 9, "bias": True}
PIECE = 1500  # bytes of weights in a chunk that is harmed: about as many as there are of words around them

# ---- bits ----


def flips(server, count, draw):
    seen = collections.Counter()
    while sum(seen.values()) < count:
        run, (silo,) = silos.begin(server)
        task = silo.task()
        data, tokens = silo.update(task, seed=draw.randrange(1 << 30))
        upload, offset = silo.create(task, data, tokens).json()["upload"], 0
        each = -(-count // 8)
        for i in range(min(each, count - sum(seen.values()))):
            piece = data[offset:offset + PIECE]
            body = bytearray(silo.chunk_body(piece, offset))
            at = draw.randrange(len(body))
            body[at] ^= 1 << draw.randrange(8)
            answer = silo.chunk(task, upload, None, 0, body=bytes(body))
            if answer.status == 200:
                seen["harmless"] += 1
                offset = answer.json()["offset"]
                if offset == len(data):
                    break
            else:
                seen[code(answer)] += 1
                assert answer.status in (409, 415, 422), (answer.status, answer.body, at, bytes(body[max(0, at - 40):at + 40]))
            if i % 50 == 0:
                assert silo.get("/uploads/" + upload).json()["offset"] == offset
        if offset < len(data):
            assert silo.chunk(task, upload, data[offset:], offset).json()["offset"] == len(data)
        answer = silo.finish(task, upload)
        assert answer.status == 200, "what was stored is not what was sent: %s" % answer.body
        want = hashlib.sha256(data).hexdigest()
        assert psql("SELECT encode(digest, 'hex') FROM update WHERE upload_id = '%s'" % upload) == [[want]]
    return seen


# ---- updates ----


def pack(text, body, size, length=None):
    """A file of that size: the header's text is padded, and what is too long is cut from the end."""
    text += b" " * max(0, size - 8 - len(text) - len(body))
    return (struct.pack("<Q", len(text) if length is None else length) + text + body)[:size].ljust(size, b"\0")


class Hostile:
    """Makes one f32 update after the other out of a good one; each maker returns (name, file)."""

    def __init__(self, draw):
        self.draw = draw
        self.makers = [self.value, self.scale, self.meta, self.length, self.text, self.offsets, self.shape, self.names, self.size]

    def make(self, good):
        self.good = good
        self.header, self.body = read_safetensors(good)
        return self.draw.choice(self.makers)()

    def dump(self, header, body=None):
        return pack(json.dumps(header, separators=(",", ":")).encode(), self.body if body is None else body, len(self.good))

    def value(self):
        """One value or many that no training gives."""
        bits = self.draw.choice((0x7FC00000, 0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF, 0x7F900000))
        n = len(self.body) // 4
        places = self.draw.choice(([0], [n - 1], [self.draw.randrange(n)], range(n), self.draw.sample(range(n), 5)))
        body = bytearray(self.body)
        for i in places:
            body[4 * i:4 * i + 4] = struct.pack("<I", bits)
        return "value not finite", self.dump(self.header, bytes(body))

    def scale(self):
        by = 10.0 ** self.draw.uniform(5.5, 37.0)
        values = [max(-3.0e38, min(3.0e38, v * by)) for (v,) in struct.iter_unpack("<f", self.body)]
        return "absurd scale", self.dump(self.header, struct.pack("<%df" % len(values), *values))

    def meta(self):
        said = dict(self.header["__metadata__"])
        key = self.draw.choice(sorted(said))
        how = self.draw.randrange(4)
        if how == 0:
            said[key] = said[key][::-1] if said[key] != said[key][::-1] else said[key] + "x"
        elif how == 1:
            del said[key]
        elif how == 2:
            said[key] = {"base": "0" * 64, "round": "%08d" % self.draw.randrange(2, 1000), "run": "another", "silo": "another",
                         "tokens": "%016d" % (1 << 40), "steps": "9" * 16, "kind": "checkpoint", "format": "np",
                         "codec": self.draw.choice(("", "F32", "f64", "int8", "topk", "zip", "f32 ", "../f32", "q4" * 30))}[key]
        else:
            said[key] = "\u0000" + said[key]
        return "wrong " + key, self.dump(dict(self.header, __metadata__=said))

    def length(self):
        size = struct.unpack("<Q", self.good[:8])[0]
        bad = self.draw.choice((0, 1, size - 1, size + 1, size + 8, len(self.good), 1 << 20, (1 << 20) + 1, 1 << 31, 1 << 32,
                                (1 << 63) - 1, 1 << 63, (1 << 64) - 1, self.draw.randrange(1 << 64)))
        return "header length", struct.pack("<Q", bad) + self.good[8:]

    def text(self):
        size = struct.unpack("<Q", self.good[:8])[0]
        deep = b"[" * (size // 2) + b"]" * (size // 2)
        names = b"{" + b",".join(b'"a":{}' for _ in range(size // 8)) + b"}"
        text = self.draw.choice((deep, names, b"\xff" * size, b"{" * size, b'"' + b"a" * (size - 2) + b'"', b"1" * size,
                                 self.draw.randbytes(size), self.good[8:8 + size][::-1]))
        return "header text", struct.pack("<Q", size) + text[:size].ljust(size, b" ") + self.body

    def tensors(self):
        return sorted(k for k in self.header if k != "__metadata__")

    def offsets(self):
        name = self.draw.choice(self.tensors())
        other = self.draw.choice([k for k in self.tensors() if k != name])
        begin, end = self.header[name]["data_offsets"]
        bad = self.draw.choice((self.header[other]["data_offsets"], [begin + 4, end + 4], [begin, end - 4], [begin, end + 4],
                                [-4, end - begin - 4], [end, begin], [begin, 1 << 62], [1 << 62, (1 << 62) + end - begin],
                                [begin + (1 << 32), end + (1 << 32)], [begin], [], None, [str(begin), end], [begin + 0.5, end]))
        return "offsets", self.dump(dict(self.header, **{name: dict(self.header[name], data_offsets=bad)}))

    def shape(self):
        name = self.draw.choice(self.tensors())
        shape = self.header[name]["shape"]
        one = self.draw.choice((dict(shape=shape + [1]), dict(shape=[1] + shape), dict(shape=[]), dict(shape=[-d for d in shape]),
                                dict(shape=[1 << 62] * 4), dict(shape=[0] + shape), dict(dtype="F64"), dict(dtype="BF16"),
                                dict(dtype="I32"), dict(dtype="U8"), dict(dtype=""), dict(dtype=None), dict(shape=None)))
        return "shape or type", self.dump(dict(self.header, **{name: dict(self.header[name], **one)}))

    def names(self):
        name = self.draw.choice(self.tensors())
        header = dict(self.header)
        entry = header.pop(name)
        how = self.draw.randrange(3)
        if how == 0:
            header[name[::-1]] = entry
        elif how == 1:
            header[name] = entry
            header["extra"] = dict(entry)
        return "names", self.dump(header)

    def size(self):
        by = self.draw.choice((-4, 4, -len(self.body), len(self.body), 1, -1, 1 << 20))
        return "size", self.good[:by] if by < 0 else self.good + b"\0" * by


def refusal(silo, task, data, tokens, says, draw):
    """Sends it by the rules; the answer that refused it."""
    lie = draw.randrange(12)  # most are honest about all but what they are
    more = dict(says)
    if lie == 0:
        more["sha256"] = hashlib.sha256(data + b"x").hexdigest()
    elif lie == 1:
        more["epoch"] = task["lease"]["epoch"] + draw.choice((-1, 1, 1000))
    elif lie == 2:
        more["tokens"] = tokens + draw.choice((1, 1 << 40))
    elif lie == 3:
        more["codec"] = draw.choice(("F32", "", "zip", "f32\0", "topk" * 10))
    answer = silo.create(task, data, tokens, **more)
    if answer.status not in (200, 201):
        return "create", answer
    upload = answer.json()["upload"]
    answer = silo.chunk(task, upload, data, 0)
    if answer.status != 200:
        return "chunk", answer
    return "finish", silo.finish(task, upload)


def free_seat(task):
    """The seat again at once; whether it is still there: each refusal is a failed attempt, the third fails it."""
    return psql("UPDATE task SET free_at = clock_timestamp() WHERE id = '%s' RETURNING state" % task["task"])[0][0] != "failed"


def head(server, run):
    newest = server.get("/api/v1/runs/" + run).json()["head_checkpoint"]
    return newest["number"], newest["sha256"]


def sound(silo, task, codec, draw):
    """(file, tokens); below f32 the file as coded.File, to be spoiled part by part."""
    good, tokens = silo.update(task, seed=draw.randrange(1 << 30))
    if codec == "f32":
        return good, tokens
    header = read_safetensors(good)[0]
    meta = header.pop("__metadata__")
    tensors = sorted(header.items(), key=lambda t: t[1]["data_offsets"])
    return coded.File([(name, t["shape"]) for name, t in tensors], meta, codec, 64, draw), tokens


def welcome(server, run, silo, task, codec, draw):
    """A good one still counts."""
    good, tokens = sound(silo, task, codec, draw)
    data = good if codec == "f32" else good.bytes()
    created = silo.create(task, data, tokens, codec=codec)
    assert created.status == 201, created.body
    assert silo.chunk(task, created.json()["upload"], data, 0).status == 200
    answer = silo.finish(task, created.json()["upload"])
    assert answer.status == 200, (codec, answer.body)
    until("the good one to be folded", lambda: head(server, run)[0] == 1)


def updates(server, count, draw):
    seen, rungs, layers = collections.Counter(), collections.Counter(), collections.Counter()
    makers = {c: coded.Hostile(draw) for c in coded.RUNGS[1:]}
    plain = Hostile(draw)
    good_sent = collections.Counter()
    while sum(seen.values()) < count:
        codec = coded.RUNGS[sum(rungs.values()) // 2 % len(coded.RUNGS)]
        run, (silo,) = silos.begin(server, rounds=1, model=MODEL)
        task = silo.task()
        before = head(server, run)
        good, tokens = sound(silo, task, codec, draw)
        for _ in range(2):  # a third failure in a row would set the silo aside
            name, data, says = (*plain.make(good), {}) if codec == "f32" else makers[codec].make(good)
            where, answer = refusal(silo, task, data, tokens, says, draw)
            assert answer.status in (400, 404, 409, 410, 413, 422), (codec, name, says, where, answer.status, answer.body)
            seen[name] += 1
            rungs[codec] += 1
            layers[where + " " + code(answer)] += 1
            assert head(server, run) == before, (codec, name)
            if where == "finish":
                assert free_seat(task)
                task = silo.task()
        assert psql("SELECT count(*) FROM update u JOIN task t ON t.id = u.task_id WHERE t.run_id = '%s'" % run) == [["0"]]
        if good_sent[codec] * 50 <= rungs[codec]:
            good_sent[codec] += 1
            welcome(server, run, silo, task, codec, draw)
    return seen, rungs, layers, sum(good_sent.values())


def check(server):
    database = "host=%s user=%s dbname=%s" % (os.environ["PGHOST"], os.environ["PGUSER"], os.environ["PGDATABASE"])
    done = subprocess.run([server.program, "check", "--data", os.path.join(server.dir, "data"), "--database", database,
                           "--unsafe-database"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, "check: status %d\n%s%s" % (done.returncode, done.stdout, done.stderr)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("build")
    p.add_argument("--flips", type=int, default=300)
    p.add_argument("--updates", type=int, default=60)
    p.add_argument("--seed", type=int, default=1)
    o = p.parse_args()
    server = kit.Server(o.build)
    begin = time.monotonic()
    try:
        server.start()
        bits = flips(server, o.flips, random.Random(o.seed))
        print(json.dumps({"flips": sum(bits.values()), "wrong_bytes_stored": 0, "seed": o.seed, "by": dict(bits)}))
        kinds, rungs, layers, good = updates(server, o.updates, random.Random(o.seed + 1))
        print(json.dumps({"hostile_updates": sum(kinds.values()), "accepted": 0, "heads_changed": 0, "good_between": good,
                          "seed": o.seed, "rungs": dict(rungs), "kinds": dict(kinds), "refused_by": dict(layers)}))
        silos.no_violations()
        check(server)
        server.stop()
        print(json.dumps({"seconds": round(time.monotonic() - begin)}))
        print("%d passed, 0 failed" % (sum(bits.values()) + sum(kinds.values())))
    except Exception:
        traceback.print_exc(limit=6)
        print(server.log_tail())
        print("0 passed, 1 failed")
        sys.exit(1)
    finally:
        if server.process and server.process.poll() is None:
            server.process.kill()
            server.process.wait()
        server.remove()


if __name__ == "__main__":
    main()
