"""The real server on ports of its own over a throwaway PostgreSQL, and answers checked against docs/openapi.json."""

import atexit
import functools
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import jsonschema

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests", "support"))
import ports  # noqa: E402

# What is promised within a second, on a machine that is busy with other tests.
SOON_S = 3.0
METHODS = ("get", "post", "put", "patch", "delete")


def until(what, condition, timeout_s=15.0):
    """Poll until condition() is true; its value. Fails by name, so that a hang says what it waited for."""
    end = time.monotonic() + timeout_s
    over = False
    while not over:
        over = time.monotonic() >= end  # before the look: the last one comes after the end
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError("waited %.0f s in vain for: %s" % (timeout_s, what))


class Late(AssertionError):
    """All went well, and took longer than was promised."""


def in_time(began, limit_s=SOON_S):
    took = time.monotonic() - began
    if took >= limit_s:
        raise Late("it took %.1f s, not less than %.1f" % (took, limit_s))


def soon(what, condition):
    began = time.monotonic()
    until(what, condition)
    in_time(began)


def thrice(test):
    """A test of how long something takes, up to three times: a pause of the machine makes one of them late, and a server
    that is slow makes all. Whatever else fails fails at once."""
    @functools.wraps(test)
    def tried(server):
        for last in (False, False, True):
            try:
                return test(server)
            except Late:
                if last:
                    raise
    return tried


def free_port():
    return ports.free_ports(1)[0]


