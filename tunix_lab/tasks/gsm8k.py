"""The GSM8K task, https://arxiv.org/abs/2110.14168: grade-school word problems with worked answers, from its published files.

A worked answer ends with a line `#### 42`; `<<48/2=24>>` in it is an annotation for a calculator. The published solutions of
models are of the *test* questions. They make preference pairs, and whoever trains on these must not report on the questions they
are about: so pairs are split by question, and `unseen_test.jsonl` has the test questions without pairs to train or validate on.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunix_lab.errors import UserError

Row = dict[str, Any]

_ANSWER_LINE = re.compile(r"^(?:####|A:)[ \t]*(.+?)[ \t]*$", re.MULTILINE)
_ANNOTATION = re.compile(r"<<[^<>]*>>")
REASONING = (
    "Think about the problem and write your reasoning between <reasoning> and </reasoning>. "
    "Then write the final answer, a single number, between <answer> and </answer>."
)
"""What the reasoning rows ask for, and `tasks.rewards.reasoning_format` and `reasoning_answer` look for."""
_HELD_OUT = {"validation": 0.05, "test": 0.05}
"""Shares of the training questions, and of the questions with pairs, that are kept back."""


def final_answer(solution: str) -> str | None:
    """The number on the last answer line, `#### 1,200` or `A: $1200.00`, written plainly ("1200"); None where there is none."""
    lines = _ANSWER_LINE.findall(solution)
    return plain_number(lines[-1]) if lines else None


def plain_number(text: str) -> str | None:
    """A number without signs of money, thousands and percent, "$1,200.00" as "1200"; None where the text is no number."""
    bare = re.sub(r"[\s$€£%,]|\.$", "", text)
    if not re.fullmatch(r"-?(\d+\.?\d*|\.\d+)", bare):
        return None
    return f"{float(bare):.10f}".rstrip("0").rstrip(".")


def worked_answer(solution: str, *, keep_annotations: bool) -> str | None:
    """A solution in the form of the training set, its last line `#### 42`; None where it has no answer line."""
    lines = list(_ANSWER_LINE.finditer(solution))
    answer = final_answer(solution)
    if answer is None:
        return None
    steps = solution[: lines[-1].start()].strip()
    return f"{steps if keep_annotations else _ANNOTATION.sub('', steps)}\n#### {answer}"


def sft_rows(published: Sequence[Mapping[str, Any]], *, keep_annotations: bool) -> list[Row]:
    """Rows {"prompt", "completion", "answer"} of published rows {"question", "answer"}."""
    rows = []
    for number, row in enumerate(published, start=1):
        completion = worked_answer(_text(row, "answer", number), keep_annotations=keep_annotations)
        if completion is None:
            raise UserError(f"gsm8k: row {number} has no answer line `#### number`")
        answer = completion.rpartition("#### ")[2]
        rows.append({"prompt": _text(row, "question", number), "completion": completion, "answer": answer})
    return rows


def preference_rows(published: Sequence[Mapping[str, Any]], *, keep_annotations: bool) -> list[Row]:
    """Rows {"prompt", "chosen", "rejected", "answer"}: every right solution of a question against every wrong one.

    Solutions are the models' (entries {"solution", "is_correct"} of a row), in the form of the training set; the published
    answer tells which are right. A solution without an answer line is left out: it would teach where to stop, not what is right.
    Of solutions that read the same one is taken.
    """
    rows = []
    for number, row in enumerate(published, start=1):
        question, answer = _text(row, "question", number), final_answer(_text(row, "ground_truth", number))
        given = [value["solution"] for value in row.values() if isinstance(value, Mapping)]
        worked = (worked_answer(solution, keep_annotations=keep_annotations) for solution in given)
        distinct = list(dict.fromkeys(solution for solution in worked if solution is not None))
        right = [solution for solution in distinct if final_answer(solution) == answer]
        wrong = [solution for solution in distinct if final_answer(solution) != answer]
        rows += [{"prompt": question, "chosen": r, "rejected": w, "answer": str(answer)} for r in right for w in wrong]
    return rows


def reasoning_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows {"prompt", "answer"} to be answered in `REASONING`'s form, of SFT rows; the prompt is a chat of system and user."""
    return [
        {
            "prompt": [{"role": "system", "content": REASONING}, {"role": "user", "content": row["prompt"]}],
            "answer": row["answer"],
        }
        for row in rows
    ]


def write(source: Path, out: Path, *, seed: int, keep_annotations: bool) -> dict[str, int]:
    """Writes `sft`, `reasoning` and `preference` datasets under `out`; returns rows by path. Same files and seed, same bytes.

    The reasoning rows are the questions of the SFT rows, split as they are.

    Args:
      source: folder with train.jsonl, test.jsonl and example_model_solutions.jsonl as they are published.
      out: made if missing; files in it are replaced.
      seed: chooses the questions that are held out.
      keep_annotations: keep `<<48/2=24>>`; else it is taken out of all answers.

    Raises:
      UserError: a file is missing or is not GSM8K's.
    """
    train, test, solutions = (_read(source / f"{name}.jsonl") for name in ("train", "test", "example_model_solutions"))
    taught = sft_rows(train, keep_annotations=keep_annotations)
    tested = sft_rows(test, keep_annotations=keep_annotations)
    pairs = preference_rows(solutions, keep_annotations=keep_annotations)
    made = {
        f"{folder}/{split}.jsonl": [row for row in rows if _side(row["prompt"], seed) in sides]
        for folder, rows, splits in (
            ("sft", taught, {"train": ("train", "test"), "validation": ("validation",)}),  # its test is a file of its own
            ("preference", pairs, {split: (split,) for split in ("train", *_HELD_OUT)}),
        )
        for split, sides in splits.items()
    }
    seen = {row["prompt"] for split in ("train", "validation") for row in made[f"preference/{split}.jsonl"]}
    made["sft/test.jsonl"] = tested
    made["sft/unseen_test.jsonl"] = [row for row in tested if row["prompt"] not in seen]
    made |= {f"reasoning/{split}.jsonl": reasoning_rows(made[f"sft/{split}.jsonl"]) for split in ("train", "validation", "test")}
    for path, rows in made.items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (out / path).write_text("".join(lines), encoding="utf-8", newline="\n")
    return {path: len(rows) for path, rows in made.items()}


def _side(question: str, seed: int) -> str:
    """Which split a question belongs to, whatever the others are."""
    digest = hashlib.sha256(f"{seed} {question}".encode()).digest()
    at = int.from_bytes(digest[:8], "big") / 2**64
    for split, share in _HELD_OUT.items():
        if at < share:
            return split
        at -= share
    return "train"


def _text(row: Mapping[str, Any], name: str, number: int) -> str:
    if not isinstance(row.get(name), str):
        raise UserError(f"gsm8k: row {number} has no text under {name!r}; is this the published file?")
    return row[name]


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_bytes().split(b"\n") if line.strip()]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; --source is a folder with GSM8K's published files") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON Lines: {error}") from None


def exact_match(prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], **columns: object) -> list[float]:
    """A reward: 1.0 for each completion whose final answer is the row's number, else 0.0. Other columns are not looked at."""
    if not len(prompts) == len(completions) == len(answer):
        raise ValueError(f"exact_match: {len(prompts)} prompts, {len(completions)} completions, {len(answer)} answers")
    wanted = [plain_number(str(a)) for a in answer]
    return [float(number is not None and final_answer(c) == number) for c, number in zip(completions, wanted, strict=True)]
