"""From a spec to the objects of a run: mesh, tokenizer, model, data, optimizer, trainer."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh

from tunix_lab.data.pipeline import EvalBatches, TrainBatches, eval_batches, train_batches
from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.errors import EnvironmentProblem, UserError
from tunix_lab.lab.datasets import Dataset, load_dataset
from tunix_lab.models.adapters import add_lora, merged_params
from tunix_lab.models.catalog import load_model
from tunix_lab.models.decoder import Decoder, init_decoder
from tunix_lab.models.sharding import make_mesh, state_shardings
from tunix_lab.perf.trace import HostTracer
from tunix_lab.sft.checkpoint_manager import CheckpointManager
from tunix_lab.sft.config import DPOTrainingConfig, TrainingConfig
from tunix_lab.sft.dpo.dpo_trainer import DPOTrainer
from tunix_lab.sft.metrics_logger import MetricsLogger
from tunix_lab.sft.peft_trainer import PeftTrainer
from tunix_lab.sft.train_state import Params, flat_params
from tunix_lab.spec import ExperimentSpec, check_devices
from tunix_lab.spec.algorithm import Dpo, Orpo, Sft
from tunix_lab.spec.model import LoraAdapter, NoAdapter, QloraAdapter
from tunix_lab.spec.training import ConstantSchedule, CosineSchedule, LinearSchedule, OptimizerSpec


@dataclasses.dataclass(frozen=True)
class Data:
    """The data of a run: both splits, and the batches made of them."""

    train: Dataset
    validation: Dataset
    train_batches: TrainBatches
    eval_batches: EvalBatches


def build_mesh(spec: ExperimentSpec) -> Mesh:
    """The mesh over all devices.

    Raises:
      UserError: the spec does not fit the devices there are.
      EnvironmentProblem: the devices that are asked for cannot be used.
    """
    try:
        n_devices = jax.device_count()
    except RuntimeError as error:
        raise EnvironmentProblem(f"no usable device: {error}") from error
    check_devices(spec, n_devices)
    return make_mesh(*spec.mesh.shape(n_devices))


def build_base(spec: ExperimentSpec, folder: Path | None, mesh: Mesh, tokenizer: Tokenizer) -> Decoder:
    """The model before training, without adapters.

    Args:
      spec: the experiment.
      folder: of the starting weights; None for random ones, see `origin.base_folder`.
      mesh: where the parameters go.
      tokenizer: of the data.

    Raises:
      UserError: its folder cannot be used, or the tokenizer has ids that it does not know.
    """
    config = spec.model.decoder_config()
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"model {spec.model.family} {spec.model.size} knows {config.vocab_size} ids, the tokenizer {tokenizer.folder} has "
            f"{tokenizer.vocab_size}: train a smaller tokenizer or take a larger model"
        )
    if folder is None:
        return init_decoder(config, spec.seed, lambda state: state_shardings(state, mesh))
    model = load_model(folder, mesh, dtype=config.dtype, param_dtype=config.param_dtype)
    if model.config != config:
        changed = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(model.config, f.name)]
        raise UserError(f"{folder}: not a {spec.model.family} {spec.model.size}: its config.json differs in {', '.join(changed)}")
    return model


def build_model(spec: ExperimentSpec, base: Decoder, mesh: Mesh) -> Decoder:
    """The model to train: the base itself, or the base with adapters."""
    match spec.adapter:
        case NoAdapter():
            return base
        case QloraAdapter(rank=rank, alpha=alpha, targets=targets, weight_qtype=qtype, tile_size=tile):
            return add_lora(
                base, rank=rank, alpha=alpha, targets=targets, seed=spec.seed, mesh=mesh, weight_qtype=qtype, tile_size=tile
            )
        case LoraAdapter(rank=rank, alpha=alpha, targets=targets):
            return add_lora(base, rank=rank, alpha=alpha, targets=targets, seed=spec.seed, mesh=mesh)


def build_data(spec: ExperimentSpec, home: Path, tokenizer: Tokenizer) -> Data:
    """Reads, renders and tokenises both splits.

    Raises:
      UserError: a file or a row cannot be used.
    """
    train = load_dataset(spec, home, "train", tokenizer)
    validation = load_dataset(spec, home, "validation", tokenizer)
    process = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    return Data(
        train,
        validation,
        train_batches(
            train.examples,
            batch_size=spec.training.batch_size,
            micro_batch_size=spec.training.rows_per_forward,
            seed=spec.seed,
            **process,
        ),
        eval_batches(validation.examples, spec.training.eval_batch_size, **process),
    )


def build_optimizer(spec: OptimizerSpec, max_steps: int) -> optax.GradientTransformation:
    """Clipping and AdamW under a schedule of optimizer updates."""
    adamw = optax.inject_hyperparams(optax.adamw, static_args=("b1", "b2", "eps", "weight_decay"))(
        learning_rate=build_schedule(spec, max_steps), b1=spec.b1, b2=spec.b2, eps=spec.eps, weight_decay=spec.weight_decay
    )
    clip = [] if spec.clip_norm is None else [optax.clip_by_global_norm(spec.clip_norm)]
    return optax.chain(*clip, adamw)


def build_schedule(spec: OptimizerSpec, max_steps: int) -> optax.Schedule:
    """Learning rate by update: linear warm-up from 0, then as the schedule's kind says until `max_steps`."""
    peak, warmup = spec.learning_rate, spec.schedule.warmup_steps
    left = max_steps - warmup
    match spec.schedule:
        case ConstantSchedule():
            after = optax.constant_schedule(peak)
        case LinearSchedule(end_factor=end):
            after = optax.linear_schedule(peak, peak * end, left)
        case CosineSchedule(end_factor=end):
            after = optax.cosine_decay_schedule(peak, left, alpha=end)
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(warmup, 1)), after], [warmup])


