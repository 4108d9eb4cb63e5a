"""The people's API: what it shows of a finished run, and what it changes."""

import csv
import io
import json
import math

from fixture import NOBODY, OTHER, RUN, SILOS, SPEC
from kit import Server, psql, sha256, soon, thrice, until

BASE = "/api/v1/runs/" + RUN


def items(answer):
    assert answer.status == 200, answer.body
    return answer.json()["items"]


def test_me_says_who_asks(server):
    assert server.get("/api/v1/me").json()["role"] == "admin"


def test_runs_are_listed_newest_first_and_filtered(server):
    runs = items(server.get("/api/v1/runs"))
    assert [r["name"] for r in runs][-2:] == ["fixture-b", "fixture-a"]
    assert [r["name"] for r in items(server.get("/api/v1/runs?state=finished"))] == ["fixture-a"]
    assert [r["name"] for r in items(server.get("/api/v1/runs?q=E-B"))] == ["fixture-b"]
    assert items(server.get("/api/v1/runs?q=%25")) == []  # not a pattern
    run = runs[-1]
    assert run["round"] == 2 and run["tokens"] == 2048 and run["upload_bytes"] == 6000 and run["download_bytes"] == 8000
    assert run["eval_loss"] == 4.0 and abs(run["eval_ppl"] - math.exp(4)) < 1e-9


def test_pages_of_a_list_join_without_gap_or_double(server):
    assert server.post("/api/v1/tokens", {"role": "viewer", "name": "reader"}).status == 201  # more than one, in the audit too
    assert server.post("/api/v1/tokens", {"role": "viewer", "name": "another reader"}).status == 201
    for path in ("/api/v1/runs", BASE + "/rounds", BASE + "/checkpoints", BASE + "/silos", BASE + "/events",
                 BASE + "/events?after=0-0", "/api/v1/silos", "/api/v1/tokens", "/api/v1/audit"):
        sign = "&" if "?" in path else "?"
        whole = server.get(path + sign + "limit=1000").json()
        assert whole["next_cursor"] is None
        pieces, cursor = [], ""
        while cursor is not None:
            page = server.get(path + sign + "limit=1" + ("&cursor=" + cursor if cursor else "")).json()
            assert len(page["items"]) <= 1
            pieces += page["items"]
            cursor = page["next_cursor"]
        assert len(pieces) >= 2, path
        strip = lambda rows: [{k: v for k, v in row.items() if k != "last_used_at"} for row in rows]
        assert strip(pieces) == strip(whole["items"]), path


def test_a_run_says_how_it_went(server):
    run = server.get(BASE).json()
    assert run["initial_eval_loss"] == 6.0 and run["best_eval_loss"] == 4.0 and run["best_round"] == 2
    assert run["head_checkpoint"]["number"] == 2 and run["live_round"] is None and run["eta_s"] is None


def test_a_spec_is_complete(server):
    spec = server.get(BASE + "/spec").json()
    assert spec["inner"]["clip_norm"] == 1 and spec["federation"]["min_silos"] == 2


def test_rounds_carry_their_split_and_tasks(server):
    rounds = items(server.get(BASE + "/rounds"))
    assert [r["number"] for r in rounds] == [2, 1]
    assert rounds[0]["accepted"] == 2 and rounds[0]["upload_bytes"] == 4000
    assert rounds[0]["split"] == {"download_s": 1.5, "train_s": 2.5, "upload_s": 0.5, "aggregate_s": 0.25, "eval_s": 1.5}
    assert rounds[0]["eval_loss"] == 4.0 and rounds[0]["base_sha256"] == "11" * 32
    one = server.get(BASE + "/rounds/1").json()
    assert [(t["kind"], t["slot"]) for t in one["tasks"]] == [("train", 0), ("train", 1), ("evaluate", 0), ("evaluate", 1)]
    assert one["tasks"][0]["codec_error"] == 0.007 and one["tasks"][0]["fallback_share"] == 0.25
    assert one["tasks"][0]["update_norm"] == 1.5 and len(one["tasks"][0]["update_sha256"]) == 64


