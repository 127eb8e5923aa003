"""A worker of a sweep on another machine, which first looks whether it sees the same project, the same code and the same locks.

The queue is files and locks in the project folder, so the folder must lie under one path on a filesystem that all machines share.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tunix_lab.errors import Stopped, UserError
from tunix_lab.lab.record.environment import package_digest
from tunix_lab.lab.sweeps.queue import locked
from tunix_lab.lab.sweeps.results import SettingResult
from tunix_lab.lab.sweeps.sweep import SPEC
from tunix_lab.lab.sweeps.worker import Worker
from tunix_lab.spec import LabSettings


@dataclasses.dataclass(frozen=True)
class Orders:
    """What a worker on another machine is told.

    Attributes:
      home: the project folder.
      sweep_dir: the sweep's directory.
      lock: a file there that the sender keeps locked.
      spec: hash of what the trials run.
      version: of this package at the sender's.
      code: hash of its source.
      variables: environment variables for the worker and its trials.
      jobs: trials side by side.
      command: see `Worker`.
    """

    home: Path
    sweep_dir: Path
    lock: Path
    spec: str
    version: str
    code: str
    variables: dict[str, str] = dataclasses.field(repr=False)
    jobs: int
    command: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Ended:
    """A worker that ended before its sweep, and why; the exit code says of which kind the reason is, as that of a command."""

    exit_code: int
    message: str


class Interrupted(Exception):
    """A signal ended the worker; its trials have saved and wait again."""


@contextlib.contextmanager
def orders(sweep_dir: Path, home: Path, variables: dict[str, str], *, jobs: int, command: tuple[str, ...]) -> Iterator[Orders]:
    """Orders for any number of workers, which they can follow as long as this lasts."""
    with tempfile.NamedTemporaryFile(dir=sweep_dir, prefix="LOCK-") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        seen = (_hash(sweep_dir / SPEC), _version(), package_digest())
        yield Orders(home, sweep_dir, Path(lock.name), *seen, variables, jobs, command)


def follow(orders: Orders) -> list[SettingResult] | Ended:
    """Works on the sweep here until all its trials have ended, and returns the ranking.

    Raises:
      Interrupted: SIGINT or SIGTERM came.
    """
    problem = refusal(orders)
    if problem is not None:
        return Ended(3, f"{platform.node()} cannot work on {orders.sweep_dir.name}: {problem}")
    os.environ.update(orders.variables)
    try:
        return Worker(orders.sweep_dir, orders.home, LabSettings(), jobs=orders.jobs, command=orders.command).work()
    except Stopped as stopped:
        if stopped.exit_code > 128:
            raise Interrupted(f"{platform.node()}: {stopped}") from None
        return Ended(stopped.exit_code, f"{platform.node()}: {stopped}")
    except UserError as error:
        return Ended(error.exit_code, f"{platform.node()}: {error}")


def refusal(orders: Orders) -> str | None:
    """Why this machine cannot work on the sweep; None if it can."""
    if not orders.lock.is_file():
        return f"it does not see {orders.sweep_dir}; the project folder must lie on a filesystem that all machines share"
    lock = locked(orders.lock, fcntl.LOCK_SH)
    if lock is not None:
        lock.close()
        return (
            f"it does not see locks that another machine holds in {orders.sweep_dir}, so that trials would run twice; "
            "mount the filesystem with locks that all machines share (not `nolock`, `local_lock` or `localflock`)"
        )
    if _hash(orders.sweep_dir / SPEC) != orders.spec:
        return f"{orders.sweep_dir / SPEC} is another one here"
    version = _version()
    if (version, package_digest()) != (orders.version, orders.code):
        kind = "tunix_lab" if version != orders.version else "other code of tunix_lab"
        return f"{kind} {version} is installed there, and {orders.version} where the sweep was started"
    return None


def _version() -> str:
    return importlib.metadata.version("tunix_lab")


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
