"""The models of reinforcement learning in one place: who lives where, who is sampled, who is trained, who only looks on."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from tunix_lab.data.tokenizer_adapter import TokenizerAdapter
from tunix_lab.perf.trace import HostTracer, Tracer
from tunix_lab.rl.config import ClusterConfig as ClusterConfig
from tunix_lab.rl.config import RLTrainingConfig as RLTrainingConfig
from tunix_lab.rl.config import Role as Role
from tunix_lab.rl.config import RolloutConfig
from tunix_lab.rl.experience import Batch, given_batch
from tunix_lab.rl.forward import Forward, completion_logps, completion_values
from tunix_lab.rl.inference_worker import InferenceWorker
from tunix_lab.rl.metrics_buffer import MetricsBuffer as MetricsBuffer
from tunix_lab.rl.metrics_buffer import MetricsBuffers
from tunix_lab.rl.placement import Placement
from tunix_lab.rl.prompts import prompt_ids
from tunix_lab.rl.rollout.base_rollout import RolloutOutput, make_rollout
from tunix_lab.rl.trainer import CriticTrainer, RLTrainer, critic_metrics
from tunix_lab.sft.config import TrainingConfig
from tunix_lab.sft.fingerprinting import tree_hash
from tunix_lab.sft.metrics_logger import MetricsLogger, Mode

# Purposes of random numbers; each mode samples on its own.
_MODE_KEYS = {Mode.TRAIN: 1, Mode.EVAL: 2}


class RLCluster:
    """Actor, critic, reference and reward model, and what samples from the actor.

    Attributes:
      actor_trainer: trains the actor, and the critic with it.
      critic_trainer: of the critic; None without one.
      inference_worker: runs reference and reward model.
      rollout: samples answers.
      perf: times the phases.
      tokenizer: of prompts and answers.
    """

    def __init__(
        self,
        *,
        actor: nnx.Module,
        critic: nnx.Module | None = None,
        reference: nnx.Module | None = None,
        reward: nnx.Module | None = None,
        tokenizer: Any,
        cluster_config: ClusterConfig,
        metrics_logger: MetricsLogger | None = None,
        perf_tracer: Tracer | None = None,
        **trainer_options: Any,
    ):
        """Puts every model in its place, and restores the newest usable checkpoint of the trained ones.

        Args:
          actor: the policy that is trained; with adapters only those are.
          critic: gives values [batch, seq, 1], see `models.value_head`; for PPO.
          reference: the frozen policy of the KL divergence; None where nothing needs one. Arrays that it shares with the actor
            (the base of adapters) are held once.
          reward: a reward model, which gives scores [batch, seq, 1].
          tokenizer: anything that `TokenizerAdapter` takes.
          cluster_config: where and how.
          metrics_logger: where metrics go; None makes one from the training configuration.
          perf_tracer: times the phases; None makes one.
          **trainer_options: further keyword arguments of `PeftTrainer`, for the actor's.

        Raises:
          ValueError: the configuration does not fit the models.
        """
        if jax.process_count() > 1:
            raise ValueError("reinforcement learning runs in one process, with all the devices that it sees")
        self.cluster_config = cluster_config
        self.tokenizer = TokenizerAdapter(tokenizer)
        self.perf = perf_tracer or HostTracer()
        training = cluster_config.training_config
        placement = Placement(cluster_config)
        frozen = {Role.REFERENCE: reference, Role.REWARD: reward}
        frozen = {role: placement.placed(role, model) for role, model in frozen.items() if model is not None}
        actor = placement.placed(Role.ACTOR, actor)
        critic = None if critic is None else placement.placed(Role.CRITIC, critic)
        held = [nnx.state(model) for model in (*frozen.values(), critic) if model is not None]
        self._buffers = MetricsBuffers()
        self.critic_trainer = None if critic is None else self._make_critic(critic, [nnx.state(actor), *held[: len(frozen)]])
        self.actor_trainer = RLTrainer(
            actor,
            training.actor_optimizer,
            training,
            critic=self.critic_trainer,
            held_elsewhere=held,
            offload=cluster_config.offload_to_cpu,
            metrics_logger=metrics_logger,
            perf_tracer=self.perf,
            **trainer_options,
        )
        self.temperature = cluster_config.rollout_for(Mode.TRAIN).temperature or 1.0
        meshes = {role: placement.mesh(role) for role in Role}
        self.inference_worker = InferenceWorker(
            frozen,
            meshes,
            self.temperature,
            offload=cluster_config.offload_to_cpu,
            held_elsewhere=self.actor_trainer.frozen,
        )
        self._old_logps = Forward(actor, lambda m, b: completion_logps(m, b, self.temperature), meshes[Role.ACTOR])
        self._values = None if critic is None else Forward(critic, completion_values, meshes[Role.CRITIC])
        self._is_apart = placement.is_apart(Role.ROLLOUT)
        self.rollout = make_rollout(
            cluster_config.rollout_engine,
            self.actor_trainer.model,
            self.tokenizer,
            _widest(cluster_config),
            meshes[Role.ROLLOUT] if self._is_apart else None,
        )
        self._synced_step: int | None = None
        self.sync_weights()

    def _make_critic(self, critic: nnx.Module, held: Sequence[nnx.State]) -> CriticTrainer:
        training = self.cluster_config.training_config
        config = TrainingConfig(
            pbar_description=None,
            master_dtype=training.master_dtype,
            remat=training.remat,
            skip_nonfinite=training.skip_nonfinite,
            fingerprint_every_n_steps=training.fingerprint_every_n_steps,
            data_sharding_axis=training.data_sharding_axis,
        )
        optimizer = training.critic_optimizer or training.actor_optimizer
        offload = self.cluster_config.offload_to_cpu
        return CriticTrainer(critic, optimizer, config, held_elsewhere=held, offload=offload)

    # ---- sampling --------------------------------------------------------------------------------------------------

    @property
    def global_steps(self) -> int:
        """Optimizer updates of the actor."""
        return self.actor_trainer.train_steps

    @property
    def is_synced(self) -> bool:
        """Whether answers are sampled with the actor's present weights."""
        return self._synced_step == self.global_steps

    def generate(
        self,
        prompts: Sequence[Any],
        apply_chat_template: bool = False,
        mode: Mode | str = Mode.TRAIN,
        micro_batch_size: int | None = None,
        *,
        num_generations: int = 1,
        sample_ids: Sequence[int] | None = None,
        round_number: int = 0,
    ) -> RolloutOutput:
        """Samples answers from the actor.

        An answer's random numbers are those of (seed, mode, updates made, its id): they depend neither on the other prompts nor
        on the size of micro-batches.

        Args:
          prompts: strings, conversations (lists of messages), or token ids.
          apply_chat_template: render strings as a user's turn; conversations always are.
          mode: whose `RolloutConfig` counts.
          micro_batch_size: prompts sampled from at once; None is the training configuration's, or all.
          num_generations: answers to each prompt.
          sample_ids: one per prompt, below 2**31 / num_generations; None is its index.
          round_number: of several calls for one update.

        Raises:
          RuntimeError: the actor was updated after the last `sync_weights`.
          UserError: a prompt is longer than `RolloutConfig.max_prompt_length`.
        """
        mode, config = Mode(mode), self.cluster_config.rollout_for(mode)
        if not self.is_synced:
            raise RuntimeError(
                f"answers would be sampled with the weights of step {self._synced_step}, the actor has made {self.global_steps} "
                "updates: call sync_weights() first"
            )
        ids = [prompt_ids(self.tokenizer, prompt, apply_chat_template, config.max_prompt_length) for prompt in prompts]
        numbers = np.arange(len(ids)) if sample_ids is None else np.asarray(sample_ids)
        rows = (numbers[:, None] * num_generations + np.arange(num_generations)) % 2**31
        seed = _seed(config, _MODE_KEYS[mode], self.global_steps, round_number)
        size = micro_batch_size or self.cluster_config.training_config.rollout_micro_batch_size or len(ids)
        self.actor_trainer.park()
        parts = [
            self.rollout.generate(
                ids[i : i + size],
                config,
                num_generations=num_generations,
                seed=seed,
                sample_ids=rows[i : i + size].ravel().astype(np.int32),
            )
            for i in range(0, len(ids), size)
        ]
        return sum(parts[1:], parts[0])

    def sync_weights(self) -> None:
        """Hands the actor's weights to the rollout.

        Raises:
          RuntimeError: weights sent to another mesh are not, bit for bit, those that were sent.
        """
        with self.perf.span("sync"):
            trainer = self.actor_trainer
            params = nnx.state(trainer.model, nnx.LoRAParam if trainer.is_lora else nnx.Param)
            self.rollout.update_params(params)
            if self._is_apart:
                sent = {path for path, _ in nnx.to_flat_state(params)}
                received = [(path, v) for path, v in nnx.to_flat_state(self.rollout.params()) if path in sent]
                if tree_hash(params) != tree_hash(nnx.from_flat_state(received)):
                    raise RuntimeError("the rollout's weights are not those that the actor sent")
            self._synced_step = self.global_steps

    # ---- looking on ------------------------------------------------------------------------------------------------

    def get_old_per_token_logps(
        self,
        prompt_tokens: np.ndarray,
        completion_tokens: np.ndarray,
        pad_id: int | None = None,
        eos_id: int | None = None,
        micro_batch_size: int | None = None,
        **masks: np.ndarray,
    ) -> np.ndarray:
        """The present actor's log-probabilities of the answers' tokens at the sampling temperature, float32 [rows, tokens], nats.

        Args:
          prompt_tokens: int [rows, P], padded on the left.
          completion_tokens: int [rows, T], padded on the right.
          pad_id: what pads them; only read where a mask is missing.
          eos_id: ends an answer; likewise.
          micro_batch_size: rows of one pass; None is the training configuration's, or all.
          **masks: prompt_mask, bool [rows, P], True where a token is real; without it all are but the leading run of `pad_id`.
            completion_mask, bool [rows, T], likewise; without it all are up to the first `eos_id`, or to the trailing `pad_id`s.
        """
        batch = given_batch(prompt_tokens, completion_tokens, pad_id, eos_id, **masks)
        return self._old_logps(nnx.split(self.actor_trainer.model)[1], batch, self._rows_at_once(micro_batch_size))

    def get_ref_per_token_logps(
        self,
        prompt_tokens: np.ndarray,
        completion_tokens: np.ndarray,
        pad_id: int | None = None,
        eos_id: int | None = None,
        micro_batch_size: int | None = None,
        **masks: np.ndarray,
    ) -> np.ndarray:
        """The same of the reference; for the arguments see `get_old_per_token_logps`."""
        batch = given_batch(prompt_tokens, completion_tokens, pad_id, eos_id, **masks)
        return self.inference_worker.get_ref_per_token_logps(batch, self._rows_at_once(micro_batch_size))

    def get_values(
        self,
        prompt_tokens: np.ndarray,
        completion_tokens: np.ndarray,
        pad_id: int | None = None,
        eos_id: int | None = None,
        micro_batch_size: int | None = None,
        *,
        with_last: bool = False,
        **masks: np.ndarray,
    ) -> np.ndarray:
        """The critic's value before each token of the answers, float32 [rows, tokens]; for the arguments see there.

        With `with_last` also the value behind the last token, [rows, tokens + 1].
        """
        if self._values is None:
            raise ValueError("the cluster has no critic: RLCluster(…, critic=…)")
        batch = given_batch(prompt_tokens, completion_tokens, pad_id, eos_id, **masks)
        values = self._values(nnx.split(self.critic_trainer.model)[1], batch, self._rows_at_once(micro_batch_size))
        return np.asarray(values if with_last else values[:, :-1], np.float32)

    def get_rewards(
        self,
        prompt_tokens: np.ndarray,
        completion_tokens: np.ndarray,
        pad_id: int | None = None,
        eos_id: int | None = None,
        micro_batch_size: int | None = None,
        **masks: np.ndarray,
    ) -> np.ndarray:
        """The reward model's score of each answer, float32 [rows]; for the arguments see there."""
        batch = given_batch(prompt_tokens, completion_tokens, pad_id, eos_id, **masks)
        return self.inference_worker.get_rewards(batch, self._rows_at_once(micro_batch_size))

    def _rows_at_once(self, rows: int | None) -> int | None:
        return rows if rows is not None else self.cluster_config.training_config.compute_logps_micro_batch_size

    # ---- training --------------------------------------------------------------------------------------------------

    def update_actor(
        self, train_ds: Batch | Iterable[Batch], eval_ds: Iterable[Batch] | None = None, skip_jit: bool = False
    ) -> None:
        """One update of the actor from a batch, or from micro-batches, see `rl.experience`.

        Its metrics are logged before the next one. `eval_ds` is evaluated behind it, with the same loss.
        """
        self._update(self.actor_trainer, train_ds, eval_ds, skip_jit)

    def update_critic(
        self, train_ds: Batch | Iterable[Batch], eval_ds: Iterable[Batch] | None = None, skip_jit: bool = False
    ) -> None:
        """The same of the critic."""
        if self.critic_trainer is None:
            raise ValueError("the cluster has no critic: RLCluster(…, critic=…)")
        self._update(self.critic_trainer, train_ds, eval_ds, skip_jit)

    def _update(self, trainer: Any, train_ds: Batch | Iterable[Batch], eval_ds: Iterable[Batch] | None, skip_jit: bool) -> None:
        if trainer is self.actor_trainer:
            self._flush()  # of the update before
        step = self.global_steps
        metrics = trainer.update([train_ds] if isinstance(train_ds, Mapping) else list(train_ds), skip_jit)
        named = metrics if trainer is self.actor_trainer else critic_metrics(metrics)
        values = {name: float(value) for name, value in named.items() if isinstance(value, jax.Array)}
        self._buffers.add(values, Mode.TRAIN, step)
        if eval_ds is not None:
            self._buffers.add(trainer.losses(eval_ds), Mode.EVAL, step)

    def _flush(self) -> None:
        """Logs what was buffered up to the present step."""
        for mode in (Mode.TRAIN, Mode.EVAL):
            metrics = self.take_metrics(mode, self.global_steps)
            if metrics:
                self.actor_trainer.metrics_logger.log_all(metrics, self.global_steps, mode)

    def take_metrics(self, mode: Mode, step: int) -> dict[str, float]:
        """Empties the buffers of a mode up to `step`, tells the external logger, and returns their numbers."""
        return self._buffers.take(mode, step)

    # ---- metrics ---------------------------------------------------------------------------------------------------

    def buffer_metrics(self, metrics: Mapping[str, Any], mode: Mode | str = Mode.TRAIN) -> None:
        """Keeps metrics until the step that they belong to is told of.

        Args:
          metrics: by name a number, or (number, function that makes one number of several); None is their mean.
          mode: what they were measured on.
        """
        self._buffers.add(metrics, mode, self.global_steps)

    def buffer_metrics_async(self, metrics: Mapping[str, Any], mode: Mode | str = Mode.TRAIN, step: int | None = None) -> None:
        """`buffer_metrics` for a step that is not the present one."""
        self._buffers.add(metrics, mode, self.global_steps if step is None else step)

    def with_external_metrics_logger(self, logger: Callable[[MetricsBuffer], None]) -> "RLCluster":
        """Calls `logger` with the whole buffer of a step when it is told of."""
        self._buffers.external_logger = logger
        return self

    def close(self) -> None:
        """Logs what is buffered, finishes checkpoints and lets go of everything."""
        self._flush()
        self.actor_trainer.close()
        if self.critic_trainer is not None:
            self.critic_trainer.close()


def _widest(config: ClusterConfig) -> RolloutConfig:
    """How training samples, with room for what evaluations sample too."""
    train, evaluation = (config.rollout_for(mode) for mode in (Mode.TRAIN, Mode.EVAL))
    sizes = (train.kv_cache_size, evaluation.kv_cache_size)
    return dataclasses.replace(
        train,
        max_tokens_to_generate=max(train.max_tokens_to_generate, evaluation.max_tokens_to_generate),
        max_prompt_length=max(train.max_prompt_length, evaluation.max_prompt_length),
        kv_cache_size=None if None in sizes else max(sizes),
    )


def _seed(config: RolloutConfig, *purpose: int) -> int:
    """A seed below 2**31 of the configuration's own and of what it is for."""
    given = config.seed
    root = [0] if given is None else [given] if isinstance(given, int) else np.asarray(_key_bits(given)).ravel().tolist()
    return int(np.random.SeedSequence([*root, *purpose]).generate_state(1)[0] >> 1)


def _key_bits(key: jax.Array) -> jax.Array:
    return jax.random.key_data(key) if jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key) else key
