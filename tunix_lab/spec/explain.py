"""Says in a person's words, and at the place in the file, what Pydantic found wrong."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from tunix_lab.spec.errors import Problem, did_you_mean
from tunix_lab.spec.experiment import COMBINATION
from tunix_lab.spec.fields import KEY, Path, Where, all_fields, where
from tunix_lab.spec.section import PATTERN_WORDS
from tunix_lab.spec.yaml_source import Located

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_TYPES = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dataclass_type": "a mapping",
}
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def explain(error: ValidationError, tree: Located) -> list[Problem]:
    """Every problem of `error`, each at its place in `tree`."""
    return [_problem(details, tree) for details in error.errors(include_url=False)]


def problem_at(tree: Located, path: Path, message: str, *, at_key: bool = False) -> Problem:
    """A problem with the value (or the key) at `path`; where the tree does not hold it, with the section that would."""
    node, depth = tree.deepest(path)
    place = node.place if depth == len(path) and not at_key else node.key
    return Problem(place, ".".join(str(part) for part in path), message)


def mistyped_texts(error: ValidationError, tree: Located) -> list[Path]:
    """Where an override gave a number or the like to a field that is text, as in `--set tracking.tags.year=2026`."""
    places = [where(details["loc"]).path for details in error.errors() if details["type"] == "string_type"]
    found = [(path, *tree.deepest(path)) for path in places]
    return [path for path, node, depth in found if depth == len(path) and node.text is not None and node.value is not None]


def _problem(details: Mapping[str, Any], tree: Located) -> Problem:
    kind = details["type"]
    if kind == COMBINATION:  # our own fault, which names its field as the YAML does
        return problem_at(tree, details["loc"], details["msg"])
    spot = where(details["loc"])
    if kind in _UNKNOWN:
        return problem_at(tree, spot.path, f"unknown field{_hint(spot)}", at_key=True)
    if kind == "union_tag_not_found":
        return problem_at(tree, (*spot.path, "kind"), f"missing; one of {_quoted(spot.kinds)}")
    if kind == "union_tag_invalid":
        tag = details["ctx"]["tag"]
        message = f"must be one of {_quoted(spot.kinds)}, got {tag!r}{did_you_mean(tag, spot.kinds)}"
        return problem_at(tree, (*spot.path, "kind"), message)
    return problem_at(tree, spot.path, _message(details), at_key=details["loc"][-1:] == (KEY,))


def _message(details: Mapping[str, Any]) -> str:
    kind, given, context = details["type"], details["input"], details.get("ctx", {})
    if kind == "missing":
        return "missing"
    if kind in _TYPES:
        return f"must be {_TYPES[kind]}, got {shown(given)}{_type_hint(kind, given)}"
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return f"must be {words} {context[key]:g}, got {shown(given)}"
    if kind == "literal_error":
        options = re.findall(r"'([^']*)'", context["expected"])
        near = did_you_mean(given, options) if isinstance(given, str) else ""
        return f"must be one of {_quoted(options)}, got {shown(given)}{near}"
    if kind == "string_pattern_mismatch":
        return f"{PATTERN_WORDS[context['pattern']]}; got {shown(given)}"
    if kind == "string_too_short":
        return "must not be empty"
    if kind == "too_short":
        return "must not be empty"
    if kind == "string_too_long":
        return f"must have at most {context['max_length']} characters, got {len(given)}"
    return details["msg"].removeprefix("Value error, ")


def _type_hint(kind: str, given: object) -> str:
    if kind == "int_type" and isinstance(given, float) and given.is_integer():
        return f" (write {given:.0f})"
    if kind == "string_type" and given is not None and not isinstance(given, dict | list):
        return " (put it in quotes)"
    if kind in ("int_type", "float_type", "bool_type") and isinstance(given, str):
        return " (without quotes)" if re.fullmatch(r"[-+.\deE]*\d[-+.\deE]*|true|false", given) else ""
    return ""


def _hint(spot: Where) -> str:
    """What an unknown field may be meant to be: a neighbour, or a field of the same name in another section."""
    name, dotted = str(spot.path[-1]), ".".join(str(part) for part in spot.path)
    near = did_you_mean(name, spot.siblings)
    if near:
        return near
    elsewhere = [field for field in all_fields() if field.rpartition(".")[2] == name and field != dotted]
    if elsewhere:
        return f" here (did you mean {' or '.join(repr(field) for field in elsewhere)}?)"
    return f"; known here: {', '.join(spot.siblings)}" if spot.siblings else ""


def _quoted(options: Iterable[str]) -> str:
    return ", ".join(repr(option) for option in options)


def shown(value: object) -> str:
    """A value as the YAML says it, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