class Psql:
    """One psql that stays: tests that wait ask again and again, and a process for each question is most of their cost.

    A test may turn to another database by the environment; the next question then begins another psql.
    """
    END = "that was all"

    def __init__(self):
        self.lock, self.process, self.where = threading.Lock(), None, None

    def start(self, where):
        self.process = subprocess.Popen(["psql", "-X", "-q", "-A", "-t", "-F", "\t", "-v", "ON_ERROR_STOP=1"],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.where = where

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def ask(self, sql):
        with self.lock:
            where = [os.environ.get(name) for name in ("PGHOST", "PGUSER", "PGDATABASE")]
            if self.where != where:
                self.stop()
            if not self.process:
                self.start(where)
            try:
                self.process.stdin.write(sql + "\n;\n\\echo %s\n" % self.END)
                self.process.stdin.flush()
            except BrokenPipeError:
                pass  # what it says of that is read below
            lines = []
            for line in self.process.stdout:
                if line == self.END + "\n":
                    return lines
                lines.append(line.rstrip("\n"))
            says = self.process.stderr.read()  # it ends at the first error; the next question begins another
            self.stop()
            raise AssertionError("psql: " + says)


PSQL = Psql()
atexit.register(PSQL.stop)


def psql(sql):
    """Run SQL in the throwaway database (tests/support/pg_temp.sh exports where it is); rows as lists of text."""
    return [line.split("\t") for line in PSQL.ask(sql)]


def roles():
    """--database as a role that owns nothing, --migrate-database as the owner."""
    psql("DO $$ BEGIN CREATE ROLE photon_server LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$")
    url = "host=%s user=%s dbname=%s"
    at, owner, name = os.environ["PGHOST"], os.environ["PGUSER"], os.environ["PGDATABASE"]
    return ["--database", url % (at, "photon_server", name), "--migrate-database", url % (at, owner, name)]


class OpenApi:
    """Which answers the document allows. Unknown members of an answer are failures here, so that it stays complete."""

    def __init__(self):
        with open(os.path.join(ROOT, "docs", "openapi.json")) as f:
            self.doc = json.load(f)
        for schema in self.doc["components"]["schemas"].values():
            jsonschema.Draft202012Validator.check_schema(schema)
            self.close(schema)
        self.seen = set()  # (method, path, status) that some test has got

    def close(self, schema):
        if isinstance(schema, dict):
            if "properties" in schema:
                schema.setdefault("additionalProperties", False)
            for value in schema.values():
                self.close(value)
        elif isinstance(schema, list):
            for value in schema:
                self.close(value)

    def operations(self):
        for path, item in self.doc["paths"].items():
            for method in METHODS:
                if method in item:
                    yield method, path, item[method]

    def find(self, path):
        """The path of the document that this one is an instance of; the one without parameters wins."""
        hits = [p for p in self.doc["paths"]
                if re.fullmatch(re.sub(r"\{file\}", ".+", re.sub(r"\{(?!file)\w+\}", "[^/]+", re.escape(p)
                                .replace(r"\{", "{").replace(r"\}", "}"))), path)]
        return min(hits, key=lambda p: p.count("{")) if hits else None

    def resolve(self, value):
        while "$ref" in value:
            node = self.doc
            for part in value["$ref"].lstrip("#/").split("/"):
                node = node[part]
            value = node
        return value

    def check(self, method, path, answer):
        """The answer's status, type and body are among those the document describes."""
        known = self.find(path)
        if not known:
            return
        method = "get" if method == "HEAD" else method.lower()
        operation = self.doc["paths"][known].get(method)
        if not operation:
            assert answer.status == 405, "%s %s: %d for a method without an entry" % (method, path, answer.status)
            return
        self.seen.add((method, known, answer.status))
        described = operation["responses"].get(str(answer.status))
        assert described, "%s %s: status %d is not described" % (method, known, answer.status)
        content = self.resolve(described).get("content")
        if answer.method == "HEAD" or not content:
            assert answer.body == b"", "%s %s: %d with a body" % (method, known, answer.status)
            return
        kind = answer.header("Content-Type", "").split(";")[0]
        assert kind in content or "*/*" in content, "%s %s: %d is %s" % (method, known, answer.status, kind)
        if kind.endswith("json"):
            self.validate(content[kind]["schema"], answer.json(), "%s %s %d" % (method, known, answer.status))

    def validate(self, schema, value, what):
        whole = dict(schema, components=self.doc["components"])
        for error in jsonschema.Draft202012Validator(whole).iter_errors(value):
            raise AssertionError("%s: /%s: %s" % (what, "/".join(map(str, error.absolute_path)), error.message))


class Answer:
    def __init__(self, method, status, headers, body):
        self.method = method
        self.status = status
        self.headers = headers
        self.body = body

    def header(self, name, default=None):
        for key, value in self.headers:
            if key.lower() == name.lower():
                return value
        return default

    def json(self):
        return json.loads(self.body)


class Server:
    def __init__(self, build):
        self.build = build
        self.program = os.environ.get("PHOTON_API_SERVER") or os.path.join(build, "bin", "photon-server")
        self.dir = tempfile.mkdtemp(prefix="photon-api-")
        os.chmod(self.dir, 0o755)
        self.api = OpenApi()
        self.process = None
        self.token = None

    @classmethod
    def beside(cls, other):
        """Another one over the same database and folder."""
        self = cls.__new__(cls)
        self.build, self.program, self.dir, self.api, self.process = other.build, other.program, other.dir, other.api, None
        return self

    def refuses(self, *options):
        """The exit code of a start that must fail at once."""
        return subprocess.run([self.program, "--data", os.path.join(self.dir, "data"), *options], capture_output=True,
                              cwd=ROOT, timeout=60).returncode

    def start(self, *options, ready=True, env=None):
        self.port, self.bulk_port = free_port(), free_port()
        log = open(os.path.join(self.dir, "server.log"), "a")
        self.process = subprocess.Popen(
            [self.program, "--data", os.path.join(self.dir, "data"), *roles(), "--unsafe-database",
             "--listen", "127.0.0.1:%d" % self.port, "--bulk-listen", "127.0.0.1:%d" % self.bulk_port,
             "--web", os.path.join(ROOT, "web"), *options],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=ROOT, env=dict(os.environ, **(env or {})))
        log.close()

        def answers():
            assert self.process.poll() is None, "the server ended with status %d" % self.process.returncode
            try:
                return self.call("GET", "/readyz", token=None, check=False).status in ((200,) if ready else (200, 503))
            except OSError:
                return False
        until("the server to be ready", answers, 60)
        with open(os.path.join(self.dir, "data", "admin-token")) as f:
            self.token = f.read().strip()

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError("the server did not stop when asked")
        assert self.process.returncode == 0, "the server ended with status %s" % self.process.returncode

    def log_size(self):
        return os.path.getsize(os.path.join(self.dir, "server.log"))

    def log_tail(self, since=0, lines=40):
        with open(os.path.join(self.dir, "server.log"), errors="replace") as f:
            f.seek(since)
            return "".join(f.readlines()[-lines:])

    def remove(self):
        shutil.rmtree(self.dir, ignore_errors=True)

    def call(self, method, path, body=None, token="admin", headers=None, check=True, bulk=False, raw=None, timeout=30):
        """One request on a connection of its own; the answer is checked against the document."""
        sent = dict(headers or {})
        if token == "admin":
            token = self.token
        if token:
            sent.setdefault("Authorization", "Bearer " + token)
        data = raw
        if body is not None:
            data = json.dumps(body).encode()
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection("127.0.0.1", self.bulk_port if bulk else self.port, timeout=timeout)
        try:
            connection.request(method, path, data, sent)
            got = connection.getresponse()
            answer = Answer(method, got.status, got.getheaders(), got.read())
        finally:
            connection.close()
        if check:
            self.check_head(answer)
            self.api.check(method, path.split("?")[0], answer)
        return answer

    def get(self, path, **options):
        return self.call("GET", path, **options)

    def post(self, path, body, **options):
        return self.call("POST", path, body, **options)

    def raw(self, text, bulk=False, timeout=15):
        """Bytes as they are; everything that comes back until the server closes."""
        with socket.create_connection(("127.0.0.1", self.bulk_port if bulk else self.port), timeout=timeout) as s:
            s.sendall(text if isinstance(text, bytes) else text.encode("latin-1"))
            got = b""
            try:
                while True:
                    piece = s.recv(65536)
                    if not piece:
                        break
                    got += piece
            except ConnectionResetError:
                pass
            return got.decode("latin-1")

    @staticmethod
    def check_head(answer):
        """What every answer must carry, errors above all."""
        assert answer.header("X-Content-Type-Options") == "nosniff", "no nosniff"
        assert "default-src 'none'" in answer.header("Content-Security-Policy", ""), "no CSP"
        assert answer.header("X-Request-Id", "").startswith("q_"), "no request id"
        assert answer.header("Access-Control-Allow-Origin") is None, "CORS"
        if answer.status >= 400 and answer.method != "HEAD":
            if answer.header("Content-Type") != "application/problem+json":
                assert answer.status == 503 and "checks" in answer.json(), "an error without a problem document"
                return
            problem = answer.json()
            assert problem["status"] == answer.status and problem["instance"] == answer.header("X-Request-Id")
        if answer.status == 401:
            assert answer.header("WWW-Authenticate", "").startswith("Bearer"), "401 without WWW-Authenticate"
        if answer.status == 405:
            assert answer.header("Allow"), "405 without Allow"
        if answer.status in (429, 503):
            assert answer.header("Retry-After"), "%d without Retry-After" % answer.status


class Stream:
    """A reader of Server-Sent Events."""

    def __init__(self, server, query="", headers=None, token=None):
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        lines = ["GET /api/v1/stream%s HTTP/1.1" % query, "Host: x"]
        if "Cookie" not in (headers or {}):
            lines.append("Authorization: Bearer " + (token or server.token))
        lines += ["%s: %s" % item for item in (headers or {}).items()]
        self.socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        self.file = self.socket.makefile("rb")
        self.status = int(self.file.readline().split()[1])
        self.headers = {}
        for line in iter(self.file.readline, b"\r\n"):
            name, _, value = line.decode().partition(":")
            self.headers[name.lower()] = value.strip()
        self.text = b""
        self.ended = False

    def more(self):
        """One chunk of the chunked body, or the end."""
        size = self.file.readline()
        size = int(size, 16) if size.strip() else 0
        if size == 0:
            self.ended = True
            return
        self.text += self.file.read(size)
        self.file.readline()

    def block(self):
        """The next block of lines, as a dict; None when the stream has ended."""
        while b"\n\n" not in self.text:
            if self.ended:
                return None
            self.more()
        block, _, self.text = self.text.partition(b"\n\n")
        fields = {}
        for line in block.decode().split("\n"):
            name, _, value = line.partition(":")
            fields[name] = value.strip()
        return fields

    def event(self):
        """The next event; comments and settings are passed over."""
        while True:
            block = self.block()
            if block is None or "event" in block:
                return block

    def close(self):
        self.file.close()
        self.socket.close()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def run_tests(server, modules, only=()):
    """Every function called test_… of the modules, in order, or those named module.test_… or module; prints what fails."""
    passed = failed = 0
    for module in modules:
        for name, test in list(vars(module).items()):
            if not name.startswith("test_") or (only and not {module.__name__, "%s.%s" % (module.__name__, name)} & set(only)):
                continue
            begin = server.log_size()
            try:
                test(server)
                passed += 1
            except Exception:
                failed += 1
                print("  FAIL %s.%s" % (module.__name__, name))
                traceback.print_exc(limit=6)
                print("  the server meanwhile:\n" + server.log_tail(begin, 100))
    return passed, failed
