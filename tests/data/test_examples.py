"""Supervised examples: masks, BOS and EOS, rows that are too long, and the ledger."""

import json
import re

import numpy as np
import pytest

from tunix_lab.data.chat import render_chat
from tunix_lab.data.examples import sft_examples, text_examples
from tunix_lab.data.files import read_rows
from tunix_lab.errors import UserError

ROWS = [
    {"prompt": "How many pens?", "completion": "<answer>7</answer>"},
    {"prompt": "How many pens are there now?", "completion": "<reasoning>7+5=12 12-4=8</reasoning><answer>8</answer>"},
]


def lengths(tokenizer):
    return [len(chat(tokenizer, row).ids) for row in ROWS]


def chat(tokenizer, row):
    turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
    return render_chat(tokenizer, turns)


def test_shapes_types_and_content(tokenizer):
    examples, _ = sft_examples(ROWS, tokenizer, 64)
    for example, row in zip(examples, ROWS, strict=True):
        assert {name: (a.shape, a.dtype) for name, a in example.items()} == {
            "input_tokens": ((64,), np.int32),
            "input_mask": ((64,), bool),
            "valid": ((64,), bool),
        }
        expected = chat(tokenizer, row)
        n = len(expected.ids)
        assert example["input_tokens"][:n].tolist() == expected.ids.tolist()
        assert example["input_mask"][:n].tolist() == expected.mask.tolist()
        assert example["valid"].tolist() == [True] * n + [False] * (64 - n)
        assert not example["input_mask"][n:].any()


def test_messages_and_prompt_completion_are_the_same(tokenizer):
    turns = [{"role": "user", "content": ROWS[0]["prompt"]}, {"role": "assistant", "content": ROWS[0]["completion"]}]
    forms = [ROWS[0], {"messages": turns}, {"prompt": turns[:1], "completion": turns[1]["content"]}]
    examples, _ = sft_examples(forms, tokenizer, 64)
    for example in examples[1:]:
        assert all(np.array_equal(example[name], examples[0][name]) for name in example)


def test_single_bos_in_text(tokenizer, variant):
    for text in ("Mia has 7", "<bos>Mia has 7", "<bos>Mia has 7<eos>"):
        examples, _ = text_examples([{"text": text}], tokenizer, 16)
        ids = examples[0]["input_tokens"][examples[0]["valid"]].tolist()
        assert ids == [2, *tokenizer.encode("Mia has 7"), 1]
    with pytest.raises(UserError, match="row 0: the text spells BOS more than once"):
        text_examples([{"text": "<bos><bos>x"}], tokenizer, 16)
    plain = variant(bos_token=None)
    examples, _ = text_examples([{"text": "Mia"}], plain, 8)
    assert examples[0]["input_tokens"][:2].tolist() == [*plain.encode("Mia"), 1]


def test_text_trains_everything_after_bos(tokenizer):
    examples, _ = text_examples([{"text": "Mia has 7"}], tokenizer, 16)
    n = len(tokenizer.encode("Mia has 7"))
    assert examples[0]["input_mask"].tolist() == [False] + [True] * (n + 1) + [False] * (14 - n)


@pytest.mark.parametrize("pad", ["<eos>", "<end_of_turn>", "<bos>"])
def test_pad_equals_eos(variant, pad):
    changed = variant(pad_token=pad)
    for example in (sft_examples(ROWS, changed, 64)[0][0], text_examples([{"text": "Mia has 7"}], changed, 64)[0][0]):
        real = example["valid"].sum()
        assert (example["input_tokens"][real:] == changed.pad_id).all()
        assert not example["input_mask"][real:].any()
    chat_row, text_row = sft_examples(ROWS, changed, 64)[0][0], text_examples([{"text": "Mia"}], changed, 64)[0][0]
    last = np.flatnonzero(chat_row["input_mask"])[-1]
    assert chat_row["input_tokens"][last] == changed.end_of_turn_id
    last = np.flatnonzero(text_row["input_mask"])[-1]
    assert text_row["input_tokens"][last] == changed.eos_id and last == text_row["valid"].sum() - 1


