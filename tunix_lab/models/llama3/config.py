"""The sizes of Llama 3, 3.1 and 3.2 (text), https://arxiv.org/abs/2407.21783."""

import dataclasses

from tunix_lab.models.config import Llama3Rope, ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Config(ModelConfig):
    """The plain decoder: norms before each layer, SwiGLU, grouped queries; tied embeddings in the small sizes of 3.2."""

    family: str = "llama3"
    vocab_size: int = 128_256
    max_positions: int = 131_072
    head_dim: int = 128
    rope_theta: float = 500_000.0
    query_scale: float = 128**-0.5
    rms_norm_eps: float = 1e-5

    @classmethod
    def llama3_8b(cls) -> "Llama3Config":
        """Llama 3 8B."""
        return cls(num_layers=32, embed_dim=4096, hidden_dim=14_336, num_heads=32, num_kv_heads=8, max_positions=8192)

    @classmethod
    def llama3_70b(cls) -> "Llama3Config":
        """Llama 3 70B."""
        return cls(num_layers=80, embed_dim=8192, hidden_dim=28_672, num_heads=64, num_kv_heads=8, max_positions=8192)

    @classmethod
    def llama3p1_8b(cls) -> "Llama3Config":
        """Llama 3.1 8B."""
        return cls.llama3_8b().replace(max_positions=131_072, rope_scaling=_scaling(8.0))

    @classmethod
    def llama3p1_70b(cls) -> "Llama3Config":
        """Llama 3.1 70B; 3.3 70B has the same shape."""
        return cls.llama3_70b().replace(max_positions=131_072, rope_scaling=_scaling(8.0))

    @classmethod
    def llama3p2_1b(cls) -> "Llama3Config":
        """Llama 3.2 1B."""
        return cls(
            num_layers=16,
            embed_dim=2048,
            hidden_dim=8192,
            num_heads=32,
            num_kv_heads=8,
            head_dim=64,
            query_scale=64**-0.5,
            rope_scaling=_scaling(32.0),
            tie_embeddings=True,
        )

    @classmethod
    def llama3p2_3b(cls) -> "Llama3Config":
        """Llama 3.2 3B."""
        return cls(
            num_layers=28,
            embed_dim=3072,
            hidden_dim=8192,
            num_heads=24,
            num_kv_heads=8,
            rope_scaling=_scaling(32.0),
            tie_embeddings=True,
        )

    llama3p2_1b_instruct = llama3p2_1b
    llama3p2_3b_instruct = llama3p2_3b
    llama3p1_8b_instruct = llama3p1_8b
    llama3p1_70b_instruct = llama3p1_70b


def _scaling(factor: float) -> Llama3Rope:
    return Llama3Rope(factor, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192)


SIZES = {
    "3-8b": Llama3Config.llama3_8b,
    "3-70b": Llama3Config.llama3_70b,
    "3.1-8b": Llama3Config.llama3p1_8b,
    "3.1-70b": Llama3Config.llama3p1_70b,
    "3.2-1b": Llama3Config.llama3p2_1b,
    "3.2-3b": Llama3Config.llama3p2_3b,
}
