"""What the programs say to whoever starts them wrongly: exit codes as docs/OPERATIONS.md has them, and what to do."""

import glob
import json
import os
import re
import shlex
import subprocess
import sys
import urllib.request

from harness import ROOT, World, free_ports, run_tests, until

SPEC = ('{"name":"bad","model":{"d_model":64,"n_heads":2,"n_layers":2,"vocab_size":320,"seq_len":64},'
        '"federation":{"rounds":%s,"silos_per_round":1,"local_steps":4},"inner":{"batch":2}}')


def run(world, program, *args, stdin="", **env):
    done = subprocess.run([os.path.join(world.bin, program), *args], capture_output=True, text=True, input=stdin,
                          timeout=120, cwd=world.dir, env=dict(world.env, **env))
    return done.returncode, done.stdout, done.stderr


def expect(world, want, words, program, *args, **more):
    rc, _, said = run(world, program, *args, **more)
    assert rc == want, "%s %s: status %d, not %d: %s" % (program, " ".join(args), rc, want, said)
    for word in words:
        assert word in said, "%s %s does not say '%s': %s" % (program, " ".join(args), word, said)


def table():
    """The exit codes of docs/OPERATIONS.md."""
    with open(os.path.join(ROOT, "docs", "OPERATIONS.md")) as f:
        rows = re.findall(r"^\| (\d+) \| (.+) \|$", f.read(), re.M)
    return {int(code) for code, _ in rows}


def help_names_the_codes_of_the_manual(world):
    known = table()
    assert {0, 1, 2, 3, 4, 7, 75} <= known, known
    for program in ("photon", "photon-client", "photon-server"):
        rc, text, _ = run(world, program, "--help")
        assert rc == 0, rc
        codes = {int(n) for n in re.findall(r"(?:^|[ ,\n])(\d+) [a-z]", text.split("Exit codes:")[1])}
        assert {0, 1, 2, 3, 4, 70, 75} <= codes <= known, (program, codes)


def the_spec_of_the_manual_is_accepted(world):
    with open(os.path.join(ROOT, "docs", "API.md")) as f:
        every_key = re.search(r"^## Run spec\n.*?```json\n(.*?)^```", f.read(), re.M | re.S).group(1)
    with open(os.path.join(ROOT, "README.md")) as f:
        small = re.search(r"^cat > spec.json <<'END'\n(.*?)^END$", f.read(), re.M | re.S).group(1)
    for spec, size in ((every_key, "125M"), (small, "851k")):
        rc, plan, said = run(world, "photon", "run", "submit", "-f", "-", "--dry-run", stdin=spec, PHOTON_TOKEN=world.token)
        assert rc == 0 and "parameters           " + size in plan, (rc, plan, said)


def a_plan_tells_what_each_gpu_holds(world):
    with open(os.path.join(world.dir, "spec-3.json"), "w") as f:
        f.write(SPEC % 3)

    def plan(*args):
        rc, text, said = run(world, "photon", "plan", "spec-3.json", *args)
        assert rc == 0, (rc, said)
        return text

    held = json.loads(plan("--json", "--memory", "24GiB"))["memory"]
    parts = ("weights", "rest", "gradients", "moments", "activations", "batch_data")
    assert held["total"] == sum(held[k] for k in parts) and min(held[k] for k in parts) > 0, held
    table = plan("--memory", "24GiB")
    assert "memory of each GPU of 24GiB: bf16, batch 2 in passes of 2, nothing recomputed" in table, table
    assert re.search(r"^total +%d$" % held["total"], table, re.M), table
    shared = json.loads(plan("--json", "--gpus", "2", "--dtype", "f32"))["memory"]
    assert (shared["batch"], shared["rest"]) == (1, 0) and shared["moments"] <= 2 * shared["weights"], shared
    assert "may be used; try " in plan("--memory", "0.001GB")
    assert "does not divide over 3 GPUs" in plan("--gpus", "3")
    for wrong in (("--memory", "80"), ("--memory", "-1GB"), ("--memory", "nanGB"), ("--dtype", "int8")):
        expect(world, 2, ["; try "], "photon", "plan", "spec-3.json", *wrong)


