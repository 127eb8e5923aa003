"""Next-token cross-entropy as a sum and a weight."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tunix_lab.ops.weighted import WeightedMean


def cross_entropy(logps: Float[Array, "batch seq"], mask: Bool[Array, "batch seq"]) -> WeightedMean:
    """−Σ log p over the masked tokens and their number: L = −(1/Σm) Σ m·log p, nats per token."""
    return WeightedMean.of(-logps, mask.astype(jnp.float32))
