"""The trials of a sweep as files that several processes share: who holds a trial's lock runs it.

`trials/0003/` has trial.json (what to run), LOCK (held by the worker and by the run that it started: the lock ends with the last
of them, however they end), outcome.json (how it ended; missing until then), log.txt and out/ (what the run left).
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from tunix_lab.lab.record.jsonl import write_atomically
from tunix_lab.lab.sweeps.space import Trial

_TRIAL = "trial.json"
_OUTCOME = "outcome.json"
_LOCK = "LOCK"

Status = Literal["waiting", "running", "finished", "failed"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
      status: "finished" or "failed".
      exit_code: of its process; negative: the signal that killed it; None where it did not run this time.
      message: why it failed.
      run_id: of the run that it made, where it left its record.
      metrics: last value of each metric that the run left.
      ended: Unix time in seconds.
    """

    status: Literal["finished", "failed"]
    exit_code: int | None = None
    message: str | None = None
    run_id: str | None = None
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    ended: float = 0.0


@dataclasses.dataclass(frozen=True)
class Entry:
    """A trial, where it stands, and how it ended if it has."""

    trial: Trial
    status: Status
    outcome: Outcome | None


@dataclasses.dataclass(frozen=True)
class Claim:
    """A trial that this process may run: nobody else can while the lock is held.

    Attributes:
      trial: the trial.
      folder: its folder.
      lock: the locked file; a child process that inherits it keeps the trial claimed too.
    """

    trial: Trial
    folder: Path
    lock: IO[bytes]

    @property
    def out(self) -> Path:
        """Where the run leaves its outputs."""
        return self.folder / "out"

    @property
    def log(self) -> Path:
        """What the run prints."""
        return self.folder / "log.txt"

    def settle(self, outcome: Outcome) -> None:
        """Records how the trial ended, and gives it up."""
        value = dataclasses.asdict(dataclasses.replace(outcome, ended=time.time()))
        write_atomically(self.folder / _OUTCOME, (json.dumps(value, indent=1) + "\n").encode())
        self.release()

    def release(self) -> None:
        """Gives the trial up; it waits again unless it was settled or its run still lives."""
        self.lock.close()


class Queue:
    """The trials in the folder `trials` of a sweep."""

    def __init__(self, sweep_dir: Path) -> None:
        self.folder = sweep_dir / "trials"

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """One process at a time, for changes of the queue itself."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / _LOCK, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def add(self, trials: Sequence[Trial]) -> None:
        """Writes trials that are not there yet."""
        for trial in trials:
            folder = self._folder(trial)
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / _TRIAL).exists():
                write_atomically(folder / _TRIAL, (json.dumps(dataclasses.asdict(trial), indent=1) + "\n").encode())

    def trials(self) -> list[Trial]:
        """All trials by number."""
        files = sorted(self.folder.glob(f"*/{_TRIAL}"), key=lambda path: int(path.parent.name))
        return [Trial.from_json(json.loads(file.read_bytes())) for file in files]

    def entries(self) -> list[Entry]:
        """All trials by number, each with where it stands now."""
        return [self._entry(trial) for trial in self.trials()]

    def claim(self) -> Claim | None:
        """The first trial that waits, locked for this process; None if none does."""
        for trial in self.trials():
            if self.outcome(trial) is None and (claim := self._claimed(trial)) is not None:
                # It may have been settled just before the lock was free. Listing asks the server anew, where NFS would answer
                # a look for the file alone from memory, for up to a minute.
                if _OUTCOME not in os.listdir(claim.folder):
                    return claim
                claim.release()
        return None

    def outcome(self, trial: Trial) -> Outcome | None:
        """How `trial` ended; None if it has not."""
        try:
            return Outcome(**json.loads((self._folder(trial) / _OUTCOME).read_bytes()))
        except FileNotFoundError:
            return None

    def retry_failed(self) -> list[Trial]:
        """Lets the failed trials wait again, their outcomes kept aside; returns them."""
        failed = [entry.trial for entry in self.entries() if entry.status == "failed"]
        for trial in failed:
            folder = self._folder(trial)
            (folder / _OUTCOME).rename(folder / f"outcome-{len(list(folder.glob('outcome-*.json'))) + 1}.json")
        return failed

    def _entry(self, trial: Trial) -> Entry:
        outcome = self.outcome(trial)
        if outcome is not None:
            return Entry(trial, outcome.status, outcome)
        lock = locked(self._folder(trial) / _LOCK, fcntl.LOCK_SH)
        if lock is None:
            return Entry(trial, "running", None)
        lock.close()
        return Entry(trial, "waiting", None)

    def _claimed(self, trial: Trial) -> Claim | None:
        folder = self._folder(trial)
        lock = locked(folder / _LOCK, fcntl.LOCK_EX)
        if lock is None:
            return None
        lock.truncate(0)
        lock.write(f"pid {os.getpid()}\n".encode())
        lock.flush()
        return Claim(trial, folder, lock)

    def _folder(self, trial: Trial) -> Path:
        return self.folder / f"{trial.number:04d}"


def read_outcome(folder: Path, exit_code: int) -> Outcome:
    """What a run that ended with 0 left in `folder`; failed where its record is missing."""
    found = left_by_run(folder)
    if found is None:
        return Outcome("failed", exit_code, f"it ended with 0 and left no metrics.json and run.json in {folder}")
    return Outcome("finished", exit_code, None, *found)


def left_by_run(folder: Path) -> tuple[str, dict[str, float]] | None:
    """(run id, metrics) from the records that a run writes last of all; None if it did not get there."""
    try:
        record = json.loads((folder / "run.json").read_bytes())
        nested: dict[str, dict[str, Any]] = json.loads((folder / "metrics.json").read_bytes())
    except (FileNotFoundError, ValueError):  # the latter: killed while it wrote
        return None
    return record["run_id"], {f"{group}/{name}": value for group, values in nested.items() for name, value in values.items()}


def locked(path: Path, kind: int) -> IO[bytes] | None:
    """The file at `path`, locked; None if somebody else holds it."""
    file = open(path, "a+b")
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
