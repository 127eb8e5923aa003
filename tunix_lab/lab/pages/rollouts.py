"""Some answers of the last rollout of a run, with their rewards, for its page."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunix_lab.errors import UserError
from tunix_lab.lab.pages.headline import number
from tunix_lab.lab.pages.run_view import RunView
from tunix_lab.lab.record.run_state import TRAJECTORIES

if TYPE_CHECKING:
    from tunix_lab.lab.rollouts import Answer, Group

_MAX_PROMPTS, _MAX_ANSWERS = 6, 4


@dataclasses.dataclass(frozen=True)
class ShownRollout:
    """Answers of one rollout.

    Attributes:
      step: updates made before it.
      mode: "train" or "eval".
      n_answers: of the whole rollout.
      prompts: (prompt, its answers as rows of a table: `title`, `completion` and `score`), those whose rewards differ most first.
    """

    step: int
    mode: str
    n_answers: int
    prompts: tuple[tuple[str, tuple[dict[str, Any], ...]], ...]


def last_rollout(view: RunView) -> tuple[ShownRollout | None, str | None]:
    """The last training rollout of a run, and why it cannot be shown; (None, None) where there was none."""
    paths = [event["path"] for event in view.events if event["kind"] == TRAJECTORIES and event["mode"] == "train"]
    if not paths:
        return None, None
    from tunix_lab.lab.record.trajectories import read_file
    from tunix_lab.lab.rollouts import groups_of

    try:
        rollout = read_file(view.state.run_dir / paths[-1])
    except UserError as error:
        return None, str(error).replace(f"{view.state.run_dir}/", "")
    groups = sorted(groups_of(rollout), key=_spread, reverse=True)[:_MAX_PROMPTS]
    prompts = tuple((group.prompt, _rows(group)) for group in groups)
    return ShownRollout(rollout.step, rollout.mode, len(rollout), prompts), None


def _spread(group: "Group") -> float:
    return max(group.rewards) - min(group.rewards) if group.rewards else 0.0


def _rows(group: "Group") -> tuple[dict[str, Any], ...]:
    """The best and the worst answers, where there are many."""
    from tunix_lab.lab.rollouts import ranked

    answers: Sequence[Answer] = ranked(group.answers, best_first=True)
    if len(answers) > _MAX_ANSWERS:
        answers = [*answers[: _MAX_ANSWERS // 2], *answers[-(_MAX_ANSWERS - _MAX_ANSWERS // 2) :]]
    return tuple({"title": _title(answer), "completion": answer.completion, "score": answer.reward} for answer in answers)


def _title(answer: "Answer") -> str:
    parts = [f"{name} {number(value)}" for name, value in answer.rewards.items()]
    parts += ["cut off"] if answer.finish_reason == "length" else []
    return ", ".join([*parts, *([] if answer.trained else ["trains nothing"])])
