"""Replicates journals to MLflow: one pass (`push`), and the side process that follows a run while it trains.

`python -m tunix_lab.lab.tracking.sync RUN_DIR --follow --tracking-uri URI`
"""

import argparse
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tunix_lab.errors import EnvironmentProblem, UserError
from tunix_lab.lab.record.journal import read_manifest, run_status
from tunix_lab.lab.record.run_state import MANIFEST
from tunix_lab.lab.tracking.cursor import exclusive, is_complete, load_cursor, pending_points
from tunix_lab.lab.tracking.problems import explain
from tunix_lab.lab.tracking.store import PATIENCE_SECONDS, QUIET, Store, impatient_requests, open_store, parse_store

__all__ = ["Pushed", "follower_problem", "is_complete", "pending_points", "push", "start_follower", "wait_follower"]

ADDRESS = "TUNIX_LAB_TRACKING_URI"
INTERVAL_SECONDS = 2.0
LONGEST_BACKOFF_SECONDS = 60.0
LONGEST_PATIENCE_SECONDS = 60.0
DRAIN_SECONDS = 600.0  # how long a follower goes on trying after its run has ended
_LOOK_SECONDS = 0.25
_NICENESS = 10

Outcome = Literal["complete", "running", "pending", "busy", "deleted"]


@dataclasses.dataclass(frozen=True)
class Pushed:
    """What one pass did.

    Attributes:
      run_id: the run.
      outcome: "complete" (the run has ended and the store has all of it), "running" (the store has all there is so far),
        "pending" (the store failed; `problem` says how), "busy" (another process replicates this run), "deleted" (the run
        was deleted in MLflow and is left alone).
      points: metric values pushed by this pass.
      pending: metric values that the store lacks.
      mlflow_run_id: MLflow's id of the run, if it has one.
      problem: why the pass ended early.
    """

    run_id: str
    outcome: Outcome
    points: int
    pending: int
    mlflow_run_id: str | None
    problem: str | None = None


def push(run_dir: str | Path, tracking_uri: str, patience: float = PATIENCE_SECONDS) -> Pushed:
    """Brings the store at `tracking_uri` up to date with the run directory: one pass that may be repeated at will.

    It may be killed anywhere and run again; every point arrives exactly once. A server that is down, hangs or fails ends
    the pass within `patience` seconds, with outcome "pending".

    Raises:
      EnvironmentProblem: the address or the database can never work as it is.
      UserError: the directory has no manifest.
    """
    run_dir, store = Path(run_dir), parse_store(tracking_uri)
    with exclusive(run_dir) as alone, impatient_requests(patience):
        if not alone:
            return _report(run_dir, store, "busy", 0, "another process is replicating this run")
        return _push_alone(run_dir, store)


def _push_alone(run_dir: Path, store: Store) -> Pushed:
    state = run_status(run_dir)  # before all else: if the run has ended, nothing that follows can change any more
    manifest = read_manifest(run_dir)
    try:
        client = open_store(store)
    except OSError as error:
        return _report(run_dir, store, "pending", 0, explain(store, error))

    import requests
    from mlflow.exceptions import MlflowException

    from tunix_lab.lab.tracking.replica import Replica, RunDeleted

    replica = Replica(client, store, run_dir, manifest, state, load_cursor(run_dir, store))
    try:
        replica.push()
    except RunDeleted:
        return _report(run_dir, store, "deleted", 0, "the run was deleted in MLflow")
    except (MlflowException, requests.RequestException, OSError) as error:
        return _report(run_dir, store, "pending", replica.points, explain(store, error))
    outcome: Outcome = "running" if state.status == "running" else "complete"
    return _report(run_dir, store, outcome, replica.points, None)


def _report(run_dir: Path, store: Store, outcome: Outcome, points: int, problem: str | None) -> Pushed:
    pending = pending_points(run_dir, store.uri)
    return Pushed(run_dir.name, outcome, points, pending, load_cursor(run_dir, store).mlflow_run_id, problem)


def follower_problem(run_dir: Path) -> str | None:
    """What the follower of a run complained of last; None if it had no reason to."""
    log = run_dir / "sync/follower.log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), None)


def start_follower(run_dir: str | Path, tracking_uri: str) -> "subprocess.Popen[bytes]":
    """Starts the process that replicates a run while it trains and drains afterwards; its log is `sync/follower.log`.

    Call it while the journal is open. The process has its own session (Ctrl-C reaches only the trainer) and low priority.
    """
    run_dir = Path(run_dir).resolve()
    command = [sys.executable, "-m", "tunix_lab.lab.tracking.sync", str(run_dir), "--follow"]
    # The address may hold a password, and everybody can read a command line.
    environment = {**os.environ, **QUIET, ADDRESS: tracking_uri}
    with open(run_dir / "sync/follower.log", "ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment
        )


def wait_follower(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    """Whether the follower ended within `seconds` with everything replicated; it goes on by itself if not."""
    try:
        return process.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        return False


def follow(run_dir: Path, tracking_uri: str, drain_seconds: float = DRAIN_SECONDS) -> bool:
    """Pushes every two seconds while the run lives, then until all is there; whether it got that far in `drain_seconds`."""
    failures, deadline = 0, None
    while True:
        alive = run_status(run_dir).status == "running"
        if alive:
            deadline = None
        elif deadline is None:
            deadline = time.monotonic() + drain_seconds
        elif time.monotonic() > deadline:
            return False
        if (run_dir / MANIFEST).exists():
            # A server that is slow rather than dead gets more time with each try, or no large batch would ever pass.
            result = push(run_dir, tracking_uri, min(PATIENCE_SECONDS * 2**failures, LONGEST_PATIENCE_SECONDS))
            if result.outcome in ("complete", "deleted"):
                return True
            if result.outcome == "pending":
                print(time.strftime("%H:%M:%S"), f"{result.pending} points wait: {result.problem}", flush=True)
            failures = failures + 1 if result.outcome == "pending" else 0
        _pause(run_dir, min(INTERVAL_SECONDS * 2**failures, LONGEST_BACKOFF_SECONDS), alive)


def _pause(run_dir: Path, seconds: float, alive: bool) -> None:
    """Sleeps, but not past the end of a living run: then what is left is pushed at once."""
    wake = time.monotonic() + seconds
    while (left := wake - time.monotonic()) > 0:
        time.sleep(min(left, _LOOK_SECONDS))
        if alive and run_status(run_dir).status != "running":
            return


def main(arguments: Sequence[str] | None = None) -> int:
    """The side process: one pass over RUN_DIR, or all of its life with `--follow`. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tunix_lab.lab.tracking.sync", description=main.__doc__)
    parser.add_argument("run_dir", type=Path)
    address = os.environ.get(ADDRESS)
    parser.add_argument("--tracking-uri", default=address, required=address is None, help=f"default: ${ADDRESS}")
    parser.add_argument("--follow", action="store_true")
    parser.add_argument("--drain-seconds", type=float, default=DRAIN_SECONDS)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICENESS)
    try:
        if options.follow:
            done = follow(options.run_dir, options.tracking_uri, options.drain_seconds)
        else:
            done = push(options.run_dir, options.tracking_uri).outcome in ("complete", "running")
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0 if done else EnvironmentProblem.exit_code


if __name__ == "__main__":
    sys.exit(main())
