"""The journal of a run: an append-only local record of every metric, event and sample, and the lock that says who writes it.

The journal is the truth about a run; trackers are replicas made from it by other processes. It is written with one
`write` per line, so that a killed process loses at most the line it was writing, and it knows neither MLflow nor JAX.
"""

import errno
import fcntl
import json
import operator
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

from tunix_lab.errors import EnvironmentProblem
from tunix_lab.lab.record.fingerprints import Fingerprint, to_record
from tunix_lab.lab.record.jsonl import open_for_append, strict, to_line, write_atomically
from tunix_lab.lab.record.redaction import Redactor
from tunix_lab.lab.record.run_state import (
    EVENTS,
    FINGERPRINTS,
    LOCK,
    METRICS,
    STATE,
    RunState,
    find_run,
    list_runs,
    read_events,
    read_manifest,
    read_metrics,
    run_status,
)

__all__ = [
    "Journal",
    "RunState",
    "find_run",
    "list_runs",
    "new_run_id",
    "read_events",
    "read_manifest",
    "read_metrics",
    "run_status",
    "write_atomically",
]

FSYNC_SECONDS = 5.0
LOCK_PATIENCE_SECONDS = 1.0  # readers hold the lock for microseconds while they look; a writer holds it for hours
_SAMPLE_COLUMNS = ("id", "completion", "prompt", "reference")
_METRIC_NAME = re.compile(r"[a-z0-9_]+/[A-Za-z0-9_.\-]+")

EndStatus = Literal["finished", "failed", "killed"]


def new_run_id(name: str) -> str:
    """A fresh run id, `<name>-<utc yyyymmdd-hhmmss>-<4 hex>`: sorts by time within a name."""
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


