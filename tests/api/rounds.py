"""How rounds move, over the real server with scripted silos: draws, seals, aborts, damage, evaluation, retention."""

import glob
import os
import signal
import struct

import kit
from kit import psql, until
from silo_client import MODEL, Silo, code, read_safetensors, spec
from silos import begin, fresh_name, no_violations, other_runs_off


def one(sql):
    return psql(sql)[0][0]


def run_of(server, run):
    return server.get("/api/v1/runs/" + run).json()


def round_of(run, number, attempt=1):
    row = psql("SELECT id, state, array_to_string(eligible, ',') FROM round WHERE run_id = '%s' AND number = %d"
               " AND attempt = %d" % (run, number, attempt))
    return row[0] if row else None


def wait_round(run, number, state, attempt=1, timeout_s=20):
    until("round %d of %s to be %s" % (number, run, state),
          lambda: (round_of(run, number, attempt) or [0, ""])[1] == state, timeout_s)


def kinds(run):
    return [r[0] for r in psql("SELECT kind FROM event WHERE run_id = '%s' ORDER BY xid, id" % run)]


def blob_path(server, digest):
    return glob.glob(os.path.join(server.dir, "data", "store", "blobs", "*", "*", digest))


def see_all(silos):
    for s in silos:
        s.hello()


def seats(silos):
    """Each silo's training task; evaluations met on the way are answered."""
    return {s: s.task() for s in silos}


def finish_evaluations(run, silos):
    def done():
        for s in silos:
            answer = s.claim(0)
            if answer.status == 200 and answer.json()["kind"] == "evaluate":
                s.evaluate(answer.json())
        return one("SELECT count(*) FROM task WHERE run_id = '%s' AND kind = 'evaluate'"
                   " AND state IN ('pending', 'leased')" % run) == "0"
    until("the evaluations of " + run, done, 20)


# ---- opening ----

def test_a_round_waits_for_its_silos_and_says_so(server):
    run, (ash,) = begin(server, 1, silos_per_round=3, min_silos=2)
    until("the reason to be said", lambda: run_of(server, run)["waiting_for"])
    assert run_of(server, run)["waiting_for"] == "2 more silos (1 of 3 are here)", run_of(server, run)["waiting_for"]
    assert round_of(run, 1)[1] == "pending"
    assert ash.claim(0).status == 204


def test_a_quorum_opens_a_round_when_the_others_had_their_time(server):
    run, silos = begin(server, 2, silos_per_round=3, min_silos=2)
    until("the round to be prepared", lambda: round_of(run, 1))
    psql("UPDATE round SET created_at = created_at - interval '2 min' WHERE run_id = '%s';"
         "UPDATE server_process SET started_at = started_at - interval '2 min'" % run)
    wait_round(run, 1, "open")
    assert one("SELECT silos_expected || '/' || quorum FROM round WHERE run_id = '%s'" % run) == "2/2"
    for s, task in seats(silos).items():
        assert s.train(task).status == 200
    wait_round(run, 1, "closed")
    no_violations()


def test_a_silo_with_another_tokenizer_gets_no_seat(server):
    run, (ash, birch) = begin(server, 2, silos_per_round=3, min_silos=1)
    birch.hello(tokenizer_sha256="ab" * 32)
    until("one silo to count", lambda: run_of(server, run)["waiting_for"] == "2 more silos (1 of 3 are here)")


def test_a_draw_is_a_function_of_seed_and_round_alone(server):
    orders = []
    for _ in range(2):
        run, silos = begin(server, 4, silos_per_round=4, rounds=1)
        wait_round(run, 1, "open")
        by_name = {s.name: i for i, s in enumerate(sorted(silos, key=lambda s: s.name))}
        orders.append([by_name[n] for n in round_of(run, 1)[2].split(",")])
    assert sorted(orders[0]) == [0, 1, 2, 3]
    assert orders[0] == orders[1], orders


# ---- sealing ----

def test_an_over_sampled_round_is_sealed_by_the_first_ones(server):
    run, silos = begin(server, 3, silos_per_round=2, min_silos=2, oversample=1, rounds=1)
    held = seats(silos)
    slow = silos[0]
    data, tokens = slow.update(held[slow])
    upload = slow.send(held[slow], data, tokens)
    for s in silos[1:]:
        assert s.train(held[s]).status == 200
    wait_round(run, 1, "closed")
    answer = slow.finish(held[slow], upload)
    assert answer.status == 409 and code(answer) == "ROUND_CLOSED", answer.body
    assert one("SELECT state FROM task WHERE id = '%s'" % held[slow]["task"]) == "cancelled"
    no_violations()


