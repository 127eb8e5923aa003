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
from tunix_lab.rl.config import DapoKnobs, DrGrpoKnobs, GrpoKnobs, GspoKnobs, PpoKnobs, RlooKnobs
from tunix_lab.sft.config import DpoKnobs, IpoKnobs, OrpoKnobs
from tunix_lab.spec.model import ExperimentInit, HubInit, PathInit
from tunix_lab.spec.rl import CriticSpec, RewardFunction, RewardsSpec, RolloutSpec
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


@dataclasses.dataclass(kw_only=True)
class Reinforcement(DataclassSection):
    """What every algorithm of reinforcement learning has beside its knobs.

    Attributes:
      rollout: how answers are sampled.
      rewards: what they are worth.
    """

    rollout: RolloutSpec
    rewards: RewardsSpec


@dataclasses.dataclass(kw_only=True)
class Grpo(Reinforcement, GrpoKnobs):
    __doc__ = GrpoKnobs.__doc__

    kind: Literal["grpo"] = "grpo"


@dataclasses.dataclass(kw_only=True)
class Gspo(Reinforcement, GspoKnobs):
    __doc__ = GspoKnobs.__doc__

    kind: Literal["gspo"] = "gspo"


@dataclasses.dataclass(kw_only=True)
class Dapo(Reinforcement, DapoKnobs):
    __doc__ = DapoKnobs.__doc__

    kind: Literal["dapo"] = "dapo"


@dataclasses.dataclass(kw_only=True)
class DrGrpo(Reinforcement, DrGrpoKnobs):
    __doc__ = DrGrpoKnobs.__doc__

    kind: Literal["drgrpo"] = "drgrpo"


@dataclasses.dataclass(kw_only=True)
class Rloo(Reinforcement, RlooKnobs):
    __doc__ = RlooKnobs.__doc__

    kind: Literal["rloo"] = "rloo"


@dataclasses.dataclass(kw_only=True)
class Ppo(Reinforcement, PpoKnobs):
    __doc__ = PpoKnobs.__doc__

    kind: Literal["ppo"] = "ppo"
    critic: CriticSpec = CriticSpec()


Algorithm: TypeAlias = Annotated[
    Sft | Dpo | Ipo | Orpo | Distill | Grpo | Gspo | Dapo | DrGrpo | Rloo | Ppo, Field(discriminator="kind")
]

RL_PHASES = ("rollout_s", "reward_s", "logps_s", "step_s", "tokens_per_s", "data_s", "wait_s", "sync_s")
"""Gauges of where a reinforcement-learning run spends its time, under perf/."""

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
_RL_METRICS = {
    "train": (
        *("loss", "grad_norm", "learning_rate", "reward", "reward_std", "frac_zero_std_groups", "answer_tokens", "stopped"),
        *("entropy", "kl", "clip_fraction", "ratio", "logp_gap_mean", "logp_gap_max", "advantage_abs", "masked_answers"),
    ),
    "eval": ("loss", "reward", "answer_tokens", "stopped"),  # the loss is minus the mean reward
    "perf": RL_PHASES,
}
_PPO_METRICS = ("value_loss", "value_clip_fraction", "value_mean", "return_mean", "critic_grad_norm")


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
        case Reinforcement():
            metrics = [reward_metric(function) for function in algorithm.rewards.functions]
            return fixed_rl_metrics(algorithm) | {f"{mode}/{metric}" for mode in ("train", "eval") for metric in metrics}


def reward_metric(function: RewardFunction) -> str:
    """What the mean reward by one function is called, without train/ or eval/."""
    return f"reward_{function.label}"


def fixed_rl_metrics(algorithm: Reinforcement) -> set[str]:
    """The metrics of reinforcement learning with `algorithm`, rewards by function aside."""
    names = {f"{mode}/{name}" for mode, known in _RL_METRICS.items() for name in known}
    names -= set() if algorithm.beta else {"train/kl"}
    names -= set() if algorithm.num_generations > 1 else {"train/frac_zero_std_groups"}
    match algorithm:
        case Ppo():
            names |= {f"train/{name}" for name in _PPO_METRICS}
        case Dapo(dynamic_sampling=sampling, overlong_buffer_length=buffer):
            names |= {"train/sampling_rounds"} if sampling else set()
            names |= {"train/reward_overlong", "eval/reward_overlong"} if buffer else set()
    return names
