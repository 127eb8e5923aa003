"""Rotary position embedding, https://arxiv.org/abs/2104.09864, and the two ways in which families stretch it."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tunix_lab.models.config import LinearRope, Llama3Rope, RopeScaling


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> Float[np.ndarray, " half"]:
    """Angle per position of each pair, float32 [head_dim / 2]: theta^(−2i/dim), stretched as `scaling` says."""
    half = head_dim // 2
    frequencies = theta ** -(np.arange(half, dtype=np.float64) / half)
    match scaling:
        case None:
            pass
        case LinearRope(factor=factor):
            frequencies = frequencies / factor
        case Llama3Rope(factor=factor, low_freq_factor=low, high_freq_factor=high, original_max_positions=context):
            waves_in_context = context * frequencies / (2 * math.pi)
            kept = np.clip((waves_in_context - low) / (high - low), 0.0, 1.0)  # 0: a long wave, 1: a short one
            frequencies = kept * frequencies + (1 - kept) * frequencies / factor
    return frequencies.astype(np.float32)


def apply_rope(
    x: Float[Array, "batch seq heads dim"],
    positions: Int[Array, "batch seq"],
    frequencies: Float[Array | np.ndarray, " half"],
) -> Float[Array, "batch seq heads dim"]:
    """Rotates the pair (x[i], x[i + dim/2]) by the angle position · frequencies[i]; in float32."""
    angles = positions.astype(jnp.float32)[..., None, None] * frequencies
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
