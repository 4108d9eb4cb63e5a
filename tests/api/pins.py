"""What the clients believe of a TLS server: a pin, authorities, both or neither; and that a wrong one hears nothing."""

import json
import os
import socket
import ssl
import subprocess
import threading

from kit import until

WRONG = "sha256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
MALFORMED = ("pins.pem", WRONG[:-1], WRONG + ";", " " + WRONG, WRONG.replace("//", "/"), WRONG.replace("FU=", "FV="))


def make_certificate(folder, name, host):
    """(certificate, key), self-signed, for that host."""
    cert, key = os.path.join(folder, name + "-cert.pem"), os.path.join(folder, name + "-key.pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                    "-subj", "/CN=photon", "-addext", "subjectAltName=" + host, "-keyout", key, "-out", cert],
                   check=True, capture_output=True)
    os.chmod(key, 0o600)
    return cert, key


def pin_of(cert):
    """The pin of a certificate's key, as openssl's tools have it."""
    spki = subprocess.run(["openssl", "x509", "-in", cert, "-pubkey", "-noout"], check=True, capture_output=True).stdout
    der = subprocess.run(["openssl", "pkey", "-pubin", "-outform", "der"], input=spki, check=True, capture_output=True).stdout
    hashed = subprocess.run(["openssl", "dgst", "-sha256", "-binary"], input=der, check=True, capture_output=True).stdout
    return "sha256//" + subprocess.run(["openssl", "base64", "-A"], input=hashed, check=True, capture_output=True).stdout.decode()


def run_program(server, program, *args, **env):
    """(exit status, what it said)"""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PHOTON_")}
    done = subprocess.run([os.path.join(os.path.dirname(server.program), program), *args], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=60, env=dict(clean, **env))
    return done.returncode, done.stdout + done.stderr


class Stranger:
    """Somebody with a certificate, who writes down what is said after the handshake and answers as Photon would."""

    def __init__(self, folder, host="IP:127.0.0.1"):
        self.cert, self.key = make_certificate(folder, "stranger", host)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(self.cert, self.key)
        self.heard = b""
        self.tried = 0

    def __enter__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = "https://127.0.0.1:%d" % self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()
        return self

    def __exit__(self, *what):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.listener.close()

    def serve(self):
        body = json.dumps({"silo": "s_1", "name": "a", "token": "t", "version": "1", "protocol": 1, "items": []}).encode()
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            try:
                peer.settimeout(10)
                with self.context.wrap_socket(peer, server_side=True) as tls:
                    said = tls.recv(65536)
                    self.heard += said
                    if said:
                        tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
                                    b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
            except OSError:
                peer.close()
            self.tried += 1

    def told(self, *program, **env):
        """(exit status, what it said, what was heard) of one try."""
        self.heard, before = b"", self.tried
        status, text = run_program(*program, **env)
        if status != 3:
            until("the try to be over", lambda: self.tried > before)
        return status, text, self.heard


def joining(server, url, name, *more):
    return [server, "photon-client", "join", url, "--name", "a", "--state", os.path.join(server.dir, name), "--again", *more]


def test_a_client_believes_the_pinned_key_and_no_other(server):
    with Stranger(server.dir, "DNS:elsewhere.example") as stranger:
        right = pin_of(stranger.cert)
        status, text, heard = stranger.told(*joining(server, stranger.url, "pinned", "--pin", right), PHOTON_TOKEN="secret")
        assert status == 0 and b"Bearer secret" in heard, (status, text)
        status, text, heard = stranger.told(*joining(server, stranger.url, "pinned"), PHOTON_PIN=WRONG + ";" + right,
                                            PHOTON_TOKEN="secret")
        assert status == 0 and b"Bearer secret" in heard, (status, text)  # either key of two
        with open(os.path.join(server.dir, "pinned", "silo.json")) as f:
            silo = json.load(f)
        assert silo["pin"] == WRONG + ";" + right
        status, text, heard = stranger.told(server, "photon", "run", "list", "--server", stranger.url, PHOTON_PIN=right,
                                            PHOTON_TOKEN="secret")
        assert status == 0 and b"Bearer secret" in heard, (status, text)

        status, text, heard = stranger.told(*joining(server, stranger.url, "x", "--pin", WRONG), PHOTON_TOKEN="secret")
        assert status == 4 and "PIN_MISMATCH" in text and "; try" in text and heard == b"", (status, text, heard)
        status, text, heard = stranger.told(server, "photon", "run", "list", "--server", stranger.url, "--pin", WRONG,
                                            PHOTON_TOKEN="secret")
        assert status == 4 and "PIN_MISMATCH" in text and heard == b"", (status, text, heard)
        # What a silo remembers is what its agent and its doctor hold the server to.
        with open(os.path.join(server.dir, "pinned", "silo.json"), "w") as f:
            json.dump(dict(silo, pin=WRONG), f)
        status, text, heard = stranger.told(server, "photon-client", "doctor", "--state", os.path.join(server.dir, "pinned"))
        assert status == 1 and "PIN_MISMATCH" in text and "new join line" in text and heard == b"", (status, text, heard)


def test_without_a_pin_a_private_certificate_needs_its_authority(server):
    with Stranger(server.dir) as stranger:
        status, text, heard = stranger.told(*joining(server, stranger.url, "x"), PHOTON_TOKEN="secret")
        assert status == 4 and "--pin" in text and "--ca-file" in text and heard == b"", (status, text, heard)
        status, text, heard = stranger.told(*joining(server, stranger.url, "ca", "--ca-file", stranger.cert),
                                            PHOTON_TOKEN="secret")
        assert status == 0 and b"Bearer secret" in heard, (status, text)
        # With both, both must hold.
        right = pin_of(stranger.cert)
        for pin, want in ((right, 0), (WRONG, 4)):
            status, text, heard = stranger.told(*joining(server, stranger.url, "ca", "--ca-file", stranger.cert, "--pin", pin),
                                                PHOTON_TOKEN="secret")
            assert status == want and (want == 0) == bool(heard), (pin, status, text)
    with Stranger(server.dir, "DNS:elsewhere.example") as stranger:
        status, text, heard = stranger.told(*joining(server, stranger.url, "ca", "--ca-file", stranger.cert, "--pin",
                                                     pin_of(stranger.cert)), PHOTON_TOKEN="secret")
        assert status == 4 and "not trusted" in text and heard == b"", (status, text, heard)


def test_what_is_no_pin_is_refused_before_the_token_is_read(server):
    for pin in MALFORMED:
        status, text = run_program(*joining(server, "https://127.0.0.1:1", "x", "--pin", pin))
        assert status == 3 and "is no pin; try sha256//" in text, (pin, status, text)
    status, text = run_program(*joining(server, "http://127.0.0.1:1", "x", "--pin", WRONG), PHOTON_TOKEN="secret")
    assert status == 3 and "; try https://" in text, (status, text)
