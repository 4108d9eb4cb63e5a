"""Who gets which seat when, over the real server: turns, latecomers, silent silos, failing silos, and who is left out."""

import time
from concurrent.futures import ThreadPoolExecutor

from kit import Psql, in_time, psql, thrice, until
from rounds import kinds, one, round_of, run_of, seats, wait_round
from silo_client import Silo, code
from silos import begin, fresh_name, no_violations


def drawn(run, silos, number=1):
    """The silos in the order of the round's draw."""
    wait_round(run, number, "open")
    by_name = {s.name: s for s in silos}
    return [by_name[n] for n in round_of(run, number)[2].split(",") if n in by_name]


def nothing_to_train(silo):
    """Evaluations are answered on the way."""
    while True:
        answer = silo.claim()
        if answer.status == 204:
            return True
        task = answer.json()
        if task["kind"] == "train":
            return False
        silo.evaluate(task)


def release(silo, task, why):
    body = {"epoch": task["lease"]["epoch"], "code": why, "detail": "test"}
    assert silo.post("/tasks/%s/release" % task["task"], body).status == 200


@thrice
def test_a_free_seat_goes_to_the_spares_in_the_order_of_the_draw(server):
    run, silos = begin(server, 4, silos_per_round=1, min_silos=1, rounds=1)
    first, second, third, fourth = drawn(run, silos)
    for s in (fourth, third):
        assert nothing_to_train(s)
    release(first, first.task(), "oom")
    # The last one asks first and all the time; it is the second one's seat.
    for s in (fourth, third):
        began = time.monotonic()
        psql("UPDATE task SET open_at = clock_timestamp() WHERE run_id = '%s' AND kind = 'train'" % run)
        nothing = nothing_to_train(s)
        in_time(began, 4)  # after five seconds it is the third one's turn
        assert nothing
    task = second.task()
    assert task["round"] == 1 and nothing_to_train(fourth) and nothing_to_train(third)
    release(second, task, "oom")
    psql("UPDATE task SET open_at = clock_timestamp() - interval '5.1 s' WHERE run_id = '%s' AND kind = 'train'" % run)
    psql("UPDATE silo SET seen_at = clock_timestamp() - interval '1 hour' WHERE id IN ('%s', '%s')" % (first.id, second.id))
    assert fourth.task()["task"] == task["task"], "the third had its turn and did not come"
    no_violations()


def test_a_spare_takes_a_seat_while_somebody_works_on_the_run(server):
    """The seat's own lock is enough. Two that come at once get a seat each, and whoever holds the run keeps neither waiting."""
    run, silos = begin(server, 4, silos_per_round=2, min_silos=2, rounds=1)
    first, second, *spares = drawn(run, silos)
    for s in (first, second):
        release(s, s.task(), "oom")
    psql("UPDATE task SET open_at = clock_timestamp() - interval '1 minute' WHERE run_id = '%s' AND kind = 'train'" % run)
    other = Psql()
    try:
        assert other.ask("BEGIN; SELECT id FROM run WHERE id = '%s' FOR NO KEY UPDATE" % run) == [run]
        with ThreadPoolExecutor(2) as pool:
            tasks = list(pool.map(lambda s: s.task(), spares))
        other.ask("COMMIT")
    finally:
        other.stop()
    assert {t["slot"] for t in tasks} == {0, 1}, tasks
    for s, task in zip(spares, tasks):
        assert s.train(task).status == 200
    wait_round(run, 1, "closed")
    no_violations()


def test_a_free_seat_is_for_silos_of_the_run_s_tokenizer(server):
    run, silos = begin(server, 2, silos_per_round=1, min_silos=1, rounds=1)
    first, spare = drawn(run, silos)
    release(first, first.task(), "oom")
    spare.hello(tokenizer_sha256="ab" * 32)  # it came back with other data
    assert nothing_to_train(spare)
    spare.hello()
    assert spare.task()["round"] == 1


def test_a_seat_whose_silo_never_polls_opens_after_two_lease_times(server):
    run, silos = begin(server, 2, silos_per_round=1, min_silos=1, rounds=1)
    silent, spare = drawn(run, silos)
    (after, late), = psql("SELECT extract(epoch FROM open_at - opened_at), extract(epoch FROM task.created_at - opened_at)"
                          " FROM task JOIN round ON round.id = round_id WHERE task.run_id = '%s'" % run)
    assert 119 < float(after) < 125 + float(late), (after, late)
    assert nothing_to_train(spare)
    psql("UPDATE task SET open_at = open_at - interval '121 s' WHERE run_id = '%s' AND kind = 'train'" % run)
    task = spare.task()
    assert spare.train(task).status == 200
    wait_round(run, 1, "closed")
    assert nothing_to_train(silent)
    no_violations()


