"""The answers of runs to the same prompts: side by side over runs, or over the steps of one run."""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

from tunix_lab.lab.pages.run_view import Rows, RunView


@dataclasses.dataclass(frozen=True)
class Answers:
    """A prompt and the row of each run's samples for it; None for who was not asked."""

    prompt: str
    rows: tuple[dict[str, Any] | None, ...]

    @property
    def differ(self) -> bool:
        """Whether two runs answered differently."""
        return len({row["completion"] for row in self.rows if row is not None}) > 1

    @property
    def agree(self) -> bool:
        """Whether all were asked and gave the same answer."""
        return None not in self.rows and not self.differ


def side_by_side(views: Sequence[RunView]) -> tuple[Answers, ...]:
    """The latest answers of each run by prompt: first those of most runs, among them those where scores, then answers, differ."""
    answers = _aligned([view.samples[max(view.samples)] if view.samples else [] for view in views])

    def telling(answer: Answers) -> tuple[int, bool, bool]:
        rows = [row for row in answer.rows if row is not None]
        return -len(rows), len({json.dumps(row.get("score")) for row in rows}) == 1, not answer.differ

    return tuple(sorted(answers, key=telling))


def over_steps(view: RunView) -> tuple[tuple[int, ...], tuple[Answers, ...]]:
    """The first, middle and last step that have samples, and the answers at them by prompt.

    Those with the lowest scores come first, among them those that changed.
    """
    steps = list(view.samples)
    chosen = tuple(dict.fromkeys([steps[0], steps[len(steps) // 2], steps[-1]])) if steps else ()
    answers = _aligned([view.samples[step] for step in chosen])
    return chosen, tuple(sorted(answers, key=lambda answer: (_score(answer.rows[-1]), answer.agree)))


def _score(row: dict[str, Any] | None) -> float:
    score = None if row is None else row.get("score")
    return score if isinstance(score, int | float) else math.inf


def _aligned(tables: Sequence[Rows]) -> tuple[Answers, ...]:
    keyed = [_by_prompt(rows) for rows in tables]
    prompts = dict.fromkeys(prompt for table in keyed for prompt in table)
    return tuple(Answers(prompt, tuple(table.get(prompt) for table in keyed)) for prompt in prompts)


def _by_prompt(rows: Rows) -> dict[str, dict[str, Any]]:
    """The rows by prompt; where a prompt has several answers, only the id tells them apart."""
    prompts = [row.get("prompt") for row in rows]
    unique = None not in prompts and len(set(map(str, prompts))) == len(prompts)
    return {str(row["prompt"] if unique else f"{row.get('prompt') or ''} [{row.get('id')}]".strip()): row for row in rows}
