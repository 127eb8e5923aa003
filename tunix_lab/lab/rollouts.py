"""Rollouts for people: the answers to a prompt side by side, chosen by what one looks for, and scored again."""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tunix_lab.errors import UserError
from tunix_lab.rl.trajectories import Trajectories
from tunix_lab.spec.errors import did_you_mean

if TYPE_CHECKING:
    from tunix_lab.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer, with what `Trajectories` says of it.

    Attributes:
      number: of the answer among those to its prompt.
      trainer_logps: None where the trainer did not compute them.
      rewards: by function.
    """

    step: int
    mode: str
    group: int
    number: int
    prompt: str
    completion: str
    finish_reason: str
    trained: bool
    reward: float
    rewards: dict[str, float]
    columns: dict[str, Any]
    prompt_ids: np.ndarray
    completion_ids: np.ndarray
    sampler_logps: np.ndarray
    trainer_logps: np.ndarray | None
    advantages: np.ndarray


@dataclasses.dataclass(frozen=True)
class Group:
    """The answers to one prompt of one rollout."""

    answers: tuple[Answer, ...]

    @property
    def prompt(self) -> str:
        """What was asked."""
        return self.answers[0].prompt

    @property
    def rewards(self) -> list[float]:
        """The rewards that are numbers."""
        return [answer.reward for answer in self.answers if math.isfinite(answer.reward)]

    @property
    def mean(self) -> float:
        """Mean reward; NaN where none is a number."""
        return statistics.fmean(self.rewards) if self.rewards else math.nan

    @property
    def std(self) -> float:
        """Standard deviation of the rewards."""
        return statistics.pstdev(self.rewards) if self.rewards else math.nan


def groups_of(rollout: Trajectories) -> list[Group]:
    """The answers of a rollout by prompt, in its order; those to one prompt lie side by side."""
    columns = rollout.columns.items()
    groups = []
    for group, indices in itertools.groupby(range(len(rollout)), key=rollout.groups.__getitem__):
        answers = [
            Answer(
                step=rollout.step,
                mode=rollout.mode,
                group=group,
                number=number,
                prompt=rollout.prompts[i],
                completion=rollout.completions[i],
                finish_reason=rollout.finish_reasons[i],
                trained=rollout.trained[i],
                reward=rollout.reward[i],
                rewards={name: scores[i] for name, scores in rollout.rewards.items()},
                columns={name: values[i] for name, values in columns},
                prompt_ids=rollout.prompt_ids[i],
                completion_ids=rollout.completion_ids[i],
                sampler_logps=rollout.sampler_logps[i],
                trainer_logps=None if rollout.trainer_logps is None else rollout.trainer_logps[i],
                advantages=rollout.advantages[i],
            )
            for number, i in enumerate(indices)
        ]
        groups.append(Group(tuple(answers)))
    return groups


def select(rollouts: Iterable[Trajectories], *, prompt: str | None = None, failed: str | None = None) -> list[Group]:
    """The groups in which there is what one looks for, with all of their answers.

    Args:
      rollouts: of a run.
      prompt: only prompts in which this stands, in upper or lower case.
      failed: only groups that have an answer to which this function gave nothing, see `has_failed`.

    Raises:
      UserError: there is no function `failed`.
    """
    groups = [group for rollout in rollouts for group in groups_of(rollout)]
    if failed is not None:
        known = dict.fromkeys(name for group in groups for answer in group.answers for name in answer.rewards)
        if groups and failed not in known:
            raise UserError(f"no reward {failed!r}{did_you_mean(failed, known)}; there are {', '.join(known)}")
        groups = [group for group in groups if any(has_failed(answer, failed) for answer in group.answers)]
    return [group for group in groups if prompt is None or prompt.casefold() in group.prompt.casefold()]


def has_failed(answer: Answer, function: str) -> bool:
    """Whether a reward function gave an answer nothing: no number, or none above zero."""
    return not answer.rewards[function] > 0  # NaN is not above zero either


def ranked(answers: Iterable[Answer], *, best_first: bool) -> list[Answer]:
    """Answers by reward; those without one come last."""
    sign = -1.0 if best_first else 1.0

    def place(answer: Answer) -> tuple[bool, float]:
        return (True, 0.0) if math.isnan(answer.reward) else (False, sign * answer.reward)

    return sorted(answers, key=place)


@dataclasses.dataclass(frozen=True)
class Rescored:
    """An answer, what it was worth to the run by the function of the same name, or in all, and what it is worth now."""

    answer: Answer
    before: float
    now: float

    @property
    def differs(self) -> bool:
        """Whether the two are not the same number."""
        return not (self.before == self.now or (math.isnan(self.before) and math.isnan(self.now)))


def rescore(
    rollouts: Iterable[Trajectories], function: Callable[..., Sequence[float]], reward: str | None, weight: float = 1.0
) -> list[Rescored]:
    """Scores stored answers again, a rollout at a time.

    Args:
      rollouts: of a run.
      function: called with prompts, completions and the rows' other columns, as in training.
      reward: name of the stored reward to compare with; None compares with the whole reward.
      weight: factor of what the function gives.

    Raises:
      UserError: the function fails, or gives something else than a number for each answer.
    """
    found = []
    for rollout in rollouts:
        where = f"{rollout.mode} step {rollout.step}"
        try:
            values = function(list(rollout.prompts), list(rollout.completions), **rollout.columns)
            scores = [float(value) for value in values]
        except Exception as error:  # of the user's own code, which may raise anything
            raise UserError(f"{where}: the reward failed with {type(error).__name__}: {error}") from error
        if len(scores) != len(rollout):
            raise UserError(f"{where}: the reward gave {len(scores)} numbers for {len(rollout)} answers; it must give one each")
        before = rollout.reward if reward is None else rollout.rewards[reward]
        answers = [answer for group in groups_of(rollout) for answer in group.answers]
        found += [Rescored(answer, was, weight * score) for answer, was, score in zip(answers, before, scores, strict=True)]
    return found


def token_texts(tokenizer: "Tokenizer", ids: Sequence[int]) -> list[str]:
    """The text that each id adds to those before it; a character of several ids comes with its last one."""
    texts, before = [], ""
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(list(ids[:count]), skip_special_tokens=False)
        if text.endswith("\ufffd") and count < len(ids):  # the rest of the character may follow
            texts.append("")
            continue
        texts.append(text.removeprefix(before))
        before = text
    return texts


def as_json(answer: Answer) -> dict[str, Any]:
    """An answer as strict JSON values; a number that is none is null."""
    plain = {field.name: _plain(getattr(answer, field.name)) for field in dataclasses.fields(answer)}
    return plain | {"tokens": len(answer.completion_ids)}


def _plain(value: Any) -> Any:
    match value:
        case np.ndarray():
            return [_plain(item) for item in value.tolist()]
        case dict():
            return {name: _plain(item) for name, item in value.items()}
        case list():
            return [_plain(item) for item in value]
        case float() if not math.isfinite(value):
            return None
    return value
