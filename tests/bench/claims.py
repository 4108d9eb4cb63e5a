"""make bench-claims: the paper's claims, each as a few trainings on real text, a table and a curve.

One file of tests/bench/claims/ is one claim: its arms (trainings) and its checks. size.NAME.json says how large
everything is; an arm speaks of it by name, so the same claims run on two CPU cores and on a GPU machine. An arm is
`photon train` or `photon sim` with a spec that this file writes; equal arms of different claims are one training.
What a training gave is kept under a key of its spec, options, seed and the program's digest, so that a rerun goes on.

    claims.py BUILD --data FOLDER [--size cpu] [--only 03] [--seeds 3] [--jobs 2] [--sweep] [--tokenizer FILE]
              [--work DIR] [--out docs]
"""

import argparse
import concurrent.futures
import copy
import glob
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import time

import claims_report

HERE = os.path.dirname(os.path.abspath(__file__))
SWEEP_SEED = 100  # rates are chosen on a seed that no result is of


def merged(a, b):
    """b's members into a copy of a, object by object."""
    out = copy.deepcopy(a)
    for key, value in b.items():
        out[key] = merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def number(size, value):
    """A number, or the size's of that name, or its rate of that name."""
    return size.get(value, size["lr"].get(value)) if isinstance(value, str) else value


