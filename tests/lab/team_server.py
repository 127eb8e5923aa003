"""A team's tracking server on this machine: PostgreSQL and `mlflow server`, each of which can be killed and started again."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PASSWORD = "not-a-secret"
_START_SECONDS = 180.0
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def program(name: str) -> str | None:
    """A program of PostgreSQL: on the path, or where Debian keeps the server's own."""
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(versions[-1]) if versions else None)


def why_not() -> str | None:
    """Why PostgreSQL cannot be used here; None if it can."""
    missing = [name for name in ("initdb", "postgres") if program(name) is None]
    if missing:
        return f"PostgreSQL is not installed: no {' and no '.join(missing)}"
    if os.geteuid() == 0 and _other_user() is None:
        return "PostgreSQL refuses to run as root, and there is no other user (postgres, nobody)"
    return None


def _other_user() -> str | None:
    import pwd

    names = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in names), None)


class Postgres:
    """A PostgreSQL server on a free loopback port, with its data in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        import pwd

        self.folder, self.port = folder, free_port()
        self.user: dict[str, Any] = {}
        if os.geteuid() == 0:
            entry = pwd.getpwnam(_other_user() or "")
            os.chown(folder, entry.pw_uid, entry.pw_gid)
            self.user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        password = folder / "password"
        password.write_text(PASSWORD + "\n")
        password.chmod(0o644)
        arguments = ["--username", "lab", "--pwfile", str(password), "--auth", "scram-sha-256", "--encoding", "UTF8"]
        self._run([program("initdb"), "--pgdata", str(folder / "data"), "--no-sync", "--locale", "C", *arguments])
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"postgresql://lab:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        log = open(self.folder / "log", "ab")
        command = [program("postgres"), "-D", str(self.folder / "data"), "-p", str(self.port), "-c", "listen_addresses=127.0.0.1"]
        with log:  # no socket file: its folder need not be writable
            self.process = subprocess.Popen(
                [*command, "-c", "unix_socket_directories="], stdout=log, stderr=log, cwd=self.folder, **self.user
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        """Ends it as a crash would: open transactions are lost, and it recovers from its log when it starts again."""
        assert self.process is not None
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(60)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        import psycopg

        with psycopg.connect(self.uri) as connection:
            return connection.execute(sql).fetchall()

    def _answers(self) -> bool:
        import psycopg

        with contextlib.suppress(psycopg.OperationalError):
            return self.rows("SELECT 1") == [(1,)]
        return False

    def _run(self, command: list[Any]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, check=False, **self.user)
        assert done.returncode == 0, done.stdout + done.stderr


class Server:
    """`mlflow server` on a database and a folder of artifacts, with the command of the README."""

    def __init__(self, database_uri: str, artifacts: Path, log: Path) -> None:
        self.database_uri, self.artifacts, self.log = database_uri, artifacts, log
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {**os.environ, **_QUIET, "MLFLOW_BACKEND_STORE_URI": self.database_uri}
        command = [sys.executable, "-m", "mlflow", "server", "--artifacts-destination", self.artifacts.as_uri()]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        """SIGKILL to it and to its workers."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _answers(self) -> bool:
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
            return True
        return False


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """A running PostgreSQL; not under pytest's folder, which only its owner may enter."""
    folder = Path(tempfile.mkdtemp(prefix="tunix-lab-postgres-"))
    try:
        database = Postgres(folder)
        database.start()
        try:
            yield database
        finally:
            if database.process is not None and database.process.poll() is None:
                database.stop()
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def server(database_uri: str, folder: Path) -> Iterator[Server]:
    """A running `mlflow server` whose artifacts lie in `folder`/artifacts."""
    served = Server(database_uri, folder / "artifacts", folder / "server.log")
    served.start()
    try:
        yield served
    finally:
        served.kill()