def test_silos_of_a_run_and_of_all(server):
    silos = items(server.get(BASE + "/silos"))
    assert [s["name"] for s in silos] == ["fixture-1", "fixture-2"]
    assert silos[0]["rounds"] == 2 and silos[0]["tokens"] == 1024 and silos[0]["status"] == "gone"
    assert silos[0]["train_loss"] is not None
    silo = server.get("/api/v1/silos/" + SILOS[0]).json()
    assert silo["upload_bytes"] == 3000
    assert [s["id"] for s in items(server.get("/api/v1/silos?limit=2"))] == SILOS


def test_checkpoints_and_their_files(server):
    checkpoints = items(server.get(BASE + "/checkpoints"))
    assert [(c["number"], c["kept"]) for c in checkpoints] == [(2, True), (1, False), (0, False)]
    assert server.get(BASE + "/checkpoints/1").json()["eval_loss"] == 5.0
    gone = server.get(BASE + "/checkpoints/1/weights")
    assert gone.status == 404 and gone.json()["code"] == "CHECKPOINT_REMOVED"
    whole = server.get(checkpoints[0]["url"])
    assert whole.status == 200 and whole.body == server.weights
    assert whole.header("ETag") == '"%s"' % sha256(server.weights)
    assert whole.header("Accept-Ranges") == "bytes"
    assert server.get(checkpoints[0]["url"], bulk=True).body == server.weights


def test_a_range_of_weights_is_206(server):
    url, n = BASE + "/checkpoints/2/weights", len(server.weights)
    etag = '"%s"' % sha256(server.weights)
    for asked, start, end in (("bytes=0-9", 0, 9), ("bytes=100-", 100, n - 1), ("bytes=-7", n - 7, n - 1),
                              ("bytes=5-%d" % (n + 50), 5, n - 1)):
        part = server.get(url, headers={"Range": asked})
        assert part.status == 206, asked
        assert part.header("Content-Range") == "bytes %d-%d/%d" % (start, end, n)
        assert part.body == server.weights[start:end + 1], asked
    outside = server.get(url, headers={"Range": "bytes=%d-" % n})
    assert outside.status == 416 and outside.header("Content-Range") == "bytes */%d" % n
    assert server.get(url, headers={"Range": "bytes=0-1,3-4"}).status == 200
    assert server.get(url, headers={"Range": "bytes=0-9", "If-Range": etag}).status == 206
    assert server.get(url, headers={"Range": "bytes=0-9", "If-Range": '"other"'}).status == 200
    assert server.get(url, headers={"If-None-Match": etag}).status == 304
    head = server.call("HEAD", url)
    assert head.status == 200 and head.header("Content-Length") == str(n)


def test_metrics_name_the_curves(server):
    metrics = {m["name"]: m for m in items(server.get(BASE + "/metrics"))}
    assert metrics["train_loss"]["silos"] and metrics["train_loss"]["count"] == 16
    assert metrics["eval_loss"]["count"] == 3 and metrics["eval_loss"]["last"] == 4.0 and metrics["eval_loss"]["max"] == 6.0
    assert abs(metrics["eval_ppl"]["min"] - math.exp(4)) < 1e-9
    assert metrics["upload_bytes"]["last"] == 4000 and not metrics["delta_norm"]["silos"]
    assert items(server.get("/api/v1/runs/%s/metrics" % OTHER)) == []


def test_events_both_ways(server):
    newest = items(server.get(BASE + "/events"))
    oldest = items(server.get(BASE + "/events?after=0-0"))
    assert newest == oldest[::-1] and [e["kind"] for e in oldest] == ["run_created", "run_started", "run_finished"]
    assert items(server.get(BASE + "/events?after=" + oldest[1]["id"])) == oldest[2:]


def test_events_without_chatter_go_back_further(server):
    def add(kind, count=1):
        psql("INSERT INTO event (kind, run_id, message) SELECT '%s', '%s', 'x' FROM generate_series(1, %d)" % (kind, OTHER, count))

    def kinds(query):
        return [e["kind"] for e in items(server.get("/api/v1/runs/%s/events%s" % (OTHER, query)))]
    add("run_paused")
    add("metrics_added", 60)
    add("silo_seen", 60)
    add("run_resumed")
    assert kinds("?limit=40") == ["run_resumed"] + 39 * ["silo_seen"]
    assert kinds("?limit=40&chatter=0")[:2] == ["run_resumed", "run_paused"]
    assert kinds("?limit=1000&chatter=0&after=0-0")[-2:] == ["run_paused", "run_resumed"]
    assert server.get("/api/v1/runs/%s/events?chatter=no" % OTHER).status == 400