def test_a_quorum_seals_at_the_deadline(server):
    run, silos = begin(server, 3, silos_per_round=3, min_silos=2, rounds=1)
    held = seats(silos)
    for s in silos[1:]:
        assert s.train(held[s]).status == 200
    assert round_of(run, 1)[1] == "open"
    psql("UPDATE round SET deadline = opened_at WHERE run_id = '%s'" % run)
    wait_round(run, 1, "closed")
    assert "round 1 sealed with 2 of 3 updates" in [r[0] for r in psql("SELECT message FROM event WHERE run_id = '%s'" % run)]
    no_violations()


def test_prometheus_says_how_long_the_newest_round_took(server):
    run, (ash,) = begin(server, 1, rounds=2)
    assert ash.train(ash.task()).status == 200
    wait_round(run, 1, "closed")
    name = run_of(server, run)["name"]
    lines = dict(line.rsplit(" ", 1) for line in server.get("/metrics").body.decode().splitlines() if line[0] != "#")
    for family in ("photon_round_duration_seconds", "photon_aggregation_duration_seconds"):
        assert 0 <= float(lines['%s{run="%s"}' % (family, name)]) < 60, family


def test_a_quorum_seals_when_nobody_is_at_work(server):
    run, silos = begin(server, 3, silos_per_round=3, min_silos=2, rounds=1)
    held = seats(silos)
    bad = silos[0]
    for attempt in range(3):
        assert bad.post("/tasks/%s/release" % held[bad]["task"],
                        {"epoch": held[bad]["lease"]["epoch"], "code": "oom", "detail": "test"}).status == 200
        if attempt < 2:
            psql("UPDATE task SET free_at = now() WHERE id = '%s'" % held[bad]["task"])
            held[bad] = bad.task()
    for s in silos[1:]:
        assert s.train(held[s]).status == 200
    wait_round(run, 1, "closed")
    assert "task_failed" in kinds(run)
    assert one("SELECT aside_rounds FROM run_silo WHERE run_id = '%s' AND silo_id = '%s'" % (run, bad.id)) == "3"
    no_violations()


# ---- aborting ----

def test_a_round_past_its_cap_is_opened_again_with_what_came(server):
    run, silos = begin(server, 2, silos_per_round=2, min_silos=2, rounds=1)
    held = seats(silos)
    ash, birch = silos
    assert ash.train(held[ash], seed=1).status == 200
    psql("UPDATE round SET deadline = opened_at, cap_at = opened_at WHERE run_id = '%s'" % run)
    wait_round(run, 1, "open", 2)
    stale = birch.post("/tasks/%s/heartbeat" % held[birch]["task"],
                       {"epoch": held[birch]["lease"]["epoch"], "step": 1, "phase": "train", "tokens_per_s": None})
    assert stale.status == 409, stale.body
    assert round_of(run, 1, 1)[2] == round_of(run, 1, 2)[2], "another draw"
    again = birch.task()
    assert again["round"] == 1 and again["task"] != held[birch]["task"]
    assert birch.train(again, seed=2).status == 200
    wait_round(run, 1, "closed", 2)
    assert one("SELECT count(*) FROM update u JOIN round q ON q.id = u.round_id WHERE q.run_id = '%s'"
               " AND u.carried_from IS NOT NULL" % run) == "1"
    finish_evaluations(run, silos)
    until("the run to end", lambda: run_of(server, run)["state"] == "finished")
    no_violations()


def test_a_run_that_starves_pauses_and_can_be_resumed(server):
    run, silos = begin(server, 2, silos_per_round=2, min_silos=2, rounds=1)
    for attempt in (1, 2, 3):
        see_all(silos)
        wait_round(run, 1, "open", attempt)
        psql("UPDATE round SET deadline = opened_at, cap_at = opened_at WHERE run_id = '%s' AND state = 'open'" % run)
        wait_round(run, 1, "aborted", attempt)
    until("the run to pause", lambda: run_of(server, run)["state"] == "paused")
    assert "given up 3 times" in run_of(server, run)["reason"]
    assert kinds(run).count("run_starved") == 1
    see_all(silos)
    assert server.post("/api/v1/runs/%s/actions" % run, {"action": "resume"}).status == 200
    wait_round(run, 1, "open", 4)
    for s, task in seats(silos).items():
        assert s.train(task).status == 200
    wait_round(run, 1, "closed", 4)
    no_violations()


