"""One optimizer update, and one evaluation pass, as pure functions of arrays."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from tunix_lab.ops.weighted import WeightedMean
from tunix_lab.sft.fingerprinting import GRADIENT, ROWS, by_layer
from tunix_lab.sft.train_state import ModelParts, TrainState, is_changing

# (model, batch) -> loss and named metrics, all of them not divided yet, and what is kept of single rows.
LossFn = Callable[[nnx.Module, Any], tuple[WeightedMean, "dict[str, WeightedMean | PerRow]"]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PerRow:
    """What a loss gives for each row, to be kept as it is instead of averaged.

    Attributes:
      values: [rows, …].
    """

    values: jax.Array


# XLA for a CPU orders operations by what can run at once. That keeps arrays longer than needed, and what a backward pass computes
# again it computes long before; a step takes half as much scratch memory more. Its other order is by memory, and as fast.
_COMPILER_OPTIONS = {"cpu": {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}}
_KNOWS_THEM = jax.__version_info__ >= (0, 9, 1)  # older compilers refuse the option


def jit_step(step: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit` of a step, compiled for little memory."""
    compiler_options = _COMPILER_OPTIONS.get(jax.default_backend()) if _KNOWS_THEM else None
    return jax.jit(step, compiler_options=compiler_options, **options)


def on_device(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step with its batch as device arrays, which a compiled one has anyway."""
    return lambda state, frozen, batch: step(state, frozen, jax.device_put(batch))


def as_weighted(value: Any) -> WeightedMean | PerRow:
    """A plain scalar counts once, whatever it was averaged over."""
    if isinstance(value, WeightedMean | PerRow):
        return value
    return WeightedMean(jnp.asarray(value, jnp.float32), jnp.ones((), jnp.float32))


def make_train_step(
    parts: ModelParts,
    optimizer: optax.GradientTransformation,
    loss_fn: LossFn,
    *,
    skip_nonfinite: bool = False,
    with_fingerprint: bool = False,
):
    """Returns `step(state, frozen, micro_batches) -> (state, metrics)`, `frozen` being the model's frozen parameters.

    `micro_batches` is a pytree of arrays [n_micro, rows, …]. Gradients of the loss's *total* are added over the micro-batches
    and divided once by the added *count*, so the update is the same however the rows are grouped. A batch without any weight
    changes nothing and is counted.

    Args:
      parts: the model.
      optimizer: the whole optimizer.
      loss_fn: what is made small.
      skip_nonfinite: an update whose loss or gradient is not finite changes nothing, and is counted as `skipped`.
      with_fingerprint: metrics have an entry `GRADIENT`, {layer: hash of its gradient}, see `sft.fingerprint`.
    """

    def micro_step(state: TrainState, variables: nnx.State, frozen: nnx.State, batch: Any):
        def total(params):
            model = parts.merge(params, variables, frozen)
            loss, aux = loss_fn(model, batch)
            return loss.total, (loss, aux, nnx.state(model, is_changing))

        gradient, (loss, aux, variables) = jax.grad(total, has_aux=True)(state.params)
        rows = {name: value.values for name, value in aux.items() if isinstance(value, PerRow)}
        means = {name: value for name, value in aux.items() if name not in rows}
        return (gradient, loss, means, variables), rows

    def step(state: TrainState, frozen: nnx.State, micro_batches: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        first = jax.tree.map(lambda x: x[0], micro_batches)
        (gradient, loss, aux, variables), rows = micro_step(state, state.variables, frozen, first)
        rows = jax.tree.map(lambda x: x[None], rows)
        if jax.tree.leaves(micro_batches)[0].shape[0] > 1:

            def add(carry, batch):
                *sums, variables = carry
                (*new, variables), rows = micro_step(state, variables, frozen, batch)
                return (*jax.tree.map(jnp.add, tuple(sums), tuple(new)), variables), rows

            others = jax.tree.map(lambda x: x[1:], micro_batches)
            (gradient, loss, aux, variables), further = jax.lax.scan(add, (gradient, loss, aux, variables), others)
            rows = jax.tree.map(lambda x, more: jnp.concatenate([x, more]), rows, further)

        has_weight = loss.count > 0
        scale = jnp.where(has_weight, 1.0 / jnp.where(has_weight, loss.count, 1.0), 0.0)
        gradient = jax.tree.map(lambda g: (g * scale).astype(g.dtype), gradient)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        grad_norm = optax.tree.norm(gradient)
        is_finite = jnp.isfinite(loss.total) & jnp.isfinite(grad_norm)
        counts = has_weight & is_finite if skip_nonfinite else has_weight
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(counts, new, old), (params, opt_state), (state.params, state.opt_state)
        )
        metrics = {
            "loss": loss.mean,
            "grad_norm": grad_norm,
            "empty_batches": 1.0 - has_weight.astype(jnp.float32),
            **({"skipped": (has_weight & ~is_finite).astype(jnp.float32)} if skip_nonfinite else {}),
            **({GRADIENT: by_layer(gradient)} if with_fingerprint else {}),
            **learning_rate_of(opt_state),
            **{name: value.mean for name, value in aux.items()},
            **({ROWS: rows} if rows else {}),
        }
        return TrainState(params, variables, opt_state), metrics

    return step


def make_eval_step(parts: ModelParts, loss_fn: LossFn):
    """Returns `step(state, frozen, batch) -> {"loss": WeightedMean, …}`, to be added over the batches of an evaluation set."""

    def step(state: TrainState, frozen: nnx.State, batch: Any) -> dict[str, WeightedMean]:
        model = parts.merge(state.params, state.variables, frozen)
        model.eval()  # no dropout, running statistics
        loss, aux = loss_fn(model, batch)
        return {"loss": loss, **{name: value for name, value in aux.items() if isinstance(value, WeightedMean)}}

    return step


def learning_rate_of(opt_state: Any) -> dict[str, jax.Array]:
    """The learning rate that `optax.inject_hyperparams` keeps in the state, wherever in a chain it stands; {} if nowhere."""
    found = [value for _, value in optax.tree_utils.tree_get_all_with_path(opt_state, "learning_rate")]
    rates = [value for value in found if isinstance(value, jax.Array)]  # a schedule's own state bears the name too
    return {"learning_rate": rates[0]} if len(rates) == 1 else {}
