"""Qwen3, dense (https://arxiv.org/abs/2505.09388): the shared decoder under the family's name, and its sizes."""

from tunix_lab.models.decoder import Decoder as Qwen3
from tunix_lab.models.qwen3.config import Qwen3Config as ModelConfig

__all__ = ["Qwen3", "ModelConfig"]
