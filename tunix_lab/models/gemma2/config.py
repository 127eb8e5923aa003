"""Gemma 2's sizes, https://arxiv.org/abs/2408.00118."""

import dataclasses

from tunix_lab.models.config import Activation, AttentionKind, ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma2Config(ModelConfig):
    """Local and global layers in turn; soft-capped scores and logits; norms before and after; tied embeddings."""

    family: str = "gemma2"
    vocab_size: int = 256_000
    max_positions: int = 8192
    head_dim: int = 256
    attention_pattern: tuple[AttentionKind, ...] = ("local", "global")
    sliding_window: int | None = 4096
    rope_theta: float = 10_000.0
    query_scale: float = 256**-0.5
    attn_logit_softcap: float | None = 50.0
    final_logit_softcap: float | None = 30.0
    activation: Activation = "gelu"
    scale_embeddings: bool = True
    tie_embeddings: bool = True
    norm_adds_one: bool = True
    post_norms: bool = True

    @classmethod
    def gemma2_2b(cls) -> "Gemma2Config":
        """Gemma 2 2B."""
        return cls(num_layers=26, embed_dim=2304, hidden_dim=9216, num_heads=8, num_kv_heads=4)

    @classmethod
    def gemma2_9b(cls) -> "Gemma2Config":
        """Gemma 2 9B."""
        return cls(num_layers=42, embed_dim=3584, hidden_dim=14_336, num_heads=16, num_kv_heads=8)

    @classmethod
    def gemma2_27b(cls) -> "Gemma2Config":
        """Gemma 2 27B; queries are scaled by embed_dim / num_heads, not by the size of a head."""
        return cls(
            num_layers=46,
            embed_dim=4608,
            hidden_dim=36_864,
            num_heads=32,
            num_kv_heads=16,
            head_dim=128,
            query_scale=144**-0.5,
        )

    gemma2_2b_it = gemma2_2b
    gemma2_9b_it = gemma2_9b
    gemma2_27b_it = gemma2_27b


SIZES = {"2b": Gemma2Config.gemma2_2b, "9b": Gemma2Config.gemma2_9b, "27b": Gemma2Config.gemma2_27b}
