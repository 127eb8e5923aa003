"""Serves MLflow's UI on this machine: one worker, no job runner, no usage reports; and names the pages worth opening."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from types import FrameType

from tunix_lab.errors import EnvironmentProblem
from tunix_lab.lab.tracking.store import QUIET, Store, open_store
from tunix_lab.lab.tracking.views import samples_url, shared_views, view_url

_PORTS = (*range(5000, 5060), *range(8300, 8400))  # browsers refuse 5060 and 5061
_START_SECONDS = 180.0  # a loaded machine needs half a minute to import the server
_STOP_SECONDS = 5.0


def free_port(host: str) -> int:
    """A port of `host` that is free now and that browsers open.

    Raises:
      EnvironmentProblem: none is, or `host` is not an address of this machine.
    """
    for port in _PORTS:
        if _is_free(host, port):
            return port
    raise EnvironmentProblem(f"no free port on {host} among {_PORTS[0]}-{_PORTS[-1]}: choose one with --port")


def page_urls(store: Store, base: str) -> dict[str, dict[str, str]]:
    """Addresses by title by experiment name, for a server at `base`; newest experiment first, empty ones left out."""
    client = open_store(store)
    pages = {}
    for experiment in client.search_experiments(order_by=["last_update_time DESC"]):
        number = experiment.experiment_id
        if not client.search_runs([number], max_results=1):
            continue
        views = shared_views(experiment.tags)
        urls = {key.removeprefix("lab-").replace("-", " "): view_url(base, number, key) for key in views}
        pages[experiment.name] = (urls or {"runs": view_url(base, number, None)}) | {"samples": samples_url(base, number)}
    return pages


@contextlib.contextmanager
def serve(store: Store, host: str = "127.0.0.1", port: int | None = None) -> Iterator[str]:
    """Runs the server for a SQLite store; yields its address once it answers. At the end all its processes are gone.

    Raises:
      EnvironmentProblem: the port is taken, or the server does not start.
    """
    if store.sqlite_file is None:
        raise ValueError(f"{store.shown} is a server already")
    if port is not None and not _is_free(host, port):
        raise EnvironmentProblem(f"port {port} on {host} is taken or not allowed: choose another --port, or leave it out")
    port = port or free_port(host)
    open_store(store)  # the schema, before the server would make it
    base = f"http://{'localhost' if host == '0.0.0.0' else host}:{port}"
    log = store.sqlite_file.with_name(store.sqlite_file.name + ".server.log")
    with open(log, "wb") as output, _own_session(_command(store, host, port), output) as process:
        _wait_until_it_answers(base, process, str(log))
        yield base


@contextlib.contextmanager
def until_stopped() -> Iterator[None]:
    """Within it, SIGTERM acts like Ctrl-C, and both end the block quietly. Use it in the main thread."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def _command(store: Store, host: str, port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", store.uri),
        *("--artifacts-destination", store.artifact_root.as_uri()),
        *("--host", host, "--port", str(port), "--workers", "1"),
    ]


@contextlib.contextmanager
def _own_session(command: list[str], output: object) -> Iterator["subprocess.Popen[bytes]"]:
    """A process in a session of its own, which is ended as a whole: the server's workers are its children."""
    environment = {**os.environ, **QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, env=environment
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):  # also the workers that outlived it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_it_answers(base: str, process: "subprocess.Popen[bytes]", log: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise EnvironmentProblem(f"the MLflow server ended with code {process.returncode}; see {log}")
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{base}/health", timeout=5):
            return
        time.sleep(0.2)
    raise EnvironmentProblem(f"the MLflow server does not answer at {base} after {_START_SECONDS:.0f} s; see {log}")


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
