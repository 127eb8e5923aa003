"""Qwen3 with a mixture of experts on the Hugging Face hub: its `config.json`."""

from collections.abc import Mapping
from typing import Any

from tunix_lab.models.config import Experts
from tunix_lab.models.config_json import Fields
from tunix_lab.models.qwen2.params_safetensors import DEFAULTS, decoder_arguments, decoder_json
from tunix_lab.models.qwen3_moe.config import Qwen3MoeConfig
from tunix_lab.models.safetensors import create_model_from_safe_tensors as create_model_from_safe_tensors

ARCHITECTURES = ("Qwen3MoeForCausalLM",)
SKIPPED = ()

_DEFAULTS = DEFAULTS | {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "num_experts": 128,
    "norm_topk_prob": False,
}


def from_config_json(stored: Mapping[str, Any], place: str) -> Qwen3MoeConfig:
    """The configuration of a hub's `config.json`.

    Raises:
      UserError: a field is missing, not served, or not understood.
    """
    # Newer files call the number of experts by a name that other families use too.
    aliases = {"num_local_experts": "num_experts"}
    stored = {aliases.get(name, name): value for name, value in stored.items()}
    fields = Fields(stored, place, _DEFAULTS)
    fields.demand("attention_bias", False)
    fields.demand("decoder_sparse_step", 1)
    fields.demand("use_sliding_window", False)
    fields.demand("mlp_only_layers", [], None)
    experts = Experts(
        count=fields.take("num_experts"),
        per_token=fields.take("num_experts_per_tok"),
        hidden_dim=fields.take("moe_intermediate_size"),
        normalize=fields.take("norm_topk_prob"),
    )
    config = Qwen3MoeConfig(**decoder_arguments(fields), experts=experts)
    fields.finish()
    return config


def to_config_json(config: Qwen3MoeConfig) -> dict[str, Any]:
    """The hub's `config.json` of a configuration."""
    return {
        "architectures": [ARCHITECTURES[0]],
        "model_type": "qwen3_moe",
        **decoder_json(config),
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "num_experts": config.experts.count,
        "num_experts_per_tok": config.experts.per_token,
        "moe_intermediate_size": config.experts.hidden_dim,
        "norm_topk_prob": config.experts.normalize,
    }
