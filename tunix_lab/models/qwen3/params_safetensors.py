"""Qwen3 (dense) on the Hugging Face hub: its `config.json`."""

from collections.abc import Mapping
from typing import Any

from tunix_lab.models.config_json import Fields, layer_types
from tunix_lab.models.qwen2.params_safetensors import DEFAULTS, decoder_arguments, decoder_json
from tunix_lab.models.qwen3.config import Qwen3Config
from tunix_lab.models.safetensors import create_model_from_safe_tensors as create_model_from_safe_tensors

ARCHITECTURES = ("Qwen3ForCausalLM",)
SKIPPED = ()


def from_config_json(stored: Mapping[str, Any], place: str) -> Qwen3Config:
    """The configuration of a hub's `config.json`.

    Raises:
      UserError: a field is missing, not served, or not understood.
    """
    fields = Fields(stored, place, DEFAULTS | {"head_dim": 128})
    fields.demand("attention_bias", False)
    config = Qwen3Config(**decoder_arguments(fields))
    fields.finish()
    return config


def to_config_json(config: Qwen3Config) -> dict[str, Any]:
    """The hub's `config.json` of a configuration."""
    return {
        "architectures": [ARCHITECTURES[0]],
        "model_type": "qwen3",
        **decoder_json(config),
        "layer_types": layer_types(config),
        "attention_bias": False,
    }
