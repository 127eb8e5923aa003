"""The arithmetic task: datasets of word problems with worked answers, made from a seed, and the score of an answer.

Mia has 7 pens. Mia finds 5 more and loses 4. How many pens are there now?
<reasoning>7+5=12 12-4=8</reasoning><answer>8</answer>
"""

import itertools
import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tunix_lab.errors import UserError
from tunix_lab.tasks.word_problems import Problem, split_problems, worked_answer
from tunix_lab.tasks.wrong_answers import MISTAKES


def sft_rows(problems: Sequence[Problem], split: str, count: int, seed: int) -> list[dict[str, str]]:
    """`count` rows with columns id, prompt, completion, answer; no prompt occurs twice."""
    rng = random.Random(f"{seed} sft {split}")
    drawn = itertools.islice(_tellings(problems, split, rng), count)
    return [
        {"id": f"sft-{split}-{i:05d}", "prompt": text, "completion": worked_answer(p.facts, p.answer), "answer": p.answer}
        for i, (p, text) in enumerate(drawn)
    ]


def preference_rows(problems: Sequence[Problem], split: str, count: int, seed: int) -> list[dict[str, str]]:
    """`count` rows with columns id, prompt, chosen, rejected, answer; `chosen` scores 1 and `rejected` scores 0."""
    rng = random.Random(f"{seed} preference {split}")
    makers, weights = zip(*MISTAKES.values(), strict=True)
    rows = []
    for i, (p, text) in enumerate(itertools.islice(_tellings(problems, split, rng), count)):
        rejected = rng.choices(makers, weights)[0](p, rng)
        chosen = worked_answer(p.facts, p.answer)
        row = {"id": f"preference-{split}-{i:05d}", "prompt": text, "chosen": chosen, "rejected": rejected, "answer": p.answer}
        rows.append(row)
    return rows


def pretrain_rows(problems: Sequence[Problem], split: str, count: int, seed: int) -> list[dict[str, str]]:
    """`count` rows with the column text: one half bare equations and said facts, one half problems told as plain prose."""
    rng = random.Random(f"{seed} pretrain {split}")
    tellings = _tellings(problems, split, rng)
    facts = sorted({fact for p in problems for fact in p.facts})
    rows = []
    for i in range(count):
        if i % 2:
            p, text = next(tellings)
            rows.append({"text": f"{text} {' '.join(p.facts)} So the answer is {p.answer}."})
        elif i % 8:
            rows.append({"text": " ".join(rng.choices(facts, k=8))})
        else:
            rows.append({"text": " ".join(_say(fact) for fact in rng.choices(facts, k=4))})
    return rows


def _say(fact: str) -> str:
    """An equation as a sentence."""
    left, right = fact.split("=")
    a, operator, b = re.split(r"([-+*])", left)
    words = {"+": "{a} and {b} more are {r}.", "-": "{a} take away {b} are {r}.", "*": "{a} bags of {b} are {r}."}
    return words[operator].format(a=a, b=b, r=right)


def _tellings(problems: Sequence[Problem], split: str, rng: random.Random) -> Iterator[tuple[Problem, str]]:
    """Problems with their text, endlessly: every problem once in a shuffled order, then again with other words."""
    seen: set[str] = set()
    while True:
        fresh = 0
        for problem in rng.sample(problems, len(problems)):
            text = next((t for t in (problem.tell(rng) for _ in range(20)) if t not in seen), None)
            if text is not None:
                fresh += 1
                seen.add(text)
                yield problem, text
        if not fresh:
            raise UserError(f"arithmetic: the {split} split has no more than {len(seen)} different rows; ask for fewer")


def write(out: Path, *, seed: int, train: int, validation: int, test: int) -> dict[str, int]:
    """Writes the `sft`, `preference` and `pretrain` datasets under `out`; returns rows by path. Same seed, same bytes."""
    sizes = {"train": train, "validation": validation, "test": test}
    for name, count in sizes.items():
        if count < 1:
            raise UserError(f"arithmetic: --{name} must be at least 1, got {count}")
    splits = split_problems(seed)
    written = {}
    for folder, make in (("sft", sft_rows), ("preference", preference_rows), ("pretrain", pretrain_rows)):
        for split, count in sizes.items():
            if folder == "pretrain" and split == "test":
                continue  # next-token prediction on prose is a means: nothing is reported on it
            path = out / folder / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in make(splits[split], split, count, seed)]
            path.write_text("".join(lines), encoding="utf-8", newline="\n")
            written[f"{folder}/{split}.jsonl"] = len(lines)
    return written


_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_WELL_FORMED = re.compile(r"\s*<reasoning>[^<>]+</reasoning>\s*<answer>[^<>]+</answer>\s*")


def extract_answer(completion: str) -> str | None:
    """The text of the first `<answer>…</answer>`, without surrounding space; None where there is none."""
    found = _ANSWER.search(completion)
    return found.group(1).strip() if found else None


def well_formed(completion: str) -> bool:
    """Whether the completion is one reasoning, one answer, and nothing else."""
    return _WELL_FORMED.fullmatch(completion) is not None


def exact_match(prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], **columns: object) -> list[float]:
    """A reward: 1.0 for each completion whose answer is exactly the row's, else 0.0. Other columns are not looked at."""
    if not len(prompts) == len(completions) == len(answer):
        raise ValueError(f"exact_match: {len(prompts)} prompts, {len(completions)} completions, {len(answer)} answers")
    return [float(extract_answer(c) == str(a).strip()) for c, a in zip(completions, answer, strict=True)]
