"""Runs that begin where another one was."""

import os
import struct
import subprocess

from kit import psql, until
from rounds import blob_path, damage_file, one, round_of, run_of, wait_round
from silo_client import MODEL, read_safetensors, spec
from silos import begin, fresh_name, no_violations, other_runs_off


def trained(server, rounds=2, **more):
    """A run whose first round is closed, and its silo."""
    run, (ash,) = begin(server, 1, rounds=rounds, more=more or None)
    assert ash.train(ash.task(), seed=1).status == 200
    wait_round(run, 1, "closed")
    return run, ash


def fork(server, run, **body):
    return server.post("/api/v1/runs/%s/fork" % run, body)


def started(server, run, wait=True):
    until("the fork to start", lambda: not wait or run_of(server, run)["state"] != "created", 30)
    return run_of(server, run)


def weights(server, run, number):
    return server.get("/api/v1/runs/%s/checkpoints/%d/weights" % (run, number)).body


def test_a_fork_begins_with_its_parents_weights_and_goes_on_from_its_steps(server):
    run, ash = trained(server)
    answer = fork(server, run, checkpoint=1, name=fresh_name("fork"), spec={"federation": {"rounds": 3}, "inner": {"lr": 0.01}})
    assert answer.status == 201, answer.body
    made = answer.json()
    assert made["parent"] == {"run": run, "name": run_of(server, run)["name"], "checkpoint": 1, "steps": 2}
    assert run_of(server, run)["parent"] is None
    child = made["id"]
    other_runs_off(server, keep=child)
    assert started(server, child)["state"] == "running"
    assert read_safetensors(weights(server, child, 0))[1] == read_safetensors(weights(server, run, 1))[1]
    meta = read_safetensors(weights(server, child, 0))[0]["__metadata__"]
    assert meta["run"] == made["name"] and meta["round"] == "00000000", meta
    given = server.get("/api/v1/runs/%s/spec" % child).json()
    assert given["federation"]["rounds"] == 3 and given["inner"]["lr"] == 0.01
    for number in (1, 2):
        task = ash.task()
        assert task["run"] == child and task["plan"]["global_step"] == 2 * number, task["plan"]
        points = [{"step": 2 * number + 1, "name": "train_loss", "value": 5.0}]
        assert ash.post("/tasks/%s/metrics" % task["task"], {"epoch": task["lease"]["epoch"], "points": points}).status == 200
        assert ash.train(task, seed=number).status == 200
        wait_round(child, number, "closed")
    series = server.get("/api/v1/series?run=%s&metric=delta_norm&x=step" % child).json()["series"][0]
    assert series["xs"] == [4, 6], series
    assert server.get("/api/v1/audit?action=run_fork").json()["items"][0]["object"] == child
    assert "was forked from" in one("SELECT message FROM event WHERE run_id = '%s' AND kind = 'run_created'" % child)
    no_violations()


def test_the_outer_state_goes_along_where_the_optimizer_is_the_same(server):
    run, ash = trained(server, outer={"name": "fednesterov", "lr": 0.7, "momentum": 0.9})
    same = fork(server, run).json()["id"]
    other = fork(server, run, spec={"outer": {"name": "fedavg"}}).json()["id"]
    started(server, same)
    started(server, other)
    assert one("SELECT outer_before || '/' || (outer_state IS NOT NULL)::text FROM run JOIN checkpoint ON run_id = id"
               " WHERE id = '%s' AND number = 0" % same) == "1/true"
    assert one("SELECT outer_before || '/' || (outer_state IS NOT NULL)::text FROM run JOIN checkpoint ON run_id = id"
               " WHERE id = '%s' AND number = 0" % other) == "0/false"
    # Fork and parent take the same next step when they get the same update.
    other_runs_off(server, keep=same)
    ash.hello()
    assert ash.train(ash.task(), pattern=0.5).status == 200
    wait_round(same, 1, "closed")
    moved = [b - a for a, b in zip(floats(weights(server, same, 0)), floats(weights(server, same, 1)))]
    first = [b - a for a, b in zip(floats(weights(server, run, 0)), floats(weights(server, run, 1)))]
    # x1 = x0 - 0.7 (d + 0.9 m) with m = 0.9 d0 + d, so the first update d0 still pulls: -0.7 * 0.9 * 0.9 d0.
    d0 = [-v / (0.7 * 1.9) for v in first]
    wanted = [-0.7 * (0.5 + 0.9 * (0.9 * d + 0.5)) for d in d0]
    assert max(abs(a - b) for a, b in zip(moved, wanted)) < 1e-5
    no_violations()


