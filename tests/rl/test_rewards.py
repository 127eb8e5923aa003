"""Rewards in one process: fractions, weights, names, what functions are called with."""

import functools
import types

import numpy as np
import pytest

from tunix_lab.rl.rewards import distinct, in_process, name_of, score, total
from tunix_lab.tasks.arithmetic import exact_match

PROMPTS, COMPLETIONS = ["p", "p", "q", "q"], ["a", "bb", "ccc", ""]


def length(prompts, completions, **columns):
    return [len(c) / 4 for c in completions]


def test_fractions_stay_fractions():
    rewards = score([length], PROMPTS, COMPLETIONS, {})
    assert rewards["length"].dtype == np.float32 and rewards["length"].tolist() == [0.25, 0.5, 0.75, 0.0]


@pytest.mark.parametrize(
    "values",
    [
        (1, True, np.float32(0.5), np.array(0.25)),
        np.array([1.0, 1.0, 0.5, 0.25]),
        [np.int64(1), np.bool_(True), 0.5, np.float16(0.25)],
    ],
)
def test_numbers_of_any_kind(values):
    assert score(lambda **_: values, PROMPTS, COMPLETIONS, {})["<lambda>"].tolist() == [1.0, 1.0, 0.5, 0.25]


def test_columns_reach_the_function_as_lists():
    seen = {}

    def spy(prompts, completions, answer, matrix, **columns):
        seen.update(prompts=prompts, answer=answer, matrix=matrix, others=columns)
        return [0.0] * 4

    columns = {"answer": np.array(["1", "2", "3", "4"]), "matrix": np.arange(8).reshape(4, 2), "tag": ("x", "y", "z", None)}
    score(spy, PROMPTS, COMPLETIONS, columns)
    assert seen["prompts"] == PROMPTS and seen["answer"] == ["1", "2", "3", "4"] and type(seen["answer"][0]) is str
    assert [row.tolist() for row in seen["matrix"]] == [[0, 1], [2, 3], [4, 5], [6, 7]]  # a row stays a row
    assert seen["others"] == {"tag": ["x", "y", "z", None]}


def test_nothing_that_is_given_changes():
    """A function that spoils its arguments, and the list of functions itself."""

    def vandal(prompts, completions, answer):
        prompts.clear()
        answer.append("5")
        return [0.0] * 4

    functions, answer = [vandal, exact_match], ["1"] * 4
    score(functions, PROMPTS, COMPLETIONS, {"answer": answer})
    assert functions == [vandal, exact_match] and answer == ["1"] * 4 and PROMPTS == ["p", "p", "q", "q"]


def test_weights():
    # 2 · 0.25, −1 · 1 for each; their sum
    one = functools.partial(lambda value, prompts, completions: [value] * len(completions), 1.0)
    rewards = score([length, one], PROMPTS, COMPLETIONS, {}, weights=[2.0, -1.0])
    assert list(rewards) == ["length", "<lambda>"]
    assert total(rewards).tolist() == [-0.5, 0.0, 0.5, -1.0] and total(rewards).dtype == np.float32
    with pytest.raises(ValueError, match="1 weights for 2 reward functions"):
        in_process([length, one], weights=[1.0])


class Judge:
    def __call__(self, prompts, completions, **columns):
        return [1.0] * len(completions)

    def verdict(self, prompts, completions, **columns):
        return [2.0] * len(completions)


def test_names():
    named = types.FunctionType(length.__code__, {}, "made")
    functions = [length, functools.partial(functools.partial(length, x=1), y=2), Judge(), Judge().verdict, named, len, dict]
    assert [name_of(f) for f in functions] == ["length", "length", "Judge", "verdict", "made", "len", "dict"]
    assert distinct(["a", "b", "a", "a_2", "a"]) == ["a", "b", "a_2", "a_2_2", "a_3"]
    rewards = score([length, Judge(), functools.partial(length, x=1)], PROMPTS, COMPLETIONS, {})
    assert list(rewards) == ["length", "Judge", "length_2"]


def test_no_answers_and_no_functions():
    assert score(length, [], [], {})["length"].shape == (0,)
    assert in_process(None).names == [] and in_process(None).score(PROMPTS, COMPLETIONS, {}) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((PROMPTS[:3], COMPLETIONS, {}), "3 prompts for 4 completions"),
        ((PROMPTS, COMPLETIONS, {"answer": ["1"]}), "1 answer for 4 completions"),
        ((PROMPTS, COMPLETIONS, {"prompts": PROMPTS}), "no column for rewards can be named 'prompts'"),
        ((PROMPTS, COMPLETIONS, {}, 3), "4 completions are not groups of 3"),
    ],
)
def test_arguments_that_do_not_belong_together(arguments, message):
    with pytest.raises(ValueError, match=message):
        score(length, *arguments)
