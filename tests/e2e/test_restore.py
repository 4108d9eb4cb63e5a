"""The drill of docs/OPERATIONS.md, "Backup and restore", with the very commands of that page: a running federation is
backed up, goes on, loses its data folder, is restored, and its silos finish the run by themselves."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

from harness import ROOT, World, free_ports, until
from test_loop import corpus
from test_policies import MODEL, SILOS

ROUNDS = 16
SPEC = {"name": "drill", "seed": 5, "model": MODEL, "keep_checkpoints": 0,
        "federation": {"rounds": ROUNDS, "silos_per_round": 2, "min_silos": 2, "local_steps": 60},
        "inner": {"optimizer": "adamw", "lr": 3e-3, "batch": 4, "warmup": 5}, "eval": {"every": 4, "windows": 4}}


def commands(number):
    """That block of commands of the page's section."""
    with open(os.path.join(ROOT, "docs", "OPERATIONS.md")) as f:
        section = re.search(r"^## Backup and restore\n(.*?)^## ", f.read(), re.M | re.S).group(1)
    return re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S)[number]


def carry_out(world, script):
    """As a person would at a shell, but for the places."""
    port = str(free_ports(1)[0])
    for said, here in (("/var/lib/photon", world.path("server")), ("backup:/photon", world.path("backup")),
                       ("18080", port)):
        assert said in script or said == "18080", (said, script)
        script = script.replace(said, here)
    shell = subprocess.Popen(["sh", "-exc", script], cwd=world.dir, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True, start_new_session=True,
                             env=dict(world.env, PATH=world.bin + ":" + os.environ["PATH"]))
    try:
        said, _ = shell.communicate(timeout=90)
    except subprocess.TimeoutExpired:
        os.killpg(shell.pid, signal.SIGKILL)
        said, _ = shell.communicate()
        raise AssertionError("it does not end:\n" + said)
    assert shell.returncode == 0, said
    return said


def closed(world, run_id):
    return world.run(run_id)["round"] or 0


def checkpoints(world, run_id, last):
    return [world.get("/api/v1/runs/%s/checkpoints/%d" % (run_id, n))["weights_digest"] for n in range(last + 1)]


def acknowledged(world, run_id, last):
    """What the silos were told counts, of rounds up to the last: the lines of photon-client acks."""
    lines = []
    for name in SILOS:
        done = subprocess.run([os.path.join(world.bin, "photon-client"), "acks", "--state", world.path(name)],
                              capture_output=True, text=True, check=True)
        lines += [line for line in done.stdout.splitlines() if line.split()[2] == run_id and int(line.split()[3]) <= last]
    return lines


def check(world, acks=()):
    path = world.path("acks")
    with open(path, "w") as f:
        f.write("".join(line + "\n" for line in acks))
    done = subprocess.run([os.path.join(world.bin, "photon-server"), "check", "--data", world.path("server"),
                           "--acks", path], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def destroy(world):
    """The machine is gone: server, PostgreSQL, data folder."""
    world.kill_server()
    with open(world.path("server", "pg", "postmaster.pid")) as f:
        postmaster = int(f.readline())
    try:
        os.kill(postmaster, signal.SIGQUIT)
        until("PostgreSQL to end", lambda: not os.path.exists("/proc/%d" % postmaster))
    except ProcessLookupError:
        pass
    shutil.rmtree(world.path("server"))


def the_drill(world):
    run_id = world.post("/api/v1/runs", SPEC)["id"]
    until("some rounds", lambda: closed(world, run_id) >= 3)
    kept = closed(world, run_id)
    digests, acks = checkpoints(world, run_id, kept), acknowledged(world, run_id, kept)
    assert len(acks) == kept * len(SILOS), acks
    carry_out(world, commands(0))

    told = closed(world, run_id)
    until("the silos to be ahead of the backup", lambda: closed(world, run_id) > told)
    assert closed(world, run_id) < ROUNDS, "the run was over before anything could be lost"
    destroy(world)
    assert "0 violations" in carry_out(world, commands(1))

    rc, said = check(world, acks)
    assert rc == 0, said  # what was acknowledged before the backup is there
    world.start_server()
    back = closed(world, run_id)
    assert kept <= back <= told, (kept, back, told)
    assert checkpoints(world, run_id, kept) == digests
    run = world.wait_finished(run_id)
    assert run["round"] == ROUNDS and run["eval_loss"] < run["initial_eval_loss"] - 1.0, run
    assert all(silo.poll() is None for silo in world.silos.values()), "a silo ended"
    rc, said = check(world, acks)
    assert rc == 0, said


def main(build):
    begin_s = time.monotonic()
    with World(build) as world:
        world.start_server()
        for name, pattern in SILOS.items():
            world.join(name, corpus(world, name, pattern))
            world.start(name)
        the_drill(world)
    print("  ok   the_drill (%.0f s)" % (time.monotonic() - begin_s))
    print("1 passed, 0 failed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
