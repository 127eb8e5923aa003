"""Grouped-query attention with rotary positions, a sliding window, an optional cache, and what single families add to it."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.backend import get_backend
from jaxtyping import Array, Bool, Float, Int

from tunix_lab.models.capture import AttentionMap
from tunix_lab.models.config import AttentionKind, ModelConfig
from tunix_lab.models.layers import Einsum, RMSNorm
from tunix_lab.models.rope import apply_rope, rope_frequencies
from tunix_lab.ops.masks import window_mask
from tunix_lab.ops.softcap import soft_cap

# One layer's cache: "k" and "v" [batch, kv_heads, slots, head_dim] and "end_index" [batch], the first slot to write.
LayerCache = dict[str, Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerKind:
    """What sets "local" layers apart from "global" ones; no part of a layer, so that one program can run both.

    Attributes:
      frequencies: of the rotary embedding; of several layers at once, for a scan, with an axis in front.
      window: positions (slots of a cache) that a query sees, its own included; None is all.
    """

    frequencies: Float[np.ndarray | Array, "*layers half"]
    window: int | Int[np.ndarray | Array, "*layers"] | None


def layer_kind(config: ModelConfig, kind: AttentionKind) -> LayerKind:
    """How a model's layers of this kind attend."""
    is_local = kind == "local"
    own_theta = is_local and config.rope_theta_local is not None
    theta = config.rope_theta_local if own_theta else config.rope_theta
    frequencies = rope_frequencies(config.head_dim, theta, None if own_theta else config.rope_scaling)
    return LayerKind(frequencies, config.sliding_window if is_local else None)


class Attention(nnx.Module):
    """One attention layer.

    Query head h reads key-value head h // (num_heads / num_kv_heads)  (https://arxiv.org/abs/2305.13245).
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.query_scale = config.query_scale
        self.softcap = config.attn_logit_softcap
        embed, heads, kv_heads, dim = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
        query = ((heads, embed, dim), ("heads", "embed", None))
        self.q_einsum = Einsum("btd,ndh->btnh", *query, embed, config, rngs, bias="nh" if config.qkv_bias else None)
        key_value = ((2, kv_heads, embed, dim), (None, "kv_heads", "embed", None))
        bias = "ckh" if config.qkv_bias else None
        self.kv_einsum = Einsum("bsd,ckdh->cbskh", *key_value, embed, config, rngs, bias=bias)
        self.attn_vec_einsum = Einsum("btnh,nhd->btd", (heads, dim, embed), ("heads", None, "embed"), heads * dim, config, rngs)
        self.query_norm = RMSNorm(dim, config) if config.qk_norm else None
        self.key_norm = RMSNorm(dim, config) if config.qk_norm else None

    def __call__(
        self,
        x: Float[Array, "batch seq embed"],
        positions: Int[Array, "batch seq"],
        cache: LayerCache | None,
        attention_mask: Bool[Array, "batch seq key"],
        kind: LayerKind,
        keeps_map: bool = False,
    ) -> tuple[Float[Array, "batch seq embed"], LayerCache | None, AttentionMap | None]:
        query, (key, value) = self.q_einsum(x), self.kv_einsum(x)
        if self.query_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = apply_rope(query, positions, kind.frequencies), apply_rope(key, positions, kind.frequencies)
        queries = keys = positions  # where they stand, for the window
        if cache is not None:
            n_keys = attention_mask.shape[-1]
            queries, keys = cache["end_index"][:, None] + jnp.arange(x.shape[1]), jnp.arange(n_keys)
            cache = _written(cache, key, value)
            # Only the slots that the mask covers are read: a cache larger than needed costs memory, not time.
            key, value = (jnp.swapaxes(cache[name][:, :, :n_keys], 1, 2) for name in ("k", "v"))
        mask = attention_mask
        if kind.window is not None:
            mask = mask & window_mask(queries, keys, kind.window)
        key, value, how = key.astype(query.dtype), value.astype(query.dtype), {"scale": self.query_scale, "softcap": self.softcap}
        kept = AttentionMap(attention_weights(query, key, mask, **how), mask) if keeps_map else None
        return self.attn_vec_einsum(attend(query, key, value, mask, **how)), cache, kept


def _written(cache: LayerCache, key: Float[Array, "batch seq kv_heads dim"], value: Float[Array, "batch seq kv_heads dim"]):
    """The cache with each row's keys and values in its next slots."""
    write = jax.vmap(lambda row, new, at: jax.lax.dynamic_update_slice_in_dim(row, new.astype(row.dtype), at, axis=1))
    at = cache["end_index"]
    return {
        "k": write(cache["k"], _by_head(key), at),
        "v": write(cache["v"], _by_head(value), at),
        "end_index": at + key.shape[1],
    }


