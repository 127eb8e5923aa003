"""Reading JSON Lines, CSV and Parquet: what is accepted, and how each mistake is named."""

import hashlib
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunix_lab.data.examples import sft_examples
from tunix_lab.data.files import read_rows
from tunix_lab.data.rows import place_of
from tunix_lab.errors import UserError


def write(tmp_path, content: bytes, name: str = "rows.jsonl"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def parquet(tmp_path, columns, name: str = "rows.parquet"):
    pq.write_table(pa.table(columns), tmp_path / name)
    return tmp_path / name


def message_of(path, columns=None) -> str:
    with pytest.raises(UserError) as caught:
        read_rows(path, columns)
    return str(caught.value)


# ---- JSON Lines ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.ndjson", "rows.json", "ROWS.JSONL"])
def test_rows_know_their_lines(tmp_path, name):
    path = write(tmp_path, b'\xef\xbb\xbf{"text": "a"}\r\n\n{"text": "b\\u2028"}', name)
    rows = read_rows(path)
    assert [row["text"] for row in rows] == ["a", "b\u2028"]
    assert place_of(rows, 1) == f"{path}:3"
    assert rows.digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ": the file is empty"),
        (b"\n \n", ": the file is empty"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', ":2: byte 11 is not UTF-8; save the file as UTF-8"),
        (b"text\n", ":1:1: not JSON: Expecting value"),
        (b"[1]\n", ":1: a row must be a JSON object such as {...}, got list"),
        (b"[" * 100_000, ":1: nested too deeply"),
    ],
)
def test_bad_files(tmp_path, content, message):
    path = write(tmp_path, content)
    assert message_of(path).startswith(f"{path}{message}")


def test_all_bad_lines_are_told_at_once_up_to_a_few(tmp_path):
    path = write(tmp_path, b'{"text": "a"}\n{"text": \n}\n{"text": "\xff"}\n{"text": "b"}\n')
    assert message_of(path).splitlines() == [
        f"{path}:2:10: not JSON: Expecting value; one whole JSON object must stand on each line",
        f"{path}:3:1: not JSON: Expecting value",
        f"{path}:4: byte 11 is not UTF-8; save the file as UTF-8",
    ]
    lines = message_of(write(tmp_path, b"x\n" * 9)).splitlines()
    assert len(lines) == 6 and lines[-1] == f"{path}: and 4 more lines like these"


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl: no such file; make it .*dvc repro"):
        read_rows(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read_rows(tmp_path)


@pytest.mark.parametrize(("name", "suffix"), [("rows.txt", ".txt"), ("rows", "(none)"), ("rows.jsonl.gz", ".gz")])
def test_a_suffix_that_names_no_format(tmp_path, name, suffix):
    path = write(tmp_path, b'{"text": "a"}\n', name)
    assert message_of(path) == (
        f"{path}: the suffix {suffix!r} names no format that is read; there are .jsonl, .ndjson, .json, .csv, .parquet"
    )


# ---- CSV -------------------------------------------------------------------------------------------------------------------


def test_csv_values_are_text_and_rows_know_their_lines(tmp_path):
    content = b'\xef\xbb\xbfprompt,completion\r\n"two\nlines, ""x""",007\r\n\r\nb,\xc3\xa9\r\n'
    path = write(tmp_path, content, "rows.csv")
    rows = read_rows(path)
    assert list(rows) == [{"prompt": 'two\nlines, "x"', "completion": "007"}, {"prompt": "b", "completion": "é"}]
    assert [place_of(rows, i) for i in range(2)] == [f"{path}:2", f"{path}:5"]
    assert read_rows(path, {"text": "prompt"})[1]["text"] == "b"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ":1: the first line of a CSV file must name its columns, and none of these is read: nothing; there are text, "),
        (
            b"How many pens are there now, Mia?,7\nWhy?,8\n",
            ":1: the first line of a CSV file must name its columns, and none of these is read: 'How many pens are there now',"
            " ' Mia?', '7'; there are text, messages, prompt, completion, chosen, rejected, or say with data.columns what",
        ),
        (b"prompt,completion\n", ": the file has no rows"),
        (b"prompt,prompt\na,b\n", ":1: the column 'prompt' is there twice"),
        (b"prompt,completion\na,b\na,b,c\n", ":3: 3 values for 2 columns (prompt, completion); put values that hold a comma"),
        (b"prompt,completion\na\n", ":2: 1 values for 2 columns"),
        (b'prompt,completion\n"a"b,c\n', ":2: not CSV: "),
        (b'prompt,completion\n"a,b\n', ":2: not CSV: unexpected end of data; mend the quotes"),
        (b"prompt,completion\na,b\na,\xff\n", ":3: byte 0xff is not UTF-8; save the file as UTF-8"),
    ],
)
def test_bad_csv(tmp_path, content, message):
    path = write(tmp_path, content, "rows.csv")
    assert message_of(path).startswith(f"{path}{message}")


def test_a_csv_header_may_be_the_files_own(tmp_path):
    path = write(tmp_path, b"question,answer\na,b\n", "rows.csv")
    assert "none of these is read: 'question', 'answer'" in message_of(path)
    assert read_rows(path, {"prompt": "question"})[0]["prompt"] == "a"


# ---- Parquet ---------------------------------------------------------------------------------------------------------------


def test_parquet_rows_are_counted(tmp_path, tokenizer):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "name": "x"}]
    path = parquet(tmp_path, {"messages": [turns, turns[::-1]], "text": ["a", None]})
    rows = read_rows(path)
    assert rows[0] == {"messages": turns, "text": "a"} and "text" not in rows[1]  # and no name: None in a turn
    assert place_of(rows, 1) == f"{path}:row 2"
    assert rows.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UserError, match=re.escape(f"{path}:row 2: chat: ")):
        sft_examples(rows, tokenizer, 64)


def test_bad_parquet(tmp_path):
    path = write(tmp_path, b'{"text": "a"}\n', "rows.parquet")
    assert re.match(re.escape(f"{path}: not a Parquet file: ") + ".*name it after what it is$", message_of(path))
    path = parquet(tmp_path, {"text": ["a"] * 1000})
    path.write_bytes(path.read_bytes()[:-20])
    assert "not a Parquet file" in message_of(path)
    assert message_of(parquet(tmp_path, {"text": pa.array([], pa.string())})).endswith("the file has no rows")
    wrong = parquet(tmp_path, {"txt": ["a"]})
    assert message_of(wrong, {"text": "tx"}) == f"{wrong}:row 1: column 'tx' is missing; the row has 'txt' (did you mean 'txt'?)"


def test_the_same_rows_in_every_format(tmp_path):
    rows = [{"prompt": "a", "completion": "1"}, {"prompt": "b", "completion": "2"}]
    lines = write(tmp_path, b'{"prompt": "a", "completion": "1"}\n{"prompt": "b", "completion": "2"}\n')
    table = write(tmp_path, b"prompt,completion\na,1\nb,2\n", "rows.csv")
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    assert list(read_rows(lines)) == list(read_rows(table)) == list(read_rows(parquet(tmp_path, columns))) == rows