def floats(data):
    body = read_safetensors(data)[1]
    return struct.unpack("<%df" % (len(body) // 4), body)


def test_what_a_fork_may_not_be(server):
    run, _ = trained(server)
    for body, status, what in (({"spec": {"model": MODEL}}, 422, "/spec/model"), ({"spec": {"tokenizer": {}}}, 422, "/spec/tokenizer"),
                               ({"spec": {"name": "x"}}, 422, "/spec/name"), ({"spec": []}, 422, "/spec"),
                               ({"checkpoint": -1}, 422, "/checkpoint"), ({"checkpoint": 1.5}, 422, "/checkpoint"),
                               ({"chekpoint": 1}, 422, "/chekpoint"), ({"spec": {"inner": {"lr": -1}}}, 422, "lr"),
                               ({"spec": {"inner": {"lrr": 1}}}, 422, "lrr"), ({"name": "Not A Name"}, 422, "name"),
                               ({"name": 7}, 422, "/name"), ({"checkpoint": 2}, 404, "checkpoint")):
        answer = fork(server, run, **body)
        assert answer.status == status and what in answer.body.decode(), (body, answer.status, answer.body)
    assert fork(server, "r_" + "0" * 25 + "Z").status == 404
    assert fork(server, run, name=run_of(server, run)["name"]).status == 409
    viewer = server.post("/api/v1/tokens", {"role": "viewer", "name": "looks"}).json()["secret"]
    assert server.post("/api/v1/runs/%s/fork" % run, {}, token=viewer).status == 403


def test_a_repeated_fork_makes_one_run(server):
    run, _ = trained(server)
    name = fresh_name("fork")
    answers = [server.post("/api/v1/runs/%s/fork" % run, {"name": name}, headers={"Idempotency-Key": name}) for _ in range(2)]
    assert [a.status for a in answers] == [201, 201] and answers[0].json()["id"] == answers[1].json()["id"]
    # Else it would begin to run some time later and have the silo of another test.
    assert server.post("/api/v1/runs/%s/actions" % answers[0].json()["id"], {"action": "stop"}).status == 200


def test_a_parents_file_stays_until_its_fork_has_its_own(server):
    run, ash = trained(server, rounds=3)
    psql("CREATE FUNCTION hold_forks() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.parent_run = '%s' AND NEW.state = 'running'"
         " THEN RAISE EXCEPTION 'not yet'; END IF; RETURN NEW; END $$;"
         "CREATE TRIGGER hold_forks BEFORE UPDATE OF state ON run FOR EACH ROW EXECUTE FUNCTION hold_forks();" % run)
    child = fork(server, run, checkpoint=1).json()["id"]
    digest = one("SELECT encode(weights, 'hex') FROM checkpoint WHERE run_id = '%s' AND number = 1" % run)
    # A created run that cannot start keeps no other back.
    assert ash.train(ash.task(), seed=2).status == 200
    wait_round(run, 2, "closed")
    assert started(server, fork(server, run, checkpoint=2, name=fresh_name("held")).json()["id"], wait=False)["state"] == "created"
    other = server.post("/api/v1/runs", spec(fresh_name("run"))).json()["id"]
    assert started(server, other)["state"] == "running"
    psql("UPDATE checkpoint SET kept = false WHERE run_id = '%s' AND number = 1" % run)
    in_use = "SELECT blob_in_use(decode('%s', 'hex'))" % digest
    assert one(in_use) == "t", "nothing keeps the file that a fork waits for"
    assert fork(server, run, checkpoint=1).status == 404, "past its keeping"
    psql("DROP FUNCTION hold_forks CASCADE")
    until("the fork to start", lambda: run_of(server, child)["state"] == "running", 30)
    assert one("SELECT num_nulls(from_weights, from_state) FROM run WHERE id = '%s'" % child) == "2"
    assert round_of(child, 1) and one(in_use) == "f"
    no_violations()


def test_a_lost_checkpoint_0_of_a_fork_is_made_again_from_its_parent(server):
    run, ash = trained(server)
    child = fork(server, run, checkpoint=1).json()["id"]
    other_runs_off(server, keep=child)
    started(server, child)
    (path,) = blob_path(server, one("SELECT encode(weights, 'hex') FROM checkpoint WHERE run_id = '%s' AND number = 0" % child))
    ash.hello()
    task = ash.task()
    assert task["run"] == child
    data, tokens = ash.update(task)
    with open(path, "rb") as f:
        sound = f.read()
    damage_file(path)
    assert ash.finish(task, ash.send(task, data, tokens)).status in (200, 202)
    wait_round(child, 1, "closed")
    with open(path, "rb") as f:
        assert f.read() == sound
    assert one("SELECT count(*) FROM event WHERE run_id = '%s' AND kind = 'checkpoint_rebuilt'" % child) == "1"
    no_violations()


def test_a_fork_of_a_damaged_file_fails_with_the_reason(server):
    run, _ = trained(server)
    (path,) = blob_path(server, one("SELECT encode(weights, 'hex') FROM checkpoint WHERE run_id = '%s' AND number = 1" % run))
    damage_file(path)
    child = fork(server, run, checkpoint=1).json()["id"]
    assert started(server, child)["state"] == "failed"
    assert "not what it was" in run_of(server, child)["reason"]
    damage_file(path)
    assert started(server, fork(server, run, checkpoint=1).json()["id"])["state"] == "running"
    no_violations()


def test_the_command_line_forks(server):
    run, _ = trained(server)
    photon = os.path.join(os.path.dirname(server.program), "photon")
    env = dict(os.environ, PHOTON_SERVER="http://127.0.0.1:%d" % server.port, PHOTON_TOKEN=server.token)
    name = fresh_name("fork")
    done = subprocess.run([photon, "run", "fork", run, "--checkpoint", "1", "--name", name, "--set", "inner.lr=0.5"], env=env,
                          capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 and "begins with checkpoint 1 of" in done.stderr, done
    child = done.stdout.strip()
    assert run_of(server, child)["name"] == name and run_of(server, child)["parent"]["run"] == run
    assert server.get("/api/v1/runs/%s/spec" % child).json()["inner"]["lr"] == 0.5
    shown = subprocess.run([photon, "run", "show", child], env=env, capture_output=True, text=True, timeout=30)
    assert "forked from %s at checkpoint 1" % run_of(server, run)["name"] in shown.stdout, shown
    bad = subprocess.run([photon, "run", "fork", run, "--set", "model.d_model=32"], env=env, capture_output=True, text=True,
                         timeout=30)
    assert bad.returncode != 0 and "model" in bad.stderr, bad


def test_nothing_of_forks_is_left_behind(server):
    other_runs_off(server)
    no_violations()
