"""The decoder-only transformer that serves every model family; a family is a configuration and a name map."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from tunix_lab.models.attention import Attention, LayerCache, layer_kind
from tunix_lab.models.capture import Capture
from tunix_lab.models.config import ModelConfig
from tunix_lab.models.experts import MixtureOfExperts
from tunix_lab.models.layers import Embedder, FeedForward, Head, RMSNorm
from tunix_lab.models.sharding import place_model, state_shardings
from tunix_lab.models.stack import LayerStack, Remat, run_block, stack_layers
from tunix_lab.ops.masks import causal_mask
from tunix_lab.ops.softcap import soft_cap

# Key-value cache of a model: "layer_<i>" -> that layer's cache. Made by `generate.cache`.
Cache = dict[str, LayerCache]


class Block(nnx.Module):
    """x + attention(norm(x)), then the same with the feed-forward layer; some families norm once more what is added."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.pre_attention_norm = RMSNorm(config.embed_dim, config)
        self.attn = Attention(config, rngs)
        self.pre_ffw_norm = RMSNorm(config.embed_dim, config)
        self.mlp = FeedForward(config, rngs) if config.experts is None else MixtureOfExperts(config, rngs)
        self.post_attention_norm = RMSNorm(config.embed_dim, config) if config.post_norms else None
        self.post_ffw_norm = RMSNorm(config.embed_dim, config) if config.post_norms else None

    def __call__(self, x, positions, cache, attention_mask, kind, keeps_map=False):
        attended, cache, kept = self.attn(self.pre_attention_norm(x), positions, cache, attention_mask, kind, keeps_map)
        x = x + _normed(self.post_attention_norm, attended)
        return x + _normed(self.post_ffw_norm, self.mlp(self.pre_ffw_norm(x))), cache, kept


def _normed(norm: RMSNorm | None, x: Array) -> Array:
    return x if norm is None else norm(x)


class Decoder(nnx.Module):
    """Tokens to logits."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embedder = Embedder(config, rngs)
        self.layers = nnx.List([Block(config, rngs) for _ in range(config.num_layers)])
        self.final_norm = RMSNorm(config.embed_dim, config)
        self.lm_head = None if config.tie_embeddings else Head(config, rngs)
        self.remat: Remat = "none"

    def __call__(
        self,
        input_tokens: Int[Array, "batch seq"],
        positions: Int[Array, "batch seq"],
        cache: Cache | None = None,
        attention_mask: Bool[Array, "batch seq key"] | None = None,
        *,
        skip_lm_head: bool = False,
        capture: Capture | None = None,
    ) -> tuple[Float[Array, "batch seq out"], Cache | None]:
        """Runs the model.

        Args:
          input_tokens: token ids.
          positions: position of each token in its own text, from 0.
          cache: where keys and values are written and read, for decoding; None attends within `input_tokens`.
          attention_mask: [b, t, s], True where token t may see slot s, causality included; slots are the sequence itself or, with
            a cache, the first `key` slots of the cache. None is plain causality without padding.
          skip_lm_head: return the final hidden states, for `ops.logps.token_logps`, which needs no [B, T, V] array.
          capture: says which layers' hidden states and attention maps to keep, and receives them; None keeps nothing.

        Returns:
          Logits in float32 [batch, seq, vocab], or hidden states [batch, seq, embed]; and the updated cache.
        """
        if attention_mask is None:
            attention_mask = causal_mask(jnp.ones(input_tokens.shape, bool))
        x = self.embedder.encode(input_tokens)
        x, new_cache = self._run_layers(x, positions, cache, attention_mask, capture)
        x = self.final_norm(x)
        if not skip_lm_head:
            logits = jnp.einsum("btd,vd->btv", x, self.head(), preferred_element_type=jnp.float32)
            x = soft_cap(logits, self.config.final_logit_softcap)
        return x, new_cache or None

    def _run_layers(self, x, positions, cache, attention_mask, capture) -> tuple[Array, Cache]:
        by_name = {name: layer_kind(self.config, name) for name in set(self.config.attention_pattern)}
        kinds = [by_name[self.config.attention_kind(layer)] for layer in range(self.config.num_layers)]
        if isinstance(self.layers, LayerStack):
            if cache is not None or capture is not None:
                raise ValueError("stacked layers are for training: decode, or capture, with the model that they come from")
            return self.layers(x, positions, attention_mask, kinds), {}
        new_cache: Cache = {}
        for i, block in enumerate(self.layers):
            if self.remat != "none" and cache is None and capture is None:
                x = run_block(block, self.remat, x, positions, attention_mask, kinds[i])
                continue
            layer_cache = None if cache is None else cache[f"layer_{i}"]
            keeps_map = capture is not None and i in capture.attention_layers
            x, layer_cache, attention_map = block(x, positions, layer_cache, attention_mask, kinds[i], keeps_map)
            if capture is not None:
                capture.keep(i, x, attention_map)
            if layer_cache is not None:
                new_cache[f"layer_{i}"] = layer_cache
        return x, new_cache

    def head(self) -> Float[Array, "vocab embed"]:
        """The output head: logits are hidden · headᵀ, soft-capped if the family caps them."""
        return self.embedder.head() if self.lm_head is None else self.lm_head.head()

    def get_model_input(self) -> dict[str, Array | None]:
        """Arguments of a smallest call, as `qwix.apply_lora_to_model` wants them."""
        tokens = jnp.zeros((1, 2), jnp.int32)
        return {"input_tokens": tokens, "positions": jnp.arange(2)[None], "cache": None, "attention_mask": None}


def for_training(model: Decoder, *, scan_layers: bool, remat: Remat) -> Decoder:
    """The same model, on the same arrays unless its layers are stacked for a scan; `models.stack` says what that is good for.

    Args:
      model: with or without adapters; it stays as it is.
      scan_layers: run the layers as a scan.
      remat: what the backward pass computes again.

    Raises:
      ValueError: the layers cannot be stacked.
    """
    graph, state = nnx.split(model)
    changed = nnx.merge(graph, jax.tree.map(lambda array: array, state))
    changed.remat = remat
    if scan_layers:
        changed.layers = stack_layers(changed.layers, remat)
    return changed


def init_decoder(config: ModelConfig, seed: int, mesh: Mesh | None = None) -> Decoder:
    """A decoder with random weights.

    Args:
      config: its shape.
      seed: the same seed gives the same weights on any mesh.
      mesh: where the parameters go; None is one device.
    """
    build = lambda: Decoder(config, rngs=nnx.Rngs(params=seed))  # noqa: E731
    if mesh is None or mesh.size == 1:
        model = build()
        if mesh is not None:
            place_model(model, mesh)
        return model
    # One program draws all of them in their places, for no device may have room for the whole model; it compiles long.
    graph, abstract = nnx.split(nnx.eval_shape(build))
    state = jax.jit(lambda: nnx.state(build()), out_shardings=state_shardings(abstract, mesh))()
    return nnx.merge(graph, state)
