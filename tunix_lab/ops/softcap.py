"""Soft caps: a bound that scores and logits approach but do not cross."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def soft_cap(x: Float[Array, "*shape"], cap: float | None) -> Float[Array, "*shape"]:
    """cap · tanh(x / cap), https://arxiv.org/abs/2408.00118 §2: nearly x while it is small, within ±cap always; None leaves x."""
    return x if cap is None else cap * jnp.tanh(x / cap)
