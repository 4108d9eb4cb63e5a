"""The fault rig: real programs, killed, starved and lied to. rig.py MODE [--build DIR] [--long] [--seed N]…"""

import argparse
import os
import sys
import time
import traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import disk  # noqa: E402
import kills  # noqa: E402
import nth  # noqa: E402
import points  # noqa: E402
import power  # noqa: E402
import races  # noqa: E402
import two  # noqa: E402
from world import ROOT  # noqa: E402

TEXT = os.path.join(ROOT, "docs", "API.md")


def random_kills(a):
    most = (1000, 1000, 100, 100) if a.long else (8, 6, 1, 2)
    n = [most[i] if v is None else v for i, v in enumerate((a.server, a.client, a.database, a.stops))]
    kills.random_kills(a.build, a.plain, TEXT, a.seed, *n, every_s=20.0 if a.long else 60.0, timed=a.long)


def walk_points(a):
    points.walk(a.build, a.plain, TEXT, a.seed, 1.0 if a.long else 0.03)
    if a.long:
        points.first_start(a.build, a.plain)


def two_servers(a):
    two.two_servers(a.build, a.plain, a.seed, a.rounds or (1000 if a.long else 12))


def power_cuts(a):
    power.lying_disk(a.build, a.plain, TEXT, a.seed)
    power.power_cuts(a.build, a.plain, TEXT, a.seed, a.cuts or (200 if a.long else 2))


def race(a):
    races.race(a.build, a.plain, a.seed, a.seconds or (120 if a.long else 6))


def nth_calls(a):
    nth.nth_calls(a.build, a.plain, TEXT, a.seed, a.trials or (0 if a.long else 6))


def full_disks(a):
    if disk.full_disks(a.build, a.plain, TEXT, a.seed, a.times or (200 if a.long else 2)) is None:
        raise Skipped("tmpfs cannot be mounted here: that needs root")


class Skipped(Exception):
    """This machine cannot do it."""


MODES = {"disk": full_disks, "kills": random_kills, "nth": nth_calls, "points": walk_points, "power": power_cuts,
         "race": race, "two": two_servers}


def main():
    sys.stdout.reconfigure(line_buffering=True)
    p = argparse.ArgumentParser()
    p.add_argument("modes", nargs="+", choices=sorted(MODES))
    p.add_argument("--build", default="build/fault")
    p.add_argument("--plain", default="build/release")
    p.add_argument("--long", action="store_true")
    p.add_argument("--seed", type=int, default=None)
    for name in ("server", "client", "database", "stops", "rounds", "cuts", "seconds", "trials",
                 "times"):
        p.add_argument("--" + name, type=int, default=None)
    a = p.parse_args()
    a.seed = a.seed if a.seed is not None else int.from_bytes(os.urandom(4), "little")
    passed = failed = skipped = 0
    for mode in a.modes:
        begin = time.monotonic()
        try:
            MODES[mode](a)
            passed += 1
            print("  ok   %s, seed %d (%.0f s)" % (mode, a.seed, time.monotonic() - begin))
        except Skipped as why:
            skipped += 1
            print("  skipped: %s: %s" % (mode, why))
        except Exception:
            failed += 1
            print("  FAIL %s, seed %d" % (mode, a.seed))
            traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
    print("%d passed, %d failed, %d skipped" % (passed, failed, skipped))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
