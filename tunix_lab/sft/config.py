"""What can be chosen about a training loop: one declaration for the library's classes and for the spec."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt

from tunix_lab._bounds import check_bounds

if TYPE_CHECKING:
    import orbax.checkpoint as ocp


@dataclasses.dataclass(kw_only=True, slots=True)
class MetricsLoggerOptions:
    """Where `MetricsLogger` writes.

    Attributes:
      log_dir: folder for TensorBoard's event files; required by the TensorBoard backend only.
      project_name: project at Weights & Biases; None writes nothing there.
      run_name: name of the run there.
      flush_every_n_steps: how often backends write to disk, in steps of the metrics' own counter.
      backend_factories: functions of no argument that make a backend each, in place of TensorBoard and Weights & Biases.
    """

    log_dir: str | None = None
    project_name: str | None = None
    run_name: str | None = None
    flush_every_n_steps: Annotated[int, Gt(0)] = 100
    backend_factories: list[Callable[[], Any]] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        check_bounds(self)

    def create_backends(self) -> list[Any]:
        """Fresh backends, see `sft.metrics_backends.create_backends`."""
        from tunix_lab.sft.metrics_backends import create_backends

        return create_backends(self)


@dataclasses.dataclass(kw_only=True, slots=True)
class ProfilerOptions:
    """A window of steps recorded with `jax.profiler`.

    Attributes:
      log_dir: folder that receives the trace.
      skip_first_n_steps: optimizer updates before the window opens (compilation would drown the rest).
      profiler_steps: optimizer updates in the window.
    """

    log_dir: str
    skip_first_n_steps: Annotated[int, Ge(0)] = 3
    profiler_steps: Annotated[int, Gt(0)] = 5

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclasses.dataclass(kw_only=True, slots=True)
class TrainingConfig:
    """How `PeftTrainer` runs. Every "step" here is one optimizer update.

    Attributes:
      eval_every_n_steps: updates between evaluations; the first evaluation comes before the first update.
      max_steps: updates to make; None trains until the data ends.
      gradient_accumulation_steps: micro-batches that make one update; None is one.
      checkpoint_root_directory: folder of checkpoints; None keeps none and restores none.
      checkpointing_options: Orbax's `CheckpointManagerOptions` (cadence, retention).
      metrics_logging_options: where metrics go beside the in-memory history.
      profiler_options: a profiler window; None profiles nothing.
      data_sharding_axis: mesh axes over which the rows of a batch are split.
      max_inflight_computations: updates that may be dispatched before the host waits for the oldest.
      master_dtype: trained parameters of lower precision are kept in this dtype (numpy name) and rounded to their own for every
        forward pass, so that updates smaller than their resolution add up; None trains them as they are.
      scan_layers: run a decoder's layers as a scan, which compiles one instead of all; their arrays, which must be of the same
        kinds in all layers, are stacked, copied once.
      remat: what the backward pass of a decoder computes again instead of keeping it: "none"; "dots", all but matrix products;
        "block", everything within a layer.
      skip_nonfinite: an update whose loss or gradient is not finite changes nothing, and is counted in the metric `skipped`.
      fingerprint_every_n_steps: hash what every update read and its gradient, and the parameters every so many updates; a hook
        gets the hashes, see `sft.fingerprint`. None hashes nothing.
      metrics_prefix: put before every metric name.
      pbar_description: label of the progress bar; None shows no bar.
    """

    eval_every_n_steps: Annotated[int, Gt(0)] = 100
    max_steps: Annotated[int, Gt(0)] | None = None
    gradient_accumulation_steps: Annotated[int, Gt(0)] | None = None
    checkpoint_root_directory: str | None = None
    checkpointing_options: "ocp.CheckpointManagerOptions | None" = None
    metrics_logging_options: MetricsLoggerOptions = dataclasses.field(default_factory=MetricsLoggerOptions)
    profiler_options: ProfilerOptions | None = None
    data_sharding_axis: tuple[str, ...] = ("fsdp",)
    max_inflight_computations: Annotated[int, Gt(0)] = 2
    master_dtype: str | None = "float32"
    scan_layers: bool = False
    remat: Literal["none", "dots", "block"] = "none"
    skip_nonfinite: bool = False
    fingerprint_every_n_steps: Annotated[int, Gt(0)] | None = None
    metrics_prefix: str = ""
    pbar_description: str | None = "Training"

    def __post_init__(self) -> None:
        check_bounds(self)

    def get_with_default(self, key: str, default: Any) -> Any:
        """The value of field `key`, or `default` where it is None."""
        value = getattr(self, key)
        return default if value is None else value


@dataclasses.dataclass(kw_only=True)
class PreferenceKnobs:
    """What every preference loss shares.

    Attributes:
      max_prompt_length: tokens of the prompt, left-padded to this length.
      max_response_length: tokens of each response, right-padded to this length.
    """

    max_prompt_length: Annotated[int, Gt(0)] = 512
    max_response_length: Annotated[int, Gt(0)] = 512


@dataclasses.dataclass(kw_only=True)
class DpoKnobs(PreferenceKnobs):
    """Direct preference optimization, https://arxiv.org/abs/2305.18290.

    Attributes:
      beta: strength of the pull towards the reference model, per nat.
      label_smoothing: probability that a preference label is flipped (conservative DPO).
      precompute_reference: take the reference's log-probabilities from the batches (`sft.dpo.reference` puts them there once
        per dataset), so that the reference need not stay in memory.
    """

    beta: Annotated[float, Gt(0)] = 0.1
    label_smoothing: Annotated[float, Ge(0), Lt(0.5)] = 0.0
    precompute_reference: bool = False


@dataclasses.dataclass(kw_only=True)
class IpoKnobs(PreferenceKnobs):
    """Identity preference optimization, https://arxiv.org/abs/2310.12036: DPO with a target for the margin; labels stay hard.

    Attributes:
      beta: strength of the pull towards the reference model; the margin is drawn to 1/(2·beta) nats.
      precompute_reference: as for DPO.
    """

    beta: Annotated[float, Gt(0)] = 0.1
    precompute_reference: bool = False


@dataclasses.dataclass(kw_only=True)
class OrpoKnobs(PreferenceKnobs):
    """Odds-ratio preference optimization, https://arxiv.org/abs/2403.07691.

    Attributes:
      lambda_orpo: weight of the odds-ratio term beside the likelihood of the chosen answer.
      label_smoothing: probability that a preference label is flipped.
    """

    label_smoothing: Annotated[float, Ge(0), Lt(0.5)] = 0.0
    lambda_orpo: Annotated[float, Gt(0)] = 0.1


@dataclasses.dataclass(kw_only=True)
class DPOTrainingConfig(TrainingConfig, DpoKnobs, OrpoKnobs):
    """`TrainingConfig` plus what DPO, IPO and ORPO choose.

    Attributes:
      algorithm: "dpo" and "ipo" (which need a reference model), or "orpo" (which needs none).
    """

    algorithm: Literal["dpo", "ipo", "orpo"] = "dpo"

    def __post_init__(self) -> None:
        if self.algorithm not in ("dpo", "ipo", "orpo"):
            raise ValueError(f"DPOTrainingConfig.algorithm must be 'dpo', 'ipo' or 'orpo', got {self.algorithm!r}")
        check_bounds(self)
