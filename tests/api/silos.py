"""The silo routes over the real server: joining, tasks and leases, uploads, downloads; sound and hostile."""

import hashlib
import json
import math
import os
import random
import re
import select
import socket
import struct
import subprocess
import threading
import time

from kit import in_time, psql, thrice, until
from silo_client import BOUNDARY, PROTOCOL, Silo, code, crc32c, spec

counter = [0]
before = []


def fresh_name(what):
    counter[0] += 1
    return "%s-%d" % (what, counter[0])


def other_runs_off(server, keep=None):
    """Also those that would begin to run some time later, read first: one that begins meanwhile is in the second list.
    The fixture's own stay as they are."""
    for state in ("created", "running"):
        for run in server.get("/api/v1/runs?state=" + state).json()["items"]:
            if run["id"] != keep and (state == "running" or not run["id"].startswith("r_00")):
                server.post("/api/v1/runs/%s/actions" % run["id"], {"action": "stop"})


def begin(server, silos=1, **federation):
    """A run of its own with silos that only it needs; (run, [silos])."""
    if not before:
        before.append(psql("SELECT * FROM invariant_broken"))
    other_runs_off(server)
    psql("UPDATE silo SET seen_at = clock_timestamp() - interval '1 hour', gone = true")
    made = [Silo(server, fresh_name("silo")) for _ in range(silos)]
    for s in made:
        assert s.hello().status == 200
    federation.setdefault("silos_per_round", silos)
    federation.setdefault("min_silos", silos)
    answer = server.post("/api/v1/runs", spec(fresh_name("run"), **federation))
    assert answer.status == 201, answer.body
    return answer.json()["id"], made


def no_violations():
    """Beside those that the fixture's rows, put into the tables by hand, had from the start."""
    new = [v for v in psql("SELECT * FROM invariant_broken") if v not in before[0]]
    assert new == [], new


# ---- limits ----