def test_a_stopped_run_cancels_its_round(server):
    run, silos = begin(server, 2)
    held = seats(silos)
    assert server.post("/api/v1/runs/%s/actions" % run, {"action": "stop"}).status == 200
    wait_round(run, 1, "aborted")
    assert one("SELECT count(*) FROM task WHERE run_id = '%s' AND state IN ('pending', 'leased')" % run) == "0"
    assert round_of(run, 1, 2) is None
    data, tokens = silos[0].update(held[silos[0]])
    answer = silos[0].create(held[silos[0]], data, tokens)
    assert answer.status in (409, 410), answer.body
    no_violations()


def test_a_paused_run_closes_its_round_and_opens_no_other(server):
    run, silos = begin(server, 2, rounds=2)
    held = seats(silos)
    assert server.post("/api/v1/runs/%s/actions" % run, {"action": "pause"}).status == 200
    for s in silos:
        assert s.train(held[s]).status == 200
    wait_round(run, 1, "closed")
    assert round_of(run, 2) is None
    see_all(silos)
    assert server.post("/api/v1/runs/%s/actions" % run, {"action": "resume"}).status == 200
    wait_round(run, 2, "open")
    no_violations()


# ---- damage ----

def damage(server, silo, task):
    """The silo's accepted update, with one bit of its stored file turned."""
    digest = one("SELECT encode(digest, 'hex') FROM update WHERE task_id = '%s'" % task["task"])
    (path,) = blob_path(server, digest)
    damage_file(path)


def damage_file(path):
    """Done twice, it is sound again."""
    os.chmod(path, 0o600)
    with open(path, "r+b") as f:
        f.seek(-5, os.SEEK_END)
        byte = f.read(1)
        f.seek(-5, os.SEEK_END)
        f.write(bytes([byte[0] ^ 4]))


def test_a_damaged_update_is_asked_for_again_and_nothing_else(server):
    run, silos = begin(server, 2, silos_per_round=2, min_silos=2, rounds=1)
    ash, birch = silos
    held = seats(silos)
    assert ash.train(held[ash], seed=1).status == 200
    damage(server, ash, held[ash])
    assert birch.train(held[birch], seed=2).status == 200
    wait_round(run, 1, "open", 2)
    assert "update_corrupt" in kinds(run)
    assert birch.claim(0).status == 204, "a sound update was asked for again"
    assert ash.train(ash.task(), seed=1).status == 200  # the same bytes under the same name
    wait_round(run, 1, "closed", 2)
    no_violations()


def test_a_damaged_update_is_left_out_where_a_quorum_remains(server):
    run, silos = begin(server, 3, silos_per_round=3, min_silos=2, rounds=1)
    held = seats(silos)
    assert silos[0].train(held[silos[0]], seed=1).status == 200
    damage(server, silos[0], held[silos[0]])
    for s in silos[1:]:
        assert s.train(held[s], seed=2).status == 200
    wait_round(run, 1, "closed")
    assert one("SELECT manifest_rev FROM round WHERE run_id = '%s'" % run) == "1"
    assert "round 1 closed with 2 of 3 updates" in [r[0] for r in psql("SELECT message FROM event WHERE run_id = '%s'" % run)]
    no_violations()


def test_a_round_that_cannot_be_published_keeps_no_other_back(server):
    run, (ash,) = begin(server, 1, rounds=1)
    psql("CREATE FUNCTION stand_in_the_way() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
         " IF NEW.run_id = '%s' AND NEW.number = 1 THEN RAISE EXCEPTION 'no'; END IF; RETURN NEW; END $$;"
         "CREATE TRIGGER stand_in_the_way BEFORE INSERT ON checkpoint FOR EACH ROW"
         " EXECUTE FUNCTION stand_in_the_way();" % run)
    assert ash.train(ash.task()).status == 200
    wait_round(run, 1, "aggregating")
    until("a try", lambda: one("SELECT agg_epoch > 0 FROM round WHERE run_id = '%s'" % run) == "t")
    birch = Silo(server, fresh_name("silo"))
    birch.hello()
    psql("UPDATE silo SET seen_at = clock_timestamp() - interval '1 hour', gone = true WHERE id <> '%s'" % birch.id)
    other = server.post("/api/v1/runs", spec(fresh_name("run"), rounds=1)).json()["id"]
    assert birch.train(birch.task(timeout_s=60)).status == 200
    wait_round(other, 1, "closed", timeout_s=60)
    assert round_of(run, 1)[1] == "aggregating"
    psql("DROP FUNCTION stand_in_the_way CASCADE")
    wait_round(run, 1, "closed")
    no_violations()