class Arm:
    """One training of a claim: a spec and a command line, both functions of the size and the seed."""

    def __init__(self, name, arm, size):
        self.name, self.arm, self.size = name, arm, size
        self.kind = arm.get("kind", "sim")
        self.label = arm.get("label", name)
        self.batch = int(size["batch"] * arm.get("batch", 1))
        self.tau = max(1, int(number(size, arm.get("tau", "tau")) * arm.get("tau_share", 1.0)))
        self.steps = int(size["steps"] * arm.get("steps", 1))
        self.silos = arm.get("silos", size["silos"]) if self.kind == "sim" else 1
        self.per_round = max(1, round(self.silos * arm.get("share", 1.0)))
        self.rounds = arm.get("rounds", max(1, self.steps // self.tau))
        self.windows = arm.get("windows", size["windows"])

    def spec(self, seed):
        size = self.size
        base = {
            "name": "claim", "seed": seed, "model": size["model"],
            "federation": {"rounds": self.rounds, "silos_per_round": self.per_round, "local_steps": self.tau,
                           "min_silos": 1},
            "inner": {"optimizer": "adamw", "lr": number(size, self.arm["lr"]), "batch": self.batch,
                      "warmup": int(size["warmup"] * min(1, self.arm.get("steps", 1))), "min_lr_ratio": 0.1},
            "eval": {"every": max(1, self.rounds // self.arm.get("evals", 8)), "windows": self.windows},
            "keep_checkpoints": 1}
        if "overlap" in self.arm:
            base["federation"]["overlap_steps"] = max(1, int(self.tau * self.arm["overlap"]))
        if "fragments" in self.arm:
            base["federation"]["fragments"] = self.arm["fragments"]
        if size.get("tokenizer"):
            base["tokenizer"] = {"sha256": size["tokenizer"]}
        return merged(merged(base, size.get("spec", {})), self.arm.get("spec", {}))

    def options(self):
        out = []
        if self.kind == "sim":
            out += ["--count", str(self.silos), "--mix", self.arm.get("mix", "iid")]
            out += ["--drop", str(self.arm["drop"])] if "drop" in self.arm else []
        else:
            out += ["--log-every", "1000000000"]
        return out

    def tokens(self):
        return self.rounds * self.tau * self.batch * self.size["model"]["seq_len"] * self.per_round


class Bench:
    def __init__(self, args, size):
        self.photon = os.path.join(os.path.abspath(args.build), "bin", "photon")
        self.args, self.size = args, size
        self.work = os.path.abspath(args.work)
        self.env = dict(os.environ, OMP_WAIT_POLICY="passive")
        with open(self.photon, "rb") as f:
            self.digest = hashlib.sha256(f.read()).hexdigest()
        os.makedirs(os.path.join(self.work, "results"), exist_ok=True)
        self.genres = self.prepare(args.data)

    def prepare(self, folder):
        """Each file of the folder is a genre; those with enough text, the largest first."""
        found = []
        for path in sorted(glob.glob(os.path.join(folder, "*"))):
            name = os.path.basename(path).split(".")[0]
            if not path.endswith((".txt", ".jsonl", ".jsonl.gz", ".json.gz")):
                continue
            out = os.path.join(self.work, "data", name)
            if not os.path.exists(os.path.join(out, "manifest.json")):
                with_tokenizer = ["-t", self.args.tokenizer] if self.args.tokenizer else []
                self.call("data", "prepare", path, "-o", out, "--force", "-q", *with_tokenizer)
            with open(os.path.join(out, "manifest.json")) as f:
                m = json.load(f)
            train, heldout = m["train"]["tokens"], m["heldout"]["tokens"]
            self.size["tokenizer"] = m["tokenizer_sha256"]
            if train >= self.size["genre_tokens"] and heldout >= self.size["heldout_tokens"]:
                found.append((train, name, out, heldout))
        found.sort(reverse=True)
        if len(found) < self.size["genres"]:
            sys.exit("claims: %s has %d kinds of text with enough of it, not %d" %
                     (folder, len(found), self.size["genres"]))
        return found[:self.size["genres"]]

    def call(self, *args):
        done = subprocess.run([self.photon, *args], capture_output=True, text=True, env=self.env)
        if done.returncode != 0:
            raise RuntimeError("photon %s: status %d: %s" % (args[0], done.returncode, done.stderr.strip()[-300:]))
        return done.stdout

    def key(self, arm, seed):
        what = json.dumps([arm.kind, arm.spec(seed), arm.options(), [g[1:2] + g[3:] for g in self.genres],
                           arm.windows, self.digest if not self.args.any_binary else ""], sort_keys=True)
        return hashlib.sha256(what.encode()).hexdigest()[:16]

    def train(self, arm, seed):
        """The curve and the bytes of one training, from the cache when it is there."""
        key = self.key(arm, seed)
        path = os.path.join(self.work, "results", key + ".json")
        if os.path.exists(path):
            with open(path) as f:
                return json.load(f)
        out = os.path.join(self.args.scratch or os.path.join(self.work, "runs"), key)
        spec = os.path.join(self.work, "results", key + ".spec")
        os.makedirs(os.path.dirname(out), exist_ok=True)
        with open(spec, "w") as f:
            json.dump(arm.spec(seed), f)
        flag = "--sources" if arm.kind == "sim" else "--data"
        places = [word for g in self.genres for word in (flag, g[2])] + [word for g in self.genres
                                                                        for word in ("--eval", g[2])]
        begin = time.monotonic()
        self.call(arm.kind, spec, "-o", out, "-q", "--windows", str(arm.windows), "--threads",
                  str(self.size["threads"]), "--device", self.size["device"], "--dtype", self.size["dtype"],
                  *places, *arm.options())
        with open(os.path.join(out, "metrics.jsonl")) as f:
            lines = [json.loads(line) for line in f]
        evals = [o for o in lines if o["kind"] == "eval"]
        rounds = [o for o in lines if o["kind"] == "round"]
        result = {"step": [o["step"] for o in evals], "tokens": [o["tokens"] for o in evals],
                  "loss": [o["eval_loss"] for o in evals], "seconds": time.monotonic() - begin,
                  "upload_bytes": sum(o["upload_bytes"] for o in rounds),
                  "download_bytes": sum(o["download_bytes"] for o in rounds),
                  "accepted": sum(o["accepted"] for o in rounds), "rounds": len(rounds)}
        with open(path + ".tmp", "w") as f:
            json.dump(result, f)
        os.replace(path + ".tmp", path)
        shutil.rmtree(out, ignore_errors=True)
        return result

    def train_all(self, jobs):
        """{(arm name, seed): result} for a list of (arm, seed); equal trainings run once."""
        unique = {}
        for arm, seed in jobs:
            unique.setdefault(self.key(arm, seed), (arm, seed))
        todo = [(k, a, s) for k, (a, s) in unique.items()
                if not os.path.exists(os.path.join(self.work, "results", k + ".json"))]
        total = sum(a.tokens() for _, a, _ in todo)
        done = 0
        begin = time.monotonic()
        todo.sort(key=lambda job: -job[1].tokens())
        with concurrent.futures.ThreadPoolExecutor(self.args.jobs) as pool:
            futures = {pool.submit(self.train, a, s): a for _, a, s in todo}
            for n, f in enumerate(concurrent.futures.as_completed(futures), 1):
                arm = futures[f]
                try:
                    f.result()
                except RuntimeError as e:
                    print("  FAIL %s: %s" % (arm.name, e), flush=True)
                done += arm.tokens()
                spent = time.monotonic() - begin
                print("  %d of %d trainings, %.0f of %.0f M tokens, %.0f s, %.0f s to go" %
                      (n, len(todo), done / 1e6, total / 1e6, spent, spent / done * (total - done)), flush=True)
        return {k: self.train(*unique[k]) for k in unique
                if os.path.exists(os.path.join(self.work, "results", k + ".json"))}


# ---- claims ----


def mean(values):
    return sum(values) / len(values)


def sd(values):
    m = mean(values)
    return math.sqrt(sum((v - m) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else 0.0


def rounds_to(result, loss):
    """Steps until the curve first is at this loss or below, between evaluations on a line; None: never."""
    steps, losses = result["step"], result["loss"]
    for i in range(1, len(steps)):
        if losses[i] <= loss:
            part = (losses[i - 1] - loss) / (losses[i - 1] - losses[i]) if losses[i - 1] > loss else 0.0
            return steps[i - 1] + part * (steps[i] - steps[i - 1])
    return None


def params_of(size):
    m = size["model"]
    d, layers = m["d_model"], m["n_layers"]
    return m["vocab_size"] * d + m["seq_len"] * d + layers * (12 * d * d + 13 * d) + 2 * d


def check(c, arms, results, seeds, size):
    """(value text, holds) of one check, over the seeds that are there; None: nothing to hold, or not run."""
    def of(name):
        return [results.get((name, s)) for s in seeds]

    def ppl(name):
        return [math.exp(r["loss"][-1]) for r in of(name)]
    names = [c[k] for k in ("arm", "of") if k in c]
    seeds = [s for s in seeds if all(results.get((n, s)) for n in names)]
    if not seeds:
        return "not run", None
    if c["is"] == "ppl":
        ratios = [a / b - 1.0 for a, b in zip(ppl(c["arm"]), ppl(c["of"]))]
        value = mean(ratios)
        text = "%+.2f %% ± %.2f" % (100 * value, 100 * sd(ratios))
        return text, None if "at_most" not in c else value <= c["at_most"] + 1e-12
    if c["is"] == "rounds":
        shares = []
        for a, b in zip(of(c["arm"]), of(c["of"])):
            to = rounds_to(a, b["loss"][-1])
            tau_a, tau_b = arms[c["arm"]].tau, arms[c["of"]].tau
            shares.append(None if to is None else (to / tau_a) / (b["step"][-1] / tau_b))
        if any(s is None for s in shares):
            return "never reached by %d of %d seeds" % (sum(s is None for s in shares), len(shares)), False
        return "%.2f ± %.2f of the rounds" % (mean(shares), sd(shares)), None if "at_most" not in c else mean(shares) <= c["at_most"]
    if c["is"] == "bytes":
        way = c["way"]
        ratios = [b[way] / b["accepted"] / (a[way] / a["accepted"]) for a, b in zip(of(c["arm"]), of(c["of"]))]
        return "%.2f ×" % mean(ratios), mean(ratios) >= c["at_least"]
    if c["is"] == "traffic":
        # Ring all-reduce of bf16 gradients: each replica sends and receives 2N(K-1)/K numbers a step.
        arm = arms[c["arm"]]
        n, k = params_of(size), arm.per_round
        parallel = 8.0 * n * (k - 1) / k * k * arm.rounds * arm.tau
        ratios = [parallel / (r["upload_bytes"] + r["download_bytes"]) for r in of(c["arm"])]
        return "%.0f ×" % mean(ratios), mean(ratios) >= c["at_least"]
    raise ValueError(c["is"])


def checked(c, arms, results, seeds, size):
    """check(), with how many seeds it is of where some are missing."""
    text, holds = check(c, arms, results, seeds, size)
    there = [s for s in seeds if all(results.get((c[k], s)) for k in ("arm", "of") if k in c)]
    return (text, holds) if len(there) in (0, len(seeds)) else ("%s (%d of %d seeds)" % (text, len(there), len(seeds)), holds)


def load(path):
    with open(path) as f:
        return json.load(f)


def sweep_jobs(size):
    jobs = []
    for name, s in size["sweeps"].items():
        for lr in s["lr"]:
            jobs.append((name, lr, Arm("sweep %s lr %g" % (name, lr), dict(s["arm"], lr=lr), size)))
    return jobs


def main():
    p = argparse.ArgumentParser()
    p.add_argument("build")
    p.add_argument("--data", default="")
    p.add_argument("--size", default="cpu")
    p.add_argument("--only", default="")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--jobs", type=int, default=os.cpu_count())
    p.add_argument("--sweep", action="store_true", help="the sweeps of learning rates alone")
    p.add_argument("--work", default="build/claims")
    p.add_argument("--scratch", default="", help="where trainings keep themselves; a folder in memory is fast")
    p.add_argument("--out", default="build/claims/report")
    p.add_argument("--cached", action="store_true", help="train nothing: a report of what is there")
    p.add_argument("--tokenizer", default="", help="a tokenizer.json; without one, bytes are tokens")
    p.add_argument("--any-binary", action="store_true", help="results of other builds count too")
    args = p.parse_args()
    if not os.path.isdir(args.data):
        sys.exit("claims: the claims need real text: make bench-claims DATA=folder, one .txt or .jsonl(.gz) per kind")
    size = load(os.path.join(HERE, "claims", "size.%s.json" % args.size))
    bench = Bench(args, size)
    seeds = list(range(1, args.seeds + 1))
    sweeps = sweep_jobs(size)
    claims = []
    for path in sorted(glob.glob(os.path.join(HERE, "claims", "[0-9]*.json"))):
        if args.only in os.path.basename(path):
            claims.append(dict(load(path), file=os.path.basename(path)))
    jobs = [(arm, SWEEP_SEED) for _, _, arm in sweeps] if args.sweep or not args.only else []
    if not args.sweep:
        for c in claims:
            c["parts"] = {name: Arm(name, arm, size) for name, arm in c["arms"].items()}
            c["for"] = seeds[:c.get("seeds", len(seeds))]
            jobs += [(arm, s) for arm in c["parts"].values() for s in c["for"]]
    by_key = bench.train_all([] if args.cached else jobs)
    if args.cached:
        by_key = {k: bench.train(a, s) for a, s in jobs for k in [bench.key(a, s)]
                  if os.path.exists(os.path.join(bench.work, "results", k + ".json"))}

    def result(arm, seed):
        return by_key.get(bench.key(arm, seed))
    table = [(name, lr, result(arm, SWEEP_SEED)) for name, lr, arm in sweeps]
    if args.sweep:
        for name, lr, r in table:
            print("  %-28s lr %-7g %s" % (name, lr, "loss %.4f" % r["loss"][-1] if r else "-"))
        return 0
    failed = 0
    for c in claims:
        c["results"] = {(n, s): result(a, s) for n, a in c["parts"].items() for s in c["for"]}
        c["checked"] = []
        print("\n%s" % c["title"])
        for k in c["checks"]:
            text, holds = checked(k, c["parts"], c["results"], c["for"], size)
            c["checked"].append((k, text, holds))
            failed += holds is False
            print("  %-4s %s: %s" % ({True: "pass", False: "FAIL", None: "-"}[holds], k["text"], text))
    claims_report.write(args.out, size, claims, seeds, table, bench)
    print("\n%s/RESULTS.md written" % args.out)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
