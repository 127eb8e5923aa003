"""GSPO in its token form: the ratio that is clipped is that of the whole answer, https://arxiv.org/abs/2507.18071."""

from tunix_lab.rl.config import GspoKnobs
from tunix_lab.rl.grpo.grpo_learner import GRPOLearner

GSPOConfig = GspoKnobs


class GSPOLearner(GRPOLearner):
    """GRPO with `ratio_level` "sequence": (π/π_old of the answer)^(1/length) stands for each of its tokens' ratios."""

    config: GspoKnobs
