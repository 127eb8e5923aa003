"""Makes a run again from its record alone: code in a worktree, inputs by their hashes, the same spec, and the result compared."""

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from tunix_lab.errors import EnvironmentProblem, Mismatch, UserError, writing
from tunix_lab.lab.record.environment import environment, installed, lock_file_digests, package_digest
from tunix_lab.lab.record.journal import write_atomically
from tunix_lab.lab.record.run_state import MANIFEST, read_manifest
from tunix_lab.lab.reproduce.fetch_inputs import changed_inputs, fetch_inputs
from tunix_lab.lab.reproduce.recorded import Recorded, open_record
from tunix_lab.lab.reproduce.reproduction import RECORD, Reproduction, graded
from tunix_lab.lab.reproduce.training import child_environment, package_of, train
from tunix_lab.lab.reproduce.worktree import Worktree, make_worktree, remove_worktree, runs_made
from tunix_lab.lab.run_diff import Difference, diff_runs, differences, environment_of, went_on_with

_PROBE = "import json; from tunix_lab.lab.record.devices import hardware; print(json.dumps(hardware()))"
_READY = "ready.json"  # an attempt that has its code; it can be gone on with

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Options:
    """How to make a run again.

    Attributes:
      check: look at code, inputs and environment only; train nothing.
      strict: refuse where anything differs that can be known beforehand.
      keep: leave the folder with the worktree.
      fresh: do not go on with an interrupted attempt.
      tolerance: largest relative difference of a metric that still counts as reproduced.
      replicate: show both runs in the tracking store, each with a link to the other.
    """

    check: bool = False
    strict: bool = False
    keep: bool = False
    fresh: bool = False
    tolerance: float = 1e-3
    replicate: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise UserError(f"--tolerance must be a finite number of at least 0, got {self.tolerance}")


def reproduce(project: Path, text: str, *, tracking_uri: str, cache: Path, options: Options, say: Say) -> Reproduction | None:
    """Makes the run that `text` names again and grades the result; None with `options.check`.

    Args:
      project: the project folder.
      text: a run id.
      tracking_uri: of the store that is asked where the run has no directory here.
      cache: folder of what may be thrown away; the worktree goes there.
      options: see `Options`.
      say: is told what happens, a line at a time.

    Raises:
      UserError: there is no such run, or its record cannot be made again.
      Mismatch: an input is not what the run read.
      EnvironmentProblem: with `options.strict`, the environment is another; or the new run could not be made or kept.
      Stopped: a signal came; the same call goes on from there.
    """
    folder = cache / "reproduce"
    recorded = open_record(project, text, tracking_uri, folder / "records")
    # A look does not disturb an interrupted attempt.
    workspace = folder / (f"check-{recorded.run_id}" if options.check else recorded.run_id)
    with _alone(workspace) as lock:
        adopted = False
        try:
            tree = _prepare(recorded, project, workspace, options, say)
            told = _compare_surroundings(recorded, tree, options, say)
            if options.check:
                return None
            new, failed = train(recorded, tree, workspace, lock)
            notes = [*tree.notes, *changed_inputs(recorded.manifest["input_files"], project, tree.home)]
            notes += [*told_changes(recorded), *failed]
            result = graded(diff_runs(recorded.folder, new), options.tolerance, notes)
            with writing(project / "runs" / new.name):
                _adopt(new, project / "runs" / new.name, result)
            adopted = True
            _say_differences([entry for entry in result.differences if entry not in told], say)
        finally:
            # Hours of training may lie there, so whatever went wrong, they stay until they are in the project.
            if adopted or options.check or not runs_made(workspace / "tree" / recorded.git["prefix"]):
                _leave(workspace, project, options, say)
                shutil.rmtree(folder / "records" / recorded.run_id, ignore_errors=True)
            else:
                say(f"kept     {workspace}: the same command goes on from there, --fresh starts anew")
    if options.replicate:
        _replicate(project, tracking_uri, result, say)
    return result


def _leave(workspace: Path, project: Path, options: Options, say: Say) -> None:
    """Removes the folder of an attempt that has ended, or with `keep` tells where it is."""
    if options.keep:
        (workspace / _READY).unlink(missing_ok=True)
        say(f"kept     {workspace / 'tree'}")
        return
    remove_worktree(project, workspace / "tree")
    shutil.rmtree(workspace, ignore_errors=True)


