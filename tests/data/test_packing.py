"""Packing: what shares a row, what is said of each segment, and that no token is lost."""

import numpy as np
import pytest

from tunix_lab.data.examples import sft_examples, text_examples
from tunix_lab.data.packing import first_fit_decreasing, pack
from tunix_lab.data.show import parts_of


def test_first_fit_decreasing_by_hand():
    # Longest first: 4 (bin 0, 1 left), 3a (bin 1, 2 left), 3b (bin 2, 2 left), 2a (bin 1 is the first with 2 left), 2b (bin 2),
    # 1 (bin 0), and the last 1 finds bins 0, 1 and 2 full.
    lengths = [2, 3, 1, 4, 3, 2, 1]
    assert first_fit_decreasing(lengths, 5) == [[3, 2], [1, 0], [4, 5], [6]]
    assert first_fit_decreasing([], 5) == []
    assert first_fit_decreasing([5, 5], 5) == [[0], [1]]
    with pytest.raises(ValueError, match="an item of 6 fits into no bin"):
        first_fit_decreasing([6], 5)


def test_first_fit_decreasing_is_the_plain_rule():
    """The tree finds what a walk over all bins finds."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths = rng.integers(1, 20, rng.integers(1, 60)).tolist()
        room, bins = [], []
        for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            chosen = next((b for b, left in enumerate(room) if left >= lengths[item]), len(bins))
            if chosen == len(bins):
                room.append(20)
                bins.append([])
            room[chosen] -= lengths[item]
            bins[chosen].append(item)
        assert first_fit_decreasing(lengths, 20) == bins


def example(ids, mask, length=6):
    fill = length - len(ids)
    return {
        "input_tokens": np.array(ids + [0] * fill, np.int32),
        "input_mask": np.array([m == "x" for m in mask] + [False] * fill),
        "valid": np.array([True] * len(ids) + [False] * fill),
    }


def test_a_packed_row_by_hand():
    # The pad id 7 is also a real token, in the middle; a mask that trains its first token, which no token precedes.
    packed = pack([example([5, 6], ".x"), example([7, 7, 9], "xxx")], pad_id=7)
    assert packed.members == [[1, 0]]
    (row,) = packed.examples
    assert {name: (array.tolist(), array.dtype) for name, array in row.items()} == {
        "input_tokens": ([7, 7, 9, 5, 6, 7], np.int32),
        "input_mask": ([False, True, True, False, True, False], bool),
        "valid": ([True] * 5 + [False], bool),
        "segment_ids": ([1, 1, 1, 2, 2, 0], np.int32),
        "positions": ([0, 1, 2, 0, 1, 0], np.int32),
    }


@pytest.mark.parametrize("make", [sft_examples, text_examples])
def test_every_row_comes_out_as_it_went_in(tokenizer, sft_rows, make):
    rows = sft_rows if make is sft_examples else [{"text": row["prompt"]} for row in sft_rows]
    examples, ledger = make(rows, tokenizer, 128)
    packed = pack(examples, tokenizer.pad_id)
    assert sorted(i for members in packed.members for i in members) == list(range(len(rows)))
    assert len(packed.examples) < len(examples) * 0.6
    for row, members in zip(packed.examples, packed.members, strict=True):
        for number, i in enumerate(members, start=1):
            here, real = row["segment_ids"] == number, examples[i]["valid"]
            assert row["input_tokens"][here].tolist() == examples[i]["input_tokens"][real].tolist()
            assert row["input_mask"][here].tolist() == examples[i]["input_mask"][real].tolist()
            assert row["positions"][here].tolist() == list(range(int(real.sum())))
        assert np.array_equal(row["segment_ids"] > 0, row["valid"])
    # test_ledger_conserves_tokens, through packing
    assert ledger.trained == sum(int(row["input_mask"].sum()) for row in packed.examples)
    assert ledger.trained + ledger.context == sum(int(row["valid"].sum()) for row in packed.examples)


def test_the_first_token_of_a_segment_is_never_a_target(tokenizer, variant):
    for reader in (tokenizer, variant(bos_token=None)):
        examples, ledger = text_examples([{"text": "Mia has 7"}, {"text": "Mia finds 5"}], reader, 32)
        (row,) = pack(examples, reader.pad_id).examples
        starts = row["valid"] & (row["positions"] == 0)
        assert starts.sum() == 2 and not row["input_mask"][starts].any()
        assert row["input_mask"].sum() == row["valid"].sum() - 2 == ledger.trained


def test_parts_for_people(tokenizer, sft_rows):
    examples, _ = sft_examples(sft_rows[:2], tokenizer, 128)
    (row,) = pack(examples, tokenizer.pad_id).examples
    first, second = parts_of(row, tokenizer)
    assert (first.name, second.name) == ("segment 1", "segment 2")
    assert [len(part.tokens) for part in (first, second)] == [(row["segment_ids"] == n).sum() for n in (1, 2)]
    assert (first.padding, second.padding) == (0, (~row["valid"]).sum())
    assert first.tokens[0] == second.tokens[0] == "<bos>" and not first.trained[0] and any(second.trained)


def test_packing_is_the_same_every_time(tokenizer, sft_rows):
    examples, _ = sft_examples(sft_rows, tokenizer, 256)
    assert pack(examples, 0).members == pack(examples, 0).members
