"""Mistral 7B (https://arxiv.org/abs/2310.06825): the shared decoder under the family's name, and its sizes."""

from tunix_lab.models.decoder import Decoder as Mistral
from tunix_lab.models.mistral.config import MistralConfig as ModelConfig

__all__ = ["Mistral", "ModelConfig"]
