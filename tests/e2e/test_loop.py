"""The whole loop on real parts: three silos train one model, and no kill changes a bit of it.

One undisturbed run is the measure. Then the same spec, silos and text again with a silo killed in
mid-round and at the seams of its rounds, and with the server killed in mid-round: the final
checkpoint must be the same file.
"""

import glob
import json
import os
import sys
import time

from harness import ROOT, World, run_tests, until

SILOS = {"alder": "*/*.c", "birch": "*/*.h", "cedar": "docs/*.[mj]*"}
ROUNDS = 3
STEPS = 60
# In the middle of its second round a silo takes a step that lasts longer than two snapshots are apart, and waits when
# the snapshot is there.
MID_ROUND = "train.step=delay:2200ms#%d;snapshot.placed=delay:5000ms" % (STEPS + STEPS // 3)

SPEC = {
    "name": "loop",
    "seed": 7,
    "model": {"d_model": 64, "n_heads": 2, "n_layers": 3, "vocab_size": 320, "seq_len": 128,
              "position": "learned", "bias": True},
    "federation": {"rounds": ROUNDS, "silos_per_round": 3, "min_silos": 3, "local_steps": STEPS},
    "inner": {"optimizer": "adamw", "lr": 3e-3, "batch": 8, "warmup": 20},
    "eval": {"every": 1, "windows": 8},
}


def corpus(world, name, pattern):
    """Real text of one kind: this project's own sources."""
    path = world.path(name + ".txt")
    with open(path, "w") as out:
        for source in sorted(glob.glob(os.path.join(ROOT, pattern))):
            if os.path.isfile(source):
                with open(source, errors="replace") as f:
                    out.write(f.read() + "\n\n")
    return path


def begin(build, faults=None):
    """faults: of some silos, as World.start() takes them."""
    world = World(build)
    try:
        world.start_server()
        for name, pattern in SILOS.items():
            world.join(name, corpus(world, name, pattern))
            world.start(name, faults=(faults or {}).get(name))
        return world, world.post("/api/v1/runs", SPEC)["id"]
    except BaseException:
        world.__exit__(*sys.exc_info())  # what was started must not outlive a failed beginning
        raise


def final(world, run_id):
    run = world.wait_finished(run_id)
    assert run["round"] == ROUNDS, run["round"]
    head = run["head_checkpoint"]
    return run, head["sha256"]


def undisturbed(build, results):
    world, run_id = begin(build)
    with world:
        run, results["digest"] = final(world, run_id)
        assert run["eval_loss"] < 0.8 * run["initial_eval_loss"], (run["initial_eval_loss"], run["eval_loss"])
        rounds = world.get("/api/v1/runs/%s/rounds" % run_id)["items"]
        assert [r["state"] for r in rounds] == ["closed"] * ROUNDS, rounds
        assert all(r["accepted"] == 3 for r in rounds), rounds


def a_silo_killed_in_mid_round_changes_nothing(build, results):
    world, run_id = begin(build, {"birch": MID_ROUND})
    with world:
        world.wait_snapshot(run_id, 2, "birch")
        world.kill("birch")
        world.start("birch")
        until("birch to go on from its snapshot", lambda: "goes on from step" in world.log_of("birch"))
        _, digest = final(world, run_id)
        assert digest == results["digest"], (digest, results["digest"])


def seam(folder):
    """Where a silo is between two durable steps of a round: (phase of its journal, update there, upload known)."""
    with open(os.path.join(folder, "journal.json")) as f:
        journal = json.load(f)
    return journal["phase"], os.path.exists(os.path.join(folder, "update.safetensors")), bool(journal["upload"])


def a_silo_killed_at_the_seams_of_a_round_changes_nothing(build, results):
    """The update is there and the journal does not say so; the journal does, and nothing is sent; all is sent or
    counted, and the silo does not know. A round each: what died in one passes the next place there unharmed."""
    seams = [("update.encoded=exit", ("train", True, False)), ("journal.trained.done=exit#2", ("trained", True, False)),
             ("send.finished=exit#2", ("trained", True, True))]
    world, run_id = begin(build, {"birch": seams[0][0]})
    with world:
        for n, (faults, want) in enumerate(seams):
            if n > 0:
                world.start("birch", faults=faults)
            died = until("birch to die at " + faults, lambda: world.silos["birch"].poll() is not None and
                         world.silos["birch"].returncode, 180)
            found = seam(world.path("birch", "runs", run_id))
            assert (died, found) == (99, want), (faults, died, found)
        world.start("birch")
        _, digest = final(world, run_id)
        assert digest == results["digest"], (digest, results["digest"])


def the_server_killed_in_mid_round_changes_nothing(build, results):
    world, run_id = begin(build, {"cedar": MID_ROUND})
    with world:
        world.wait_snapshot(run_id, 2, "cedar")
        world.kill_server()
        begin_s = time.monotonic()
        world.start_server()
        print("       serving again after %.1f s" % (time.monotonic() - begin_s))
        _, digest = final(world, run_id)
        assert digest == results["digest"], (digest, results["digest"])


def everything_killed_at_once_changes_nothing(build, results):
    world, run_id = begin(build, {"alder": MID_ROUND})
    with world:
        world.wait_snapshot(run_id, 2, "alder")
        for name in SILOS:
            world.kill(name)
        world.kill_server()
        world.start_server()
        for name in SILOS:
            world.start(name)
        _, digest = final(world, run_id)
        assert digest == results["digest"], (digest, results["digest"])


TESTS = [undisturbed, a_silo_killed_in_mid_round_changes_nothing,
         a_silo_killed_at_the_seams_of_a_round_changes_nothing, the_server_killed_in_mid_round_changes_nothing,
         everything_killed_at_once_changes_nothing]


def main(build):
    return run_tests(TESTS, build, {})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