# ---- evaluation and the end ----

def test_a_run_is_finished_only_after_its_last_evaluation(server):
    run, (ash,) = begin(server, 1, rounds=1)
    assert ash.train(ash.task()).status == 200
    wait_round(run, 1, "closed")
    assert run_of(server, run)["state"] == "running"
    finish_evaluations(run, [ash])
    until("the run to end", lambda: run_of(server, run)["state"] == "finished")
    got = run_of(server, run)
    assert got["initial_eval_loss"] == 40.0 / 7 and got["eval_loss"] == 40.0 / 7, got
    names = [r[0] for r in psql("SELECT DISTINCT name FROM metric WHERE run_id = '%s' AND silo_id IS NULL ORDER BY 1" % run)]
    assert names == ["aggregate_s", "delta_norm", "download_bytes", "download_s", "eval_bpb", "eval_loss",
                     "outer_step_norm", "round_s", "train_s", "upload_bytes", "upload_s"], names
    no_violations()


def test_an_evaluation_nobody_does_does_not_keep_a_run_from_ending(server):
    run, silos = begin(server, 2, rounds=1)
    for s, task in seats(silos).items():
        assert s.train(task).status == 200
    wait_round(run, 1, "closed")
    assert run_of(server, run)["state"] == "running"
    psql("UPDATE checkpoint SET created_at = created_at - interval '61 s' WHERE run_id = '%s'" % run)
    until("the run to end", lambda: run_of(server, run)["state"] == "finished")
    no_violations()


# ---- leases, outage, retention ----

def test_a_silo_that_fell_silent_loses_its_seat_and_says_nothing_twice(server):
    run, silos = begin(server, 2, rounds=1)
    held = seats(silos)
    ash = silos[0]
    psql("UPDATE silo SET gone = true WHERE id = '%s';"
         "UPDATE task SET lease_until = now() - interval '61 s' WHERE id = '%s'" % (ash.id, held[ash]["task"]))
    until("the seat to be free", lambda: one("SELECT state FROM task WHERE id = '%s'" % held[ash]["task"]) == "pending")
    assert kinds(run).count("task_expired") == 1
    again = ash.task()
    assert again["task"] == held[ash]["task"] and again["lease"]["epoch"] == held[ash]["lease"]["epoch"] + 1
    no_violations()


def test_silence_of_all_servers_costs_no_silo_its_seat(server):
    run, (ash,) = begin(server, 1)
    task = ash.task()
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    psql("UPDATE server_process SET seen_at = seen_at - interval '10 min';"
         "UPDATE task SET lease_until = now() - interval '9 min' WHERE id = '%s'" % task["task"])
    deadline = one("SELECT extract(epoch FROM deadline) FROM round WHERE run_id = '%s'" % run)
    psql("UPDATE round SET cap_at = cap_at + interval '1 day' WHERE run_id = '%s'" % run)
    server.start()
    assert one("SELECT lease_until > (SELECT max(started_at) FROM server_process) + interval '50 s' FROM task WHERE id = '%s'"
               % task["task"]) == "t"
    later = one("SELECT extract(epoch FROM deadline) FROM round WHERE run_id = '%s'" % run)
    assert 590 < float(later) - float(deadline) < 700, (deadline, later)
    assert ash.train(task).status == 200


