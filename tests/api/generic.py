"""What holds for every route alike: 401, 403, 404, 405, 413, 415, 400, 422, and an entry in the document."""

import json
import os
import re

from fixture import NOBODY, RUN
from kit import ROOT

UNKNOWN = {"run": "r_" + NOBODY, "silo": "s_" + NOBODY, "token": "k_" + NOBODY, "task": "t_" + NOBODY,
           "upload": "u_" + NOBODY, "n": "99", "sha256": "ab" * 32, "file": "nothing.js"}
SILO_HEADERS = {"Photon-Protocol": "1"}


def fill(path):
    return re.sub(r"\{(\w+)\}", lambda m: UNKNOWN[m.group(1)], path)


def is_bulk(operation):
    return operation.get("x-listener") == "bulk"


def body_kind(operation):
    return next(iter(operation["requestBody"]["content"])) if "requestBody" in operation else None


def routes(server):
    """(method, path, operation) of what the server really routes: silo routes are there once they are linked in."""
    for method, path, operation in server.api.operations():
        yield method.upper(), path, operation


def bare(server, method, path, operation, token, **options):
    raw = b"{}" if body_kind(operation) == "application/json" else None
    if body_kind(operation) == "multipart/form-data":
        raw = b"--x--\r\n"
        options["headers"] = {"Content-Type": "multipart/form-data; boundary=x", **SILO_HEADERS}
    options.setdefault("headers", SILO_HEADERS)
    return server.call(method, fill(path), raw=raw, token=token, bulk=is_bulk(operation), **options)


def test_each_route_of_the_sources_has_an_entry_and_each_entry_a_route(server):
    routed = set()
    folder = os.path.join(ROOT, "server")
    for name in sorted(os.listdir(folder)):
        if name.startswith("api_") and name.endswith(".c"):
            with open(os.path.join(folder, name)) as f:
                routed |= set(re.findall(r'\{\s*"(GET|POST|PUT|PATCH|DELETE)",\s*"(/[^"]*)"', f.read()))
    routed = {(m.lower(), p.replace("{*}", "{file}")) for m, p in routed} | {("get", "/")}
    described = {(m, p) for m, p, _ in server.api.operations()}
    assert routed == described, "only routed: %s, only described: %s" % (sorted(routed - described),
                                                                       sorted(described - routed))


def test_nobody_gets_401_where_a_token_is_needed(server):
    for method, path, operation in routes(server):
        if operation.get("security"):
            for token in (None, "pht_" + "A" * 43, "nonsense"):
                answer = bare(server, method, path, operation, token)
                assert answer.status == 401, "%s %s: %d" % (method, path, answer.status)
                assert answer.json()["hint"]


def test_other_roles_get_403_that_names_the_one_needed(server):
    viewer = server.post("/api/v1/tokens", {"role": "viewer", "name": "looker"}).json()["secret"]
    for method, path, operation in routes(server):
        role = operation.get("x-role")
        if role in ("admin", "silo", "join"):
            answer = bare(server, method, path, operation, viewer)
            assert answer.status == 403, "%s %s: %d" % (method, path, answer.status)
            assert role in answer.json()["detail"]
    join = server.post("/api/v1/tokens", {"role": "join", "name": "elsewhere"}).json()["secret"]
    for method, path, operation in routes(server):
        if operation.get("x-role") in ("viewer", "admin"):
            assert bare(server, method, path, operation, join).status == 403, path


def test_what_is_not_there_is_404(server):
    for method, path, operation in routes(server):
        if "{" in path and operation.get("x-role") in ("viewer", "admin", None) and "404" in operation["responses"]:
            if "requestBody" in operation:
                answer = server.call(method, fill(path), {} if path.endswith("/fork") else {"action": "pause"})
            else:
                answer = server.call(method, fill(path))
            assert answer.status == 404, "%s %s: %d" % (method, path, answer.status)
            assert answer.json()["code"] == "NOT_FOUND"
    for path in ("/nothing", "/api/v1", "/api/v1/runs/", "/api/v2/runs", "/api/v1/runs/%s/" % RUN, "//", "/index.html",
                 "/api/v1/runs/%s/rounds/x" % RUN, "/api/v1/runs/%s/rounds/99999999999" % RUN,
                 "/api/v1/runs/%s/checkpoints/-1" % RUN):
        assert server.get(path).status == 404, path


def test_other_methods_get_405_and_what_is_allowed(server):
    allowed = {}
    for method, path, operation in server.api.operations():
        allowed.setdefault(path, ({*()}, is_bulk(operation)))[0].add(method.upper())
    for path, (methods, bulk) in allowed.items():
        both_ports = path.startswith("/silo/v1/uploads/{upload}") and not path.endswith("finish")
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"):
            if method in methods or both_ports:
                continue
            answer = server.call(method, fill(path), bulk=bulk)
            assert answer.status == 405, "%s %s: %d" % (method, path, answer.status)
            want = set(methods) | ({"HEAD"} if "GET" in methods else set())
            assert set(answer.header("Allow").split(", ")) == want, (path, answer.header("Allow"))


def test_head_is_get_without_a_body(server):
    for method, path, operation in routes(server):
        if method == "GET" and operation.get("x-role") in ("viewer", "admin", None):
            with_body = server.get(fill(path)) if "/stream" not in path else None
            head = server.call("HEAD", fill(path))
            assert head.body == b""
            if with_body:
                assert head.status == with_body.status, path
                if path not in ("/metrics", "/readyz") and head.status == 200:
                    assert head.header("Content-Length") == str(len(with_body.body)), path


