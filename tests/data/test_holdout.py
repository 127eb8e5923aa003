"""Which rows are held out: those that their content chooses, wherever they stand."""

import random

import pytest

from tunix_lab.data.holdout import held_out
from tunix_lab.errors import UserError

ROWS = [{"prompt": f"q{i}", "completion": f"a{i}", "id": i} for i in range(400)]


def chosen(rows, seed=0, **how):
    [flags] = held_out([rows], seed, **how)
    return {row["prompt"] for row, flag in zip(rows, flags, strict=True) if flag}


@pytest.mark.parametrize("how", [{"fraction": 0.1}, {"count": 40}])
def test_order_other_columns_and_sources_do_not_matter(how):
    expected = chosen(ROWS, **how)
    shuffled = random.Random(1).sample([row | {"id": -row["id"]} for row in ROWS], len(ROWS))
    assert chosen(shuffled, **how) == expected
    first, second = held_out([ROWS[:150], ROWS[150:]], 0, **how)
    assert {row["prompt"] for row, flag in zip(ROWS, first + second, strict=True) if flag} == expected


def test_seed():
    assert chosen(ROWS, 0, count=40) == chosen(ROWS, 0, count=40) != chosen(ROWS, 1, count=40)


def test_how_many():
    assert len(chosen(ROWS, count=40)) == 40
    assert len(chosen(ROWS, fraction=0.25)) == pytest.approx(100, abs=25)
    assert chosen(ROWS, fraction=0.1) < chosen(ROWS, fraction=0.3)  # a larger part holds the smaller one


def test_more_rows_move_none_from_one_side_to_the_other():
    assert chosen(ROWS[:200], fraction=0.2) == chosen(ROWS, fraction=0.2) & {row["prompt"] for row in ROWS[:200]}


@pytest.mark.parametrize("how", [{"fraction": 0.3}, {"count": 1}, {"count": 7}])
def test_copies_are_on_the_same_side(how):
    twice = [*ROWS[:20], *ROWS[:20]]
    [flags] = held_out([twice], 0, **how)
    assert flags[:20] == flags[20:]


@pytest.mark.parametrize(
    ("rows", "how", "message"),
    [
        (ROWS[:9], {"count": 9}, "data.validation: cannot hold 9 rows out of 9"),
        (ROWS[:3], {"fraction": 0.001}, r"data\.validation: of 3 rows none would be held out; say how many, as in \{rows: 100\}"),
        (ROWS[:3], {"fraction": 0.999}, "of 3 rows all would be held out"),
        (ROWS[:1] * 4, {"count": 1}, "of 4 rows all would be held out"),
    ],
)
def test_one_side_must_not_be_empty(rows, how, message):
    with pytest.raises(UserError, match=message):
        held_out([rows], 0, **how)
