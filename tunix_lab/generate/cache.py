"""Key-value caches for decoding: made, grown, and copied from row to row.

A row's token at position p lies in slot p, so rows of any length stand side by side and a row's padding is behind its last token.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from tunix_lab.generate.config import CacheConfig

# "layer_<i>" -> {"k", "v": [rows, kv_heads, slots, head_dim]}, for a model's call also {"end_index": [rows]}.
Cache = dict[str, dict[str, Array]]


def init_cache(config: CacheConfig, batch_size: int, slots: int, dtype: str) -> Cache:
    """An empty cache: "layer_<i>" -> {"k", "v": [batch, kv_heads, slots, head_dim], "end_index": [batch]}."""
    return with_ends(empty_slots(config, batch_size, slots, dtype), jnp.zeros((batch_size,), jnp.int32))


def empty_slots(config: CacheConfig, rows: int, slots: int, dtype: str) -> Cache:
    """A cache without ends: who holds it knows its rows' lengths."""
    shape = (rows, config.num_kv_heads, slots, config.head_dim)
    return {f"layer_{i}": {"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)} for i in range(config.num_layers)}


def with_ends(cache: Cache, ends: Int[Array, " rows"]) -> Cache:
    """The cache as a model's call wants it: each row is written from slot ends[row] on."""
    return {name: {"k": layer["k"], "v": layer["v"], "end_index": ends} for name, layer in cache.items()}


def without_ends(cache: Cache) -> Cache:
    """Keys and values alone."""
    return {name: {"k": layer["k"], "v": layer["v"]} for name, layer in cache.items()}


def grown(cache: Cache, slots: int) -> Cache:
    """The cache with room for more tokens."""
    return jax.tree.map(lambda a: jnp.pad(a, ((0, 0), (0, 0), (0, slots - a.shape[2]), (0, 0))), cache)


def n_slots(cache: Cache) -> int:
    """Positions that the cache has room for."""
    return jax.tree.leaves(cache)[0].shape[2]


def with_copies(cache: Cache, sources: Cache, source: Int[Array, " rows"], is_copied: Bool[Array, " rows"]) -> Cache:
    """The cache whose row r begins with row source[r] of `sources`, where is_copied[r]; other rows stay.

    Args:
      cache: without ends.
      sources: another, of at most as many slots.
      source: rows of `sources`.
      is_copied: which rows are written.
    """

    def copy(old: Array, new: Array) -> Array:
        start = jnp.where(is_copied[:, None, None, None], new[source], old[:, :, : new.shape[2]])
        return jax.lax.dynamic_update_slice_in_dim(old, start, 0, axis=2)

    return jax.tree.map(copy, cache, sources)


def bucket(length: int, *, smallest: int) -> int:
    """The smallest of `smallest`, 2 · smallest, 4 · smallest, … that is at least `length`: few shapes, so few compilations."""
    size = smallest
    while size < length:
        size *= 2
    return size
