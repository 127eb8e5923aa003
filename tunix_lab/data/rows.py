"""Rows of a dataset that know where they came from, so that every complaint names file and line, and what they hold."""

import contextlib
import dataclasses
import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from tunix_lab.errors import UserError

Row = Mapping[str, Any]
Made = TypeVar("Made")

CONTENT = ("text", "messages", "prompt", "completion", "chosen", "rejected")
"""The columns that training reads; all others are for rewards and for people."""

TOLD_AT_ONCE = 5
"""Mistakes that one message names."""


@dataclasses.dataclass(frozen=True)
class Rows(Sequence[Row]):
    """Rows of one file.

    Attributes:
      path: the file.
      rows: its objects, in order.
      numbers: the place of each row in the file, from 1.
      unit: what is counted, lines of text or rows of a table.
      digest: sha256 (hex) of the file's bytes.
    """

    path: Path
    rows: list[Row]
    numbers: list[int]
    unit: Literal["line", "row"]
    digest: str

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> "Rows": ...
    def __getitem__(self, index: int | slice) -> "Row | Rows":
        if isinstance(index, slice):
            return dataclasses.replace(self, rows=self.rows[index], numbers=self.numbers[index])
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Sequence[int]) -> "Rows":
        """The rows at these indices, each with its own place."""
        return dataclasses.replace(self, rows=[self.rows[i] for i in indices], numbers=[self.numbers[i] for i in indices])

    def named(self, columns: Mapping[str, str], *, partly: bool = False) -> "Rows":
        """The rows under the names that are read: `columns` maps each to what the file calls it. Other columns stay.

        Raises:
          UserError: a row lacks such a column, and the rows need not be `partly` named.
        """
        return dataclasses.replace(self, rows=each(self, lambda row: _renamed(row, columns, partly))) if columns else self


def _renamed(row: Row, columns: Mapping[str, str], partly: bool) -> Row:
    if partly:
        columns = {name: theirs for name, theirs in columns.items() if theirs in row}
    named = {name: column(row, theirs) for name, theirs in columns.items()}
    # Whoever says where prompt and completion are does not mean the file's own `messages`, which would otherwise come first.
    hidden = {"messages"} if {"prompt", "completion"} & columns.keys() else set()
    return {name: value for name, value in row.items() if name not in hidden} | named


def place_of(rows: Sequence[Row], index: int) -> str:
    """Where row `index` stands, for messages: `file:line`, `file:row 3`, or its number where the rows came from no file."""
    if not isinstance(rows, Rows):
        return f"row {index}"
    return f"{rows.path}:{'row ' if rows.unit == 'row' else ''}{rows.numbers[index]}"


@contextlib.contextmanager
def blame(place: str) -> Iterator[None]:
    """Puts `place` in front of the message of a UserError raised inside."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{place}: {error}") from error


def each(rows: Sequence[Row], work: Callable[[Row], Made]) -> list[Made]:
    """`work(row)` of every row; of the rows that it refuses the first few are told at once, since they seldom come alone.

    Raises:
      UserError: `work` refused a row; the message has a line for each mistake, with the first place where it was made.
    """
    made: list[Made] = []
    places: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        try:
            made.append(work(row))
        except UserError as error:
            places.setdefault(str(error), []).append(index)
            if len(places) == TOLD_AT_ONCE:
                break
    if places:
        lines = [
            f"{place_of(rows, first)}: {mistake}" + (f" (and so in {len(others)} more rows)" if others else "")
            for mistake, (first, *others) in places.items()
        ]
        unread = len(rows) - 1 - index
        raise UserError("\n".join([*lines, *([f"and perhaps more in the {unread} rows after these"] if unread else [])]))
    return made


def content_hash(row: Row, salt: str = "") -> int:
    """64 bits that tell what training reads of a row; the same in every file, format and order."""
    content = {name: row[name] for name in CONTENT if name in row}
    text = json.dumps([salt, content], sort_keys=True, ensure_ascii=True, default=repr)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def count_repeats(rows: Iterable[Row]) -> int:
    """How many rows hold the same content as an earlier one."""
    hashes = [content_hash(row) for row in rows]
    return len(hashes) - len(set(hashes))


def column(row: Row, name: str) -> Any:
    """The value of a column that must be there. Raises UserError naming the columns that are."""
    if name not in row:
        near = difflib.get_close_matches(name, row, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(f"column {name!r} is missing; the row has {', '.join(map(repr, row)) or 'none'}{hint}")
    return row[name]


def text_column(row: Row, name: str, *, may_be_empty: bool = False) -> str:
    """The text of a column. Raises UserError where it is missing, no text, or nothing but blanks."""
    value = column(row, name)
    if not isinstance(value, str):
        raise UserError(f"column {name!r} must be text, got {_json_type(value)}")
    if not value.strip() and not may_be_empty:
        raise UserError(f"column {name!r} is empty; fill it, or take the row out")
    return value


def prompt_column(row: Row) -> str | list[Mapping[str, str]]:
    """The prompt: text, or the messages of a chat. Raises UserError where it is missing or neither."""
    match column(row, "prompt"):
        case str():
            return text_column(row, "prompt")
        case [_, *_] as messages:
            return list(messages)
        case other:
            raise UserError(f"column 'prompt' must be text or a list of messages, got {_json_type(other)}")


def _json_type(value: Any) -> str:
    """What a value is, as its file would call it."""
    return "null" if value is None else "an empty list" if value == [] else type(value).__name__
