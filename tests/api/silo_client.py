"""A silo that does what it is told, and one request at a time: for tests of /silo/v1."""

import hashlib
import http.client
import json
import random
import struct

from kit import until

PROTOCOL = {"Photon-Protocol": "1"}
BOUNDARY = "----photon-test"
MODEL = {"d_model": 16, "n_heads": 2, "n_layers": 1, "vocab_size": 320, "seq_len": 8}


def spec(name, model=MODEL, more=None, **federation):
    """A run of a few thousand parameters that one silo can keep going; more: other members of the spec."""
    rounds = dict({"rounds": 2, "silos_per_round": 1, "min_silos": 1, "local_steps": 2}, **federation)
    made = {"name": name, "model": model, "federation": rounds, "inner": {"batch": 2}, "eval": {"every": 1, "windows": 1}}
    return dict(made, **(more or {}))


def read_safetensors(data):
    """(header as parsed JSON, the data section)."""
    (n,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8:8 + n]), data[8 + n:]


def write_safetensors(header, body):
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def chosen(header, only):
    """The header of those tensors alone, and a body of that length."""
    new, at = {}, 0
    for name, t in header.items():
        if name != "__metadata__" and only(name):
            size = t["data_offsets"][1] - t["data_offsets"][0]
            new[name] = dict(t, data_offsets=[at, at + size])
            at += size
    return new, bytes(at)


CRC_TABLE = []
for crc in range(256):
    for _ in range(8):
        crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    CRC_TABLE.append(crc)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


