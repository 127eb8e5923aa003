"""The training loop: any nnx model, any loss, full weights or adapters."""

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import optax
from flax import nnx

from tunix_lab.ops.weighted import WeightedMean
from tunix_lab.perf.trace import NoopTracer, Tracer
from tunix_lab.sft.adapter_check import AdapterCheck
from tunix_lab.sft.batches import TrainingInput as TrainingInput
from tunix_lab.sft.batches import as_kwargs, stack, to_host
from tunix_lab.sft.checkpoint_manager import CheckpointManager
from tunix_lab.sft.config import MetricsLoggerOptions as MetricsLoggerOptions
from tunix_lab.sft.config import TrainingConfig as TrainingConfig
from tunix_lab.sft.data_position import DataPosition
from tunix_lab.sft.fingerprinting import BatchHashes, UntoldUpdate, batch_hashes, state_marks
from tunix_lab.sft.hooks import DataHooks, TrainingHooks
from tunix_lab.sft.inflight_throttler import InflightThrottler
from tunix_lab.sft.losses import next_token_loss
from tunix_lab.sft.metrics_logger import MetricsLogger, Mode
from tunix_lab.sft.profiler import Profiler
from tunix_lab.sft.progress_bar import ProgressBar
from tunix_lab.sft.train_state import TrainState, plain, with_plain
from tunix_lab.sft.train_step import as_weighted, jit_step, make_eval_step, make_train_step, on_device
from tunix_lab.sft.trained_model import TrainedModel

logger = logging.getLogger(__name__)

_TOLD_SPANS = ("data", "wait", "rollout", "reward", "logps", "sync")
"""Parts of an update whose time is a metric."""