class Journal:
    """The one writer of a run directory. Open it with `Journal.open`; safe to use from several threads.

    As a context manager it ends the run if `finish` was not called: "finished" on a clean exit, "killed" on
    KeyboardInterrupt or SystemExit, "failed" with the error's text on any other exception.
    """

    def __init__(self, run_dir: Path, lock: IO[bytes], origin: Mapping[str, str] | None = None) -> None:
        """Continues (or begins) the record in `run_dir`, whose lock the caller has taken. Use `Journal.open`."""
        previous = run_status(run_dir, ignore_lock=True)
        self.run_dir = run_dir
        self.run_id = run_dir.name
        self.attempt = previous.attempt + 1
        self._lock_file = lock
        self._mutex = threading.Lock()
        self._metrics = open_for_append(run_dir / METRICS)
        self._events = open_for_append(run_dir / EVENTS)
        self._fingerprints = open_for_append(run_dir / FINGERPRINTS)
        now = _now_ms()
        self.started_ms = previous.started_ms if previous.attempt else now
        self._attempt_started_ms = now
        self._step = previous.step
        self._latest = dict(previous.latest)
        self._status = "running"
        self._message: str | None = None
        self._last_fsync = time.monotonic()
        self._closed = False
        self._write_state()
        began = {} if origin is None else {"origin": dict(origin)}
        self.event("attempt", attempt=self.attempt, pid=os.getpid(), host=socket.gethostname(), **began)

    @classmethod
    def open(cls, run_dir: str | Path, origin: Mapping[str, str] | None = None) -> Self:
        """Takes the lock of `run_dir` (made if missing) and continues its journal with the next attempt.

        Args:
          run_dir: the run directory.
          origin: what the attempt begins with, see `record.attempt`; kept with it.

        Raises:
          EnvironmentProblem: another process writes this run (named with pid and host), or the folder cannot be written.
        """
        run_dir = Path(run_dir)
        try:
            for folder in ("journal", "samples", "sync"):
                (run_dir / folder).mkdir(parents=True, exist_ok=True)
            lock = _take_lock(run_dir)
            return cls(run_dir, lock, origin)
        except OSError as error:
            raise EnvironmentProblem(f"{run_dir}: cannot write the run directory: {error.strerror or error}") from error

    def metrics(self, step: int, values: Mapping[str, float], *, checkpoint: int | None = None) -> None:
        """Appends one line of metrics.

        Args:
          step: optimizer updates made so far (for `system/*`: seconds since the run began).
          values: host numbers by name; names have one slash. Non-finite numbers are kept as such.
          checkpoint: step of the checkpoint that the values were measured on; None if not a kept checkpoint.

        Raises:
          ValueError: a name without exactly one slash, or a negative step.
          EnvironmentProblem: the disk refuses the line.
        """
        step = operator.index(step)
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}")
        for name in values:
            if not _METRIC_NAME.fullmatch(name):
                raise ValueError(f"metric name {name!r} must have the form group/name")
        numbers = {name: float(value) for name, value in values.items()}
        line: dict[str, Any] = {"t": _now_ms(), "step": step, "m": {k: strict(v) for k, v in numbers.items()}}
        if checkpoint is not None:
            line["c"] = operator.index(checkpoint)
        with self._mutex:
            self._append(self._metrics, line)
            self._latest.update(numbers)
            if any(not name.startswith("system/") for name in numbers):
                self._step = step
            if time.monotonic() - self._last_fsync > FSYNC_SECONDS:
                self._flush()

    def event(self, kind: str, **fields: Any) -> None:
        """Appends one event; `fields` are JSON values (named other than `t` and `kind`)."""
        with self._mutex:
            self._append(self._events, {"t": _now_ms(), "kind": kind, **fields})

    def fingerprint(self, fingerprint: Fingerprint) -> None:
        """Appends the hashes of an update."""
        with self._mutex:
            self._append(self._fingerprints, to_record(fingerprint))

    def checkpoint(self, step: int, path: str, digest: str, n_bytes: int) -> None:
        """Records that a checkpoint of `step` lies at `path` with parameter digest `digest`, and makes all lines durable."""
        self.event("checkpoint", step=operator.index(step), path=str(path), digest=digest, bytes=operator.index(n_bytes))
        with self._mutex:
            self._flush()

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keeps the generations of `step`: its own file, `latest.json` (a table for people) and `history.jsonl`.

        Args:
          step: optimizer updates made so far.
          rows: one mapping per prompt, with at least `id` (the same prompt keeps its id over steps and runs) and `completion`.
        """
        step = operator.index(step)
        for row in rows:
            if "id" not in row or "completion" not in row:
                raise ValueError(f"a sample row needs `id` and `completion`, got {sorted(row)}")
        folder = self.run_dir / "samples"
        named = dict.fromkeys(key for row in rows for key in row if key != "step")
        columns = [c for c in _SAMPLE_COLUMNS if c in named] + [c for c in named if c not in _SAMPLE_COLUMNS]
        records = [{c: strict(row.get(c), null=True) for c in columns} | {"step": step} for row in rows]
        lines = b"".join(to_line(record) for record in records)
        table = {"columns": _table_columns(records), "data": []}
        table["data"] = [[record[column] for column in table["columns"]] for record in records]
        with self._mutex:
            self._require_open()
            write_atomically(folder / f"step-{step:06d}.jsonl", lines)
            # Rebuilt rather than appended: a resumed run makes the samples of a step again.
            history = sorted(folder.glob("step-*.jsonl"), key=lambda path: int(path.stem.removeprefix("step-")))
            write_atomically(folder / "history.jsonl", b"".join(path.read_bytes() for path in history))
            write_atomically(folder / "latest.json", to_line(table))

    def finish(self, status: EndStatus, message: str | None = None) -> None:
        """Says how the run ended and makes everything durable. Lines may still follow until `close`."""
        if status not in ("finished", "failed", "killed"):
            raise ValueError(f"a run ends as finished, failed or killed, not as {status!r}")
        message = None if message is None else Redactor.of_process().text(message)  # an error may quote an address or a token
        self.event("finish", status=status, message=message)
        with self._mutex:
            self._status, self._message = status, message
            self._flush()

    def close(self) -> None:
        """Writes what is left and releases the lock; a run that was not finished reads as killed from now on."""
        with self._mutex:
            if self._closed:
                return
            self._flush()
            self._closed = True
            for file in (self._metrics, self._events, self._fingerprints, self._lock_file):
                file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._status == "running":
            if kind is None:
                self.finish("finished")
            elif issubclass(kind, Exception):
                self.finish("failed", f"{kind.__name__}: {error}")
            else:
                self.finish("killed", str(error) or kind.__name__)
        self.close()

    def _append(self, file: IO[bytes], line: Mapping[str, Any]) -> None:
        self._require_open()
        data = to_line(line)
        try:
            written = file.write(data)
            if written != len(data):  # a full disk takes a part of the line: take it back
                file.truncate(os.fstat(file.fileno()).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise EnvironmentProblem(f"{self.run_dir}: cannot write the journal: {error.strerror or error}") from error

    def _flush(self) -> None:
        try:
            os.fsync(self._metrics.fileno())
            os.fsync(self._events.fileno())
            os.fsync(self._fingerprints.fileno())
            self._write_state()
        except OSError as error:
            raise EnvironmentProblem(f"{self.run_dir}: cannot write the journal: {error.strerror or error}") from error
        self._last_fsync = time.monotonic()

    def _write_state(self) -> None:
        now = _now_ms()
        state = {
            "status": self._status,
            "message": self._message,
            "attempt": self.attempt,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": self.started_ms,
            "attempt_started": self._attempt_started_ms,
            "updated": now,
            "ended": None if self._status == "running" else now,
            # A summary of the first `journal_bytes` bytes of the metrics; a reader adds the lines after them.
            "journal_bytes": os.fstat(self._metrics.fileno()).st_size,
            "step": self._step,
            "latest": {name: strict(value) for name, value in self._latest.items()},
        }
        write_atomically(self.run_dir / STATE, json.dumps(state, indent=1, allow_nan=False).encode())

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"the journal of {self.run_id} is closed")


def _take_lock(run_dir: Path) -> IO[bytes]:
    file = open(run_dir / LOCK, "a+b")
    deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.seek(0)
                owner = file.read().decode(errors="replace").strip() or "an unknown process"
                file.close()
                raise EnvironmentProblem(
                    f"run {run_dir.name} is active ({owner}): wait for it or stop it, then try again"
                ) from None
            time.sleep(0.02)
    file.truncate(0)
    file.write(f"pid {os.getpid()} on host {socket.gethostname()}\n".encode())
    file.flush()
    return file


def _table_columns(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns for MLflow's table, which groups rows by the first and lays the second side by side across runs.

    A person wants to see the prompt there; where one prompt has several completions, only the id tells them apart.
    """
    columns = list(records[0]) if records else ["id", "completion", "step"]
    prompts = [record.get("prompt") for record in records]
    if None in prompts or len(set(prompts)) < len(prompts):
        return columns
    return ["prompt", "completion", *(column for column in columns if column not in ("prompt", "completion"))]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
