"""The cache of tokenised data: what its key knows, and that what comes out is what went in."""

import json
import os

import numpy as np
import pytest

from tunix_lab.data.cache import cache_key, remembered, transform_version
from tunix_lab.data.examples import sft_examples
from tunix_lab.data.files import read_rows
from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.errors import EnvironmentProblem, UserError

OPTIONS = {"kind": "chat", "max_length": 64}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 1, "prompt": "How many pens?", "completion": "7"}\n', "utf-8")
    return path


def test_cache_key(path, tokenizer, variant, tmp_path):
    rows = read_rows(path)
    key = cache_key(rows, tokenizer.digest(), OPTIONS, "v1")
    # path, time, format of the file and what training does not read: hit
    moved = path.rename(tmp_path / "moved.jsonl")
    os.utime(moved, (0, 0))
    assert cache_key(read_rows(moved), tokenizer.digest(), OPTIONS, "v1") == key
    table = tmp_path / "rows.csv"
    table.write_text("completion,prompt\n7,How many pens?\n", "utf-8")
    assert cache_key(read_rows(table), tokenizer.digest(), OPTIONS, "v1") == key
    tokenizer.save(tmp_path / "copy")
    assert cache_key(rows, Tokenizer.load(tmp_path / "copy").digest(), OPTIONS, "v1") == key
    # template, tokenizer, a byte of data, how it is used, the code: miss
    template = (tokenizer.folder / "chat_template.jinja").read_text("utf-8")
    moved.write_text(moved.read_text("utf-8").replace("7", "8"), "utf-8")
    others = [
        cache_key(rows, variant(template + " ").digest(), OPTIONS, "v1"),
        cache_key(rows, variant(pad_token="<eos>").digest(), OPTIONS, "v1"),
        cache_key(read_rows(moved), tokenizer.digest(), OPTIONS, "v1"),
        cache_key([*rows, *rows], tokenizer.digest(), OPTIONS, "v1"),
        cache_key(rows, tokenizer.digest(), OPTIONS | {"max_length": 32}, "v1"),
        cache_key(rows, tokenizer.digest(), OPTIONS, "v2"),
    ]
    assert len({key, *others}) == 7


def test_the_version_is_that_of_the_code(monkeypatch, tmp_path):
    from tunix_lab.data import cache

    first = transform_version()
    assert len(first) == 64 and transform_version() == first
    (tmp_path / "chat.py").write_text("changed\n")
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "cache.py"))
    assert transform_version() != first


def test_what_is_kept_is_what_was_made(tmp_path, tokenizer, sft_rows):
    made = sft_examples(sft_rows, tokenizer, 54, "drop")
    calls = []

    def make():
        calls.append(1)
        return made

    for _ in range(2):
        examples, ledger = remembered(tmp_path / "cache", "k", make)
        assert ledger == made[1]
        for ours, theirs in zip(examples, made[0], strict=True):
            assert all(np.array_equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in theirs)
    assert len(calls) == 1
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["k.npz"]
    remembered(tmp_path / "cache", "other", make)
    remembered(None, "k", make)
    assert len(calls) == 3


def test_a_file_that_was_cut_short_is_made_again(tmp_path, tokenizer, sft_rows):
    made = sft_examples(sft_rows[:4], tokenizer, 64)
    remembered(tmp_path, "k", lambda: made)
    whole = (tmp_path / "k.npz").read_bytes()
    for content in (b"", whole[:100], whole[:-100], whole[:2000] + b"x" + whole[2001:]):
        (tmp_path / "k.npz").write_bytes(content)
        examples, ledger = remembered(tmp_path, "k", lambda: made)
        assert ledger == made[1] and np.array_equal(examples[3]["input_tokens"], made[0][3]["input_tokens"])
    assert json.dumps(ledger.summary())


def test_a_mistake_is_not_kept(tmp_path, tokenizer):
    def make():
        return sft_examples([{"prompt": "a"}], tokenizer, 64)

    for _ in range(2):
        with pytest.raises(UserError, match="column 'completion' is missing"):
            remembered(tmp_path, "k", make)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path, tokenizer, sft_rows):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot be kept there: .*; make room, or set TUNIX_LAB_CACHE_DIR"):
        remembered(tmp_path / "file", "k", lambda: sft_examples(sft_rows[:2], tokenizer, 64))