def test_overlong_policy_error(tokenizer):
    _, longest = lengths(tokenizer)
    sft_examples(ROWS, tokenizer, longest)
    message = (
        f"train: 1 of 2 rows are longer than data.max_length = {longest - 1}; the longest has {longest} tokens (row 1). "
        f"Set data.max_length to {longest} to fit all, or choose data.overlong: drop | truncate"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        sft_examples(ROWS, tokenizer, longest - 1)


def test_overlong_policy_drop(tokenizer):
    short, longest = lengths(tokenizer)
    examples, ledger = sft_examples(ROWS, tokenizer, short, "drop", split="validation")
    assert len(examples) == 1
    assert (ledger.split, ledger.rows_in, ledger.rows_dropped, ledger.dropped, ledger.cut) == ("validation", 2, 1, longest, 0)
    assert ledger.kept_rows == [0]
    with pytest.raises(UserError, match=f"train: no row is left: all 2 are longer than data.max_length = {short - 1}"):
        sft_examples(ROWS, tokenizer, short - 1, "drop")


def test_overlong_policy_truncate(tokenizer):
    short, longest = lengths(tokenizer)
    examples, ledger = sft_examples(ROWS, tokenizer, short, "truncate")
    assert (ledger.rows_cut, ledger.cut, ledger.dropped) == (1, longest - short, 0)
    whole = chat(tokenizer, ROWS[1])
    assert examples[1]["input_tokens"].tolist() == whole.ids[:short].tolist()
    # The answer was cut off, so it must not seem to end here.
    trained = examples[1]["input_tokens"][examples[1]["input_mask"]].tolist()
    assert trained and not set(trained) & tokenizer.stop_ids
    texts, _ = text_examples([{"text": "1 2 3 4 5"}], tokenizer, 5, "truncate")
    assert tokenizer.eos_id not in texts[0]["input_tokens"]


def test_truncation_never_eats_a_prompt(tokenizer):
    prompt = chat(tokenizer, ROWS[1]).answer.start
    with pytest.raises(UserError, match=rf"row 1: the prompt alone has {prompt} tokens and data.max_length is {prompt}"):
        sft_examples(ROWS, tokenizer, prompt, "truncate")
    sft_examples(ROWS, tokenizer, prompt + 1, "truncate")


@pytest.mark.parametrize("overlong", ["drop", "truncate"])
@pytest.mark.parametrize("max_length", [52, 54, 56, 64])
def test_ledger_conserves_tokens(tokenizer, sft_rows, overlong, max_length):
    examples, ledger = sft_examples(sft_rows, tokenizer, max_length, overlong)
    # Counted anew from rows and arrays, not from the ledger's own sums.
    assert ledger.tokens_in == sum(len(chat(tokenizer, row).ids) for row in sft_rows)
    assert ledger.trained == sum(int(example["input_mask"].sum()) for example in examples)
    assert ledger.trained + ledger.context == sum(int(example["valid"].sum()) for example in examples)
    assert ledger.tokens_in == ledger.trained + ledger.context + ledger.cut + ledger.dropped
    assert ledger.rows_in == len(sft_rows) == len(examples) + ledger.rows_dropped
    assert len(ledger.kept_rows) == len(examples)
    assert (ledger.cut + ledger.dropped > 0) == (max_length < 59)
    assert ledger.summary()["tokens_in"] == ledger.tokens_in


def test_row_mistakes_name_file_and_line(tokenizer, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [ROWS[0], {"prompt": "x", "completon": "y"}]), "utf-8")
    with pytest.raises(UserError, match=re.escape(f"{path}:2: column 'completion' is missing") + ".*did you mean 'completon'"):
        sft_examples(read_rows(path), tokenizer, 64)
    with pytest.raises(UserError, match="row 0: column 'messages' must be a list, got str"):
        sft_examples([{"messages": "hi"}], tokenizer, 64)
    with pytest.raises(UserError, match="row 0: chat: no message has the role assistant"):
        sft_examples([{"messages": [{"role": "user", "content": "hi"}]}], tokenizer, 64)
    with pytest.raises(UserError, match="row 0: column 'text' must be text, got int"):
        text_examples([{"text": 4}], tokenizer, 64)
