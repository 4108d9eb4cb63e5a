"""The private PostgreSQL of a server without --database: started, killed, taken over, refused; and exit codes."""

import ctypes
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

from kit import free_port, in_time, thrice, until


class Own:
    """A server with a PostgreSQL of its own in a folder of its own."""

    def __init__(self, program, folder="data"):
        self.program = program
        self.dir = tempfile.mkdtemp(prefix="photon-own-")
        os.chmod(self.dir, 0o755)
        self.data = os.path.join(self.dir, folder)
        os.makedirs(self.data)
        path = self.data
        while path != self.dir:
            os.chmod(path, 0o755)
            path = os.path.dirname(path)
        self.log = os.path.join(self.dir, "log")
        self.process = None

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind and os.path.exists(self.log):
            with open(self.log) as f:
                print("".join(f.readlines()[-15:]))
        if self.process and self.process.poll() is None:
            self.stop()
        pid = self.postmaster()
        if pid:
            os.kill(pid, signal.SIGQUIT)
            until("PostgreSQL to end", lambda: not alive(pid))
        shutil.rmtree(self.dir, ignore_errors=True)

    def spawn(self, *more, before=None):
        log = open(self.log, "a")
        self.process = subprocess.Popen(
            [self.program, "--data", self.data, "--listen", "127.0.0.1:%d" % self.port, *more], stdout=log, stderr=log,
            stdin=subprocess.DEVNULL, preexec_fn=before)
        log.close()

    def start(self, before=None):
        self.port = free_port()
        begin = time.monotonic()
        self.spawn("--bulk-listen", "127.0.0.1:0", before=before)

        def ready():
            assert self.process.poll() is None, "the server ended with status %d" % self.process.returncode
            return self.ready()
        until("the server to be ready", ready, 90)
        return time.monotonic() - begin

    def ready(self):
        try:
            with urllib.request.urlopen("http://127.0.0.1:%d/readyz" % self.port, timeout=5) as answer:
                return answer.status == 200
        except (OSError, urllib.error.URLError):
            return False

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        return self.process.returncode

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def postmaster(self):
        try:
            with open(os.path.join(self.data, "pg", "postmaster.pid")) as f:
                pid = int(f.readline())
        except (OSError, ValueError):
            return 0
        return pid if alive(pid) else 0

    def said(self):
        with open(self.log) as f:
            return f.read()

    def alter(self, what):
        """The role that serves, as the owner of the private PostgreSQL."""
        subprocess.run(["psql", "-X", "-q", "-h", os.path.join(self.data, "pg-socket"), "-U", "photon", "-d", "postgres",
                        "-v", "ON_ERROR_STOP=1", "-c", "ALTER ROLE photon_server " + what], check=True, timeout=20)

    def check(self):
        done = subprocess.run([self.program, "check", "--data", self.data], capture_output=True, text=True, timeout=90)
        return done.returncode, done.stdout


def alive(pid):
    try:
        with open("/proc/%d/stat" % pid) as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def end(server, *options, timeout_s=60):
    """A server that must not start: its status, and the line it says why."""
    done = subprocess.run([server.program, *options], capture_output=True, text=True, timeout=timeout_s)
    lines = done.stderr.strip().splitlines()
    return done.returncode, lines[-1] if lines else ""


def test_a_first_start_makes_everything_and_shows_the_token_once(server):
    with Own(server.program) as own:
        own.start()
        token = os.path.join(own.data, "admin-token")
        with open(token) as f:
            secret = f.read().strip()
        assert stat.S_IMODE(os.stat(token).st_mode) == 0o600
        until("the address to be printed", lambda: "#token=" + secret in own.said())
        assert stat.S_IMODE(os.stat(os.path.join(own.data, "pg-socket")).st_mode) == 0o700
        if os.geteuid() == 0:
            assert os.stat("/proc/%d" % own.postmaster()).st_uid != 0, "PostgreSQL runs as root"
        pid = own.postmaster()
        rc, said = own.check()
        assert rc == 0 and said.endswith("\n0 violations; 0 files, 0 bytes read\n"), (rc, said)
        assert own.stop() == 0
        assert not alive(pid), "PostgreSQL outlived its server"
        os.truncate(own.log, 0)
        own.start()
        until("the address to be printed again", lambda: "Dashboard: " in own.said())
        assert "token" not in own.said(), "the token was shown again"
        with open(token) as f:
            assert f.read().strip() == secret


@thrice
def test_a_killed_servers_postgresql_is_taken_over_at_once(server):
    with Own(server.program) as own:
        own.start()
        pid = own.postmaster()
        for _ in range(3):
            own.kill()
            assert alive(pid)
            began = time.monotonic()
            own.start()
            assert own.postmaster() == pid, "another PostgreSQL"
            in_time(began, 10)
        assert own.stop() == 0
        assert not alive(pid)


