"""Gemma 2 on the Hugging Face hub: its `config.json`."""

from collections.abc import Mapping
from typing import Any

from tunix_lab.models.config_json import Fields, layer_types, shape_json
from tunix_lab.models.gemma2.config import Gemma2Config
from tunix_lab.models.safetensors import create_model_from_safe_tensors as create_model_from_safe_tensors

ARCHITECTURES = ("Gemma2ForCausalLM",)
SKIPPED = ()

_DEFAULTS = {
    "vocab_size": 256_000,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "rope_theta": 10_000.0,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}


def from_config_json(stored: Mapping[str, Any], place: str) -> Gemma2Config:
    """The configuration of a hub's `config.json`.

    Raises:
      UserError: a field is missing, not served, or not understood.
    """
    fields = Fields(stored, place, _DEFAULTS)
    # `hidden_act` is a leftover of Gemma 1's files, which nothing reads where `hidden_activation` stands.
    fields.demand("hidden_act", "gelu_pytorch_tanh", "gelu")
    fields.demand("hidden_activation", "gelu_pytorch_tanh")
    fields.demand("attention_bias", False)
    fields.demand("use_bidirectional_attention", False, None)
    theta, scaling = fields.rope()
    shape = fields.shape()
    config = Gemma2Config(
        **shape,
        attention_pattern=fields.layer_kinds(["global" if i % 2 else "local" for i in range(shape["num_layers"])]),
        sliding_window=fields.take("sliding_window"),
        rope_theta=theta,
        rope_scaling=scaling,
        query_scale=float(fields.take("query_pre_attn_scalar")) ** -0.5,
        attn_logit_softcap=fields.take("attn_logit_softcapping"),
        final_logit_softcap=fields.take("final_logit_softcapping"),
    )
    fields.finish()
    return config


def to_config_json(config: Gemma2Config) -> dict[str, Any]:
    """The hub's `config.json` of a configuration."""
    return {
        "architectures": [ARCHITECTURES[0]],
        "model_type": "gemma2",
        **shape_json(config),
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": config.sliding_window,
        "layer_types": layer_types(config),
        "query_pre_attn_scalar": round(config.query_scale**-2),
        "attention_bias": False,
        "attn_logit_softcapping": config.attn_logit_softcap,
        "final_logit_softcapping": config.final_logit_softcap,
    }
