"""RLOO: REINFORCE whose baseline is the mean reward of the other answers to the prompt, https://arxiv.org/abs/2402.14740."""

import dataclasses

from tunix_lab._bounds import check_bounds
from tunix_lab.rl.config import RlooKnobs
from tunix_lab.rl.grpo.grpo_learner import GRPOLearner


@dataclasses.dataclass(kw_only=True)
class RLOOConfig(RlooKnobs):
    """`RlooKnobs`, checked."""

    def __post_init__(self) -> None:
        check_bounds(self)


class RLOOLearner(GRPOLearner):
    """GRPO with the leave-one-out advantage and without a clip, summed over the answer, which is one action."""

    config: RlooKnobs
