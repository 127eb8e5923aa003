"""The algorithm of an experiment: the knobs that the trainers declare, plus the `kind` that chooses between them."""

import dataclasses
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from tunix_lab.sft.config import DpoKnobs, OrpoKnobs
from tunix_lab.spec.section import DataclassSection


@dataclasses.dataclass(kw_only=True)
class Sft(DataclassSection):
    """Next-token cross-entropy on the targets of each row."""

    kind: Literal["sft"] = "sft"


@dataclasses.dataclass(kw_only=True)
class Dpo(DataclassSection, DpoKnobs):
    __doc__ = DpoKnobs.__doc__

    kind: Literal["dpo"] = "dpo"


@dataclasses.dataclass(kw_only=True)
class Orpo(DataclassSection, OrpoKnobs):
    __doc__ = OrpoKnobs.__doc__

    kind: Literal["orpo"] = "orpo"


Algorithm: TypeAlias = Annotated[Sft | Dpo | Orpo, Field(discriminator="kind")]

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
    "train/margin",
    "train/accuracy",
    "train/chosen_logp",
    "train/rejected_logp",
    "eval/margin",
    "eval/accuracy",
}


def metric_names(algorithm: Algorithm) -> set[str]:
    """The metrics that training with `algorithm` produces, scores of samples aside."""
    match algorithm:
        case Sft():
            return _EVERY_METRIC
        case Dpo() | Orpo():
            return _EVERY_METRIC | _PREFERENCE_METRICS
