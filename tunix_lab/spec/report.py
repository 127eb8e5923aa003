"""What `tunix-lab check` says about spec files, as text and as JSON."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tunix_lab.spec.errors import Problem, SpecError
from tunix_lab.spec.hashes import spec_hash
from tunix_lab.spec.loading import LoadedSpec, load
from tunix_lab.spec.render import flatten


@dataclasses.dataclass(frozen=True, slots=True)
class Checked:
    """One file: what it holds, or its problems."""

    path: Path
    loaded: LoadedSpec | None
    problems: tuple[Problem, ...]


def check_files(paths: Sequence[Path], overrides: Sequence[str] = (), devices: int | None = None) -> list[Checked]:
    """Each of `paths`, loaded with the same overrides."""
    return [_check(path, overrides, devices) for path in paths]


def _check(path: Path, overrides: Sequence[str], devices: int | None) -> Checked:
    try:
        return Checked(path, load(path, overrides, devices=devices), ())
    except SpecError as error:
        return Checked(path, None, error.problems)


def all_problems(results: Iterable[Checked]) -> list[Problem]:
    """The problems of all files."""
    return [problem for result in results for problem in result.problems]


def as_text(results: Iterable[Checked], *, resolved: bool = False) -> str:
    """One line for each good file; with `resolved` also each of its values and where it comes from."""
    lines = []
    for result in results:
        if result.loaded is not None:
            lines.append(f"{result.path}: ok")
            lines += _values(result.loaded) if resolved else []
    return "\n".join(lines)


def _values(loaded: LoadedSpec) -> list[str]:
    written = {name: f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in flatten(loaded.spec).items()}
    width = min(72, max(len(text) for text in written.values()))
    return [f"  {text:<{width}}  # {loaded.origins[name]}" for name, text in written.items()]


def as_json(results: Iterable[Checked], *, resolved: bool = False) -> str:
    """The same for programs: a list with one object for each file."""
    return json.dumps([_entry(result, resolved) for result in results], indent=2)


def _entry(result: Checked, resolved: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"path": str(result.path), "ok": result.loaded is not None}
    entry["problems"] = [
        (dataclasses.asdict(problem.place) if problem.place else {}) | {"field": problem.field, "message": problem.message}
        for problem in result.problems
    ]
    if result.loaded is not None:
        entry |= {"name": result.loaded.spec.name, "spec_hash": spec_hash(result.loaded.spec)}
        if resolved:
            values, origins = flatten(result.loaded.spec), result.loaded.origins
            entry["resolved"] = {name: {"value": value, "origin": origins[name]} for name, value in values.items()}
    return entry
