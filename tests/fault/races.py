"""No kills: rounds under delays at the critical lines, deadlines that pass while updates are accepted, and a silo whose
older half speaks again after the newer one has taken over."""

import random
import threading
import time

from world import SCRIPTED, Broken, Rig, Scripted

SLOW = ("task.round_locked=delay:0-60ms@%d;task.locked=delay:0-60ms@%d;accept.locked=delay:0-120ms@%d;"
        "accept.counted=delay:0-150ms@%d;seal.locked=delay:0-60ms@%d;seal.counted=delay:0-120ms@%d;"
        "seal.marked=delay:0-60ms@%d;claim.locked=delay:0-60ms@%d;claim.taken=delay:0-60ms@%d;"
        "chunk.commit=delay:0-20ms@%d;place.named=delay:0-20ms@%d")


class Stale(Scripted):
    """Claims, claims again as an agent that was restarted does, and then both halves go on."""

    stale_accepted = 0

    def train_once(self, task, scale):
        if random.random() < 0.5:
            return super().train_once(task, scale)
        again = self.claim(0)
        if again.status != 200 or again.json()["task"] != task["task"]:
            return None
        data, tokens = self.update(task, pattern=scale)
        newer = again.json()
        created = self.create(newer, data, tokens)
        if created.status not in (200, 201):
            return None
        upload = self.send(newer, data, tokens)
        answer = self.finish(task, upload)  # under the older epoch
        if answer.status in (200, 400, 500):  # counted, or stopped by a constraint alone
            Stale.stale_accepted += 1
        return super().train_once(newer, scale)


def race(build, plain, seed, seconds, say=print):
    rng = random.Random(seed)
    Stale.stale_accepted = 0
    with Rig(build, plain) as rig:
        rig.start_server(SLOW % tuple(rng.randrange(1, 1 << 30) for _ in range(SLOW.count("%d"))))
        rig.submit(SCRIPTED, name="scripted", federation=dict(SCRIPTED["federation"], silos_per_round=4, min_silos=2))
        rig.add_scripted(3)
        older = Stale(rig.door, "alder-older", rig.journal)
        older.start()
        rig.scripted.append(older)
        pulled, stop = [0], threading.Event()

        def pull():
            """Time runs out while somebody is still on the way."""
            draw = random.Random(seed)
            while not stop.wait(draw.uniform(0.05, 0.3)):
                rows = rig.psql("UPDATE round q SET deadline = clock_timestamp() WHERE state = 'open' AND"
                                " (SELECT count(*) FROM update u WHERE u.round_id = q.id AND u.state = 'accepted')"
                                " >= q.quorum AND deadline > clock_timestamp() RETURNING id")
                pulled[0] += len(rows)

        puller = threading.Thread(target=pull, daemon=True)
        puller.start()
        begin = time.monotonic()
        try:
            while time.monotonic() - begin < seconds:
                time.sleep(1.0)
                rig.check_rows()
                if Stale.stale_accepted:
                    raise Broken("an update under an epoch of before was not refused as stale")
        finally:
            stop.set()
            puller.join(20)
        line = rig.verify()
        refused = {}
        for silo in rig.scripted:
            for code, n in silo.refused.items():
                refused[code] = refused.get(code, 0) + n
        say("       %.0f s, %d deadlines passed, refused %s; %s" % (time.monotonic() - begin, pulled[0], refused, line))
