"""Writes a spec out again: as plain data, as dotted leaves, as YAML that loads to an equal spec."""

import io
from typing import Any, TypeAlias

from tunix_lab.spec.experiment import ExperimentSpec

Leaf: TypeAlias = str | int | float | bool | None


def to_data(spec: ExperimentSpec) -> dict[str, Any]:
    """All values of `spec`, defaults included, as JSON-like data; `kind` comes first in its section."""
    return _kind_first(spec.model_dump(mode="json"))


def _kind_first(value: Any) -> Any:
    if isinstance(value, list):
        return [_kind_first(item) for item in value]
    if not isinstance(value, dict):
        return value
    first = {"kind": value["kind"]} if "kind" in value else {}
    return first | {key: _kind_first(item) for key, item in value.items()}


def flatten(spec: ExperimentSpec) -> dict[str, Leaf]:
    """Every leaf of `spec` under its dotted name: {"training.max_steps": 80, "data.train.0.path": "a.jsonl", …}."""
    return dict(_leaves(to_data(spec), ""))


def _leaves(value: Any, name: str) -> list[tuple[str, Leaf]]:
    if isinstance(value, list):
        value = {str(index): item for index, item in enumerate(value)}
    if not isinstance(value, dict):
        return [(name, value)]
    return [leaf for key, item in value.items() for leaf in _leaves(item, f"{name}.{key}" if name else key)]


def resolved_yaml(spec: ExperimentSpec) -> str:
    """`spec` with all its values, parents and overrides worked in."""
    from ruamel.yaml.scalarstring import LiteralScalarString

    data = to_data(spec)
    if "\n" in spec.description:
        data["description"] = LiteralScalarString(spec.description)
    return to_yaml(data)


def to_yaml(data: Any) -> str:
    """JSON-like data as YAML."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 4096  # never fold a long line
    stream = io.StringIO()
    yaml.dump(data, stream)
    return stream.getvalue()
