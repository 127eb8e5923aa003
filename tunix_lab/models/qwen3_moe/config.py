"""The sizes of Qwen3 with a mixture of experts, https://arxiv.org/abs/2505.09388."""

import dataclasses

from tunix_lab.models.config import Experts
from tunix_lab.models.qwen3.config import Qwen3Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3MoeConfig(Qwen3Config):
    """Qwen3 whose every feed-forward layer is a mixture of experts."""

    family: str = "qwen3_moe"
    experts: Experts | None = Experts(count=128, per_token=8, hidden_dim=768, normalize=True)

    @classmethod
    def qwen3_30b_a3b(cls) -> "Qwen3MoeConfig":
        """Qwen3 30B-A3B."""
        return cls(num_layers=48, embed_dim=2048, hidden_dim=6144, num_heads=32, num_kv_heads=4)


SIZES = {"30b-a3b": Qwen3MoeConfig.qwen3_30b_a3b}
