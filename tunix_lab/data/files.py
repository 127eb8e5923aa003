"""Reads the rows of a file in the format that its suffix says: JSON Lines, CSV or Parquet."""

import csv
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunix_lab.data.rows import CONTENT, TOLD_AT_ONCE, Row, Rows
from tunix_lab.errors import UserError

# What other files begin with, and what to do about them.
_NOT_TEXT = {
    b"\x1f\x8b": "compressed with gzip; unpack it (`gunzip FILE`)",
    b"\x28\xb5\x2f\xfd": "compressed with zstandard; unpack it (`unzstd FILE`)",
    b"PK\x03\x04": "a ZIP archive; unpack it",
    b"PAR1": "a Parquet file; name it .parquet",
    b"\xff\xfe": "UTF-16; save it as UTF-8",
    b"\xfe\xff": "UTF-16; save it as UTF-8",
}
_JSON_LINES = (".jsonl", ".ndjson", ".json")


def read_rows(path: str | Path, columns: Mapping[str, str] | None = None, *, partly: bool = False) -> Rows:
    """The rows of a file.

    Args:
      path: `.jsonl` (also `.ndjson`, `.json`): UTF-8, one object a line, blank lines do not count. `.csv`: UTF-8, the first line
        names the columns, every value is text. `.parquet`: values as they are.
      columns: the names that are read, with what the file calls them.
      partly: whether a row may lack some of these columns, as prompts have no answer; else it is refused.

    Raises:
      UserError: the file is missing, is not what its suffix says, or has no rows; the message names the place and what to do.
    """
    path, columns = Path(path), columns or {}
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; make it (`dvc repro` builds what dvc.yaml declares) or mend the path") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(content).hexdigest()
    match path.suffix.lower():
        case ".parquet":
            rows = _parquet(content, path)
            return Rows(path, rows, list(range(1, len(rows) + 1)), "row", digest).named(columns, partly=partly)
        case ".csv":
            rows, lines = _csv(content, path, columns)
        case suffix if suffix in _JSON_LINES:
            rows, lines = _json_lines(content, path)
        case suffix:
            known = ", ".join((*_JSON_LINES, ".csv", ".parquet"))
            raise UserError(f"{path}: the suffix {suffix or '(none)'!r} names no format that is read; there are {known}")
    return Rows(path, rows, lines, "line", digest).named(columns, partly=partly)


# ---- JSON Lines ------------------------------------------------------------------------------------------------------------


def _json_lines(content: bytes, path: Path) -> tuple[list[Row], list[int]]:
    _check_text(content, path)
    rows: list[Row] = []
    lines: list[int] = []
    faults: list[str] = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            try:
                rows.append(_parse(line, f"{path}:{number}"))
                lines.append(number)
            except UserError as error:
                faults.append(str(error))
    _tell(faults, path)
    if not rows:
        raise UserError(f"{path}: the file is empty; it must hold one JSON object a line")
    return rows, lines


def _tell(faults: list[str], path: Path) -> None:
    """Raises UserError with the first few of `faults`, if there are any, and the number of the others."""
    if faults:
        more = len(faults) - TOLD_AT_ONCE
        raise UserError("\n".join([*faults[:TOLD_AT_ONCE], *([f"{path}: and {more} more lines like these"] if more > 0 else [])]))


def _check_text(content: bytes, path: Path) -> None:
    """Raises UserError for what is no text in UTF-8 from its first bytes on."""
    for begin, what in _NOT_TEXT.items():
        if content.startswith(begin):
            raise UserError(f"{path}: the file is {what}")


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


# ---- CSV -------------------------------------------------------------------------------------------------------------------


def _csv(content: bytes, path: Path, columns: Mapping[str, str]) -> tuple[list[Row], list[int]]:
    """Rows whose values are all text: guessing types would make a number of the answer "42", and of "007" the wrong one."""
    _check_text(content, path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    lines: list[int] = []
    faults: list[str] = []
    try:
        header = next(reader, [])
        _check_header(header, path, columns)
        begins = reader.line_num + 1
        for values in reader:
            if values and len(values) != len(header):
                faults.append(_width_fault(values, header, f"{path}:{begins}"))
            elif values:  # a blank line has none
                rows.append(dict(zip(header, values, strict=True)))
                lines.append(begins)
            begins = reader.line_num + 1  # a value in quotes may hold line breaks
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not CSV: {error}; mend the quotes, or save it as JSON Lines") from None
    _tell(faults, path)
    if not rows:
        raise UserError(f"{path}: the file has no rows; it must hold a line with the names of the columns and then the rows")
    return rows, lines


def _check_header(header: list[str], path: Path, columns: Mapping[str, str]) -> None:
    wanted = [*columns.values(), *CONTENT]
    if not set(header) & set(wanted):
        found = ", ".join(repr(name if len(name) <= 30 else f"{name[:30]}…") for name in header[:6]) or "nothing"
        raise UserError(
            f"{path}:1: the first line of a CSV file must name its columns, and none of these is read: {found}; there are "
            f"{', '.join(CONTENT)}, or say with data.columns what the file calls them"
        )
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(f"{path}:1: the column {twice[0]!r} is there twice; give each its own name")


def _width_fault(values: list[str], header: list[str], place: str) -> str:
    return (
        f"{place}: {len(values)} values for {len(header)} columns ({', '.join(header)}); put values that hold a comma, a "
        'quote or a line break in double quotes, and write a quote in them as ""'
    )


# ---- Parquet ---------------------------------------------------------------------------------------------------------------


def _parquet(content: bytes, path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
        rows = [_without_nulls(row) for row in table.to_pylist()]
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet file: {error}; write it anew, or name it after what it is") from None
    if not rows:
        raise UserError(f"{path}: the file has no rows")
    return rows


def _without_nulls(value: Any) -> Any:
    """A table and its structs have every field in every row, null where the row was written without it."""
    match value:
        case dict():
            return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
        case list():
            return [_without_nulls(inner) for inner in value]
    return value
