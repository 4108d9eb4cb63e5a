"""Bytes of one silo in a day: counted, shown, and refused before they travel."""

import functools

from kit import Late, Server, psql, thrice, until
from silo_client import code
from silos import begin, other_runs_off

GB = 10**9


def of_one_day(test):
    """At midnight all counts begin anew: a test that has it in its midst is run again."""
    @thrice
    @functools.wraps(test)
    def tried(server):
        day = psql("SELECT today()")
        try:
            test(server)
        except AssertionError as failed:
            if psql("SELECT today()") != day:
                raise Late("it went past midnight") from failed
            raise
    return tried


def used(silo, way, count):
    psql("INSERT INTO traffic_day (silo_id, day, {way}_bytes) VALUES ('{silo}', today(), {n}) ON CONFLICT (silo_id, day)"
         " DO UPDATE SET {way}_bytes = {n}".format(way=way, silo=silo.id, n=count))


def shown(server, silo):
    return server.get("/api/v1/silos/" + silo.id).json()["today"]


@of_one_day
def test_a_silos_day_is_bounded_each_way(server):
    other = Server.beside(server)
    other.start("--daily-upload-gb", "1", "--daily-download-gb", "1")
    try:
        run, (silo,) = begin(other, rounds=1)
        task = silo.task()
        data, tokens = silo.update(task)
        until("the download to be counted", lambda: shown(other, silo)["download_bytes"] >= task["base"]["bytes"])
        assert {k: v for k, v in shown(other, silo).items() if k != "download_bytes"} == {
            "upload_bytes": 0, "upload_limit": GB, "download_limit": GB}

        blob = "/blobs/" + task["base"]["sha256"]
        used(silo, "download", GB - 10)
        assert silo.get(blob, bulk=True, headers={"Range": "bytes=0-9"}).status == 206
        until("those ten to be counted", lambda: shown(other, silo)["download_bytes"] == GB)
        over = silo.get(blob, bulk=True, headers={"Range": "bytes=0-0"})
        assert over.status == 429 and code(over) == "BYTE_QUOTA" and 0 < int(over.header("Retry-After")) <= 86400
        assert silo.get(blob, bulk=True, method="HEAD").status == 200  # nothing travels

        used(silo, "upload", GB - len(data))
        created = silo.create(task, data, tokens)
        assert created.status == 201, "a byte of today's is enough to begin"
        upload = created.json()["upload"]
        head = silo.chunk_headers(task, Authorization="Bearer " + silo.token)
        head = "".join("%s: %s\r\n" % item for item in head.items())
        said = other.raw("POST /silo/v1/uploads/%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n"
                         % (upload, len(data) + 300, head), bulk=True)  # and no byte of the body
        assert said.startswith("HTTP/1.1 429 ") and "BYTE_QUOTA" in said, said
        half = silo.chunk(task, upload, data[:len(data) // 2], 0)
        assert half.status == 200, half.body
        used(silo, "upload", GB)
        again = silo.create(task, data, tokens)
        assert again.status == 429 and code(again) == "BYTE_QUOTA"
        assert silo.get("/uploads/" + upload).json()["offset"] == len(data) // 2  # nothing is lost by it

        psql("UPDATE traffic_day SET day = day - 1 WHERE silo_id = '%s'" % silo.id)  # a night passes
        assert silo.finish(task, silo.send(task, data, tokens)).status == 200
        assert shown(other, silo)["upload_bytes"] >= len(data) - len(data) // 2
    finally:
        other.stop()
    other_runs_off(server)


@of_one_day
def test_without_limits_there_is_none(server):
    run, (silo,) = begin(server, rounds=1)
    assert shown(server, silo) == {"upload_bytes": 0, "download_bytes": 0, "upload_limit": None, "download_limit": None}
    used(silo, "upload", 10**15)
    used(silo, "download", 10**15)
    assert silo.train(silo.task()).status == 200
    other_runs_off(server)
