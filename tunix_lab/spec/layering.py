"""Lays a spec file over the files that it extends, and the overrides of the command line over both.

Mappings merge, everything else replaces, null sets none. A mapping whose `kind` changes is replaced as a whole: the fields of
`dpo` mean nothing to `orpo`. Sources of data need not say their kind; there a field such as `path` or `fraction` tells it.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from tunix_lab.spec.data import form_of
from tunix_lab.spec.errors import Place, Problem, SpecError, did_you_mean
from tunix_lab.spec.yaml_source import Located, Scalar, read_file, read_value

EXTENDS = "extends"


def layered(path: Path, overrides: Sequence[str]) -> Located:
    """The mapping that `path`, the files that it extends and `overrides` (`a.b=c`) make together. Raises SpecError."""
    problems: list[Problem] = []
    tree = _read_with_parents(path, (), None, problems)
    layers = [override(number, text, problems) for number, text in enumerate(overrides, start=1)]
    if problems or tree is None:
        raise SpecError(problems)
    for layer in layers:
        tree = merge(tree, layer)
    return tree


def merge(below: Located, above: Located, path: tuple[str, ...] = ()) -> Located:
    """`above` laid over `below`, both of which stand at `path` in their specs."""
    if not isinstance(below.value, dict) or not isinstance(above.value, dict):
        return above
    kinds = _kind(below.value, path), _kind(above.value, path)
    if None not in kinds and kinds[0] != kinds[1]:
        return above
    merged = dict(below.value)
    for key, item in above.value.items():
        merged[key] = merge(merged[key], item, (*path, key)) if key in merged else item
    return Located(merged, above.place, above.key)


def _kind(section: dict[str, Located], path: tuple[str, ...]) -> Scalar:
    """Which variant of a union a mapping means; None where it does not say."""
    if "kind" in section:
        return section["kind"].plain()
    return form_of(section) if path in (("data", "train"), ("data", "validation")) else None


def override(number: int, text: str, problems: list[Problem]) -> Located:
    """The tree that holds nothing but what override number `number` says; what is wrong with it is added to `problems`."""
    place = Place(f"--set #{number}")
    empty = Located({}, place, place)
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        problems.append(Problem(place, "", f"must look like section.field=value, got {text!r}"))
        return empty
    if keys[0] == EXTENDS:
        problems.append(Problem(place, EXTENDS, "is part of the file and cannot be overridden"))
        return empty
    try:
        tree = read_value(value, place)
    except SpecError as error:
        problems.extend(Problem(place, path.strip(), problem.message) for problem in error.problems)
        return empty
    for key in reversed(keys):
        tree = Located({key: tree}, place, place)
    return tree


def _read_with_parents(path: Path, chain: tuple[Path, ...], named_at: Place | None, problems: list[Problem]) -> Located | None:
    """`path` over its parents; None where something is wrong, which is added to `problems`.

    `chain` are the files that led here, `named_at` is where the last of them names this one.
    """
    real = path.resolve()
    if any(real == other.resolve() for other in chain):
        files = " -> ".join(str(file) for file in (*chain, path))
        problems.append(Problem(named_at, EXTENDS, f"files extend each other in a circle: {files}"))
        return None
    if not path.is_file():
        problems.append(_missing(path, named_at))
        return None
    try:
        tree = read_file(path)
    except SpecError as error:
        problems.extend(error.problems)
        return None
    if not isinstance(tree.value, dict):
        problems.append(Problem(tree.place, "", "a spec is a mapping of sections such as 'model:' and 'training:'"))
        return None
    own = Located({key: item for key, item in tree.value.items() if key != EXTENDS}, tree.place, tree.key)
    layers = [
        _read_with_parents(path.parent / str(item.value), (*chain, path), item.place, problems)
        for item in _parents(tree.value.get(EXTENDS), problems)
    ]
    result: Located | None = None
    for layer in [*layers, own]:
        if layer is not None:
            result = layer if result is None else merge(result, layer)
    return result


def _parents(extends: Located | None, problems: list[Problem]) -> list[Located]:
    if extends is None:
        return []
    items = extends.value if isinstance(extends.value, list) else [extends]
    good = [item for item in items if isinstance(item.value, str) and item.value]
    problems.extend(
        Problem(item.place, EXTENDS, "must be a file name or a list of file names") for item in items if item not in good
    )
    return good


def _missing(path: Path, named_at: Place | None) -> Problem:
    if path.is_dir():
        message = "is a folder; name a file"
    else:
        folder = path.parent
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
        message = f"no such file{did_you_mean(path.name, [name for name in names if name.endswith(('.yaml', '.yml'))])}"
    if named_at is None:
        return Problem(Place(str(path)), "", message)
    return Problem(named_at, EXTENDS, f"{path}: {message}")
