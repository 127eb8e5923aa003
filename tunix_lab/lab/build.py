"""From a spec to the objects of a run: mesh, tokenizer, model, data, optimizer, trainer."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from tunix_lab.data.pipeline import EvalBatches, TrainBatches, eval_batches, train_batches
from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.distillation import strategies
from tunix_lab.distillation.distillation_trainer import DistillationTrainer
from tunix_lab.errors import EnvironmentProblem, UserError
from tunix_lab.lab import origin
from tunix_lab.lab.build_rl import Telling, build_rl_trainer
from tunix_lab.lab.datasets import Dataset, buckets_of, load_dataset
from tunix_lab.lab.prompt_batches import PromptEvalBatches, PromptTrainBatches
from tunix_lab.lab.prompts import Prompt, sample_prompts
from tunix_lab.models.adapters import adapter_off, add_lora, has_adapters, merged_params
from tunix_lab.models.catalog import load_model
from tunix_lab.models.decoder import Decoder, init_decoder
from tunix_lab.models.sharding import make_mesh
from tunix_lab.models.value_head import ValueModel, value_model
from tunix_lab.perf.trace import HostTracer
from tunix_lab.sft.checkpoint_manager import CheckpointManager
from tunix_lab.sft.config import DPOTrainingConfig, TrainingConfig
from tunix_lab.sft.dpo.dpo_trainer import DPOTrainer
from tunix_lab.sft.dpo.reference import with_reference_logps
from tunix_lab.sft.metrics_logger import MetricsLogger
from tunix_lab.sft.peft_trainer import PeftTrainer
from tunix_lab.sft.retention import Best, Retention
from tunix_lab.sft.train_state import Params, flat_params
from tunix_lab.spec import ExperimentSpec, check_devices
from tunix_lab.spec.algorithm import (
    AttentionProjection,
    AttentionTransfer,
    Distill,
    DistillStrategy,
    Dpo,
    FeaturePooling,
    FeatureProjection,
    Ipo,
    Logits,
    Orpo,
    Ppo,
    Reinforcement,
    Sft,
)
from tunix_lab.spec.data import PromptData
from tunix_lab.spec.model import LoraAdapter, NoAdapter, QloraAdapter
from tunix_lab.spec.rl_checks import rollout_prompts
from tunix_lab.spec.training import CheckpointSpec, ConstantSchedule, CosineSchedule, LinearSchedule, OptimizerSpec


@dataclasses.dataclass(frozen=True)
class Data:
    """The data of a run: both splits, the batches made of them, and the prompts that are answered while it trains."""

    train: Dataset
    validation: Dataset
    prompts: list[Prompt]
    train_batches: TrainBatches | PromptTrainBatches
    eval_batches: EvalBatches | PromptEvalBatches


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
        return init_decoder(config, spec.seed, mesh)
    model = load_model(folder, mesh, dtype=config.dtype, param_dtype=config.param_dtype)
    if model.config != config:
        changed = [name for name, value in vars(config).items() if value != vars(model.config)[name]]
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


def build_teacher(spec: ExperimentSpec, folder: Path | None, mesh: Mesh, tokenizer: Tokenizer) -> Decoder | None:
    """The frozen teacher, of whatever family and size its folder holds; None where `folder` is None.

    Raises:
      UserError: its folder cannot be used, or its tokenizer is not that of the data.
    """
    if folder is None:
        return None
    own = Tokenizer.load(folder)
    if [own.token_text(i) for i in range(own.vocab_size)] != [tokenizer.token_text(i) for i in range(tokenizer.vocab_size)]:
        raise UserError(
            f"algorithm.teacher: the tokens of {folder} are not those of {tokenizer.folder}, so its next-token distributions are "
            "about other tokens than the student's: take a teacher of the same tokenizer, or set tokenizer.path to the teacher's"
        )
    return load_model(folder, mesh, dtype=spec.model.dtype)


def build_data(spec: ExperimentSpec, home: Path, tokenizer: Tokenizer, cache: Path | None = None) -> Data:
    """Reads, renders and tokenises both splits; `cache` is a folder that keeps what was tokenised, if given.

    Raises:
      UserError: a file or a row cannot be used.
    """
    train = load_dataset(spec, home, "train", tokenizer, cache=cache)
    validation = load_dataset(spec, home, "validation", tokenizer, cache=cache)
    return make_batches(spec, train, validation, sample_prompts(spec, home, validation, tokenizer))


def with_reference(spec: ExperimentSpec, data: Data, model: Decoder, base: Decoder, cache: Path) -> Data:
    """The data with the reference's log-probabilities in it, where the spec wants them computed beforehand.

    Args:
      spec: the experiment.
      data: of preferences.
      model: what will be trained.
      base: the model before training.
      cache: folder that keeps the results.
    """
    match spec.algorithm:
        case Dpo(precompute_reference=True) | Ipo(precompute_reference=True):
            reference = adapter_off(model) if has_adapters(model) else base
        case _:
            return data

    def extended(dataset: Dataset) -> Dataset:
        size = spec.training.eval_batch_size
        examples = [with_reference_logps(reference, part.examples, size, cache) for part in dataset.parts]
        parts = [dataclasses.replace(part, examples=rows) for part, rows in zip(dataset.parts, examples, strict=True)]
        return dataclasses.replace(dataset, parts=parts)

    return make_batches(spec, extended(data.train), extended(data.validation), data.prompts)


def make_batches(spec: ExperimentSpec, train: Dataset, validation: Dataset, prompts: list[Prompt]) -> Data:
    """Both splits with the batches of this process, beside the prompts."""
    buckets = buckets_of(spec.data)
    process = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    if isinstance(spec.data, PromptData):
        answered = PromptTrainBatches(train, prompts=rollout_prompts(spec), seed=spec.seed, **process)
        return Data(train, validation, prompts, answered, PromptEvalBatches(validation, spec.training.eval_batch_size))
    return Data(
        train,
        validation,
        prompts,
        train_batches(
            train.examples,
            batch_size=spec.training.batch_size,
            micro_batch_size=spec.training.rows_per_forward,
            seed=spec.seed,
            mixture=train.mixture(),
            buckets=buckets,
            **process,
        ),
        eval_batches(validation.examples, spec.training.eval_batch_size, buckets=buckets, **process),
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
    teacher: Decoder | None,
    tokenizer: Tokenizer,
    mesh: Mesh,
    *,
    home: Path,
    checkpoints: Path,
    identity: str,
    logger: MetricsLogger,
    on_saved: Callable[[int, Path, str], None],
    on_failed: Callable[[int, str], None],
    telling: Telling,
) -> PeftTrainer:
    """The trainer of the spec's algorithm.

    Args:
      spec: the experiment.
      model: what is trained.
      base: the model before training; the frozen reference of DPO.
      teacher: of distillation; None for every other algorithm.
      tokenizer: of the data.
      mesh: where everything lies.
      home: the project folder.
      checkpoints: folder of this run's checkpoints.
      identity: hash of spec and inputs, see `manifest.Inputs`.
      logger: receives the metrics.
      on_saved: called for every checkpoint that is complete on disk.
      on_failed: called for every checkpoint that could not be written.
      telling: who is told of rollouts.
    """
    training = spec.training
    options = {
        "eval_every_n_steps": training.eval_every,
        "max_steps": training.max_steps,
        "gradient_accumulation_steps": training.batch_size // training.rows_per_forward,
        "scan_layers": training.scan_layers,
        "remat": training.remat,
        "skip_nonfinite": training.nonfinite == "skip",
        "fingerprint_every_n_steps": training.fingerprint_every,
        "pbar_description": spec.name,
    }
    manager = CheckpointManager(
        checkpoints,
        retention=retention(spec.checkpoint),
        every=spec.checkpoint.every,
        identity=identity,
        on_saved=on_saved,
        on_failed=on_failed,
    )
    services = {"metrics_logger": logger, "perf_tracer": HostTracer(), "checkpoint_manager": manager}
    optimizer = build_optimizer(spec.optimizer, training.max_steps)
    match spec.algorithm:
        case Sft():
            return PeftTrainer(model, optimizer, TrainingConfig(**options), **services)
        case Dpo() | Ipo() | Orpo() as preference:
            config = DPOTrainingConfig(algorithm=preference.kind, **_knobs(preference), **options)
            # With adapters their absence is the reference; what was computed beforehand needs none.
            needs_reference = model is base and not isinstance(preference, Orpo) and not config.precompute_reference
            return DPOTrainer(model, base if needs_reference else None, optimizer, config, tokenizer, **services)
        case Distill(strategy=chosen):
            strategy = build_strategy(chosen, spec.seed)
            try:
                strategy.check(model, teacher)
            except ValueError as error:
                raise UserError(f"algorithm.strategy: {error}") from error
            services |= {"strategy": strategy, "vocab_mapping": _vocab_mapping(model, teacher, tokenizer)}
            return DistillationTrainer(model, teacher, optimizer, TrainingConfig(**options), **services)
        case Reinforcement() as algorithm:
            critic = build_critic(spec, model, base, mesh, home, tokenizer)
            of_critic = build_critic_optimizer(spec) if isinstance(algorithm, Ppo) else None
            rest = {"optimizers": (optimizer, of_critic), "options": options, "services": services, "telling": telling}
            return build_rl_trainer(spec, model, base, critic, tokenizer, mesh, home, **rest)


def build_critic(
    spec: ExperimentSpec, model: Decoder, base: Decoder, mesh: Mesh, home: Path, tokenizer: Tokenizer
) -> ValueModel | None:
    """The critic of PPO, on the weights that the actor starts from or on others; where the actor has adapters it has its own."""
    if not isinstance(spec.algorithm, Ppo):
        return None
    folder = origin.critic_folder(spec, home)
    backbone = base if folder is None else build_base(spec, folder, mesh, tokenizer)
    return value_model(backbone if model is base else build_model(spec, backbone, mesh))


def build_critic_optimizer(spec: ExperimentSpec) -> optax.GradientTransformation | None:
    """The actor's, with a learning rate of its own; None where that is the actor's."""
    rate = spec.algorithm.critic.learning_rate
    changed = spec.optimizer.model_copy(update={"learning_rate": rate})
    return None if rate is None else build_optimizer(changed, spec.training.max_steps)


def retention(spec: CheckpointSpec) -> Retention:
    """Which checkpoints stay on disk."""
    best = spec.keep_best
    return Retention(spec.keep_last, None if best is None else Best(best.metric, best.higher_is_better, best.count))


def _knobs(section: Any) -> dict[str, Any]:
    """The fields of an algorithm's section, which are those of the trainer's own configuration."""
    return {field.name: getattr(section, field.name) for field in dataclasses.fields(section) if field.name != "kind"}


def build_strategy(spec: DistillStrategy, seed: int) -> strategies.Strategy:
    """What a student learns from its teacher."""
    knobs = _knobs(spec)
    match spec:
        case Logits():
            return strategies.LogitStrategy(**knobs)
        case AttentionTransfer():
            return strategies.AttentionTransferStrategy(**knobs)
        case AttentionProjection():
            return strategies.AttentionProjectionStrategy(**knobs)
        case FeaturePooling():
            return strategies.FeaturePoolingStrategy(**knobs)
        case FeatureProjection():
            return strategies.FeatureProjectionStrategy(**knobs, seed=seed)


def _vocab_mapping(student: Decoder, teacher: Decoder, tokenizer: Tokenizer) -> np.ndarray | None:
    """Models of one tokenizer whose tables differ in rows that no token uses: the tokens are the same; None for equal tables."""
    ours, theirs = student.config.vocab_size, teacher.config.vocab_size
    ids = np.arange(theirs)
    return None if ours == theirs else np.where(ids < tokenizer.vocab_size, ids, -1)


def final_params(spec: ExperimentSpec, trainer: PeftTrainer, folder: Path | None, mesh: Mesh, tokenizer: Tokenizer) -> Params:
    """The trained model's plain weights; adapters are folded into the base, read again since the trained one may be quantized."""
    match spec.adapter:
        case NoAdapter():
            return flat_params(nnx.state(trainer.model))
        case LoraAdapter(rank=rank, alpha=alpha) | QloraAdapter(rank=rank, alpha=alpha):
            return merged_params(build_base(spec, folder, mesh, tokenizer), trainer.model, rank=rank, alpha=alpha)
