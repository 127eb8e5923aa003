"""Reads YAML 1.2 into plain values that know where they were written.

Works on the parser's nodes instead of constructed objects: their marks give the place of every key and value, also through
aliases and merge keys, and no tag can construct anything.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, StringMark, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from tunix_lab.spec.errors import Place, Problem, SpecError

MAX_VALUES = 10_000
"""Values in one document, each alias counted as often as it is used: more is a mistake or an attack."""

MAX_DEPTH = 50
"""Values inside each other."""

Scalar: TypeAlias = str | int | float | bool | None

_TAG = "tag:yaml.org,2002:"
# A date is text: no field is one, and YAML's core schema knows none.
_TEXTS = {f"{_TAG}{name}" for name in ("str", "timestamp", "value")}


@dataclasses.dataclass(frozen=True, slots=True)
class Located:
    """A YAML value and where it was written.

    Attributes:
      value: a scalar, or a mapping or list of located values.
      place: where the value begins.
      key: where the key begins that names the value (a list item, a document: the value itself).
      text: what was typed, for a scalar given by an override.
    """

    value: "Scalar | dict[str, Located] | list[Located]"
    place: Place
    key: Place
    text: str | None = None

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: item.plain() for key, item in self.value.items()}
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        return self.value

    def deepest(self, path: Sequence[str | int]) -> "tuple[Located, int]":
        """The value at `path`, or the last one on the way that exists; and how many parts of `path` lead to it.

        Items of a list are counted from 0, by a number or its digits (in dotted names).
        """
        node = self
        for depth, part in enumerate(path):
            inside = {str(i): item for i, item in enumerate(node.value)} if isinstance(node.value, list) else node.value
            key = str(part) if isinstance(node.value, list) else part
            if not isinstance(inside, dict) or key not in inside:
                return node, depth
            node = inside[key]
        return node, len(path)


def read_file(path: Path) -> Located:
    """The document of the file `path`. Raises SpecError with every problem of its syntax."""
    source = str(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SpecError([Problem(Place(source), "", f"cannot be read: {error.strerror}")]) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = _place_of_byte(source, data, error.start)
        message = f"not UTF-8 (byte 0x{data[error.start]:02x}); save the file as UTF-8"
        raise SpecError([Problem(place, "", message)]) from None
    document = _read(text, lambda mark: Place(source, mark.line + 1, mark.column + 1))
    if document is None:
        raise SpecError([Problem(Place(source), "", "the file is empty; a spec is a mapping of sections")])
    return document


def read_value(text: str, place: Place) -> Located:
    """The value of an override; all of it was written at `place`. Raises SpecError."""
    document = _read(text, lambda mark: place)
    if document is None:
        raise SpecError([Problem(place, "", "no value after '='; write null for none, '' for empty text")])
    return document if isinstance(document.value, dict | list) else dataclasses.replace(document, text=text.strip())


def _place_of_byte(source: str, data: bytes, offset: int) -> Place:
    before = data[:offset].decode("utf-8-sig", errors="replace")
    return Place(source, before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)


def _read(text: str, place_of: Callable[[StringMark], Place]) -> Located | None:
    directive = re.search(r"^%YAML\s+(?!1\.2)", text, re.MULTILINE)
    if directive:  # under 1.1 `1e-5` is text and `no` is false
        mark = StringMark("", directive.start(), text.count("\n", 0, directive.start()), 0, text, directive.start())
        raise SpecError([Problem(place_of(mark), "", "specs are YAML 1.2; delete this line")])
    yaml = YAML(typ="safe", pure=True)
    yaml.composer.warn_double_anchors = False  # YAML allows to define an anchor again
    try:
        root = yaml.compose(text)
    except MarkedYAMLError as error:
        raise SpecError([Problem(place_of(error.problem_mark), "", _syntax_message(error, text))]) from None
    except ReaderError as error:
        before = text[: error.position]
        mark = StringMark("", error.position, before.count("\n"), len(before) - before.rfind("\n") - 1, text, error.position)
        message = f"the character U+{error.character:04X} is not allowed in YAML"
        raise SpecError([Problem(place_of(mark), "", message)]) from None
    except RecursionError:
        raise SpecError([Problem(place_of(_START), "", _TOO_DEEP)]) from None
    except (YAMLError, ValueError, OverflowError) as error:  # the last two: an escape beyond Unicode
        raise SpecError([Problem(place_of(_START), "", f"not YAML: {error}")]) from None
    if root is None:
        return None
    builder = _Builder(yaml, place_of)
    document = builder.build(root, None)
    if builder.problems:
        raise SpecError(builder.problems)
    return document


_START = StringMark("", 0, 0, 0, "", 0)
_TOO_DEEP = f"nested more than {MAX_DEPTH} deep"


def _syntax_message(error: MarkedYAMLError, text: str) -> str:
    at = error.problem_mark.index
    if "\t" in text[at : at + 1] or "'\\t'" in str(error.problem):
        return "a tab; YAML is indented with spaces"
    if "another document" in str(error.problem):
        return "a second document begins here; a spec is one document"
    context = f"{error.context}: " if error.context else ""
    return f"not YAML: {context}{error.problem}"


class _Builder:
    """Turns parser nodes into located values and collects what is wrong with them."""

    def __init__(self, yaml: YAML, place_of: Callable[[StringMark], Place]) -> None:
        self.problems: list[Problem] = []
        self._construct = yaml.constructor
        self._place_of = place_of
        self._open: list[Node] = []
        self._count = 0

    def build(self, node: Node, key: Node | None) -> Located:
        nothing = key is not None and node.start_mark.index == node.end_mark.index
        place = self._place_of((key if nothing else node).start_mark)  # the parser puts nothing where the next key begins
        self._count += 1
        if self._count > MAX_VALUES:
            raise SpecError([Problem(place, "", f"expands to more than {MAX_VALUES} values; use fewer aliases")])
        if any(node is other for other in self._open):
            raise SpecError([Problem(place, "", "an alias inside the value that it stands for")])
        if len(self._open) >= MAX_DEPTH:
            raise SpecError([Problem(place, "", _TOO_DEEP)])
        self._open.append(node)
        value = self._value(node, place)
        self._open.pop()
        return Located(value, place, place if key is None else self._place_of(key.start_mark))

    def _value(self, node: Node, place: Place) -> Any:
        if isinstance(node, MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node)
        if isinstance(node, SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.build(item, None) for item in node.value]
        if isinstance(node, ScalarNode):
            return self._scalar(node, place)
        return self._refuse_tag(node, place)

    def _mapping(self, node: MappingNode) -> dict[str, Located]:
        inherited: dict[str, Located] = {}
        own: dict[str, Located] = {}
        for key, value in node.value:
            place = self._place_of(key.start_mark)
            if _is_merge(key):
                inherited = {**self._merged(value, place), **inherited}
            elif not isinstance(key, ScalarNode) or key.tag not in _TEXTS:
                self.problems.append(Problem(place, "", f"a key must be text, got {_written(key)}; put it in quotes"))
            elif key.value in own:
                first = own[key.value].key
                where = f" at line {first.line}" if first.line is not None else ""
                self.problems.append(Problem(place, "", f"the key {key.value!r} is already used{where}"))
            else:
                own[key.value] = self.build(value, key)
        return {**inherited, **own}

    def _merged(self, value: Node, place: Place) -> dict[str, Located]:
        """What `<<: value` brings; of several mappings the first one wins."""
        merged: dict[str, Located] = {}
        for source in value.value if isinstance(value, SequenceNode) else [value]:
            if not isinstance(source, MappingNode):
                self.problems.append(Problem(place, "", "'<<' needs a mapping or a list of mappings"))
                continue
            merged = {**self.build(source, None).value, **merged}
        return merged

    def _scalar(self, node: ScalarNode, place: Place) -> Scalar:
        try:
            if node.tag in _TEXTS:
                node.value.encode()  # an escape such as "\ud800" is no character
                return node.value
            if node.tag == f"{_TAG}int":
                return self._construct.construct_yaml_int(node)
            if node.tag == f"{_TAG}float":
                return self._construct.construct_yaml_float(node)
            if node.tag == f"{_TAG}bool" and node.value.lower() in ("true", "false"):
                return node.value.lower() == "true"
            if node.tag == f"{_TAG}null":
                return None
        except ValueError:
            self.problems.append(Problem(place, "", f"{_written(node)} cannot be read as {node.tag.removeprefix(_TAG)}"))
            return None
        return self._refuse_tag(node, place)

    def _refuse_tag(self, node: Node, place: Place) -> None:
        tag = str(node.tag)
        shown = f"!!{tag.removeprefix(_TAG)}" if tag.startswith(_TAG) else tag
        self.problems.append(Problem(place, "", f"the tag {shown} is not allowed; a spec holds plain values only"))


def _is_merge(key: Node) -> bool:
    return isinstance(key, ScalarNode) and key.tag == f"{_TAG}merge"


def _written(node: Node) -> str:
    return repr(node.value[:40]) if isinstance(node, ScalarNode) else "a mapping or list"