@contextlib.contextmanager
def _alone(workspace: Path) -> Iterator[IO[bytes]]:
    """The lock of a reproduction; the training process inherits it, so that it holds as long as anything works here."""
    workspace.parent.mkdir(parents=True, exist_ok=True)
    with open(workspace.with_name(workspace.name + ".lock"), "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EnvironmentProblem(f"run {workspace.name} is being made again by another process: wait for it") from None
        yield lock


def _prepare(recorded: Recorded, project: Path, workspace: Path, options: Options, say: Say) -> Worktree:
    """Code and inputs of the run, checked; those of an interrupted attempt are used again."""
    ready = workspace / _READY
    if ready.is_file() and not (options.fresh or options.check):
        say("going on with an interrupted attempt (--fresh starts anew)")
        tree = Worktree(workspace / "tree", workspace / "tree" / recorded.git["prefix"], json.loads(ready.read_text()))
    else:
        shutil.rmtree(workspace, ignore_errors=True)
        workspace.mkdir(parents=True)
        tree = make_worktree(recorded, project, workspace / "tree")
    parts = [f"commit {recorded.git['commit'][:12]}"]
    parts += ["its patch"] if recorded.patch else []
    parts += ["its untracked files"] if recorded.bundle else []
    say(f"code     {' + '.join(parts)}")
    problems = fetch_inputs(recorded.manifest["input_files"], project, tree.home)
    if problems:
        raise Mismatch("\n".join([f"run {recorded.run_id} cannot be made again, since its inputs are not to be had:", *problems]))
    count = sum(entry["path"] is not None for entry in recorded.manifest["input_files"])
    say(f"inputs   {count} files and folders, all as recorded")
    for note in tree.notes:
        say(f"note     {note}")
    write_atomically(ready, json.dumps(tree.notes).encode())
    return tree


def _compare_surroundings(recorded: Recorded, tree: Worktree, options: Options, say: Say) -> list[Difference]:
    """Says and returns what is different about this machine and its software; with `strict` that ends it."""
    found = surroundings(recorded, tree, probe=options.check or options.strict)
    _say_differences(found, say)
    if not found:
        say("environment as recorded")
    went_on = told_changes(recorded)
    for line in went_on:
        say(f"differs  {line}")
    count = len(found) + len(tree.notes) + len(went_on)
    if options.strict and count:
        raise EnvironmentProblem(f"run {recorded.run_id}: {count} differences, and --strict allows none")
    return found


def told_changes(recorded: Recorded) -> list[str]:
    """What the run itself had otherwise in a later attempt: the record holds its first, and only that can be made again."""
    told = []
    for entry in went_on_with(recorded.folder):
        _, attempt, name = entry.name.split(" ", 2)
        told.append(
            f"the original went on in attempt {attempt} with another {name}: {entry.a} → {entry.b}; the record holds attempt 1"
        )
    return told


def _say_differences(found: list[Difference], say: Say) -> None:
    for entry in found:
        say(f"differs  {entry.name}: {entry.a} → {entry.b}")


def surroundings(recorded: Recorded, tree: Worktree, *, probe: bool) -> list[Difference]:
    """What differs between the recorded environment and this one, but for the code, which the worktree has.

    Args:
      recorded: the run.
      tree: its code.
      probe: whether to ask JAX about the devices, which takes seconds; without, the new run's own record tells.
    """
    then = environment_of(recorded.folder, recorded.manifest)
    package = package_of(tree)
    now = environment() | {"lock_files": lock_file_digests(tree.home), "environment": recorded.manifest["environment"]}
    now["versions"] = {"python": now["versions"]["python"], **installed()}
    now["package"] = package_digest(None if package is None else package / "tunix_lab")
    now["hardware"] = _probe(recorded) if probe else recorded.manifest["hardware"]
    return [
        entry
        for entry in differences(then, environment_of(None, now))
        if not entry.name.startswith(("git ", "code ")) and entry.name != "version tunix-lab"
    ]


def _probe(recorded: Recorded) -> dict[str, Any]:
    """The devices as a run of now would see them; in a process of its own, which lets go of them."""
    command = [sys.executable, "-c", _PROBE]
    done = subprocess.run(command, env=child_environment(recorded, os.environ), capture_output=True, text=True, check=False)
    if done.returncode:
        raise EnvironmentProblem(f"no usable device: {(done.stderr.strip().splitlines() or ['unknown reason'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def _adopt(new: Path, target: Path, result: Reproduction) -> None:
    """Brings the new run into the project, marked as what it is."""
    manifest = read_manifest(new)
    manifest["kind"], manifest["reproduces"] = "reproduce", result.reproduces
    manifest["tags"] |= {"lab.reproduces": result.reproduces, "lab.reproduction": result.verdict}
    write_atomically(new / MANIFEST, (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode())
    write_atomically(new / RECORD, (json.dumps(result.as_data(), indent=1, allow_nan=False) + "\n").encode())
    arriving = target.parent.parent / f".arriving-{target.name}"  # not in runs/ before it is whole
    target.parent.mkdir(exist_ok=True)
    shutil.copytree(new, arriving, symlinks=True, dirs_exist_ok=True)
    os.replace(arriving, target)


def _replicate(project: Path, tracking_uri: str, result: Reproduction, say: Say) -> None:
    """Pushes the new run, and tags the old one with what came out; a store that does not answer costs nothing but that."""
    from tunix_lab.lab.tracking.runs import tag_run
    from tunix_lab.lab.tracking.sync import push

    pushed = push(project / "runs" / result.run_id, tracking_uri)
    tags = {"lab.reproduced_by": result.run_id, "lab.reproduction": result.verdict}
    if pushed.outcome != "complete":
        say(f"tracking not complete ({pushed.problem}); later: tunix-lab sync {result.run_id}")
    elif not tag_run(tracking_uri, result.reproduces, tags):
        say(f"tracking has no run {result.reproduces} to link: tunix-lab sync {result.reproduces}")
