"""What a run directory says about its run: status, progress, metrics and events, read while or after it is written.

Readers never write, need no lock of their own, and skip what a killed writer left half-written.
"""

import dataclasses
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from tunix_lab.errors import UserError

METRICS = "journal/metrics.jsonl"
EVENTS = "journal/events.jsonl"
FINGERPRINTS = "journal/fingerprints.jsonl"
STATE = "state.json"
LOCK = "LOCK"
MANIFEST = "manifest.json"
PATCH = "dirty.patch"
BUNDLE = "untracked.tar.gz"
ENV_LOCK = "env.lock"
TRAJECTORIES = "trajectories"
"""The folder of sampled answers, and the kind of the events that tell of them."""

RunStatus = Literal["running", "finished", "failed", "killed"]


@dataclasses.dataclass(frozen=True)
class RunState:
    """Where a run stands.

    Attributes:
      run_dir: its folder.
      run_id: name of that folder.
      status: "running" if and only if a process holds the run's lock; otherwise how the run ended, where a run that never
        said how it ended was "killed".
      attempt: times the run was started; 0 if never.
      pid: process of the last attempt, on `host`.
      host: machine of the last attempt.
      started_ms: start of the first attempt, Unix time in ms.
      ended_ms: end, Unix time in ms; for a killed run the time of its last sign of life; None while running.
      updated_ms: last sign of life, Unix time in ms.
      step: last step that has metrics, in optimizer updates.
      latest: newest value by metric name.
      message: why a run failed or was killed, if it could say so.
    """

    run_dir: Path
    run_id: str
    status: RunStatus
    attempt: int = 0
    pid: int | None = None
    host: str | None = None
    started_ms: int = 0
    ended_ms: int | None = None
    updated_ms: int = 0
    step: int = 0
    latest: dict[str, float] = dataclasses.field(default_factory=dict)
    message: str | None = None


@dataclasses.dataclass(frozen=True)
class MetricLine:
    """One line of the metrics journal: time in Unix ms, step, values, checkpoint step or None, and the offset after it."""

    t: int
    step: int
    values: dict[str, float]
    checkpoint: int | None
    end: int


def read_metric_lines(run_dir: str | Path, offset: int = 0) -> Iterator[MetricLine]:
    """The complete lines of the metrics journal from byte `offset` on, in the order of writing."""
    for end, line in complete_lines(Path(run_dir) / METRICS, offset):
        values = {name: float(value) for name, value in line["m"].items()}
        yield MetricLine(line["t"], line["step"], values, line.get("c"), end)


def read_metrics(run_dir: str | Path) -> Iterator[tuple[int, int, dict[str, float]]]:
    """(Unix ms, step, values) for each line, in the order of writing.

    A step that a resumed run made again appears once: the last writer of a (name, step) wins.
    """
    winner: dict[tuple[str, int], int] = {}
    for line in read_metric_lines(run_dir):
        winner.update(((name, line.step), line.end) for name in line.values)
    for line in read_metric_lines(run_dir):
        # A line written after the first pass is not in `winner`; it is newer than all that are.
        values = {name: v for name, v in line.values.items() if winner.get((name, line.step), line.end) == line.end}
        if values:
            yield line.t, line.step, values


def read_events(run_dir: str | Path) -> Iterator[dict[str, Any]]:
    """The events of a run, in the order of writing: mappings with `t` (Unix ms), `kind` and the fields of that kind."""
    for _, line in complete_lines(Path(run_dir) / EVENTS, 0):
        yield line


def read_manifest(run_dir: str | Path) -> dict[str, Any]:
    """The manifest of a run.

    Raises:
      UserError: there is none, or it is no JSON object.
    """
    path = Path(run_dir) / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: not found; is {Path(run_dir).name} a run directory?") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise UserError(f"{path}: must hold a JSON object")
    return manifest


def run_status(run_dir: str | Path, *, ignore_lock: bool = False) -> RunState:
    """The state of the run in `run_dir`; `ignore_lock` is for the one who holds the lock."""
    run_dir = Path(run_dir)
    # The lock is looked at first: once it is free, nothing that is read afterwards can still change.
    running = not ignore_lock and _lock_is_held(run_dir / LOCK)
    try:
        state = json.loads((run_dir / STATE).read_bytes())
    except (FileNotFoundError, ValueError):
        return RunState(run_dir, run_dir.name, "running" if running else "killed")
    latest = {name: float(value) for name, value in state["latest"].items()}
    step, updated = state["step"], state["updated"]
    for line in read_metric_lines(run_dir, state["journal_bytes"]):
        latest.update(line.values)
        updated = max(updated, line.t)
        if any(not name.startswith("system/") for name in line.values):
            step = line.step
    status = "running" if running else "killed" if state["status"] == "running" else state["status"]
    return RunState(
        run_dir=run_dir,
        run_id=run_dir.name,
        status=status,
        attempt=state["attempt"],
        pid=state["pid"],
        host=state["host"],
        started_ms=state["started"],
        ended_ms=None if running else state["ended"] or updated,
        updated_ms=updated,
        step=step,
        latest=latest,
        message=state["message"],
    )


def list_runs(home: str | Path) -> list[RunState]:
    """The runs of a project, newest first."""
    return sorted(map(run_status, _run_dirs(Path(home))), key=lambda run: (run.started_ms, run.run_id), reverse=True)


def find_run(home: str | Path, text: str) -> Path:
    """The directory of the one run whose id is, begins or ends with `text`.

    Raises:
      UserError: no run or several runs match.
    """
    names = [path.name for path in _run_dirs(Path(home))]
    matches = [n for n in names if n == text] or [n for n in names if n.startswith(text) or n.endswith(text)]
    if len(matches) == 1:
        return Path(home) / "runs" / matches[0]
    if matches:
        raise UserError(f"run {text!r} is ambiguous: {', '.join(sorted(matches))}")
    raise UserError(f"no run {text!r} in {Path(home) / 'runs'}; `tunix-lab runs --all` lists them")


def find_one_training(home: str | Path, text: str) -> Path:
    """The directory of the run that `text` names, which is no sweep: the many runs of one have no curves in common.

    Raises:
      UserError: no run or several match, or it is a sweep.
    """
    run_dir = find_run(home, text)
    if (run_dir / MANIFEST).is_file() and read_manifest(run_dir).get("kind") == "sweep":
        raise UserError(
            f"{run_dir.name} is a sweep: its table is in {run_dir}, its trials are runs, which `tunix-lab runs --all` lists; "
            "name one or several of them"
        )
    return run_dir


def _run_dirs(home: Path) -> list[Path]:
    runs = home / "runs"
    if not runs.is_dir():
        return []
    return [path for path in runs.iterdir() if (path / STATE).is_file() or (path / MANIFEST).is_file()]


def _lock_is_held(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def complete_lines(path: Path, offset: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """(offset after the line, value) for each line that ends in a newline; a line that is no JSON object is skipped."""
    try:
        file = open(path, "rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        for raw in file:
            offset += len(raw)
            if not raw.endswith(b"\n"):
                return
            try:
                value = json.loads(raw)
            except ValueError:  # what a power failure leaves in the middle of a file
                continue
            if isinstance(value, dict):
                yield offset, value
