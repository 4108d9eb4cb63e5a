"""RESULTS.md and its curves (SVG) from what claims.py measured."""

import math
import os
import platform

COLOURS = ["#1b6ca8", "#c8553d", "#3c8d5a", "#8e5ea2", "#b8860b", "#555555", "#d36ba6", "#2f9e9e"]
W, H, LEFT, RIGHT, TOP, BOTTOM = 720, 360, 62, 210, 18, 44


def mean(values):
    return sum(values) / len(values)


def sd(values):
    m = mean(values)
    return math.sqrt(sum((v - m) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else 0.0


def ticks(low, high, wanted):
    """Round numbers from low to high."""
    step = 10 ** math.floor(math.log10((high - low) / wanted))
    step *= min((m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= wanted), default=10)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def short(v):
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if v >= size:
            return "%g%s" % (v / size, unit)
    return "%g" % v


def svg(curves, x_name):
    """curves: [(label, xs, [ys of a seed, ...])]: mean and the band between the extremes, y logarithmic."""
    points = [(x, y) for _, xs, seeds in curves for ys in seeds for x, y in zip(xs, ys) if x > 0]
    x_most = max(x for x, _ in points)
    # The first part of every curve falls steeply; what is compared is the rest.
    shown = [y for x, y in points if x >= 0.12 * x_most] or [y for _, y in points]
    low, high = min(shown) * 0.99, max(shown) * 1.01

    def at(x, y):
        y = min(max(y, low), high)
        return (LEFT + x / x_most * (W - LEFT - RIGHT),
                TOP + (math.log(high) - math.log(y)) / (math.log(high) - math.log(low)) * (H - TOP - BOTTOM))
    out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">' % (W, H),
           '<rect width="%d" height="%d" fill="#fff"/>' % (W, H)]
    for y in ticks(low, high, 7):
        px, py = at(0, y)
        out.append('<line x1="%.1f" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/><text x="%.1f" y="%.1f" '
                   'text-anchor="end">%g</text>' % (px, W - RIGHT, py, py, px - 6, py + 4, y))
    for x in ticks(0, x_most, 6):
        px, _ = at(x, low)
        out.append('<text x="%.1f" y="%d" text-anchor="middle">%s</text>' % (px, H - BOTTOM + 18, short(x)))
    out.append('<text x="%.1f" y="%d" text-anchor="middle">%s</text>' % ((LEFT + W - RIGHT) / 2, H - 6, x_name))
    out.append('<text x="14" y="%d" transform="rotate(-90 14 %d)" text-anchor="middle">validation perplexity</text>' %
               (H / 2 - 10, H / 2 - 10))
    for i, (label, xs, seeds) in enumerate(curves):
        colour = COLOURS[i % len(COLOURS)]
        keep = [k for k, x in enumerate(xs) if x > 0]
        middle = [mean([ys[k] for ys in seeds]) for k in keep]
        upper = ["%.1f,%.1f" % at(xs[k], max(ys[k] for ys in seeds)) for k in keep]
        lower = ["%.1f,%.1f" % at(xs[k], min(ys[k] for ys in seeds)) for k in reversed(keep)]
        line = ["%.1f,%.1f" % at(xs[k], y) for k, y in zip(keep, middle)]
        out.append('<polygon points="%s" fill="%s" opacity="0.18"/>' % (" ".join(upper + lower), colour))
        out.append('<polyline points="%s" fill="none" stroke="%s" stroke-width="1.8"/>' % (" ".join(line), colour))
        y = TOP + 14 + 18 * i
        out.append('<line x1="%d" x2="%d" y1="%d" y2="%d" stroke="%s" stroke-width="3"/><text x="%d" y="%d">%s</text>' %
                   (W - RIGHT + 10, W - RIGHT + 28, y - 4, y - 4, colour, W - RIGHT + 34, y,
                    label.replace("&", "&amp;").replace("<", "&lt;")))
    return "\n".join(out) + "\n</svg>\n"


def curve_of(claim, seeds):
    x = claim.get("x", "step")
    curves = []
    for name, arm in claim["parts"].items():
        runs = [r for r in (claim["results"][(name, s)] for s in seeds) if r]
        if not runs:
            continue
        xs = runs[0]["tokens" if x == "tokens" else "step"]
        xs = [v / arm.tau for v in xs] if x == "round" else xs
        curves.append((arm.label, xs, [[math.exp(v) for v in r["loss"]] for r in runs]))
    return curves, {"step": "steps", "round": "rounds", "tokens": "tokens"}[x]


def arm_rows(claim, seeds):
    rows = ["| training | silos in a round | batch | τ | steps | tokens | validation perplexity | up, a round and silo | down |",
            "|---|---|---|---|---|---|---|---|---|"]
    for name, arm in claim["parts"].items():
        runs = [r for r in (claim["results"][(name, s)] for s in seeds) if r]
        if not runs:
            rows.append("| %s | | | | | | not run | | |" % arm.label)
            continue
        ppl = [math.exp(r["loss"][-1]) for r in runs]
        up = down = "–"
        if arm.kind == "sim":
            up = "%.1f kB" % mean([r["upload_bytes"] / r["accepted"] / 1e3 for r in runs])
            down = "%.1f kB" % mean([r["download_bytes"] / r["accepted"] / 1e3 for r in runs])
        rows.append("| %s | %s | %d | %s | %d | %.2f M | %.3f ± %.3f | %s | %s |" %
                    (arm.label, "%d of %d" % (arm.per_round, arm.silos) if arm.kind == "sim" else "–", arm.batch,
                     arm.tau if arm.kind == "sim" else "–", arm.rounds * arm.tau, mean([r["tokens"][-1] for r in runs]) / 1e6, mean(ppl), sd(ppl),
                     up, down))
    return rows


def machine():
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as f:
            model = next((line.split(":")[1].strip() for line in f if line.startswith("model name")), model)
    except OSError:
        pass
    return "%s, %d cores" % (model, os.cpu_count())


def write(folder, size, claims, seeds, sweeps, bench):
    os.makedirs(os.path.join(folder, "results"), exist_ok=True)
    marks = {True: "pass", False: "**fail**", None: "–"}
    text = ["# Results", "",
            "What the claims of the paper come to with this code, on real text. Written by `make bench-claims DATA=…`; the text is not",
            "part of the project.", "",
            size["about"].strip(), "",
            "Text: " + ", ".join("%s (%.1f M tokens to train on, %.0f k held out)" % (g[1], g[0] / 1e6, g[3] / 1e3)
                                 for g in bench.genres) +
            ". Perplexity is that of the global model on %d windows of %d tokens, spread over all held-out text; %d seeds, ± is the standard"
            " deviation over seeds (of the ratio, paired by seed, where two trainings are compared). Machine: %s." %
            (size["windows"], size["model"]["seq_len"], len(seeds), machine()), "",
            "| claim | measured | |", "|---|---|---|"]
    for c in claims:
        for k, value, holds in c["checked"]:
            text.append("| %s | %s | %s |" % (k["text"], value, marks[holds]))
    for c in claims:
        text += ["", "## " + c["title"], "", c["about"].strip(), ""]
        curves, x_name = curve_of(c, c["for"])
        if curves and c.get("plot", True):
            name = c["file"].replace(".json", ".svg")
            with open(os.path.join(folder, "results", name), "w") as f:
                f.write(svg(curves, x_name))
            text += ["![%s](results/%s)" % (c["title"], name), ""]
        text += arm_rows(c, c["for"])
        for k, value, holds in c["checked"]:
            text += ["", "- %s: %s%s" % (k["text"], value, {True: ": pass.", False: ": **fail**.", None: "."}[holds])]
            text[-1] += " " + c["reasons"][k["id"]] if not holds and k.get("id") in c.get("reasons", {}) else ""
        if c.get("note"):
            text += ["", c["note"].strip()]
    text += ["", "## Beside these", ""] + ["- " + line for line in size.get("also", [])]
    text += ["", "## Learning rates", "",
             "Chosen on a seed that no result above is of, for each kind of training apart; final validation loss:", "",
             "| training | " + " | ".join("%g" % lr for lr in sorted({lr for _, lr, _ in sweeps})) + " | taken |",
             "|---|" + "---|" * (len({lr for _, lr, _ in sweeps}) + 1)]
    rates = sorted({lr for _, lr, _ in sweeps})
    for name in dict.fromkeys(n for n, _, _ in sweeps):
        row = {lr: r for n, lr, r in sweeps if n == name}
        cells = ["%.4f" % row[lr]["loss"][-1] if row.get(lr) else "" for lr in rates]
        text.append("| %s | %s | %s |" % (size["sweeps"][name]["label"], " | ".join(cells), "%g" % size["lr"][name]
                                          if name in size["lr"] else "–"))
    with open(os.path.join(folder, "RESULTS.md"), "w") as f:
        f.write("\n".join(text) + "\n")
