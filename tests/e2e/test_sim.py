"""photon sim is the federation: the same checkpoint, byte for byte, as server and silos; and it survives a kill."""

import glob
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

from harness import ROOT, World, run_tests, until

SILOS = {"alder": "server/*.c", "birch": "client/*.h", "cedar": "docs/*.md"}

SPEC = {
    "name": "twin",
    "seed": 11,
    "model": {"d_model": 32, "n_heads": 2, "n_layers": 2, "vocab_size": 320, "seq_len": 64,
              "position": "learned", "bias": True},
    # Two seats for three silos, momentum outside: draws, kept moments and outer state all count.
    "federation": {"rounds": 4, "silos_per_round": 2, "min_silos": 2, "local_steps": 30},
    "inner": {"optimizer": "adamw", "lr": 3e-3, "batch": 4, "warmup": 10},
    "outer": {"name": "fednesterov", "lr": 0.7, "momentum": 0.9},
    "eval": {"every": 1, "windows": 8},
}

# The same with error feedback in it: two seats for three silos, so residuals age.
CODED = dict(SPEC, name="coded", codec={"up": "q4"})
# The lowest rung, where the guard trips.
LOWEST = dict(SPEC, name="lowest", codec={"up": "topk"})
# And down: checkpoints go as steps, to a silo that lapsed as more than one.
STEPS = dict(SPEC, name="steps", codec={"up": "q4", "down": "q2"}, eval={"every": 4, "windows": 8})

# The model in three parts that rounds synchronise in turn: kept weights, a residual for each, their own outer steps.
FRAGMENTS = dict(SPEC, name="parts", codec={"up": "q4"}, federation=dict(SPEC["federation"], rounds=7, fragments=3),
                 outer={"name": "fedadam"})

# And down: a step has the part of its round, and a silo that lapsed takes steps of several.
STEPPED_PARTS = dict(FRAGMENTS, name="stepped-parts", codec={"up": "q4", "down": "q4"}, eval={"every": 7, "windows": 8})

# A quarter of each round is taken before its checkpoint is there.
OVERLAP = dict(SPEC, name="overlap", federation=dict(SPEC["federation"], rounds=5, overlap_steps=8))

# What a silo starts from and keeps: means of moments that travel, tensors that stand still and others that stay at home.
AVERAGE = dict(SPEC, name="average", inner_state="average")
PERSONAL = dict(SPEC, name="personal", codec={"up": "q4"},
                model=dict(SPEC["model"], freeze=["wpe.*", "blocks.0.norm_1.*"], personal=["blocks.1.ffn.*"]))
RESET = dict(SPEC, name="reset", inner_state="reset", weights="uniform")
# Steps by speed: all of them in the first round, from which the second one's follow.
DYLU = dict(SPEC, name="dylu", federation=dict(SPEC["federation"], rounds=2, silos_per_round=3, min_silos=3,
                                               local_steps_policy="dylu"))
STREAMED = [("killed-parts", {"fragments": 2}, {"down": "q4"}),
            ("killed-overlap", {"overlap_steps": 12, "local_steps": 40}, {}),
            ("killed-both", {"overlap_steps": 20, "local_steps": 20, "fragments": 2, "rounds": 5}, {})]


def text_of(path, pattern):
    with open(path, "w") as out:
        for source in sorted(glob.glob(os.path.join(ROOT, pattern))):
            with open(source, errors="replace") as f:
                out.write(f.read() + "\n\n")
    return path


class Desk:
    """A folder of prepared text, and simulations in it."""

    def __init__(self, build, folder):
        self.photon = os.path.join(os.path.abspath(build), "bin", "photon")
        self.dir = folder
        self.env = dict(os.environ, OMP_WAIT_POLICY="passive")

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    def prepare(self):
        for name, pattern in SILOS.items():
            text = text_of(self.path(name + ".txt"), pattern)
            subprocess.run([self.photon, "data", "prepare", text, "-o", self.path(name + "-data"), "-q"], check=True,
                           capture_output=True, env=self.env)

    def command(self, name, spec, *options):
        with open(self.path(name + ".json"), "w") as f:
            json.dump(spec, f)
        return [self.photon, "sim", self.path(name + ".json"), "-o", self.path(name), "--device", "cpu", "--threads",
                "1", "--json", "-q", *options]

    def silos(self):
        return ["--silos", *["%s=%s" % (n, self.path(n + "-data")) for n in SILOS]]

    def sim(self, name, spec, *options):
        done = subprocess.run(self.command(name, spec, *options), capture_output=True, text=True, env=self.env,
                              timeout=120)
        if done.returncode != 0:
            raise AssertionError("photon sim: status %d\n%s" % (done.returncode, done.stderr))
        return json.loads(done.stdout)

    def lines(self, name, kind):
        with open(self.path(name, "metrics.jsonl")) as f:
            return [o for o in map(json.loads, f) if o["kind"] == kind]


