"""How a decoder's layers are run in training: one by one or as a scan, with their activations kept or computed again.

A scan compiles one layer instead of all of them: deep models start several times sooner. For it the layers' arrays are stacked,
and what differs between kinds of layers (`LayerKind`) is data. What is computed is the same either way.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from tunix_lab.models.attention import LayerKind

Remat = Literal["none", "dots", "block"]
"""What the backward pass computes again: nothing; all but matrix products; everything within a layer."""

_NO_WINDOW = np.iinfo(np.int32).max


class LayerStack(nnx.Module):
    """The layers of a decoder, run as a scan; made by `stack_layers`.

    Attributes:
      block: one layer with arrays [layers, …].
      remat: see `Remat`.
    """

    def __init__(self, block: nnx.Module, remat: Remat):
        self.block = block
        self.remat = remat

    def __call__(
        self,
        x: Float[Array, "batch seq embed"],
        positions: Int[Array, "batch seq"],
        attention_mask: Bool[Array, "batch seq key"],
        kinds: Sequence[LayerKind],
    ) -> Float[Array, "batch seq embed"]:
        """The residual stream behind the last layer; `kinds` has one entry per layer."""
        graph, states = nnx.split(self.block)

        def one_layer(x, layer):
            state, kind = layer
            x, *_ = nnx.merge(graph, state)(x, positions, None, attention_mask, kind)
            return x, None

        return jax.lax.scan(rematerialized(one_layer, self.remat), x, (states, _kinds_as_arrays(kinds)))[0]


def _kinds_as_arrays(kinds: Sequence[LayerKind]) -> LayerKind:
    """The kinds as one, with arrays [layers, …]; without a window where no layer has one."""
    windows = [_NO_WINDOW if kind.window is None else kind.window for kind in kinds]
    has_windows = any(window != _NO_WINDOW for window in windows)
    return LayerKind(np.stack([kind.frequencies for kind in kinds]), np.asarray(windows, np.int32) if has_windows else None)


def run_block(block: nnx.Module, remat: Remat, x: Array, positions: Array, attention_mask: Array, kind: LayerKind) -> Array:
    """One block without cache, its activations kept or not."""
    graph, state = nnx.split(block)

    def call(state, x):
        return nnx.merge(graph, state)(x, positions, None, attention_mask, kind)[0]

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


def stack_layers(layers: Iterable[nnx.Module], remat: Remat) -> LayerStack:
    """The layers with their arrays stacked; the arrays are copied.

    Raises:
      ValueError: the layers differ, for example because only some carry adapters.
    """
    graphs, states = zip(*map(nnx.split, layers), strict=True)
    if any(jax.tree.structure(state) != jax.tree.structure(states[0]) for state in states):
        raise ValueError(
            "the layers differ in their parameters (adapters in some only?), so they cannot be run as a scan; leave it out"
        )
    return LayerStack(nnx.merge(graphs[0], jax.tree.map(_stack, *states)), remat)


def _stack(*arrays: jax.Array) -> jax.Array:
    """The arrays along a new first axis, each part where it was."""
    first = arrays[0]
    if isinstance(first, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((len(arrays), *first.shape), first.dtype)
    if isinstance(first.sharding, NamedSharding):
        sharding = NamedSharding(first.sharding.mesh, PartitionSpec(None, *first.sharding.spec))
        return jax.jit(lambda *parts: jnp.stack(parts), out_shardings=sharding)(*arrays)
    return jnp.stack(arrays)


_STACKED = "layers.block."


def unstacked(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Parameters of a model with a `LayerStack`, by the dotted paths of the model that it was made from."""
    flat = {}
    for name, param in params.items():
        if name.startswith(_STACKED):
            flat |= {f"layers.{i}.{name.removeprefix(_STACKED)}": _layer_of(param, i) for i in range(len(param))}
        else:
            flat[name] = param
    return flat


@jax.jit  # one program for all layers, where `array[i]` and iteration make one that grows with their number
def _layer_of(stacked: jax.Array, layer: Int[Array, ""]) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stacked, layer, keepdims=False)