def test_files_past_their_keeping_are_removed_and_their_numbers_stay(server):
    run, (ash,) = begin(server, 1, rounds=6, more={"codec": {"down": "q4"}})
    psql("UPDATE run SET waiting_for = NULL WHERE id = '%s'" % run)
    for number in range(1, 7):
        task = ash.task()
        assert task["round"] == number
        assert ash.train(task, seed=number).status == 200
        wait_round(run, number, "closed")
    finish_evaluations(run, [ash])
    until("the run to end", lambda: run_of(server, run)["state"] == "finished")

    def old_ones_gone():
        psql("UPDATE blob SET used_at = used_at - interval '2 min' WHERE used_at > now() - interval '1 min'")
        rows = psql("SELECT number, kept, encode(weights, 'hex') FROM checkpoint WHERE run_id = '%s' ORDER BY 1" % run)
        return [len(blob_path(server, r[2])) for r in rows] == [0, 0, 0, 0, 1, 1, 1] and rows
    rows = until("three checkpoints to be left", old_ones_gone, 60)
    assert [r[1] for r in rows] == ["f", "f", "f", "f", "t", "t", "t"], rows
    updates = psql("SELECT q.number, encode(u.digest, 'hex') FROM update u JOIN round q ON q.id = u.round_id"
                   " WHERE q.run_id = '%s' ORDER BY 1" % run)
    until("the updates of three rounds to be left", lambda: [len(blob_path(server, r[1])) for r in updates] == [0, 0, 0, 1, 1, 1], 30)

    def steps():
        return psql("SELECT step_kept, encode(step, 'hex') FROM checkpoint WHERE run_id = '%s' AND step IS NOT NULL" % run)
    assert len(steps()) == 5, steps()
    until("a run that is over to need no steps", lambda: all(kept == "f" for kept, _ in steps()), 30)
    until("the steps' files to go", lambda: not any(blob_path(server, r[1]) for r in steps()), 30)
    answer = server.get("/api/v1/runs/%s/checkpoints/2" % run).json()
    assert answer["kept"] is False and answer["eval_loss"] is not None
    no_violations()


# ---- the sum ----

def test_updates_are_folded_in_the_order_of_slots(server):
    """x - x + tiny is not tiny + x - x: biases that were 0 show in which order three deltas were added."""
    run, silos = begin(server, 3, silos_per_round=3, min_silos=3, rounds=1,
                       model=dict(MODEL, bias=True))
    held = seats(silos)
    by_slot = sorted(silos, key=lambda s: held[s]["slot"])
    values = dict(zip(by_slot, (2.0 ** -10, -2.0 ** -10, 2.0 ** -70)))
    for s in (by_slot[2], by_slot[0], by_slot[1]):  # folded as they come, the tiny one would be lost
        assert s.train(held[s], pattern=values[s]).status == 200
    wait_round(run, 1, "closed")
    weights = server.get("/api/v1/runs/%s/checkpoints/1/weights" % run).body
    header, body = read_safetensors(weights)
    at = next(v["data_offsets"][0] for k, v in header.items() if k.endswith("Wqkv.bias"))
    (bias,) = struct.unpack("<f", body[at:at + 4])
    assert bias == struct.unpack("<f", struct.pack("<f", -(2.0 ** -70) / 3))[0], bias
    no_violations()