class PeftTrainer(TrainedModel):
    """Trains a model on batches.

    One update reads `gradient_accumulation_steps` batches of the dataset, adds their unreduced losses and gradients inside one
    compiled step, divides once and applies the optimizer. If the model has LoRA parameters only those are trained.
    """

    def __init__(
        self,
        model: nnx.Module,
        optimizer: optax.GradientTransformation,
        training_config: TrainingConfig,
        metrics_logger: MetricsLogger | None = None,
        perf_tracer: Tracer | None = None,
        *,
        checkpoint_manager: CheckpointManager | None = None,
    ):
        """Prepares training, and restores the newest usable checkpoint of `training_config.checkpoint_root_directory`.

        Args:
          model: any nnx module; updated in place.
          optimizer: the whole optimizer, clipping included.
          training_config: how to run.
          metrics_logger: where metrics go; None makes one from `training_config.metrics_logging_options`.
          perf_tracer: times the parts of the loop; None times nothing.
          checkpoint_manager: in place of the one that `training_config` describes.
        """
        super().__init__(model, optimizer, training_config)
        self.metrics_logger = metrics_logger or MetricsLogger(
            training_config.metrics_logging_options, prefix=training_config.metrics_prefix
        )
        self.perf_tracer = perf_tracer or NoopTracer()
        self.checkpoint_manager = checkpoint_manager or CheckpointManager(
            training_config.checkpoint_root_directory, training_config.checkpointing_options
        )
        self.training_hooks = TrainingHooks()
        self.data_hooks: DataHooks | None = None
        self._throttler = InflightThrottler(training_config.max_inflight_computations)
        self._train_steps = 0
        self._iter_steps = 0
        self.told_batch: Any = None  # what the update read that hooks are told of, [n_micro, rows, …]
        self.told_metrics: dict[str, float] = {}  # of that update
        self._stop_requested = False
        self._position = DataPosition()
        self._untold: UntoldUpdate | None = None
        self._loss_fn: Callable[..., Any] = next_token_loss
        self._has_aux = False
        self._gen_model_input_fn: Callable[[Any], dict[str, Any]] = as_kwargs
        self._compiled: tuple[Callable[..., Any], Callable[..., Any]] | None = None
        self._restore()

    # ---- what can be configured ------------------------------------------------------------------------------------

    def with_loss_fn(self, loss_fn: Callable[..., Any], has_aux: bool = False) -> "PeftTrainer":
        """Replaces the loss.

        Args:
          loss_fn: `loss_fn(model, **inputs)`, `inputs` from `gen_model_input_fn`. Returns a `WeightedMean` (divided once per
            update), or a scalar, which counts as one whatever it was averaged over.
          has_aux: whether it returns `(loss, {name: scalar or WeightedMean})`; the named values are logged.
        """
        self._loss_fn, self._has_aux = loss_fn, has_aux
        self.clear_jit_cache()
        return self

    def with_gen_model_input_fn(self, gen_model_input_fn: Callable[[Any], dict[str, Any]]) -> "PeftTrainer":
        """Replaces the function that turns a batch into keyword arguments of the loss; it runs inside the compiled step."""
        self._gen_model_input_fn = gen_model_input_fn
        self.clear_jit_cache()
        return self

    def with_training_hooks(self, training_hooks: TrainingHooks) -> "PeftTrainer":
        """Installs hooks; see `sft.hooks` for their order."""
        self.training_hooks = training_hooks
        return self

    def with_data_hooks(self, data_hooks: DataHooks) -> "PeftTrainer":
        """Takes batches from `data_hooks` instead of from the datasets given to `train`."""
        self.data_hooks = data_hooks
        return self

    def clear_jit_cache(self) -> None:
        """Forgets the compiled steps, because something they were compiled from has changed."""
        self._compiled = None

    # ---- what can be overridden ------------------------------------------------------------------------------------

    def _prepare_inputs(self, input_data: Any) -> Any:
        """Host-side preparation of one batch; returns a pytree of arrays with the rows first."""
        return input_data

    def _stacked(self, prepared: list[Any]) -> Any:
        """The prepared micro-batches of one update as one pytree, [n_micro, rows, …]."""
        return stack(prepared)

    def _count_tokens(self, inputs: Any) -> int:
        """Real tokens of a prepared batch, for the throughput."""
        named = as_kwargs(inputs)
        return int(np.sum(named["valid"])) if "valid" in named else int(np.size(named.get("input_tokens", ())))

    def _post_process_train_step(self, aux: dict[str, float]) -> None:
        """Called with the metrics of every update once they are on the host."""

    def _post_process_eval_step(self, aux: dict[str, float]) -> None:
        """Called with the metrics of every evaluation."""

    def _further_metrics(self, step: int, rows: dict[str, np.ndarray]) -> dict[str, float]:
        """Metrics of update `step` beside those of the compiled step, once `rows`, what its loss kept by row, is on the host."""
        return {}

    def _update_groups(self, train_ds: Iterable[Any]) -> Iterator[list[Any]]:
        """The micro-batches of each update."""
        n_micro = self.config.get_with_default("gradient_accumulation_steps", 1)
        batches = self._train_batches(train_ds)
        return iter(lambda: list(itertools.islice(batches, n_micro)), [])

    @property
    def can_pause(self) -> bool:
        """Whether a checkpoint made now holds all that is needed to go on from here."""
        return True

    def custom_checkpoint_metadata(self) -> dict[str, Any]:
        """JSON to keep in every checkpoint; comes back as `restored_metadata`."""
        return {}

    def create_train_step_fn(self) -> Callable[..., Any]:
        """The pure function of one update, `(state, frozen, micro_batches) -> (state, metrics)`."""
        return make_train_step(self._parts, self.optimizer, self._weighted_loss, **self._step_options)

    def create_eval_step_fn(self) -> Callable[..., Any]:
        """The pure function of one evaluation batch, `(state, frozen, batch) -> {name: WeightedMean}`."""
        return make_eval_step(self._parts, self._weighted_loss)

    # ---- what can be asked -----------------------------------------------------------------------------------------

    @property
    def train_steps(self) -> int:
        """Optimizer updates made, those before a restart included."""
        return self._train_steps

    @property
    def iter_steps(self) -> int:
        """Micro-batches read, those before a restart included."""
        return self._iter_steps

    def request_stop(self) -> None:
        """Ends training at the next place to pause, mostly the end of the running update; a checkpoint is saved.

        Safe to call from a signal handler.
        """
        self._stop_requested = True

    @property
    def stopped_early(self) -> bool:
        """Whether the last `train` ended because of `request_stop`."""
        return self._stop_requested

    # ---- the loop --------------------------------------------------------------------------------------------------

    def train(
        self,
        train_ds: Iterable[Any],
        eval_ds: Iterable[Any] | None = None,
        skip_jit: bool = False,
        *,
        cache_nnx_graph: bool = False,
    ) -> None:
        """Trains until `max_steps` updates are made or the data ends.

        Args:
          train_ds: micro-batches. If its iterator can save its state (grain's can) a restored run goes on at the exact next
            batch; otherwise the batches already read are read again and dropped.
          eval_ds: batches to evaluate on, read afresh at every evaluation.
          skip_jit: run the steps uncompiled, to debug them.
          cache_nnx_graph: accepted for compatibility; the graph is always taken apart once.
        """
        train_step, eval_step = self.jit_train_and_eval_step(skip_jit, cache_nnx_graph=cache_nnx_graph)
        self._stop_requested = False
        profiler = Profiler(self.config.profiler_options)
        check = AdapterCheck(self._state.params, self._frozen) if self.is_lora else None
        first_step, is_due = self._train_steps, False
        self.training_hooks.on_train_begin(self)
        try:
            with ProgressBar(self.config.pbar_description, self.config.max_steps, first_step) as self._progress:
                if self._train_steps == 0:
                    self._run_eval(eval_ds, eval_step)
                self._clock = time.perf_counter()
                for micro_batches, n_tokens, batch_hashes in self._updates(train_ds):
                    profiler.before_step(self._train_steps - first_step)
                    self.training_hooks.on_train_step_begin(self)
                    with self.perf_tracer.span("wait"):
                        self._throttler.wait_for_next()
                    metrics = self._step(train_step, micro_batches)
                    self._throttler.add_computation(metrics["loss"])
                    self._train_steps += 1
                    if check is not None:
                        check.after_update(self._state.params, self._frozen, metrics["grad_norm"])
                    self._tell_later(metrics, n_tokens, micro_batches, batch_hashes)
                    if self._train_steps % self.config.eval_every_n_steps == 0:
                        self._run_eval(eval_ds, eval_step)
                    self.checkpoint_manager.poll()
                    self.training_hooks.on_update(self)
                    is_due = is_due or self.checkpoint_manager.is_due(self._train_steps)
                    if is_due and self.can_pause:
                        self.save_checkpoint()
                        is_due = False
                    if self.can_pause and self._stop_requested:
                        break
                self._flush_metrics()
        finally:
            profiler.stop()
            self._throttler.wait_for_all()
            self.checkpoint_manager.wait()
            self.model  # noqa: B018 - the caller's model object gets the trained parameters, also after an error
        self.save_checkpoint()
        self.training_hooks.on_train_end(self)

    def _step(self, train_step: Callable[..., Any], micro_batches: Any) -> dict[str, Any]:
        """One update with the compiled step; its metrics, on the devices."""
        self._state, metrics = train_step(self._state, self._frozen, micro_batches)
        return metrics

    def _updates(self, train_ds: Iterable[Any]) -> Iterator[tuple[Any, int, BatchHashes]]:
        """Yields what one update reads, placed, [n_micro, rows, …], its number of tokens, and its hashes."""
        groups = self._update_groups(train_ds)
        max_steps = self.config.max_steps
        while max_steps is None or self._train_steps < max_steps:
            with self.perf_tracer.span("data"):
                group = next(groups, None)
                if group is None:
                    return
                prepared = [self._prepare_inputs(batch) for batch in group]
                n_tokens = sum(self._count_tokens(inputs) for inputs in prepared)
                hashes = ("", ()) if self.config.fingerprint_every_n_steps is None else batch_hashes(prepared)
                stacked = self._place(self._stacked(prepared), leading=1)
                self._iter_steps += len(group)
            yield stacked, n_tokens, hashes

    def _train_batches(self, train_ds: Iterable[Any]) -> Iterator[Any]:
        if self.data_hooks is not None:
            hooks = self.data_hooks
            return iter(lambda: hooks.load_next_train_batch(self), None)
        return self._position.open(train_ds, self._iter_steps)

    def _run_eval(self, eval_ds: Iterable[Any] | None, eval_step: Callable[..., Any]) -> None:
        if eval_ds is None and self.data_hooks is None:
            return
        self._flush_metrics()
        self.training_hooks.on_eval_begin(self)
        with self.perf_tracer.span("eval"):
            metrics = self._evaluate(eval_ds, eval_step)
        if not metrics:
            return
        self.metrics_logger.log_all(metrics, self._train_steps, Mode.EVAL)
        self.checkpoint_manager.judge(self._train_steps, {f"eval/{name}": value for name, value in metrics.items()})
        self._post_process_eval_step(metrics)
        self.training_hooks.on_eval_end(self, metrics["loss"])
        self._clock = time.perf_counter()

    def _evaluate(self, eval_ds: Iterable[Any] | None, eval_step: Callable[..., Any]) -> dict[str, float]:
        """Metrics over all of `eval_ds`, `loss` among them; weights decide, so the size of its batches does not matter."""
        totals: dict[str, WeightedMean] = {}
        for batch in self._eval_batches(eval_ds):
            values = eval_step(self._state, self._frozen, self._place(self._prepare_inputs(batch), leading=0))
            totals = {name: value + totals[name] for name, value in values.items()} if totals else values
        return to_host({name: total.mean for name, total in totals.items()})

    def _eval_batches(self, eval_ds: Iterable[Any] | None) -> Iterator[Any]:
        if self.data_hooks is not None:
            hooks = self.data_hooks
            return iter(lambda: hooks.load_next_eval_batch(self), None)
        return iter(eval_ds or ())

    # ---- its parts -------------------------------------------------------------------------------------------------

    def jit_train_and_eval_step(
        self, skip_jit: bool = False, *, cache_nnx_graph: bool = False
    ) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """The train and eval steps, compiled (the train step takes over the buffers of the state it is given)."""
        if skip_jit:
            return on_device(self.create_train_step_fn()), on_device(self.create_eval_step_fn())
        if self._compiled is None:
            self._compiled = jit_step(self.create_train_step_fn(), donate_argnums=0), jit_step(self.create_eval_step_fn())
        return self._compiled

    def _weighted_loss(self, model: nnx.Module, batch: Any) -> tuple[WeightedMean, dict[str, WeightedMean]]:
        out = self._loss_fn(model, **self._gen_model_input_fn(batch))
        loss, aux = out if self._has_aux else (out, {})
        return as_weighted(loss), {name: as_weighted(value) for name, value in (aux or {}).items()}

    @property
    def _step_options(self) -> dict[str, bool]:
        every = self.config.fingerprint_every_n_steps
        return {"skip_nonfinite": self.config.skip_nonfinite, "with_fingerprint": every is not None}

    def _tell_later(self, metrics: dict[str, Any], n_tokens: int, micro_batches: Any, hashes: BatchHashes) -> None:
        """Tells of the *previous* update: this one is queued behind it, so the device is never idle meanwhile."""
        self._flush_metrics()
        every = self.config.fingerprint_every_n_steps
        marks = state_marks(self._whole_state()) if every is not None and self._train_steps % every == 0 else None
        self._untold = UntoldUpdate(self._train_steps, metrics, n_tokens, micro_batches, hashes, marks)

    def _flush_metrics(self) -> None:
        if self._untold is None:
            return
        update, self._untold = self._untold, None
        values, rows, fingerprint = update.fetch()  # waits until it is done, so the clock runs from one completion to the next
        values |= self._further_metrics(update.step, rows)
        now = time.perf_counter()
        step_s, self._clock = now - self._clock, now
        spans = self.perf_tracer.take()
        perf = {"perf/step_s": step_s, "perf/tokens_per_s": update.n_tokens / step_s}
        perf |= {f"perf/{name}_s": spans[name] for name in _TOLD_SPANS if name in spans}
        self.metrics_logger.log_all(values | perf, update.step, Mode.TRAIN)
        shown = {"loss": values["loss"], "tokens/s": perf["perf/tokens_per_s"]}
        self._progress.update(update.step, shown)
        self.told_batch, self.told_metrics = update.micro_batches, values
        if fingerprint is not None:
            self.training_hooks.on_fingerprint(self, fingerprint)
        self._post_process_train_step(values)
        self.training_hooks.on_train_step_end(self, update.step, values["loss"])

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        """Saves parameters, other variables, optimizer state, counters and the place in the data; nothing without a folder."""
        self._flush_metrics()  # a hook that refuses the loss does so before these parameters are saved
        with self.perf_tracer.span("checkpoint"):
            record = {"train_steps": self._train_steps, "iter_steps": self._iter_steps, "data": self._position.state}
            record["metadata"] = self.custom_checkpoint_metadata()
            state = self._whole_state()
            self.checkpoint_manager.save(self._train_steps, state.params, state.opt_state, record, plain(state.variables))

    def verify_checkpoint(self) -> bool:
        """Whether the newest checkpoint is of this very step and, read back from disk, is what was written."""
        state, step = self._whole_state(), self._train_steps
        manager = self.checkpoint_manager
        return manager.latest_step() == step and manager.verify(step, state.params, state.opt_state, plain(state.variables))

    def _restore(self) -> None:
        self.restored_metadata: dict[str, Any] = {}
        state = self._whole_state()
        restored = self.checkpoint_manager.restore(state.params, state.opt_state, plain(state.variables))
        if restored is None:
            return
        step, params, opt_state, record, variables = restored
        self._take_state(TrainState(params, with_plain(state.variables, variables), opt_state))
        self._train_steps, self._iter_steps = record["train_steps"], record["iter_steps"]
        self._position.restore(record["data"])
        self.restored_metadata = record["metadata"]
        logger.info("restored the checkpoint of step %d", step)

    def close(self) -> None:
        """Writes what is buffered, finishes checkpoints and closes the logger."""
        self._flush_metrics()
        self.checkpoint_manager.close()
        self.metrics_logger.close()
