"""The same server under TLS, with a certificate of its own or one that it makes: what is served, refused, pinned and renewed."""

import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess

from fixture import RUN
from kit import ROOT, free_port, until
from pins import WRONG, make_certificate, pin_of, run_program
from silo_client import PROTOCOL
from silos import begin


class Tls:
    """A second server over the same store. The certificate is its own authority, or auto: made by the server."""

    def __init__(self, server, auto=False, **env):
        self.server = server
        self.auto = auto
        self.env = dict(os.environ, **env)
        self.made = os.path.join(server.dir, "data", "tls")
        if auto:
            self.cert, self.key, self.ca = (os.path.join(self.made, n) for n in ("server.pem", "server.key", "ca.pem"))
        else:
            self.cert, self.key = make_certificate(server.dir, "tls", "IP:127.0.0.1")
            self.ca = self.cert
        self.port, self.bulk_port = free_port(), free_port()
        self.url = "https://127.0.0.1:%d" % self.port
        self.context = None

    def command(self):
        certificate = ["--tls", "auto"] if self.auto else ["--tls-cert", self.cert, "--tls-key", self.key]
        database = "host=%s user=%s dbname=%s" % (os.environ["PGHOST"], os.environ["PGUSER"], os.environ["PGDATABASE"])
        return [self.server.program, "--data", os.path.join(self.server.dir, "data"), "--database", database,
                "--unsafe-database", "--listen", "127.0.0.1:%d" % self.port, "--bulk-listen",
                "127.0.0.1:%d" % self.bulk_port, "--web", os.path.join(ROOT, "web"), *certificate]

    def __enter__(self):
        with open(os.path.join(self.server.dir, "server.log"), "a") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=ROOT,
                                            env=self.env)
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
            self.context = ssl.create_default_context(cafile=self.ca)
            return self.get("/readyz")[0].status == 200
        except OSError:
            return False

    def shown(self, bulk=False):
        """The certificate that a new connection is shown, DER."""
        with socket.create_connection(("127.0.0.1", self.bulk_port if bulk else self.port), timeout=20) as peer:
            with self.context.wrap_socket(peer, server_hostname="127.0.0.1") as tls:
                return tls.getpeercert(True)

    def pin(self):
        return json.loads(self.get("/version")[1])["pin"]

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


def test_a_certificate_made_here_is_pinned_and_vouched_for_by_its_authority(server):
    try:
        with Tls(server, auto=True) as tls:
            assert {n: os.stat(os.path.join(tls.made, n)).st_mode & 0o777 for n in os.listdir(tls.made)} == \
                {"ca.key": 0o600, "ca.pem": 0o644, "server.key": 0o600, "server.pem": 0o644}
            pin = pin_of(tls.cert)
            assert tls.pin() == pin
            until("the pin to be printed", lambda: "Pin: %s\n" % pin in server.log_tail())
            verified = subprocess.run(["openssl", "verify", "-x509_strict", "-CAfile", tls.ca, "-purpose", "sslserver", "-verify_ip",
                                       "127.0.0.1", tls.cert], capture_output=True, text=True)
            assert verified.returncode == 0, verified.stderr
            listing = (server, "photon", "run", "list", "--server", tls.url)
            for trust, want in ((("--pin", pin), 0), (("--ca-file", tls.ca), 0), (("--pin", pin, "--ca-file", tls.ca), 0),
                                ((), 4), (("--pin", WRONG), 4)):
                status, text = run_program(*listing, *trust, PHOTON_TOKEN=server.token)
                assert status == want, (trust, status, text)
            first = tls.shown()
        with Tls(server, auto=True) as tls:  # started anew it shows the same
            assert tls.shown() == first and tls.shown(bulk=True) == first and tls.pin() == pin
            # One that ends tomorrow, by the same authority: renewed while connections stand, with the same key.
            held = http.client.HTTPSConnection("127.0.0.1", tls.port, timeout=20, context=tls.context)
            held.request("GET", "/version")
            held.getresponse().read()
            end_tomorrow(tls)
            tls.process.send_signal(signal.SIGHUP)
            until("a renewed certificate", lambda: tls.shown() != first)
            assert tls.shown(bulk=True) == tls.shown() and tls.pin() == pin == pin_of(tls.cert)
            held.request("GET", "/version")
            assert held.getresponse().status == 200
            held.close()
            # A key that is lost is said, not replaced; what is shown stays.
            os.rename(tls.key, tls.key + ".away")
            tls.process.send_signal(signal.SIGHUP)
            until("the loss to be told", lambda: "server.key' is gone; try a backup" in server.log_tail())
            assert tls.pin() == pin
        done = subprocess.run(tls.command(), capture_output=True, text=True, timeout=60)
        assert done.returncode == 3 and "server.key' is gone; try a backup" in done.stderr, (done.returncode, done.stderr[-300:])
    finally:
        shutil.rmtree(tls.made, ignore_errors=True)


def end_tomorrow(tls):
    """Put a certificate in the place of the server's that is like it, but for its end."""
    request = os.path.join(tls.server.dir, "request.pem")
    subprocess.run(["openssl", "req", "-new", "-key", tls.key, "-subj", "/CN=photon", "-out", request], check=True)
    soon = subprocess.run(["openssl", "x509", "-req", "-in", request, "-CA", tls.ca, "-CAkey", os.path.join(tls.made, "ca.key"),
                           "-set_serial", "7", "-days", "1"], check=True, capture_output=True).stdout
    with open(tls.cert, "wb") as f:
        f.write(soon)


def test_a_certificate_of_ones_own_is_taken_up_when_it_is_renewed(server):
    with Tls(server) as tls:
        pin, first = tls.pin(), tls.shown()
        assert pin == pin_of(tls.cert)
        make_certificate(server.dir, "tls", "IP:127.0.0.1")  # in its place, with another key
        tls.process.send_signal(signal.SIGHUP)
        tls.context = ssl.create_default_context(cafile=tls.cert)

        def taken_up():
            try:
                return tls.shown() != first
            except ssl.SSLError:  # still the one before, which the new authority does not vouch for
                return False
        until("the new certificate to be shown", taken_up)
        assert tls.pin() == pin_of(tls.cert) != pin
    # One that this system trusts needs no pin, and its key may change.
    with Tls(server, SSL_CERT_FILE=os.path.join(server.dir, "tls-cert.pem")) as tls:
        assert tls.pin() is None
        status, text = run_program(server, "photon", "run", "list", "--server", tls.url, "--pin", pin_of(tls.cert),
                                   PHOTON_TOKEN=server.token)
        assert status == 0, text


def test_of_two_certificates_only_one_can_be_asked_for(server):
    program = os.path.basename(server.program)
    for words, said in ((("--tls", "yes"), "--tls is auto"), (("--tls", "auto", "--tls-cert", "a", "--tls-key", "b"), "--tls-cert has one")):
        status, text = run_program(server, program, *words)
        assert status == 2 and said in text, (status, text)
