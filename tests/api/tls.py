"""The same server under TLS with a certificate of its own: heads, whole files and ranges, an upload, and what is refused."""

import hashlib
import http.client
import json
import os
import signal
import ssl
import subprocess

from fixture import RUN
from kit import ROOT, free_port, until
from silo_client import PROTOCOL
from silos import begin


class Tls:
    """A second server over the same store; the certificate is its own authority."""

    def __init__(self, server):
        self.server = server
        self.cert, self.key = (os.path.join(server.dir, n) for n in ("tls-cert.pem", "tls-key.pem"))
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days",
                        "2", "-subj", "/CN=photon", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", self.key, "-out",
                        self.cert], check=True, capture_output=True)
        os.chmod(self.key, 0o600)
        self.port, self.bulk_port = free_port(), free_port()
        self.context = ssl.create_default_context(cafile=self.cert)

    def command(self):
        database = "host=%s user=%s dbname=%s" % (os.environ["PGHOST"], os.environ["PGUSER"], os.environ["PGDATABASE"])
        return [self.server.program, "--data", os.path.join(self.server.dir, "data"), "--database", database,
                "--unsafe-database", "--listen", "127.0.0.1:%d" % self.port, "--bulk-listen",
                "127.0.0.1:%d" % self.bulk_port, "--tls-cert", self.cert, "--tls-key", self.key,
                "--web", os.path.join(ROOT, "web")]

    def __enter__(self):
        with open(os.path.join(self.server.dir, "server.log"), "a") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=ROOT)
        until("the server to be ready over TLS", self.ready, 60)
        return self

    def __exit__(self, *what):
        self.process.send_signal(signal.SIGTERM)
        try:
            assert self.process.wait(20) == 0
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()

    def ready(self):
        assert self.process.poll() is None, "the server ended with status %d" % self.process.returncode
        try:
            return self.get("/readyz")[0].status == 200
        except OSError:
            return False

    def get(self, path, bulk=False, method="GET", body=None, **headers):
        """(answer, body)"""
        sent = {"Authorization": "Bearer " + self.server.token}
        sent.update((k.replace("_", "-"), v) for k, v in headers.items())
        connection = http.client.HTTPSConnection("127.0.0.1", self.bulk_port if bulk else self.port, timeout=20,
                                                 context=self.context)
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()


def test_files_and_uploads_are_whole_over_tls(server):
    _, (silo,) = begin(server)
    task = silo.task()
    with Tls(server) as tls:
        answer, _ = tls.get("/api/v1/me")
        assert answer.status == 200 and answer.getheader("Strict-Transport-Security")
        whole = server.weights
        for bulk in (False, True):
            answer, body = tls.get("/api/v1/runs/%s/checkpoints/2/weights" % RUN, bulk=bulk)
            assert answer.status == 200 and hashlib.sha256(body).digest() == hashlib.sha256(whole).digest()
            answer, body = tls.get("/api/v1/runs/%s/checkpoints/2/weights" % RUN, bulk=bulk, Range="bytes=131071-400003")
            assert answer.status == 206 and body == whole[131071:400004]
        own = {"Authorization": "Bearer " + silo.token, **PROTOCOL}
        answer, body = tls.get("/silo/v1/blobs/" + task["base"]["sha256"], bulk=True, **own)
        assert answer.status == 200 and hashlib.sha256(body).hexdigest() == task["base"]["sha256"]
        answer, body = tls.get("/silo/v1/blobs/" + task["base"]["sha256"], bulk=True, method="HEAD", **own)
        assert answer.status == 200 and body == b"" and int(answer.getheader("Content-Length")) == task["base"]["bytes"]
        data, tokens = silo.update(task)
        upload = silo.create(task, data, tokens).json()["upload"]
        answer, body = tls.get("/silo/v1/uploads/" + upload, bulk=True, method="POST", body=silo.chunk_body(data, 0),
                               **dict(own, **silo.chunk_headers(task)))
        assert answer.status == 200 and json.loads(body)["offset"] == len(data), body
        assert silo.finish(task, upload).status == 200


def test_what_is_not_safe_is_refused_over_tls(server):
    with Tls(server) as tls:
        plain = http.client.HTTPConnection("127.0.0.1", tls.port, timeout=20)
        try:
            plain.request("GET", "/version")
            assert False, "plain HTTP was answered with %d" % plain.getresponse().status
        except (OSError, http.client.HTTPException):
            pass
        finally:
            plain.close()
        stranger = ssl.create_default_context()  # trusts other authorities alone
        tls.context, ours = stranger, tls.context
        try:
            tls.get("/version")
            assert False, "an unknown certificate was trusted"
        except ssl.SSLError:
            pass
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.load_verify_locations(tls.cert)
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        tls.context = old
        try:
            tls.get("/version")
            assert False, "TLS 1.1 was spoken"
        except OSError:
            pass
        tls.context = ours
        assert tls.get("/version")[0].status == 200
    os.chmod(tls.key, 0o644)
    done = subprocess.run(tls.command(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 3 and "chmod 600" in done.stderr, (done.returncode, done.stderr[-300:])