def the_metrics_of_the_manual_are_all(world):
    request = urllib.request.Request(world.url + "/metrics", headers={"Authorization": "Bearer " + world.token})
    with urllib.request.urlopen(request, timeout=30) as answer:
        told = set(re.findall(r"^# TYPE (\w+)", answer.read().decode(), re.M))
    with open(os.path.join(ROOT, "docs", "OPERATIONS.md")) as f:
        section = f.read().split("\n## Monitoring\n")[1].split("\n## ")[0]
    known = set(re.findall(r"\b(photon_\w+)", section))
    with open(os.path.join(ROOT, "server", "api_misc.c")) as f:
        possible = set(re.findall(r'\{"(photon_\w+)", "', f.read())) | told
    assert len(told) > 6 and known == possible, known ^ possible


def a_wrong_command_line_is_2(world):
    for args in ((), ("nope",), ("run",), ("run", "sbmit"), ("run", "list", "--jsn"), ("run", "submit"),
                 ("run", "watch"), ("demo", "--rounds", "many"), ("model", "verify")):
        expect(world, 2, [], "photon", *args)
    expect(world, 2, ["did you mean"], "photon", "run", "sbmit")
    for args in ((), ("strt",), ("start",), ("start", "--stat", "x", "--nope"), ("join",), ("doctor",), ("status",),
                 ("leave", "--state", "x"), ("start", "--state", "x", "--data", "d", "--device", "tpu")):
        expect(world, 2, [], "photon-client", *args)
    for args, words in ((("--nonsense",), "--help"), (("--lissten", "x"), "--listen"), (("--l", "x"), "--help"),
                        (("--data",), "needs a value"), (("surprise",), "--help")):
        expect(world, 2, [words], "photon-server", *args)


def a_wrong_file_or_setting_is_3(world):
    with open(world.path("file"), "w") as f:
        f.write("x")
    token = {"PHOTON_TOKEN": world.token}
    expect(world, 3, ["/federation/rounds"], "photon", "run", "submit", "-f", "-", stdin=SPEC % 0, **token)
    expect(world, 3, ["JSON"], "photon", "run", "submit", "-f", "-", stdin="{", **token)
    expect(world, 3, ["nowhere"], "photon", "run", "submit", "-f", "nowhere", **token)
    expect(world, 3, ["nowhere"], "photon", "data", "prepare", "nowhere", "-o", "out")
    expect(world, 3, ["try photon-client join"], "photon-client", "start", "--state", "nowhere", "--data", "nowhere")
    expect(world, 3, ["photon data prepare"], "photon-client", "start", "--state", world.path("oak"),
           "--data", "nowhere")
    expect(world, 3, ["photon-client start"], "photon-client", "status", "--state", "nowhere")
    expect(world, 3, ["--state"], "photon-client", "leave", "--yes", "--state", "nowhere")
    expect(world, 3, ["https://"], "photon-client", "join", "http://example.org", "--state", "x")
    expect(world, 3, ["--data"], "photon-server", "--data", "file/below")
    expect(world, 3, ["--data"], "photon-server", "check", "--data", "nowhere")
    expect(world, 3, ["'%s'" % os.path.realpath(world.path("oak"))], "photon", "doctor", "--store", "oak")
    expect(world, 3, ["AWS_ACCESS_KEY_ID"], "photon", "doctor", "--data", "oak", "--store", "s3://bucket")
    expect(world, 3, ["in the clear"], "photon", "doctor", "--data", "oak", "--store", "s3://bucket", "--s3-endpoint",
           "http://192.0.2.1")
    expect(world, 3, ["credentials 'none'"], "photon", "doctor", "--data", "oak", "--store", "s3://bucket",
           "--s3-credentials", "none")
    expect(world, 2, ["--data DIR"], "photon", "doctor", "--store", "s3://bucket")
    assert not os.path.exists(world.path("nowhere")), "a check made the folder it should look at"


