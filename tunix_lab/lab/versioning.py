"""What DVC knows about a project, read without importing it; and the one call that makes a missing output."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from tunix_lab.errors import EnvironmentProblem, UserError

_CHUNK = 1 << 20


def file_md5(path: Path) -> str:
    """md5 of a file's bytes, as DVC records it."""
    md5 = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            md5.update(chunk)
    return md5.hexdigest()


def dvc_digest(path: Path) -> str:
    """The hash that `dvc.lock` shows for a file or folder (36 characters for a folder: `<md5>.dir`)."""
    if path.is_file():
        return file_md5(path)
    files = [file for file in path.rglob("*") if file.is_file()]
    entries = [{"md5": file_md5(file), "relpath": file.relative_to(path).as_posix()} for file in files]
    entries.sort(key=lambda entry: tuple(entry["relpath"].split("/")))
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def stage_tags() -> dict[str, str]:
    """Tags that name the DVC stage and experiment this process runs in; {} outside DVC."""
    variables = {"dvc.stage": "DVC_STAGE", "dvc.exp.name": "DVC_EXP_NAME", "dvc.exp.baseline": "DVC_EXP_BASELINE_REV"}
    return {tag: os.environ[name] for tag, name in variables.items() if os.environ.get(name)}


def output_folder(home: Path, experiment: str) -> Path:
    """Where the stage of an experiment puts its model."""
    return home / "outputs" / experiment / "final"


def stages(home: Path) -> dict[str, dict]:
    """The stages of the project's dvc.yaml by name; {} without one."""
    from ruamel.yaml import YAML

    path = home / "dvc.yaml"
    return (YAML(typ="safe").load(path) or {}).get("stages", {}) if path.is_file() else {}


def locked_stages(home: Path) -> dict[str, dict]:
    """The stages of the project's dvc.lock by name (`stage@item` for those of a matrix or foreach); {} without one."""
    from ruamel.yaml import YAML

    path = home / "dvc.lock"
    return (YAML(typ="safe").load(path) or {}).get("stages", {}) if path.is_file() else {}


def make_upstream(home: Path, experiment: str) -> None:
    """Makes the output of an upstream experiment by `dvc repro` of its stage, whose output goes to the terminal.

    Raises:
      UserError: the project has no such stage, or this process is itself part of a `dvc repro`.
      EnvironmentProblem: DVC or the stage failed.
    """
    missing = f"{output_folder(home, experiment)} does not exist"
    if os.environ.get("DVC_STAGE"):
        raise UserError(f"{missing}, and a stage cannot start another: list it under `deps:` of stage {os.environ['DVC_STAGE']}")
    if experiment not in stages(home) or not (home / ".dvc").is_dir():
        raise UserError(
            f"{missing}, and {home} has no DVC stage {experiment!r} to make it: add one to dvc.yaml, or put a model there"
        )
    # The stage's own command must find the same tunix-lab as this process, also in an environment that is not activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", experiment],
        cwd=home,
        env=os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1"},
        check=False,
    )
    if done.returncode:
        raise EnvironmentProblem(f"`dvc repro {experiment}` failed with exit code {done.returncode}; its message stands above")
