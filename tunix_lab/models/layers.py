"""The small layers of the decoder: einsum, RMS norm, rotary embedding, token embedding, gated feed-forward."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from tunix_lab.models.config import ModelConfig


def normal_param(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...], stddev: float, dtype: str) -> nnx.Param:
    """A parameter drawn from N(0, stddev²); `axes` names its logical axes for `models.sharding`."""
    return nnx.Param((stddev * jax.random.normal(rngs.params(), shape)).astype(dtype), axes=axes)


class Einsum(nnx.Module):
    """A linear map written as an einsum of its input and its weight `w`."""

    def __init__(
        self,
        equation: str,
        shape: tuple[int, ...],
        axes: tuple[str | None, ...],
        fan_in: int,
        config: ModelConfig,
        rngs: nnx.Rngs,
    ):
        self.equation = equation
        self.dtype = config.dtype
        self.w = normal_param(rngs, shape, axes, fan_in**-0.5, config.param_dtype)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.einsum(self.equation, x, jnp.asarray(self.w[...], self.dtype))


class RMSNorm(nnx.Module):
    """x / rms(x) · (1 + scale) over the last axis, in float32."""

    def __init__(self, size: int, config: ModelConfig):
        self.eps = config.rms_norm_eps
        self.scale = nnx.Param(jnp.zeros((size,), config.param_dtype), axes=(None,))

    def __call__(self, x: Float[Array, "... size"]) -> Float[Array, "... size"]:
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return (normed * (1.0 + self.scale[...].astype(jnp.float32))).astype(x.dtype)


class Embedder(nnx.Module):
    """The embedding table, used at both ends of the model."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.dtype = config.dtype
        shape = (config.vocab_size, config.embed_dim)
        self.input_embedding = normal_param(rngs, shape, ("vocab", "embed"), config.embed_dim**-0.5, config.param_dtype)

    def encode(self, tokens: Int[Array, "batch seq"]) -> Float[Array, "batch seq embed"]:
        """Rows of the table times √embed."""
        x = jnp.asarray(self.input_embedding[...], self.dtype)[tokens]
        return x * jnp.asarray(x.shape[-1] ** 0.5, x.dtype)

    def head(self) -> Float[Array, "vocab embed"]:
        """The table as output head (the two are tied)."""
        return jnp.asarray(self.input_embedding[...], self.dtype)


class FeedForward(nnx.Module):
    """down(gelu(gate(x)) · up(x)): GeGLU, https://arxiv.org/abs/2002.05202, with the tanh form of GELU."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        embed, hidden = config.embed_dim, config.hidden_dim
        self.gate_proj = Einsum("btd,df->btf", (embed, hidden), ("embed", "hidden"), embed, config, rngs)
        self.up_proj = Einsum("btd,df->btf", (embed, hidden), ("embed", "hidden"), embed, config, rngs)
        self.down_proj = Einsum("btf,fd->btd", (hidden, embed), ("hidden", "embed"), hidden, config, rngs)

    def __call__(self, x: Float[Array, "batch seq embed"]) -> Float[Array, "batch seq embed"]:
        return self.down_proj(jax.nn.gelu(self.gate_proj(x), approximate=True) * self.up_proj(x))


def apply_rope(
    x: Float[Array, "batch seq heads dim"], positions: Int[Array, "batch seq"], *, theta: float, scale: float
) -> Float[Array, "batch seq heads dim"]:
    """Rotary position embedding, https://arxiv.org/abs/2104.09864.

    Rotates the pair (x[i], x[i + dim/2]) by the angle position/scale · theta^(−2i/dim).
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = (positions.astype(jnp.float32) / scale)[..., None, None] * frequencies
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
