"""The whole system's figures on this machine: transfers and aggregation of a 125m model, requests a second.

    bench_system.py BUILD [ROUNDS]

A real server and one real silo take a 125m model through a few rounds of a single local step, so
that nearly all the time is transfer; download, upload and aggregation are read from the rounds that
the server recorded. Then the runs list is asked for as fast as it answers. JSON lines.

    bench_system.py BUILD durable [PAIRS]

One upload of 1 GiB, begun to accepted, in turns with dd writing and syncing as much in a fresh file on the same disk.

    bench_system.py BUILD bytes [CODEC...]

Every byte between one silo and the server, both listeners, heads and polls included, over three rounds of a 125m model;
per round, for each codec of updates, and against f32. UP/DOWN names a codec for the way down too, topk:256 what it keeps.
"""

import json
import os
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from harness import World  # noqa: E402
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "fault"))
from proxy import Proxy  # noqa: E402

SPEC = {
    "name": "transfer",
    "seed": 1,
    "model": {"preset": "125m", "seq_len": 128},
    "federation": {"silos_per_round": 1, "min_silos": 1, "local_steps": 1},
    "inner": {"optimizer": "adamw", "lr": 1e-4, "batch": 1, "warmup": 1},
    "eval": {"every": 1000, "windows": 1},
    "keep_checkpoints": 2,
}

# Its update is about 1 GiB: 2048 x 32768 of embeddings, and four layers of 12 x 2048 x 2048.
LARGE = {
    "name": "durable",
    "seed": 1,
    "model": {"d_model": 2048, "n_heads": 16, "n_layers": 4, "vocab_size": 32768, "seq_len": 8},
    "federation": {"silos_per_round": 1, "min_silos": 1, "local_steps": 1},
    "inner": {"batch": 1},
    "eval": {"every": 100000, "windows": 1},
    "keep_checkpoints": 1,
}


def peak_rss_mb(pid):
    with open("/proc/%d/status" % pid) as f:
        peak = [line.split()[1] for line in f if line.startswith("VmHWM")]
    return round(int(peak[0]) / 1024)


def plain_write(world, number):
    """MB/s of dd into a fresh file in the folder where the server keeps its own."""
    path = world.path("server", "dd-%d" % number)
    begin = time.monotonic()
    subprocess.run(["dd", "if=/dev/zero", "of=" + path, "bs=8M", "count=128", "conv=fsync"], check=True, capture_output=True)
    rate = (1 << 30) / (time.monotonic() - begin) / 1e6
    os.unlink(path)
    return rate


def durable(build, pairs):
    driver = os.path.join(os.path.abspath(build), "tests", "fault", "send_update")
    with World(build) as world:
        world.start_server()
        text = world.path("text.txt")
        with open(text, "w") as f:
            f.write("a line of text that nobody trains on\n\n" * 2000)
        world.join("alone", text)
        world.post("/api/v1/runs", dict(LARGE, federation=dict(LARGE["federation"], rounds=pairs)))
        ours, dd = [], []
        for i in range(pairs):
            done = subprocess.run([driver, world.path("alone"), world.url, "http://127.0.0.1:%d" % world.bulk_port, "1"],
                                  capture_output=True, text=True, timeout=900)
            assert done.returncode == 0, "send_update: status %d\n%s" % (done.returncode, done.stderr[-3000:])
            line = [x for x in map(json.loads, done.stdout.splitlines()) if x["transfer"] == "upload"][-1]
            ours.append(line["bytes"] / line["seconds"] / 1e6)
            dd.append(plain_write(world, i))
        print(json.dumps({"bench": "durable_upload", "bytes": line["bytes"], "pairs": pairs,
                          "upload_mb_per_s": round(statistics.median(ours)), "dd_mb_per_s": round(statistics.median(dd)),
                          "ratio": round(statistics.median(ours) / statistics.median(dd), 3),
                          "server_peak_rss_mb": peak_rss_mb(world.server.pid)}))


def on_the_socket(build, codec, rounds):
    """Bytes a round, up and down, as a proxy before each listener counts them."""
    up, _, down = codec.partition("/")
    up, _, kept = up.partition(":")
    spec = dict(SPEC, codec=dict({"up": up, "down": down or "f32"}, **({"up_k": int(kept)} if kept else {})), federation=dict(SPEC["federation"], rounds=rounds))
    with World(build) as world:
        control, bulk = Proxy(build, world.port), Proxy(build, world.bulk_port)
        world.start_server("--public-url", "http://127.0.0.1:%d" % control.port, "--bulk-url", "http://127.0.0.1:%d" % bulk.port)
        text = world.path("text.txt")
        with open(text, "w") as f:
            f.write("a line of text that nobody learns much from\n\n" * 20000)
        direct, world.url = world.url, "http://127.0.0.1:%d" % control.port
        world.join("alone", text)
        world.url = direct
        world.start("alone", "--threads", "2")
        world.wait_finished(world.post("/api/v1/runs", spec)["id"], 900)
        counted = [p.totals() for p in (control, bulk)]
        for p in (control, bulk):
            p.close()
    return [sum(c[way] for c in counted) / rounds for way in ("up_out", "down_out")]


def bytes_a_round(build, codecs, rounds=3):
    plain = None
    for codec in codecs:
        up, down = on_the_socket(build, codec, rounds)
        plain = plain or (up, down)
        print(json.dumps({"bench": "bytes_a_round", "codec": codec, "up": round(up), "down": round(down),
                          "up_ratio": round(plain[0] / up, 2), "down_ratio": round(plain[1] / down, 2)}))
        sys.stdout.flush()


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
        print(json.dumps({"bench": "server_memory", "peak_rss_mb": peak_rss_mb(world.server.pid)}))
        sys.stdout.flush()
        load = os.path.join(os.path.abspath(build), "tests", "bench", "bench_http")
        for connections in (1, 8, 32):
            subprocess.run([load, str(world.port), "/api/v1/runs", world.token, "4", str(connections)], check=True)


if __name__ == "__main__":
    if sys.argv[2:3] == ["durable"]:
        durable(sys.argv[1], int(sys.argv[3]) if len(sys.argv) > 3 else 3)
    elif sys.argv[2:3] == ["bytes"]:
        bytes_a_round(sys.argv[1], sys.argv[3:] or ["f32", "int8", "q4", "topk:256"])
    else:
        main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 4)