def build_trainer(
    spec: ExperimentSpec,
    model: Decoder,
    base: Decoder,
    tokenizer: Tokenizer,
    *,
    checkpoints: Path,
    identity: str,
    logger: MetricsLogger,
    on_saved: Callable[[int, Path, str], None],
) -> PeftTrainer:
    """The trainer of the spec's algorithm.

    Args:
      spec: the experiment.
      model: what is trained.
      base: the model before training; the frozen reference of DPO.
      tokenizer: of the data.
      checkpoints: folder of this run's checkpoints.
      identity: hash of spec and inputs, see `manifest.Inputs`.
      logger: receives the metrics.
      on_saved: called for every checkpoint that is complete on disk.
    """
    training = spec.training
    options = {
        "eval_every_n_steps": training.eval_every,
        "max_steps": training.max_steps,
        "gradient_accumulation_steps": training.batch_size // training.rows_per_forward,
        "pbar_description": spec.name,
    }
    manager = CheckpointManager(
        checkpoints,
        ocp.CheckpointManagerOptions(max_to_keep=spec.checkpoint.keep_last),
        every=spec.checkpoint.every,
        identity=identity,
        on_saved=on_saved,
    )
    services = {"metrics_logger": logger, "perf_tracer": HostTracer(), "checkpoint_manager": manager}
    optimizer = build_optimizer(spec.optimizer, training.max_steps)
    match spec.algorithm:
        case Sft():
            return PeftTrainer(model, optimizer, TrainingConfig(**options), **services)
        case Dpo() as dpo:
            config = DPOTrainingConfig(
                algorithm="dpo",
                beta=dpo.beta,
                label_smoothing=dpo.label_smoothing,
                max_prompt_length=dpo.max_prompt_length,
                max_response_length=dpo.max_response_length,
                **options,
            )
            reference = base if model is base else None  # with adapters their absence is the reference
            return DPOTrainer(model, reference, optimizer, config, tokenizer, **services)
        case Orpo() as orpo:
            config = DPOTrainingConfig(
                algorithm="orpo",
                lambda_orpo=orpo.lambda_orpo,
                label_smoothing=orpo.label_smoothing,
                max_prompt_length=orpo.max_prompt_length,
                max_response_length=orpo.max_response_length,
                **options,
            )
            return DPOTrainer(model, None, optimizer, config, tokenizer, **services)


def final_params(spec: ExperimentSpec, trainer: PeftTrainer, folder: Path | None, mesh: Mesh, tokenizer: Tokenizer) -> Params:
    """The trained model's plain weights; adapters are folded into the base, read again since the trained one may be quantized."""
    match spec.adapter:
        case NoAdapter():
            return flat_params(nnx.state(trainer.model))
        case LoraAdapter(rank=rank, alpha=alpha) | QloraAdapter(rank=rank, alpha=alpha):
            return merged_params(build_base(spec, folder, mesh, tokenizer), trainer.model, rank=rank, alpha=alpha)
