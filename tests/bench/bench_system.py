"""The whole system's figures on this machine: transfers and aggregation of a 125m model, requests a second.

    bench_system.py BUILD [ROUNDS]

A real server and one real silo take a 125m model through a few rounds of a single local step, so
that nearly all the time is transfer; download, upload and aggregation are read from the rounds that
the server recorded. Then the runs list is asked for as fast as it answers. JSON lines.
"""

import json
import os
import statistics
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from harness import World  # noqa: E402

SPEC = {
    "name": "transfer",
    "seed": 1,
    "model": {"preset": "125m", "seq_len": 128},
    "federation": {"silos_per_round": 1, "min_silos": 1, "local_steps": 1},
    "inner": {"optimizer": "adamw", "lr": 1e-4, "batch": 1, "warmup": 1},
    "eval": {"every": 1000, "windows": 1},
    "keep_checkpoints": 2,
}


def main(build, rounds):
    spec = dict(SPEC, federation=dict(SPEC["federation"], rounds=rounds))
    with World(build) as world:
        world.start_server()
        text = world.path("text.txt")
        with open(text, "w") as f:
            for i in range(40000):
                f.write("line %d of text that is long enough to fill a window or two\n\n" % i)
        world.join("alone", text)
        world.start("alone", "--threads", "2")
        run = world.post("/api/v1/runs", spec)["id"]
        world.wait_finished(run, 900)
        done = [r for r in world.get("/api/v1/runs/%s/rounds" % run)["items"] if r["state"] == "closed"]
        head = world.run(run)["head_checkpoint"]
        for name, key, size in (("download", "download_s", head["bytes"]), ("upload", "upload_s", head["bytes"]),
                                ("aggregate", "aggregate_s", 3 * head["bytes"])):
            took = [r["split"][key] for r in done if r["split"].get(key)]
            if took:
                rate = [size / s / 1e6 for s in took]
                print(json.dumps({"bench": name, "bytes": size, "rounds": len(took),
                                  "mb_per_s": {"min": round(min(rate)), "median": round(statistics.median(rate)),
                                               "max": round(max(rate))}}))
        with open("/proc/%d/status" % world.server.pid) as f:
            peak = [line.split()[1] for line in f if line.startswith("VmHWM")]
        print(json.dumps({"bench": "server_memory", "peak_rss_mb": round(int(peak[0]) / 1024)}))
        sys.stdout.flush()
        load = os.path.join(os.path.abspath(build), "tests", "bench", "bench_http")
        for connections in (1, 8, 32):
            subprocess.run([load, str(world.port), "/api/v1/runs", world.token, "4", str(connections)], check=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 4)
