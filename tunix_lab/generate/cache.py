"""Key-value caches for decoding."""

import jax
import jax.numpy as jnp

from tunix_lab.generate.config import CacheConfig


def init_cache(config: CacheConfig, batch_size: int, slots: int, dtype: str) -> dict[str, dict[str, jax.Array]]:
    """An empty cache: "layer_<i>" -> {"k", "v": [batch, slots, kv_heads, head_dim], "end_index": []}."""
    shape = (batch_size, slots, config.num_kv_heads, config.head_dim)
    return {
        f"layer_{i}": {"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype), "end_index": jnp.zeros((), jnp.int32)}
        for i in range(config.num_layers)
    }


def bucket(length: int, *, smallest: int) -> int:
    """The smallest power of two that is at least `length` and `smallest`: few shapes, so few compilations."""
    size = smallest
    while size < length:
        size *= 2
    return size
