"""A federation on a GPU: two silos train the 125m preset on real text for some rounds, through a real server."""

import sys

from harness import World, run_tests
from test_loop import corpus

SILOS = {"alder": "*/*.c", "birch": "*/*.h"}
SPEC = {
    "name": "gpu",
    "seed": 3,
    "model": {"preset": "125m", "vocab_size": 320, "seq_len": 1024},
    "federation": {"rounds": 3, "silos_per_round": 2, "min_silos": 2, "local_steps": 40},
    "inner": {"optimizer": "adamw", "lr": 6e-4, "batch": 16, "warmup": 20},
    "codec": {"up": "int8"},
    "eval": {"every": 1, "windows": 8},
}


def two_silos_train_on_the_gpu(build):
    with World(build) as world:
        world.start_server()
        for name, pattern in SILOS.items():
            world.join(name, corpus(world, name, pattern))
            world.start(name, "--device", "cuda")
        run = world.wait_finished(world.post("/api/v1/runs", SPEC)["id"], timeout_s=600)
        assert run["round"] == SPEC["federation"]["rounds"], run
        assert run["eval_loss"] < 0.6 * run["initial_eval_loss"], (run["initial_eval_loss"], run["eval_loss"])
        for name in SILOS:
            assert "cuda" in world.log_of(name), world.log_of(name)[-2000:]
        print("       evaluation loss %.3f, then %.3f" % (run["initial_eval_loss"], run["eval_loss"]))


def main(build):
    return run_tests([two_silos_train_on_the_gpu], build)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
