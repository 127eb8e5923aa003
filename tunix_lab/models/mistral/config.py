"""The sizes of Mistral 7B, https://arxiv.org/abs/2310.06825."""

import dataclasses

from tunix_lab.models.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class MistralConfig(ModelConfig):
    """The plain decoder; version 0.1 attends within a sliding window, later ones to everything."""

    family: str = "mistral"
    vocab_size: int = 32_768
    max_positions: int = 32_768
    head_dim: int = 128
    rope_theta: float = 1_000_000.0
    query_scale: float = 128**-0.5
    rms_norm_eps: float = 1e-5

    @classmethod
    def mistral_7b_v0p1(cls) -> "MistralConfig":
        """Mistral 7B v0.1."""
        return cls.mistral_7b_v0p3().replace(
            vocab_size=32_000, rope_theta=10_000.0, attention_pattern=("local",), sliding_window=4096
        )

    @classmethod
    def mistral_7b_v0p2(cls) -> "MistralConfig":
        """Mistral 7B v0.2."""
        return cls.mistral_7b_v0p3().replace(vocab_size=32_000)

    @classmethod
    def mistral_7b_v0p3(cls) -> "MistralConfig":
        """Mistral 7B v0.3."""
        return cls(num_layers=32, embed_dim=4096, hidden_dim=14_336, num_heads=32, num_kv_heads=8)


SIZES = {
    "7b-v0.1": MistralConfig.mistral_7b_v0p1,
    "7b-v0.2": MistralConfig.mistral_7b_v0p2,
    "7b-v0.3": MistralConfig.mistral_7b_v0p3,
}
