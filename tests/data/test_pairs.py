"""Preference examples: prompt and responses as supervised training sees them, padded to their sides."""

import re

import numpy as np
import pytest

from tunix_lab.data.chat import render_chat, render_prompt
from tunix_lab.data.pairs import preference_examples, tokenize_pairs
from tunix_lab.errors import UserError

ROW = {"prompt": "How many pens?", "chosen": "<answer>7</answer>", "rejected": "<answer>12</answer> or so"}


def parts(example):
    return [example[f"{name}_ids"][example[f"{name}_mask"]].tolist() for name in ("prompt", "chosen", "rejected")]


def test_shapes_and_sides(tokenizer):
    (example,), _ = preference_examples([ROW], tokenizer, 24, 16)
    assert {name: (a.shape, str(a.dtype)) for name, a in example.items()} == {
        "prompt_ids": ((24,), "int32"),
        "prompt_mask": ((24,), "bool"),
        "chosen_ids": ((16,), "int32"),
        "chosen_mask": ((16,), "bool"),
        "rejected_ids": ((16,), "int32"),
        "rejected_mask": ((16,), "bool"),
    }
    assert example["prompt_mask"][-1] and not example["prompt_mask"][0]
    assert example["chosen_mask"][0] and not example["chosen_mask"][-1]
    assert (np.diff(example["prompt_mask"].astype(int)) >= 0).all()
    assert (np.diff(example["chosen_mask"].astype(int)) <= 0).all()


def test_prompt_and_response_are_the_rendered_chat(tokenizer):
    (example,), _ = preference_examples([ROW], tokenizer, 24, 16)
    prompt, *responses = parts(example)
    assert prompt == render_prompt(tokenizer, ROW["prompt"]).tolist()
    for name, response in zip(("chosen", "rejected"), responses, strict=True):
        turns = [{"role": "user", "content": ROW["prompt"]}, {"role": "assistant", "content": ROW[name]}]
        whole = render_chat(tokenizer, turns)
        assert prompt + response == whole.ids[: len(prompt) + len(response)].tolist()
        assert response == whole.ids[whole.mask].tolist()


def test_responses_given_as_chats(tokenizer):
    """The last turn counts; what stands before it must be the prompt."""
    turns = [{"role": "user", "content": ROW["prompt"]}]
    chats = {name: [*turns, {"role": "assistant", "content": ROW[name]}] for name in ("chosen", "rejected")}
    plain, _ = preference_examples([ROW], tokenizer, 24, 16)
    for row in ({"prompt": ROW["prompt"], **chats}, {"prompt": turns, **{n: chat[1:] for n, chat in chats.items()}}):
        assert parts(preference_examples([row], tokenizer, 24, 16)[0][0]) == parts(plain[0])
    other = [{"role": "user", "content": "Something else?"}, chats["chosen"][1]]
    with pytest.raises(UserError, match="'chosen' is a chat whose turns before the answer are not those of column 'prompt'"):
        preference_examples([ROW | {"chosen": other}], tokenizer, 24, 16)
    with pytest.raises(UserError, match="'rejected' is a chat that does not end with an answer of the assistant"):
        preference_examples([ROW | {"rejected": turns}], tokenizer, 24, 16)


def test_pairs_that_prefer_nothing_may_be_left_out(tokenizer):
    same = ROW | {"rejected": ROW["chosen"]}
    examples, ledger = preference_examples([same, ROW, same], tokenizer, 24, 16, identical="drop")
    assert len(examples) == 1 and ledger.kept_rows == [1] and ledger.rows_dropped == 2
    assert ledger.tokens_in == ledger.trained + ledger.context + ledger.cut + ledger.dropped
    with pytest.raises(UserError, match="no row is left: all 1 .* or prefer nothing"):
        preference_examples([same], tokenizer, 24, 16, identical="drop")


def test_response_has_no_bos(tokenizer, preference_rows):
    for example in preference_examples(preference_rows, tokenizer, 48, 32)[0]:
        prompt, chosen, rejected = parts(example)
        assert prompt[0] == tokenizer.bos_id and prompt.count(tokenizer.bos_id) == 1
        assert tokenizer.bos_id not in chosen + rejected


def test_terminator_trained(tokenizer, preference_rows):
    for example in preference_examples(preference_rows, tokenizer, 48, 32)[0]:
        for response in parts(example)[1:]:
            assert response[-1] == tokenizer.end_of_turn_id
            assert response.count(tokenizer.end_of_turn_id) == 1


@pytest.mark.parametrize("pad", ["<end_of_turn>", "<eos>"])
def test_pad_equals_eos(tokenizer, variant, pad):
    plain, changed = (parts(preference_examples([ROW], t, 24, 16)[0][0]) for t in (tokenizer, variant(pad_token=pad)))
    assert plain == changed


def test_earlier_turns_of_the_assistant_belong_to_the_prompt(tokenizer):
    turns = [
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": "7"},
        {"role": "user", "content": "And now?"},
    ]
    (example,), ledger = preference_examples([ROW | {"prompt": turns}], tokenizer, 64, 16)
    prompt, chosen, _ = parts(example)
    assert prompt == render_prompt(tokenizer, turns).tolist()
    assert tokenizer.decode(chosen) == ROW["chosen"]
    assert ledger.context == len(prompt)


