"""What was sampled, how it was rewarded and what it trained: a record of every answer, for people and for analysis."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Trajectories:
    """The answers of one rollout; every list has one entry per answer, the answers to one prompt side by side.

    Attributes:
      step: optimizer updates made before they were sampled.
      mode: "train" or "eval".
      groups: number of the prompt within the rollout that each answers.
      prompts: text of the prompts.
      completions: text of the answers, without special tokens.
      prompt_ids: int32 [P].
      completion_ids: int32 [T], the terminator included.
      finish_reasons: "stop", or "length" if the budget cut the answer off.
      trained: whether the answer trains anything: its tokens are all in the loss, or none is.
      sampler_logps: float32 [T], the sampler's log-probabilities of `completion_ids` at its temperature, nats.
      trainer_logps: float32 [T], the trainer's of the same, with the same weights; None where they were not computed.
      rewards: weighted reward by function; NaN where a function failed and the run was told to go on.
      reward: their sum; NaN where one of them is.
      advantages: float32 [T], by token; those of evaluations are empty.
      columns: the other columns of the prompts' rows.
    """

    step: int
    mode: str
    groups: Sequence[int]
    prompts: Sequence[str]
    completions: Sequence[str]
    prompt_ids: Sequence[np.ndarray]
    completion_ids: Sequence[np.ndarray]
    finish_reasons: Sequence[str]
    trained: Sequence[bool]
    sampler_logps: Sequence[np.ndarray]
    trainer_logps: Sequence[np.ndarray] | None
    rewards: Mapping[str, Sequence[float]]
    reward: Sequence[float]
    advantages: Sequence[np.ndarray]
    columns: Mapping[str, Sequence[Any]]

    def __len__(self) -> int:
        return len(self.completions)
