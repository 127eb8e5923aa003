"""Mistral on the Hugging Face hub: its `config.json`."""

from collections.abc import Mapping
from typing import Any

from tunix_lab.models.config_json import Fields, shape_json
from tunix_lab.models.mistral.config import MistralConfig
from tunix_lab.models.safetensors import create_model_from_safe_tensors as create_model_from_safe_tensors

ARCHITECTURES = ("MistralForCausalLM",)
SKIPPED = ()

_DEFAULTS = {
    "vocab_size": 32_000,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": None,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
    "sliding_window": 4096,
}


def from_config_json(stored: Mapping[str, Any], place: str) -> MistralConfig:
    """The configuration of a hub's `config.json`.

    Raises:
      UserError: a field is missing, not served, or not understood.
    """
    fields = Fields(stored, place, _DEFAULTS)
    fields.demand("hidden_act", "silu")
    theta, scaling = fields.rope()
    shape, window = fields.shape(), fields.take("sliding_window")
    config = MistralConfig(
        **shape,
        attention_pattern=("global",) if window is None else ("local",),
        sliding_window=window,
        rope_theta=theta,
        rope_scaling=scaling,
        query_scale=shape["head_dim"] ** -0.5,
    )
    fields.finish()
    return config


def to_config_json(config: MistralConfig) -> dict[str, Any]:
    """The hub's `config.json` of a configuration."""
    return {
        "architectures": [ARCHITECTURES[0]],
        "model_type": "mistral",
        **shape_json(config),
        "hidden_act": "silu",
        "sliding_window": config.sliding_window,
    }
