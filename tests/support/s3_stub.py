"""An object store for tests: the S3 calls we make, signatures checked by rules written anew here, faults on purpose.

s3_stub.py [--faults SHARE] [--seed N] [--page N]: prints its port, serves until its stdin ends. GET /_stub tells what it
holds. The fault rate can be set by /_stub/faults/SHARE; from /_stub/hold on each GET of an object waits until /_stub/go. Objects come
into being whole, by their last request.
"""

import argparse
import hashlib
import hmac
import http.server
import json
import random
import socketserver
import sys
import threading
import time
import urllib.parse

KEY, SECRET, SESSION, REGION = "AKIATEST", "not/a+secret=", "a-session-token", "eu-north-1"
lock = threading.Lock()
objects = {}   # path -> (bytes, when)
uploads = {}   # id -> (path, {number: bytes})
gets = {}      # path -> how often it was asked for
counts = {"refused": 0, "faults": 0, "requests": 0, "conditions": 0, "multipart": 0}
options = None
chance = None
going = threading.Event()
going.set()


def sign(message, date):
    """The signing key of the day, then the signature: "Signature Version 4 signing process", AWS General Reference."""
    key = ("AWS4" + SECRET).encode()
    for part in (date, REGION, "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return hmac.new(key, message.encode(), hashlib.sha256).hexdigest()


def quote(text):
    return urllib.parse.quote(text, safe="-_.~")


def refusal(handler, body):
    """Why the request is not signed as it must be, or None."""
    given = handler.headers.get("Authorization", "")
    if not given.startswith("AWS4-HMAC-SHA256 "):
        return "AccessDenied"
    fields = dict(f.strip().split("=", 1) for f in given[len("AWS4-HMAC-SHA256 "):].split(","))
    stamp = handler.headers.get("x-amz-date", "")
    payload = handler.headers.get("x-amz-content-sha256", "")
    if payload != hashlib.sha256(body).hexdigest():
        return "XAmzContentSHA256Mismatch"
    if handler.headers.get("x-amz-security-token") != SESSION:
        return "InvalidToken"
    names = fields["SignedHeaders"].split(";")
    if names != sorted(names) or not {"host", "x-amz-date", "x-amz-content-sha256", "x-amz-security-token"} <= set(names):
        return "SignatureDoesNotMatch"
    parts = urllib.parse.urlsplit(handler.path)
    pairs = sorted((quote(urllib.parse.unquote(k)), quote(urllib.parse.unquote(v)))
                   for k, _, v in (p.partition("=") for p in parts.query.split("&") if p))
    canonical = "\n".join([
        handler.command, urllib.parse.quote(urllib.parse.unquote(parts.path), safe="/-_.~"),
        "&".join("%s=%s" % p for p in pairs),
        "".join("%s:%s\n" % (n, " ".join(handler.headers.get(n, "").split())) for n in names), ";".join(names), payload])
    scope = "%s/%s/s3/aws4_request" % (stamp[:8], REGION)
    message = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    if fields["Credential"] != "%s/%s" % (KEY, scope):
        return "InvalidAccessKeyId"
    if not hmac.compare_digest(fields["Signature"], sign(message, stamp[:8])):
        return "SignatureDoesNotMatch"
    return None


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", headers=(), cut=None):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if not any(n == "Content-Length" for n, _ in headers):
            self.send_header("Content-Length", str(len(body)))
        self._headers_buffer.append(b"\r\n")  # head and body in one piece: else the second waits for an acknowledgement
        if self.command != "HEAD":
            self._headers_buffer.append(body if cut is None else body[:cut])
        self.flush_headers()
        if cut is not None:
            self.close_connection = True

    def error(self, status, code):
        self.answer(status, b"" if self.command == "HEAD" else
                    ("<?xml version=\"1.0\"?><Error><Code>%s</Code></Error>" % code).encode())

    def fault(self, moments):
        """One of the faults of this moment, now and then."""
        with lock:
            if chance.random() >= options.faults:
                return None
            counts["faults"] += 1
            return chance.choice(moments)

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True

    def serve(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urllib.parse.urlsplit(self.path)
        if parts.path.startswith("/_stub"):
            return self.control(parts.path)
        with lock:
            counts["requests"] += 1
        why = refusal(self, body)
        if why:
            with lock:
                counts["refused"] += 1
            return self.error(403, why)
        query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        if not parts.path.startswith("/bucket-1/"):
            return self.error(404, "NoSuchBucket")
        before = self.fault(["500", "503", "429", "cut", "slow"])
        if before == "cut":
            self.close_connection = True
            return None
        if before == "slow":
            time.sleep(0.05)
        elif before:
            return self.error(int(before), "SlowDown")
        if self.command == "GET" and "list-type" not in query:
            with lock:
                gets[parts.path] = gets.get(parts.path, 0) + 1
            going.wait()
        status, answer, headers = self.work(parts.path, query, body)
        after = self.fault(["lost", "short", "short"])
        if after == "lost" or (after == "short" and len(answer) < 2):
            self.close_connection = True  # the work is done, the answer goes nowhere
            return None
        if after == "short":
            return self.answer(status, answer, headers, cut=chance.randrange(len(answer)))
        return self.answer(status, answer, headers)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = serve

    def control(self, path):
        if path.startswith("/_stub/faults/"):
            options.faults = float(path.rsplit("/", 1)[1])
        if path == "/_stub/hold":
            going.clear()
        if path == "/_stub/go":
            going.set()
        if path.startswith("/_stub/damage/"):
            with lock:
                for name, (data, when) in objects.items():
                    if name.endswith(path.rsplit("/", 1)[1]):
                        objects[name] = (bytes([data[0] ^ 1]) + data[1:], when)
        with lock:
            state = {"objects": {p: [len(b), hashlib.sha256(b).hexdigest()] for p, (b, _) in objects.items()},
                     "uploads": len(uploads), "gets": gets, **counts}
        self.answer(200, json.dumps(state).encode())

    def work(self, path, query, body):
        """(status, body, headers) after the work of the request is done."""
        error = lambda status, code: (status, ("<Error><Code>%s</Code></Error>" % code).encode(), ())
        with lock:
            if self.command == "PUT" and "uploadId" in query:
                if query["uploadId"] not in uploads:
                    return error(404, "NoSuchUpload")
                uploads[query["uploadId"]][1][int(query["partNumber"])] = body
                return 200, b"", [("ETag", '"%s"' % hashlib.md5(body).hexdigest())]
            if self.command == "PUT":
                return self.place(path, body)
            if self.command == "POST" and "uploads" in query:
                name = "id/+=&%d" % len(counts) + hashlib.md5(str(time.time_ns()).encode()).hexdigest()
                uploads[name] = (path, {})
                return 200, ("<R><UploadId>%s</UploadId></R>" % name.replace("&", "&amp;")).encode(), ()
            if self.command == "POST":
                return self.complete(path, query, body)
            if self.command == "DELETE":
                if "uploadId" in query:
                    uploads.pop(query["uploadId"], None)
                else:
                    objects.pop(path, None)
                return 204, b"", ()
            if self.command == "GET" and "list-type" in query:
                return self.list(query)
            if path not in objects:
                return error(404, "NoSuchKey")
            return self.read(objects[path][0])

    def place(self, path, body):
        if self.headers.get("If-None-Match") == "*":
            counts["conditions"] += 1
            if path in objects:
                return 412, b"<Error><Code>PreconditionFailed</Code></Error>", ()
        objects[path] = (body, time.time())
        return 200, b"", [("ETag", '"%s"' % hashlib.md5(body).hexdigest())]

    def complete(self, path, query, body):
        if query["uploadId"] not in uploads:
            return 404, b"<Error><Code>NoSuchUpload</Code></Error>", ()
        parts = uploads[query["uploadId"]][1]
        said = body.decode().split("<PartNumber>")[1:]
        numbers = [int(s.split("<")[0]) for s in said]
        tags = [s.split("<ETag>")[1].split("</ETag>")[0] for s in said]
        sound = [n for n, t in zip(numbers, tags) if n in parts and t == '"%s"' % hashlib.md5(parts[n]).hexdigest()]
        if numbers != sorted(set(numbers)) or sound != numbers or not numbers:
            return 400, b"<Error><Code>InvalidPart</Code></Error>", ()
        if options.faults and chance.random() < options.faults / 2:
            return 200, b"<?xml version=\"1.0\"?><Error><Code>InternalError</Code></Error>", ()
        status, answer, headers = self.place(path, b"".join(parts[n] for n in numbers))
        if status == 200:
            counts["multipart"] += 1
            del uploads[query["uploadId"]]
            answer = b"<CompleteMultipartUploadResult><ETag>&quot;x-2&quot;</ETag></CompleteMultipartUploadResult>"
        return status, answer, headers

    def read(self, data):
        asked = self.headers.get("Range")
        if not asked:
            return 200, data if self.command == "GET" else b"", [("Content-Length", str(len(data)))]
        first, last = asked[len("bytes="):].split("-")
        first, last = int(first), min(int(last or len(data) - 1), len(data) - 1)
        if first >= len(data):
            return 416, b"<Error><Code>InvalidRange</Code></Error>", ()
        piece = data[first:last + 1]
        return 206, piece, [("Content-Range", "bytes %d-%d/%d" % (first, last, len(data))), ("Content-Length", str(len(piece)))]

    def list(self, query):
        lead = "/bucket-1/"
        names = sorted(p[len(lead):] for p in objects if p[len(lead):].startswith(query.get("prefix", "")))
        names = [n for n in names if n > query.get("continuation-token", "")]
        page = names[:options.page]
        text = "".join("<Contents><Key>%s</Key><LastModified>%s</LastModified><Size>%d</Size></Contents>" % (
            n, time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(objects[lead + n][1])), len(objects[lead + n][0])) for n in page)
        if len(names) > len(page):
            text += "<NextContinuationToken>%s</NextContinuationToken>" % page[-1]
        return 200, ("<ListBucketResult>%s</ListBucketResult>" % text).encode(), ()


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 64


def main():
    global options, chance
    parser = argparse.ArgumentParser()
    parser.add_argument("--faults", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--page", type=int, default=1000)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    server = Server(("127.0.0.1", 0), Handler)
    sys.stdout.write("%d\n" % server.server_address[1])  # in one piece: the reader goes then
    sys.stdout.flush()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