def test_outer_moments_are_kept_and_a_loud_update_is_clipped(server):
    run, silos = begin(server, 3, silos_per_round=3, min_silos=3, rounds=2,
                       more={"outer": {"name": "fedadam", "clip_median": 2}})
    for number in (1, 2):
        held = seats(silos)
        for s in silos:
            assert s.train(held[s], pattern=1.0 if s is silos[0] and number == 2 else 0.25).status == 200
        wait_round(run, number, "closed")

    def closings():  # an event is listed once nothing older is being written
        return [e for e in server.get("/api/v1/runs/%s/events" % run).json()["items"] if e["kind"] == "round_closed"]
    until("both closings to be listed", lambda: len(closings()) >= 2)
    second, first = closings()
    assert first["detail"]["clipped"] == [], first
    assert second["detail"]["clipped"] == [{"silo": silos[0].name, "factor": 0.5}], second
    assert second["message"].endswith("3 of 3 updates, 1 of them clipped"), second
    (digest,) = [r[0] for r in psql("SELECT encode(outer_state, 'hex') FROM checkpoint WHERE run_id = '%s'"
                                    " AND number = 2" % run)]
    with open(blob_path(server, digest)[0], "rb") as f:
        header, body = read_safetensors(f.read())
    tensors = [k for k in header if k != "__metadata__"]
    half = len(tensors) // 2
    assert [k[:2] for k in tensors] == ["m."] * half + ["v."] * half
    assert [k[2:] for k in tensors[:half]] == [k[2:] for k in tensors[half:]]
    m, v = struct.unpack_from("<f", body)[0], struct.unpack_from("<f", body, len(body) // 2)[0]
    assert abs(m - (0.9 * 0.1 * 0.25 + 0.1 * (0.25 + 0.25 + 0.5) / 3)) < 1e-7, m
    assert abs(v - (0.99 * 0.01 * 0.25 ** 2 + 0.01 * ((0.25 + 0.25 + 0.5) / 3) ** 2)) < 1e-7, v
    no_violations()


def test_a_prediction_from_rounds_before_stands_beside_each_round(server):
    run, silos = begin(server, 2, silos_per_round=2, min_silos=2, rounds=3)
    for number in (1, 2):
        held = seats(silos)
        for s in silos:
            assert s.train(held[s]).status == 200
        wait_round(run, number, "closed")
    first = server.get("/api/v1/runs/%s/rounds/1" % run).json()
    second = server.get("/api/v1/runs/%s/rounds/2" % run).json()
    assert first["predicted"] is None, first["predicted"]
    # The scripted silos say .1 s of download, 1.5 s of training and .5 s of upload each time.
    fold = float(one("SELECT extract(epoch FROM closed_at - sealed_at) FROM round WHERE run_id = '%s' AND number = 1" % run))
    assert abs(second["predicted"]["seconds"] - (1.5 + 0.1 + 0.5 + fold)) < 0.01, (second["predicted"], fold)
    sent = int(one("SELECT sum(bytes) FROM update u JOIN round q ON q.id = u.round_id WHERE q.run_id = '%s' AND number = 2" % run))
    base = server.get("/api/v1/runs/%s/checkpoints/1" % run).json()["bytes"]
    assert second["predicted"]["bytes"] == sent + 2 * base, (second["predicted"], sent, base)
    no_violations()


def test_slow_silos_take_fewer_steps_when_the_spec_says_so(server):
    run, silos = begin(server, 2, silos_per_round=2, min_silos=2, rounds=3, local_steps=8, local_steps_policy="dylu",
                       local_steps_min=3)
    seconds = {silos[0]: 1.0, silos[1]: 4.0}  # for 8 steps
    for number, steps in ((1, [8, 8]), (2, [8, 3]), (3, [8, 3])):
        held = seats(silos)
        assert [held[s]["plan"]["local_steps"] for s in silos] == steps, (number, held)
        assert {held[s]["plan"]["global_step"] for s in silos} == {8 * (number - 1)}
        for s in silos:
            data, tokens = s.update(held[s])
            share = held[s]["plan"]["local_steps"] / 8
            created = s.create(held[s], data, tokens, timings={"download_s": 0.1, "train_s": share * seconds[s], "encode_s": 0.1})
            assert created.status == 201, created.body
            assert s.chunk(held[s], created.json()["upload"], data, 0).status == 200
            assert s.finish(held[s], created.json()["upload"]).status == 200
        wait_round(run, number, "closed")
    assert one("SELECT string_agg(u.tokens::text, ',' ORDER BY u.tokens) FROM update u JOIN round q ON q.id = u.round_id"
               " WHERE q.run_id = '%s' AND q.number = 2" % run) == "%d,%d" % (3 * 2 * 8, 8 * 2 * 8)
    no_violations()


# ---- several servers ----

def test_two_servers_over_one_store_make_one_checkpoint_each_round(server):
    run, silos = begin(server, 2, rounds=8)
    other = kit.Server.__new__(kit.Server)
    other.__dict__.update(server.__dict__)
    other.process = None
    other.start()
    try:
        for number in range(1, 9):
            for i, s in enumerate(silos):
                s.server = (server, other)[(number + i) % 2]
                task = s.task()
                assert task["round"] == number
                assert s.train(task, seed=number * 10 + i).status == 200
            wait_round(run, number, "closed")
    finally:
        for s in silos:
            s.server = server
        other.stop()
    assert psql("SELECT count(*), max(number) FROM checkpoint WHERE run_id = '%s'" % run)[0] == ["9", "8"]
    assert kinds(run).count("round_closed") == 8
    no_violations()


def test_nothing_is_left_behind(server):
    other_runs_off(server)
    no_violations()
    assert fresh_name("end")
