"""Proves, in the first updates of training, that every adapter moves and that nothing else does.

Adapters that train nothing, or in one layer of many, look like a run whose learning rate is too low; a frozen weight that moves
looks like nothing at all. Both are found here, at the price of a copy of the adapters and two readings of the frozen weights.
"""

import logging

import jax
import jax.numpy as jnp
from flax import nnx

from tunix_lab.errors import TrainingFailed
from tunix_lab.sft.train_state import Params, flat_params

logger = logging.getLogger(__name__)

# The second factor starts at zero, so that it moves in the first update and lets the first one move in the second; one to spare.
_UPDATES = 3


class AdapterCheck:
    """Looks after each update until all adapters have moved; then at the frozen weights; then never again."""

    def __init__(self, params: Params, frozen: nnx.State):
        """Remembers how training begins.

        Args:
          params: the adapters.
          frozen: all other parameters.
        """
        self._before: Params | None = jax.tree.map(jnp.copy, params)
        self._frozen = _fingerprints(flat_params(frozen))
        self._updates = 0

    def after_update(self, params: Params, frozen: nnx.State, grad_norm: jax.Array | float) -> None:
        """Checks the state after an update; waits for the device while there is something to check.

        Args:
          params: the adapters.
          frozen: all other parameters.
          grad_norm: of the update. One without any gradient says nothing: where all rewards of a batch are alike, nothing pulls,
            and weight decay alone moves what is not zero.

        Raises:
          TrainingFailed: some adapters have moved for several updates and others not at all, or a frozen weight has changed.
        """
        if self._before is None or float(grad_norm) == 0:
            return
        moved = jax.device_get(_moved(self._before, params))
        still = [name for name, has_moved in moved.items() if not has_moved]
        if len(still) == len(moved):  # learning rate zero, as at the start of a warm-up
            return
        self._updates += 1
        if still:
            if self._updates >= _UPDATES:
                raise TrainingFailed(
                    f"after {self._updates} updates {len(still)} of {len(moved)} adapters have not moved: {', '.join(still[:4])}"
                    f"{', …' if len(still) > 4 else ''}; they are not part of what the loss computes"
                )
            return
        after = _fingerprints(flat_params(frozen))
        changed = [name for name, value in self._frozen.items() if after[name] != value]
        if changed:
            raise TrainingFailed(f"frozen weights have changed in training: {', '.join(changed[:4])}")
        logger.info("all %d adapters move, and none of %d frozen weights", len(moved), len(after))
        self._before = None


@jax.jit
def _moved(before: Params, after: Params) -> dict[str, jax.Array]:
    return {name: jnp.any(after[name] != value) for name, value in before.items()}


def _fingerprints(params: Params) -> dict[str, int]:
    """A number per array that changes with any of its bits."""
    return {name: int(value) for name, value in jax.device_get(_fingerprint(params)).items()}


@jax.jit
def _fingerprint(params: Params) -> dict[str, jax.Array]:
    return {name: _sum_of_bits(array) for name, array in params.items()}


def _sum_of_bits(array: jax.Array) -> jax.Array:
    """Σ bits · odd weight by place, modulo 2³²: a change of one number always shows, and so does nearly every other change."""
    width = {4: jnp.uint32, 2: jnp.uint16, 1: jnp.uint8}.get(array.dtype.itemsize, jnp.uint32)
    is_float = jnp.issubdtype(array.dtype, jnp.floating)
    bits = jax.lax.bitcast_convert_type(array, width) if is_float else array
    places = jnp.arange(array.size, dtype=jnp.uint32).reshape(array.shape) * jnp.uint32(2) + jnp.uint32(1)
    return jnp.sum(bits.astype(jnp.uint32) * places, dtype=jnp.uint32)
