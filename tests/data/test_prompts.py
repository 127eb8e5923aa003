"""Rows as prompts to be answered: rendered as chat training shows them, counted, and never cut."""

import numpy as np
import pytest

from tunix_lab.data.chat import render_chat, render_prompt
from tunix_lab.data.prompts import prompt_examples, prompt_ids, prompt_text
from tunix_lab.errors import UserError

MESSAGES = [
    {"role": "user", "content": "1 + 1"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "and 1 more?"},
]


def test_a_prompt_is_what_training_shows_before_the_answer(tokenizer):
    rows = [{"prompt": "2 + 3", "answer": "5"}, {"prompt": MESSAGES}]
    examples, ledger = prompt_examples(rows, tokenizer, 48)
    trained = render_chat(tokenizer, [{"role": "user", "content": "2 + 3"}, {"role": "assistant", "content": "5"}])
    assert prompt_ids(examples[0]).tolist() == trained.ids[: trained.answer.start].tolist()
    assert prompt_ids(examples[1]).tolist() == render_prompt(tokenizer, MESSAGES).tolist()
    first = examples[0]
    assert first["prompt_ids"].shape == first["prompt_mask"].shape == (48,) and first["prompt_ids"].dtype == np.int32
    assert first["prompt_mask"][-1] and not first["prompt_mask"][0]  # padded on the left
    tokens = sum(len(prompt_ids(example)) for example in examples)
    counts = ledger.summary()
    assert counts["tokens_in"] == counts["context"] == tokens and counts["trained"] == counts["dropped"] == 0
    assert [prompt_text(row) for row in rows] == ["2 + 3", "and 1 more?"]


def test_other_columns_are_not_the_prompt(tokenizer):
    """A row of any other kind may be a prompt: only its `prompt` is read."""
    row = {"prompt": "2 + 3", "text": "something else", "messages": "not even messages", "completion": 5}
    (example,), _ = prompt_examples([row], tokenizer, 48)
    assert prompt_ids(example).tolist() == render_prompt(tokenizer, "2 + 3").tolist()


def test_longer_prompts(tokenizer):
    rows = [{"prompt": "1"}, {"prompt": "1 + 1 + 1 + 1 + 1 + 1"}, {"prompt": "2"}, {"prompt": "1"}]
    lengths = [len(render_prompt(tokenizer, row["prompt"])) for row in rows]
    assert lengths[1] > lengths[0] == lengths[2]
    with pytest.raises(UserError) as caught:
        prompt_examples(rows, tokenizer, lengths[0])
    assert str(caught.value) == (
        f"train: 1 of 4 prompts are longer than algorithm.rollout.max_prompt_length = {lengths[0]}; the longest has {lengths[1]} "
        f"tokens (row 1). Set algorithm.rollout.max_prompt_length to {lengths[1]} to fit all, or choose data.overlong: drop"
    )
    examples, ledger = prompt_examples(rows, tokenizer, lengths[0], "drop")
    assert ledger.kept_rows == [0, 2, 3] and ledger.rows_dropped == 1 and ledger.dropped == lengths[1]
    assert ledger.rows_duplicate == 1 and len(examples) == 3
    assert len(prompt_examples(rows, tokenizer, lengths[1])[0]) == 4
    with pytest.raises(UserError, match="train: no row is left: all 1 are longer than algorithm.rollout.max_prompt_length = 3"):
        prompt_examples(rows[1:2], tokenizer, 3, "drop")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a"}, "row 0: column 'prompt' is missing; the row has 'question'"),
        ({"prompt": 3}, "row 0: column 'prompt' must be text or a list of messages, got int"),
        ({"prompt": " "}, "row 0: column 'prompt' is empty"),
        ({"prompt": [{"role": "bot", "content": "a"}]}, "row 0: chat: a message is"),
        ({"prompt": "<start_of_turn>"}, "row 0: chat: a message spells the special token <start_of_turn>"),
    ],
)
def test_rows_that_are_no_prompts(tokenizer, row, message):
    with pytest.raises(UserError, match=message):
        prompt_examples([row], tokenizer, 48)