def the_simulation_gives_the_checkpoint_of_the_federation(desk):
    with World(desk.build) as world:
        world.start_server()
        for name, pattern in SILOS.items():
            world.join(name, text_of(world.path(name + ".txt"), pattern))
            world.start(name)
        until("all silos to be here", lambda: sum(s["status"] != "gone" and s["device"] is not None for s in
                                                  world.get("/api/v1/silos")["items"]) == len(SILOS))
        run = world.wait_finished(world.post("/api/v1/runs", SPEC)["id"])
        coded = world.wait_finished(world.post("/api/v1/runs", CODED)["id"])
        lowest = world.wait_finished(world.post("/api/v1/runs", LOWEST)["id"])
        parts = world.wait_finished(world.post("/api/v1/runs", FRAGMENTS)["id"])
        steps = world.wait_finished(world.post("/api/v1/runs", STEPS)["id"])
        stepped = world.wait_finished(world.post("/api/v1/runs", STEPPED_PARTS)["id"])
        overlap = world.wait_finished(world.post("/api/v1/runs", OVERLAP)["id"])
        logs = "".join(world.log_of(silo) for silo in SILOS)
    assert "updates go one rung above topk" in logs
    report = desk.sim("lowest", LOWEST, *desk.silos())
    assert report["sha256"] == lowest["head_checkpoint"]["sha256"], (report, lowest["head_checkpoint"])
    report = desk.sim("overlap", OVERLAP, *desk.silos())
    assert report["sha256"] == overlap["head_checkpoint"]["sha256"], (report, overlap["head_checkpoint"])
    report = desk.sim("parts", FRAGMENTS, *desk.silos())
    assert report["sha256"] == parts["head_checkpoint"]["sha256"], (report, parts["head_checkpoint"])
    each = coded["upload_bytes"] / 4, parts["upload_bytes"] / 7  # of a round; the headers of small updates count
    assert each[1] < each[0] / 2, each
    report = desk.sim("steps", STEPS, *desk.silos())
    assert report["sha256"] == steps["head_checkpoint"]["sha256"], (report, steps["head_checkpoint"])
    report = desk.sim("stepped-parts", STEPPED_PARTS, *desk.silos())
    assert report["sha256"] == stepped["head_checkpoint"]["sha256"], (report, stepped["head_checkpoint"])
    assert stepped["download_bytes"] < parts["download_bytes"] / 2, (stepped["download_bytes"], parts["download_bytes"])
    assert "was made by 2 steps" in logs or "was made by 3 steps" in logs
    assert steps["download_bytes"] < run["download_bytes"] / 2, (steps["download_bytes"], run["download_bytes"])
    report = desk.sim("coded", CODED, *desk.silos())
    assert report["sha256"] == coded["head_checkpoint"]["sha256"], (report, coded["head_checkpoint"])
    assert coded["upload_bytes"] < run["upload_bytes"] / 4, (coded["upload_bytes"], run["upload_bytes"])
    report = desk.sim("twin", SPEC, *desk.silos())
    assert report["sha256"] == run["head_checkpoint"]["sha256"], (report, run["head_checkpoint"])
    # The aggregator adds the same sums in the same order.
    assert abs(report["eval_loss"] - run["eval_loss"]) < 1e-12, (report["eval_loss"], run["eval_loss"])
    assert report["upload_bytes"] <= run["upload_bytes"], (report, run["upload_bytes"])
    desk.digest = report["sha256"]


def measured_speeds(world, run_id):
    """Tokens per second of each silo's only training before the last round, as the aggregator reads them."""
    rows = subprocess.run(["psql", "-X", "-q", "-A", "-t", "-F", " ", "-h", world.path("server", "pg-socket"), "-U", "photon",
                           "-v", "ON_ERROR_STOP=1", "postgres", "-c",
                           "SELECT s.name, u.tokens / t.train_s FROM task t JOIN update u ON u.task_id = t.id"
                           " JOIN silo s ON s.id = u.silo_id WHERE t.run_id = '%s' AND t.number = 1" % run_id],
                          check=True, capture_output=True, text=True).stdout
    return dict(line.split() for line in rows.splitlines())


