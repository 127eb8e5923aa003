"""The training loop of reinforcement learning: `PeftTrainer` over what is sampled, with a critic if there is one."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from tunix_lab.models.decoder import for_training
from tunix_lab.models.sharding import row_parts
from tunix_lab.models.value_head import ValueModel
from tunix_lab.rl.experience import Batch
from tunix_lab.rl.offload import parked, unparked
from tunix_lab.rl.packing import packed
from tunix_lab.sft.batches import stack
from tunix_lab.sft.config import TrainingConfig
from tunix_lab.sft.fingerprinting import GRADIENT
from tunix_lab.sft.hooks import DataHooks
from tunix_lab.sft.peft_trainer import PeftTrainer
from tunix_lab.sft.train_state import TrainState, copy_shared, snapshot

_CRITIC = "critic"


class ExperienceSource(Protocol):
    """What a learner gives its trainer."""

    def updates(self, prompts: Iterable[Any]) -> Iterator[list[Batch]]:
        """The micro-batches of each update: an iterator that can save its state and go back there."""

    @property
    def between_rollouts(self) -> bool:
        """Whether all that was sampled has been trained on."""

    def told(self, step: int, rows: dict[str, np.ndarray]) -> dict[str, float]:
        """Metrics of update `step`, made of what the loss kept by row, and of its rollout."""

    def check(self) -> None:
        """Called when the metrics of an update are logged; raises what ends the training."""

    def evaluate(self, prompts: Iterable[Any]) -> dict[str, float]:
        """Metrics of answers to other prompts, `loss` among them."""

    def close(self) -> None:
        """Lets go of what runs beside the trainer."""


class ModelTrainer(PeftTrainer):
    """A `PeftTrainer` that can make single updates, and whose parameters nobody else's memory is."""

    def __init__(
        self,
        model: nnx.Module,
        optimizer: optax.GradientTransformation,
        training_config: TrainingConfig,
        *,
        held_elsewhere: Sequence[nnx.State] = (),
        offload: bool = False,
        **trainer_options: Any,
    ):
        """Prepares training.

        Args:
          model: what is trained.
          optimizer: the whole optimizer.
          training_config: how to run.
          held_elsewhere: arrays that other models hold too; an update would take them away from those.
          offload: whether `park` moves the optimizer's state into the host's memory.
          **trainer_options: the keyword arguments of `PeftTrainer`.
        """
        self._held_elsewhere = held_elsewhere
        self._offload = offload
        super().__init__(model, optimizer, training_config, **trainer_options)
        self._held_elsewhere = ()  # looked at once; they may move
        self.with_gen_model_input_fn(lambda batch: {"batch": batch})

    def _own(self, params: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return copy_shared(params, self._held_elsewhere)

    @property
    def row_parts(self) -> int:
        """The devices over which the rows of a batch are split."""
        return row_parts(self._mesh, self.config.data_sharding_axis)

    def _stacked(self, prepared: list[Batch]) -> Any:
        return stack(packed(prepared, self.row_parts))

    def _count_tokens(self, inputs: Batch) -> int:
        return int(inputs["prompt_mask"].sum() + inputs["completion_mask"].sum())

    def update(self, micro_batches: Sequence[Batch], skip_jit: bool = False) -> dict[str, Any]:
        """One update, outside `train`: without evaluation, checkpoint or hooks. Returns its metrics, on the devices."""
        step, _ = self.jit_train_and_eval_step(skip_jit)
        metrics = PeftTrainer._step(self, step, self._place(self._stacked(list(micro_batches)), leading=1))
        self._train_steps += 1
        self._iter_steps += len(micro_batches)
        return metrics

    def losses(self, batches: Iterable[Batch]) -> dict[str, float]:
        """The loss and its metrics over batches, without an update."""
        return PeftTrainer._evaluate(self, batches, self.jit_train_and_eval_step()[1])

    def park(self) -> None:
        """Moves the optimizer's state into the host's memory until the next update, if that was asked for."""
        if self._offload:
            self._state = dataclasses.replace(self._state, opt_state=parked(self._state.opt_state))

    def jit_train_and_eval_step(
        self, skip_jit: bool = False, *, cache_nnx_graph: bool = False
    ) -> tuple[Callable[..., Any], Callable[..., Any]]:
        train, evaluate = super().jit_train_and_eval_step(skip_jit, cache_nnx_graph=cache_nnx_graph)
        return (lambda state, *rest: train(unparked(state), *rest)) if self._offload else train, evaluate


class CriticTrainer(ModelTrainer):
    """Trains a critic, on the batches of the actor and in step with it."""

    def _as_run(self, model: nnx.Module) -> nnx.Module:
        if self.config.remat == "none" or not isinstance(model, ValueModel):
            return model
        graph, state = nnx.split(model)
        changed = nnx.merge(graph, snapshot(state))
        changed.backbone = for_training(changed.backbone, scan_layers=False, remat=self.config.remat)
        return changed

    def follow(self, step: Callable[..., Any], micro_batches: Any) -> dict[str, Any]:
        """One update with the compiled `step` on what was placed for the actor."""
        if self._mesh is not None and not all(_lies_on(array, self._mesh) for array in jax.tree.leaves(micro_batches)):
            micro_batches = self._place(jax.device_get(micro_batches), leading=1)
        self._train_steps += 1
        return self._step(step, micro_batches)

    def resume_at(self, state: TrainState, step: int) -> None:
        """Goes on where its actor goes on."""
        self._state, self._train_steps = state, step


class RLTrainer(ModelTrainer):
    """Trains an actor on what a learner samples with it, and its critic on the same.

    Actor and critic are one state: they are saved, restored and fingerprinted together, so a kill never leaves the one a step
    ahead of the other. Checkpoints are made between rollouts, when nothing sampled waits to be trained on; only where `max_steps`
    ends training within a rollout does the last one leave out what waits, and whoever goes on from it begins with other prompts.
    """

    def __init__(
        self,
        model: nnx.Module,
        optimizer: optax.GradientTransformation,
        training_config: TrainingConfig,
        *,
        critic: CriticTrainer | None = None,
        **trainer_options: Any,
    ):
        """Prepares training, and restores the newest usable checkpoint.

        Args:
          model: the actor.
          optimizer: of the actor.
          training_config: how to run.
          critic: its critic.
          **trainer_options: the keyword arguments of `ModelTrainer`.
        """
        self.critic = critic
        self._critic_state: TrainState | None = None  # restored, on its way to the critic
        self._source: ExperienceSource | None = None
        super().__init__(model, optimizer, training_config, **trainer_options)

    def with_source(self, source: ExperienceSource) -> "RLTrainer":
        """Takes its batches from `source`, which makes them of the prompts that `train` is given."""
        self._source = source
        return self

    def train(self, *datasets: Any, **options: Any) -> None:
        try:
            super().train(*datasets, **options)
        finally:
            if self._source is not None:
                self._source.close()

    @property
    def row_parts(self) -> int:
        return super().row_parts if self.critic is None else math.lcm(super().row_parts, self.critic.row_parts)

    def _update_groups(self, train_ds: Iterable[Any]) -> Iterator[list[Any]]:
        return self._position.open(self._source.updates(train_ds), self._iter_steps)

    @property
    def can_pause(self) -> bool:
        return self._source is None or self._source.between_rollouts

    def _further_metrics(self, step: int, rows: dict[str, np.ndarray]) -> dict[str, float]:
        flat = {name: array.reshape(-1, *array.shape[2:]) for name, array in rows.items()}
        return {} if self._source is None else self._source.told(step, flat)

    def _post_process_train_step(self, aux: dict[str, float]) -> None:
        if self._source is not None:
            self._source.check()

    def with_data_hooks(self, data_hooks: DataHooks) -> "RLTrainer":
        """Refused: what is trained on is sampled.

        Raises:
          ValueError: always.
        """
        raise ValueError("reinforcement learning makes its own batches: give `train` prompts instead of data hooks")

    def _evaluate(self, eval_ds: Iterable[Any] | None, eval_step: Callable[..., Any]) -> dict[str, float]:
        return self._source.evaluate(eval_ds)

    def park(self) -> None:
        super().park()
        if self.critic is not None:
            self.critic.park()

    def flush(self) -> None:
        """Tells of the last update now, before its parameters sample anew."""
        self._flush_metrics()

    # ---- actor and critic as one ------------------------------------------------------------------------------------

    def _step(self, train_step: Callable[..., Any], micro_batches: Any) -> dict[str, Any]:
        metrics = super()._step(train_step, micro_batches)
        if self.critic is None:
            return metrics
        of_critic = self.critic.follow(self.critic.jit_train_and_eval_step()[0], micro_batches)
        hashes = {f"{_CRITIC}.{name}": value for name, value in of_critic.pop(GRADIENT, {}).items()}
        metrics |= {GRADIENT: metrics[GRADIENT] | hashes} if hashes else {}
        of_critic = critic_metrics(of_critic)
        if "skipped" in of_critic:  # either may be
            metrics["skipped"] = jnp.maximum(metrics["skipped"], of_critic["skipped"])
        return {**of_critic, **metrics}

    def _whole_state(self) -> TrainState:
        whole = self._together()
        return unparked(whole) if self._offload else whole

    def _together(self) -> TrainState:
        if self.critic is None:
            return self._state
        actor, critic = self._state, self.critic.state
        params = actor.params | {f"{_CRITIC}.{name}": array for name, array in critic.params.items()}
        parts = {"actor": actor.variables, _CRITIC: critic.variables}
        variables = [((part, *path), v) for part, state in parts.items() for path, v in nnx.to_flat_state(state)]
        return TrainState(params, nnx.from_flat_state(variables), {"actor": actor.opt_state, _CRITIC: critic.opt_state})

    def _take_state(self, state: TrainState) -> None:
        if self.critic is None:
            self._state = state
            return
        critic = {name.removeprefix(f"{_CRITIC}."): a for name, a in state.params.items() if name.startswith(f"{_CRITIC}.")}
        actor = {name: array for name, array in state.params.items() if not name.startswith(f"{_CRITIC}.")}
        variables = {
            part: nnx.from_flat_state([(path[1:], v) for path, v in nnx.to_flat_state(state.variables) if path[0] == part])
            for part in ("actor", _CRITIC)
        }
        self._state = TrainState(actor, variables["actor"], state.opt_state["actor"])
        self._critic_state = TrainState(critic, variables[_CRITIC], state.opt_state[_CRITIC])

    def _restore(self) -> None:
        super()._restore()
        if self._critic_state is not None:
            self.critic.resume_at(self._critic_state, self._train_steps)
            self._critic_state = None

    @property
    def model(self) -> nnx.Module:
        if self.critic is not None:
            self.critic.model  # noqa: B018 - the caller's critic gets its trained parameters too
        return super().model


def _lies_on(array: Any, mesh: Mesh) -> bool:
    return isinstance(array, jax.Array) and isinstance(array.sharding, NamedSharding) and array.sharding.mesh == mesh


def critic_metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a critic's update under names that are not the actor's."""
    own = {"loss": "value_loss", "grad_norm": "critic_grad_norm", "learning_rate": "critic_learning_rate"}
    return {own.get(name, name): value for name, value in metrics.items() if name != "empty_batches"}
