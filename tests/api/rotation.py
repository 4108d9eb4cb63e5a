"""A silo's token is changed without a break: two live for a while, and never more."""

import hashlib
import subprocess
import threading

from kit import psql, soon, thrice
from silo_client import Silo, code
from silos import fresh_name


def tokens(server, silo):
    return [t for t in server.get("/api/v1/tokens?limit=1000").json()["items"] if t["role"] == "silo" and t["name"] == silo.name]


def rotate(silo, token, **body):
    return silo.post("/token", body, token=token)


def works(silo, token):
    return silo.post("/hello", {"agent": silo.agent, "version": "0.1.0", "device": "test", "tokens_per_s": None,
                                "tokenizer_sha256": "", "train_tokens": 1, "heldout_tokens": 1}, token=token).status == 200


@thrice
def test_two_tokens_live_for_the_grace_and_then_one(server):
    silo = Silo(server, fresh_name("rotated"))
    old = silo.token
    made = rotate(silo, old, grace_s=3600)
    assert made.status == 201 and made.header("Cache-Control") == "no-store", made.body
    new = made.json()["token"]
    assert works(silo, old) and works(silo, new)
    listed = {t["id"]: t for t in tokens(server, silo)}
    assert len(listed) == 2 and listed[made.json()["id"]]["expires_at"] is None
    (before,) = [t for i, t in listed.items() if i != made.json()["id"]]
    assert before["expires_at"] == made.json()["old_expires_at"] and before["revoked_at"] is None
    row = server.get("/api/v1/audit?action=token_rotate").json()["items"][0]
    assert (row["object"], row["token"], row["role"]) == (made.json()["id"], before["id"], "silo")
    assert new not in psql("SELECT string_agg(t::text, ' ') FROM token t")[0][0]

    psql("UPDATE token SET expires_at = clock_timestamp() WHERE id = '%s'" % before["id"])  # the grace is over
    soon("the old token to end", lambda: not works(silo, old))
    assert works(silo, new)
    assert server.call("DELETE", "/api/v1/tokens/" + made.json()["id"]).status == 204
    soon("the new one to end when it is revoked", lambda: not works(silo, new))


@thrice
def test_a_lost_reply_costs_nothing_and_a_token_in_use_is_not_pushed_out(server):
    silo = Silo(server, fresh_name("rotated"))
    lost = rotate(silo, silo.token).json()["token"]
    again = rotate(silo, silo.token)
    assert again.status == 201
    assert not works(silo, lost) and works(silo, again.json()["token"]) and works(silo, silo.token)
    late = rotate(silo, silo.token)  # whoever has the old one cannot take the silo over
    assert late.status == 409 and code(late) == "TOKEN_ROTATED"
    assert works(silo, again.json()["token"])
    third = rotate(silo, again.json()["token"], ttl_s=60)
    assert third.status == 201 and third.json()["expires_at"]
    assert len([t for t in tokens(server, silo) if not t["revoked_at"]]) == 2
    soon("the first to end: two live, never three", lambda: not works(silo, silo.token))
    # A new join line ends them all.
    anew = server.post("/api/v1/tokens", {"role": "join", "name": silo.name}).json()["secret"]
    silo.join_token = anew
    assert silo.join().status == 201
    soon("the others to end", lambda: not works(silo, third.json()["token"]))


def test_a_token_that_is_being_made_does_not_outlive_its_silo(server):
    """The silo's row is held as a rotation holds it, while the silo is revoked: what the rotation leaves is revoked too."""
    silo = Silo(server, fresh_name("rotated"))
    (mine,) = tokens(server, silo)
    maker = subprocess.Popen(["psql", "-X", "-q", "-A", "-t"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def say(sql):
        maker.stdin.write(sql + "\n")
        maker.stdin.flush()
        return maker.stdout.readline().strip()
    try:
        assert say("BEGIN; SELECT 'held' FROM silo WHERE name = '%s' FOR NO KEY UPDATE;" % silo.name) == "held"
        answers = []
        revoke = threading.Thread(target=lambda: answers.append(
            server.post("/api/v1/silos/%s/actions" % silo.id, {"action": "revoke"})))
        revoke.start()
        soon("the revocation to wait", lambda: answers or psql(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%silo%'") != [["0"]])
        assert not answers
        made = "k_" + "0" * 25 + "7"
        say("INSERT INTO token (id, hash, role, name, silo_id) SELECT '%s', sha256('made'), role, name, silo_id FROM token"
            " WHERE id = '%s'; COMMIT; SELECT 'done';" % (made, mine["id"]))
        revoke.join(20)
        assert answers[0].status == 200, answers[0].body
    finally:
        maker.kill()
        maker.communicate()
    assert psql("SELECT count(*) FROM token WHERE silo_id = '%s' AND revoked_at IS NULL" % silo.id) == [["0"]]
    # Whatever a revoked silo still has opens nothing.
    secret = "pht_" + "A" * 43
    psql("INSERT INTO token (id, hash, role, name, silo_id) SELECT '%s', decode('%s', 'hex'), role, name, silo_id FROM token"
         " WHERE id = '%s'" % ("k_" + "0" * 25 + "8", hashlib.sha256(secret.encode()).hexdigest(), mine["id"]))
    assert rotate(silo, secret).status == 401 and not works(silo, secret)


def test_grace_and_life_are_bounded(server):
    silo = Silo(server, fresh_name("rotated"))
    for body in ({"grace_s": 59}, {"grace_s": 7 * 86400 + 1}, {"grace_s": "1d"}, {"ttl_s": 59}, {"ttl_s": 400 * 86400 + 1},
                 {"name": "x"}):
        assert rotate(silo, silo.token, **body).status == 422, body
    short = rotate(silo, silo.token, grace_s=60).json()
    longer = rotate(silo, silo.token, grace_s=86400).json()
    assert longer["old_expires_at"] == short["old_expires_at"], "a grace that was given is not made longer"