def what_silos_keep_and_how_long_they_train_are_simulated_too(desk):
    with World(desk.build) as world:
        world.start_server()
        for name, pattern in SILOS.items():
            world.join(name, text_of(world.path(name + ".txt"), pattern))
            world.start(name)
        until("all silos to be here", lambda: sum(s["status"] != "gone" and s["device"] is not None for s in
                                                  world.get("/api/v1/silos")["items"]) == len(SILOS))
        runs = {spec["name"]: world.wait_finished(world.post("/api/v1/runs", spec)["id"])
                for spec in (AVERAGE, PERSONAL, RESET, DYLU)}
        speeds = measured_speeds(world, runs["dylu"]["id"])
    for spec in (AVERAGE, PERSONAL, RESET):
        run = runs[spec["name"]]
        report = desk.sim(spec["name"], spec, *desk.silos())
        assert report["sha256"] == run["head_checkpoint"]["sha256"], (spec["name"], report, run["head_checkpoint"])
        assert abs(report["eval_loss"] - run["eval_loss"]) < 1e-12, (spec["name"], report["eval_loss"], run["eval_loss"])
    assert runs["average"]["upload_bytes"] > 2.5 * runs["reset"]["upload_bytes"]
    # The same speeds give the same steps; in a second run other ones would have been measured.
    report = desk.sim("dylu", DYLU, *desk.silos(), "--speeds", ",".join(speeds[name] for name in SILOS))
    assert report["sha256"] == runs["dylu"]["head_checkpoint"]["sha256"], (speeds, report, runs["dylu"]["head_checkpoint"])
    assert report["tokens"] < 6 * 30 * 4 * 64, report  # two of three were slower than the fastest


