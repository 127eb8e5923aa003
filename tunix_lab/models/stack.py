"""How a decoder's layers are run in training: one by one or as a scan, with their activations kept or computed again.

A scan compiles one layer (one period of the attention pattern) instead of all of them: deep models start several times sooner.
For it the arrays of equal layers lie along a first axis. What is computed is the same either way.
"""

import re
from collections.abc import Callable, Iterable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

Remat = Literal["none", "dots", "block"]
"""What the backward pass computes again: nothing; all but matrix products; everything within a layer."""


class LayerStack(nnx.Module):
    """The layers of a decoder, run as a scan over periods of the attention pattern; made by `stack_layers`.

    Attributes:
      period: one block per place in the pattern, each with arrays [periods, …].
      rest: blocks left over when the depth is no multiple of the pattern's length.
      remat: see `Remat`.
    """

    def __init__(self, period: Iterable[nnx.Module], rest: Iterable[nnx.Module], remat: Remat):
        self.period = nnx.List(period)
        self.rest = nnx.List(rest)
        self.remat = remat

    def __call__(
        self,
        x: Float[Array, "batch seq embed"],
        positions: Int[Array, "batch seq"],
        attention_mask: Bool[Array, "batch seq key"],
    ) -> Float[Array, "batch seq embed"]:
        """The residual stream behind the last layer."""
        if self.period:  # none in a model shallower than its pattern
            x = self._scan(x, positions, attention_mask)
        for block in self.rest:
            x = run_block(block, self.remat, x, positions, attention_mask)
        return x

    def _scan(self, x: Array, positions: Array, attention_mask: Array) -> Array:
        graphs, states = zip(*(nnx.split(block) for block in self.period), strict=True)

        def one_period(x, states):
            for graph, state in zip(graphs, states, strict=True):
                x, *_ = nnx.merge(graph, state)(x, positions, None, attention_mask)
            return x, None

        return jax.lax.scan(rematerialized(one_period, self.remat), x, states)[0]


def run_block(block: nnx.Module, remat: Remat, x: Array, positions: Array, attention_mask: Array) -> Array:
    """One block without cache, its activations kept or not."""
    graph, state = nnx.split(block)

    def call(state, x):
        return nnx.merge(graph, state)(x, positions, None, attention_mask)[0]

    return rematerialized(call, remat)(state, x)


def rematerialized(function: Callable, remat: Remat) -> Callable:
    """The function, with what its backward pass needs kept or computed again."""
    match remat:
        case "none":
            return function
        case "dots":
            return jax.checkpoint(function, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
        case "block":
            return jax.checkpoint(function)


def stack_layers(layers: Iterable[nnx.Module], pattern_length: int, remat: Remat) -> LayerStack:
    """The layers with the arrays of equal ones stacked; the arrays are copied.

    Raises:
      ValueError: layers at the same place of the pattern differ, for example because only some carry adapters.
    """
    layers = list(layers)
    n_periods = len(layers) // pattern_length
    period = []
    for place in range(pattern_length if n_periods else 0):
        graphs, states = zip(*(nnx.split(layers[i * pattern_length + place]) for i in range(n_periods)), strict=True)
        if any(jax.tree.structure(state) != jax.tree.structure(states[0]) for state in states):
            raise ValueError("the layers differ in their parameters (adapters in some only?), so they cannot be run as a scan")
        period.append(nnx.merge(graphs[0], jax.tree.map(_stack, *states)))
    return LayerStack(period, layers[n_periods * pattern_length :], remat)


def _stack(*arrays: jax.Array) -> jax.Array:
    """The arrays along a new first axis, each part where it was."""
    first = arrays[0]
    if isinstance(first, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((len(arrays), *first.shape), first.dtype)
    if isinstance(first.sharding, NamedSharding):
        sharding = NamedSharding(first.sharding.mesh, PartitionSpec(None, *first.sharding.spec))
        return jax.jit(lambda *parts: jnp.stack(parts), out_shardings=sharding)(*arrays)
    return jnp.stack(arrays)


_STACKED = re.compile(r"layers\.(period|rest)\.(\d+)\.(.*)")


def unstacked(params: dict[str, jax.Array], pattern_length: int) -> dict[str, jax.Array]:
    """Parameters of a model with a `LayerStack`, by the dotted paths of the model that it was made from."""
    places = {name: _STACKED.fullmatch(name) for name in params}
    stacks = [len(params[name]) for name, place in places.items() if place is not None and place[1] == "period"]
    n_periods = stacks[0] if stacks else 0
    flat = {}
    for name, place in places.items():
        if place is None:
            flat[name] = params[name]
        elif place[1] == "rest":
            flat[f"layers.{n_periods * pattern_length + int(place[2])}.{place[3]}"] = params[name]
        else:
            parts = enumerate(params[name])
            flat |= {f"layers.{i * pattern_length + int(place[2])}.{place[3]}": part for i, part in parts}
    return flat
