"""Arrays between the memory of their devices and that of the host."""

from typing import Any

import jax

_HOST, _DEVICE = "pinned_host", "device"


def parked(tree: Any) -> Any:
    """The arrays in the host's memory, split as they are; their devices' memory is free once nobody else holds them."""
    return _moved(tree, _HOST)


def unparked(tree: Any) -> Any:
    """The arrays on their devices again."""
    return _moved(tree, _DEVICE)


def _moved(tree: Any, kind: str) -> Any:
    def move(array: Any) -> Any:
        if not isinstance(array, jax.Array) or array.sharding.memory_kind == kind:
            return array
        return jax.device_put(array, array.sharding.with_memory_kind(kind))

    return jax.tree.map(move, tree)
