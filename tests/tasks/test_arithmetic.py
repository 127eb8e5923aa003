"""The arithmetic task: what is held out, the bytes of a seed, the answers that are right and wrong, and the score."""

import json
import random

import pytest

from tunix_lab.errors import UserError
from tunix_lab.tasks import arithmetic, word_problems, wrong_answers

SIZES = {"train": 400, "validation": 60, "test": 60}


def read(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("arithmetic")
    arithmetic.write(out, seed=0, **SIZES)
    return out


def test_files_rows_and_columns(folder):
    columns = {
        "sft": ["id", "prompt", "completion", "answer"],
        "preference": ["id", "prompt", "chosen", "rejected", "answer"],
        "pretrain": ["text"],
    }
    for dataset, names in columns.items():
        for split, count in SIZES.items():
            path = folder / dataset / f"{split}.jsonl"
            if dataset == "pretrain" and split == "test":
                assert not path.exists()
                continue
            rows = read(path)
            assert len(rows) == count
            assert all(list(row) == names for row in rows)


def test_values_are_small_and_facts_are_true():
    problems = word_problems.all_problems()
    assert len(problems) == len({p.key for p in problems}) > 3000
    for p in problems:
        for value in (*p.operands, *p.values):
            assert 0 <= value <= 40
        for fact in p.facts:
            left, right = fact.split("=")
            assert eval(left) == int(right)
        assert p.facts[1].split("=")[1] == p.answer


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_splits_share_no_problem_but_every_held_out_fact_is_trained(seed):
    splits = word_problems.split_problems(seed)
    keys = {name: {p.key for p in problems} for name, problems in splits.items()}
    assert not keys["train"] & keys["test"]
    assert not keys["train"] & keys["validation"]
    assert not keys["validation"] & keys["test"]
    assert sum(map(len, keys.values())) == len(word_problems.all_problems())
    assert min(len(keys["validation"]), len(keys["test"])) >= 300
    known = {fact for p in splits["train"] for fact in p.facts}
    for name in ("validation", "test"):
        assert known.issuperset(fact for p in splits[name] for fact in p.facts)


def test_seed_decides_what_is_held_out():
    first, second = ({p.key for p in word_problems.split_problems(seed)["test"]} for seed in (0, 1))
    assert len(first & second) < len(first) / 2


def test_written_rows_are_disjoint_by_problem(folder):
    """Read back from the text itself: names, objects and story aside, a prompt is its numbers and its equations."""

    def equations(split):
        rows = read(folder / "sft" / f"{split}.jsonl") + [
            {"completion": row["chosen"]} for row in read(folder / "preference" / f"{split}.jsonl")
        ]
        return {row["completion"] for row in rows}

    held_out = equations("validation") | equations("test")
    assert not equations("train") & held_out
    assert not equations("validation") & equations("test")
    # Held-out problems appear in no pretraining text either.
    prose = "\n".join(row["text"] for row in read(folder / "pretrain" / "train.jsonl") if "answer" in row["text"])
    for completion in held_out:
        steps = completion.removeprefix("<reasoning>").split("<")[0]
        assert f"? {steps} So" not in prose


def test_same_seed_same_bytes_other_seed_other_bytes(folder, tmp_path):
    arithmetic.write(tmp_path / "again", seed=0, **SIZES)
    arithmetic.write(tmp_path / "other", seed=1, **SIZES)
    for path in sorted(folder.rglob("*.jsonl")):
        name = path.relative_to(folder)
        assert (tmp_path / "again" / name).read_bytes() == path.read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != path.read_bytes()
        assert path.read_bytes().endswith(b"\n") and b"\r" not in path.read_bytes()


def test_prompts_do_not_repeat(folder):
    prompts = [row["prompt"] for row in read(folder / "sft" / "train.jsonl")]
    assert len(set(prompts)) == len(prompts)


def test_pretraining_text_is_plain(folder):
    text = (folder / "pretrain" / "train.jsonl").read_text("utf-8")
    assert "<" not in text
    assert "So the answer is" in text


def test_chosen_is_right_and_every_rejected_is_wrong(folder):
    for split in SIZES:
        rows = read(folder / "preference" / f"{split}.jsonl")
        answers, prompts = [row["answer"] for row in rows], [row["prompt"] for row in rows]
        assert set(arithmetic.exact_match(prompts, [row["chosen"] for row in rows], answers)) == {1.0}
        assert set(arithmetic.exact_match(prompts, [row["rejected"] for row in rows], answers)) == {0.0}
        assert all(arithmetic.well_formed(row["chosen"]) for row in rows)
        malformed = sum(not arithmetic.well_formed(row["rejected"]) for row in rows) / len(rows)
        assert 0 < malformed < 0.4


@pytest.mark.parametrize("mistake", wrong_answers.MISTAKES)
def test_each_mistake_is_one_for_every_problem(mistake):
    make, _ = wrong_answers.MISTAKES[mistake]
    rng = random.Random(0)
    for p in word_problems.all_problems():
        rejected = make(p, rng)
        assert rejected != word_problems.worked_answer(p.facts, p.answer)
        assert arithmetic.exact_match([""], [rejected], [p.answer]) == [0.0]
        assert arithmetic.well_formed(rejected) == (mistake != "broken_format")


@pytest.mark.parametrize(
    ("completion", "answer", "score"),
    [
        ("<reasoning>7+5=12 12-4=8</reasoning><answer>8</answer>", "8", 1.0),
        ("<answer> 8\n</answer>", "8", 1.0),
        ("<answer>8</answer><answer>9</answer>", "8", 1.0),  # the first answer counts
        ("<answer>9</answer><answer>8</answer>", "8", 0.0),
        ("<answer>8.0</answer>", "8", 0.0),  # exact means exact
        ("<answer>18</answer>", "8", 0.0),
        ("<answer>8", "8", 0.0),
        ("8", "8", 0.0),
        ("", "8", 0.0),
    ],
)
def test_exact_match(completion, answer, score):
    assert arithmetic.exact_match(["?"], [completion], [answer], id=["row-1"]) == [score]


def test_exact_match_refuses_columns_of_different_length():
    with pytest.raises(ValueError, match="2 completions, 1 answers"):
        arithmetic.exact_match(["a", "b"], ["x", "y"], ["1"])


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<reasoning>1+1=2</reasoning><answer>2</answer>", True),
        ("<reasoning>1+1=2</reasoning>\n<answer>2</answer>\n", True),
        ("<answer>2</answer>", False),
        ("<reasoning>1+1=2</reasoning><answer>2</answer> and so on", False),
        ("<reasoning></reasoning><answer>2</answer>", False),
        ("<reasoning>1+1=2<answer>2</answer>", False),
    ],
)
def test_well_formed(completion, expected):
    assert arithmetic.well_formed(completion) is expected


def test_asking_for_more_rows_than_there_are_says_so(tmp_path):
    problems = word_problems.split_problems(0)["test"][:1]
    with pytest.raises(UserError, match=r"the test split has no more than .* different rows"):
        arithmetic.sft_rows(problems, "test", 10_000, seed=0)


def test_empty_split_is_refused(tmp_path):
    with pytest.raises(UserError, match="--test must be at least 1, got 0"):
        arithmetic.write(tmp_path, seed=0, train=1, validation=1, test=0)
