"""Gemma 1's sizes, https://arxiv.org/abs/2403.08295."""

import dataclasses

from tunix_lab.models.config import Activation, ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class GemmaConfig(ModelConfig):
    """Scaled and tied embeddings, GeGLU, norms that multiply by 1 + scale."""

    family: str = "gemma"
    vocab_size: int = 256_000
    max_positions: int = 8192
    head_dim: int = 256
    rope_theta: float = 10_000.0
    query_scale: float = 256**-0.5
    activation: Activation = "gelu"
    scale_embeddings: bool = True
    tie_embeddings: bool = True
    norm_adds_one: bool = True

    @classmethod
    def gemma_2b(cls) -> "GemmaConfig":
        """Gemma 2B."""
        return cls(num_layers=18, embed_dim=2048, hidden_dim=16_384, num_heads=8, num_kv_heads=1)

    @classmethod
    def gemma_7b(cls) -> "GemmaConfig":
        """Gemma 7B."""
        return cls(num_layers=28, embed_dim=3072, hidden_dim=24_576, num_heads=16, num_kv_heads=16)

    gemma_2b_it = gemma1p1_2b_it = gemma_2b
    gemma_7b_it = gemma1p1_7b_it = gemma_7b


SIZES = {"2b": GemmaConfig.gemma_2b, "7b": GemmaConfig.gemma_7b}
