"""Rollouts on disk: what was written is read, the same bytes each time, whole or not at all."""

import dataclasses
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from hand_made_rollouts import ANSWERS, PROMPTS, rollout

from tunix_lab.errors import EnvironmentProblem, UserError
from tunix_lab.lab.record.journal import Journal, read_events
from tunix_lab.lab.record.trajectories import (
    read_file,
    read_trajectories,
    record_trajectories,
    trajectory_files,
    write_trajectories,
)
from tunix_lab.lab.rollouts import as_json, groups_of, has_failed, ranked, rescore, select, token_texts


def assert_equal(a, b):
    for field in dataclasses.fields(a):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if left is not None and field.name in ("prompt_ids", "completion_ids", "sampler_logps", "trainer_logps", "advantages"):
            assert all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(left, right, strict=True)), field.name
        else:
            assert repr(left) == repr(right), field.name  # NaN equals itself here


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_what_was_written_is_read(tmp_path, mode):
    made = rollout(12, mode)
    path = write_trajectories(tmp_path, made)
    assert path == tmp_path / f"trajectories/{mode}-000012.parquet"
    assert_equal(made, read_file(path))
    row = pq.read_table(path).to_pylist()[0]
    assert row["rewards"] == {"exact_match": 1.0, "shape": 0.5} and row["columns"] == '{"answer": "2", "hard": false}'
    assert len(row["completion_ids"]) == len(row["sampler_logps"]) == len(ANSWERS[0][0]) + 1


def test_numbers_that_are_none_and_half_characters(tmp_path):
    made = rollout(
        rewards={"exact_match": [1.0, math.nan, 0.0, 1.0]}, reward=[1.0, math.nan, 0.0, 1.0],
        completions=["2", "\ud83d", "6", "é 😀"], columns={},
    )  # fmt: skip
    found = read_file(write_trajectories(tmp_path, made))
    assert found.completions == ["2", "?", "6", "é 😀"] and found.columns == {}
    assert math.isnan(found.rewards["exact_match"][1]) and math.isnan(found.reward[1]) and found.reward[2] == 0.0


def test_the_same_answers_are_the_same_bytes_and_replace_what_was_there(tmp_path):
    first = write_trajectories(tmp_path, rollout()).read_bytes()
    other = write_trajectories(tmp_path, rollout(completions=["9"] * 4)).read_bytes()
    assert first != other and write_trajectories(tmp_path, rollout()).read_bytes() == first
    assert [path.name for path in (tmp_path / "trajectories").iterdir()] == ["train-000000.parquet"]


def test_which_are_read_and_in_which_order(tmp_path):
    for step, mode in ((20, "train"), (0, "train"), (20, "eval"), (1000000, "train"), (0, "eval")):
        write_trajectories(tmp_path, rollout(step, mode))
    (tmp_path / "trajectories/notes.parquet").write_bytes(b"")
    places = [(0, "train"), (0, "eval"), (20, "train"), (20, "eval"), (1000000, "train")]
    assert list(trajectory_files(tmp_path)) == places
    assert [(r.step, r.mode) for r in read_trajectories(tmp_path)] == places
    assert [(r.step, r.mode) for r in read_trajectories(tmp_path, [20, 1000000], "train")] == [places[2], places[4]]
    assert list(read_trajectories(tmp_path / "nowhere")) == []


def test_the_journal_says_where_they_are(make_run):
    run_dir = make_run()
    with Journal.open(run_dir) as journal:
        record_trajectories(journal, rollout(4))
    [event] = [event for event in read_events(run_dir) if event["kind"] == "trajectories"]
    assert {k: event[k] for k in ("step", "mode", "path", "answers")} == {
        "step": 4,
        "mode": "train",
        "path": "trajectories/train-000004.parquet",
        "answers": 4,
    }


