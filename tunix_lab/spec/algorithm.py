"""The algorithm of an experiment: the knobs that the trainers declare, plus the `kind` that chooses between them."""

import dataclasses
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from tunix_lab.distillation.config import (
    AttentionProjectionKnobs,
    AttentionTransferKnobs,
    FeaturePoolingKnobs,
    FeatureProjectionKnobs,
    LogitKnobs,
)
from tunix_lab.sft.config import DpoKnobs, IpoKnobs, OrpoKnobs
from tunix_lab.spec.model import ExperimentInit, HubInit, PathInit
from tunix_lab.spec.section import DataclassSection, Section


@dataclasses.dataclass(kw_only=True)
class Sft(DataclassSection):
    """Next-token cross-entropy on the targets of each row."""

    kind: Literal["sft"] = "sft"


@dataclasses.dataclass(kw_only=True)
class Dpo(DataclassSection, DpoKnobs):
    __doc__ = DpoKnobs.__doc__

    kind: Literal["dpo"] = "dpo"


@dataclasses.dataclass(kw_only=True)
class Ipo(DataclassSection, IpoKnobs):
    __doc__ = IpoKnobs.__doc__

    kind: Literal["ipo"] = "ipo"


@dataclasses.dataclass(kw_only=True)
class Orpo(DataclassSection, OrpoKnobs):
    __doc__ = OrpoKnobs.__doc__

    kind: Literal["orpo"] = "orpo"


@dataclasses.dataclass(kw_only=True)
class Logits(DataclassSection, LogitKnobs):
    __doc__ = LogitKnobs.__doc__

    kind: Literal["logits"] = "logits"


@dataclasses.dataclass(kw_only=True)
class AttentionTransfer(DataclassSection, AttentionTransferKnobs):
    __doc__ = AttentionTransferKnobs.__doc__

    kind: Literal["attention_transfer"] = "attention_transfer"


@dataclasses.dataclass(kw_only=True)
class AttentionProjection(DataclassSection, AttentionProjectionKnobs):
    __doc__ = AttentionProjectionKnobs.__doc__

    kind: Literal["attention_projection"] = "attention_projection"


@dataclasses.dataclass(kw_only=True)
class FeaturePooling(DataclassSection, FeaturePoolingKnobs):
    __doc__ = FeaturePoolingKnobs.__doc__

    kind: Literal["feature_pooling"] = "feature_pooling"


@dataclasses.dataclass(kw_only=True)
class FeatureProjection(DataclassSection, FeatureProjectionKnobs):
    __doc__ = FeatureProjectionKnobs.__doc__

    kind: Literal["feature_projection"] = "feature_projection"


DistillStrategy: TypeAlias = Annotated[
    Logits | AttentionTransfer | AttentionProjection | FeaturePooling | FeatureProjection, Field(discriminator="kind")
]
Teacher: TypeAlias = Annotated[ExperimentInit | PathInit | HubInit, Field(discriminator="kind")]


class Distill(Section):
    """Learn from a frozen teacher, whose family and size may differ and whose tokenizer may not."""

    kind: Literal["distill"] = "distill"
    teacher: Teacher
    """Whose weights the teacher has."""
    strategy: DistillStrategy = Logits()
    """What is learned from it."""


Algorithm: TypeAlias = Annotated[Sft | Dpo | Ipo | Orpo | Distill, Field(discriminator="kind")]

_EVERY_METRIC = {
    "train/loss",
    "train/grad_norm",
    "train/learning_rate",
    "train/tokens",
    "eval/loss",
    "perf/step_s",
    "perf/tokens_per_s",
    "perf/data_s",
}
_PREFERENCE_METRICS = {
    f"{mode}/{name}"
    for mode in ("train", "eval")
    for name in ("margin", "accuracy", "chosen_reward", "rejected_reward", "chosen_logp", "rejected_logp")
}
_ORPO_METRICS = {f"{mode}/{name}" for mode in ("train", "eval") for name in ("sft_loss", "or_loss", "log_odds_ratio")}
_DISTILLATION_METRICS = {"train/soft_loss", "train/hard_loss", "eval/soft_loss", "eval/hard_loss"}


def metric_names(algorithm: Algorithm) -> set[str]:
    """The metrics that training with `algorithm` produces, scores of samples aside."""
    match algorithm:
        case Sft():
            return _EVERY_METRIC
        case Dpo() | Ipo():
            return _EVERY_METRIC | _PREFERENCE_METRICS
        case Orpo():
            return _EVERY_METRIC | _PREFERENCE_METRICS | _ORPO_METRICS
        case Distill(strategy=Logits()):
            return _EVERY_METRIC | _DISTILLATION_METRICS | {"train/kl", "eval/kl"}
        case Distill():
            return _EVERY_METRIC | _DISTILLATION_METRICS
