"""Dr. GRPO: neither the length of an answer nor the spread of its group scales its gradient, https://arxiv.org/abs/2503.20783."""

from tunix_lab.rl.config import DrGrpoKnobs
from tunix_lab.rl.grpo.grpo_learner import GRPOLearner

DrGRPOConfig = DrGrpoKnobs


class DrGRPOLearner(GRPOLearner):
    """GRPO with the advantage reward − mean, and the sum of an answer's token losses divided by the budget."""

    config: DrGrpoKnobs
