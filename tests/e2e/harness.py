"""The real programs on free ports in a throwaway folder: one server, some silos, killed and restarted at will."""

import glob
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.error
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(ROOT, "tests", "support"))
from ports import free_ports  # noqa: E402


def run_tests(tests, *args, on_failure=None):
    """Each test with args, a line each, then how many; on_failure() before that. True: some failed, for sys.exit()."""
    failed = 0
    for test in tests:
        begin_s = time.monotonic()
        try:
            test(*args)
        except Exception:  # a test may fail in any way; the next one still runs
            failed += 1
            print("  FAIL %s" % test.__name__)
            traceback.print_exc(file=sys.stdout)
        else:
            print("  ok   %s (%.0f s)" % (test.__name__, time.monotonic() - begin_s))
        sys.stdout.flush()
    if failed and on_failure:
        on_failure()
    print("%d passed, %d failed" % (len(tests) - failed, failed))
    return failed > 0


def until(what, condition, timeout_s=60.0):
    """Poll until condition() is true; its value. Fails by name, so that a hang says what it waited for."""
    end = time.monotonic() + timeout_s
    over = False
    while not over:
        over = time.monotonic() >= end  # before the look: the last one comes after the end
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError("waited %.0f s in vain for: %s" % (timeout_s, what))


class World:
    """A server's data folder and the silos that talk to it. Use as a context manager."""

    def __init__(self, build):
        self.bin = os.path.join(os.path.abspath(build), "bin")
        self.dir = tempfile.mkdtemp(prefix="photon-e2e-")
        os.chmod(self.dir, 0o755)
        self.port, self.bulk_port = free_ports(2)
        self.url = "http://127.0.0.1:%d" % self.port
        self.server = None
        self.silos = {}
        self.token = None
        self.env = dict(os.environ, OMP_WAIT_POLICY="passive", PHOTON_SERVER=self.url)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        for silo in list(self.silos.values()):
            self.stop(silo)
        self.stop_server()
        if kind:
            self.show_logs()
        shutil.rmtree(self.dir, ignore_errors=True)

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    def show_logs(self):
        for name in sorted(os.listdir(self.dir)):
            if name.endswith(".log"):
                with open(self.path(name), errors="replace") as f:
                    tail = f.readlines()[-25:]
                print("---- %s\n%s" % (name, "".join(tail)))

    def tool(self, *args, check=True):
        """Run the `photon` command; its standard output."""
        done = subprocess.run([os.path.join(self.bin, "photon"), *args], capture_output=True, text=True,
                              env=self.env, timeout=120)
        if check and done.returncode != 0:
            raise AssertionError("photon %s: status %d\n%s" % (" ".join(args), done.returncode, done.stderr))
        return done.stdout

    # ---- the server ----

    def start_server(self, *options):
        log = open(self.path("server.log"), "a")
        self.server = subprocess.Popen(
            [os.path.join(self.bin, "photon-server"), "--data", self.path("server"),
             "--listen", "127.0.0.1:%d" % self.port, "--bulk-listen", "127.0.0.1:%d" % self.bulk_port, *options],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.env, start_new_session=True)
        log.close()

        def ready():
            if self.server.poll() is not None:
                raise AssertionError("the server ended with status %d" % self.server.returncode)
            try:
                return self.get("/readyz", anonymous=True)
            except OSError:
                return None
        until("the server to be ready", ready)
        with open(self.path("server", "admin-token")) as f:
            self.token = f.read().strip()

    def kill_server(self):
        self.server.send_signal(signal.SIGKILL)
        self.server.wait()

    def stop_server(self):
        if self.server and self.server.poll() is None:
            self.server.send_signal(signal.SIGTERM)
            try:
                self.server.wait(30)
            except subprocess.TimeoutExpired:
                self.kill_server()

    # ---- silos ----

    def join(self, name, text):
        """Prepare the text and enrol a silo of that name."""
        data = self.path(name + "-data")
        self.tool("data", "prepare", text, "-o", data)
        secret = self.post("/api/v1/tokens", {"role": "join", "name": name})["secret"]
        token_file = self.path(name + ".token")
        with open(token_file, "w") as f:
            f.write(secret)
        os.chmod(token_file, 0o600)
        done = subprocess.run([os.path.join(self.bin, "photon-client"), "join", self.url, "--name", name,
                               "--token-file", token_file, "--state", self.path(name)],
                              capture_output=True, text=True, env=self.env, timeout=60)
        if done.returncode != 0:
            raise AssertionError("join: status %d\n%s" % (done.returncode, done.stderr))

    def start(self, name, *options, faults=None):
        """faults: what happens where, as common/fault.h has it; for that it is the program of build/fault."""
        log = open(self.path(name + ".log"), "a")
        programs = os.path.join(self.bin, "..", "..", "fault", "bin") if faults else self.bin
        self.silos[name] = subprocess.Popen(
            [os.path.join(programs, "photon-client"), "start", "--state", self.path(name),
             "--data", self.path(name + "-data"), "--device", "cpu", "--threads", "1", *options],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=dict(self.env, PHOTON_FAULT=faults or ""),
            start_new_session=True)
        log.close()

    def kill(self, name):
        self.silos[name].send_signal(signal.SIGKILL)
        self.silos[name].wait()

    def stop(self, process):
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    # ---- the API ----

    def call(self, method, path, body=None, anonymous=False):
        request = urllib.request.Request(self.url + path, method=method)
        if not anonymous:
            request.add_header("Authorization", "Bearer " + self.token)
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        context = None
        if self.url.startswith("https://"):
            context = ssl.create_default_context(cafile=self.path("server", "tls", "ca.pem"))
        with urllib.request.urlopen(request, data, timeout=30, context=context) as answer:
            text = answer.read()
            return json.loads(text) if text else None

    def get(self, path, anonymous=False):
        return self.call("GET", path, anonymous=anonymous)

    def post(self, path, body):
        return self.call("POST", path, body)

    def run(self, run_id):
        return self.get("/api/v1/runs/" + run_id)

    def wait_finished(self, run_id, timeout_s=180.0):
        def finished():
            try:
                run = self.run(run_id)
            except OSError:
                return None
            if run["state"] in ("failed", "stopped"):
                raise AssertionError("the run is %s: %s" % (run["state"], run.get("reason")))
            return run if run["state"] == "finished" else None
        return until("run %s to finish" % run_id, finished, timeout_s)

    def wait_snapshot(self, run_id, number, name, timeout_s=120.0):
        """Wait until that silo is in mid-round: training, with a snapshot of that round on its disk.

        A round of a test is shorter than the time between two snapshots: the silo's faults make it long enough.
        """
        def training():
            try:
                round_ = self.get("/api/v1/runs/%s/rounds/%d" % (run_id, number))
            except urllib.error.HTTPError as e:
                if e.code == 404:
                    return None
                raise
            for task in round_["tasks"]:
                if task["silo_name"] == name and task["kind"] == "train":
                    if task["state"] == "done":
                        raise AssertionError("round %d of %s was over before it could be disturbed" % (number, name))
                    return task["state"] == "leased"
            return None

        def snapshot():
            if not training():
                return None
            return glob.glob(self.path(name, "runs", run_id, "snap-*.state"))  # the name that makes it whole
        until("%s to be in the middle of round %d" % (name, number), snapshot, timeout_s)

    def log_of(self, name):
        with open(self.path(name + ".log"), errors="replace") as f:
            return f.read()
