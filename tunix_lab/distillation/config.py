"""What can be chosen about distillation: one declaration for the library's strategies and for the spec."""

import dataclasses
from typing import Annotated, Literal, TypeAlias

from annotated_types import Ge, Gt, Le, Lt

from tunix_lab.sft.config import TrainingConfig

DistillationTrainingConfig: TypeAlias = TrainingConfig
"""Distillation is run like any training; what it chooses stands in its strategy."""

Direction: TypeAlias = Literal["forward_kl", "reverse_kl", "jsd"]


@dataclasses.dataclass(kw_only=True)
class LogitKnobs:
    """The student imitates the teacher's next-token distribution, https://arxiv.org/abs/1503.02531.

    Attributes:
      direction: what is made small: forward_kl KL(teacher ‖ student), reverse_kl KL(student ‖ teacher), or jsd, between the two.
      temperature: both distributions are those of logits / temperature; the divergence is multiplied by temperature².
      alpha: weight of the divergence; the cross-entropy with the data's own next token has weight 1 − alpha.
      jsd_mixture: the teacher's share of the mixture that jsd compares with; read by no other direction.
      top_k: compare the teacher's likeliest k tokens only; null compares the whole vocabulary.
      top_k_rest: with top_k, "ignore" renormalises both distributions on the k tokens, "one_class" keeps the probability of all
        others as that of one more.
    """

    direction: Direction = "forward_kl"
    temperature: Annotated[float, Gt(0)] = 2.0
    alpha: Annotated[float, Ge(0), Le(1)] = 0.5
    jsd_mixture: Annotated[float, Gt(0), Lt(1)] = 0.5
    top_k: Annotated[int, Gt(0)] | None = None
    top_k_rest: Literal["ignore", "one_class"] = "ignore"


@dataclasses.dataclass(kw_only=True)
class LayerKnobs:
    """What every strategy inside the models shares.

    Attributes:
      alpha: weight of the distance; the cross-entropy with the data's own next token has weight 1 − alpha.
      student_layers: layers that imitate, counted from 0; null: all.
      teacher_layers: the layer that each of them imitates; null: spread evenly over the teacher's depth, its last one included.
    """

    alpha: Annotated[float, Ge(0), Le(1)] = 0.75
    student_layers: list[int] | None = None
    teacher_layers: list[int] | None = None


@dataclasses.dataclass(kw_only=True)
class AttentionTransferKnobs(LayerKnobs):
    """The student's attention maps imitate the teacher's, https://arxiv.org/abs/2002.10957.

    Attributes:
      distance: "kl" KL(teacher ‖ student) over the keys of a query, "mse" their mean squared difference.
      teacher_heads: the teacher's head that each of the student's heads imitates; null compares the means over all heads.
    """

    distance: Literal["kl", "mse"] = "kl"
    teacher_heads: list[int] | None = None


@dataclasses.dataclass(kw_only=True)
class AttentionProjectionKnobs(LayerKnobs):
    """Learned mixtures of the student's attention maps imitate the map of each of the teacher's heads.

    Attributes:
      distance: "kl" KL(teacher ‖ student) over the keys of a query, "mse" their mean squared difference.
    """

    distance: Literal["kl", "mse"] = "kl"


@dataclasses.dataclass(kw_only=True)
class FeaturePoolingKnobs(LayerKnobs):
    """The student's hidden states point where the teacher's do, which are averaged down to the student's width.

    The distance is 1 − cosine. With neither student_layers nor teacher_layers the teacher's layers are averaged in groups, one
    for each of the student's, instead of single ones being taken.
    """


@dataclasses.dataclass(kw_only=True)
class FeatureProjectionKnobs(LayerKnobs):
    """The student's hidden states, through a linear map that is learned beside it, equal the teacher's.

    The distance is the mean squared difference, https://arxiv.org/abs/1412.6550.
    """