def test_a_latecomer_gets_a_seat_only_if_there_is_time_for_a_task(server):
    run, silos = begin(server, 4, rounds=2)
    for s, task in seats(silos).items():
        assert s.train(task).status == 200
    wait_round(run, 2, "open")
    late = Silo(server, fresh_name("silo"))
    late.hello()
    holder = silos[0]
    release(holder, holder.task(), "oom")
    # Four tasks are enough to know how long one takes: say 100 s a step, of which there are two.
    psql("UPDATE lease SET claimed_at = ended_at - interval '200 s' WHERE outcome = 'accepted' AND task_id IN"
         " (SELECT id FROM task WHERE run_id = '%s' AND kind = 'train');"
         "UPDATE round SET deadline = clock_timestamp() + interval '190 s' WHERE run_id = '%s' AND state = 'open';"
         "UPDATE task SET open_at = clock_timestamp() - interval '1 min' WHERE run_id = '%s' AND fail_code = 'oom'" % (run, run, run))
    answer = late.claim()
    assert answer.status == 204
    sha256, size = answer.header("Photon-Base").split()
    got = late.get("/blobs/" + sha256, bulk=True)
    assert got.status == 200 and len(got.body) == int(size), "it may fetch what it will need"
    assert sha256 == one("SELECT encode(weights, 'hex') FROM checkpoint WHERE run_id = '%s' AND number = 1" % run)
    psql("UPDATE round SET deadline = clock_timestamp() + interval '230 s' WHERE run_id = '%s' AND state = 'open'" % run)
    assert late.task()["round"] == 2
    # It changed hands, so the deadline has moved: a task's time from the claim on, (100 + 5 s)·2 at least.
    until("the deadline to move", lambda: one("SELECT deadline > clock_timestamp() + interval '231 s' FROM round"
                                              " WHERE run_id = '%s' AND state = 'open'" % run) == "t")
    no_violations()


def test_a_silo_that_fails_three_times_in_a_row_sits_out_three_rounds(server):
    run, silos = begin(server, 3, silos_per_round=2, min_silos=2, rounds=5)
    bad = drawn(run, silos)[0]
    psql("UPDATE silo SET fails = 2, failures = 2 WHERE id = '%s'" % bad.id)
    release(bad, bad.task(), "diverged")  # that its evaluation went well on the way changes nothing
    assert kinds(run).count("silo_aside") == 1
    good = [s for s in silos if s is not bad]
    for number in range(1, 5):
        if number > 1:
            wait_round(run, number, "open")
            assert bad.name not in round_of(run, number)[2], number
            assert nothing_to_train(bad)
        for s in good:
            assert s.train(s.task(), seed=number).status == 200
        wait_round(run, number, "closed")
        for s in silos:
            s.hello()
    wait_round(run, 5, "open")
    assert bad.name in round_of(run, 5)[2], "it sits out more than three rounds"
    no_violations()


def test_a_run_calls_back_who_sits_out_when_there_is_no_quorum_without(server):
    run, (ash,) = begin(server, 1, silos_per_round=2, min_silos=2, rounds=1)
    until("the run to wait", lambda: run_of(server, run)["waiting_for"])
    birch = Silo(server, fresh_name("silo"))
    psql("INSERT INTO run_silo (run_id, silo_id, aside_rounds) VALUES ('%s', '%s', 3)" % (run, birch.id))
    birch.hello()
    beat = one("SELECT max(seen_at) + interval '1.5 s' FROM server_process")
    until("a tick", lambda: one("SELECT max(seen_at) > '%s' FROM server_process" % beat) == "t")
    assert round_of(run, 1)[1] == "pending" and run_of(server, run)["waiting_for"] == "1 more silo (1 of 2 are here)"
    psql("UPDATE round SET created_at = created_at - interval '2 min' WHERE run_id = '%s';"
         "UPDATE server_process SET started_at = started_at - interval '2 min'" % run)
    wait_round(run, 1, "open")
    assert "silo_aside" in kinds(run)
    assert one("SELECT aside_rounds FROM run_silo WHERE (run_id, silo_id) = ('%s', '%s')" % (run, birch.id)) == "0"
    for s in (ash, birch):
        assert s.train(s.task()).status == 200
    wait_round(run, 1, "closed")
    no_violations()


def test_three_rounds_without_a_seat_are_an_event(server):
    run, silos = begin(server, 2, silos_per_round=1, min_silos=1, rounds=3)
    (seated, left) = drawn(run, silos)
    assert one("SELECT left_out FROM run_silo WHERE (run_id, silo_id) = ('%s', '%s')" % (run, left.id)) == "1"
    psql("UPDATE run_silo SET left_out = 2 WHERE run_id = '%s'" % run)
    assert seated.train(seated.task()).status == 200
    left = drawn(run, silos, 2)[1]
    messages = psql("SELECT message FROM event WHERE run_id = '%s' AND kind = 'silo_left_out'" % run)
    assert messages == [["%s got no seat for 3 rounds in a row" % left.name]], messages
    no_violations()


def test_a_spare_that_sits_out_takes_no_seat_over(server):
    run, silos = begin(server, 2, silos_per_round=1, min_silos=1, rounds=1)
    first, spare = drawn(run, silos)
    psql("INSERT INTO run_silo (run_id, silo_id, aside_rounds) VALUES ('%s', '%s', 2)"
         " ON CONFLICT ON CONSTRAINT run_silo_pk DO UPDATE SET aside_rounds = 2" % (run, spare.id))
    task = first.task()
    release(first, task, "oom")
    assert nothing_to_train(spare)
    psql("UPDATE run_silo SET aside_rounds = 0 WHERE run_id = '%s'" % run)
    assert spare.task()["task"] == task["task"]
    stale = first.post("/tasks/%s/heartbeat" % task["task"], {"epoch": task["lease"]["epoch"], "step": 0})
    assert stale.status == 409 and code(stale) == "STALE_LEASE"
    no_violations()
