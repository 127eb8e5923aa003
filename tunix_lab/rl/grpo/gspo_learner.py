"""GSPO in its token form: the ratio that is clipped is that of the whole answer, https://arxiv.org/abs/2507.18071."""

import dataclasses

from tunix_lab._bounds import check_bounds
from tunix_lab.rl.config import GspoKnobs
from tunix_lab.rl.grpo.grpo_learner import GRPOLearner


@dataclasses.dataclass(kw_only=True)
class GSPOConfig(GspoKnobs):
    """`GspoKnobs`, checked."""

    def __post_init__(self) -> None:
        check_bounds(self)


class GSPOLearner(GRPOLearner):
    """GRPO with `ratio_level` "sequence": (π/π_old of the answer)^(1/length) stands for each of its tokens' ratios."""

    config: GspoKnobs
