"""The process that trains a recorded run again, with the code of the run and the flags that it had."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tunix_lab.errors import EnvironmentProblem, Stopped, TrainingFailed
from tunix_lab.lab.record.environment import is_flag
from tunix_lab.lab.record.run_state import run_status
from tunix_lab.lab.reproduce.recorded import RESOLVED, Recorded
from tunix_lab.lab.reproduce.worktree import Worktree, runs_made

_MAIN = "from tunix_lab.cli.main import main; main()"
_TRY_AGAIN = 75  # the exit code of a run that was stopped other than by a signal, see `errors.Stopped`
_NOT_PASSED_ON = ("GIT_", "DVC_", "TUNIX_LAB_TRIAL")  # whose work this process is part of


def child_environment(recorded: Recorded, present: Any) -> dict[str, str]:
    """This process's environment with the flags of the record in place of its own."""
    kept = {name: value for name, value in present.items() if not is_flag(name) and not name.startswith(_NOT_PASSED_ON)}
    return kept | recorded.manifest["environment"]


def package_of(tree: Worktree) -> Path | None:
    """The folder in the worktree that holds this package, if the project is its own repository."""
    return next((folder for folder in (tree.home, tree.top) if (folder / "tunix_lab/__init__.py").is_file()), None)


def train(recorded: Recorded, tree: Worktree, workspace: Path, lock: IO[bytes]) -> tuple[Path, list[str]]:
    """Trains with the code of the worktree, or goes on with what an earlier call began there.

    Returns:
      The new run directory, and a note if its training failed: so may have that of the recorded run, at the same update.

    Raises:
      TrainingFailed: before there was a run.
      EnvironmentProblem: the new run could not be made, or not to its end.
      Stopped: a signal came.
    """
    finished = [folder for folder in runs_made(tree.home) if run_status(folder).status == "finished"]
    if finished:
        return finished[-1], []
    spec = workspace / RESOLVED
    shutil.copyfile(recorded.folder / RESOLVED, spec)
    package = package_of(tree)
    path = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    environment = child_environment(recorded, os.environ) | {
        "TUNIX_LAB_HOME": str(tree.home),
        "TUNIX_LAB_SYNC": "off",  # the record is not complete before it is compared
        "PYTHONPATH": os.pathsep.join([*([] if package is None else [str(package)]), *path]),
    }
    command = [sys.executable, "-c", _MAIN, "run", str(spec)]
    # What it would print in the end is of a folder that goes; its progress and its mistakes come by the other stream.
    alone = {"start_new_session": True, "pass_fds": (lock.fileno(),)}
    process = subprocess.Popen(command, cwd=tree.home, env=environment, stdout=subprocess.DEVNULL, **alone)
    with _forward_signals(process):
        code = process.wait()
    code = 128 - code if code < 0 else code
    if code > 128 or code == _TRY_AGAIN:
        raise Stopped(f"the new run of {recorded.run_id} was stopped; the same command goes on from its checkpoint", code)
    made, failed = runs_made(tree.home), code == TrainingFailed.exit_code
    if code and not (failed and made):
        failure = TrainingFailed if failed else EnvironmentProblem
        raise failure(f"the new run of {recorded.run_id} ended with exit code {code}; its message stands above")
    return made[-1], ["the training of the new run failed, so it is compared as far as it went"] if failed else []


@contextlib.contextmanager
def _forward_signals(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Signals that ask for an end go to the training process, which saves first."""

    def forward(signum: int, frame: object) -> None:
        process.send_signal(signum)

    before = {signum: signal.signal(signum, forward) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
