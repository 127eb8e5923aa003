"""Arrays between the memory of their devices and that of the host."""

from collections.abc import Set
from typing import Any

import jax

from tunix_lab.sft.train_state import addresses

_HOST, _DEVICE = "pinned_host", "device"


def parked(tree: Any, kept: Set[int] = frozenset()) -> Any:
    """The arrays in the host's memory, split as they are; their devices' memory is free once nobody else holds them.

    Args:
      tree: of arrays.
      kept: addresses of arrays that stay where they are.
    """
    return _moved(tree, _HOST, kept)


def unparked(tree: Any) -> Any:
    """The arrays on their devices again."""
    return _moved(tree, _DEVICE, frozenset())


def _moved(tree: Any, kind: str, kept: Set[int]) -> Any:
    def move(array: Any) -> Any:
        if not isinstance(array, jax.Array) or array.sharding.memory_kind == kind or (kept and addresses(array) & kept):
            return array
        return jax.device_put(array, array.sharding.with_memory_kind(kind))

    return jax.tree.map(move, tree)
