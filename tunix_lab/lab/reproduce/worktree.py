"""The code of a run in a folder of its own: a git worktree of its commit, its patch and its untracked files, each verified."""

import dataclasses
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from tunix_lab.errors import EnvironmentProblem, Mismatch, UserError
from tunix_lab.lab.record.git_state import git_state
from tunix_lab.lab.record.redaction import Redactor
from tunix_lab.lab.record.untracked import unpack
from tunix_lab.lab.reproduce.recorded import Recorded


@dataclasses.dataclass(frozen=True)
class Worktree:
    """A tree that was made.

    Attributes:
      top: folder of the worktree.
      home: the project folder in it.
      notes: how it can differ from what ran, a line each.
    """

    top: Path
    home: Path
    notes: list[str]


def make_worktree(recorded: Recorded, project: Path, top: Path) -> Worktree:
    """Makes the code of a run.

    Args:
      recorded: the run.
      project: a project folder of the same repository.
      top: the folder to make.

    Raises:
      UserError: the commit is not to be had.
      Mismatch: the tree that comes out is not the recorded one.
    """
    git, commit = recorded.git, recorded.git["commit"]
    _ensure_commit(project, recorded)
    remove_worktree(project, top)
    _git(project, "worktree", "add", "--detach", "--force", str(top), commit)
    if recorded.patch is not None:
        _git(top, "apply", "--index", "--whitespace=nowarn", "-", data=recorded.patch)
    if recorded.bundle is not None:
        unpack(recorded.bundle, top)
    notes = [f"{entry['path']} was left out of the record: {entry['reason']}" for entry in git["left_out"]]
    notes += _restore_large(recorded, Path(_git(project, "rev-parse", "--show-toplevel").decode().strip()), top)
    if git["untracked_more"]:
        notes.append(f"{git['untracked_more']} more untracked files are not in the record")
    _verify(recorded, top)
    return Worktree(top, top / git["prefix"], notes)


def remove_worktree(project: Path, top: Path) -> None:
    """Removes the folder, and what git remembers of it."""
    shutil.rmtree(top, ignore_errors=True)
    _git(project, "worktree", "prune")


def runs_made(home: Path) -> list[Path]:
    """The run directories in a project folder that its commit did not bring, the newest last."""
    folder = home / "runs"
    if not folder.is_dir():
        return []
    listed = _git(home, "ls-files", "-z", "--", "runs").decode("utf-8", "surrogateescape").split("\0")
    tracked = {Path(path).parts[1] for path in listed if path}
    made = [path for path in folder.iterdir() if path.is_dir() and path.name not in tracked]
    return sorted(made, key=lambda path: path.stat().st_ctime)


def _ensure_commit(project: Path, recorded: Recorded) -> None:
    """The commit must be in the repository; where it is not, its remote is asked once."""
    commit, known = recorded.git["commit"], f"{recorded.git['commit']}^{{commit}}"
    if _succeeds(project, "cat-file", "-e", known):
        return
    if not _succeeds(project, "rev-parse", "--git-dir"):
        raise UserError(f"{project} is no git repository: run this in a clone of {recorded.git['remote'] or 'the project'}")
    if not (_succeeds(project, "fetch", "--quiet", "origin", commit) and _succeeds(project, "cat-file", "-e", known)):
        raise UserError(
            f"commit {commit} of run {recorded.run_id} is not in {project}"
            f" (recorded remote: {recorded.git['remote'] or 'none'}): fetch the branch that holds it, then try again"
        )


def _restore_large(recorded: Recorded, project: Path, top: Path) -> list[str]:
    """Brings the untracked files that were too large for the bundle from the project, where they are still the same."""
    notes = []
    for entry in recorded.git["untracked"]:
        if entry["bundled"]:
            continue
        source, target = project / entry["path"], _inside(top, entry["path"])
        if entry["sha256"] is not None and source.is_file() and _sha256(source) == entry["sha256"]:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        else:
            notes.append(
                f"{entry['path']} ({entry['bytes']:,} bytes, untracked) was too large for the record and is not to be had"
            )
    return notes


def _verify(recorded: Recorded, top: Path) -> None:
    """The tree's own difference to the commit must be the recorded bytes, and every bundled file must have its hash."""
    for entry in recorded.git["untracked"]:
        path = _inside(top, entry["path"])
        content = os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        if entry["bundled"] and (content is None or hashlib.sha256(content).hexdigest() != entry["sha256"]):
            raise Mismatch(f"run {recorded.run_id}: {entry['path']} of its bundle is not the file that the manifest names")
    made = git_state(top / recorded.git["prefix"], Redactor({})).patch
    if made != (recorded.patch or b""):
        raise Mismatch(
            f"run {recorded.run_id}: its patch on commit {recorded.git['commit'][:12]} does not give the recorded tree"
        )


def _inside(top: Path, path: str) -> Path:
    """A path of the record below `top`.

    Raises:
      Mismatch: it leads out of it.
    """
    target = top / path
    if Path(path).is_absolute() or ".." in Path(path).parts or not target.parent.resolve().is_relative_to(top.resolve()):
        raise Mismatch(f"the record names {path}, which leads out of the project")
    return target


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _succeeds(folder: Path, *arguments: str) -> bool:
    return _run(folder, *arguments).returncode == 0


def _git(folder: Path, *arguments: str, data: bytes | None = None) -> bytes:
    done = _run(folder, *arguments, data=data)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise UserError(f"`git {' '.join(arguments[:2])}` failed in {folder}: {said}")
    return done.stdout


def _run(folder: Path, *arguments: str, data: bytes | None = None) -> "subprocess.CompletedProcess[bytes]":
    """Runs git in a folder without the user's hooks, whatever repository the environment names."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), "-c", "core.hooksPath=/dev/null", *arguments]
    try:
        return subprocess.run(command, input=data, capture_output=True, env=environment, check=False)
    except FileNotFoundError:
        raise EnvironmentProblem("making a run again needs git, which is not installed here") from None
