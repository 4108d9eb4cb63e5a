"""A full disk: the folder of the blobs, then that of a silo, on a small tmpfs; both go on by themselves once there is room."""

import os
import random
import subprocess
import time

from world import REAL, SCRIPTED, Broken, Rig, poll


def mount(path, size_mib):
    os.makedirs(path, exist_ok=True)
    return subprocess.run(["mount", "-t", "tmpfs", "-o", "size=%dm,mode=0700" % size_mib, "tmpfs", path],
                          capture_output=True).returncode == 0


def fill(path, leave):
    """All room but about so many bytes is taken."""
    with open(os.path.join(path, "ballast"), "wb") as f:
        room = os.statvfs(path)
        try:
            f.write(bytes(max(0, room.f_bavail * room.f_frsize - leave)))
            f.flush()
        except OSError:
            pass


def free(path):
    try:
        os.unlink(os.path.join(path, "ballast"))
    except OSError:
        pass


def full_disks(build, plain, text, seed, times, say=print):
    """None when tmpfs cannot be mounted here."""
    rng = random.Random(seed)
    with Rig(build, plain) as rig:
        os.makedirs(rig.path("data"), 0o711)
        store, state = rig.path("data", "store"), rig.path("alder")
        mounted = []
        try:
            if not mount(store, 160):
                return None
            mounted.append(store)
            if mount(state, 24):
                mounted.append(state)
            rig.start_server(options=["--free-floor", "1M"])  # what is kept free otherwise is meant for disks
            rig.enrol(["alder"], text)
            rig.submit(REAL, name="real", federation=dict(REAL["federation"], silos_per_round=1, min_silos=1))
            rig.start_client("alder")
            rig.submit(SCRIPTED)
            rig.add_scripted(3)
            begin = time.monotonic()
            process = rig.server
            for _ in range(times):
                where = rng.choice(mounted)
                fill(where, rng.randrange(0, 40000))
                time.sleep(rng.uniform(0.3, 1.2))
                if rig.server.poll() is not None:
                    raise Broken("the server ended with status %d on a full disk" % rig.server.returncode)
                rig.check_rows()
                free(where)
                before = {run: rig.round_of(run) for run in rig.runs}
                for run, number in before.items():
                    def moved():
                        rig.psql("UPDATE silo SET fails = 0; UPDATE run_silo SET aside_rounds = 0;"
                                 "UPDATE task SET free_at = clock_timestamp() WHERE state = 'pending'")
                        return rig.round_of(run) > number
                    poll("run %s to go on with room" % rig.runs[run]["name"], moved, 90, 0.1)
                rig.check_acks()
            if rig.server is not process or rig.clients["alder"].poll() is not None:
                raise Broken("somebody had to be started again")
            line = rig.verify()
            say("       %d times full in %.0f s, gone on without a restart; %s" % (times, time.monotonic() - begin, line))
            return True
        finally:
            rig.close()
            for path in reversed(mounted):
                subprocess.run(["umount", "-l", path], capture_output=True)