class Silo:
    def __init__(self, server, name):
        self.server = server
        self.name = name
        self.agent = "agent-" + name
        self.check = True  # answers against docs/openapi.json
        join = server.post("/api/v1/tokens", {"role": "join", "name": name}).json()
        self.join_token = join["secret"]
        answer = self.join()
        assert answer.status == 201, answer.body
        self.id, self.token = answer.json()["silo"], answer.json()["token"]

    def join(self, name=None):
        return self.server.post("/silo/v1/join", {"name": name or self.name}, token=self.join_token, headers=PROTOCOL)

    def post(self, path, body, headers=None, token=None):
        return self.server.post("/silo/v1" + path, body, token=token or self.token, check=self.check,
                                headers=dict(PROTOCOL, **(headers or {})))

    def get(self, path, headers=None, bulk=False, method="GET", token=None):
        return self.server.call(method, "/silo/v1" + path, token=token or self.token, bulk=bulk, check=self.check,
                                headers=dict(PROTOCOL, **(headers or {})))

    def hello(self, **more):
        body = {"agent": self.agent, "version": "0.1.0", "device": "test", "tokens_per_s": None, "tokenizer_sha256": "",
                "train_tokens": 1000, "heldout_tokens": 100}
        return self.post("/hello", dict(body, **more))

    def claim(self, wait_s=0):
        return self.post("/tasks/claim", {"agent": self.agent, "wait_s": wait_s})

    def task(self, kind="train", timeout_s=20.0):
        """The next task of that kind; evaluations met on the way are answered."""
        def next_task():
            answer = self.claim(1)
            assert answer.status in (200, 204), answer.body
            if answer.status == 204:
                return None
            task = answer.json()
            if task["kind"] == kind:
                return task
            assert task["kind"] == "evaluate", task
            self.evaluate(task)
            return None
        return until("a task to %s" % kind, next_task, timeout_s)

    def evaluate(self, task, nll=40.0):
        body = {"epoch": task["lease"]["epoch"], "nll": nll, "tokens": 7, "bytes": 7, "seconds": 0.1, "download_s": 0.1}
        return self.post("/tasks/%s/result" % task["task"], body)

    def base(self, task):
        answer = self.get("/blobs/" + task["base"]["sha256"], bulk=True)
        assert answer.status == 200, answer.body
        assert hashlib.sha256(answer.body).hexdigest() == task["base"]["sha256"]
        assert len(answer.body) == task["base"]["bytes"]
        return answer.body

    def update(self, task, seed=1, scale=0.001, values=None, pattern=None, only=None, **meta):
        """An update file as docs/API.md, "Files", says, of all tensors or of those whose names `only` takes; meta
        overrides what its metadata say."""
        header, body = read_safetensors(self.base(task))
        if only:
            header, body = chosen(header, only)
        tokens = task["plan"]["local_steps"] * task["spec"]["inner"]["batch"] * task["spec"]["model"]["seq_len"]
        said = {"format": "pt", "kind": "update", "run": task["run_name"], "round": "%08d" % task["round"],
                "base": task["base"]["sha256"], "codec": "f32", "silo": self.name, "tokens": "%016d" % tokens,
                "steps": "%016d" % task["plan"]["local_steps"]}
        said.update(meta)
        new = {"__metadata__": said}
        new.update((k, v) for k, v in header.items() if k != "__metadata__")
        count = len(body) // 4
        if pattern is not None:
            return write_safetensors(new, struct.pack("<f", pattern) * count), tokens
        draw = random.Random(seed)
        floats = values if values is not None else [draw.gauss(0.0, scale) for _ in range(count)]
        return write_safetensors(new, struct.pack("<%df" % count, *floats)), tokens

    def create(self, given, data, count, **more):
        body = {"task": given["task"], "epoch": given["lease"]["epoch"], "sha256": hashlib.sha256(data).hexdigest(),
                "bytes": len(data), "codec": "f32", "tokens": count, "steps": given["plan"]["local_steps"],
                "train_loss": 5.5, "timings": {"download_s": 0.1, "train_s": 1.5, "encode_s": 0.1},
                "coding": {"error": 0.007, "residual_ratio": 0.008, "fallback_share": 0.25}}
        return self.post("/uploads", dict(body, **more))

    def chunk_body(self, piece, offset, digest=None, size=None):
        meta = json.dumps({"offset": offset, "bytes": len(piece) if size is None else size,
                           "sha256": digest or hashlib.sha256(piece).hexdigest()})
        head = ("--%s\r\nContent-Disposition: form-data; name=\"meta\"\r\nContent-Type: application/json\r\n\r\n%s\r\n"
                "--%s\r\nContent-Disposition: form-data; name=\"chunk\"; filename=\"../x\"\r\n"
                "Content-Type: application/octet-stream\r\n\r\n" % (BOUNDARY, meta, BOUNDARY)).encode()
        return head + piece + ("\r\n--%s--\r\n" % BOUNDARY).encode()

    def chunk_headers(self, task, **more):
        headers = {"Photon-Lease": "%s:%d" % (task["task"], task["lease"]["epoch"]),
                   "Content-Type": "multipart/form-data; boundary=" + BOUNDARY}
        return dict(PROTOCOL, **dict(headers, **more))

    def chunk(self, task, upload, piece, offset, digest=None, size=None, body=None, **headers):
        if body is None:
            body = self.chunk_body(piece, offset, digest, size)
        return self.server.call("POST", "/silo/v1/uploads/" + upload, raw=body, bulk=True, token=self.token, check=self.check,
                                headers=self.chunk_headers(task, **headers))

    def send(self, task, data, tokens, chunk_bytes=1 << 20):
        """Create and send everything; the upload's id."""
        created = self.create(task, data, tokens)
        assert created.status in (200, 201), created.body
        upload, offset = created.json()["upload"], created.json()["offset"]
        while offset < len(data):
            answer = self.chunk(task, upload, data[offset:offset + chunk_bytes], offset)
            assert answer.status == 200, answer.body
            offset = answer.json()["offset"]
        return upload

    def finish(self, task, upload, epoch=None):
        return self.post("/uploads/%s/finish" % upload, {"epoch": epoch or task["lease"]["epoch"], "upload_s": 0.5})

    def verdict(self, task, upload):
        """The answer to a finish that may take longer than the server lets one request wait."""
        def judged():
            answer = self.finish(task, upload)
            return None if answer.status == 202 else answer
        return until("the update to be judged", judged, 120)

    def train(self, task, **how):
        """A whole training as the server sees it."""
        data, tokens = self.update(task, **how)
        return self.verdict(task, self.send(task, data, tokens))

    def persist(self, stop, acked, share):
        """Go on until stop is set, whatever happens to the server; acked gets each upload it was told counts.

        What it sends is a function of the round and its share alone."""
        self.check = False
        while not stop.is_set():
            try:
                answer = self.claim(1)
                if answer.status == 429:
                    stop.wait(int(answer.header("Retry-After")))
                if answer.status != 200:
                    continue
                task = answer.json()
                if task["kind"] == "evaluate":
                    self.evaluate(task)
                    continue
                data, tokens = self.update(task, pattern=task["round"] * share)
                upload = self.send(task, data, tokens, chunk_bytes=len(data) // 3 + 1)
                if self.finish(task, upload).status == 200:
                    acked.append(upload)
            except (OSError, AssertionError, KeyError, ValueError, http.client.HTTPException):
                stop.wait(0.02)  # no answer is no refusal: ask again


def code(answer):
    return answer.json()["code"]