def a_start_that_its_options_refuse_leaves_the_disk_alone(world):
    """Whoever mends the option starts anew: no folder, no database, no file of a server that never was."""
    one = "127.0.0.1:%d" % free_ports(1)[0]
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    for want, words, args in (
            (3, ["0.0.0.0:18080", "TLS", "--tls auto"], ["--listen", "0.0.0.0:18080"]),
            (3, ["0.0.0.0:18081", "TLS"], ["--bulk-listen", "0.0.0.0:18081"]),
            (3, ["host:port"], ["--listen", "nowhere"]),
            (3, ["--bulk-listen"], ["--listen", "127.0.0.1:65535"]),
            (3, ["try another port"], ["--listen", one, "--bulk-listen", one]),
            (3, ["10%"], ["--free-floor", "lots"]),
            (3, ["none.pem"], ["--tls-cert", "none.pem", "--tls-key", "none.key"]),
            (3, ["postgresql://"], ["--database", "hots=db.example.org"]),
            (3, ["postgresql://"], ["--database", "x", "--migrate-database", "postgresql://a:b@[::1/x"]),
            (3, ["s3://bucket/prefix"], ["--store", "bucket"]),
            (3, ["in the clear"], ["--store", "s3://bucket", "--s3-endpoint", "http://192.0.2.1"]),
            (2, ["--store"], ["--s3-ca", "ca.pem"]),
            (2, ["photon-server check"], ["--repair"]),
            (2, ["photon-server check"], ["--acks", "acks"])):
        before = set(os.listdir(world.dir))
        expect(world, want, words, "photon-server", "--data", "never", *args, **keys)
        assert set(os.listdir(world.dir)) == before, "%s left %s" % (args, set(os.listdir(world.dir)) - before)


def a_token_that_is_not_good_is_4(world):
    expect(world, 4, ["token"], "photon", "run", "list", PHOTON_TOKEN="wrong")
    expect(world, 4, ["--token-file"], "photon", "run", "list", PHOTON_TOKEN="")
    expect(world, 4, ["token"], "photon-client", "join", world.url, "--state", "y", PHOTON_TOKEN="wrong")


def no_server_is_4_and_no_database_75(world):
    nowhere = "http://127.0.0.1:%d" % free_ports(1)[0]
    expect(world, 4, [nowhere], "photon", "run", "list", "--server", nowhere, PHOTON_TOKEN="x")
    expect(world, 75, ["cannot connect", "--database"], "photon-server", "--data", "d", "--database",
           "host=127.0.0.1 port=%d" % free_ports(1)[0])


def what_is_not_there_is_1(world):
    token = {"PHOTON_TOKEN": world.token}
    expect(world, 1, ["try photon run list"], "photon", "run", "show", "nope", **token)
    expect(world, 1, ["try photon silo list"], "photon", "silo", "show", "nope", **token)
    rc, found, _ = run(world, "photon-client", "doctor", "--state", world.path("none"))
    assert rc == 1 and "BAD  state" in found and "-> photon-client join" in found, (rc, found)


def no_usable_device_is_7(world):
    if glob.glob("/dev/nvidia[0-9]*"):
        return  # there is one
    expect(world, 7, ["try --device"], "photon-client", "start", "--state", world.path("oak"),
           "--data", world.path("oak-data"), "--device", "cuda")


