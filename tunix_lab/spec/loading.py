"""Loads a spec: files and overrides in, a checked `ExperimentSpec` out, which remembers where each value was written."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from tunix_lab.spec.checks import device_faults
from tunix_lab.spec.errors import Problem, SpecError
from tunix_lab.spec.experiment import ExperimentSpec
from tunix_lab.spec.explain import explain, mistyped_texts, problem_at
from tunix_lab.spec.layering import layered, merge
from tunix_lab.spec.references import locate
from tunix_lab.spec.render import flatten
from tunix_lab.spec.settings import find_home
from tunix_lab.spec.yaml_source import Located

_SCORER = ("samples", "scorer")
_REWARDS = ("algorithm", "rewards", "functions")


@dataclasses.dataclass(frozen=True)
class LoadedSpec:
    """A spec and where it comes from.

    Attributes:
      spec: the experiment.
      origins: for each dotted leaf of `flatten(spec)`: `file:line`, `--set #n` or `default`.
      source_text: the text of the file that was named.
      path: that file.
    """

    spec: ExperimentSpec
    origins: dict[str, str]
    source_text: str
    path: Path


def load(path: str | Path, overrides: Sequence[str] = (), home: Path | None = None, *, devices: int | None = None) -> LoadedSpec:
    """The spec in the file `path`.

    Args:
      path: the YAML file.
      overrides: `section.field=value`, laid over the file in this order.
      home: project folder, where the module of a scorer or reward may also lie; None finds it.
      devices: number of devices that the spec must fit; None leaves that open.

    Raises:
      SpecError: with every problem and its place.
    """
    path = Path(path)
    tree = layered(path, overrides)
    problems = list(_function_problems(tree, find_home() if home is None else home))
    try:
        spec = _validated(tree)
    except ValidationError as error:
        raise SpecError(sorted([*explain(error, tree), *problems], key=_reading_order)) from None
    if devices is not None:
        problems += [problem_at(tree, field, message) for field, message in device_faults(spec, devices)]
    if problems:
        raise SpecError(sorted(problems, key=_reading_order))
    return LoadedSpec(spec, _origins(spec, tree), path.read_text("utf-8-sig"), path)


def _reading_order(problem: Problem) -> tuple[str, int, int]:
    place = problem.place
    return ("", 0, 0) if place is None else (place.source, place.line or 0, place.column or 0)


def _validated(tree: Located) -> ExperimentSpec:
    try:
        return ExperimentSpec.model_validate(tree.plain())
    except ValidationError as error:
        texts = mistyped_texts(error, tree)
        if not texts:
            raise
    for field in texts:
        tree = merge(tree, _as_text(tree, field))
    return ExperimentSpec.model_validate(tree.plain())


def _as_text(tree: Located, field: Sequence[str | int]) -> Located:
    """A tree that holds nothing but the override at `field`, as the text that was typed."""
    node, _ = tree.deepest(field)
    text = Located(node.text, node.place, node.key)
    for key in reversed(field):
        text = Located({str(key): text}, node.place, node.key)
    return text


def _function_problems(tree: Located, home: Path) -> Iterator[Problem]:
    """The functions that are named and are not there."""
    rewards, depth = tree.deepest(_REWARDS)
    listed = len(rewards.value) if depth == len(_REWARDS) and isinstance(rewards.value, list) else 0
    for path in (_SCORER, *((*_REWARDS, number, "function") for number in range(listed))):
        node, depth = tree.deepest(path)
        if depth < len(path) or not isinstance(node.value, str) or node.value.count(":") != 1:
            continue  # absent, or no reference at all, which the schema says
        try:
            locate(node.value, home)
        except LookupError as error:
            yield problem_at(tree, path, str(error))


def _origins(spec: ExperimentSpec, tree: Located) -> dict[str, str]:
    origins = {}
    for dotted in flatten(spec):
        path = dotted.split(".")
        node, depth = tree.deepest(path)
        origins[dotted] = node.place.origin if depth == len(path) else "default"
    return origins
