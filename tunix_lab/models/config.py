"""The shape of a decoder-only transformer, as numbers; no jax, so that a spec can be checked without it."""

import dataclasses
from typing import Literal

AttentionKind = Literal["local", "global"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One configuration of the shared decoder (`models.decoder`).

    Attributes:
      family: name of the model family, as in `models.catalog`.
      vocab_size: rows of the embedding table.
      num_layers: transformer blocks.
      embed_dim: width of the residual stream.
      hidden_dim: width of the gated feed-forward layer.
      num_heads: query heads.
      num_kv_heads: key-value heads; each serves num_heads / num_kv_heads query heads.
      head_dim: size of one head.
      attention_pattern: kinds of attention, repeated over the layers.
      sliding_window: tokens that a "local" layer sees, itself included.
      rope_theta: base of the rotary embedding in "global" layers.
      rope_theta_local: base of the rotary embedding in "local" layers.
      rope_scale: "global" positions are divided by this (linear position interpolation).
      query_scale: queries are multiplied by this before the dot product.
      rms_norm_eps: added to the mean square in every norm.
      dtype: numpy name of the dtype of activations.
      param_dtype: numpy name of the dtype of parameters.
    """

    family: str = "gemma3"
    vocab_size: int
    num_layers: int
    embed_dim: int
    hidden_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    attention_pattern: tuple[AttentionKind, ...]
    sliding_window: int
    rope_theta: float
    rope_theta_local: float
    rope_scale: float = 1.0
    query_scale: float
    rms_norm_eps: float = 1e-6
    dtype: str = "bfloat16"
    param_dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")

    def attention_kind(self, layer: int) -> AttentionKind:
        """The kind of attention of layer number `layer`, counted from 0."""
        return self.attention_pattern[layer % len(self.attention_pattern)]

    def replace(self, **changes: object) -> "ModelConfig":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def gemma3_nano(cls) -> "ModelConfig":
        """Every feature of Gemma 3 at a size that learns on two CPU cores; the vocabulary is that of the embedded tokenizer."""
        return cls(
            vocab_size=512,
            num_layers=6,
            embed_dim=96,
            hidden_dim=256,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            attention_pattern=_GEMMA3_PATTERN,
            sliding_window=32,
            rope_theta=1_000_000.0,
            rope_theta_local=10_000.0,
            query_scale=32**-0.5,
            dtype="float32",
            param_dtype="float32",
        )

    @classmethod
    def gemma3_1b(cls) -> "ModelConfig":
        """Gemma 3 1B, https://arxiv.org/abs/2503.19786."""
        return cls(
            vocab_size=262_144,
            num_layers=26,
            embed_dim=1152,
            hidden_dim=6912,
            num_heads=4,
            num_kv_heads=1,
            head_dim=256,
            attention_pattern=_GEMMA3_PATTERN,
            sliding_window=512,
            rope_theta=1_000_000.0,
            rope_theta_local=10_000.0,
            query_scale=256**-0.5,
        )


_GEMMA3_PATTERN: tuple[AttentionKind, ...] = ("local",) * 5 + ("global",)

# family -> size -> its configuration; the spec's `model` section is checked against this table.
SIZES = {
    "gemma3": {"nano": ModelConfig.gemma3_nano, "1b": ModelConfig.gemma3_1b},
}