def test_overlong_policy(tokenizer):
    (example,), _ = preference_examples([ROW], tokenizer, 64, 64)
    n_prompt, n_chosen, n_rejected = map(len, parts(example))
    assert n_rejected > n_chosen
    fits = n_prompt, n_rejected
    preference_examples([ROW], tokenizer, *fits)
    message = (
        f"train: 1 of 1 responses are longer than algorithm.max_response_length = {n_rejected - 1}; the longest has {n_rejected} "
        f"tokens (row 0). Set algorithm.max_response_length to {n_rejected} to fit all, or choose data.overlong: drop | truncate"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        preference_examples([ROW], tokenizer, n_prompt, n_rejected - 1)
    (cut,), ledger = preference_examples([ROW], tokenizer, n_prompt, n_rejected - 1, "truncate")
    assert parts(cut)[2] == parts(example)[2][:-1]
    assert not set(parts(cut)[2]) & tokenizer.stop_ids
    assert (ledger.rows_cut, ledger.cut) == (1, 1)
    two, ledger = preference_examples(
        [ROW, ROW | {"rejected": "<answer>8</answer>"}], tokenizer, n_prompt, n_rejected - 1, "drop"
    )
    assert len(two) == 1 and ledger.kept_rows == [1] and ledger.dropped == n_prompt + n_chosen + n_rejected


@pytest.mark.parametrize("overlong", ["error", "truncate"])
def test_prompts_are_never_cut(tokenizer, overlong):
    with pytest.raises(
        UserError, match=r"1 of 1 prompts are longer than algorithm.max_prompt_length = 5; .*data.overlong: drop$"
    ):
        preference_examples([ROW], tokenizer, 5, 64, overlong)


@pytest.mark.parametrize("overlong", ["drop", "truncate"])
@pytest.mark.parametrize("max_response", [19, 40])
def test_ledger_conserves_tokens(tokenizer, preference_rows, overlong, max_response):
    # Answers that differ only in their last digits would be the same once cut.
    rows = [row for row in preference_rows if row["rejected"][:20] != row["chosen"][:20]]
    examples, ledger = preference_examples(rows, tokenizer, 48, max_response, overlong)
    everything, _ = preference_examples(rows, tokenizer, 48, 64)
    assert ledger.tokens_in == sum(len(part) for example in everything for part in parts(example))
    assert ledger.trained == sum(int(e["chosen_mask"].sum() + e["rejected_mask"].sum()) for e in examples)
    assert ledger.context == sum(int(e["prompt_mask"].sum()) for e in examples)
    assert ledger.tokens_in == ledger.trained + ledger.context + ledger.cut + ledger.dropped
    assert (ledger.cut + ledger.dropped > 0) == (max_response == 19)


def test_same_answers_are_refused(tokenizer):
    with pytest.raises(UserError, match="row 0: chosen and rejected are the same tokens"):
        preference_examples([ROW | {"rejected": ROW["chosen"]}], tokenizer, 64, 64)
    with pytest.raises(UserError, match=r"row 0: chosen and rejected are the same tokens once cut to 1, .*raise the limit"):
        preference_examples([ROW], tokenizer, 64, 1, "truncate")


def test_missing_column_is_named(tokenizer):
    with pytest.raises(UserError, match="row 0: column 'rejected' is missing; the row has 'prompt', 'chosen'"):
        preference_examples([{"prompt": "a", "chosen": "b"}], tokenizer, 64, 64)


# ---- rendered strings ------------------------------------------------------------------------------------------------------

LIMITS = {"max_prompt_length": 12, "max_response_length": 6}


def test_strings_become_the_same_arrays(tokenizer):
    rendered = tokenizer.decode(render_prompt(tokenizer, ROW["prompt"]), skip_special_tokens=False)
    answers = [[ROW[name] + "<end_of_turn>"] for name in ("chosen", "rejected")]
    batch = tokenize_pairs(tokenizer, [rendered], *answers, max_prompt_length=24, max_response_length=16)
    (example,), _ = preference_examples([ROW], tokenizer, 24, 16)
    assert set(batch) == set(example)
    assert all(np.array_equal(batch[name][0], example[name]) for name in batch)


def test_strings_get_one_bos_and_a_terminator(tokenizer):
    batch = tokenize_pairs(tokenizer, ["Mia", "<bos>Mia"], ["7", "7<eos>"], ["8", "8<end_of_turn>"], **LIMITS)
    for row, last in ((0, 1), (1, 5)):
        prompt, chosen, rejected = parts({name: array[row] for name, array in batch.items()})
        assert prompt == [2, *tokenizer.encode("Mia")]
        assert chosen == [*tokenizer.encode("7"), 1]
        assert rejected == [*tokenizer.encode("8"), last]


def test_prompt_boundary_tokens(tokenizer):
    with pytest.raises(UserError, match="row 0: a token reaches from the prompt into the response, near 'Mia ' "):
        tokenize_pairs(tokenizer, ["Mia "], ["has"], ["7"], **LIMITS)
    tokenize_pairs(tokenizer, ["Mia"], [" has"], [" 7"], **LIMITS)


def test_strings_that_cannot_be_used(tokenizer):
    with pytest.raises(UserError, match="row 0: the prompt spells BOS more than once"):
        tokenize_pairs(tokenizer, ["<bos>a<bos>"], ["7"], ["8"], **LIMITS)
    with pytest.raises(UserError, match="row 0: the response spells BOS"):
        tokenize_pairs(tokenizer, ["a"], ["<bos>7"], ["8"], **LIMITS)
    with pytest.raises(
        UserError, match=r"1 of 1 responses are longer than algorithm.max_response_length = 6; the longest has 10"
    ):
        tokenize_pairs(tokenizer, ["a"], ["123456789"], ["8"], **LIMITS)
