"""Reading JSON Lines: what is accepted, and how each mistake is named."""

import hashlib
import re

import pytest

from tunix_lab.data.rows import Rows, column, place_of, prompt_column, read_rows, text_column
from tunix_lab.errors import UserError


def write(tmp_path, content: bytes):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    return path


def test_rows_know_their_lines(tmp_path):
    path = write(tmp_path, b'\xef\xbb\xbf{"text": "a"}\r\n\n{"text": "b\\u2028"}')
    rows = read_rows(path)
    assert [row["text"] for row in rows] == ["a", "b\u2028"]
    assert place_of(rows, 1) == f"{path}:3"
    assert place_of(rows[1:], 0) == f"{path}:3" and isinstance(rows[1:], Rows)
    assert place_of([{"text": "a"}], 0) == "row 0"
    assert rows.digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ": the file is empty"),
        (b"\n \n", ": the file is empty"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', ":2: byte 11 is not UTF-8; save the file as UTF-8"),
        (b'{"text": "a"}\n{"text": \n}\n', ":2:10: not JSON: Expecting value; one whole JSON object must stand on each line"),
        (b"text\n", ":1:1: not JSON: Expecting value"),
        (b"[1]\n", ":1: a row must be a JSON object such as {...}, got list"),
        (b"[" * 100_000, ":1: nested too deeply"),
    ],
)
def test_bad_files(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=re.escape(f"{path}{message}")):
        read_rows(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl: no such file; make it .*dvc repro"):
        read_rows(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read_rows(tmp_path)


def test_columns():
    row = {"promt": "a", "n": 1}
    with pytest.raises(UserError, match=r"column 'prompt' is missing; the row has 'promt', 'n' \(did you mean 'promt'\?\)"):
        column(row, "prompt")
    with pytest.raises(UserError, match="column 'n' must be text, got int"):
        text_column(row, "n")
    with pytest.raises(UserError, match="column 'prompt' must be text or a list of messages, got int"):
        prompt_column({"prompt": 3})
