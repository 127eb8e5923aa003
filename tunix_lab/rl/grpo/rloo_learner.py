"""RLOO: REINFORCE whose baseline is the mean reward of the other answers to the prompt, https://arxiv.org/abs/2402.14740."""

from tunix_lab.rl.config import RlooKnobs
from tunix_lab.rl.grpo.grpo_learner import GRPOLearner

RLOOConfig = RlooKnobs


class RLOOLearner(GRPOLearner):
    """GRPO with the leave-one-out advantage and without a clip, summed over the answer, which is one action."""

    config: RlooKnobs
