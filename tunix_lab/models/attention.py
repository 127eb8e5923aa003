"""Grouped-query attention with QK-norm, rotary positions, a sliding window and an optional key-value cache."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from tunix_lab.models.config import ModelConfig
from tunix_lab.models.layers import Einsum, RMSNorm, apply_rope
from tunix_lab.ops.masks import window_mask

# One layer's cache: "k" and "v" [batch, slots, kv_heads, head_dim] and "end_index" [], the first slot not yet written.
LayerCache = dict[str, Array]


class Attention(nnx.Module):
    """One attention layer; "local" layers see `sliding_window` slots, "global" layers all of them.

    Query head h reads key-value head h // (num_heads / num_kv_heads)  (https://arxiv.org/abs/2305.13245).
    """

    def __init__(self, config: ModelConfig, layer: int, rngs: nnx.Rngs):
        self.is_local = config.attention_kind(layer) == "local"
        self.window = config.sliding_window
        self.theta = config.rope_theta_local if self.is_local else config.rope_theta
        self.rope_scale = 1.0 if self.is_local else config.rope_scale
        self.query_scale = config.query_scale
        embed, heads, kv_heads, dim = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
        self.q_einsum = Einsum("btd,ndh->btnh", (heads, embed, dim), ("heads", "embed", None), embed, config, rngs)
        self.kv_einsum = Einsum(
            "bsd,ckdh->cbskh", (2, kv_heads, embed, dim), (None, "kv_heads", "embed", None), embed, config, rngs
        )
        self.attn_vec_einsum = Einsum("btnh,nhd->btd", (heads, dim, embed), ("heads", None, "embed"), heads * dim, config, rngs)
        self.query_norm = RMSNorm(dim, config)
        self.key_norm = RMSNorm(dim, config)

    def __call__(
        self,
        x: Float[Array, "batch seq embed"],
        positions: Int[Array, "batch seq"],
        cache: LayerCache | None,
        attention_mask: Bool[Array, "batch seq key"],
    ) -> tuple[Float[Array, "batch seq embed"], LayerCache | None]:
        query = self._rope(self.query_norm(self.q_einsum(x)), positions)
        key, value = self.kv_einsum(x)
        key = self._rope(self.key_norm(key), positions)
        start = jnp.zeros((), jnp.int32)
        n_keys = attention_mask.shape[-1]
        if cache is not None:
            start = cache["end_index"]
            cache = {
                "k": jax.lax.dynamic_update_slice_in_dim(cache["k"], key.astype(cache["k"].dtype), start, axis=1),
                "v": jax.lax.dynamic_update_slice_in_dim(cache["v"], value.astype(cache["v"].dtype), start, axis=1),
                "end_index": start + x.shape[1],
            }
            # Only the slots that the mask covers are read: a cache larger than needed costs memory, not time.
            key, value = cache["k"][:, :n_keys], cache["v"][:, :n_keys]
        mask = attention_mask
        if self.is_local:
            mask = mask & window_mask(start + jnp.arange(x.shape[1]), jnp.arange(n_keys), self.window)
        out = jax.nn.dot_product_attention(
            query, key.astype(query.dtype), value.astype(query.dtype), mask=mask[:, None], scale=self.query_scale
        )
        return self.attn_vec_einsum(out), cache

    def _rope(self, x, positions):
        return apply_rope(x, positions, theta=self.theta, scale=self.rope_scale)
