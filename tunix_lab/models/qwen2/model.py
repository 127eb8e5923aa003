"""Qwen2.5 (https://arxiv.org/abs/2412.15115): the shared decoder under the family's name, and its sizes."""

from tunix_lab.models.decoder import Decoder as Qwen2
from tunix_lab.models.qwen2.config import Qwen2Config as ModelConfig

__all__ = ["Qwen2", "ModelConfig"]
