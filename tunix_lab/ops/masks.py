"""Attention masks and positions made from "this token is real" masks; token ids are never looked at."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def positions_from_mask(valid: Bool[Array, "batch seq"]) -> Int[Array, "batch seq"]:
    """Counts real tokens from 0; padding before the first real token gets 0, padding after the last repeats its position."""
    return jnp.maximum(jnp.cumsum(valid, axis=-1, dtype=jnp.int32) - 1, 0)


def causal_mask(valid: Bool[Array, "batch seq"]) -> Bool[Array, "batch seq seq"]:
    """[b, t, s] is True where query t may see key s: s is real and s ≤ t."""
    length = valid.shape[-1]
    return jnp.tri(length, dtype=bool)[None] & valid[:, None, :]


def segment_causal_mask(segment_ids: Int[Array, "batch seq"]) -> Bool[Array, "batch seq seq"]:
    """[b, t, s] is True where query t may see key s of a packed row: one segment, which is not 0 (padding), and s ≤ t."""
    length = segment_ids.shape[-1]
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return jnp.tri(length, dtype=bool)[None] & same & (segment_ids != 0)[:, None, :]


def branching_mask(segments: Int[Array, "batch seq"], trunks: Int[Array, "batch seq"]) -> Bool[Array, "batch seq seq"]:
    """`segment_causal_mask` for segments that go on from a common beginning: a query sees its own segment, and its trunk's."""
    length = segments.shape[-1]
    seen = segments[:, None, :]
    of_query = (seen == segments[:, :, None]) | (seen == trunks[:, :, None])
    return jnp.tri(length, dtype=bool)[None] & of_query & (seen != 0)


def segment_positions(segment_ids: Int[Array, "batch seq"]) -> Int[Array, "batch seq"]:
    """Counts the tokens of each segment from 0."""
    place = jnp.arange(segment_ids.shape[-1], dtype=jnp.int32)[None]
    is_first = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return place - jax.lax.cummax(jnp.where(is_first, place, 0), axis=1)


def window_mask(
    queries: Int[Array, "*batch query"], keys: Int[Array, "*#batch key"], window: int | Int[Array, ""]
) -> Bool[Array, "*batch query key"]:
    """True where a key is among the `window` places that end at the query's; causality is another mask's matter."""
    return queries[..., :, None] - keys[..., None, :] < window
