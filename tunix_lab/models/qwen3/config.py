"""The dense sizes of Qwen3, https://arxiv.org/abs/2505.09388."""

import dataclasses

from tunix_lab.models.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3Config(ModelConfig):
    """The plain decoder with QK-norm and heads of a size of their own; tied embeddings in the small sizes."""

    family: str = "qwen3"
    vocab_size: int = 151_936
    max_positions: int = 40_960
    head_dim: int = 128
    rope_theta: float = 1_000_000.0
    query_scale: float = 128**-0.5
    qk_norm: bool = True

    @classmethod
    def qwen3_0p6b(cls) -> "Qwen3Config":
        """Qwen3 0.6B."""
        return cls(num_layers=28, embed_dim=1024, hidden_dim=3072, num_heads=16, num_kv_heads=8, tie_embeddings=True)

    @classmethod
    def qwen3_1p7b(cls) -> "Qwen3Config":
        """Qwen3 1.7B."""
        return cls(num_layers=28, embed_dim=2048, hidden_dim=6144, num_heads=16, num_kv_heads=8, tie_embeddings=True)

    @classmethod
    def qwen3_4b(cls) -> "Qwen3Config":
        """Qwen3 4B."""
        return cls(num_layers=36, embed_dim=2560, hidden_dim=9728, num_heads=32, num_kv_heads=8, tie_embeddings=True)

    @classmethod
    def qwen3_8b(cls) -> "Qwen3Config":
        """Qwen3 8B."""
        return cls(num_layers=36, embed_dim=4096, hidden_dim=12_288, num_heads=32, num_kv_heads=8)

    @classmethod
    def qwen3_14b(cls) -> "Qwen3Config":
        """Qwen3 14B."""
        return cls(num_layers=40, embed_dim=5120, hidden_dim=17_408, num_heads=40, num_kv_heads=8)

    @classmethod
    def qwen3_32b(cls) -> "Qwen3Config":
        """Qwen3 32B."""
        return cls(num_layers=64, embed_dim=5120, hidden_dim=25_600, num_heads=64, num_kv_heads=8)


SIZES = {
    "0.6b": Qwen3Config.qwen3_0p6b,
    "1.7b": Qwen3Config.qwen3_1p7b,
    "4b": Qwen3Config.qwen3_4b,
    "8b": Qwen3Config.qwen3_8b,
    "14b": Qwen3Config.qwen3_14b,
    "32b": Qwen3Config.qwen3_32b,
}
