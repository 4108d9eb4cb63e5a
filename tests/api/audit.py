"""The audit log: who changed what, written with the change itself, and refusals in a trickle."""

from fixture import OTHER, RUN, SPEC
from kit import Server, psql, until
from silo_client import PROTOCOL


def rows(server, query="", **options):
    answer = server.get("/api/v1/audit?limit=1000" + query, **options)
    assert answer.status == 200, answer.body
    return answer.json()["items"]


def newest(server, action):
    found = rows(server, "&action=" + action)
    assert found, "no row of " + action
    return found[0]


def count():
    return int(psql("SELECT count(*) FROM audit")[0][0])


def test_each_change_has_its_row_with_who_where_and_what(server):
    me = psql("SELECT id FROM token WHERE name = 'first admin'")[0][0]
    made = server.post("/api/v1/runs", dict(SPEC, name="audited"))
    run = made.json()["id"]
    row = newest(server, "run_create")
    assert (row["object"], row["status"], row["token"], row["role"], row["name"], row["address"]) == (
        run, 201, me, "admin", "first admin", "127.0.0.1")
    assert row["request"] == made.header("X-Request-Id") and row["left_out"] == 0
    for action in ("pause", "resume"):
        server.post("/api/v1/runs/%s/actions" % OTHER, {"action": "resume" if action == "pause" else "pause"})
        row = newest(server, "run_" + ("resume" if action == "pause" else "pause"))
        assert row["object"] == OTHER and row["status"] == 200
    server.post("/api/v1/runs/%s/actions" % run, {"action": "stop"})
    assert newest(server, "run_stop")["object"] == run


def test_tokens_logins_and_joins_have_rows_and_no_secrets(server):
    token = server.post("/api/v1/tokens", {"role": "viewer", "name": "watched"}).json()
    assert newest(server, "token_create")["object"] == token["id"]
    login = server.call("POST", "/api/v1/login", {"token": token["secret"]}, token=None)
    assert login.status == 204
    row = newest(server, "login")
    assert (row["token"], row["role"], row["name"], row["status"]) == (token["id"], "viewer", "watched", 204)
    cookie = login.header("Set-Cookie").split(";")[0]
    origin = {"Cookie": cookie, "Origin": "http://127.0.0.1:%d" % server.port, "Host": "127.0.0.1:%d" % server.port}
    assert server.call("DELETE", "/api/v1/login", token=None, headers=origin).status == 204
    assert newest(server, "logout")["token"] == token["id"]
    assert server.call("DELETE", "/api/v1/tokens/" + token["id"]).status == 204
    assert newest(server, "token_revoke")["object"] == token["id"]

    join = server.post("/api/v1/tokens", {"role": "join", "name": "audited-silo"}).json()
    joined = server.post("/silo/v1/join", {"name": "audited-silo"}, token=join["secret"], headers=PROTOCOL).json()
    row = newest(server, "silo_join")
    assert (row["object"], row["token"], row["role"]) == (joined["silo"], join["id"], "join")
    server.post("/api/v1/silos/%s/actions" % joined["silo"], {"action": "revoke"})
    assert newest(server, "silo_revoke")["object"] == joined["silo"]
    text = psql("SELECT string_agg(a::text, ' ') FROM audit a")[0][0]
    for secret in (token["secret"], join["secret"], joined["token"], cookie.split("=")[1], server.token):
        assert secret not in text and secret[4:] not in text


def test_what_changes_nothing_has_no_row(server):
    before = count()
    server.get("/api/v1/runs")
    server.post("/api/v1/runs?dry_run=1", SPEC)
    server.post("/api/v1/runs/%s/actions" % OTHER, {"action": "pause"})  # it is paused already
    assert count() == before
    key = {"Idempotency-Key": "audit-once"}
    for _ in range(2):
        assert server.post("/api/v1/runs/%s/actions" % OTHER, {"action": "resume"}, headers=key).status == 200
    assert count() == before + 1
    server.post("/api/v1/runs/%s/actions" % OTHER, {"action": "pause"})