def attend(
    query: Float[Array, "batch seq heads dim"],
    key: Float[Array, "batch key kv_heads dim"],
    value: Float[Array, "batch key kv_heads dim"],
    mask: Bool[Array, "batch seq key"],
    *,
    scale: float,
    softcap: float | None,
) -> Float[Array, "batch seq heads dim"]:
    """softmax(softcap(scale · q·k)) · v over the keys that the mask allows; scores and softmax in float32."""
    if softcap is None and query.shape[1] > 1:
        kernel = "xla"
        if _cudnn_serves(query, key):
            kernel = "cudnn"
            mask = mask | ~mask.any(axis=-1, keepdims=True)  # what a query gives that may see nothing must still be a number
        return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None], scale=scale, implementation=kernel)
    # The library's attention has no place for a cap, and for the one query of a decoding step it is 1.5 to 2.5 times slower.
    batch, seq, heads, dim = query.shape
    weights = _grouped_weights(query, key, mask, scale, softcap).astype(query.dtype)
    # Heads before slots, as the cache has them: from "bkgts,bskh" a CPU makes a product that is five times slower.
    flat = weights.reshape(batch, key.shape[2], -1, key.shape[1])
    attended = jnp.einsum("bkqs,bksh->bkqh", flat, _by_head(value))
    return jnp.moveaxis(attended.reshape(batch, heads, seq, dim), 1, 2)


def _cudnn_serves(query: Array, key: Array) -> bool:
    """Whether cuDNN's fused attention, which makes no array of scores for each head, takes such arrays on the default devices.

    It wants half precision, heads of a certain size, even lengths, and heads that are split over devices alike. Its backward pass
    adds in any order, so it is not for who wants the same bits each time: XLA, told to give them, fails to compile it
    (https://github.com/openxla/xla/pull/46500).
    """
    if query.dtype not in (jnp.bfloat16, jnp.float16) or "cuda" not in get_backend().platform_version:
        return False
    major = int(jax.local_devices()[0].compute_capability.split(".")[0])
    dim, largest = query.shape[-1], 256 if major == 9 else 128
    has_size = dim <= largest and dim % 8 == 0 and query.shape[1] % 2 == key.shape[1] % 2 == 0
    return major >= 8 and has_size and key.shape[2] % jax.device_count() == 0 and not _same_bits_are_demanded()


def _same_bits_are_demanded() -> bool:
    flags = dict(flag.lstrip("-").partition("=")[::2] for flag in os.environ.get("XLA_FLAGS", "").split())
    names = ("xla_gpu_deterministic_ops", "xla_gpu_exclude_nondeterministic_ops")
    return any(flags.get(name, "false").lower() not in ("false", "0") for name in names)


def attention_weights(
    query: Float[Array, "batch seq heads dim"],
    key: Float[Array, "batch key kv_heads dim"],
    mask: Bool[Array, "batch seq key"],
    *,
    scale: float,
    softcap: float | None,
) -> Float[Array, "batch heads seq key"]:
    """softmax(softcap(scale · q·k)) over the keys that the mask allows, float32; a query that may see none weighs all alike."""
    weights = _grouped_weights(query, key, mask, scale, softcap)
    return weights.reshape(weights.shape[0], -1, *weights.shape[3:])


def _grouped_weights(query: Array, key: Array, mask: Array, scale: float, softcap: float | None) -> Array:
    """[batch, kv_heads, query heads of each, seq, key]."""
    batch, seq, _, dim = query.shape
    grouped = query.reshape(batch, seq, key.shape[2], -1, dim)
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, key, preferred_element_type=jnp.float32)
    scores = soft_cap(scores * scale, softcap)
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores, axis=-1)


def _by_head(x: Float[Array, "batch seq heads dim"]) -> Float[Array, "batch heads seq dim"]:
    return jnp.swapaxes(x, 1, 2)
