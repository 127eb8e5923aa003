"""The course of training: optimizer, steps and batches, checkpoints, device mesh, samples. Every step is an optimizer update."""

import re
from typing import Annotated, Literal, TypeAlias

from annotated_types import Ge, Gt, Le, Lt
from pydantic import Field, field_validator, model_validator

from tunix_lab.spec.section import REFERENCE_PATTERN, Section, Text

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")

Steps: TypeAlias = Annotated[int, Gt(0)]
Rows: TypeAlias = Annotated[int, Gt(0)]


class _Warmup(Section):
    warmup_steps: Annotated[int, Ge(0)] = 0
    """Steps over which the learning rate rises linearly from 0."""


class ConstantSchedule(_Warmup):
    """The peak learning rate throughout."""

    kind: Literal["constant"] = "constant"


class _Decay(_Warmup):
    end_factor: Annotated[float, Ge(0), Le(1)] = 0.0
    """Learning rate at max_steps, as a fraction of its peak."""


class LinearSchedule(_Decay):
    """From the peak down to end_factor at max_steps, in a straight line."""

    kind: Literal["linear"] = "linear"


class CosineSchedule(_Decay):
    """From the peak down to end_factor at max_steps, along half a cosine."""

    kind: Literal["cosine"] = "cosine"


Schedule: TypeAlias = Annotated[ConstantSchedule | LinearSchedule | CosineSchedule, Field(discriminator="kind")]


class OptimizerSpec(Section):
    """AdamW, https://arxiv.org/abs/1711.05101."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: Annotated[float, Gt(0)]
    """Peak learning rate."""
    b1: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Decay of the first moment."""
    b2: Annotated[float, Ge(0), Lt(1)] = 0.999
    """Decay of the second moment."""
    eps: Annotated[float, Gt(0)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """Decoupled weight decay, times the learning rate."""
    clip_norm: Annotated[float, Gt(0)] | None = 1.0
    """Largest global norm of a gradient; null clips nothing."""
    schedule: Schedule = ConstantSchedule()
    """How the learning rate changes over the steps."""


class TrainingSpec(Section):
    """Steps and batches."""

    max_steps: Steps
    """Optimizer updates to make."""
    batch_size: Rows
    """Rows (pairs, for preferences; prompts, for reinforcement learning) of one optimizer update."""
    micro_batch_size: Rows | None = None
    """Rows of one forward pass; divides batch_size. null: batch_size. Fewer rows need less memory and give the same update."""
    eval_every: Steps = 50
    """Steps between evaluations."""
    eval_batch_size: Rows = 32
    """Rows of one forward pass of an evaluation; for reinforcement learning, prompts that it answers at once."""
    log_every: Steps = 1
    """Steps between records of the training metrics."""
    scan_layers: bool = False
    """Compile one layer and run all as a scan: deep models start sooner. The weights are stacked, copied once."""
    remat: Literal["none", "dots", "block"] = "none"
    """What the backward pass computes again instead of keeping it: dots, all but matrix products; block, whole layers."""

    nonfinite: Literal["stop", "skip", "continue"] = "stop"
    """After a loss or gradient that is no number: stop, with the batch saved; skip the update and go on; or apply it."""
    fingerprint_every: Steps = 1
    """Steps between hashes of all parameters; batches and gradients are hashed at every step."""

    budget: str | None = None
    """Time that one process may take, such as 8h30m: it stops before, with a verified checkpoint, to be resumed. null: no end."""

    @property
    def budget_s(self) -> float | None:
        """The budget in seconds."""
        if self.budget is None:
            return None
        hours, minutes, seconds = (int(part or 0) for part in _DURATION.fullmatch(self.budget).groups())
        return 3600.0 * hours + 60.0 * minutes + seconds

    @field_validator("budget")
    @classmethod
    def _is_a_duration(cls, budget: str | None) -> str | None:
        if budget is not None and (not budget or _DURATION.fullmatch(budget) is None):
            raise ValueError(f"must be hours, minutes and seconds, such as 8h30m, 45m or 90s; got {budget!r}")
        return budget

    @property
    def rows_per_forward(self) -> int:
        """Rows of one forward pass of training."""
        return self.micro_batch_size or self.batch_size


class KeepBest(Section):
    """The best checkpoints by a metric of their own step; one that was not evaluated is no candidate."""

    metric: Text
    """For example eval/loss; also a score of samples, eval/exact_match."""
    higher_is_better: bool = False
    """Which way the metric improves."""
    count: Annotated[int, Gt(0)] = 1
    """How many stay on disk, beside the last ones."""


class CheckpointSpec(Section):
    """What a resumed run continues from."""

    every: Steps = 100
    """Steps between checkpoints."""
    keep_last: Annotated[int, Gt(0)] = 2
    """Newest checkpoints that stay on disk."""
    keep_best: KeepBest | None = None
    """Which others stay; null: none."""


class MeshSpec(Section):
    """How many devices split the batch and the parameters. -1, once at most: all remaining devices."""

    fsdp: Annotated[int, Ge(-1)] = -1
    """Devices over which the rows of a batch, and each parameter, are split."""
    tp: Annotated[int, Ge(-1)] = 1
    """Devices over which heads and hidden units are split (tensor parallelism)."""

    @field_validator("fsdp", "tp")
    @classmethod
    def _has_devices(cls, size: int) -> int:
        if size == 0:
            raise ValueError("must be at least 1, or -1 for all remaining devices; got 0")
        return size

    @model_validator(mode="after")
    def _one_is_known(self) -> "MeshSpec":
        if self.fsdp == self.tp == -1:
            raise ValueError("fsdp and tp cannot both be -1; say how many devices one of them has")
        return self

    def shape(self, devices: int) -> tuple[int, int]:
        """Sizes (fsdp, tp) of the mesh over all `devices`. Raises ValueError where they do not fill it exactly."""
        fsdp = devices // self.tp if self.fsdp == -1 else self.fsdp
        tp = devices // self.fsdp if self.tp == -1 else self.tp
        if fsdp * tp != devices:
            raise ValueError(f"fsdp {self.fsdp} x tp {self.tp} does not use {devices} device(s) exactly")
        return fsdp, tp


class SamplesSpec(Section):
    """Generations from held-out prompts, kept over the course of training."""

    every: Steps = 50
    """Steps between samples."""
    prompts: Text | None = None
    """JSONL file of prompts, relative to the project, in whose rows data.columns count too; null: the validation file. Runs
    with one file can be compared."""
    count: Annotated[int, Gt(0)] = 8
    """Prompts to answer, the first ones of the file."""
    max_new_tokens: Annotated[int, Gt(0)] = 64
    """Most tokens of an answer."""
    temperature: Annotated[float, Ge(0)] = 0.0
    """0 takes the likeliest token."""
    scorer: Annotated[str, Field(pattern=REFERENCE_PATTERN)] | None = None
    """`package.module:function` that scores answers; its mean is logged as eval/<function>. null: no score."""
