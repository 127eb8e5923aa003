"""Which fields a spec has where, for error messages: reads the classes, not a value."""

import dataclasses
import functools
import typing
from collections.abc import Iterator, Sequence

from pydantic import BaseModel

from tunix_lab.spec.experiment import ExperimentSpec

Path: typing.TypeAlias = tuple[str | int, ...]

KEY = "[key]"
"""How Pydantic says that it means the key of a mapping, which it names just before."""


@dataclasses.dataclass(frozen=True, slots=True)
class Where:
    """A place in the schema.

    Attributes:
      path: keys that lead to the value in the YAML.
      siblings: the fields known beside the last key.
      kinds: what `kind` may be in the value, where it is a union.
    """

    path: Path
    siblings: tuple[str, ...]
    kinds: tuple[str, ...]


def where(location: Sequence[str | int]) -> Where:
    """The place that Pydantic calls `location`, which also names the chosen `kind` of every union on the way."""
    path: list[str | int] = []
    candidates: tuple[type, ...] = (ExperimentSpec,)
    siblings: tuple[str, ...] = ()
    for part in location:
        if isinstance(part, int):  # an item of a list, which holds the same sections as the field itself
            path.append(part)
            continue
        if len(candidates) > 1:
            # Where a field may also be a path or a list, Pydantic names that form too; it leads into no section.
            candidates = tuple(section for section in candidates if _kind(section) == part) or candidates
            continue
        if part == KEY:
            continue
        path.append(part)
        fields = _fields(candidates[0]) if candidates else {}
        siblings = tuple(fields)
        candidates = fields.get(part, ())
    kinds = tuple(_kind(section) for section in candidates) if len(candidates) > 1 else ()
    return Where(tuple(path), siblings, kinds)


@functools.cache
def all_fields() -> tuple[str, ...]:
    """The dotted names of all fields that a spec can have."""
    return tuple(dict.fromkeys(_walk(ExperimentSpec, "")))


def _walk(section: type, prefix: str) -> Iterator[str]:
    for name, inner in _fields(section).items():
        yield f"{prefix}{name}"
        for candidate in inner:
            yield from _walk(candidate, f"{prefix}{name}.")


def _fields(section: type) -> dict[str, tuple[type, ...]]:
    """Fields of a section, each with the sections that it may hold."""
    if issubclass(section, BaseModel):
        return {name: _sections(field.annotation) for name, field in section.model_fields.items()}
    return {field.name: _sections(field.type) for field in dataclasses.fields(section)}


def _sections(annotation: object) -> tuple[type, ...]:
    """The sections among the members of a union, also in the items of a list; each once."""
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation)):
        return (annotation,)
    return tuple(dict.fromkeys(section for member in typing.get_args(annotation) for section in _sections(member)))


def _kind(section: type) -> str:
    return typing.get_args(typing.get_type_hints(section)["kind"])[0]
