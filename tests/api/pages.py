"""The dashboard's files: what is served, as what, and what is not."""

import os

from fixture import RUN
from kit import ROOT

WEB = os.path.join(ROOT, "web")


def test_every_page_is_the_same_document(server):
    with open(os.path.join(WEB, "index.html"), "rb") as f:
        page = f.read()
    for path in ("/", "/runs/" + RUN, "/compare?runs=a", "/experiments/demo", "/silos", "/silos/s_1", "/audit"):
        answer = server.get(path, token=None)
        assert answer.status == 200 and answer.body == page, path
        assert answer.header("Content-Type") == "text/html; charset=utf-8"
        assert answer.header("Cache-Control") == "no-cache" and answer.header("ETag")
        assert server.get(path, token=None, headers={"If-None-Match": answer.header("ETag")}).status == 304


def test_assets_have_their_types(server):
    kinds = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
    served = 0
    for name in os.listdir(WEB):
        kind = kinds.get(os.path.splitext(name)[1])
        if kind:
            answer = server.get("/assets/" + name, token=None)
            assert answer.status == 200 and answer.header("Content-Type") == kind, name
            served += 1
    assert served > 3
    assert server.get("/favicon.ico", token=None).status == 200


def test_nothing_else_of_the_disk_is_served(server):
    for path in ("/assets/package.json", "/assets/package-lock.json", "/assets/nothing.js", "/assets/", "/assets/vendor"):
        assert server.get(path, token=None).status == 404, path
    for path in ("/assets/../docs/API.md", "/assets/%2e%2e/docs/API.md", "/assets/..%2fdocs/API.md", "/..",
                 "/assets/vendor/../../docs/API.md", "/assets/%5c..%5cdocs", "/assets/app.js%00.css"):
        text = server.raw("GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path)
        assert " 400 " in text.split("\r\n")[0], (path, text[:100])
