"""Gemma 1 (https://arxiv.org/abs/2403.08295): the shared decoder under the family's name, and its sizes."""

from tunix_lab.models.decoder import Decoder as Gemma
from tunix_lab.models.gemma.config import GemmaConfig as ModelConfig

__all__ = ["Gemma", "ModelConfig"]
