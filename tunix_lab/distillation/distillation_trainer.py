"""Distillation: supervised training in which a frozen teacher looks at every batch too."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from tunix_lab.distillation.config import DistillationTrainingConfig as DistillationTrainingConfig
from tunix_lab.distillation.inputs import Inputs
from tunix_lab.distillation.strategies import CustomLoss, LogitStrategy, Losses, Models, Strategy, check_sizes
from tunix_lab.distillation.vocabulary import Vocabulary, check_tokens
from tunix_lab.models.decoder import Decoder
from tunix_lab.models.sharding import state_shardings
from tunix_lab.sft.batches import as_kwargs
from tunix_lab.sft.config import TrainingConfig as TrainingConfig
from tunix_lab.sft.peft_trainer import PeftTrainer
from tunix_lab.sft.train_state import copy_shared, flat_params, is_lora_model, mesh_of, snapshot
from tunix_lab.sft.train_step import as_weighted, make_eval_step, make_train_step


class Pupil(nnx.Module):
    """A student and what is trained beside it: the projection of its strategy."""

    def __init__(self, student: nnx.Module, projection: np.ndarray):
        """Wraps the student; the projection is of the kind of parameter that is trained of it, adapters or all."""
        self.student = student
        kind = nnx.LoRAParam if is_lora_model(student) else nnx.Param
        self.projection = kind(jax.numpy.asarray(projection), axes=(None,) * projection.ndim)


class DistillationTrainer(PeftTrainer):
    """Trains a student to do what a teacher does.

    A batch is that of supervised training: `input_tokens`, `input_mask` and, if it likes, the other arguments of
    `sft.losses.next_token_loss`. The teacher's forward pass is part of the compiled step, in evaluation mode; its arrays are
    arguments of the step and never change.

    Metrics, averaged over the target tokens, in training and evaluation alike: `loss`; `soft_loss`, the strategy's own distance;
    `hard_loss`, the cross-entropy of the data's next token, nats; with `LogitStrategy` `kl`, KL(teacher ‖ student) at
    temperature 1 over the whole vocabulary, nats.
    """

    def __init__(
        self,
        student_model: nnx.Module,
        teacher_model: nnx.Module,
        optimizer: optax.GradientTransformation,
        training_config: TrainingConfig,
        *shifted: Any,
        strategy: Strategy | None = None,
        vocab_mapping: Sequence[int] | np.ndarray | None = None,
        **trainer_options: Any,
    ):
        """Prepares training.

        Args:
          student_model: is trained, in place; only its adapters, if it has some.
          teacher_model: is not trained, and never changed.
          optimizer: the whole optimizer, clipping included.
          training_config: how to run.
          *shifted: the call `DistillationTrainer(student, teacher, strategy, optimizer, training_config)` is understood too.
          strategy: what the student learns; None is `LogitStrategy()`.
          vocab_mapping: for each id of the teacher that of the student, −1 where it has none; distributions are compared on the
            shared tokens. None: the ids mean the same.
          **trainer_options: the keyword arguments of `PeftTrainer`.

        Raises:
          ValueError: student, teacher and strategy do not fit together.
        """
        if isinstance(optimizer, Strategy):
            strategy, (optimizer, training_config) = _shifted(strategy, optimizer, (training_config, *shifted))
        elif shifted:
            raise TypeError("DistillationTrainer takes (student, teacher, optimizer, config), or a strategy before the optimizer")
        self.strategy = LogitStrategy() if strategy is None else strategy
        self._vocabulary = _shared_vocabulary(student_model, teacher_model, vocab_mapping)
        self._teacher_of = None if self._vocabulary is None else np.asarray(self._vocabulary.teacher_of)
        self.strategy.check(student_model, teacher_model)
        if self.strategy.looks_inside and (training_config.scan_layers or training_config.remat != "none"):
            raise ValueError(
                f"{type(self.strategy).__name__} needs what the layers compute: scan_layers and remat, which keep it from being "
                "kept, are for LogitStrategy"
            )
        self._compiled_loss: Callable[..., jax.Array] | None = None
        self._teacher_graph, self._teacher = _frozen(teacher_model, mesh_of(flat_params(nnx.state(student_model))))
        projection = self.strategy.initial_projection(student_model, teacher_model)
        super().__init__(_pupil(student_model, projection), optimizer, training_config, **trainer_options)

    # ---- what can be configured ------------------------------------------------------------------------------------

    def with_loss_fn(self, loss_fn: Callable[..., Any], has_aux: bool = False) -> "DistillationTrainer":
        """Replaces the strategy by a function of logits.

        Args:
          loss_fn: `loss_fn(student_logits, teacher_logits, labels)`: logits [batch, seq − 1, vocab] for the tokens `labels`,
            which also come where they are padding or prompt. A function with a parameter `mask` is told where they are targets.
            Returns a `WeightedMean` (divided once per update), or a scalar, which counts as one whatever it was averaged over.
          has_aux: whether it returns `(loss, {name: scalar or WeightedMean})`; the named values are logged.
        """
        self.strategy = CustomLoss(loss_fn, has_aux)
        self.clear_jit_cache()
        return self

    def with_gen_model_input_fn(self, gen_model_input_fn: Callable[[Any], dict[str, Any]]) -> "DistillationTrainer":
        """Replaces the function that turns a batch into `input_tokens`, `input_mask` and so on, or into these under "inputs"."""
        super().with_gen_model_input_fn(gen_model_input_fn)
        return self

    # ---- what can be asked -----------------------------------------------------------------------------------------

    @property
    def model(self) -> nnx.Module:
        """The student with its present parameters."""
        model = super().model
        return model.student if isinstance(model, Pupil) else model

    def get_train_loss(self, batch: Any) -> jax.Array:
        """The loss of one batch as training sees it (dropout included); trains nothing."""
        return self._loss_of(batch, is_training=True)

    def get_eval_loss(self, batch: Any) -> jax.Array:
        """The loss of one batch as evaluation sees it."""
        return self._loss_of(batch, is_training=False)

    def _loss_of(self, batch: Any, *, is_training: bool) -> jax.Array:
        placed = self._place(self._prepare_inputs(batch), leading=0)
        if not is_training:
            _, eval_step = self.jit_train_and_eval_step()
            return eval_step(self._state, self._frozen, placed)["loss"].mean
        if self._compiled_loss is None:
            self._compiled_loss = jax.jit(self._training_loss)
        return self._compiled_loss(self._state, self._all_frozen(self._frozen), placed)

    def _training_loss(self, state: Any, frozen: Any, batch: Any) -> jax.Array:
        student_frozen, *teacher = frozen
        model = self._parts.merge(state.params, state.variables, student_frozen)
        model.train()
        return self._distillation_loss(teacher)(model, batch)[0].mean

    # ---- the steps -------------------------------------------------------------------------------------------------

    def create_train_step_fn(self) -> Callable[..., Any]:
        """The pure function of one update, `(state, (frozen, teacher, vocabulary), micro_batches) -> (state, metrics)`."""

        def step(state, frozen, micro_batches):
            student_frozen, *teacher = frozen
            loss_fn = self._distillation_loss(teacher)
            make = make_train_step(self._parts, self.optimizer, loss_fn, **self._step_options)
            return make(state, student_frozen, micro_batches)

        return step

    def create_eval_step_fn(self) -> Callable[..., Any]:
        """The pure function of one evaluation batch, `(state, (frozen, teacher, vocabulary), batch) -> {name: WeightedMean}`."""

        def step(state, frozen, batch):
            student_frozen, *teacher = frozen
            return make_eval_step(self._parts, self._distillation_loss(teacher))(state, student_frozen, batch)

        return step

    def jit_train_and_eval_step(
        self, skip_jit: bool = False, *, cache_nnx_graph: bool = False
    ) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """The steps of `PeftTrainer`, which take the student's frozen parameters; the teacher's are given to them here."""
        train_step, eval_step = super().jit_train_and_eval_step(skip_jit, cache_nnx_graph=cache_nnx_graph)
        return (
            lambda state, frozen, micro_batches: train_step(state, self._all_frozen(frozen), micro_batches),
            lambda state, frozen, batch: eval_step(state, self._all_frozen(frozen), batch),
        )

    def clear_jit_cache(self) -> None:
        super().clear_jit_cache()
        self._compiled_loss = None

    def _all_frozen(self, student_frozen: Any) -> tuple[Any, ...]:
        return student_frozen, self._teacher, self._vocabulary

    def _distillation_loss(self, teacher: Sequence[Any]) -> Callable[[nnx.Module, Any], Losses]:
        """`loss(model, batch)` with the teacher's arrays in a trace."""
        teacher_state, vocabulary = teacher

        def loss(model: nnx.Module, batch: Any) -> Losses:
            frozen = nnx.merge(self._teacher_graph, snapshot(teacher_state))
            frozen.eval()
            student, projection = (model.student, model.projection[...]) if isinstance(model, Pupil) else (model, None)
            total, aux = self.strategy.losses(Models(student, frozen, projection, vocabulary), self._read(batch))
            return as_weighted(total), {name: as_weighted(value) for name, value in aux.items()}

        return loss

    def _read(self, batch: Any) -> Inputs:
        named = self._gen_model_input_fn(batch)
        return Inputs.of(**(named["inputs"] if "inputs" in named else named))

    # ---- what is overridden ----------------------------------------------------------------------------------------

    def _prepare_inputs(self, input_data: Any) -> Any:
        if self._teacher_of is not None:
            check_tokens(self._teacher_of, np.asarray(as_kwargs(input_data)["input_tokens"]))
        return input_data

    def _as_run(self, model: nnx.Module) -> nnx.Module:
        return model if isinstance(model, Pupil) else super()._as_run(model)

    def _own(self, params: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return copy_shared(params, self._teacher)


def _shifted(given: Strategy | None, strategy: Strategy, rest: tuple[Any, ...]) -> tuple[Strategy, tuple[Any, Any]]:
    """The arguments of the call whose third one is the strategy."""
    if given is not None or len(rest) != 2:
        raise TypeError("DistillationTrainer takes (student, teacher, strategy, optimizer, config), with one strategy")
    return strategy, (rest[0], rest[1])


def _shared_vocabulary(student: nnx.Module, teacher: nnx.Module, mapping: Sequence[int] | np.ndarray | None) -> Vocabulary | None:
    """The shared tokens that `mapping` declares; None where all ids are taken to mean the same."""
    ours, theirs = (model.config.vocab_size if isinstance(model, Decoder) else None for model in (student, teacher))
    if mapping is not None:
        return Vocabulary.of(mapping, ours, theirs)
    if ours is not None and theirs is not None:
        check_sizes(ours, theirs)
    return None


def _frozen(teacher: nnx.Module, mesh: jax.sharding.Mesh | None) -> tuple[nnx.GraphDef, nnx.State]:
    """The teacher taken apart, its arrays on the student's mesh; the model object that was given is left alone."""
    graph, state = nnx.split(teacher)
    state = snapshot(state)
    if mesh is not None and mesh_of(flat_params(state)) != mesh:
        state = jax.device_put(state, state_shardings(state, mesh))
    return graph, state


def _pupil(student: nnx.Module, projection: np.ndarray | None) -> nnx.Module:
    if projection is None:
        return student
    pupil, mesh = Pupil(student, projection), mesh_of(flat_params(nnx.state(student)))
    if mesh is not None:
        state = nnx.state(pupil)
        beside = nnx.State({"projection": state["projection"]})
        nnx.update(pupil, jax.device_put(beside, state_shardings(beside, mesh)))
    return pupil
