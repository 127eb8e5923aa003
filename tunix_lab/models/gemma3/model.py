"""Gemma 3 (https://arxiv.org/abs/2503.19786): the shared decoder under the family's name, and its sizes."""

from tunix_lab.models.decoder import Decoder as Gemma3
from tunix_lab.models.gemma3.config import Gemma3Config as ModelConfig

__all__ = ["Gemma3", "ModelConfig"]