def a_silo_does_not_spin_at_barriers(world):
    """libgomp says what it has read, each time it is loaded: the last one counts."""
    args = ["start", "--state", "nowhere", "--data", "nowhere"]

    def spins(**env):
        clean = {k: v for k, v in world.env.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
        done = subprocess.run([os.path.join(world.bin, "photon-client"), *args], capture_output=True, text=True,
                              timeout=60, cwd=world.dir, env=dict(clean, OMP_DISPLAY_ENV="verbose", **env))
        assert done.returncode == 3, done
        return re.findall(r"GOMP_SPINCOUNT = '(\w+)'", done.stderr)
    found = spins()
    assert len(found) == 2 and found[-1] == "0", found
    found = spins(OMP_WAIT_POLICY="active")
    assert len(found) == 1 and found[0] != "0", found  # a person's choice stands


def a_silo_at_work_takes_up_a_new_token(world):
    def told(key):
        with open(world.path("oak", "silo.json")) as f:
            return json.load(f)[key]
    run_spec = json.loads(SPEC % 2)
    run_spec["name"] = "rotated"
    old = told("token")
    world.start("oak")
    until("the silo to wait", lambda: "waiting for a task" in world.log_of("oak"))
    rc, _, said = run(world, "photon-client", "rotate", "--state", world.path("oak"), "--ttl", "90d")
    assert rc == 0 and "the old one works until" in said and told("token") != old, (rc, said)
    rc, _, said = run(world, "photon", "run", "submit", "-f", "-", stdin=json.dumps(run_spec), PHOTON_TOKEN=world.token)
    assert rc == 0, said
    run_id = world.get("/api/v1/runs?q=rotated")["items"][0]["id"]
    world.wait_finished(run_id)
    until("the agent to go on with the new token", lambda: "the silo has a new token" in world.log_of("oak"))
    world.stop(world.silos["oak"])
    world.post("/api/v1/silos/%s/actions" % told("silo"), {"action": "pause"})  # no seat for it in later tests
    admin = {"PHOTON_TOKEN": world.token}
    rc, listed, _ = run(world, "photon", "silo", "token", "list", **admin)
    assert rc == 0 and len([line for line in listed.splitlines() if " silo " in line and " oak " in line]) == 2, listed
    expect(world, 2, ["durations"], "photon-client", "rotate", "--state", world.path("oak"), "--grace", "soon")
    expect(world, 3, ["photon-client join"], "photon-client", "rotate", "--state", "nowhere")


def a_token_that_ends_within_a_round_interrupts_nothing(world):
    """Heartbeats, the base, chunks: all go on with the new one, as if its grace were shorter than the round."""
    with open(world.path("oak", "silo.json")) as f:
        silo = json.load(f)["silo"]
    world.post("/api/v1/silos/%s/actions" % silo, {"action": "resume"})
    world.start("oak", faults="train.step=delay:2000ms")
    run_id = world.post("/api/v1/runs", dict(json.loads(SPEC % 1), name="ended"))["id"]

    def training():
        rc, said, _ = run(world, "photon-client", "status", "--state", world.path("oak"), "--json")
        return rc == 0 and json.loads(said)["status"] == "training"
    until("the silo to train", training)
    rc, _, said = run(world, "photon-client", "rotate", "--state", world.path("oak"))
    assert rc == 0, said
    tokens = [t for t in world.get("/api/v1/tokens")["items"] if t["role"] == "silo" and t["name"] == "oak" and not t["revoked_at"]]
    for token in sorted(tokens, key=lambda t: t["created_at"])[:-1]:
        world.call("DELETE", "/api/v1/tokens/" + token["id"])
    world.wait_finished(run_id)
    rounds = world.get("/api/v1/runs/%s/rounds/1" % run_id)
    world.stop(world.silos["oak"])
    world.post("/api/v1/silos/%s/actions" % silo, {"action": "pause"})
    tasks = [t for t in rounds["tasks"] if t["kind"] == "train"]
    assert [t["attempt"] for t in tasks] == [1] and " is dropped" not in world.log_of("oak"), (tasks, world.log_of("oak")[-2000:])


def status_says_whether_the_agent_runs(world):
    def status():
        rc, said, _ = run(world, "photon-client", "status", "--state", world.path("oak"), "--json")
        return json.loads(said) if rc == 0 else {}
    world.start("oak")
    until("the silo to wait", lambda: status().get("status") == "waiting" and status()["running"] is True)
    world.kill("oak")
    assert status()["running"] is False and status()["status"] != "stopped" and status()["silo"] == "oak", status()
    rc, said, _ = run(world, "photon-client", "status", "--state", world.path("oak"))
    assert rc == 0 and re.search("^status +not running$", said, re.M), said


def the_audit_log_is_read_by_administrators(world):
    admin = {"PHOTON_TOKEN": world.token}
    rc, text, _ = run(world, "photon", "audit", **admin)
    assert rc == 0 and "silo_join" in text and "token_create" in text and "first admin" in text, text
    assert world.token not in text
    rc, text, _ = run(world, "photon", "audit", "-n", "1", "--json", **admin)
    rows = [json.loads(line) for line in text.splitlines()]
    assert rc == 0 and len(rows) == 1 and rows[0]["status"], text
    rc, text, _ = run(world, "photon", "audit", "--all", "--action", "silo_join", "--json", **admin)
    assert [json.loads(line)["action"] for line in text.splitlines()] == ["silo_join"], text
    expect(world, 3, ["action"], "photon", "audit", "--action", "No", **admin)


def a_silo_joins_and_trains_over_tls_by_its_join_line(world):
    """The line that the operator's tool prints is what the silo types; what it pins outlives renewals, and nothing else."""
    def restart(*options):
        world.stop_server()
        world.start_server("--tls", "auto", *options)

    world.url = "https://127.0.0.1:%d" % world.port
    restart()
    operator = dict(PHOTON_SERVER=world.url, PHOTON_TOKEN=world.token)
    expect(world, 4, ["--pin", "--ca-file"], "photon", "silo", "token", "create", "elm", **operator)
    rc, said, why = run(world, "photon", "silo", "token", "create", "elm",
                        PHOTON_CA_FILE=world.path("server", "tls", "ca.pem"), **operator)
    assert rc == 0, why
    line, secret = said.splitlines()
    words = shlex.split(line)
    assert words[:3] == ["photon-client", "join", world.url] and words[-2] == "--pin", line
    rc, _, why = run(world, *words, PHOTON_TOKEN=secret)
    assert rc == 0, why
    os.rename(world.path("photon-silo"), world.path("elm"))
    os.rename(world.path("oak-data"), world.path("elm-data"))
    world.start("elm")
    spec = json.loads(SPEC % 2)
    first = world.post("/api/v1/runs", dict(spec, name="pinned"))["id"]
    world.wait_finished(first)

    with open(world.path("server", "tls", "server.pem")) as f:
        shown = f.read()
    restart("--public-url", "https://agg.example.org:8443")  # one host more: another certificate, the same key
    with open(world.path("server", "tls", "server.pem")) as f:
        assert f.read() != shown
    world.wait_finished(world.post("/api/v1/runs", dict(spec, name="renewed"))["id"])
    rc, said, _ = run(world, "photon", "silo", "token", "create", "fir", PHOTON_PIN=words[-1], **operator)
    assert rc == 0 and said.startswith("photon-client join https://agg.example.org:8443 --name fir ") and words[-1] in said, said

    for name in ("server.key", "server.pem"):
        os.remove(world.path("server", "tls", name))
    restart()
    silo = world.silos["elm"]
    until("the silo to refuse another key", lambda: silo.poll() is not None)
    assert silo.returncode == 4 and "PIN_MISMATCH" in world.log_of("elm"), (silo.returncode, world.log_of("elm")[-500:])


TESTS = [help_names_the_codes_of_the_manual, the_spec_of_the_manual_is_accepted, a_plan_tells_what_each_gpu_holds,
         the_metrics_of_the_manual_are_all, a_wrong_command_line_is_2,
         a_wrong_file_or_setting_is_3, a_start_that_its_options_refuse_leaves_the_disk_alone, a_token_that_is_not_good_is_4, no_server_is_4_and_no_database_75,
         what_is_not_there_is_1, no_usable_device_is_7, a_silo_does_not_spin_at_barriers,
         a_silo_at_work_takes_up_a_new_token, a_token_that_ends_within_a_round_interrupts_nothing,
         status_says_whether_the_agent_runs, the_audit_log_is_read_by_administrators,
         a_silo_joins_and_trains_over_tls_by_its_join_line]


def main(build):
    with World(build) as world:
        world.start_server()
        with open(world.path("oak.txt"), "w") as f:
            f.write("The quick brown fox jumps over the lazy dog, and then again.\n" * 2000)
        world.join("oak", world.path("oak.txt"))
        return run_tests(TESTS, world)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