def test_weights_that_leave_have_one_row_an_hour(server):
    url = "/api/v1/runs/%s/checkpoints/2/weights" % RUN
    psql("BEGIN; SET LOCAL session_replication_role = replica; DELETE FROM audit WHERE action = 'checkpoint_download'; COMMIT")
    for headers in ({}, {"Range": "bytes=0-9"}, {"Range": "bytes=10-"}):
        server.get(url, headers=headers)
    server.call("HEAD", url)
    assert [r["object"] for r in rows(server, "&action=checkpoint_download")] == [RUN + "/2"]


def test_the_row_and_the_change_are_there_together_or_not_at_all(server):
    psql("ALTER TABLE audit ADD CONSTRAINT audit_for_once CHECK (action <> 'token_create') NOT VALID")
    try:
        answer = server.post("/api/v1/tokens", {"role": "viewer", "name": "never-made"})
        assert answer.status == 500, answer.body
        assert psql("SELECT count(*) FROM token WHERE name = 'never-made'") == [["0"]]
        assert psql("SELECT count(*) FROM event WHERE message LIKE '%never-made%'") == [["0"]]
    finally:
        psql("ALTER TABLE audit DROP CONSTRAINT audit_for_once")


def test_refusals_come_in_a_trickle_and_what_is_left_out_is_counted(server):
    """On a server of its own: others have used up this one's burst."""
    other = Server.beside(server)
    other.start()
    try:
        since = psql("SELECT coalesce(max(id), 0) FROM audit")[0][0]
        mine = "SELECT %s FROM audit WHERE id > " + since
        refused = other.post("/api/v1/runs/%s/actions" % RUN, {"action": "resume"})
        assert refused.status == 409
        assert psql(mine % "action, object, role, status") == [["run_resume", RUN, "admin", "409"]]
        viewer = other.post("/api/v1/tokens", {"role": "viewer", "name": "peeper"}).json()
        assert other.post("/api/v1/tokens", {"role": "admin", "name": "x"}, token=viewer["secret"]).status == 403
        assert psql(mine % "token_id, object" + " AND status = 403") == [[viewer["id"], "POST /api/v1/tokens"]]
        assert other.get("/api/v1/runs", token=None).status == 401  # a page before its login: nobody was refused
        for _ in range(30):
            assert other.get("/api/v1/me", token="pht_" + "A" * 43).status == 401
        strangers = psql(mine % "role, address, action, object, left_out" + " AND status = 401")
        assert len(strangers) == 20 and set(map(tuple, strangers)) == {
            ("nobody", "127.0.0.1", "access", "GET /api/v1/me", "0")}
        # Their noise hides nobody who has a token.
        assert other.post("/api/v1/tokens", {"role": "admin", "name": "x"}, token=viewer["secret"]).status == 403
        assert psql(mine % "count(*)" + " AND status = 403") == [["2"]]
    finally:
        other.stop()


def test_old_rows_are_forgotten_and_young_ones_never(server):
    psql("INSERT INTO audit (role, name, address, action, object, status, request, at) VALUES"
         " ('nobody', 'x', '', 'old', '', 401, '', clock_timestamp() - interval '500 days'),"
         " ('nobody', 'x', '', 'older', '', 401, '', clock_timestamp() - interval '399 days')")
    other = Server.beside(server)
    other.start()
    try:
        until("the old row to be forgotten", lambda: not rows(server, "&action=old"))
        assert rows(server, "&action=older")
    finally:
        other.stop()
    for bad in ("89", "-1", "x"):
        assert other.refuses("--audit-days", bad) == 2


def test_wrong_filters_are_400(server):
    for query in ("action=Run", "token=r_1", "cursor=x", "cursor=9999999999999999999", "limit=0"):
        assert server.get("/api/v1/audit?" + query).status == 400, query
    server.post("/api/v1/tokens", {"role": "viewer", "name": "filtered"})
    me = psql("SELECT id FROM token WHERE name = 'first admin'")[0][0]
    assert {r["token"] for r in rows(server, "&token=" + me)} == {me}
