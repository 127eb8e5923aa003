"""Gemma 1 on the Hugging Face hub: its `config.json`."""

from collections.abc import Mapping
from typing import Any

from tunix_lab.models.config_json import Fields, shape_json
from tunix_lab.models.gemma.config import GemmaConfig
from tunix_lab.models.safetensors import create_model_from_safe_tensors as create_model_from_safe_tensors

ARCHITECTURES = ("GemmaForCausalLM",)
SKIPPED = ()

_DEFAULTS = {
    "vocab_size": 256_000,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "rope_theta": 10_000.0,
}


def from_config_json(stored: Mapping[str, Any], place: str) -> GemmaConfig:
    """The configuration of a hub's `config.json`.

    Raises:
      UserError: a field is missing, not served, or not understood.
    """
    fields = Fields(stored, place, _DEFAULTS)
    # The first published files say "gelu" and mean its tanh form, as the weights were trained.
    fields.demand("hidden_act", "gelu_pytorch_tanh", "gelu")
    fields.demand("hidden_activation", "gelu_pytorch_tanh", None)
    fields.demand("attention_bias", False)
    fields.demand("use_bidirectional_attention", False, None)
    theta, scaling = fields.rope()
    shape = fields.shape()
    config = GemmaConfig(**shape, rope_theta=theta, rope_scaling=scaling, query_scale=shape["head_dim"] ** -0.5)
    fields.finish()
    return config


def to_config_json(config: GemmaConfig) -> dict[str, Any]:
    """The hub's `config.json` of a configuration."""
    return {
        "architectures": [ARCHITECTURES[0]],
        "model_type": "gemma",
        **shape_json(config),
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
    }