def curve(server, query):
    answer = server.get("/api/v1/series?run=%s&%s" % (RUN, query))
    assert answer.status == 200, answer.body
    return answer.json()["series"]


def test_curves_lie_on_every_axis(server):
    loss = curve(server, "metric=eval_loss")
    assert len(loss) == 1 and loss[0]["xs"] == [0, 1, 2] and loss[0]["ys"] == [6, 5, 4] and loss[0]["smooth"] is None
    assert curve(server, "metric=eval_loss&x=step")[0]["xs"] == [0, 4, 8]
    assert curve(server, "metric=eval_loss&x=tokens")[0]["xs"] == [0, 1024, 2048]
    assert curve(server, "metric=eval_loss&x=bytes")[0]["xs"] == [0, 6000, 14000 - 0]
    times = curve(server, "metric=eval_loss&x=time")[0]["xs"]
    assert times == sorted(times) and times[0] > 1.5e9
    assert max(abs(x) for x in curve(server, "metric=eval_loss&x=elapsed")[0]["xs"]) < 3600
    ppl = curve(server, "metric=eval_ppl")[0]["ys"]
    assert [round(math.log(y), 9) for y in ppl] == [6, 5, 4]
    assert curve(server, "metric=delta_norm&x=tokens")[0]["ys"] == [1.5, 1.5]
    assert curve(server, "metric=upload_bytes")[0]["ys"] == [2000, 4000]


def test_dense_curves_average_silos_and_split_by_silo(server):
    mean = curve(server, "metric=train_loss&x=step")[0]
    assert mean["xs"] == list(range(1, 9)) and abs(mean["ys"][0] - 5.9) < 1e-9 and mean["silo"] is None
    each = curve(server, "metric=train_loss&x=round&silo=all")
    assert [s["silo_name"] for s in each] == ["fixture-1", "fixture-2"] and each[0]["xs"][3] == 1
    one = curve(server, "metric=train_loss&x=step&silo=" + SILOS[1])
    assert len(one) == 1 and abs(one[0]["ys"][0] - 5.8) < 1e-9
    assert [s["ys"] for s in curve(server, "metric=eval_loss&silo=all")] == [[4, 4], [4.2, 4.2]]
    assert curve(server, "metric=aggregate_s&silo=all") == []


def test_smoothing_and_thinning(server):
    smooth = curve(server, "metric=train_loss&x=step&smooth=0.5")[0]
    assert abs(smooth["smooth"][0] - smooth["ys"][0]) < 1e-9 and smooth["smooth"][-1] > smooth["ys"][-1]
    thin = curve(server, "metric=train_loss&x=step&points=3")[0]
    assert thin["points"] == 8 and thin["shown"] == 3 and thin["xs"][0] == 1 and thin["xs"][-1] == 8
    assert max(thin["maxs"]) == max(curve(server, "metric=train_loss&x=step")[0]["ys"])
    window = curve(server, "metric=train_loss&x=step&from=3&to=5")[0]
    assert window["xs"] == [3, 4, 5]
    assert curve(server, "metric=eval_loss&x=tokens&scale=log")[0]["xs"] == [1024, 2048]  # no place for 0


def test_csv_holds_every_point(server):
    answer = server.get("/api/v1/series.csv?run=%s&metric=train_loss&x=step&points=2&silo=all" % RUN)
    rows = list(csv.reader(io.StringIO(answer.body.decode(), newline="")))
    assert rows[0] == ["run", "run_name", "silo", "silo_name", "step", "train_loss"] and len(rows) == 17
    assert b"\r\n" in answer.body and "attachment" in answer.header("Content-Disposition")


def test_series_of_a_run_that_is_not_there_is_404(server):
    for path in ("/api/v1/series", "/api/v1/series.csv"):
        assert server.get("%s?run=r_%s&metric=eval_loss" % (path, NOBODY)).status == 404


