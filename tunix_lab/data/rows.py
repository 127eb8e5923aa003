"""Reads dataset rows from JSON Lines, remembering where each came from so that every complaint names file and line."""

import contextlib
import dataclasses
import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from tunix_lab.errors import UserError

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Rows(Sequence[Row]):
    """Rows of one file.

    Attributes:
      path: the file.
      rows: its objects, in order.
      lines: the line (from 1) of each row.
      digest: sha256 (hex) of the file's bytes.
    """

    path: Path
    rows: list[Row]
    lines: list[int]
    digest: str

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> "Rows": ...
    def __getitem__(self, index: int | slice) -> "Row | Rows":
        if isinstance(index, slice):
            return dataclasses.replace(self, rows=self.rows[index], lines=self.lines[index])
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)


def place_of(rows: Sequence[Row], index: int) -> str:
    """Where row `index` stands, for messages: `file:line`, or its number where the rows came from no file."""
    return f"{rows.path}:{rows.lines[index]}" if isinstance(rows, Rows) else f"row {index}"


@contextlib.contextmanager
def blame(place: str) -> Iterator[None]:
    """Puts `place` in front of the message of a UserError raised inside."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{place}: {error}") from error


def read_rows(path: str | Path) -> Rows:
    """The rows of a JSON Lines file: UTF-8, one object a line; blank lines do not count.

    Raises:
      UserError: the file is missing, not UTF-8, not JSON Lines, or has no rows; the message names the line and what to do.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; make it (`dvc repro` builds what dvc.yaml declares) or mend the path") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    rows: list[Row] = []
    lines: list[int] = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            rows.append(_parse(line, f"{path}:{number}"))
            lines.append(number)
    if not rows:
        raise UserError(f"{path}: the file is empty; it must hold one JSON object a line")
    return Rows(path, rows, lines, hashlib.sha256(content).hexdigest())


def _parse(line: bytes, place: str) -> Row:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        hint = "; one whole JSON object must stand on each line" if line.lstrip()[:1] in (b"[", b"{") else ""
        raise UserError(f"{place}:{error.colno}: not JSON: {error.msg}{hint}") from None
    except RecursionError:
        raise UserError(f"{place}: nested too deeply to be a dataset row") from None
    if not isinstance(row, dict):
        raise UserError(f"{place}: a row must be a JSON object such as {{...}}, got {type(row).__name__}")
    return row


def column(row: Row, name: str) -> Any:
    """The value of a column that must be there. Raises UserError naming the columns that are."""
    if name not in row:
        near = difflib.get_close_matches(name, row, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(f"column {name!r} is missing; the row has {', '.join(map(repr, row)) or 'none'}{hint}")
    return row[name]


def text_column(row: Row, name: str) -> str:
    """The text of a column. Raises UserError where it is missing or no text."""
    value = column(row, name)
    if not isinstance(value, str):
        raise UserError(f"column {name!r} must be text, got {type(value).__name__}")
    return value


def prompt_column(row: Row) -> str | list[Mapping[str, str]]:
    """The prompt: text, or the messages of a chat. Raises UserError where it is missing or neither."""
    match column(row, "prompt"):
        case str(text):
            return text
        case [_, *_] as messages:
            return list(messages)
        case other:
            raise UserError(f"column 'prompt' must be text or a list of messages, got {type(other).__name__}")
