"""GSM8K: answers parsed, annotations, SFT rows, preference pairs, and that nothing is trained on what it is tested on."""

import json
import os
from pathlib import Path

import pytest

from tunix_lab.errors import UserError
from tunix_lab.tasks.gsm8k import REASONING, exact_match, final_answer, preference_rows, sft_rows, worked_answer, write

# Taken out of the environment, since the lab refuses settings that it does not know.
PUBLISHED = os.environ.pop("TUNIX_LAB_GSM8K", None)
STEPS = "She had 4/2 = <<4/2=2>>2 pens.\nThen 2+1 = <<2+1=3>>3."
PLAIN = "She had 4/2 = 2 pens.\nThen 2+1 = 3."
ROW = {"question": "How many?", "answer": f"{STEPS}\n#### 3"}


def solved(question="How many?", truth="3", **answers):
    """A row of the published solutions; each answer is the last line of a model's."""
    models = {name: {"is_correct": text == truth, "solution": f"{name} thinks\nA: {text}"} for name, text in answers.items()}
    return {"question": question, "ground_truth": f"{STEPS}\nA: {truth}", **models}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("x\n#### 42", "42"),
        ("x\n####42", "42"),
        ("A: $1,200.00", "1200"),
        ("x\n#### -7.50 \ny", "-7.5"),
        ("#### 1\n#### 2.", "2"),
        ("#### .5", "0.5"),
        ("So the answer is 42", None),
        ("#### many", None),
        ("#### 1/2", None),
        ("", None),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(("keep", "steps"), [(False, PLAIN), (True, STEPS)])
def test_annotations_are_kept_by_wish(keep, steps):
    assert worked_answer(f"{STEPS}\nA: 3", keep_annotations=keep) == f"{steps}\n#### 3"
    [row] = sft_rows([ROW], keep_annotations=keep)
    assert row == {"prompt": "How many?", "completion": f"{steps}\n#### 3", "answer": "3"}
    [pair] = preference_rows([solved(a="3", b="<<1=1>>\nA: 4")], keep_annotations=keep)
    assert ("<<" in pair["rejected"]) is keep


def test_pairs_are_right_against_wrong_of_one_question():
    rows = [solved(a="3", b="4", c="3.0", d="5"), solved("No wrong one?", a="3", b="3"), solved("No right one?", a="1", b="2")]
    pairs = preference_rows(rows, keep_annotations=False)
    a, b, c, d = (f"{name} thinks\n#### {text}" for name, text in (("a", 3), ("b", 4), ("c", 3), ("d", 5)))
    assert [(p["chosen"], p["rejected"]) for p in pairs] == [(a, b), (a, d), (c, b), (c, d)]
    assert {(p["prompt"], p["answer"]) for p in pairs} == {("How many?", "3")}


def test_solutions_without_an_answer_and_copies_make_no_pairs():
    row = solved(a="3", b="4", c="many")
    row["copy"] = dict(row["b"])
    row["loop"] = {"is_correct": False, "solution": "1818181818"}
    assert len(preference_rows([row], keep_annotations=False)) == 1


def test_files_that_are_not_gsm8ks(tmp_path):
    with pytest.raises(UserError, match="row 1 has no text under 'answer'; is this the published file"):
        sft_rows([{"question": "x", "answr": "y"}], keep_annotations=False)
    with pytest.raises(UserError, match="row 2 has no answer line"):
        sft_rows([ROW, {"question": "x", "answer": "y"}], keep_annotations=False)
    with pytest.raises(UserError, match=r"train\.jsonl: no such file; --source is a folder with GSM8K's"):
        write(tmp_path, tmp_path / "out", seed=0, keep_annotations=False)
    (tmp_path / "train.jsonl").write_text("x\n")
    with pytest.raises(UserError, match=r"train\.jsonl: not JSON Lines"):
        write(tmp_path, tmp_path / "out", seed=0, keep_annotations=False)


def read(path):
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def dump(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    dump(folder / "train.jsonl", [ROW | {"question": f"train {i}\u2028?"} for i in range(300)])
    dump(folder / "test.jsonl", [ROW | {"question": f"test {i}?"} for i in range(200)])
    dump(folder / "example_model_solutions.jsonl", [solved(f"test {i}?", a="3", b="4", c="5") for i in range(200)])
    return folder


def check(out, written):
    found = {path.relative_to(out).as_posix(): read(path) for path in out.rglob("*.jsonl")}
    assert {name: len(rows) for name, rows in found.items()} == written
    asked = {name: found.pop(name) for name in sorted(found) if name.startswith("reasoning/")}
    assert list(asked) == [f"reasoning/{split}.jsonl" for split in ("test", "train", "validation")]
    for name, rows in asked.items():
        same = found[name.replace("reasoning", "sft")]
        assert [(row["prompt"][1]["content"], row["answer"]) for row in rows] == [(r["prompt"], r["answer"]) for r in same]
        assert all(row["prompt"][0] == {"role": "system", "content": REASONING} for row in rows)
    prompts = {name: {row["prompt"] for row in rows} for name, rows in found.items()}
    assert not prompts["sft/train.jsonl"] & prompts["sft/validation.jsonl"]
    preference = [prompts[f"preference/{split}.jsonl"] for split in ("train", "validation", "test")]
    assert all(preference) and not preference[0] & preference[1] and not (preference[0] | preference[1]) & preference[2]
    assert prompts["sft/unseen_test.jsonl"] == prompts["sft/test.jsonl"] - preference[0] - preference[1]
    assert preference[2] <= prompts["sft/unseen_test.jsonl"]
    for name, rows in found.items():
        for row in rows:
            right, wrong = row.get("chosen", row.get("completion")), row.get("rejected", "")
            assert final_answer(right) == row["answer"] != final_answer(wrong)
            assert "<<" not in right + wrong, name


def test_write(source, tmp_path):
    written = write(source, tmp_path / "out", seed=0, keep_annotations=False)
    assert written["sft/train.jsonl"] + written["sft/validation.jsonl"] == 300 and written["sft/test.jsonl"] == 200
    assert written["preference/train.jsonl"] % 2 == 0
    assert sum(n for name, n in written.items() if name.startswith("preference/")) == 400
    check(tmp_path / "out", written)


def test_seed_chooses_what_is_held_out(source, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write(source, tmp_path / name, seed=seed, keep_annotations=False)
    a, b, c = ((tmp_path / name / "preference/test.jsonl").read_bytes() for name in "abc")
    assert a == b != c


def test_exact_match():
    completions = ["x\n#### 1,200", "#### 1201", "no answer"]
    assert exact_match(["p"] * 3, completions, ["1200"] * 3) == [1.0, 0.0, 0.0]
    assert exact_match(["p"], ["no answer"], ["none"]) == [0.0]
    with pytest.raises(ValueError, match="1 prompts, 2 completions, 1 answers"):
        exact_match(["p"], ["a", "b"], ["1"])


@pytest.mark.skipif(PUBLISHED is None, reason="TUNIX_LAB_GSM8K names no folder with the published files")
def test_the_published_files(tmp_path):
    written = write(Path(PUBLISHED), tmp_path, seed=0, keep_annotations=False)
    assert written["sft/train.jsonl"] + written["sft/validation.jsonl"] == 7473 and written["sft/test.jsonl"] == 1319
    assert sum(n for name, n in written.items() if name.startswith("preference/")) > 2000
    check(tmp_path, written)
