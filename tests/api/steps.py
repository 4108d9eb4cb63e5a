"""Checkpoints that go down in steps: what a silo is offered, what the files are, what is kept of them and mended."""

import hashlib
import os
import struct

from kit import psql, until
from rounds import blob_path, kinds, one, wait_round
from silo_client import read_safetensors
from silos import begin, no_violations
from store import content, damage, digest_of, rebuilt, wait_rebuilt

INT8 = {"codec": {"down": "int8"}}


def stepped(server, rounds=6, number=2, more=None, **federation):
    """A run of one silo with that many closed rounds, each checkpoint as that silo would have it."""
    run, (ash,) = begin(server, 1, rounds=rounds, more=dict(INT8, **(more or {})), **federation)
    for n in range(1, number + 1):
        assert ash.train(ash.task(), seed=n).status == 200
        wait_round(run, n, "closed")
    return run, ash


def floats(data):
    return struct.unpack("<%df" % (len(data) // 4), data)


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def bf16(data):
    return [struct.unpack("<f", b"\0\0" + data[i:i + 2])[0] for i in range(0, len(data), 2)]


def taken(base, step):
    """Weights less what the step decodes to: int8 parts alone, by docs/API.md."""
    header, body = read_safetensors(base)
    parts, coded = read_safetensors(step)
    out = bytearray(body)
    for name, t in header.items():
        if name == "__metadata__" or name + ":q8" not in parts:
            continue
        begin_, end = t["data_offsets"]
        q = coded[slice(*parts[name + ":q8"]["data_offsets"])]
        scale = bf16(coded[slice(*parts[name + ":scale"]["data_offsets"])])
        for i, x in enumerate(floats(body[begin_:end])):
            code = q[i] - 256 if q[i] > 127 else q[i]
            struct.pack_into("<f", out, begin_ + 4 * i, f32(x - code * scale[i // 256]))
    return bytes(out)


def test_a_task_offers_the_steps_to_its_base_and_they_give_it(server):
    run, ash = stepped(server)
    task = ash.task()
    steps = task["base"]["steps"]
    assert [s["number"] for s in steps] == [1, 2] and {s["codec"] for s in steps} == {"int8"}, steps
    assert steps[0]["base"] == digest_of(run, 0) and steps[1]["base"] == digest_of(run, 1)
    assert sum(s["bytes"] for s in steps) < task["base"]["bytes"]
    body = None
    for s in steps:
        answer = ash.get("/blobs/" + s["sha256"], bulk=True)
        assert answer.status == 200 and len(answer.body) == s["bytes"]
        assert hashlib.sha256(answer.body).hexdigest() == s["sha256"] and answer.header("ETag") == '"%s"' % s["sha256"]
        assert "immutable" in answer.header("Cache-Control")
        part = ash.get("/blobs/" + s["sha256"], headers={"Range": "bytes=100-"}, bulk=True)
        assert part.status == 206 and part.body == answer.body[100:]
        meta = read_safetensors(answer.body)[0]["__metadata__"]
        assert (meta["kind"], meta["base"], meta["codec"]) == ("step", s["base"], "int8"), meta
        base = ash.get("/blobs/" + s["base"], bulk=True).body
        body = taken(base, answer.body)
        assert body == read_safetensors(ash.get("/blobs/" + meta["to"], bulk=True).body)[1]
    assert meta["to"] == task["base"]["sha256"] and body is not None
    # What went out is counted for the round it went out for.
    sent = one("SELECT download_bytes FROM traffic WHERE run_id = '%s' AND number = 3" % run)
    assert int(sent) > sum(s["bytes"] for s in steps)
    checkpoint = server.get("/api/v1/runs/%s/checkpoints/2" % run).json()
    assert checkpoint["step"]["bytes"] == steps[1]["bytes"] and 0 < checkpoint["step"]["error"] < 0.03
    assert server.get("/api/v1/runs/%s/checkpoints/0" % run).json()["step"] is None
    no_violations()


def test_a_step_has_the_part_of_the_model_that_its_round_synchronised(server):
    run, (ash,) = begin(server, 1, rounds=6, fragments=2, more=dict(INT8, keep_checkpoints=6))

    def due(number):  # of a model with one block: the embedding, and all the rest
        return lambda name: name.startswith("transformer.wte.") == (number % 2 == 1)
    for n in (1, 2, 3):
        assert ash.train(ash.task(), seed=n, only=due(n)).status == 200
        wait_round(run, n, "closed")
    (path,) = blob_path(server, digest_of(run, 2, "step"))
    sound = content(path)
    os.remove(path)
    assert ash.get("/blobs/" + digest_of(run, 2, "step"), bulk=True).status == 503
    until("the step to be there again", lambda: os.path.exists(path))
    wait_rebuilt(run, [2])
    assert content(path) == sound
    task = ash.task()
    body = ash.get("/blobs/" + digest_of(run, 0), bulk=True).body
    names = set(read_safetensors(body)[0]) - {"__metadata__"}
    assert [s["number"] for s in task["base"]["steps"]] == [1, 2, 3]
    for s in task["base"]["steps"]:
        step = ash.get("/blobs/" + s["sha256"], bulk=True).body
        coded = {name.split(":")[0] for name in read_safetensors(step)[0]} - {"__metadata__"}
        assert coded == set(filter(due(s["number"]), names)) and coded != names, coded
        whole = ash.get("/blobs/" + digest_of(run, s["number"]), bulk=True).body
        assert taken(body, step) == read_safetensors(whole)[1]
        body = whole
    assert ash.train(task, seed=4, only=due(4)).status == 200
    wait_round(run, 4, "closed")
    no_violations()


def test_who_waits_is_told_of_the_step_too(server):
    run, silos = begin(server, 2, rounds=4, silos_per_round=1, min_silos=1, more=INT8)
    drawn = next(s for s in silos if one("SELECT silo_id FROM task WHERE run_id = '%s' AND kind = 'train'" % run) == s.id) \
        if until("a seat", lambda: psql("SELECT 1 FROM task WHERE run_id = '%s' AND kind = 'train'" % run)) else None
    assert drawn.train(drawn.task()).status == 200
    wait_round(run, 1, "closed")
    wait_round(run, 2, "open")
    (holder,) = [r[0] for r in psql("SELECT silo_id FROM task WHERE run_id = '%s' AND number = 2 AND kind = 'train'" % run)]
    idle = next(s for s in silos if s.id != holder)

    def told():
        answer = idle.claim()
        if answer.status == 200:
            idle.evaluate(answer.json())
        return answer if answer.status == 204 else None
    answer = until("nothing to do", told)
    sha256, size, base = answer.header("Photon-Step").split()
    assert (sha256, base) == (digest_of(run, 1, "step"), digest_of(run, 0))
    got = idle.get("/blobs/" + sha256, bulk=True)
    assert got.status == 200 and len(got.body) == int(size)
    no_violations()


def test_the_last_checkpoint_has_no_step(server):
    run, _ = stepped(server, rounds=2)
    assert psql("SELECT number, step IS NOT NULL FROM checkpoint WHERE run_id = '%s' ORDER BY 1" % run) == \
        [["0", "f"], ["1", "t"], ["2", "f"]]
    no_violations()


def test_steps_are_kept_while_they_are_fewer_bytes_than_the_weights(server):
    run, ash = stepped(server, rounds=9, number=7)
    whole = int(one("SELECT max(weights_bytes) FROM checkpoint WHERE run_id = '%s'" % run))
    until("steps to be let go", lambda: int(one("SELECT sum(step_bytes) FROM checkpoint WHERE run_id = '%s'"
                                                " AND kept_step IS NOT NULL" % run)) < whole, 40)
    numbers = [int(r[0]) for r in psql("SELECT number FROM checkpoint WHERE run_id = '%s' AND kept_step IS NOT NULL"
                                       " ORDER BY 1" % run)]
    assert numbers == list(range(numbers[0], 8)) and numbers[0] > 1, numbers
    assert [s["number"] for s in ash.task()["base"]["steps"]] == numbers
    assert ash.get("/blobs/" + digest_of(run, 1, "step"), bulk=True).status == 404
    no_violations()


def test_a_lost_step_is_made_again_bit_for_bit(server):
    run, ash = stepped(server)
    digest = digest_of(run, 2, "step")
    (path,) = blob_path(server, digest)
    sound = content(path)
    os.remove(path)
    assert ash.get("/blobs/" + digest, bulk=True).status == 503
    until("the step to be there again", lambda: os.path.exists(path))
    wait_rebuilt(run, [2])
    assert content(path) == sound
    damage(path)
    for column in ("weights", "outer_state"):  # they are made again together
        (other,) = blob_path(server, digest_of(run, 2, column))
        damage(other)
    assert ash.get("/blobs/" + digest, bulk=True).status in (200, 503)
    until("the silo to have the step", lambda: ash.get("/blobs/" + digest, bulk=True).body == sound)
    assert set(rebuilt(run)) == {2}
    assert ash.train(ash.task(), seed=3).status == 200
    wait_round(run, 3, "closed")
    no_violations()


def test_a_step_that_is_lost_for_good_costs_bytes_and_nothing_else(server):
    run, ash = stepped(server)
    (update,) = blob_path(server, one("SELECT encode(u.digest, 'hex') FROM update u JOIN round q ON q.id = u.round_id"
                                      " WHERE q.run_id = '%s' AND q.number = 2" % run))
    digest = digest_of(run, 2, "step")
    (path,) = blob_path(server, digest)
    os.rename(update, update + ".away")
    os.remove(path)
    assert ash.get("/blobs/" + digest, bulk=True).status == 503
    until("the step to be given up", lambda: ash.get("/blobs/" + digest, bulk=True).status == 404)
    task = ash.task()
    assert "steps" not in task["base"], task["base"]
    assert server.get("/api/v1/runs/" + run).json()["state"] == "running" and "run_paused" not in kinds(run)
    os.rename(update + ".away", update)
    assert ash.train(task, seed=3).status == 200
    wait_round(run, 3, "closed")
    no_violations()


def test_a_fork_takes_over_what_the_optimizer_has(server):
    run, ash = stepped(server, more={"codec": {"down": "q2"}})
    answer = server.post("/api/v1/runs/%s/fork" % run, {"checkpoint": 2, "name": run.lower().replace("_", "-")})
    assert answer.status == 201, answer.body
    child = answer.json()["id"]
    until("the fork to begin", lambda: psql("SELECT 1 FROM checkpoint WHERE run_id = '%s'" % child))
    (of_child,) = blob_path(server, digest_of(child, 0, "outer_state"))
    (of_parent,) = blob_path(server, digest_of(run, 2, "outer_state"))
    assert read_safetensors(content(of_child))[1] == read_safetensors(content(of_parent))[1]
    no_violations()
