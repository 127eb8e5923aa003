"""Gemma 3 on the Hugging Face hub: its `config.json`, alone or as the text part of the multimodal one."""

from collections.abc import Mapping
from typing import Any

from tunix_lab.errors import UserError
from tunix_lab.models.config_json import Fields, layer_types, shape_json
from tunix_lab.models.gemma3.config import Gemma3Config
from tunix_lab.models.safetensors import create_model_from_safe_tensors as create_model_from_safe_tensors

ARCHITECTURES = ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration")
# What the multimodal checkpoints hold beside the text model, which alone is loaded.
SKIPPED = ("vision_tower.", "multi_modal_projector.")
_BESIDE_THE_TEXT = """
    vision_config mm_tokens_per_image dtype torch_dtype
    boi_token_index eoi_token_index image_token_index boi_token_id eoi_token_id image_token_id
""".split()

_DEFAULTS = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "rope_local_scaling": None,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": None,
    "_sliding_window_pattern": 6,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}


def from_config_json(stored: Mapping[str, Any], place: str) -> Gemma3Config:
    """The configuration of a hub's `config.json`.

    Raises:
      UserError: a field is missing, not served, or not understood.
    """
    if "text_config" in stored:
        outer = Fields({name: value for name, value in stored.items() if name != "text_config"}, place, {})
        for name in _BESIDE_THE_TEXT:
            outer.demand(name, stored.get(name))
        outer.demand("tie_word_embeddings", True)
        outer.finish()
        dtype = {"dtype": stored.get("dtype") or stored.get("torch_dtype")}
        stored, place = dtype | dict(stored["text_config"]), f"{place}: text_config"
    fields = Fields(stored, place, _DEFAULTS)
    fields.demand("hidden_activation", "gelu_pytorch_tanh")
    fields.demand("attention_bias", False)
    fields.demand("use_bidirectional_attention", False, None)
    theta, scaling = fields.rope("full_attention")
    theta_local, scaling_local = fields.rope("sliding_attention", theta="rope_local_base_freq", scaling="rope_local_scaling")
    if scaling_local is not None:
        raise UserError(f"{place}: rotary scaling of sliding layers is not served")
    every = fields.take("sliding_window_pattern") or fields.take("_sliding_window_pattern")
    shape = fields.shape()
    kinds = ["global" if (i + 1) % every == 0 else "local" for i in range(shape["num_layers"])]
    config = Gemma3Config(
        **shape,
        attention_pattern=fields.layer_kinds(kinds),
        sliding_window=fields.take("sliding_window"),
        rope_theta=theta,
        rope_theta_local=theta_local,
        rope_scaling=scaling,
        query_scale=float(fields.take("query_pre_attn_scalar")) ** -0.5,
        attn_logit_softcap=fields.take("attn_logit_softcapping"),
        final_logit_softcap=fields.take("final_logit_softcapping"),
    )
    fields.finish()
    return config


def to_config_json(config: Gemma3Config) -> dict[str, Any]:
    """The hub's `config.json` of a configuration."""
    return {
        "architectures": [ARCHITECTURES[0]],
        "model_type": "gemma3_text",
        **shape_json(config),
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": config.sliding_window,
        "layer_types": layer_types(config),
        "rope_local_base_freq": config.rope_theta_local,
        "query_pre_attn_scalar": round(config.query_scale**-2),
        "attention_bias": False,
        "attn_logit_softcapping": config.attn_logit_softcap,
        "final_logit_softcapping": config.final_logit_softcap,
    }
