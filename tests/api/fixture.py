"""Rows as a finished run would leave them, put straight into the store: the API's reads have something to show."""

import json
import os

from kit import psql, sha256

RUN = "r_0000000000000000000000000A"
OTHER = "r_0000000000000000000000000B"
SILOS = ["s_0000000000000000000000000%d" % i for i in (1, 2)]
NOBODY = "0000000000000000000000000Z"

SPEC = {"name": "fixture-a", "experiment": "fixtures", "seed": 17,
        "model": {"d_model": 64, "n_heads": 4, "n_layers": 2, "vocab_size": 320, "seq_len": 64},
        "federation": {"rounds": 2, "silos_per_round": 2, "local_steps": 4}, "inner": {"batch": 2}}


def quote(text):
    return "'" + text.replace("'", "''") + "'"


def insert_run(server, run, name, lr, state, head):
    spec = dict(SPEC, name=name, inner={"batch": 2, "lr": lr})
    plan = server.post("/api/v1/runs?dry_run=1", spec).json()
    text = json.dumps(plan["spec"])
    return """
INSERT INTO run (id, name, experiment, spec, spec_text, spec_sha256, params, state, head, finished_at)
VALUES ({id}, {name}, 'fixtures', {text}::jsonb, {text}, sha256(convert_to({text}, 'UTF8')), {params}, {state}, {head}, {end});
""".format(id=quote(run), name=quote(name), text=quote(text), params=plan["params"], state=quote(state), head=head,
           end="clock_timestamp()" if state == "finished" else "NULL"), plan["params"]


def put_blob(server, content):
    digest = sha256(content)
    store = os.path.join(server.dir, "data", "store")
    folder = os.path.join(store, "blobs", digest[:2], digest[2:4])
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, digest), "wb") as f:
        f.write(content)
    return digest


def load(server):
    """Two silos, a finished run of two rounds and a paused one without any."""
    first, params = insert_run(server, RUN, "fixture-a", 0.001, "finished", 2)
    second, _ = insert_run(server, OTHER, "fixture-b", 0.002, "paused", "NULL")
    weights = b"weights of checkpoint two" * 400000
    server.weights = weights
    digests = ["00" * 32, "11" * 32, put_blob(server, weights)]
    sql = ["BEGIN; SET LOCAL session_replication_role = replica;", first, second]
    for i, silo in enumerate(SILOS):
        sql.append("INSERT INTO silo (id, name, device, version, gone, seen_at) VALUES (%s, 'fixture-%d', 'cpu', '0.1.0',"
                   " true, clock_timestamp() - interval '1 hour');" % (quote(silo), i + 1))
        sql.append("INSERT INTO run_silo (run_id, silo_id) VALUES (%s, %s);" % (quote(RUN), quote(silo)))
    for n, digest in enumerate(digests):
        sql.append("""
INSERT INTO checkpoint (run_id, number, weights, weights_bytes, weights_digest, manifest, params, finite, kept,
                        eval_nll, eval_tokens, eval_bytes, eval_silos, eval_s)
VALUES ('{run}', {n}, decode('{digest}', 'hex'), {bytes}, sha256('x'), {manifest}, {params}, true, {kept},
        {nll}, 1000, 1200, 2, 1.5);
""".format(run=RUN, n=n, digest=digest, bytes=max(len(weights), 4 * params), params=params, nll=6000 - 1000 * n,
           manifest="NULL" if n == 0 else "sha256('m%d')" % n, kept="true" if n == 2 else "false"))
    for n in (1, 2):
        sql.append("""
INSERT INTO round (run_id, number, state, silos_expected, quorum, eligible, opened_at, deadline, cap_at, sealed_at,
                   closed_at, manifest, aggregate_s, delta_norm, outer_step_norm, train_loss, tokens)
VALUES ('{run}', {n}, 'closed', 2, 2, '{{fixture-1,fixture-2}}', now() - interval '9 min', now(), now(), now(),
        now() - interval '8 min', sha256('m{n}'), 0.25, 1.5, 1.25, 5.5, 1024);
INSERT INTO traffic (run_id, number, silo_id, upload_bytes, download_bytes)
SELECT '{run}', {n}, id, 1000 * {n}, 2000 FROM silo WHERE name LIKE 'fixture-%';
""".format(run=RUN, n=n))
        for slot, silo in enumerate(SILOS):
            sql.append("""
INSERT INTO task (id, kind, run_id, round_id, number, slot, silo_id, state, lease_epoch, plan_tokens, steps, step,
                  tokens, train_loss, download_s, train_s, upload_s, done_at)
SELECT 't_000000000000000000000000{n}{slot}', 'train', '{run}', id, {n}, {slot}, '{silo}', 'done', 1, 512, 4, 4,
       512, 5.5, {slot}.5, 2.5, 0.5, now() FROM round WHERE run_id = '{run}' AND number = {n};
INSERT INTO task (id, kind, run_id, number, slot, silo_id, state, lease_epoch, plan_tokens, nll, eval_tokens, eval_bytes, eval_s, done_at)
VALUES ('t_00000000000000000000000E{n}{slot}', 'evaluate', '{run}', {n}, {slot}, '{silo}', 'done', 1, 0,
        {nll}, 500, 600, 0.7, now());
INSERT INTO lease (task_id, epoch, silo_id, ended_at, outcome)
VALUES ('t_000000000000000000000000{n}{slot}', 1, '{silo}', now(), 'accepted');
INSERT INTO update (round_id, slot, task_id, silo_id, lease_epoch, upload_id, digest, bytes, codec, tokens, steps, train_loss, norm, cosine, codec_error,
                    residual_ratio, fallback_share)
SELECT id, {slot}, 't_000000000000000000000000{n}{slot}', '{silo}', 1, 'u_000000000000000000000000{n}{slot}',
       sha256('u{n}{slot}'), 100, 'f32', 512, 4, 5.5, 1.5, 0.9, 0.007, 0.008, 0.25 FROM round WHERE run_id = '{run}' AND number = {n};
""".format(run=RUN, n=n, slot=slot, silo=silo, nll=2000 + 100 * slot))
    sql.append("COMMIT;")
    # With triggers, so that the summaries the lists read are kept.
    sql.append("""
INSERT INTO metric (run_id, silo_id, round, step, name, value)
SELECT '{run}', s.id, 1 + (step - 1) / 4, step, 'train_loss', 6 - 0.1 * step + CASE s.name WHEN 'fixture-1' THEN 0.1 ELSE -0.1 END
  FROM silo s, generate_series(1, 8) step WHERE s.name LIKE 'fixture-%';
INSERT INTO event (kind, run_id, message) VALUES ('run_created', '{run}', 'run fixture-a was created'),
    ('run_started', '{run}', 'run fixture-a began'), ('run_finished', '{run}', 'run fixture-a is finished');
""".format(run=RUN))
    psql("\n".join(sql))
