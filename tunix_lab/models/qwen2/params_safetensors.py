"""Qwen2.5 on the Hugging Face hub: its `config.json`; Qwen3 reads its windows the same way."""

from collections.abc import Mapping
from typing import Any

from tunix_lab.models.config import ModelConfig
from tunix_lab.models.config_json import Fields, layer_types, shape_json
from tunix_lab.models.qwen2.config import Qwen2Config
from tunix_lab.models.safetensors import create_model_from_safe_tensors as create_model_from_safe_tensors

ARCHITECTURES = ("Qwen2ForCausalLM",)
SKIPPED = ()

DEFAULTS = {
    "vocab_size": 151_936,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": None,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def from_config_json(stored: Mapping[str, Any], place: str) -> Qwen2Config:
    """The configuration of a hub's `config.json`.

    Raises:
      UserError: a field is missing, not served, or not understood.
    """
    fields = Fields(stored, place, DEFAULTS)
    config = Qwen2Config(**decoder_arguments(fields))
    fields.finish()
    return config


def decoder_arguments(fields: Fields) -> dict[str, Any]:
    """The arguments of `ModelConfig` that all of Qwen shares: shape, rotary embedding, windows in the upper layers."""
    fields.demand("hidden_act", "silu")
    theta, scaling = fields.rope()
    shape = fields.shape()
    uses_window, window, first = (fields.take(name) for name in ("use_sliding_window", "sliding_window", "max_window_layers"))
    window = window if uses_window else None
    kinds = ["global" if window is None or i < first else "local" for i in range(shape["num_layers"])]
    pattern = fields.layer_kinds(kinds)
    return shape | {
        "attention_pattern": pattern,
        "sliding_window": window if "local" in pattern else None,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "query_scale": shape["head_dim"] ** -0.5,
    }


def to_config_json(config: Qwen2Config) -> dict[str, Any]:
    """The hub's `config.json` of a configuration."""
    return {
        "architectures": [ARCHITECTURES[0]],
        "model_type": "qwen2",
        **decoder_json(config),
        "layer_types": layer_types(config),
    }


def decoder_json(config: ModelConfig) -> dict[str, Any]:
    """What all of Qwen writes."""
    kinds = layer_types(config)
    windows = "sliding_attention" in kinds
    return {
        **shape_json(config),
        "hidden_act": "silu",
        "use_sliding_window": windows,
        "sliding_window": config.sliding_window,
        "max_window_layers": kinds.index("sliding_attention") if windows else config.num_layers,
    }
