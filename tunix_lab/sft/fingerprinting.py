"""Makes the fingerprints of updates: of batches on the host, of gradients and states where they lie."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tunix_lab.ops.fingerprint import Words, fingerprints, to_hex
from tunix_lab.sft.fingerprint import Fingerprint, layer_of
from tunix_lab.sft.train_state import Params, TrainState, flat_params

BatchHashes = tuple[str, tuple[str, ...]]
"""Of a whole update's batch, and of each of its rows."""

GRADIENT = "gradient_fingerprint"
"""An entry of a step's metrics that is no number: hashes of the gradient by layer."""

ROWS = "per_row"
"""Another one: {name: [n_micro, rows, …]} of what the loss gave as `train_step.PerRow`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Marks:
    """The part of a fingerprint that is still on the devices.

    Attributes:
      params: by layer.
      rest: optimizer state and other variables.
    """

    params: dict[str, Words]
    rest: Words


def by_layer(arrays: Params) -> dict[str, Words]:
    """Fingerprints of the layers of a model whose variables (or gradients) these are."""
    return fingerprints(arrays, {name: layer_of(name) for name in arrays})


@jax.jit
def state_marks(state: TrainState) -> Marks:
    """The fingerprints of a training state."""
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state.opt_state)[0]}
    leaves |= {f"variables.{name}": array for name, array in flat_params(state.variables).items()}
    nothing = jnp.zeros(2, jnp.uint32)
    return Marks(by_layer(state.params), fingerprints(leaves, dict.fromkeys(leaves, "rest")).get("rest", nothing))


def tree_hash(tree: Any) -> str:
    """The fingerprint of a pytree of arrays, in hex: of their names and bits, on whatever devices they lie."""
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
    return to_hex(np.asarray(_tree_hash(leaves)))


@jax.jit
def _tree_hash(leaves: dict[str, jax.Array]) -> Words:
    return fingerprints(leaves, dict.fromkeys(leaves, "")).get("", jnp.zeros(2, jnp.uint32))


def batch_hashes(micro_batches: Sequence[Any]) -> BatchHashes:
    """Hashes of an update's micro-batches (pytrees of arrays with the rows first): of them all, and of each row."""
    whole, rows = hashlib.blake2b(digest_size=8), []
    for batch in micro_batches:
        leaves = [(jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in jax.tree_util.tree_flatten_with_path(batch)[0]]
        for name, array in leaves:
            whole.update(f"{name} {array.dtype} {array.shape}".encode())
            whole.update(np.ascontiguousarray(array).data)
        for row in range(len(leaves[0][1])):
            content = hashlib.blake2b(digest_size=4)
            for name, array in leaves:
                content.update(name.encode())
                content.update(np.ascontiguousarray(array[row]).data)
            rows.append(content.hexdigest())
    return whole.hexdigest(), tuple(rows)


@dataclasses.dataclass(frozen=True)
class UntoldUpdate:
    """An update that may still be computed, and what is to be told of it.

    Attributes:
      step: updates made, this one included.
      metrics: of the compiled step.
      n_tokens: real tokens that it read.
      micro_batches: what it read, as it was placed.
      hashes: of what it read.
      marks: of the state after it; None where it is not its turn.
    """

    step: int
    metrics: dict[str, Any]
    n_tokens: int
    micro_batches: Any
    hashes: BatchHashes
    marks: Marks | None

    def fetch(self) -> tuple[dict[str, float], dict[str, np.ndarray], Fingerprint | None]:
        """Waits for the update, and fetches its metrics, what was kept of its rows and its fingerprint in one transfer."""
        metrics, marks = jax.device_get((self.metrics, self.marks))
        gradient, rows = metrics.pop(GRADIENT, None), metrics.pop(ROWS, {})
        values = {name: float(value) for name, value in metrics.items()}
        if gradient is None:
            return values, rows, None
        params, rest = ({}, "") if marks is None else (_hexes(marks.params), to_hex(marks.rest))
        outcome = (values["loss"], values["grad_norm"], _hexes(gradient), params, rest)
        return values, rows, Fingerprint(self.step, *self.hashes, *outcome)


def _hexes(words: dict[str, np.ndarray]) -> dict[str, str]:
    return {name: to_hex(value) for name, value in words.items()}
