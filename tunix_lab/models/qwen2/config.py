"""The sizes of Qwen2.5, https://arxiv.org/abs/2412.15115."""

import dataclasses

from tunix_lab.models.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen2Config(ModelConfig):
    """The plain decoder with a bias on queries, keys and values; tied embeddings in the small sizes."""

    family: str = "qwen2"
    vocab_size: int = 151_936
    max_positions: int = 32_768
    head_dim: int = 128
    rope_theta: float = 1_000_000.0
    query_scale: float = 128**-0.5
    qkv_bias: bool = True

    @classmethod
    def qwen2p5_0p5b(cls) -> "Qwen2Config":
        """Qwen2.5 0.5B."""
        return cls(
            num_layers=24,
            embed_dim=896,
            hidden_dim=4864,
            num_heads=14,
            num_kv_heads=2,
            head_dim=64,
            query_scale=64**-0.5,
            tie_embeddings=True,
        )

    @classmethod
    def qwen2p5_1p5b(cls) -> "Qwen2Config":
        """Qwen2.5 1.5B."""
        return cls(num_layers=28, embed_dim=1536, hidden_dim=8960, num_heads=12, num_kv_heads=2, tie_embeddings=True)

    @classmethod
    def qwen2p5_3b(cls) -> "Qwen2Config":
        """Qwen2.5 3B."""
        return cls(num_layers=36, embed_dim=2048, hidden_dim=11_008, num_heads=16, num_kv_heads=2, tie_embeddings=True)

    @classmethod
    def qwen2p5_7b(cls) -> "Qwen2Config":
        """Qwen2.5 7B."""
        return cls(vocab_size=152_064, num_layers=28, embed_dim=3584, hidden_dim=18_944, num_heads=28, num_kv_heads=4)

    @classmethod
    def qwen2p5_14b(cls) -> "Qwen2Config":
        """Qwen2.5 14B."""
        return cls(vocab_size=152_064, num_layers=48, embed_dim=5120, hidden_dim=13_824, num_heads=40, num_kv_heads=8)

    @classmethod
    def qwen2p5_32b(cls) -> "Qwen2Config":
        """Qwen2.5 32B."""
        return cls(vocab_size=152_064, num_layers=64, embed_dim=5120, hidden_dim=27_648, num_heads=40, num_kv_heads=8)

    @classmethod
    def qwen2p5_72b(cls) -> "Qwen2Config":
        """Qwen2.5 72B."""
        return cls(vocab_size=152_064, num_layers=80, embed_dim=8192, hidden_dim=29_568, num_heads=64, num_kv_heads=8)


SIZES = {
    "2.5-0.5b": Qwen2Config.qwen2p5_0p5b,
    "2.5-1.5b": Qwen2Config.qwen2p5_1p5b,
    "2.5-3b": Qwen2Config.qwen2p5_3b,
    "2.5-7b": Qwen2Config.qwen2p5_7b,
    "2.5-14b": Qwen2Config.qwen2p5_14b,
    "2.5-32b": Qwen2Config.qwen2p5_32b,
    "2.5-72b": Qwen2Config.qwen2p5_72b,
}
