"""Checks the numeric bounds and the closed choices that a config dataclass declares in its annotations.

A field says its bounds once, `beta: Annotated[float, Gt(0)] = 0.1`: Pydantic enforces them where the class is part of a spec,
and `check_bounds` enforces the same ones where a library user builds the class by hand.
"""

import dataclasses
import operator
import types
import typing

import annotated_types as at

_CHECKS = {
    at.Gt: (operator.gt, "gt", "greater than"),
    at.Ge: (operator.ge, "ge", "at least"),
    at.Lt: (operator.lt, "lt", "less than"),
    at.Le: (operator.le, "le", "at most"),
}


def check_bounds(config: object) -> None:
    """Raises ValueError naming the first field of the dataclass `config` whose value is none that its annotation allows."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is None:
            continue
        choices = _choices_of(field.type)
        if choices and value not in choices:
            raise ValueError(
                f"{type(config).__name__}.{field.name} must be one of {', '.join(map(repr, choices))}, got {value!r}"
            )
        for bound in _bounds_of(field.type):
            compare, attribute, words = _CHECKS[type(bound)]
            limit = getattr(bound, attribute)
            if not compare(value, limit):
                raise ValueError(f"{type(config).__name__}.{field.name} must be {words} {limit}, got {value!r}")


def _bounds_of(hint: object) -> list[object]:
    """The bounds in `Annotated[X, …]`, also inside `Annotated[X, …] | None`."""
    is_annotated = typing.get_origin(hint) is typing.Annotated
    found = [m for m in hint.__metadata__ if type(m) in _CHECKS] if is_annotated else []
    for argument in typing.get_args(hint):
        if typing.get_origin(argument) is typing.Annotated:
            found += _bounds_of(argument)
    return found


def _choices_of(hint: object) -> tuple[object, ...]:
    """The values of `Literal[…]`, also of several and beside None; () where anything else is allowed, too."""
    if typing.get_origin(hint) is typing.Literal:
        return typing.get_args(hint)
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return ()
    arms = [_choices_of(arm) for arm in typing.get_args(hint) if arm is not types.NoneType]
    return tuple(choice for arm in arms for choice in arm) if all(arms) else ()
