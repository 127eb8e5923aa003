"""Rows: where they stand, what their columns hold, and how mistakes in them are told."""

import re

import pytest

from tunix_lab.data.files import read_rows
from tunix_lab.data.rows import Rows, column, content_hash, count_repeats, each, place_of, prompt_column, text_column
from tunix_lab.errors import UserError


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": "b"}\n{"text": "c", "id": 3}\n', "utf-8")
    return read_rows(path)


def test_places_follow_the_rows(rows):
    assert place_of(rows, 1) == f"{rows.path}:3"
    assert place_of(rows[1:], 0) == f"{rows.path}:3" and isinstance(rows[1:], Rows)
    assert [place_of(rows.take([2, 0]), i) for i in range(2)] == [f"{rows.path}:4", f"{rows.path}:1"]
    assert [row["text"] for row in rows.take([2, 0])] == ["c", "a"]
    assert place_of([{"text": "a"}], 0) == "row 0"


def test_columns():
    row = {"promt": "a", "n": 1}
    with pytest.raises(UserError, match=r"column 'prompt' is missing; the row has 'promt', 'n' \(did you mean 'promt'\?\)"):
        column(row, "prompt")
    with pytest.raises(UserError, match="column 'n' must be text, got int"):
        text_column(row, "n")
    with pytest.raises(UserError, match="column 'prompt' must be text or a list of messages, got int"):
        prompt_column({"prompt": 3})


def test_named_columns_stand_beside_the_others(rows):
    named = rows.named({"prompt": "text"})
    assert named[2] == {"text": "c", "id": 3, "prompt": "c"} and place_of(named, 2) == place_of(rows, 2)
    assert rows.named({}) is rows


def test_messages_of_the_file_do_not_hide_the_columns_that_were_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"messages": [], "q": "a"}\n', "utf-8")
    assert read_rows(path, {"prompt": "q"})[0] == {"q": "a", "prompt": "a"}
    assert read_rows(path, {"messages": "q"})[0] == {"q": "a", "messages": "a"}


def test_a_named_column_that_is_missing(rows):
    with pytest.raises(UserError) as caught:
        rows.named({"prompt": "txt"})
    assert str(caught.value).splitlines() == [
        f"{rows.path}:1: column 'txt' is missing; the row has 'text' (did you mean 'text'?) (and so in 1 more rows)",
        f"{rows.path}:4: column 'txt' is missing; the row has 'text', 'id' (did you mean 'text'?)",
    ]


def refuse(row):
    raise UserError(f"no {row['n']}")


def test_the_first_few_bad_rows_are_told_at_once():
    rows = [{"n": i} for i in range(9)]
    with pytest.raises(UserError) as caught:
        each(rows, refuse)
    told = str(caught.value).splitlines()
    assert told == [f"row {i}: no {i}" for i in range(5)] + ["and perhaps more in the 4 rows after these"]
    with pytest.raises(UserError, match=re.escape("row 4: no 4") + "$"):
        each(rows[:5], refuse)
    assert each(rows, lambda row: row["n"] * 2) == list(range(0, 18, 2))


def test_content_is_what_training_reads():
    row = {"prompt": "a", "completion": "b"}
    same = [{"completion": "b", "prompt": "a"}, row | {"id": 7}, row | {"answer": "b"}]
    other = [row | {"completion": "c"}, {"prompt": "b", "completion": "a"}, {"text": "a"}, {"prompt": "ab", "completion": ""}]
    assert {content_hash(r) for r in same} == {content_hash(row)}
    assert len({content_hash(r) for r in [row, *other]}) == 5
    turn = {"role": "user", "content": "a"}
    assert content_hash({"messages": [turn]}) == content_hash({"messages": [{"content": "a", "role": "user"}]})
    assert content_hash(row, "1") != content_hash(row, "2")
    assert count_repeats([row, *same, *other]) == 3