def bodies(server):
    for method, path, operation in routes(server):
        if body_kind(operation) == "application/json" and operation.get("x-role") in ("admin", None):
            yield method, path, operation


def test_a_body_that_is_not_json_is_400(server):
    for method, path, _ in bodies(server):
        for raw in (b"{", b"", b"[]", b"null", b'{"a":1,"a":2}', b"{} x", b'{"a":"\xff"}', b'{"a":' + b"[" * 40 + b"]" * 40 + b"}"):
            answer = server.call(method, fill(path), raw=raw)
            assert answer.status == 400, "%s %s: %d" % (path, raw, answer.status)
            assert answer.json()["code"] == "MALFORMED_JSON"


def test_another_content_type_is_415(server):
    for method, path, _ in bodies(server):
        for kind in ("text/plain", "application/x-www-form-urlencoded", "application/jsonx"):
            answer = server.call(method, fill(path), raw=b"{}", headers={"Content-Type": kind})
            assert answer.status == 415, path
        answer = server.call(method, fill(path), raw=b"[]", headers={"Content-Type": "Application/JSON; charset=utf-8"})
        assert answer.status == 400, path  # the type is fine, so the body is looked at


def test_an_unknown_member_is_422_and_named(server):
    for method, path, _ in bodies(server):
        answer = server.call(method, fill(path), {"acton": "pause"})
        assert answer.status == 422, "%s: %d" % (path, answer.status)
        assert any(error["pointer"] == "/acton" for error in answer.json()["errors"]), answer.json()


def test_too_large_a_body_is_413_before_and_while_it_comes(server):
    for method, path, _ in bodies(server):
        answer = server.call(method, fill(path), raw=b" " * 70000)
        assert answer.status == 413, path
        head = "%s %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n" \
               "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" % (method, fill(path), server.token)
        text = server.raw(head + "11170\r\n" + " " * 0x11170 + "\r\n0\r\n\r\n")
        assert " 413 " in text.split("\r\n")[0], (path, text[:200])


def test_gets_carry_an_etag_and_answer_304(server):
    for path in ("/api/v1/runs", "/api/v1/runs/" + RUN, "/api/v1/runs/%s/rounds" % RUN, "/version", "/openapi.json",
                 "/api/v1/experiments", "/api/v1/series?run=%s&metric=eval_ppl" % RUN):
        first = server.get(path)
        etag = first.header("ETag")
        assert etag and etag.startswith('"'), path
        for known in (etag, "W/" + etag, '"x", ' + etag, "*"):
            again = server.get(path, headers={"If-None-Match": known})
            assert again.status == 304 and again.body == b"" and again.header("ETag") == etag, (path, known)
        assert server.get(path, headers={"If-None-Match": '"x"'}).status == 200


def test_bad_parameters_are_400_and_named(server):
    lists = ("/api/v1/runs", "/api/v1/silos", "/api/v1/tokens", "/api/v1/runs/%s/rounds" % RUN,
             "/api/v1/runs/%s/checkpoints" % RUN, "/api/v1/runs/%s/events" % RUN, "/api/v1/runs/%s/silos" % RUN)
    bad = [(path, "limit=" + value) for path in lists for value in ("0", "1001", "-1", "x", "", "1e3", "99999999999999999999")]
    bad += [(path, "cursor=%27%20OR%201") for path in lists]
    bad += [("/api/v1/runs", "state=flying"), ("/api/v1/runs/%s/rounds" % RUN, "cursor=abc"),
            ("/api/v1/runs/%s/events" % RUN, "after=7"), ("/api/v1/runs/%s/events" % RUN, "after=x-y"),
            ("/api/v1/runs/%s/events" % RUN, "cursor=5"), ("/api/v1/stream", "after=nonsense"),
            ("/api/v1/diff", ""), ("/api/v1/diff", "run=" + RUN), ("/api/v1/diff", "run=%s,,%s" % (RUN, RUN)),
            ("/api/v1/diff", "run={},{}")]
    series = "run=%s&metric=eval_loss&" % RUN
    bad += [("/api/v1/series", query) for query in (
        "", "run=" + RUN, "metric=eval_loss", "run=x&metric=eval_loss", "run=%s,&metric=eval_loss" % RUN, series + "x=moon",
        series + "scale=cubic", series + "points=1", series + "points=3001", series + "smooth=1", series + "smooth=-0.1",
        series + "smooth=nan", series + "from=a", series + "to=inf", series + "from=0x10", series + "silo=me",
        "run=%s&metric=drop_table" % RUN)]
    for path, query in bad:
        answer = server.get(path + "?" + query)
        assert answer.status == 400, "%s?%s: %d" % (path, query, answer.status)
        assert answer.json()["code"] == "BAD_PARAMETER"
        assert answer.json()["errors"][0]["pointer"].startswith("?")


def test_text_that_is_not_utf8_is_400_everywhere(server):
    for path in ("/api/v1/runs/%ff", "/api/v1/runs?q=%c3%28", "/api/v1/silos/%ed%a0%80", "/assets/%fe"):
        assert server.get(path).status == 400, path


def test_the_document_is_what_is_served(server):
    with open(os.path.join(ROOT, "docs", "openapi.json"), "rb") as f:
        assert server.get("/openapi.json", token=None).body == f.read()


def test_references_of_the_document_lead_somewhere(server):
    text = json.dumps(server.api.doc)
    for ref in set(re.findall(r'"\$ref": "([^"]+)"', text)):
        server.api.resolve({"$ref": ref})