def test_diff_shows_only_what_differs(server):
    rows = items(server.get("/api/v1/diff?run=%s,%s" % (RUN, OTHER)))
    assert rows == [{"key": "inner.lr", "values": [0.001, 0.002]}, {"key": "name", "values": ["fixture-a", "fixture-b"]}]
    assert items(server.get("/api/v1/diff?run=%s,%s" % (RUN, RUN))) == []
    assert server.get("/api/v1/diff?run=%s,r_%s" % (RUN, NOBODY)).status == 404


def test_experiments_group_runs(server):
    found = {e["name"]: e["runs"] for e in items(server.get("/api/v1/experiments"))}
    assert found["fixtures"] == 2


def test_a_run_is_planned_created_paused_and_stopped(server):
    spec = dict(SPEC, name="made-here")
    plan = server.post("/api/v1/runs?dry_run=1", spec).json()
    assert plan["params"] > 100000 and plan["checkpoint_bytes"] > 4 * plan["params"]
    assert plan["tokens"] == 2 * plan["tokens_per_round"] == 2 * 4 * 2 * 64 * 2
    assert not [r for r in items(server.get("/api/v1/runs")) if r["name"] == "made-here"]
    made = server.post("/api/v1/runs", spec)
    assert made.status == 201
    url = made.header("Location")
    assert url == "/api/v1/runs/" + made.json()["id"]
    again = server.post("/api/v1/runs", spec)
    assert again.status == 409 and again.json()["code"] == "NAME_TAKEN"
    refused = server.post(url + "/actions", {"action": "resume"})
    assert refused.status == 409 and refused.json()["code"] == "RUN_STATE" or refused.json()["state"] == "running"
    stopped = server.post(url + "/actions", {"action": "stop"})
    assert stopped.status == 200 and stopped.json()["state"] == "stopped" and stopped.json()["finished_at"]
    assert "stopped by" in stopped.json()["reason"]
    assert server.post(url + "/actions", {"action": "stop"}).status == 200  # the same answer again
    late = server.post(url + "/actions", {"action": "resume"})
    assert late.status == 409 and "stopped" in late.json()["detail"]

    def kinds():  # an event is listed once nothing older is being written
        return [e["kind"] for e in items(server.get(url + "/events?after=0-0"))]
    until("the stop to be listed", lambda: "run_stopped" in kinds())
    assert kinds()[0] == "run_created" and kinds().count("run_stopped") == 1


def test_a_key_makes_a_repeated_change_harmless(server):
    spec = dict(SPEC, name="made-once")
    key = {"Idempotency-Key": "5a1c-1"}
    first = server.post("/api/v1/runs", spec, headers=key)
    assert first.status == 201
    again = server.post("/api/v1/runs", spec, headers=key)
    assert (again.status, again.body, again.header("Location")) == (201, first.body, first.header("Location"))
    other = server.post("/api/v1/runs", dict(spec, seed=1), headers=key)
    assert other.status == 422 and other.json()["code"] == "KEY_REUSED"
    taken = {"Idempotency-Key": "5a1c-2"}
    assert server.post("/api/v1/runs", spec, headers=taken).status == 409  # refused: the key stays free
    assert server.post("/api/v1/runs", dict(spec, name="made-twice"), headers=taken).status == 201
    url = first.header("Location") + "/actions"
    stop = server.post(url, {"action": "stop"}, headers={"Idempotency-Key": "5a1c-3"})
    assert stop.status == 200 and server.post(url, {"action": "stop"}, headers={"Idempotency-Key": "5a1c-3"}).body == stop.body
    for bad in ("", "a b", "x" * 129):
        assert server.post("/api/v1/runs", spec, headers={"Idempotency-Key": bad}).status == 400, bad
    psql("UPDATE idempotency_key SET created_at = created_at - interval '47 hours' WHERE key = '5a1c-1'")
    assert server.post("/api/v1/runs", spec, headers=key).body == first.body
    psql("UPDATE idempotency_key SET created_at = created_at - interval '2 days' WHERE key = '5a1c-1'")
    assert server.post("/api/v1/runs", spec, headers=key).status in (201, 409), "a key past its days stands in no way"
    for run in items(server.get("/api/v1/runs?q=made-twice")):
        server.post("/api/v1/runs/%s/actions" % run["id"], {"action": "stop"})


def test_a_paused_run_is_resumed_and_paused(server):
    url = "/api/v1/runs/%s/actions" % OTHER
    assert server.post(url, {"action": "resume"}).json()["state"] == "running"
    assert server.post(url, {"action": "pause"}).json()["state"] == "paused"


