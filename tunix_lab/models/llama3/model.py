"""Llama 3, 3.1 and 3.2 (https://arxiv.org/abs/2407.21783): the shared decoder under the family's name, and its sizes."""

from tunix_lab.models.decoder import Decoder as Llama3
from tunix_lab.models.llama3.config import Llama3Config as ModelConfig

__all__ = ["Llama3", "ModelConfig"]