def steps_go_by_the_speeds_that_are_stated(desk):
    # birch is half as fast as alder; cedar's fifth is below the floor, which is a quarter.
    spec = dict(DYLU, federation=dict(DYLU["federation"], rounds=3, local_steps=20, local_steps_min=5))
    desk.sim("stated", spec, *desk.silos(), "--speeds", "1000,500,200")
    tokens = [o["tokens"] for o in desk.lines("stated", "round")]
    assert [n // (4 * 64) for n in tokens] == [60, 60 + 35, 60 + 2 * 35], tokens
    for options, spec, why in (((), DYLU, "one; try --speeds"), (("--speeds", "1,2"), DYLU, "each of 3 silos"),
                               (("--speeds", "1,0,2"), DYLU, "above 0"), (("--speeds", "1,2,3,4"), DYLU, "each of 3 silos"),
                               (("--speeds", "1,2,3"), SPEC, "try dylu"),
                               ((), dict(SPEC, codec={"up": "auto"}), "try the rung"),
                               (("--eval", desk.path("alder-data")), PERSONAL, "without --eval")):
        done = subprocess.run(desk.command("refused", spec, *desk.silos(), *options), capture_output=True, text=True,
                              env=desk.env)
        assert done.returncode == 3 and why in done.stderr, (options, done.returncode, done.stderr)


def a_federation_killed_at_any_time_gives_the_checkpoint_of_the_simulation(desk):
    """Every silo has a seat in every round, so that nothing but the kills differs: one falls on each silo."""
    specs = [dict(SPEC, name=name, codec=codec, federation=dict(SPEC["federation"], silos_per_round=3, min_silos=3, **more))
             for name, more, codec in STREAMED]
    heads = []
    with World(desk.build) as world:
        world.start_server()
        for silo, pattern in SILOS.items():
            world.join(silo, text_of(world.path(silo + ".txt"), pattern))
            world.start(silo)
        for spec in specs:
            run_id = world.post("/api/v1/runs", spec)["id"]
            for i, silo in enumerate(SILOS):
                until("round %d to be closed" % i, lambda: world.run(run_id)["round"] >= i)
                time.sleep(0.07 * i)  # at another place of the round each time
                world.kill(silo)
                world.start(silo)
            heads.append(world.wait_finished(run_id)["head_checkpoint"]["sha256"])
        logs = "".join(world.log_of(silo) for silo in SILOS)
    assert "steps were taken ahead" in logs and "steps go on from this silo's own weights" in logs
    for spec, head in zip(specs, heads):
        report = desk.sim(spec["name"], spec, *desk.silos())
        assert report["sha256"] == head, (spec["name"], report, head)


def a_killed_simulation_goes_on_with_the_same_bits(desk):
    command = desk.command("killed", SPEC, *desk.silos())
    for after in (1, 3):
        process = subprocess.Popen(command, env=desk.env, stdout=subprocess.DEVNULL)
        book = desk.path("killed", "sim.json")

        def reached():
            if process.poll() is not None:
                return True
            try:
                with open(book) as f:
                    return json.load(f)["round"] >= after
            except (OSError, ValueError):
                return False
        until("round %d of the simulation" % after, reached)
        process.send_signal(signal.SIGKILL)
        process.wait()
    report = desk.sim("killed", SPEC, *desk.silos())
    assert report["sha256"] == desk.digest, (report["sha256"], desk.digest)
    assert [o["round"] for o in desk.lines("killed", "round")] == [1, 2, 3, 4]
    assert [o["round"] for o in desk.lines("killed", "eval")] == [0, 1, 2, 3, 4]
    for name in ("round", "eval"):
        loss = "train_loss" if name == "round" else "eval_loss"
        assert [o[loss] for o in desk.lines("killed", name)] == [o[loss] for o in desk.lines("twin", name)]


def drop_outs_come_from_the_seed_and_cost_no_round(desk):
    spec = dict(SPEC, federation=dict(SPEC["federation"], silos_per_round=3, min_silos=1, rounds=6))
    first = desk.sim("drops", spec, *desk.silos(), "--drop", "0.4")
    again = desk.sim("drops-again", spec, *desk.silos(), "--drop", "0.4")
    assert first["sha256"] == again["sha256"]
    rounds = desk.lines("drops", "round")
    accepted = [o["accepted"] for o in rounds]
    assert len(rounds) == 6 and all(1 <= n <= 3 for n in accepted) and sum(accepted) < 18, accepted
    tokens = sum(accepted) * 30 * 4 * 64
    assert first["tokens"] == tokens, (first["tokens"], tokens)


def a_round_that_lacks_a_quorum_is_tried_again_with_what_came(desk):
    spec = dict(SPEC, federation=dict(SPEC["federation"], silos_per_round=3, min_silos=3, rounds=3))
    desk.sim("quorum", spec, *desk.silos(), "--drop", "0.3")
    rounds = desk.lines("quorum", "round")
    assert all(o["accepted"] == 3 for o in rounds), rounds
    assert any(o["attempts"] > 1 for o in rounds), rounds
    # What came in an earlier attempt is not trained a second time.
    assert all(o["upload_bytes"] * 3 == o["accepted"] * rounds[0]["upload_bytes"] for o in rounds), rounds


def silos_mix_the_sources_as_told(desk):
    spec = dict(SPEC, federation=dict(SPEC["federation"], rounds=1))
    sources = [desk.path(n + "-data") for n in SILOS]
    digests = {desk.sim("mix-" + mix.split(":")[0], spec, "--sources", *sources, "--count", "3", "--mix", mix)["sha256"]
               for mix in ("iid", "genre", "dirichlet:0.3")}
    assert len(digests) == 3, digests


def updates_on_lower_rungs_are_smaller_and_their_residuals_survive_a_stop(desk):
    plain = desk.sim("f32", dict(SPEC, outer={"name": "fedavg"}), *desk.silos())
    for rung, ratio in (("int8", 2.0), ("q4", 2.5), ("topk", 3.0)):
        spec = dict(SPEC, outer={"name": "fedavg"}, codec={"up": rung})
        whole = desk.sim(rung, spec, *desk.silos())
        assert plain["upload_bytes"] > ratio * whole["upload_bytes"], (rung, whole, plain)
        name = rung + "-stopped"
        process = subprocess.Popen(desk.command(name, spec, *desk.silos()), env=desk.env, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        until("a round of the simulation", lambda: process.poll() is not None or
              os.path.exists(desk.path(name, "checkpoint-00000002.safetensors")))
        process.terminate()
        assert process.wait() in (0, 75), process.returncode
        assert desk.sim(name, spec, *desk.silos())["sha256"] == whole["sha256"], rung


def a_folder_of_another_simulation_is_refused(desk):
    other = dict(SPEC, seed=12)
    done = subprocess.run(desk.command("twin", other, *desk.silos()), capture_output=True, text=True, env=desk.env)
    assert done.returncode == 3 and "another" in done.stderr, (done.returncode, done.stderr)


TESTS = [the_simulation_gives_the_checkpoint_of_the_federation,
         a_federation_killed_at_any_time_gives_the_checkpoint_of_the_simulation, a_killed_simulation_goes_on_with_the_same_bits,
         drop_outs_come_from_the_seed_and_cost_no_round, a_round_that_lacks_a_quorum_is_tried_again_with_what_came,
         what_silos_keep_and_how_long_they_train_are_simulated_too, steps_go_by_the_speeds_that_are_stated,
         silos_mix_the_sources_as_told, updates_on_lower_rungs_are_smaller_and_their_residuals_survive_a_stop,
         a_folder_of_another_simulation_is_refused]


def main(build):
    with tempfile.TemporaryDirectory(prefix="photon-sim-") as folder:
        desk = Desk(build, folder)
        desk.build = build
        desk.prepare()
        return run_tests(TESTS, desk)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
