"""Attention masks and positions made from "this token is real" masks; token ids are never looked at."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def positions_from_mask(valid: Bool[Array, "batch seq"]) -> Int[Array, "batch seq"]:
    """Counts real tokens from 0; padding before the first real token gets 0, padding after the last repeats its position."""
    return jnp.maximum(jnp.cumsum(valid, axis=-1, dtype=jnp.int32) - 1, 0)


def causal_mask(valid: Bool[Array, "batch seq"]) -> Bool[Array, "batch seq seq"]:
    """[b, t, s] is True where query t may see key s: s is real and s ≤ t."""
    length = valid.shape[-1]
    return jnp.tri(length, dtype=bool)[None] & valid[:, None, :]


def window_mask(queries: Int[Array, " query"], keys: Int[Array, " key"], window: int) -> Bool[Array, "query key"]:
    """True where key slot s is among the `window` slots that end at query slot t; causality is another mask's matter."""
    return queries[:, None] - keys[None, :] < window