def test_a_killed_postgresql_is_started_again(server):
    with Own(server.program) as own:
        own.start()
        for _ in range(3):
            pid = own.postmaster()
            os.kill(pid, signal.SIGKILL)
            until("another PostgreSQL", lambda: own.postmaster() not in (0, pid), 60)
            until("the server to be ready again", own.ready, 60)
        assert own.stop() == 0


def test_everything_killed_at_once_starts_again(server):
    with Own(server.program) as own:
        own.start()
        pid = own.postmaster()
        own.kill()
        os.kill(pid, signal.SIGKILL)
        own.start()
        assert own.stop() == 0


def test_a_pid_file_that_names_a_stranger_is_no_hindrance(server):
    with Own(server.program) as own:
        own.start()
        assert own.stop() == 0
        stranger = subprocess.Popen(["sleep", "300"])
        try:
            path = os.path.join(own.data, "pg", "postmaster.pid")
            with open(path, "w") as f:
                f.write("%d\n%s\n1\n5432\n\n\n" % (stranger.pid, os.path.join(own.data, "pg")))
            own.start()
            assert stranger.poll() is None, "a stranger was ended"
        finally:
            stranger.kill()
            stranger.wait()


def test_a_deep_folder_and_odd_names_work(server):
    with Own(server.program, os.path.join(*["it's a deep, deep folder"] * 6)) as own:
        own.start()
        assert own.stop() == 0


def test_a_half_made_cluster_is_made_anew(server):
    with Own(server.program) as own:
        os.makedirs(os.path.join(own.data, "pg.new", "base"))
        own.start()


def test_the_role_that_serves_owns_nothing(server):
    with Own(server.program) as own:
        own.start()
        at = ["psql", "-X", "-q", "-A", "-t", "-h", os.path.join(own.data, "pg-socket"), "-d", "postgres", "-v", "ON_ERROR_STOP=1"]

        def ask(role, sql):
            return subprocess.run([*at, "-U", role, "-c", sql], capture_output=True, text=True, timeout=20)
        serving = ("SELECT DISTINCT usename FROM pg_stat_activity WHERE application_name LIKE 'photon-server%'"
                   " OR application_name LIKE 'p\\_%'")
        until("the owner's session of the start to be over", lambda: ask("photon", serving).stdout.split() == ["photon_server"])
        assert ask("photon", "SELECT count(*) FROM pg_shdepend WHERE deptype = 'o' AND refobjid = 'photon_server'::regrole"
                   ).stdout.strip() == "0"
        for sql in ("DROP TABLE audit", "ALTER TABLE token ADD COLUMN secret text", "ALTER TABLE audit DISABLE TRIGGER ALL",
                    "UPDATE audit SET name = 'nobody'", "TRUNCATE audit", "SET session_replication_role = replica",
                    "SET ROLE photon", "CREATE TABLE own (x text)"):
            done = ask("photon_server", sql)
            assert done.returncode != 0 and ("permission denied" in done.stderr or "must be owner" in done.stderr), (sql, done)
        done = ask("photon_server", "DELETE FROM audit")
        assert "kept for 90 days" in done.stderr, done
        assert ask("photon_server", "SELECT count(*) FROM audit WHERE action = 'token_create'").stdout.strip() == "1"


def test_too_few_connections_are_said_at_the_start(server):
    with Own(server.program) as own:
        own.start()
        assert "connections at once" not in own.said()
        own.alter("CONNECTION LIMIT 40")
        assert own.stop() == 0
        own.start()
        assert "lets us have 40 connections at once and a busy server uses 78" in own.said()


def test_a_role_that_would_lose_what_it_acknowledges_does_not_serve(server):
    """The cluster's settings are sound; a role, and the address that a server is given, may have others."""
    says = "may lose what was acknowledged: synchronous_commit = off; try"
    listen = ["--listen", "127.0.0.1:0", "--bulk-listen", "127.0.0.1:0"]
    with Own(server.program) as own, tempfile.TemporaryDirectory(prefix="photon-other-") as other:
        own.start()
        at = "host=%s dbname=postgres user=" % os.path.join(own.data, "pg-socket")
        rc, line = end(server, "--data", other, "--database", at + "photon_server options=-csynchronous_commit=off",
                       "--migrate-database", at + "photon", *listen)
        assert rc == 3 and says in line, (rc, line)
        own.alter("SET synchronous_commit = off")
        assert own.stop() == 0
        rc, line = end(server, "--data", own.data, *listen)
        assert rc == 3 and says in line, (rc, line)


