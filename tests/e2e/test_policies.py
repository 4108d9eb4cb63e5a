"""What a spec says of state and tensors holds on real parts: averaged moments travel, frozen tensors stand still,
personal ones stay at home, and a silo killed between rounds changes nothing."""

import glob
import json
import os
import shutil
import struct
import subprocess
import sys
import urllib.request

from harness import World, run_tests, until
from test_loop import corpus

SILOS = {"alder": "common/*.c", "birch": "server/*.h"}
MODEL = {"d_model": 32, "n_heads": 2, "n_layers": 2, "vocab_size": 320, "seq_len": 64, "position": "learned", "bias": True}


def spec(name, more, **model):
    return dict({"name": name, "seed": 5, "model": dict(MODEL, **model),
                 "federation": {"rounds": 3, "silos_per_round": 2, "min_silos": 2, "local_steps": 40},
                 "inner": {"optimizer": "adamw", "lr": 3e-3, "batch": 4, "warmup": 5},
                 "eval": {"every": 1, "windows": 4}}, **more)


def tensors(world, run_id, number):
    """Name -> bytes of a checkpoint's tensors."""
    request = urllib.request.Request("%s/api/v1/runs/%s/checkpoints/%d/weights" % (world.url, run_id, number))
    request.add_header("Authorization", "Bearer " + world.token)
    with urllib.request.urlopen(request, timeout=30) as answer:
        data = answer.read()
    (n,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + n])
    body = data[8 + n:]
    return {k: body[slice(*v["data_offsets"])] for k, v in header.items() if k != "__metadata__"}


def finished(world, body):
    run_id = world.post("/api/v1/runs", body)["id"]
    run = world.wait_finished(run_id)
    assert run["eval_loss"] < run["initial_eval_loss"] - 1.0, (run["initial_eval_loss"], run["eval_loss"])
    return run_id, tensors(world, run_id, 0), tensors(world, run_id, 3)


