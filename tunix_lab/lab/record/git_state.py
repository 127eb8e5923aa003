"""What git knows of the code that runs: commit, branch, remote, and how the working tree differs from the commit."""

import dataclasses
import os
import re
import subprocess
from pathlib import Path

from tunix_lab.lab.record.redaction import Redactor, is_key_file

# Written by a run itself, or by DVC around it: they do not make the code another. Data and models are known by their hashes.
_NOT_CODE = (
    *(":!dvc.lock", ":!outputs", ":!runs", ":!data", ":!checkpoints", ":!mlflow.db*", ":!mlartifacts"),
    ":(top,exclude,glob)**/__pycache__/**",
)
# However the user set up git, a patch must be one that `git apply` takes.
_PLAIN = ("--binary", "--no-renames", "--no-ext-diff", "--no-textconv", "--no-color", "--src-prefix=a/", "--dst-prefix=b/")


@dataclasses.dataclass(frozen=True)
class GitState:
    """The state of a repository around a project.

    Attributes:
      top: its folder; None where there is no git, or no commit yet.
      commit: full hash.
      branch: its name; "HEAD" where none is checked out.
      remote: address of `origin`, without credentials.
      prefix: the project's folder relative to `top`, with a slash at its end; "" where they are the same.
      patch: the difference of the tracked files, as `git apply` takes it in `top`; secrets are still in it.
      untracked: files that git neither tracks nor ignores, relative to `top`.
      left_out: changed files that are not in `patch`, with the reason: they hold secrets that could not be taken out of it.
    """

    top: Path | None = None
    commit: str | None = None
    branch: str | None = None
    remote: str | None = None
    prefix: str = ""
    patch: bytes = b""
    untracked: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def dirty(self) -> bool:
        """Whether the code is not exactly that of the commit."""
        return bool(self.patch or self.untracked or self.left_out)

    def tags(self) -> dict[str, str]:
        """The tags by which trackers know a commit, and whether it is all."""
        named = {"mlflow.source.git.commit": self.commit, "mlflow.source.git.branch": self.branch}
        return {"lab.git.dirty": str(self.dirty).lower()} | {name: value for name, value in named.items() if value}


def git_state(home: Path, redactor: Redactor | None = None) -> GitState:
    """The state of the repository that holds `home`; an empty one where there is no repository, or no git to ask."""
    redactor = Redactor.of_process() if redactor is None else redactor
    where = _git(home, "rev-parse", "--show-toplevel", "--show-prefix", "HEAD", "--abbrev-ref", "HEAD")
    if where is None:
        return GitState()
    top, prefix, commit, branch = where.decode("utf-8", "surrogateescape").splitlines()
    left_out = _cannot_be_shown(home, Path(top), redactor)
    excluded = [f":(top,exclude,literal){path}" for path, _ in left_out]
    remote = _git(home, "remote", "get-url", "origin")
    return GitState(
        top=Path(top),
        commit=commit,
        branch=branch,
        remote=None if remote is None else _without_credentials(remote.decode().strip(), redactor),
        prefix=prefix,
        patch=_git(home, "diff", *_PLAIN, "HEAD", "--", ":/", *_NOT_CODE, *excluded) or b"",
        untracked=tuple(_paths(_git(home, *_OTHERS, "--", ":/", *_NOT_CODE))),
        left_out=tuple(left_out),
    )


_OTHERS = ("ls-files", "--others", "--exclude-standard", "--full-name", "-z")


def _cannot_be_shown(home: Path, top: Path, redactor: Redactor) -> list[tuple[str, str]]:
    """Changed tracked files whose difference must not be written, with the reason.

    The difference of a binary file is compressed, so a secret in it cannot be seen there; it is looked for in the file.
    """
    changed = _git(home, "diff", "--numstat", "--no-renames", "--no-ext-diff", "-z", "HEAD", "--", ":/", *_NOT_CODE)
    found = []
    for line in _paths(changed):
        added, _, path = line.split("\t", 2)
        if is_key_file(path):
            found.append((path, "a file for secrets"))
        elif added == "-" and _secret_in(home, top / path, path, redactor):
            found.append((path, "a binary file that holds a secret"))
    return found


def _secret_in(home: Path, file: Path, path: str, redactor: Redactor) -> bool:
    before = _git(home, "cat-file", "blob", f"HEAD:{path}") or b""
    return redactor.holds_secret(before) or (file.is_file() and redactor.holds_secret(file.read_bytes()))


def _without_credentials(remote: str, redactor: Redactor) -> str:
    """An address without user and password; other secrets in it are redacted."""
    return redactor.text(re.sub(r"//[^/@]+@", "//", remote))


def _paths(listing: bytes | None) -> list[str]:
    return [path.decode("utf-8", "surrogateescape") for path in (listing or b"").split(b"\0") if path]


def _git(home: Path, *arguments: str) -> bytes | None:
    """What a git command prints, byte for byte; None where it fails or git is not installed. It takes no lock."""
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(["git", "-C", str(home), *arguments], capture_output=True, env=environment, check=False)
    except FileNotFoundError:  # slim containers have no git
        return None
    return done.stdout if done.returncode == 0 else None
