"""A mixture of experts: every token goes through its `per_token` likeliest feed-forward layers (https://arxiv.org/abs/1701.06538)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from tunix_lab.models.config import ModelConfig
from tunix_lab.models.layers import Einsum, gated, normal_param


class ExpertWeights(nnx.Module):
    """One matrix per expert, `w` [experts, in, out]; rows of the input belong to experts in blocks."""

    def __init__(self, shape: tuple[int, int, int], axes: tuple[str | None, ...], config: ModelConfig, rngs: nnx.Rngs):
        self.dtype = config.dtype
        self.w = normal_param(rngs, shape, axes, shape[1] ** -0.5, config.param_dtype)

    def __call__(self, rows: Float[Array, "row in"], sizes: Int[Array, " expert"]) -> Float[Array, "row out"]:
        """The first sizes[0] rows times the first matrix, the next sizes[1] times the second, …"""
        return jax.lax.ragged_dot(rows, jnp.asarray(self.w[...], self.dtype), sizes)


class MixtureOfExperts(nnx.Module):
    """Σ over a token's experts of weight · down(activation(gate(x)) · up(x)); the weights are a softmax over all experts.

    No token is dropped and none is padded: the (token, expert) pairs are sorted by expert and multiplied in blocks.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        experts, embed = config.experts, config.embed_dim
        self.per_token = experts.per_token
        self.normalize = experts.normalize
        self.activation = config.activation
        self.router = Einsum("btd,de->bte", (embed, experts.count), ("embed", None), embed, config, rngs)
        inwards = ((experts.count, embed, experts.hidden_dim), (None, "embed", "hidden"))
        self.gate_proj = ExpertWeights(*inwards, config, rngs)
        self.up_proj = ExpertWeights(*inwards, config, rngs)
        outwards = ((experts.count, experts.hidden_dim, embed), (None, "hidden", "embed"))
        self.down_proj = ExpertWeights(*outwards, config, rngs)

    def __call__(self, x: Float[Array, "batch seq embed"]) -> Float[Array, "batch seq embed"]:
        scores = self.router(x).astype(jnp.float32)
        scores = scores.reshape(-1, scores.shape[-1])
        weights, chosen = jax.lax.top_k(jax.nn.softmax(scores, axis=-1), self.per_token)
        if self.normalize:
            weights = weights / weights.sum(axis=-1, keepdims=True)
        tokens = x.reshape(-1, x.shape[-1])
        order = jnp.argsort(chosen.reshape(-1), stable=True)
        owner = order // self.per_token
        sizes = jnp.bincount(chosen.reshape(-1), length=scores.shape[-1]).astype(jnp.int32)
        rows = tokens[owner]
        hidden = gated(self.activation, self.gate_proj(rows, sizes), self.up_proj(rows, sizes))
        out = self.down_proj(hidden, sizes) * weights.reshape(-1)[order, None].astype(x.dtype)
        return jnp.zeros_like(tokens).at[owner].add(out).reshape(x.shape)
