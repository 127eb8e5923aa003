"""Gemma 3's sizes (text), https://arxiv.org/abs/2503.19786."""

import dataclasses

from tunix_lab.models.config import Activation, AttentionKind, LinearRope, ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma3Config(ModelConfig):
    """Five local layers to a global one, each kind with its own RoPE base; QK-norm; norms before and after; tied embeddings."""

    family: str = "gemma3"
    vocab_size: int = 262_208
    max_positions: int = 131_072
    head_dim: int = 256
    attention_pattern: tuple[AttentionKind, ...] = ("local",) * 5 + ("global",)
    sliding_window: int | None = 1024
    rope_theta: float = 1_000_000.0
    rope_theta_local: float | None = 10_000.0
    query_scale: float = 256**-0.5
    activation: Activation = "gelu"
    scale_embeddings: bool = True
    tie_embeddings: bool = True
    norm_adds_one: bool = True
    post_norms: bool = True
    qk_norm: bool = True

    @classmethod
    def gemma3_nano(cls) -> "Gemma3Config":
        """Every feature of Gemma 3 at a size that learns on two CPU cores; the vocabulary is that of the embedded tokenizer."""
        return cls(
            vocab_size=512,
            num_layers=6,
            embed_dim=96,
            hidden_dim=256,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            max_positions=2048,
            sliding_window=32,
            query_scale=32**-0.5,
            dtype="float32",
            param_dtype="float32",
        )

    @classmethod
    def gemma3_pico(cls) -> "Gemma3Config":
        """A quarter of nano's parameters, of the same vocabulary: a student for distillation."""
        return cls.gemma3_nano().replace(
            num_layers=3,
            embed_dim=64,
            hidden_dim=176,
            head_dim=16,
            attention_pattern=("local", "local", "global"),
            query_scale=16**-0.5,
        )

    @classmethod
    def gemma3_270m(cls) -> "Gemma3Config":
        """Gemma 3 270M."""
        return cls(
            vocab_size=262_144,
            num_layers=18,
            embed_dim=640,
            hidden_dim=2048,
            num_heads=4,
            num_kv_heads=1,
            max_positions=32_768,
            sliding_window=512,
        )

    @classmethod
    def gemma3_1b(cls) -> "Gemma3Config":
        """Gemma 3 1B."""
        return cls(
            vocab_size=262_144,
            num_layers=26,
            embed_dim=1152,
            hidden_dim=6912,
            num_heads=4,
            num_kv_heads=1,
            max_positions=32_768,
            sliding_window=512,
        )

    @classmethod
    def gemma3_4b(cls) -> "Gemma3Config":
        """Gemma 3 4B, its text model."""
        return cls(num_layers=34, embed_dim=2560, hidden_dim=10_240, num_heads=8, num_kv_heads=4, rope_scaling=LinearRope(8.0))

    @classmethod
    def gemma3_12b(cls) -> "Gemma3Config":
        """Gemma 3 12B, its text model."""
        return cls(num_layers=48, embed_dim=3840, hidden_dim=15_360, num_heads=16, num_kv_heads=8, rope_scaling=LinearRope(8.0))

    @classmethod
    def gemma3_27b(cls) -> "Gemma3Config":
        """Gemma 3 27B, its text model; queries are scaled by embed_dim / num_heads, not by the size of a head."""
        return cls(
            num_layers=62,
            embed_dim=5376,
            hidden_dim=21_504,
            num_heads=32,
            num_kv_heads=16,
            head_dim=128,
            query_scale=168**-0.5,
            rope_scaling=LinearRope(8.0),
        )

    # Names with the suffixes of the published checkpoints; pretrained and instruction-tuned have the same shape.
    gemma3_270m_it = gemma3_270m
    gemma3_1b_pt = gemma3_1b_it = gemma3_1b
    gemma3_4b_pt = gemma3_4b_it = gemma3_4b
    gemma3_12b_pt = gemma3_12b_it = gemma3_12b
    gemma3_27b_pt = gemma3_27b_it = gemma3_27b


SIZES = {
    "pico": Gemma3Config.gemma3_pico,
    "nano": Gemma3Config.gemma3_nano,
    "270m": Gemma3Config.gemma3_270m,
    "1b": Gemma3Config.gemma3_1b,
    "4b": Gemma3Config.gemma3_4b,
    "12b": Gemma3Config.gemma3_12b,
    "27b": Gemma3Config.gemma3_27b,
}
