"""The shape of a decoder-only transformer, as numbers; no jax, so that a spec can be checked without it.

A family is a subclass in `models/<family>/config.py`: its defaults say what the family adds, its class methods are its sizes.
"""

import dataclasses
from typing import Literal

AttentionKind = Literal["local", "global"]
Activation = Literal["gelu", "silu"]


@dataclasses.dataclass(frozen=True)
class LinearRope:
    """Linear position interpolation, https://arxiv.org/abs/2306.15595: every frequency is divided by `factor`."""

    factor: float


@dataclasses.dataclass(frozen=True)
class Llama3Rope:
    """Frequency scaling of Llama 3.1 (https://arxiv.org/abs/2407.21783, §3.4.2): long waves are stretched, short ones kept.

    Attributes:
      factor: by which frequencies of long waves are divided.
      low_freq_factor: waves longer than original_max_positions / low_freq_factor are stretched wholly.
      high_freq_factor: waves shorter than original_max_positions / high_freq_factor are kept; between the two it is interpolated.
      original_max_positions: tokens of the context before scaling.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


RopeScaling = LinearRope | Llama3Rope


@dataclasses.dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of the feed-forward layer.

    Attributes:
      count: experts of a layer.
      per_token: experts that each token goes through.
      hidden_dim: width of one expert.
      normalize: whether the weights of a token's experts are divided by their sum.
    """

    count: int
    per_token: int
    hidden_dim: int
    normalize: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One configuration of the shared decoder (`models.decoder`).

    Attributes:
      family: name of the model family, as in `models.sizes`.
      vocab_size: rows of the embedding table.
      num_layers: transformer blocks.
      embed_dim: width of the residual stream.
      hidden_dim: width of the gated feed-forward layer.
      num_heads: query heads.
      num_kv_heads: key-value heads; each serves num_heads / num_kv_heads query heads.
      head_dim: size of one head.
      max_positions: tokens of the longest text that the family was made for.
      attention_pattern: kinds of attention, repeated over the layers.
      sliding_window: tokens that a "local" layer sees, itself included; None where no layer is local.
      rope_theta: base of the rotary embedding.
      rope_theta_local: base in "local" layers; None is the same.
      rope_scaling: of the rotary embedding in "global" layers.
      query_scale: queries are multiplied by this before the dot product.
      attn_logit_softcap: attention scores go through c · tanh(score / c); None leaves them.
      final_logit_softcap: the same for the model's logits.
      activation: of the gated feed-forward layer; "gelu" is its tanh form.
      scale_embeddings: whether embeddings are multiplied by √embed_dim.
      tie_embeddings: whether the output head is the embedding table.
      norm_adds_one: whether norms multiply by 1 + scale instead of by scale.
      post_norms: whether a second norm follows attention and feed-forward layer.
      qk_norm: whether queries and keys are normed per head.
      qkv_bias: whether queries, keys and values have a bias.
      experts: a mixture of experts in every layer; None is one feed-forward layer.
      rms_norm_eps: added to the mean square in every norm.
      dtype: numpy name of the dtype of activations.
      param_dtype: numpy name of the dtype of parameters.
    """

    family: str
    vocab_size: int
    num_layers: int
    embed_dim: int
    hidden_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    attention_pattern: tuple[AttentionKind, ...] = ("global",)
    sliding_window: int | None = None
    rope_theta: float
    rope_theta_local: float | None = None
    rope_scaling: RopeScaling | None = None
    query_scale: float
    attn_logit_softcap: float | None = None
    final_logit_softcap: float | None = None
    activation: Activation = "silu"
    scale_embeddings: bool = False
    tie_embeddings: bool = False
    norm_adds_one: bool = False
    post_norms: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    experts: Experts | None = None
    rms_norm_eps: float = 1e-6
    dtype: str = "bfloat16"
    param_dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
        if "local" in self.attention_pattern and self.sliding_window is None:
            raise ValueError("sliding_window must be given where attention_pattern has local layers")
        if self.experts is not None and self.experts.per_token > self.experts.count:
            raise ValueError(f"experts.per_token ({self.experts.per_token}) must be at most their count ({self.experts.count})")

    def attention_kind(self, layer: int) -> AttentionKind:
        """The kind of attention of layer number `layer`, counted from 0."""
        return self.attention_pattern[layer % len(self.attention_pattern)]

    def replace(self, **changes: object) -> "ModelConfig":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)