def test_a_run_without_a_name_gets_one(server):
    spec = {k: v for k, v in SPEC.items() if k != "name"}
    made = server.post("/api/v1/runs", spec).json()
    assert made["name"].startswith("run-")
    server.post("/api/v1/runs/%s/actions" % made["id"], {"action": "stop"})


def test_a_wrong_spec_is_422_with_pointers_and_a_hint(server):
    spec = json.loads(json.dumps(SPEC))
    spec["federation"]["local_steps"] = 0
    spec["inner"]["optimiser"] = "adamw"
    for query in ("", "?dry_run=1"):
        answer = server.post("/api/v1/runs" + query, spec)
        problem = answer.json()
        assert answer.status == 422 and problem["code"] == "BAD_SPEC" and problem["hint"]
        pointers = {e["pointer"] for e in problem["errors"]}
        assert pointers == {"/federation/local_steps", "/inner/optimiser"}, pointers
    assert server.post("/api/v1/runs?dry_run=2", SPEC).status == 400
    for action in ("fly", 7, None):
        answer = server.post("/api/v1/runs/%s/actions" % OTHER, {"action": action})
        assert answer.status == 422 and answer.json()["errors"][0]["pointer"] == "/action"


def test_a_silo_is_paused_resumed_and_revoked(server):
    psql("INSERT INTO silo (id, name) VALUES ('s_0000000000000000000000000X', 'short-lived')")
    url = "/api/v1/silos/s_0000000000000000000000000X/actions"
    assert server.post(url, {"action": "pause"}).json()["status"] == "paused"
    assert server.post(url, {"action": "pause"}).status == 200
    assert server.post(url, {"action": "resume"}).json()["state"] == "active"
    assert server.post(url, {"action": "revoke"}).json()["state"] == "revoked"
    late = server.post(url, {"action": "resume"})
    assert late.status == 409 and late.json()["code"] == "SILO_STATE"
    assert server.post(url, {"action": "dance"}).status == 422


def test_a_token_is_made_shown_once_and_revoked(server):
    made = server.post("/api/v1/tokens", {"role": "viewer", "name": "visitor", "ttl_s": 600})
    assert made.status == 201 and made.header("Cache-Control") == "no-store"
    token = made.json()
    assert server.get("/api/v1/me", token=token["secret"]).json() == {"role": "viewer", "name": "visitor"}
    listed = [t for t in items(server.get("/api/v1/tokens?limit=1000")) if t["id"] == token["id"]]
    assert listed and "secret" not in listed[0] and listed[0]["last_used_at"]
    assert server.call("DELETE", "/api/v1/tokens/" + token["id"]).status == 204
    assert server.get("/api/v1/me", token=token["secret"]).status == 401
    assert server.call("DELETE", "/api/v1/tokens/" + token["id"]).status == 204  # the same again
    for wish in ({"role": "silo", "name": "x"}, {"role": "viewer"}, {"name": "x"}, {"role": "join", "name": "Not Plain"},
                 {"role": "viewer", "name": ""}, {"role": "viewer", "name": "a\nb"}, {"role": "viewer", "name": "x" * 64},
                 {"role": "viewer", "name": "x", "ttl_s": 59}, {"role": "viewer", "name": "x", "ttl_s": 2592001},
                 {"role": "viewer", "name": "x", "ttl_s": "600"}):
        assert server.post("/api/v1/tokens", wish).status == 422, wish


@thrice
def test_a_token_revoked_or_expired_behind_our_back_is_refused_within_a_second(server):
    for change in ("revoked_at = clock_timestamp()", "expires_at = clock_timestamp()"):
        token = server.post("/api/v1/tokens", {"role": "viewer", "name": "soon gone"}).json()
        assert server.get("/api/v1/me", token=token["secret"]).status == 200
        psql("UPDATE token SET %s WHERE id = '%s'" % (change, token["id"]))
        soon("the token to be refused", lambda: server.get("/api/v1/me", token=token["secret"]).status == 401)


def test_no_secret_is_stored(server):
    token = server.post("/api/v1/tokens", {"role": "viewer", "name": "hashed"}).json()
    rows = psql("SELECT encode(hash, 'hex') FROM token WHERE id = '%s'" % token["id"])
    assert rows == [[sha256(token["secret"].encode())]]


