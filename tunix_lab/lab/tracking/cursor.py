"""How far a run has been replicated to a tracking store: kept beside the journal, readable without MLflow."""

import contextlib
import dataclasses
import fcntl
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunix_lab.lab.record.journal import RunState, read_manifest, write_atomically
from tunix_lab.lab.record.run_state import METRICS, MetricLine, read_metric_lines, run_status
from tunix_lab.lab.tracking.store import Store, parse_store

CURSOR = "sync/mlflow.json"
_LOCK = "sync/LOCK"


@dataclasses.dataclass
class Cursor:
    """What one store has of a run. Written after each success, so it may lag behind the store but never lead it.

    What the store gets is a function of the journal's bytes alone: points in the order of writing, and of each metric only
    those of a higher step than any before. So work that is repeated after a kill repeats the same points with the same
    timestamps (which MLflow keeps once), and the steps that a resumed run makes again are not drawn twice. Evaluations wait
    until it is known whether they have a checkpoint, see `settled_end`.

    Attributes:
      mlflow_run_id: MLflow's id of the run.
      experiment_id: MLflow's id of its experiment.
      offset: bytes of the metrics journal that were pushed.
      high: highest pushed step by metric name.
      attempt: attempt whose parameters and tags were pushed.
      inputs: whether the datasets were pushed.
      models: (model id, digest) by checkpoint step.
      artifacts: size and time of each pushed file by its path.
      rollouts: those of each file of sampled answers that was pushed as a table and as traces.
      parent: MLflow's id of the run that this one is nested under.
      base: whether the checkpoint that the run starts from was pushed as its input.
      status: the final status that was pushed; None while the run is open there.
    """

    mlflow_run_id: str | None = None
    experiment_id: str | None = None
    offset: int = 0
    high: dict[str, int] = dataclasses.field(default_factory=dict)
    attempt: int = 0
    inputs: bool = False
    models: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    artifacts: dict[str, str] = dataclasses.field(default_factory=dict)
    rollouts: dict[str, str] = dataclasses.field(default_factory=dict)
    parent: str | None = None
    base: bool = False
    status: str | None = None


def load_cursor(run_dir: Path, store: Store) -> Cursor:
    """The cursor of `store`; a fresh one if nothing was pushed there yet."""
    entry = _read(run_dir).get(store.key)
    return Cursor() if entry is None else Cursor(**entry["cursor"])


def save_cursor(run_dir: Path, store: Store, cursor: Cursor) -> None:
    """Keeps `cursor`, beside those of other stores."""
    entries = {**_read(run_dir), store.key: {"store": store.shown, "cursor": dataclasses.asdict(cursor)}}
    (run_dir / CURSOR).parent.mkdir(exist_ok=True)
    write_atomically(run_dir / CURSOR, json.dumps(entries, indent=1).encode())


def new_values(line: MetricLine, high: Mapping[str, int]) -> dict[str, float]:
    """The values of a journal line that the store does not have: those beyond the highest pushed step of their metric."""
    return {name: value for name, value in line.values.items() if line.step > high.get(name, -1)}


def pending_points(run_dir: str | Path, tracking_uri: str) -> int:
    """Metric values of the journal that the store at `tracking_uri` does not have yet."""
    run_dir = Path(run_dir)
    cursor = load_cursor(run_dir, parse_store(tracking_uri))
    high, count = dict(cursor.high), 0
    for line in read_metric_lines(run_dir, cursor.offset):
        fresh = new_values(line, high)
        high.update(dict.fromkeys(fresh, line.step))
        count += len(fresh)
    return count


def is_complete(run_dir: str | Path, tracking_uri: str, state: RunState | None = None) -> bool:
    """Whether the run has ended and the store at `tracking_uri` has all of it, its place under its parent included."""
    run_dir = Path(run_dir)
    state = state or run_status(run_dir)
    cursor = load_cursor(run_dir, parse_store(tracking_uri))
    if cursor.status != state.status or cursor.attempt != state.attempt:
        return False
    if nested_under(read_manifest(run_dir)) is not None and cursor.parent is None:
        return False
    metrics = run_dir / METRICS
    return not metrics.exists() or next(read_metric_lines(run_dir, cursor.offset), None) is None


def nested_under(manifest: Mapping[str, Any]) -> str | None:
    """The run under which trackers show a run: an evaluation's model's, a trial's sweep; None for all others.

    A training run is not nested under the one whose weights it starts from: MLflow's pages fold children away.
    """
    if manifest["kind"] == "evaluate":
        return manifest["parent_run_id"]
    return manifest.get("sweep")  # runs made before there were sweeps have no such line


@contextlib.contextmanager
def exclusive(run_dir: Path) -> Iterator[bool]:
    """Yields whether this process alone replicates the run until the block ends."""
    (run_dir / _LOCK).parent.mkdir(exist_ok=True)
    with open(run_dir / _LOCK, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _read(run_dir: Path) -> dict[str, dict]:
    try:
        return json.loads((run_dir / CURSOR).read_bytes())
    except FileNotFoundError:
        return {}