def test_dear_queries_need_no_memory_to_write_and_run(server):
    with Own(server.program) as own:
        # As MemoryDenyWriteExecute= of docs/systemd does it, where the kernel can (PR_SET_MDWE, Linux 6.3).
        own.start(before=lambda: ctypes.CDLL(None).prctl(65, 1, 0, 0, 0))
        done = subprocess.run(["psql", "-X", "-q", "-A", "-t", "-h", os.path.join(own.data, "pg-socket"), "-U", "photon_server",
                               "-d", "postgres", "-v", "ON_ERROR_STOP=1", "-c", "SHOW jit", "-c", "SET jit_above_cost = 0",
                               "-c", "SELECT sum(x) FROM generate_series(1, 1000) x WHERE x % 3 = 0"],
                              capture_output=True, text=True, timeout=20)
        assert done.stdout.split() == ["off", "166833"], done


def test_two_servers_do_not_share_a_folder(server):
    with Own(server.program) as own:
        own.start()
        rc, line = end(server, "--data", own.data, "--listen", "127.0.0.1:0", "--bulk-listen", "127.0.0.1:0")
        assert rc == 4 and "another photon-server uses" in line, (rc, line)
        assert own.ready()


def test_a_taken_port_is_said(server):
    with Own(server.program) as own, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        rc, line = end(server, "--data", own.data, "--listen", "127.0.0.1:%d" % port, "--bulk-listen", "127.0.0.1:0")
        assert rc == 4 and str(port) in line, (rc, line)
        assert own.postmaster() == 0, "PostgreSQL was left running"


def test_what_is_wrong_at_the_start_has_its_exit_code(server):
    with Own(server.program) as own:
        listen = ["--listen", "127.0.0.1:0", "--bulk-listen", "127.0.0.1:0"]
        ours = "host=%s user=%s dbname=%s" % (os.environ["PGHOST"], os.environ["PGUSER"], os.environ["PGDATABASE"])
        for options, want, words in (
                (["--nonsense"], 2, "nonsense"),
                (["--workers", "0"], 2, "--workers"),
                (["--log-format", "xml"], 2, "xml"),
                (["--tls-cert", "x"], 2, "belong together"),
                (["--migrate-database", ours], 2, "belongs to --database"),
                (["surprise"], 2, "surprise"),
                (["check", "--data", own.data], 3, "no data folder of a photon-server"),
                (["check", "--data", os.path.join(own.dir, "none")], 3, "--data"),
                (["--data", "/proc/nowhere"], 3, "/proc/nowhere"),
                (["--data", own.data, "--database", ours, *listen], 3, "fsync = off"),
                (["--data", own.data, "--database", ours, "--migrate-database", ours + " ", "--unsafe-database", *listen], 3,
                 "try a role of its own"),
                (["--data", own.data, "--database", ours, "--unsafe-database", "--sql", own.dir, *listen], 3, "--sql"),
                (["--data", own.data, "--database", ours, "--unsafe-database", "--listen", "0.0.0.0:0"], 3, "TLS"),
                (["--data", own.data, "--database", "host=%s user=nobody_we_know" % os.environ["PGHOST"], *listen], 4,
                 "nobody_we_know"),
                (["--data", own.data, "--database", "host=127.0.0.1 port=1", *listen], 75, "cannot connect")):
            rc, line = end(server, *options)
            assert rc == want and words in line, (options, rc, line)
            assert "check" not in options or not os.listdir(own.data), "a check has made files"


def test_an_edited_or_newer_migration_is_refused(server):
    with Own(server.program) as own:
        own.start()
        assert own.stop() == 0
        sql = os.path.join(own.dir, "sql")
        shutil.copytree(os.path.join(os.path.dirname(__file__), "..", "..", "sql"), sql)
        names = sorted(os.listdir(sql))
        common = ["--data", own.data, "--listen", "127.0.0.1:0", "--bulk-listen", "127.0.0.1:0", "--sql", sql]
        with open(os.path.join(sql, names[2]), "a") as f:
            f.write("-- a word more\n")
        rc, line = end(server, *common)
        assert rc == 3 and names[2] in line, (rc, line)
        shutil.copy(os.path.join(os.path.dirname(__file__), "..", "..", "sql", names[2]), sql)
        os.remove(os.path.join(sql, names[-1]))
        rc, line = end(server, *common)
        assert rc == 3 and "newer version" in line, (rc, line)
        assert re.search(r"\d+ migrations", line)


def test_help_and_version_are_for_people(server):
    for option, words in (("--help", "Exit codes"), ("--version", "photon-server 0.")):
        done = subprocess.run([server.program, option], capture_output=True, text=True, timeout=10)
        assert done.returncode == 0 and words in done.stdout and not done.stderr, done