def test_login_gives_a_cookie_that_needs_our_origin_to_write(server):
    assert server.post("/api/v1/login", {"token": "pht_" + "A" * 43}, token=None).status == 401
    join = server.post("/api/v1/tokens", {"role": "join", "name": "no-page"}).json()["secret"]
    assert server.post("/api/v1/login", {"token": join}, token=None).status == 403
    answer = server.post("/api/v1/login", {"token": server.token}, token=None)
    assert answer.status == 204
    cookie = answer.header("Set-Cookie")
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and server.token not in cookie
    sent = {"Cookie": "other=1; " + cookie.split(";")[0]}
    assert server.get("/api/v1/me", token=None, headers=sent).json()["role"] == "admin"
    body = {"role": "viewer", "name": "by cookie"}
    origin = "http://127.0.0.1:%d" % server.port
    for headers, status in (({}, 403), ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403),
                            ({"Origin": "https://127.0.0.1:%d" % server.port}, 403), ({"Origin": origin}, 201)):
        assert server.post("/api/v1/tokens", body, token=None, headers={**sent, **headers}).status == status, headers
    assert server.call("DELETE", "/api/v1/login", token=None, headers=sent).status == 403
    out = server.call("DELETE", "/api/v1/login", token=None, headers={**sent, "Origin": origin})
    assert out.status == 204 and "Max-Age=0" in out.header("Set-Cookie")
    assert server.get("/api/v1/me", token=None, headers=sent).status == 401
    assert server.call("DELETE", "/api/v1/login", token=None).status == 204  # nobody may log out too


def test_what_a_proxy_says_in_tls_stays_there(server):
    """Behind a proxy that speaks TLS the cookie is for TLS alone, and browsers are told to stay with it."""
    plain = server.post("/api/v1/login", {"token": server.token}, token=None)
    assert "Secure" not in plain.header("Set-Cookie") and not plain.header("Strict-Transport-Security")
    behind = Server.beside(server)
    behind.start("--public-url", "https://agg.example.org")
    try:
        answer = behind.post("/api/v1/login", {"token": server.token}, token=None)
        assert answer.status == 204 and answer.header("Set-Cookie").endswith("; Secure"), answer.header("Set-Cookie")
        assert answer.header("Strict-Transport-Security") == "max-age=31536000"
    finally:
        behind.stop()


def test_a_session_dies_with_its_token(server):
    token = server.post("/api/v1/tokens", {"role": "viewer", "name": "browser"}).json()
    cookie = server.post("/api/v1/login", {"token": token["secret"]}, token=None).header("Set-Cookie").split(";")[0]
    assert server.get("/api/v1/me", token=None, headers={"Cookie": cookie}).status == 200
    server.call("DELETE", "/api/v1/tokens/" + token["id"])
    assert server.get("/api/v1/me", token=None, headers={"Cookie": cookie}).status == 401


def test_prometheus_text_is_well_formed(server):
    answer = server.get("/metrics")
    assert answer.header("Content-Type").startswith("text/plain; version=0.0.4")
    typed, seen = {}, set()
    for line in answer.body.decode().splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name not in typed, "%s is typed twice" % name
            typed[name] = kind
        elif not line.startswith("#"):
            key, value = line.rsplit(" ", 1)
            float(value)
            assert key not in seen, "%s twice" % key
            seen.add(key)
            family = key.split("{")[0]
            assert any(family == n or family in (n + "_bucket", n + "_sum", n + "_count") for n in typed), family
    assert typed["photon_http_requests_total"] == "counter"
    assert 'photon_silos{state="gone"} 2' in answer.body.decode()
    assert typed["photon_db_connections"] == "gauge"
    assert {'photon_db_connections{pool="%s",state="%s"}' % (p, s) for p in ("control", "bulk") for s in ("busy", "idle")} <= seen


def test_health_readiness_version(server):
    assert server.get("/healthz", token=None).json() == {"status": "ok"}
    assert server.get("/healthz", token=None, bulk=True).status == 200
    assert server.get("/readyz", token=None).json()["status"] == "ready"
    assert server.get("/version", token=None).json()["protocol"] == 1
