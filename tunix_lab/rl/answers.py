"""What was sampled for some prompts and rewarded, and what is told of it."""

import dataclasses
from typing import Any

import numpy as np

from tunix_lab.rl.experience import Batch
from tunix_lab.rl.rollout.base_rollout import RolloutOutput
from tunix_lab.rl.trajectories import Trajectories


@dataclasses.dataclass
class ScoredAnswers:
    """What was sampled for some prompts, and rewarded; every list has one entry per answer, groups side by side.

    Attributes:
      prompts: text of each answer's prompt.
      groups: number of its prompt.
      rollout: tokens, log-probabilities, finish reasons.
      rewards: weighted reward by function, float32 [answers].
      reward: their sum; NaN where a function failed and was told to go on.
      columns: of the prompts' rows.
    """

    prompts: list[str]
    groups: np.ndarray
    rollout: RolloutOutput
    rewards: dict[str, np.ndarray]
    reward: np.ndarray
    columns: dict[str, list[Any]]

    def take(self, rows: np.ndarray) -> "ScoredAnswers":
        """Some of the answers."""
        pick = lambda values: [values[i] for i in rows]  # noqa: E731
        rewards = {name: values[rows] for name, values in self.rewards.items()}
        columns = {name: pick(values) for name, values in self.columns.items()}
        return ScoredAnswers(pick(self.prompts), self.groups[rows], self.rollout.take(rows), rewards, self.reward[rows], columns)

    def __add__(self, other: "ScoredAnswers") -> "ScoredAnswers":
        groups = np.concatenate([self.groups, other.groups + self.groups.max() + 1])
        rewards = {name: np.concatenate([values, other.rewards[name]]) for name, values in self.rewards.items()}
        columns = {name: values + other.columns[name] for name, values in self.columns.items() if name in other.columns}
        reward = np.concatenate([self.reward, other.reward])
        return ScoredAnswers(self.prompts + other.prompts, groups, self.rollout + other.rollout, rewards, reward, columns)


def answer_metrics(answers: ScoredAnswers) -> dict[str, float]:
    """Means over answers: rewards, tokens, and the share that ended by itself; rewards that are missing are left out."""
    lengths = np.asarray([len(tokens) for tokens in answers.rollout.tokens])
    stopped = np.asarray([reason == "stop" for reason in answers.rollout.finish_reason])
    known = {"reward": answers.reward, **{f"reward_{name}": values for name, values in answers.rewards.items()}}
    rewards = {name: mean_of(values[np.isfinite(values)]) for name, values in known.items()}
    return rewards | {"answer_tokens": mean_of(lengths), "stopped": mean_of(stopped)}


def training_metrics(answers: ScoredAnswers, batch: Batch, group_size: int, *, samples_all: bool) -> dict[str, float]:
    """Of answers that train: the spread of rewards, the entropy of the policy, and the size of the advantages.

    −log p of a sampled token is, on average, the entropy of the distribution that it is sampled from; no pass over the vocabulary
    is needed. Where top-k or top-p leave only a part of it (not `samples_all`) it is less than the entropy of the whole, so it is
    called what it is, `sampled_nll`.
    """
    return {
        "reward_std": mean_of(group_std(answers.reward, group_size)),
        "entropy" if samples_all else "sampled_nll": -mean_of(batch["sampler_logps"][batch["completion_mask"]]),
        "masked_answers": mean_of(~batch["loss_mask"].any(axis=1)),
        "advantage_abs": mean_of(np.abs(batch["advantages"][batch["loss_mask"]])),
    }


def group_std(reward: np.ndarray, group_size: int) -> np.ndarray:
    """Standard deviation of the rewards of each group, [prompts]; where prompts have one answer, of all answers, [1]."""
    groups = reward.reshape(-1, group_size) if group_size > 1 else reward[None]
    known = np.isfinite(groups)
    some = known.any(axis=1)
    # In float64, where the squares of rewards such as 1e38 are numbers.
    return np.where(some, np.std(groups, axis=1, dtype=np.float64, where=known | ~some[:, None]), 0.0)


def mean_of(values: np.ndarray) -> float:
    """The mean; 0 of nothing."""
    return float(np.mean(values, dtype=np.float64)) if np.size(values) else 0.0


def trajectories(
    answers: ScoredAnswers,
    step: int,
    mode: str,
    batch: Batch | None = None,
    trainer_logps: np.ndarray | None = None,
    dropped: ScoredAnswers | None = None,
) -> Trajectories:
    """The record of answers, and behind them of those that were sampled with them and are of no use.

    Args:
      answers: of one rollout.
      step: updates made before they were sampled.
      mode: "train" or "eval".
      batch: what they train; None for those of an evaluation.
      trainer_logps: the trainer's log-probabilities of their tokens, [answers, tokens]; None where they are not known.
      dropped: see above.
    """
    if dropped is not None:
        kept = trajectories(answers, step, mode, batch, trainer_logps)
        return _behind(kept, trajectories(dropped, step, mode))
    rollout, lengths = answers.rollout, [len(tokens) for tokens in answers.rollout.tokens]
    cut = lambda rows: [row[:n] for row, n in zip(rows, lengths, strict=True)]  # noqa: E731
    return Trajectories(
        step=step,
        mode=str(mode),
        groups=answers.groups.tolist(),
        prompts=answers.prompts,
        completions=rollout.text,
        prompt_ids=rollout.prompt_tokens,
        completion_ids=rollout.tokens,
        finish_reasons=rollout.finish_reason,
        trained=[False] * len(lengths) if batch is None else batch["loss_mask"].any(axis=1).tolist(),
        sampler_logps=rollout.logprobs,
        trainer_logps=None if trainer_logps is None else cut(trainer_logps),
        rewards={name: values.tolist() for name, values in answers.rewards.items()},
        reward=answers.reward.tolist(),
        advantages=[np.zeros(0, np.float32)] * len(lengths) if batch is None else cut(batch["advantages"]),
        columns=answers.columns,
    )


def _behind(kept: Trajectories, dropped: Trajectories) -> Trajectories:
    """Both records as one; the trainer's log-probabilities of dropped answers are not known, so NaN."""
    unknown = [np.full(len(ids), np.nan, np.float32) for ids in dropped.completion_ids]
    names = ("prompts", "completions", "prompt_ids", "completion_ids", "finish_reasons", "trained", "sampler_logps")
    both = {name: [*getattr(kept, name), *getattr(dropped, name)] for name in (*names, "reward", "advantages")}
    first = max(kept.groups) + 1
    return dataclasses.replace(
        kept,
        groups=[*kept.groups, *(group + first for group in dropped.groups)],
        trainer_logps=None if kept.trainer_logps is None else [*kept.trainer_logps, *unknown],
        rewards={name: [*values, *dropped.rewards[name]] for name, values in kept.rewards.items()},
        columns={name: [*values, *dropped.columns[name]] for name, values in kept.columns.items() if name in dropped.columns},
        **both,
    )
