"""Qwen3 with experts (https://arxiv.org/abs/2505.09388): the shared decoder under the family's name, and its sizes."""

from tunix_lab.models.decoder import Decoder as Qwen3Moe
from tunix_lab.models.qwen3_moe.config import Qwen3MoeConfig as ModelConfig

__all__ = ["Qwen3Moe", "ModelConfig"]