def test_one_silo_holds_a_few_polls_and_no_more(server):
    other_runs_off(server)
    silo = Silo(server, fresh_name("silo"))
    body = json.dumps({"agent": silo.agent, "wait_s": 20})
    ask = ("POST /silo/v1/tasks/claim HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nPhoton-Protocol: 1\r\n"
           "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (silo.token, len(body), body)).encode()
    polls, heard = [], {}

    def poll():
        polls.append(socket.create_connection(("127.0.0.1", server.port), timeout=30))
        polls[-1].sendall(ask)

    def answers(wait_s=0.1):
        for s in select.select(polls, [], [], wait_s)[0]:
            heard[s] = heard.get(s, "") + s.recv(4096).decode()
        return [text for text in heard.values() if text]

    def refused():
        if not answers(1):
            poll()  # one of the others was just looked at again, which makes room for a moment
        return answers()
    try:
        for _ in range(9):
            poll()
        first = until("one poll too many to be refused", refused, 10)
        assert all(" 429 " in text.split("\r\n")[0] and "Retry-After" in text for text in first), first
        revoked = server.post("/api/v1/silos/%s/actions" % silo.id, {"action": "revoke"})
        assert revoked.status == 200
        until("the other polls to hear that the silo was revoked", lambda: len(answers()) == len(polls))
        told = sorted(text.split(" ")[1] for text in answers())
        assert set(told) == {"401", "429"} and told.count("401") >= 8, told
    finally:
        for s in polls:
            s.close()


ASKS_AT_ONCE, ASKS_PER_S = 200, 20  # server/http_who.c


def test_a_silo_that_asks_without_pause_is_told_to_wait_and_no_other_is(server):
    _, (ash,) = begin(server, 1)
    other = Silo(server, fresh_name("silo"))
    task = ash.task()
    data, tokens = ash.update(task)
    upload = ash.create(task, data, tokens).json()["upload"]
    answers = []
    began = time.monotonic()

    def ask():  # what is wrong counts too
        while time.monotonic() < began + 20 and not [a for a in answers if a.status == 429]:
            answers.append(ash.post("/hello", {}))
    threads = [threading.Thread(target=ask) for _ in range(8)]
    ash.check = False  # to look at each answer would take longer than to get it
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    ash.check = True
    came_back = ASKS_PER_S * (time.monotonic() - began)
    passed = sum(a.status == 422 for a in answers)
    waits = [a for a in answers if a.status == 429]
    assert waits and passed + len(waits) == len(answers), {a.status for a in answers}
    assert ASKS_AT_ONCE - 10 <= passed <= ASKS_AT_ONCE + came_back, (passed, came_back)
    assert {code(a) for a in waits} == {"LIMIT"}
    for answer in {a.status: a for a in answers}.values():
        server.check_head(answer)
        server.api.check("POST", "/silo/v1/hello", answer)
    assert other.hello().status == 200
    assert ash.get("/uploads/" + upload).status == 200  # what changes nothing, and bytes on their way, are not counted
    assert ash.chunk(task, upload, data, 0).status == 200
    until("the silo to be let in again", lambda: ash.finish(task, upload).status == 200)


def test_a_silo_has_no_more_than_so_many_curves_in_a_run(server):
    run, (ash,) = begin(server, 1)
    task = ash.task()

    def send(first, last):
        points = [{"step": 0, "name": "curve_%d" % i, "value": 1.0} for i in range(first, last + 1)]
        return ash.post("/tasks/%s/metrics" % task["task"], {"epoch": task["lease"]["epoch"], "points": points})
    assert send(1, 60).json() == {"stored": 60}
    over = send(58, 65)
    assert over.status == 422 and code(over) == "TOO_MANY_NAMES", over.body
    more = send(58, 64)
    assert more.json() == {"stored": 4}, more.body
    again = send(1, 64)
    assert again.json() == {"stored": 0}, again.body
    assert code(send(65, 65)) == "TOO_MANY_NAMES"
    assert psql("SELECT count(DISTINCT name) FROM metric WHERE run_id = '%s' AND silo_id = '%s' AND name LIKE 'curve%%'"
                % (run, ash.id)) == [["64"]]


# ---- joining ----

def test_a_join_token_makes_one_silo(server):
    silo = Silo(server, fresh_name("silo"))
    assert silo.hello().status == 200
    again = silo.join()
    assert again.status == 409 and code(again) == "TOKEN_USED"


def test_a_lost_join_reply_costs_nothing(server):
    silo = Silo(server, fresh_name("silo"))
    lost = silo.token
    again = silo.join()
    assert again.status == 201 and again.json()["silo"] == silo.id
    silo.token = again.json()["token"]
    assert silo.hello().status == 200
    assert silo.post("/tasks/claim", {"agent": "x", "wait_s": 0}, token=lost).status == 401


def test_a_join_token_that_is_exchanged_without_pause_is_told_to_wait(server):
    token = server.post("/api/v1/tokens", {"role": "join", "name": fresh_name("eager")}).json()
    name, answers = token["name"], []
    for _ in range(30):  # each would leave a token and two rows
        answers.append(server.post("/silo/v1/join", {"name": name}, token=token["secret"], headers=PROTOCOL))
    done = [a for a in answers if a.status == 201]
    waits = [a for a in answers if a.status == 429]
    assert 20 <= len(done) < 30 and len(done) + len(waits) == 30, {a.status for a in answers}
    assert code(waits[0]) == "LIMIT" and waits[0].header("Retry-After")
    assert psql("SELECT count(*) FROM token WHERE name = '%s' AND role = 'silo'" % name) == [[str(len(done))]]


def test_a_used_join_token_stays_used_when_its_silos_token_is_revoked(server):
    silo = Silo(server, fresh_name("silo"))
    assert silo.hello().status == 200
    (row,) = psql("SELECT id FROM token WHERE role = 'silo' AND silo_id = '%s'" % silo.id)
    assert server.call("DELETE", "/api/v1/tokens/" + row[0]).status == 204
    again = silo.join()
    assert again.status == 409 and code(again) == "TOKEN_USED", again.body
    fresh = server.post("/api/v1/tokens", {"role": "join", "name": silo.name}).json()["secret"]
    for _ in range(2):  # the reply of the first is lost
        answer = server.post("/silo/v1/join", {"name": silo.name}, token=fresh, headers=PROTOCOL)
        assert answer.status == 201 and answer.json()["silo"] == silo.id, answer.body


def test_a_join_token_is_for_the_name_it_was_made_for(server):
    silo = Silo(server, fresh_name("silo"))
    answer = silo.join("somebody-else")
    assert answer.status == 409 and code(answer) == "NAME_MISMATCH"


def test_a_join_token_speaks_nothing_else(server):
    silo = Silo(server, fresh_name("silo"))
    answer = silo.post("/hello", {}, token=silo.join_token)
    assert answer.status == 403
    answer = server.post("/silo/v1/hello", {}, headers=PROTOCOL)
    assert answer.status == 403, "an admin is no silo"
    assert server.get("/api/v1/runs", token=silo.token).status == 403


def test_another_protocol_is_refused(server):
    silo = Silo(server, fresh_name("silo"))
    for headers in ({"Photon-Protocol": "2"}, {"Photon-Protocol": ""}):
        answer = silo.post("/tasks/claim", {"agent": "x", "wait_s": 0}, headers=headers)
        assert answer.status == 409 and code(answer) == "PROTOCOL_MISMATCH"
    answer = silo.get("/blobs/" + "0" * 64, bulk=True, headers={"Photon-Protocol": "3"})
    assert answer.status == 409 and code(answer) == "PROTOCOL_MISMATCH"


def test_what_a_silo_says_of_itself_moves_no_terminal(server):
    silo = Silo(server, fresh_name("silo"))
    assert silo.hello(device="\x1b[2J\x1b]0;owned\x07 H200\u009b1m").status == 200
    device = next(s["device"] for s in server.get("/api/v1/silos").json()["items"] if s["name"] == silo.name)
    assert device.split() == ["[2J", "]0;owned", "H200", "1m"], repr(device)


def test_hello_says_where_bulk_is(server):
    silo = Silo(server, fresh_name("silo"))
    answer = silo.hello().json()
    assert answer["bulk_url"] == "http://127.0.0.1:%d" % server.bulk_port
    assert answer["silo"] == silo.id and answer["name"] == silo.name and answer["poll_s"] == 25


def test_what_is_unknown_or_missing_is_named(server):
    silo = Silo(server, fresh_name("silo"))
    for body, pointer in (({"agent": "x", "wait_s": 0, "wiat": 1}, "/wiat"), ({"wait_s": 0}, "/agent"),
                          ({"agent": 3}, "/agent"), ({"agent": "x", "wait_s": "1"}, "/wait_s")):
        answer = silo.post("/tasks/claim", body)
        assert answer.status == 422, answer.body
        assert answer.json()["errors"][0]["pointer"] == pointer, answer.body


# ---- tasks ----

def test_a_task_carries_what_its_silo_needs(server):
    run, (silo,) = begin(server)
    task = silo.task()
    assert task["run"] == run and task["round"] == 1 and task["slot"] == 0
    assert task["base"]["number"] == 0 and task["lease"]["seconds"] == 60
    plan = task["plan"]
    assert plan["global_step"] == 0 and plan["local_steps"] == 2 and plan["codec"] == "f32"
    data, _ = silo.update(task)
    assert plan["update_bytes"] == len(data)
    h = 0xcbf29ce484222325
    for c in silo.name.encode():
        h = ((h ^ c) * 0x100000001b3) & 0xffffffffffffffff
    assert plan["silo_ordinal"] == h & 0x7fffffff
    assert task["spec"]["model"]["d_model"] == 16


def test_a_whole_run_ends_finished(server):
    run, silos = begin(server, silos=2)
    for n in (1, 2):
        for silo in silos:
            task = silo.task()
            assert task["round"] == n and task["plan"]["global_step"] == 2 * (n - 1)
            answer = silo.train(task, seed=n)
            assert answer.status == 200 and answer.json() == {"accepted": True, "round": n}, answer.body
    assert psql("SELECT count(*) FROM update u JOIN round q ON q.id = u.round_id WHERE q.run_id = '%s'" % run) == [["4"]]

    def finished():
        for silo in silos:
            answer = silo.claim()
            if answer.status == 200:
                silo.evaluate(answer.json())
        return server.get("/api/v1/runs/" + run).json()["state"] == "finished"
    until("the run to finish", finished, 30)
    shown = server.get("/api/v1/runs/" + run).json()
    assert shown["round"] == 2 and shown["upload_bytes"] > 0 and shown["download_bytes"] > 0
    no_violations()


def test_claiming_again_gives_the_same_task_and_ends_the_old_epoch(server):
    _, (silo,) = begin(server)
    task = silo.task()
    again = silo.claim().json()
    assert again["task"] == task["task"] and again["lease"]["epoch"] == task["lease"]["epoch"] + 1
    beat = {"epoch": task["lease"]["epoch"], "step": 1, "phase": "train", "tokens_per_s": 10.0}
    answer = silo.post("/tasks/%s/heartbeat" % task["task"], beat)
    assert answer.status == 409 and code(answer) == "STALE_LEASE"
    beat["epoch"] += 1
    answer = silo.post("/tasks/%s/heartbeat" % task["task"], beat)
    assert answer.status == 200 and answer.json() == {"order": "continue", "lease_s": 60}
    no_violations()


def test_a_heartbeat_is_seen(server):
    run, (silo,) = begin(server)
    task = silo.task()
    silo.post("/tasks/%s/heartbeat" % task["task"],
              {"epoch": task["lease"]["epoch"], "step": 1, "phase": "train", "tokens_per_s": 123.5})
    shown = server.get("/api/v1/runs/%s/silos" % run).json()["items"]
    mine = [s for s in shown if s["id"] == silo.id][0]
    assert mine["status"] == "training" and mine["step"] == 1 and mine["tokens_per_s"] == 123.5


def test_another_silo_cannot_speak_for_a_task(server):
    _, (silo,) = begin(server)
    task = silo.task()
    thief = Silo(server, fresh_name("silo"))
    epoch = task["lease"]["epoch"]
    for path, body in (("heartbeat", {"epoch": epoch, "step": 0}), ("metrics", {"epoch": epoch, "points": [
            {"step": 1, "name": "train_loss", "value": 1.0}]})):
        answer = thief.post("/tasks/%s/%s" % (task["task"], path), body)
        assert answer.status == 409 and code(answer) == "STALE_LEASE", answer.body
    thief.post("/tasks/%s/release" % task["task"], {"epoch": epoch, "code": "oom", "detail": ""})
    answer = silo.post("/tasks/%s/heartbeat" % task["task"], {"epoch": epoch, "step": 0})
    assert answer.status == 200


def test_a_silo_may_forget_a_run_a_day_after_its_end(server):
    run, (silo,) = begin(server)
    silo.task()
    path = "/runs/" + run

    def fate():
        answer = silo.get(path)
        assert answer.status == 200, answer.body
        return answer.json()
    assert fate() == {"run": run, "state": "running", "forget": False}
    for action, state in (("pause", "paused"), ("stop", "stopped")):
        assert server.post("/api/v1/runs/%s/actions" % run, {"action": action}).status == 200
        assert fate() == {"run": run, "state": state, "forget": False}
    psql("UPDATE run SET finished_at = finished_at - interval '25 hours' WHERE id = '%s'" % run)
    assert fate() == {"run": run, "state": "stopped", "forget": True}
    stranger = Silo(server, fresh_name("silo"))
    assert stranger.get(path).status == 404, "it takes no part in it"
    assert silo.get("/runs/r_" + "0" * 26).status == 404 and silo.get("/runs/other").status == 404


def test_a_stopped_run_tells_its_silos(server):
    run, (silo,) = begin(server)
    task = silo.task()
    server.post("/api/v1/runs/%s/actions" % run, {"action": "stop"})
    answer = silo.post("/tasks/%s/heartbeat" % task["task"], {"epoch": task["lease"]["epoch"], "step": 0})
    assert answer.status == 410 and code(answer) == "RUN_STOPPED"


def test_a_paused_silo_finishes_and_rests(server):
    _, (silo,) = begin(server)
    task = silo.task()
    server.post("/api/v1/silos/%s/actions" % silo.id, {"action": "pause"})
    answer = silo.post("/tasks/%s/heartbeat" % task["task"], {"epoch": task["lease"]["epoch"], "step": 0})
    assert answer.json()["order"] == "drain"
    assert silo.train(task).status == 200
    assert silo.claim().status == 204


def test_metrics_are_stored_once(server):
    run, (silo,) = begin(server)
    task = silo.task()
    path = "/tasks/%s/metrics" % task["task"]
    points = [{"step": i, "name": n, "value": v} for i, n, v in ((1, "train_loss", 5.5), (2, "train_loss", 5.25),
                                                                 (2, "lr", None))]
    body = {"epoch": task["lease"]["epoch"], "points": points}
    assert silo.post(path, body).json() == {"stored": 2}
    assert silo.post(path, body).json() == {"stored": 0}
    rows = psql("SELECT points, last FROM metric_latest WHERE run_id = '%s' AND name = 'train_loss'" % run)
    assert rows == [["2", "5.25"]]
    bad = dict(body, points=[{"step": 3, "name": "train_loss", "value": 5.0}, {"step": 4, "name": "Bad Name", "value": 1}])
    assert silo.post(path, bad).status == 422
    assert psql("SELECT count(*) FROM metric WHERE run_id = '%s' AND step > 2" % run) == [["0"]], "all or nothing"
    many = dict(body, points=[{"step": i, "name": "x", "value": 1} for i in range(1001)])
    assert silo.post(path, many).status == 413


def test_points_of_a_batch_lie_between_the_batch_before_and_now(server):
    run, (silo,) = begin(server, local_steps=4)
    task = silo.task()
    path = "/tasks/%s/metrics" % task["task"]
    psql("UPDATE lease SET claimed_at = claimed_at - interval '40 s' WHERE task_id = '%s'" % task["task"])

    def send(*steps):
        points = [{"step": i, "name": "train_loss", "value": 6.0 - i} for i in steps]
        return silo.post(path, {"epoch": task["lease"]["epoch"], "points": points})

    def seconds(what, where=""):
        return [float(r[0]) for r in psql("SELECT extract(epoch FROM %s) %s" % (what, where))]
    (sent,) = seconds("clock_timestamp()")
    assert send(0, 1, 2, 3).json() == {"stored": 4}
    (told,) = seconds("clock_timestamp()")
    (claimed,) = seconds("claimed_at", "FROM lease WHERE task_id = '%s'" % task["task"])
    ats = seconds("at", "FROM metric WHERE run_id = '%s' AND name = 'train_loss' ORDER BY step" % run)
    gap = (ats[-1] - claimed) / 4
    assert sent <= ats[-1] <= told and gap >= 10, (sent, ats, told)
    assert all(abs(at - claimed - gap * i) < 0.001 for i, at in enumerate(ats, 1)), (claimed, ats)
    assert send(2, 3, 4).json() == {"stored": 1}
    rows = psql("SELECT at >= lag(at) OVER (ORDER BY step) FROM metric WHERE run_id = '%s' AND name = 'train_loss'" % run)
    assert [r[0] for r in rows[1:]] == ["t"] * 4, rows


def test_points_lie_in_the_round_of_their_task(server):
    """Else a silo could write all of a run's curves, later rounds' and earlier ones', with any lease that it ever had."""
    run, (silo,) = begin(server, rounds=3)

    def send(task, *steps):
        points = [{"step": i, "name": "loss_%d" % task["round"], "value": 6.0} for i in steps]
        answer = silo.post("/tasks/%s/metrics" % task["task"], {"epoch": task["lease"]["epoch"], "points": points})
        if answer.status == 422:
            return answer.json()["detail"]
        assert answer.status == 200, answer.body
        return answer.json()["stored"]
    first_look = silo.task("evaluate")
    assert send(first_look, 0) == 1
    assert send(first_look, 1) == "/points/0/step must be from 0 to 0, as it is of round 0"
    assert silo.evaluate(first_look).status == 200
    first = silo.task()
    assert send(first, 0, 1) == 2
    assert send(first, 2, 3) == "/points/1/step must be from 0 to 2, as it is of round 1"
    assert silo.train(first).status == 200
    second = silo.task()
    assert second["plan"]["global_step"] == 2
    assert send(second, 2, 3, 4) == 3
    assert send(second, 1) == "/points/0/step must be from 2 to 4, as it is of round 2"
    assert "from 2 to 4" in send(second, 5) and "from 2 to 4" in send(second, 7)
    assert send(first, 0, 1, 2) == 1, "late points are still true"
    assert "from 0 to 2" in send(first, 3)
    assert silo.train(second).status == 200
    assert psql("SELECT round, count(*) FROM metric WHERE run_id = '%s' AND name LIKE 'loss%%' GROUP BY 1 ORDER BY 1" % run) == [
        ["0", "1"], ["1", "3"], ["2", "3"]]
    no_violations()


def test_numbers_that_would_overflow_a_sum_are_refused(server):
    """One silo must not keep a round from closing: PostgreSQL refuses sums beyond a double."""
    run, silos = begin(server, 2, rounds=1)
    for s in silos:
        task = s.task("evaluate")
        assert s.evaluate(task, nll=1.7e308).status == 422
        assert s.evaluate(task, nll=1e30).status == 200
    for s in silos:
        task = s.task()
        data, tokens = s.update(task)
        for loss in (1.7e308, -1.7e308):
            answer = s.create(task, data, tokens, train_loss=loss)
            assert answer.status == 422 and b"/train_loss" in answer.body, answer.body
        assert s.create(task, data, tokens, train_loss=1e30).status == 201
        assert s.finish(task, s.send(task, data, tokens)).status == 200
        points = [{"step": 1, "name": "grad_norm", "value": 1.7e308}, {"step": 1, "name": "train_loss", "value": 5.0}]
        answer = s.post("/tasks/%s/metrics" % task["task"], {"epoch": task["lease"]["epoch"], "points": points})
        assert answer.json() == {"stored": 1}, answer.body
    until("the round to close", lambda: psql("SELECT state FROM round WHERE run_id = '%s'" % run) == [["closed"]], 20)
    assert server.get("/api/v1/runs/" + run).json()["initial_eval_loss"] > 1e29
    no_violations()


TINY = 5e-324  # half of it is 0


def test_numbers_too_small_to_divide_count_as_none(server):
    """One silo must not stop a run: PostgreSQL refuses quotients that underflow, and those that overflow."""
    for policy in ("fixed", "dylu"):
        run, silos = begin(server, 2, rounds=2, local_steps_policy=policy)
        for s in silos:
            task = s.task("evaluate")
            body = {"epoch": task["lease"]["epoch"], "nll": TINY, "tokens": 8, "bytes": 8, "seconds": TINY, "download_s": TINY}
            assert s.post("/tasks/%s/result" % task["task"], body).status == 200
        for number in (1, 2):
            for s in silos:
                task = s.task(timeout_s=10)
                assert task["round"] == number and task["plan"]["local_steps"] == 2, task
                points = [{"step": 2 * number, "name": "train_loss", "value": -TINY}]
                answer = s.post("/tasks/%s/metrics" % task["task"], {"epoch": task["lease"]["epoch"], "points": points})
                assert answer.json() == {"stored": 1}, answer.body
                data, tokens = s.update(task)
                more = {"train_loss": TINY, "timings": {"download_s": TINY, "train_s": TINY, "encode_s": TINY},
                        "coding": {"error": TINY, "residual_ratio": TINY, "fallback_share": TINY}}
                assert s.create(task, data, tokens, **more).status == 201
                upload = s.send(task, data, tokens)
                finish = {"epoch": task["lease"]["epoch"], "upload_s": TINY}
                assert s.post("/uploads/%s/finish" % upload, finish).status == 200
            until("round %d to close" % number, lambda n=number: server.get("/api/v1/runs/" + run).json()["round"] >= n, 10)
        assert server.get("/api/v1/runs/" + run).json()["initial_eval_loss"] == 0.0
        assert psql("SELECT DISTINCT train_s, upload_s, train_loss FROM task WHERE run_id = '%s' AND kind = 'train'" % run) == [
            ["0", "0", "0"]]
    no_violations()


def test_numbers_too_small_to_divide_that_are_there_already_stop_no_run(server):
    """Those that an older server took."""
    run, (ash,) = begin(server, rounds=3, local_steps_policy="dylu")
    task = ash.task("evaluate")
    assert ash.evaluate(task).status == 200
    until("the evaluation", lambda: server.get("/api/v1/runs/" + run).json()["initial_eval_loss"])
    psql("DELETE FROM metric WHERE run_id = '%s'" % run)
    psql("UPDATE checkpoint SET eval_nll = NULL, eval_tokens = NULL, eval_bytes = NULL, eval_silos = NULL"
         " WHERE run_id = '%s'" % run)
    psql("UPDATE task SET nll = %s WHERE id = '%s'" % (TINY, task["task"]))
    for number in (1, 2):
        assert ash.train(ash.task(timeout_s=10)).status == 200
        psql("UPDATE task SET train_s = 1e-320, download_s = 1e-320, upload_s = 1e-320 WHERE run_id = '%s' AND kind = 'train'"
             " AND state = 'done'" % run)
        until("round %d to close" % number, lambda n=number: server.get("/api/v1/runs/" + run).json()["round"] >= n, 10)
    assert psql("SELECT eval_loss FROM checkpoint WHERE run_id = '%s' AND number = 0" % run) == [["0"]]


def test_an_evaluation_that_cannot_be_recorded_stops_nothing_else(server):
    run, (ash,) = begin(server)
    psql("CREATE FUNCTION no_record() RETURNS trigger LANGUAGE plpgsql AS"
         " $$ BEGIN RAISE EXCEPTION 'not this one'; END $$;"
         "CREATE TRIGGER no_record BEFORE UPDATE OF eval_nll ON checkpoint FOR EACH ROW"
         " WHEN (NEW.run_id = '%s') EXECUTE FUNCTION no_record()" % run)
    try:
        for number in (1, 2):
            assert ash.train(ash.task(timeout_s=10)).status == 200
            until("round %d to close" % number, lambda n=number: server.get("/api/v1/runs/" + run).json()["round"] >= n, 10)
        assert server.get("/api/v1/runs/" + run).json()["state"] == "running", "an evaluation is missing"
    finally:
        psql("DROP TRIGGER no_record ON checkpoint; DROP FUNCTION no_record")
    assert ash.evaluate(until("the last evaluation", lambda: ash.claim(1).json())).status == 200
    until("the run to finish", lambda: server.get("/api/v1/runs/" + run).json()["state"] == "finished")
    no_violations()


def test_text_cut_within_a_character_is_stored_all_the_same(server):
    """The event's message quotes the first 120 bytes of the detail."""
    run, (silo,) = begin(server)
    task = silo.task()
    detail = "x" * 119 + "\u00e9" * 20
    answer = silo.post("/tasks/%s/release" % task["task"],
                       {"epoch": task["lease"]["epoch"], "code": "transient", "detail": detail})
    assert answer.status == 200, answer.body
    (row,) = psql("SELECT detail ->> 'detail' FROM event WHERE run_id = '%s' AND kind = 'task_released'" % run)
    assert row[0] == detail


def test_a_released_seat_comes_back(server):
    run, (silo,) = begin(server)
    task = silo.task()
    body = {"epoch": task["lease"]["epoch"], "code": "shutdown", "detail": "going down"}
    path = "/tasks/%s/release" % task["task"]
    assert silo.post(path, body).json() == {"released": True}
    assert silo.post(path, body).json() == {"released": True}
    again = silo.task()
    assert again["task"] == task["task"] and again["lease"]["epoch"] == task["lease"]["epoch"] + 1
    assert psql("SELECT attempt FROM task WHERE id = '%s'" % task["task"]) == [["1"]], "a shutdown is no failure"
    body.update(epoch=again["lease"]["epoch"], code="nonsense")
    assert silo.post(path, body).status == 422
    body["code"] = "diverged"
    assert silo.post(path, body).json() == {"released": True}
    assert psql("SELECT attempt, state FROM task WHERE id = '%s'" % task["task"]) == [["2", "pending"]]
    no_violations()


def test_a_seat_that_failed_goes_to_another_silo(server):
    _, silos = begin(server, silos=2, silos_per_round=1, min_silos=1)
    first, task = next((s, t.json()) for s in silos for t in [until("a seat", lambda s=s: any_claim(silos), 20)]
                       if t.status == 200 and json.loads(t.body)["kind"] == "train" and owner(t, silos) is s)
    other = [s for s in silos if s is not first][0]
    assert other.claim().status == 204
    first.post("/tasks/%s/release" % task["task"], {"epoch": task["lease"]["epoch"], "code": "oom", "detail": "8 GB"})
    taken = other.task()
    assert taken["task"] == task["task"]
    stale = first.post("/tasks/%s/heartbeat" % task["task"], {"epoch": task["lease"]["epoch"], "step": 0})
    assert stale.status == 409 and code(stale) == "STALE_LEASE"
    assert other.train(taken).status == 200
    no_violations()


def any_claim(silos):
    """The first training that one of them is given; evaluations are answered."""
    for s in silos:
        answer = s.claim()
        if answer.status == 200:
            if answer.json()["kind"] == "train":
                return answer
            s.evaluate(answer.json())
    return None


def owner(answer, silos):
    rows = psql("SELECT silo_id FROM task WHERE id = '%s'" % answer.json()["task"])
    return [s for s in silos if s.id == rows[0][0]][0]


def test_an_expired_lease_is_renewed_unless_somebody_took_it(server):
    _, (silo,) = begin(server)
    task = silo.task()
    psql("UPDATE task SET lease_until = clock_timestamp() - interval '5 s' WHERE id = '%s'" % task["task"])
    answer = silo.post("/tasks/%s/heartbeat" % task["task"], {"epoch": task["lease"]["epoch"], "step": 1})
    assert answer.status == 200
    assert psql("SELECT lease_until > clock_timestamp() FROM task WHERE id = '%s'" % task["task"]) == [["t"]]


def test_an_evaluation_counts_once(server):
    _, (silo,) = begin(server)
    task = silo.task("evaluate")
    assert task["plan"] == {"windows": 1} and task["base"]["number"] == task["round"]
    for _ in range(2):
        answer = silo.evaluate(task)
        assert answer.status == 200 and answer.json() == {"counted": True}, answer.body
    bad = dict(epoch=task["lease"]["epoch"], nll=None, tokens=7, bytes=7, seconds=1, download_s=1)
    assert silo.post("/tasks/%s/result" % task["task"], bad).status == 422


def test_an_evaluation_claims_no_more_tokens_than_its_plan(server):
    run, (silo,) = begin(server)
    task = silo.task("evaluate")
    most = task["plan"]["windows"] * task["spec"]["model"]["seq_len"]
    body = dict(epoch=task["lease"]["epoch"], nll=1e-310, bytes=7, seconds=1, download_s=1)
    for tokens, status in ((9007199254740991, 422), (most + 1, 422), (most, 200)):
        answer = silo.post("/tasks/%s/result" % task["task"], dict(body, tokens=tokens))
        assert answer.status == status and (status == 200 or code(answer) == "TOO_MANY_TOKENS"), answer.body
    assert psql("SELECT eval_tokens FROM task WHERE id = '%s'" % task["task"]) == [[str(most)]]


# ---- uploads ----

def test_an_upload_resumes_where_it_was(server):
    run, (silo,) = begin(server)
    task = silo.task()
    data, tokens = silo.update(task)
    created = silo.create(task, data, tokens)
    assert created.status == 201 and created.json()["offset"] == 0 and created.json()["state"] == "open"
    upload = created.json()["upload"]
    third = len(data) // 3
    assert silo.chunk(task, upload, data[:third], 0).json() == {"upload": upload, "offset": third}
    again = silo.create(task, data, tokens)
    assert again.status == 200 and again.json()["upload"] == upload and again.json()["offset"] == third
    shown = silo.get("/uploads/" + upload).json()
    assert shown["state"] == "open" and shown["offset"] == third and shown["bytes"] == len(data)
    assert shown["outcome"] is None

    early = silo.finish(task, upload)
    assert early.status == 409 and code(early) == "INCOMPLETE" and early.json()["offset"] == third
    repeat = silo.chunk(task, upload, data[:third], 0)
    assert repeat.status == 200 and repeat.json()["offset"] == third
    for offset in (0, third - 1, third + 1):
        wrong = silo.chunk(task, upload, data[offset:offset + third + 2], offset)
        assert wrong.status == 409 and code(wrong) == "OFFSET_MISMATCH" and wrong.json()["offset"] == third, wrong.body
    assert silo.chunk(task, upload, data[third:], third).json()["offset"] == len(data)

    for _ in range(2):
        answer = silo.finish(task, upload)
        assert answer.status == 200 and answer.json() == {"accepted": True, "round": 1}, answer.body
    assert silo.get("/uploads/" + upload).json()["outcome"] == {"accepted": True}
    assert psql("SELECT count(*) FROM update WHERE upload_id = '%s'" % upload) == [["1"]]
    assert psql("SELECT count(*) FROM event WHERE kind = 'update_accepted' AND run_id = '%s'" % run) == [["1"]]
    no_violations()


def test_a_chunk_that_is_not_what_it_said_changes_nothing(server):
    _, (silo,) = begin(server)
    task = silo.task()
    data, tokens = silo.update(task)
    upload = silo.create(task, data, tokens).json()["upload"]
    half = len(data) // 2
    wrong = silo.chunk(task, upload, data[:half], 0, digest="0" * 64)
    assert wrong.status == 422 and code(wrong) == "DIGEST_MISMATCH"
    shorter = silo.chunk(task, upload, data[:half], 0, size=half + 1)
    assert shorter.status == 422, shorter.body
    longer = silo.chunk(task, upload, data[:half], 0, size=half - 1)
    assert longer.status == 422, longer.body
    swapped = silo.chunk_body(data[:half], 0).replace(b'name="meta"', b'name="x"')
    assert silo.chunk(task, upload, None, 0, body=swapped).status == 422
    cut = silo.chunk_body(data[:half], 0)[:-20]
    assert silo.chunk(task, upload, None, 0, body=cut).status == 422
    for lease in ("", "t_x:1", task["task"], task["task"] + ":", task["task"] + ":x"):
        answer = silo.chunk(task, upload, data[:half], 0, **{"Photon-Lease": lease})
        assert answer.status == 422, answer.body
    stale = silo.chunk(task, upload, data[:half], 0, **{"Photon-Lease": task["task"] + ":99"})
    assert stale.status == 409 and code(stale) == "STALE_LEASE"
    assert silo.get("/uploads/" + upload).json()["offset"] == 0
    assert silo.chunk(task, upload, data, 0).status == 200
    assert silo.finish(task, upload).status == 200


def test_a_request_that_was_overtaken_writes_nothing(server):
    """It began first, is held up on its way, and goes on when a newer one is done: what is durable stays as it is."""
    _, (silo,) = begin(server)
    task = silo.task()
    data, tokens = silo.update(task)
    upload = silo.create(task, data, tokens).json()["upload"]
    half = len(data) // 2
    body = silo.chunk_body(b"\0" * half, 0)
    at = body.index(b"Content-Disposition: form-data; name=\"chunk\"")
    lines = ["POST /silo/v1/uploads/%s HTTP/1.1" % upload, "Host: x", "Content-Length: %d" % len(body),
             "Authorization: Bearer " + silo.token]
    lines += ["%s: %s" % item for item in silo.chunk_headers(task).items()]
    epoch = "SELECT writer_epoch FROM upload WHERE id = '%s'" % upload
    with socket.create_connection(("127.0.0.1", server.bulk_port), timeout=20) as s:
        s.sendall(("\r\n".join(lines) + "\r\n\r\n").encode() + body[:at])
        until("the older request to begin", lambda: psql(epoch) == [["1"]])
        assert silo.chunk(task, upload, data[:half], 0).json()["offset"] == half
        s.sendall(body[at:])
        answer = b""
        while b"UPLOAD_BUSY" not in answer:
            piece = s.recv(65536)
            assert piece, answer
            answer += piece
    assert silo.chunk(task, upload, data[half:], half).json()["offset"] == len(data)
    assert silo.finish(task, upload).status == 200


def test_a_crc_stands_for_the_digest_of_a_chunk(server):
    _, (silo,) = begin(server)
    task = silo.task()
    data, tokens = silo.update(task)
    upload = silo.create(task, data, tokens).json()["upload"]

    def send(piece, **digest):
        meta = json.dumps(dict({"offset": 0, "bytes": len(data)}, **digest)).encode()
        body = silo.chunk_body(piece, 0)
        begin, end = body.index(b"{"), body.index(b"}") + 1
        return silo.chunk(task, upload, piece, 0, body=body[:begin] + meta + body[end:])
    good = "%08x" % crc32c(data)
    assert code(send(data, crc32c="%08x" % (crc32c(data) ^ 1))) == "DIGEST_MISMATCH"
    assert code(send(data[:-1] + bytes([data[-1] ^ 1]), crc32c=good)) == "DIGEST_MISMATCH"
    for bad in (dict(crc32c=good.upper() + "0"), dict(crc32c=1), dict(crc32c=good, sha256=hashlib.sha256(data).hexdigest()), {}):
        assert code(send(data, **bad)) == "UNPROCESSABLE", bad
    assert send(data, crc32c=good).json()["offset"] == len(data)
    assert silo.finish(task, upload).status == 200


def test_a_chunk_cut_on_the_way_costs_nothing_but_the_chunk(server):
    _, (silo,) = begin(server)
    task = silo.task()
    data, tokens = silo.update(task)
    upload = silo.create(task, data, tokens).json()["upload"]
    body = silo.chunk_body(data, 0)
    head = "POST /silo/v1/uploads/%s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n" % (
        upload, silo.token, len(body))
    head += "".join("%s: %s\r\n" % h for h in silo.chunk_headers(task).items()) + "\r\n"
    held = []
    for cut in (300, len(body) // 2, len(body) - 1):
        s = socket.create_connection(("127.0.0.1", server.bulk_port))
        s.sendall(head.encode() + body[:cut])
        held.append(s)  # the peer neither goes on nor goes away
        until("the chunk to be begun", lambda: psql("SELECT writer_epoch FROM upload WHERE id = '%s'" % upload)
              == [[str(len(held))]])
        assert silo.get("/uploads/" + upload).json()["offset"] == 0
    assert silo.chunk(task, upload, data, 0).status == 200  # the newest one wins, whoever comes to the file last
    for s in held:
        s.close()
    assert silo.finish(task, upload).status == 200


def test_the_plan_bounds_an_upload(server):
    _, (silo,) = begin(server)
    task = silo.task()
    data, tokens = silo.update(task)
    for more, status, what in (({"bytes": len(data) + 1}, 413, "NOT_THE_PLANNED_SIZE"),
                               ({"bytes": 1 << 40}, 413, "NOT_THE_PLANNED_SIZE"),
                               ({"tokens": tokens + 1}, 422, "TOO_MANY_TOKENS"), ({"steps": 3}, 422, "TOO_MANY_TOKENS"),
                               ({"tokens": 0}, 422, None), ({"codec": "zip"}, 422, None), ({"sha256": "x"}, 422, None),
                               ({"train_loss": "low"}, 422, None), ({"timings": 3}, 422, None),
                               ({"coding": {"fallback_share": 2}}, 422, None), ({"coding": {"errors": 0}}, 422, None),
                               ({"epoch": 99}, 409, "STALE_LEASE"),
                               ({"task": "t_" + "0" * 26}, 404, "NOT_FOUND"), ({"task": "x"}, 404, "NOT_FOUND")):
        answer = silo.create(task, data, tokens, **more)
        assert answer.status == status, (more, answer.body)
        assert what is None or code(answer) == what, (more, answer.body)
    assert psql("SELECT count(*) FROM upload WHERE task_id = '%s'" % task["task"]) == [["0"]]


def test_no_hostile_update_counts(server):
    """Each is refused with its reason, twice the same, and nothing of it reaches a checkpoint."""
    run, (silo,) = begin(server)
    task = silo.task()
    good, _ = silo.update(task)
    (n,) = struct.unpack("<Q", good[:8])
    params = (len(good) - 8 - n) // 4
    bad = [("not finite", dict(values=[math.nan] + [0.0] * (params - 1))),
           ("not finite", dict(values=[0.0] * (params - 1) + [math.inf])),
           ("not finite", dict(values=[-math.inf] * params)),
           ("norm", dict(values=[3.0e38] * params)), ("norm", dict(scale=1000.0)),
           ("round", dict(round="%08d" % 2)), ("base", dict(base="00" * 32)), ("kind", dict(kind="uptade")),
           ("steps", dict(steps="%016d" % 1)), ("tokens", dict(tokens="%016d" % 1)), ("codec", dict(codec="f64")),
           ("silo", dict(silo=True)), ("run", dict(run=True))]
    for says, how in bad:
        how = {k: task[k + "_name"][::-1] if v is True and k == "run" else silo.name[::-1] if v is True else v
               for k, v in how.items()}
        data, tokens = silo.update(task, **how)
        assert len(data) == task["plan"]["update_bytes"], how
        upload = silo.send(task, data, tokens)
        for _ in range(2):
            answer = silo.finish(task, upload)
            assert answer.status == 422 and code(answer) == "BAD_UPDATE", (says, answer.body)
            assert says in answer.json()["detail"], answer.body
        shown = silo.get("/uploads/" + upload).json()
        assert shown["state"] == "refused" and shown["outcome"]["code"] == "BAD_UPDATE"
        assert psql("SELECT count(*) FROM update u JOIN task t ON t.id = u.task_id WHERE t.run_id = '%s'" % run) == [["0"]]
        # Each refusal was a failed attempt at the seat; the third one fails it.
        if psql("UPDATE task SET free_at = clock_timestamp() WHERE id = '%s' RETURNING state" % task["task"]) == [["failed"]]:
            run, (silo,) = begin(server)
        task = silo.task()
    no_violations()


def test_bytes_that_are_no_update_are_refused(server):
    _, (silo,) = begin(server)
    task = silo.task()
    data, tokens = silo.update(task)
    answer = silo.finish(task, silo.send(task, b"\xff" * len(data), tokens))
    assert answer.status == 422 and code(answer) == "BAD_UPDATE", answer.body


def test_a_file_that_differs_from_its_declared_digest_is_refused(server):
    _, (silo,) = begin(server)
    task = silo.task()
    data, tokens = silo.update(task)
    created = silo.create(task, data, tokens, sha256=hashlib.sha256(b"another").hexdigest())
    upload = created.json()["upload"]
    assert silo.chunk(task, upload, data, 0).status == 200
    answer = silo.finish(task, upload)
    assert answer.status == 422 and "SHA-256" in answer.json()["detail"], answer.body


def test_another_file_takes_the_place_of_the_first(server):
    _, (silo,) = begin(server)
    task = silo.task()
    data, tokens = silo.update(task, seed=1)
    first = silo.create(task, data, tokens).json()["upload"]
    better, tokens = silo.update(task, seed=2)
    assert silo.finish(task, silo.send(task, better, tokens)).status == 200
    assert silo.get("/uploads/" + first).json()["state"] == "expired"
    gone = silo.chunk(task, first, data, 0)
    assert gone.status == 409 and code(gone) in ("OTHER_UPDATE_COUNTED", "ROUND_CLOSED"), gone.body


def test_a_large_update_is_read_aside(server):
    """Above 32 MiB a thread of its own reads the file; the finish waits for it and says the same in the end."""
    model = {"d_model": 256, "n_heads": 4, "n_layers": 1, "vocab_size": 32768, "seq_len": 8}
    run, (silo,) = begin(server, model=model)
    task = silo.task(timeout_s=60)
    bad, tokens = silo.update(task, pattern=math.nan)
    upload = silo.send(task, bad, tokens, chunk_bytes=1 << 26)
    answer = silo.verdict(task, upload)
    assert answer.status == 422 and "not finite" in answer.json()["detail"], answer.body
    psql("UPDATE task SET free_at = clock_timestamp() WHERE id = '%s'" % task["task"])
    task = silo.task()
    good, tokens = silo.update(task, pattern=1e-4)
    upload = silo.send(task, good, tokens, chunk_bytes=1 << 26)
    answer = silo.verdict(task, upload)
    assert answer.status == 200, answer.body
    assert psql("SELECT round(norm::numeric, 6) FROM update WHERE upload_id = '%s'" % upload) != [[""]]
    no_violations()


def test_an_update_of_a_closed_round_is_not_counted(server):
    run, (silo,) = begin(server)
    task = silo.task()
    late, tokens = silo.update(task, seed=9)
    upload = silo.send(task, late, tokens)
    other, tokens = silo.update(task, seed=1)
    done = silo.send(task, other, tokens)
    assert silo.finish(task, done).status == 200
    until("round 1 to close", lambda: server.get("/api/v1/runs/" + run).json()["round"] >= 1)
    answer = silo.finish(task, upload)
    assert answer.status == 409 and code(answer) == "ROUND_CLOSED", answer.body
    answer = silo.create(task, late, tokens)
    assert answer.status == 409 and code(answer) == "ROUND_CLOSED", answer.body
    again = silo.finish(task, done)
    assert again.status == 200, "what counted is said again, closed or not"
    no_violations()


def test_an_accept_waits_for_whoever_seals_the_round(server):
    """A round being sealed is locked; an update that came in beside its manifest would count and be left out."""
    run, (silo,) = begin(server)
    task = silo.task()
    data, tokens = silo.update(task)
    upload = silo.send(task, data, tokens)
    sealer = subprocess.Popen(["psql", "-X", "-q", "-A", "-t"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def say(sql):
        sealer.stdin.write(sql + "\n")
        sealer.stdin.flush()
        return sealer.stdout.readline().strip()
    try:
        assert say("BEGIN; SELECT id FROM round WHERE run_id = '%s' AND state = 'open' FOR NO KEY UPDATE;" % run)
        answers = []
        finish = threading.Thread(target=lambda: answers.append(silo.finish(task, upload)))
        finish.start()
        waiting = ("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                   " AND query LIKE '%FROM round q%FOR SHARE'")
        until("the accept to wait, or to go past", lambda: answers or psql(waiting) != [["0"]])
        assert 200 not in {a.status for a in answers} and psql("SELECT count(*) FROM update WHERE upload_id = '%s'" % upload) == [["0"]]
        say("COMMIT; SELECT 'done';")
        finish.join(20)
        assert answers[0].status in (200, 503), answers[0].body  # 503: it waited longer than it may
    finally:
        sealer.kill()
        sealer.communicate()
    until("the update to count", lambda: silo.finish(task, upload).status == 200)
    no_violations()


@thrice
def test_control_does_not_wait_for_transfers(server):
    """All the connections that transfers may have are held, by chunks that wait for a lock; a heartbeat is answered at once."""
    run, silos = begin(server, silos=6)
    tasks = [s.task() for s in silos]
    quiet, own = silos.pop(), tasks.pop()
    beat = {"epoch": own["lease"]["epoch"], "step": 1, "phase": "train", "tokens_per_s": 10.0}
    chunks = []
    for silo, task in zip(silos, tasks):
        data, tokens = silo.update(task)
        chunks.append((silo, task, silo.create(task, data, tokens).json()["upload"], data[:100]))
    holder = subprocess.Popen(["psql", "-X", "-q", "-A", "-t"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    answers = []
    try:
        holder.stdin.write("BEGIN; SELECT count(id) FROM (SELECT id FROM upload WHERE id IN ('%s') FOR UPDATE) x;\n"
                           % "','".join(c[2] for c in chunks))
        holder.stdin.flush()
        assert holder.stdout.readline().strip() == "5"
        threads = [threading.Thread(target=lambda c=c: answers.append(c[0].chunk(c[1], c[2], c[3], 0).status), daemon=True)
                   for c in chunks for _ in range(16)]
        for t in threads:
            t.start()
        busy = re.compile(r'^photon_db_connections\{pool="bulk",state="busy"\} 64$', re.M)
        until("all connections of transfers to be held", lambda: busy.search(server.get("/metrics").body.decode()), 60)
        for _ in range(5):
            begun = time.monotonic()
            answer = quiet.post("/tasks/%s/heartbeat" % own["task"], beat)
            assert answer.status == 200, answer.body
            in_time(begun)
    finally:
        holder.kill()
        holder.communicate()
    for t in threads:
        t.join(30)
    assert len(answers) == len(threads) and set(answers) <= {200, 409, 503}, answers
    no_violations()


def test_a_slow_disk_holds_no_connection(server):
    """Chunks that are being synced, for as long as a file is there, leave the database's connections to others."""
    run, silos = begin(server, silos=3)
    chunks = []
    for silo in silos:
        task = silo.task()
        data, tokens = silo.update(task)
        chunks.append((silo, task, silo.create(task, data, tokens).json()["upload"], data[:100]))
    shim = os.path.join(server.build, "tests", "fault", "shim.so")
    assert os.path.exists(shim), "%s is missing: make test-api builds it" % shim
    log, hold = os.path.join(server.dir, "shim.log"), os.path.join(server.dir, "shim.hold")
    server.stop()
    server.start(env={"LD_PRELOAD": os.path.abspath(shim), "SHIM_UNDER": os.path.join(server.dir, "data", "store", "tmp"),
                      "SHIM_HOLD": hold, "SHIM_LOG": log})
    open(hold, "w").close()

    def count(what):
        with open(log) as f:
            return sum(line.startswith(what + " ") for line in f)
    answers = []
    threads = [threading.Thread(target=lambda c=c: answers.append(c[0].chunk(c[1], c[2], c[3], 0).status), daemon=True)
               for c in chunks]
    try:
        for t in threads:
            t.start()
        until("the three to be synced", lambda: count("H") == 3)
        idle = 'photon_db_connections{pool="bulk",state="busy"} 0\n'
        until("all connections to be given back", lambda: idle in server.get("/metrics").body.decode())
        assert count("W") >= 3 and count("S") == 0 and not answers, answers
        os.remove(hold)
        for t in threads:
            t.join(30)
        assert answers == [200, 200, 200] and count("S") == 3, answers
    finally:
        if os.path.exists(hold):
            os.remove(hold)
        server.stop()
        server.start()
    no_violations()


def test_an_upload_is_its_silos_own(server):
    _, (silo,) = begin(server)
    task = silo.task()
    data, tokens = silo.update(task)
    upload = silo.create(task, data, tokens).json()["upload"]
    thief = Silo(server, fresh_name("silo"))
    assert thief.get("/uploads/" + upload).status == 404
    assert thief.finish(task, upload).status == 404
    answer = thief.chunk(task, upload, data, 0)
    assert answer.status in (404, 409), answer.body
    assert silo.get("/uploads/" + upload).json()["offset"] == 0
    assert silo.get("/uploads/u_" + "0" * 26).status == 404
    assert silo.get("/uploads/nonsense").status == 404


def test_an_upload_survives_a_restart_of_the_server(server):
    _, (silo,) = begin(server)
    task = silo.task()
    data, tokens = silo.update(task)
    upload = silo.create(task, data, tokens).json()["upload"]
    half = len(data) // 2
    assert silo.chunk(task, upload, data[:half], 0).status == 200
    server.process.kill()
    server.process.wait()
    server.start()
    assert silo.get("/uploads/" + upload).json()["offset"] == half
    assert silo.chunk(task, upload, data[half:], half).status == 200
    assert silo.finish(task, upload).status == 200
    no_violations()


def test_killing_the_server_loses_and_doubles_nothing(server):
    """Three silos that never give up, a server that is killed at random moments; same weights as undisturbed."""
    weights = []
    for kills in (0, 8):
        other_runs_off(server)
        psql("UPDATE silo SET seen_at = clock_timestamp() - interval '1 hour', gone = true")
        silos = [Silo(server, "steady-%d-%d" % (kills, i)) for i in range(3)]
        stop, acked = threading.Event(), []
        threads = [threading.Thread(target=s.persist, args=(stop, acked, 2.0 ** -(10 + i)))
                   for i, s in enumerate(silos)]
        for s in silos:
            assert s.hello().status == 200
        run = server.post("/api/v1/runs", dict(spec("steady-%d" % kills, rounds=4, silos_per_round=3, min_silos=3),
                                               seed=17)).json()["id"]
        for t in threads:
            t.start()
        try:
            draw = random.Random(kills)
            for _ in range(kills):
                stop.wait(draw.uniform(0.02, 0.3))
                server.process.kill()
                server.process.wait()
                server.start()

            def over():
                answer = server.get("/api/v1/runs/" + run, check=False)
                return answer.status == 200 and answer.json()["state"] == "finished"
            until("the run to finish", over, 90)
        finally:
            stop.set()
            for t in threads:
                t.join(30)
        rows = psql("SELECT u.upload_id FROM update u JOIN task t ON t.id = u.task_id"
                    " WHERE t.run_id = '%s' AND u.state = 'accepted'" % run)
        assert len(rows) == 12, rows
        assert set(acked) <= {r[0] for r in rows}, "an acknowledged update is gone"
        weights.append(psql("SELECT encode(weights_digest, 'hex') FROM checkpoint WHERE run_id = '%s'"
                            " ORDER BY number" % run))
        no_violations()
    assert weights[0] == weights[1], "killed and undisturbed runs differ"


# ---- downloads ----

def test_a_base_is_downloaded_in_ranges(server):
    _, (silo,) = begin(server)
    task = silo.task()
    whole = silo.base(task)
    path = "/blobs/" + task["base"]["sha256"]
    etag = '"%s"' % task["base"]["sha256"]
    head = silo.get(path, bulk=True, method="HEAD")
    assert head.status == 200 and head.body == b"" and head.header("Content-Length") == str(len(whole))
    assert head.header("ETag") == etag and head.header("Accept-Ranges") == "bytes"
    n = len(whole)
    for asked, start, end in (("bytes=0-9", 0, 10), ("bytes=100-", 100, n), ("bytes=-7", n - 7, n),
                              ("bytes=%d-%d" % (n - 1, n + 50), n - 1, n)):
        part = silo.get(path, bulk=True, headers={"Range": asked, "If-Range": etag})
        assert part.status == 206 and part.body == whole[start:end], asked
        assert part.header("Content-Range") == "bytes %d-%d/%d" % (start, end - 1, n)
    for headers in ({"Range": "bytes=0-1,3-4"}, {"Range": "lines=1-2"}, {"Range": "bytes=0-9", "If-Range": '"x"'}):
        all_of_it = silo.get(path, bulk=True, headers=headers)
        assert all_of_it.status == 200 and all_of_it.body == whole
    beyond = silo.get(path, bulk=True, headers={"Range": "bytes=%d-" % n})
    assert beyond.status == 416 and beyond.header("Content-Range") == "bytes */%d" % n
    assert silo.get(path, bulk=True, headers={"If-None-Match": etag}).status == 304


def test_a_file_of_a_run_one_takes_no_part_in_is_not_there(server):
    _, (silo,) = begin(server)
    task = silo.task()
    stranger = Silo(server, fresh_name("silo"))
    assert stranger.get("/blobs/" + task["base"]["sha256"], bulk=True).status == 404
    assert silo.get("/blobs/" + "0" * 64, bulk=True).status == 404
    assert silo.get("/blobs/nonsense", bulk=True).status == 404


def test_bulk_is_not_on_control_nor_the_other_way_round(server):
    silo = Silo(server, fresh_name("silo"))
    assert silo.get("/blobs/" + "0" * 64).status == 404
    answer = server.call("POST", "/silo/v1/hello", {}, token=silo.token, bulk=True, headers=PROTOCOL, check=False)
    assert answer.status == 404


def test_a_poll_waits_and_is_woken(server):
    other_runs_off(server)
    silo = Silo(server, fresh_name("silo"))
    assert silo.hello().status == 200
    got = []
    t = threading.Thread(target=lambda: got.append(silo.claim(20)))
    t.start()
    psql("UPDATE silo SET seen_at = clock_timestamp() - interval '1 hour' WHERE id <> '%s'" % silo.id)
    answer = server.post("/api/v1/runs", spec(fresh_name("run")))
    assert answer.status == 201
    t.join(20)
    assert got and got[0].status == 200, "the poll was not woken"


def test_nobody_is_called_for_a_paused_run(server):
    """A poll looks each second by itself, and at once when it is called. A task of a paused run must not call its silo each
    time that something changes somewhere: all the silos of the run would ask all the time for what they may not have."""
    run, (silo,) = begin(server)
    mine = "FROM task WHERE run_id = '%s' AND kind = 'train' AND state = 'pending'" % run
    until("the task", lambda: psql("SELECT 1 " + mine))
    assert server.post("/api/v1/runs/%s/actions" % run, {"action": "pause"}).status == 200
    got = []
    poll = threading.Thread(target=lambda: got.append(silo.claim(20)))
    began = time.monotonic()
    poll.start()
    looks = set()  # each locks the task, and so leaves the number of its transaction in the row
    while not got and (len(looks) < 3 or time.monotonic() - began < 3):
        psql("NOTIFY photon, 'tasks'")
        time.sleep(0.02)
        looks.add(psql("SELECT xmax " + mine)[0][0])
    most = 2 + (time.monotonic() - began)  # the row as it was, the first look, one each second
    assert len(looks) <= most and not got, (len(looks), most, got)
    assert server.post("/api/v1/runs/%s/actions" % run, {"action": "resume"}).status == 200
    poll.join(20)
    assert got and got[0].status == 200, "the poll was not called when the run went on"


def test_boundaries_are_the_clients(server):
    """A boundary that curl would draw works as well as ours."""
    _, (silo,) = begin(server)
    task = silo.task()
    data, tokens = silo.update(task)
    upload = silo.create(task, data, tokens).json()["upload"]
    theirs = "------------------------d74496d66958873e"
    body = silo.chunk_body(data, 0).replace(BOUNDARY.encode(), theirs.encode())
    answer = silo.chunk(task, upload, None, 0, body=body, **{"Content-Type": "multipart/form-data; boundary=" + theirs})
    assert answer.status == 200, answer.body
