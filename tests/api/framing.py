"""Requests as attackers, broken proxies and slow peers send them, byte by byte."""

import socket
import time

from kit import in_time, thrice, until


def status(text):
    first = text.split("\r\n")[0].split(" ")
    return int(first[1]) if len(first) > 1 and first[1].isdigit() else 0


def head(server, *lines, method="POST", target="/api/v1/tokens", host="Host: x"):
    start = ["%s %s HTTP/1.1" % (method, target)] + ([host] if host else [])
    return "\r\n".join(start + ["Authorization: Bearer " + server.token, "Content-Type: application/json"] +
                       list(lines)) + "\r\n\r\n"


def test_heads_that_can_be_read_in_two_ways_are_400_and_close(server):
    body = '{"role":"viewer","name":"smuggled"}'
    length = "Content-Length: %d" % len(body)
    chunked = "Transfer-Encoding: chunked"
    bad = [
        head(server, length, length), head(server, length, "Content-Length: 5"), head(server, length, chunked),
        head(server, chunked, length), head(server, chunked, chunked), head(server, "Transfer-Encoding: gzip, chunked"),
        head(server, "Transfer-Encoding: gzip"), head(server, "Transfer-Encoding: xchunked"),
        head(server, "Content-Length: +5"), head(server, "Content-Length: 0x5"), head(server, "Content-Length: 5, 5"),
        head(server, "Content-Length : %d" % len(body)), head(server, "Content-Length: -1"),
        head(server, "Content-Length: 9223372036854775808"), head(server, "Content-Length: 18446744073709551616"),
        head(server, length, host=None), head(server, length, "Host: y"),
        head(server, "Content-Length: 5", method="GET"), head(server, chunked, method="GET"),
        head(server, *["X-%d: y" % i for i in range(70)], method="GET"),
    ]
    for text in bad:
        answer = server.raw(text + body)
        # 413 is libmicrohttpd's own, for a length that no integer holds.
        assert status(answer) in (400, 413, 0), (text, answer[:200])
        assert "smuggled" not in answer.split("\r\n\r\n", 1)[-1]
    names = [t["name"] for t in server.get("/api/v1/tokens?limit=1000").json()["items"]]
    assert "smuggled" not in names


def test_targets_that_decode_into_something_else_are_400(server):
    for target in ("/api/v1%2fruns", "/api/v1/../runs", "/api/v1/runs%00", "/api/v1/runs?q=%00", "/api\\v1", "/%2e%2e/x",
                   "http://other/api/v1/runs", "*"):
        answer = server.raw(head(server, "Connection: close", method="GET", target=target))
        assert status(answer) == 400, (target, answer[:100])


def test_a_head_that_is_too_large_is_refused(server):
    answer = server.raw(head(server, "X-Big: " + "a" * 100000, method="GET"))
    assert status(answer) in (400, 413, 431, 0), answer[:100]
    answer = server.raw(head(server, "Connection: close", method="GET", target="/api/v1/runs?q=" + "a" * 9000))
    assert status(answer) in (400, 414, 431), answer[:100]
    assert server.get("/healthz").status == 200


def test_pipelined_requests_are_answered_in_order(server):
    one = head(server, method="GET", target="/api/v1/me")
    two = head(server, method="GET", target="/version")
    three = head(server, "Connection: close", method="GET", target="/nothing")
    answer = server.raw(one + two + three)
    assert [line.split(" ")[1] for line in answer.split("\r\n") if line.startswith("HTTP/1.1 ")] == ["200", "200", "404"] or \
        answer.count("HTTP/1.1 ") == 3, answer


def test_a_connection_is_kept_between_requests(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as s:
        for target in ("/api/v1/me", "/nothing", "/version"):
            s.sendall(head(server, method="GET", target=target).encode())
            got = b""
            while b"\r\n\r\n" not in got:
                got += s.recv(4096)
            length = int(got.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            body = got.split(b"\r\n\r\n", 1)[1]
            while len(body) < length:
                body += s.recv(4096)
            assert len(body) == length


def test_chunked_json_is_taken_on_control(server):
    body = '{"role":"viewer","name":"in pieces"}'
    chunks = "".join("1\r\n%s\r\n" % c for c in body) + "0\r\n\r\n"
    answer = server.raw(head(server, "Transfer-Encoding: chunked", "Connection: close") + chunks)
    assert status(answer) == 201, answer[:200]


def test_bodies_of_nobody_do_not_fill_the_memory(server):
    """A batch of metrics has up to 1 MiB and is in memory before the token is looked at; all of them have 128 MiB."""
    most, held, answers = 1 << 20, [], []

    def send(s, data):
        try:
            s.sendall(data)
        except OSError:
            pass  # ended already: on a busy machine the first ones take longer than a body may

    def answer(s):
        try:
            return status(s.recv(65536).decode())
        except OSError:
            return 0

    def unread():
        """Bytes on the server's connections that are with the kernel, not yet with the server."""
        with open("/proc/net/tcp") as f:
            rows = [line.split() for line in f.readlines()[1:]]
        port = ":%04X" % server.port
        return sum(int(r[4].split(":")[1], 16) if r[1].endswith(port) else int(r[4].split(":")[0], 16)
                   for r in rows if r[3] == "01" and (r[1].endswith(port) or r[2].endswith(port)))

    def resident():
        with open("/proc/%d/status" % server.process.pid) as f:
            return int(next(line for line in f if line.startswith("VmRSS")).split()[1]) / 1024
    before = resident()
    for _ in range(220):
        s = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        send(s, b"POST /silo/v1/tasks/t_00000000000000000000000000/metrics HTTP/1.1\r\nHost: x\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % most + b" " * (most - 1))
        held.append(s)
    until("the server has read all of them", lambda: unread() == 0)
    grown = resident() - before
    assert server.post("/api/v1/tokens", {"role": "viewer", "name": "small"}).status == 201, "what is small is taken"
    for s in held:
        send(s, b" ")
    for s in held:
        answers.append(answer(s))
        s.close()
    # Whoever is asked for a token now was in memory to the last byte; one whose time was up (0) was not.
    assert answers.count(401) <= 128 and answers.count(503) > 0, (answers.count(401), answers.count(503), answers)
    assert set(answers) <= {401, 503, 0}, answers
    assert grown < 200, grown


@thrice
def test_a_slow_head_is_ended_and_others_are_served_meanwhile(server):
    """One byte a second would hold a connection for ever by libmicrohttpd's own clock."""
    start = time.monotonic()
    slow = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    slow.sendall(b"GET /healthz HTTP/1.1\r\n")
    ended = False
    while time.monotonic() - start < 60 and not ended:
        try:
            slow.sendall(b"X")
            slow.settimeout(0.5)
            ended = slow.recv(1) == b""
        except socket.timeout:
            assert server.get("/healthz").status == 200
        except (ConnectionResetError, BrokenPipeError):
            ended = True
    slow.close()
    assert ended and time.monotonic() - start > 9, time.monotonic() - start
    in_time(start, 14)


def test_many_idle_connections_keep_nobody_out(server):
    idle = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(300)]
    try:
        assert server.get("/api/v1/runs").status == 200
    finally:
        for s in idle:
            s.close()
