"""The data, tokenizer and weights of a recorded run, found by hash: in DVC's cache, in the project, in DVC's remotes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunix_lab.lab.versioning import dvc_digest

_COPIED = 64 << 20  # what is larger is linked: a run only reads it, and its hash is checked again at the end
_DVC = (sys.executable, "-m", "dvc")


def fetch_inputs(inputs: Sequence[dict[str, Any]], project: Path, home: Path) -> list[str]:
    """Puts the inputs of a run where its spec names them, below `home`.

    Args:
      inputs: the entries of a manifest.
      project: where the files may lie now.
      home: a folder with the code of the run.

    Returns:
      What could not be had as it was, a line each, with the file's name.
    """
    cache: Path | None = None
    remotes: list[str] | None = None
    problems = []
    for entry in (entry for entry in inputs if entry["path"] is not None):
        path, digest = entry["path"], entry["digest"]
        target = home / path
        if Path(path).is_absolute() or _digest(target) == digest:
            continue  # git has brought it, or it is not a file of the project
        if ".." in Path(path).parts:
            problems.append(f"{entry['role']} {path} lies outside the project and cannot be brought")
            continue
        if cache is None and _has_dvc(project):
            cache = _cache_folder(project)
        _remove(target)
        if not _from_cache(cache, digest, target) and _digest(project / path) == digest:
            _bring(project / path, target)
        if _digest(target) != digest and _has_dvc(home):
            if remotes is None:
                remotes = _share_config(project, home, cache)
            _pull(home, path, digest, remotes)
    return [*problems, *changed_inputs(inputs, project, home)]


def changed_inputs(inputs: Sequence[dict[str, Any]], project: Path, home: Path) -> list[str]:
    """The inputs below `home` whose content is not the recorded one, a line each."""
    problems = []
    for entry in inputs:
        if entry["path"] is None or _digest(home / entry["path"]) == entry["digest"] or ".." in Path(entry["path"]).parts:
            continue
        now = _digest(project / entry["path"])
        found = "is gone" if now is None else f"is another now ({now})"
        problems.append(f"{entry['role']} {entry['path']} {found}; the run read {entry['digest']}")
    return problems


def _digest(path: Path) -> str | None:
    return dvc_digest(path) if path.exists() else None


def _has_dvc(folder: Path) -> bool:
    return (folder / ".dvc").is_dir()


def _cache_folder(project: Path) -> Path:
    """Where DVC keeps the project's content, which other worktrees may share."""
    done = subprocess.run([*_DVC, "cache", "dir"], cwd=project, env=_quiet(), capture_output=True, text=True, check=False)
    return Path(done.stdout.strip()) if done.returncode == 0 else project / ".dvc/cache"


def _from_cache(cache: Path | None, digest: str, target: Path) -> bool:
    """Makes `target` of the cache's files; whether all of them are there."""
    if cache is None:
        return False
    stored = _stored(cache, digest)
    if not digest.endswith(".dir"):
        return stored.is_file() and _bring(stored, target)
    if not stored.is_file():
        return False
    members = [(_stored(cache, entry["md5"]), entry["relpath"]) for entry in json.loads(stored.read_bytes())]
    if not all(file.is_file() and ".." not in Path(name).parts for file, name in members):
        return False
    return all([_bring(file, target / name) for file, name in members])


def _stored(cache: Path, digest: str) -> Path:
    return cache / "files/md5" / digest[:2] / digest[2:]


def _bring(source: Path, target: Path) -> bool:
    """Copies a file or folder, large files as links."""
    if source.is_dir():
        return all([_bring(file, target / file.relative_to(source)) for file in source.rglob("*") if file.is_file()])
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.stat().st_size > _COPIED:
        target.symlink_to(source.resolve())
    else:
        shutil.copyfile(source, target)
    return True


def _share_config(project: Path, home: Path, cache: Path | None) -> list[str]:
    """Gives `home` the remotes, the settings of this machine and the cache of the project, and returns the remotes' names.

    The commit has only the remotes of its time, with addresses relative to the project's folder.
    """
    from dvc.config import Config

    if not _has_dvc(project):
        return []
    theirs = Config(dvc_dir=str(project / ".dvc"), validate=False)
    with Config(dvc_dir=str(home / ".dvc"), validate=False).edit("local", validate=False) as local:
        for section, values in theirs.load_one("local").items():
            local[section] |= values
        local["remote"] |= theirs["remote"]
        local["core"] |= {name: value for name, value in theirs["core"].items() if name == "remote"}
        if cache is not None:
            local["cache"]["dir"] = str(cache)
    (home / ".dvc/config.local").chmod(0o600)  # it may hold what opens a remote
    return list(theirs["remote"])


def _pull(home: Path, path: str, digest: str, remotes: Sequence[str]) -> None:
    """Asks DVC's remotes, the default one first, for what the commit names at `path`; at the end it is there or not."""
    for choice in ([], *(["--remote", name] for name in remotes)):
        _remove(home / path)
        subprocess.run([*_DVC, "pull", *choice, path], cwd=home, env=_quiet(), capture_output=True, check=False)
        if _digest(home / path) == digest:
            return


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


def _quiet() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "DVC_ROOT"} | {"DVC_NO_ANALYTICS": "1"}
