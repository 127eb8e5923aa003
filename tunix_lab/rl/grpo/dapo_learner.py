"""DAPO: an asymmetric clip, a mean over tokens, groups that can teach something, and a price for overlong answers.

https://arxiv.org/abs/2503.14476
"""

import numpy as np

from tunix_lab.ops.advantages import zero_std_groups
from tunix_lab.rl.answers import ScoredAnswers
from tunix_lab.rl.config import DapoKnobs
from tunix_lab.rl.grpo.grpo_learner import GRPOLearner
from tunix_lab.rl.rewards import total
from tunix_lab.sft.metrics_logger import Mode

DAPOConfig = DapoKnobs

_OVERLONG = "overlong"


class DAPOLearner(GRPOLearner):
    """GRPO that samples on until a batch is full of groups whose rewards differ, eq. 11, and shapes rewards by length, eq. 13."""

    config: DapoKnobs

    @property
    def sampling_rounds(self) -> int:
        return self.config.max_sampling_rounds if self.config.dynamic_sampling else 1

    def is_useful(self, answers: ScoredAnswers) -> np.ndarray:
        if not self.config.dynamic_sampling:
            return super().is_useful(answers)
        # What answers are worth, without what their length costs: eq. 11 asks whether some are right and some are not.
        worth = total({name: values for name, values in answers.rewards.items() if name != _OVERLONG})
        shape = (-1, self.num_generations)
        alike = np.asarray(zero_std_groups(worth.reshape(shape), self.trains(answers).reshape(shape)))
        return np.repeat(~alike, self.num_generations)

    def shape_rewards(self, answers: ScoredAnswers) -> dict[str, np.ndarray]:
        if self.config.overlong_buffer_length is None:
            return {}
        budget = self.rl_cluster.cluster_config.rollout_for(Mode.TRAIN).max_tokens_to_generate
        lengths = np.asarray([len(tokens) for tokens in answers.rollout.tokens])
        penalty = overlong_penalty(lengths, budget, self.config.overlong_buffer_length)
        return {_OVERLONG: self.config.overlong_buffer_penalty * penalty}


def overlong_penalty(lengths: np.ndarray, budget: int, buffer: int) -> np.ndarray:
    """Eq. 13: 0 up to budget − buffer tokens, from there down to −1 at the budget in a straight line; float32 [answers]."""
    over = lengths - (budget - buffer)
    return -np.clip(over / buffer, 0.0, 1.0).astype(np.float32)
