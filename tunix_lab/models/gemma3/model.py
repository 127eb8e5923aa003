"""Gemma 3 (https://arxiv.org/abs/2503.19786): the shared decoder with local and global layers, QK-norm and tied embeddings."""

from tunix_lab.models.config import ModelConfig as ModelConfig
from tunix_lab.models.decoder import Decoder

Gemma3 = Decoder
