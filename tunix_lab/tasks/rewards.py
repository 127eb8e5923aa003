"""Ready rewards, named in a spec as `tunix_lab.tasks.rewards:NAME`; each gives one number per answer, and none runs its text.

The arithmetic task's own is `tunix_lab.tasks.arithmetic:exact_match`, GSM8K's `tunix_lab.tasks.gsm8k:exact_match`.
"""

import re
from collections.abc import Sequence

from tunix_lab.tasks.gsm8k import plain_number

_ANSWER_LINE = re.compile(r"^####[ \t]*(.+?)[ \t]*$", re.MULTILINE)
# "$1,200.50", "-3", ".5"; a minus behind a digit, a letter or a bracket is an operator.
_NUMBER = re.compile(r"(?:(?<![\w).])-)?[$€£]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?:(?<![\w).])-)?(?<!\d)\.\d+")
# What comes first is taken (atomic groups), so that no text makes the search take long.
_REASONING = re.compile(
    r"^\s*<reasoning>(?>.+?</reasoning>)(?>.*?<answer>)(.+?)</answer>\s*$",
    re.MULTILINE | re.DOTALL,
)
_FOR_TAGS = 3.0
_FOR_BREVITY = 0.1
_BREVITY_CHARACTERS = 1000


def gsm8k_strict(prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], **columns: object) -> list[float]:
    """1.0 where the last line `#### x` holds the number of the row's answer, else 0.0."""
    return [float(_on_answer_line(c) == number) for c, number in zip(completions, _numbers(answer), strict=True)]


def gsm8k_lenient(prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], **columns: object) -> list[float]:
    """1.0 where the last number anywhere in the text is that of the row's answer, else 0.0."""
    return [float(_last_number(c) == number) for c, number in zip(completions, _numbers(answer), strict=True)]


def has_answer_line(prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[float]:
    """1.0 where the text has a line `#### x` with a number x, right or wrong, else 0.0."""
    return [float(_on_answer_line(c) is not None) for c in completions]


def reasoning_format(prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[float]:
    """3.0 where a line begins with <reasoning>…</reasoning>, then <answer>…</answer> ends a line, else 0.0."""
    return [_FOR_TAGS if _REASONING.search(c) else 0.0 for c in completions]


def reasoning_answer(prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], **columns: object) -> list[float]:
    """3.0 where the text is as `reasoning_format` wants it and <answer> holds the row's answer letter by letter, else 0.0."""
    found = [_REASONING.search(c) for c in completions]
    return [_FOR_TAGS if match and match[1].strip() == str(a).strip() else 0.0 for match, a in zip(found, answer, strict=True)]


def short_answer(prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[float]:
    """0.1 · (1 − characters / 1000), at least 0: a little for brevity, to be had beside a reward for being right.

    An empty answer gets the whole 0.1, so it must never be the only reward.
    """
    return [_FOR_BREVITY * max(0.0, 1.0 - len(c) / _BREVITY_CHARACTERS) for c in completions]


def _on_answer_line(text: str) -> str | None:
    """The number on the last answer line, plainly; None where there is none."""
    lines = _ANSWER_LINE.findall(text)
    return plain_number(lines[-1]) if lines else None


def _last_number(text: str) -> str | None:
    numbers = _NUMBER.findall(text)
    return plain_number(numbers[-1]) if numbers else None


def _numbers(answers: Sequence[str]) -> list[str]:
    """The rows' answers as plain numbers; a worked answer's is the one on its line `#### x`, as GSM8K publishes them."""
    numbers = [_on_answer_line(str(a)) or plain_number(str(a)) for a in answers]
    for answer, number in zip(answers, numbers, strict=True):
        if number is None:
            raise ValueError(f"the row's answer {answer!r} is no number, so no text could be right")
    return [number for number in numbers if number is not None]