def test_files_that_cannot_be_read_or_written(tmp_path):
    path = write_trajectories(tmp_path, rollout())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="train-000000.parquet: cannot be read as trajectories"):
        read_file(path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/trajectories").write_text("a file")
    with pytest.raises(EnvironmentProblem, match="a/trajectories: cannot be written"):
        write_trajectories(tmp_path / "a", rollout())


# ---- what one looks for --------------------------------------------------------------------------------------------------


def test_groups():
    first, second = groups_of(rollout())
    assert (first.prompt, second.prompt) == PROMPTS
    assert [answer.completion for answer in second.answers] == list(ANSWERS[1])
    assert [(a.group, a.number, a.reward) for a in first.answers] == [(0, 0, 1.5), (0, 1, 0.5)]
    assert first.answers[0].rewards == {"exact_match": 1.0, "shape": 0.5} and first.answers[0].columns["answer"] == "2"
    assert first.mean == 1.0 and first.std == 0.5  # of 1.5 and 0.5
    broken = groups_of(rollout(reward=[math.nan, 1.0, math.nan, math.nan]))
    assert broken[0].mean == 1.0 and math.isnan(broken[1].mean)


def test_selection():
    rollouts = [rollout(0), rollout(1)]
    assert [(g.answers[0].step, g.prompt) for g in select(rollouts, prompt="2 + 3")] == [(0, PROMPTS[1]), (1, PROMPTS[1])]
    assert len(select(rollouts, prompt="WHAT IS")) == 4 and select(rollouts, prompt="how") == []
    assert [g.prompt for g in select([rollout(rewards={"f": [1, 1, 1, math.nan]})], failed="f")] == [PROMPTS[1]]
    answers = [answer for group in groups_of(rollout()) for answer in group.answers]
    assert [has_failed(answer, "exact_match") for answer in answers] == [False, True, True, False]
    with pytest.raises(UserError, match=r"no reward 'exactmatch' \(did you mean 'exact_match'\?\); there are exact_match, shape"):
        select(rollouts, failed="exactmatch")


def test_the_best_and_the_worst():
    answers = [a for group in groups_of(rollout(reward=[1.5, math.nan, 0.5, 1.0])) for a in group.answers]
    assert [a.completion for a in ranked(answers, best_first=True)] == ["2", "It is 5", "6", "3"]
    assert [a.completion for a in ranked(answers, best_first=False)] == ["6", "It is 5", "2", "3"]


def test_scored_again():
    asked = []

    def length(prompts, completions, answer, **columns):
        asked.append((prompts, answer, sorted(columns)))
        return [len(text) for text in completions]

    found = rescore([rollout(0), rollout(1)], length, None)
    assert [(r.answer.step, r.before, r.now) for r in found[:4]] == [(0, 1.5, 1.0), (0, 0.5, 1.0), (0, 0.5, 1.0), (0, 1.0, 7.0)]
    assert len(found) == 8 and asked[0] == ([PROMPTS[0]] * 2 + [PROMPTS[1]] * 2, ["2", "2", "5", "5"], ["hard"])
    same = rescore([rollout()], lambda prompts, completions, **columns: [0.25, 0.25, 0.25, 0.0], "shape", weight=2.0)
    assert [r.differs for r in same] == [False] * 4
    nothing = rescore([rollout(reward=[math.nan] * 4)], lambda p, c, **columns: [math.nan] * 3 + [1.0], None)
    assert [r.differs for r in nothing] == [False] * 3 + [True]


def fails(prompts, completions, **columns):
    raise ValueError("no such luck")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (fails, "train step 3: the reward failed with ValueError: no such luck"),
        (lambda p, c, **columns: [1.0], "train step 3: the reward gave 1 numbers for 4 answers; it must give one each"),
        (lambda p, c, **columns: [None] * 4, "train step 3: the reward failed with TypeError: "),
        (lambda p, c: [1.0] * 4, "train step 3: the reward failed with TypeError: .*unexpected keyword"),
    ],
)
def test_a_reward_that_fails(function, message):
    with pytest.raises(UserError, match=message):
        rescore([rollout(3)], function, None)


def test_an_answer_for_programs():
    answer = groups_of(rollout(reward=[math.nan] * 4))[0].answers[0]
    plain = as_json(answer)
    assert plain["reward"] is None and plain["rewards"] == {"exact_match": 1.0, "shape": 0.5} and plain["tokens"] == 2
    assert plain["completion_ids"] == [7, ord("2")] and plain["advantages"] == [1.0, 1.0]
    assert as_json(groups_of(rollout(mode="eval"))[0].answers[0])["trainer_logps"] is None


class _Bytes:
    """A tokenizer whose ids are bytes."""

    def decode(self, ids, *, skip_special_tokens):
        return bytes(ids).decode("utf-8", "replace")


def test_a_character_of_several_tokens_comes_with_the_last():
    assert token_texts(_Bytes(), [*"a é".encode(), 0x80]) == ["a", " ", "", "é", "\ufffd"]