def moments_are_averaged(world):
    run_id, first, last = finished(world, spec("average", {"inner_state": "average", "keep_checkpoints": 0}))
    names = [k for k in first if k[:2] not in ("m.", "v.")]
    assert sorted(first) == sorted(names + ["m." + k for k in names] + ["v." + k for k in names])
    assert all(not any(first["m." + k]) and not any(first["v." + k]) for k in names)
    seconds = struct.unpack("<%df" % (len(last["v.transformer.wte.weight"]) // 4), last["v.transformer.wte.weight"])
    assert min(seconds) >= 0.0 and max(seconds) > 0.0
    assert any(last["m.transformer.norm_f.weight"])
    plan = world.post("/api/v1/runs?dry_run=1", spec("p", {"inner_state": "average"}))
    plain = world.post("/api/v1/runs?dry_run=1", spec("p", {}))
    assert 2.9 < plan["update_bytes"] / plain["update_bytes"] < 3.1, (plan["update_bytes"], plain["update_bytes"])


def frozen_tensors_stand_still_and_personal_ones_stay_at_home(world):
    body = spec("parts", {"keep_checkpoints": 0}, freeze=["wpe.*", "blocks.0.norm_1.*"], personal=["blocks.1.ffn.*"])
    run_id, first, last = finished(world, body)
    for name in first:
        still = "wpe" in name or "blocks.0.norm_1" in name or "blocks.1.ffn" in name
        assert (first[name] == last[name]) == still, name
    plan = world.post("/api/v1/runs?dry_run=1", dict(body, name="p"))
    assert plan["update_bytes"] < 0.8 * plan["checkpoint_bytes"], plan
    own = [open(world.path(s, "runs", run_id, "moments.state"), "rb").read() for s in SILOS]
    assert len(own[0]) > 3 * 4 * plan["params"] and own[0] != own[1]


def a_killed_silo_still_has_its_own_tensors(world):
    """The same training twice, once with a silo killed after the first round: the same weights in the end."""
    digests = []
    for kill in (False, True):
        body = spec("own-%d" % kill, {"seed": 9}, personal=["blocks.1.*"])
        body["federation"] = dict(body["federation"], local_steps=250)
        run_id = world.post("/api/v1/runs", body)["id"]
        if kill:
            until("round 1 to be closed", lambda: world.run(run_id)["round"] >= 1)
            world.kill("birch")
            world.start("birch")
        run = world.wait_finished(run_id)
        assert run["eval_loss"] < run["initial_eval_loss"]
        digests.append(world.get("/api/v1/runs/%s/checkpoints/3" % run_id)["weights_digest"])
    assert digests[0] == digests[1], digests


def a_plan_stands_beside_what_was_measured(world):
    """photon plan on a spec, and on the rounds of a run that is over."""
    run = next(r for r in world.get("/api/v1/runs")["items"] if r["name"] == "parts")
    lines = world.tool("plan", "--run", "parts", "--token-file", world.path("server", "admin-token")).splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["3", "2"], lines  # newest first; the first round has none
    assert lines[-1].startswith("all of these: time "), lines
    path = world.path("spec.json")
    with open(path, "w") as f:
        json.dump(world.get("/api/v1/runs/%s/spec" % run["id"]), f)
    said = json.loads(world.tool("plan", path, "--link", "100Mbit", "--rate", "10000", "--json"))
    plan = world.post("/api/v1/runs?dry_run=1", dict(spec("p", {}), **{"name": "p"}))
    assert said["tokens"] == plan["tokens"], (said["tokens"], plan["tokens"])
    assert 0 <= plan["checkpoint_bytes"] - said["down_bytes"] < 16384, (said, plan)
    assert abs(said["compute_s"] - 40 * 4 * 64 / 10000) < 1e-9, said
    assert said["break_even_bytes_per_s"] is None, said


def what_silos_keep_for_ended_runs_goes_in_a_day(world):
    """But for the tensors that nobody else has."""
    runs = {r["name"]: r["id"] for r in world.get("/api/v1/runs")["items"]}
    old = [runs["average"], runs["parts"]]
    socket_dir = world.path("server", "pg-socket")
    subprocess.run(["psql", "-X", "-q", "-h", socket_dir, "-U", "photon", "-v", "ON_ERROR_STOP=1", "postgres", "-c",
                    "UPDATE run SET finished_at = finished_at - interval '2 days' WHERE id IN ('%s', '%s')" % tuple(old)],
                   check=True)
    world.kill("alder")
    world.start("alder")
    until("alder to forget a run", lambda: not os.path.exists(world.path("alder", "runs", runs["average"])))
    parts = world.path("alder", "runs", runs["parts"])
    until("alder to keep what is its own", lambda: sorted(os.listdir(parts)) == ["journal.json", "moments.state"])
    assert os.path.exists(world.path("alder", "runs", runs["own-1"], "moments.state")), "it ended just now"
    assert os.path.exists(world.path("birch", "runs", runs["average"])), "birch asks each hour"


def checkpoints_come_in_steps_whatever_becomes_of_what_a_silo_has(world):
    """A silo whose cached checkpoints are damaged, and one that lost them, take the weights whole; all have the same bits."""
    body = {"codec": {"up": "q4", "down": "q4"}, "keep_checkpoints": 0}
    more = {"rounds": 6, "silos_per_round": 2, "min_silos": 2, "local_steps": 300}
    undisturbed = world.wait_finished(world.post("/api/v1/runs", dict(spec("calm", body), federation=more))["id"])
    run_id = world.post("/api/v1/runs", dict(spec("stormy", body), federation=more))["id"]

    def in_round(number):
        until("round %d" % number, lambda: world.run(run_id)["round"] >= number - 1)
    in_round(3)
    world.kill("alder")
    for path in glob.glob(world.path("alder", "cache", "*.safetensors")):
        with open(path, "r+b") as f:
            f.seek(-6, os.SEEK_END)
            byte = f.read(1)
            f.seek(-6, os.SEEK_END)
            f.write(bytes([byte[0] ^ 1]))
    world.start("alder")
    until("alder to see it", lambda: "is damaged and fetched again" in world.log_of("alder") or
          "is fetched whole" in world.log_of("alder"))
    in_round(5)
    world.kill("birch")
    shutil.rmtree(world.path("birch", "cache"))
    world.start("birch")
    run = world.wait_finished(run_id)
    assert run["head_checkpoint"]["weights_digest"] == undisturbed["head_checkpoint"]["weights_digest"]
    assert all("was made by 1 step" in world.log_of(name) for name in SILOS)
    steps = [c["step"] for c in world.get("/api/v1/runs/%s/checkpoints" % run_id)["items"]]
    assert [s and s["codec"] for s in steps] == [None] + ["q4"] * 5 + [None], steps


TESTS = [moments_are_averaged, frozen_tensors_stand_still_and_personal_ones_stay_at_home,
         a_killed_silo_still_has_its_own_tensors, a_plan_stands_beside_what_was_measured,
         what_silos_keep_for_ended_runs_goes_in_a_day,
         checkpoints_come_in_steps_whatever_becomes_of_what_a_silo_has]


def main(build):
    with World(build) as world:
        world.start_server()
        for name, pattern in SILOS.items():
            world.join(name, corpus(world, name, pattern))
            world.start(name)
        return run_tests(TESTS, world, on_failure=world.show_logs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
