"""Gemma 2 (https://arxiv.org/abs/2408.00118): the shared decoder under the family's name, and its sizes."""

from tunix_lab.models.decoder import Decoder as Gemma2
from tunix_lab.models.gemma2.config import Gemma2Config as ModelConfig

__all__ = ["Gemma2", "ModelConfig"]
