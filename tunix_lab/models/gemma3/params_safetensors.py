"""Gemma 3's name map: how its parameters are stored on the Hugging Face hub (text model, `Gemma3ForCausalLM`)."""

from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from tunix_lab.errors import UserError
from tunix_lab.models.config import AttentionKind, ModelConfig
from tunix_lab.models.decoder import Decoder
from tunix_lab.models.safetensors import Link, load_decoder

ARCHITECTURE = "Gemma3ForCausalLM"

_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
_NORMS = {
    "pre_attention_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "pre_ffw_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "attn.query_norm": "self_attn.q_norm",
    "attn.key_norm": "self_attn.k_norm",
}


def create_model_from_safe_tensors(
    file_dir: str | Path, config: ModelConfig, mesh: Mesh | None = None, dtype: str | None = None
) -> Decoder:
    """Loads a Gemma 3 from a folder of safetensors.

    Args:
      file_dir: the folder.
      config: the model's shape.
      mesh: where the parameters go; None is the default device.
      dtype: of parameters and activations; None takes those of `config`.

    Raises:
      UserError: the folder holds no weights, or others than `config` says.
    """
    if dtype is not None:
        config = config.replace(dtype=str(np.dtype(dtype)), param_dtype=str(np.dtype(dtype)))
    return load_decoder(Path(file_dir), config, links(config), mesh)


def links(config: ModelConfig) -> list[Link]:
    """The layout of every parameter."""
    found = [_same("embedder.input_embedding", "model.embed_tokens.weight"), _same("final_norm.scale", "model.norm.weight")]
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}", f"model.layers.{i}"
        found += [_same(f"{ours}.{norm}.scale", f"{theirs}.{stored}.weight") for norm, stored in _NORMS.items()]
        found += [_transposed(f"{ours}.mlp.{name}.w", f"{theirs}.mlp.{name}.weight") for name in _PROJECTIONS]
        found += _attention(f"{ours}.attn", f"{theirs}.self_attn", config)
    return found


def _same(ours: str, theirs: str) -> Link:
    return Link(ours, (theirs,), lambda tensor: tensor, lambda param: (param,))


def _transposed(ours: str, theirs: str) -> Link:
    return Link(ours, (theirs,), lambda tensor: tensor.T, lambda param: (param.T,))


def _attention(ours: str, theirs: str, config: ModelConfig) -> list[Link]:
    """Stored are matrices [out, in]; ours keep heads and head dimension apart."""
    dim, embed = config.head_dim, config.embed_dim

    def split(matrix: np.ndarray) -> np.ndarray:  # [heads · dim, embed] -> [heads, embed, dim]
        return matrix.reshape(-1, dim, embed).transpose(0, 2, 1)

    def join(param: np.ndarray) -> np.ndarray:
        return param.transpose(0, 2, 1).reshape(-1, embed)

    return [
        Link(f"{ours}.q_einsum.w", (f"{theirs}.q_proj.weight",), split, lambda param: (join(param),)),
        Link(
            f"{ours}.kv_einsum.w",
            (f"{theirs}.k_proj.weight", f"{theirs}.v_proj.weight"),
            lambda key, value: np.stack([split(key), split(value)]),
            lambda param: (join(param[0]), join(param[1])),
        ),
        Link(
            f"{ours}.attn_vec_einsum.w",
            (f"{theirs}.o_proj.weight",),
            lambda matrix: matrix.reshape(embed, -1, dim).transpose(1, 2, 0),  # [embed, heads · dim] -> [heads, dim, embed]
            lambda param: (param.transpose(2, 0, 1).reshape(embed, -1),),
        ),
    ]


def to_config_json(config: ModelConfig) -> dict[str, object]:
    """The hub's `config.json` of a configuration."""
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "gemma3_text",
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": config.sliding_window,
        "layer_types": [
            "sliding_attention" if config.attention_kind(i) == "local" else "full_attention" for i in range(config.num_layers)
        ],
        "rope_theta": config.rope_theta,
        "rope_local_base_freq": config.rope_theta_local,
        "rope_scaling": None if config.rope_scale == 1.0 else {"rope_type": "linear", "factor": config.rope_scale},
        "query_pre_attn_scalar": round(config.query_scale**-2),
        "rms_norm_eps": config.rms_norm_eps,
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "tie_word_embeddings": True,
        "torch_dtype": config.param_dtype,
    }


def from_config_json(stored: dict[str, object], folder: Path) -> ModelConfig:
    """The configuration of a hub's `config.json`.

    Raises:
      UserError: a field has a value that this family does not serve.
    """
    required = {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "tie_word_embeddings": True}
    required |= {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    for name, value in required.items():
        if stored.get(name, value) != value:
            raise UserError(f"{folder}/config.json: {name} = {stored[name]!r} is not served for gemma3, only {value!r}")
    scaling = stored.get("rope_scaling") or {"rope_type": "linear", "factor": 1.0}
    if scaling.get("rope_type") != "linear":
        raise UserError(f"{folder}/config.json: rope_scaling {scaling!r} is not served for gemma3, only linear")
    kinds = {"sliding_attention": "local", "full_attention": "global"}
    return ModelConfig(
        vocab_size=stored["vocab_size"],
        num_layers=stored["num_hidden_layers"],
        embed_dim=stored["hidden_size"],
        hidden_dim=stored["intermediate_size"],
        num_heads=stored["num_attention_heads"],
        num_kv_heads=stored["num_key_value_heads"],
        head_dim=stored["head_dim"],
        attention_pattern=_shortest_pattern(tuple(kinds[kind] for kind in stored["layer_types"])),
        sliding_window=stored["sliding_window"],
        rope_theta=float(stored["rope_theta"]),
        rope_theta_local=float(stored["rope_local_base_freq"]),
        rope_scale=float(scaling["factor"]),
        query_scale=float(stored["query_pre_attn_scalar"]) ** -0.5,
        rms_norm_eps=float(stored["rms_norm_eps"]),
        dtype=stored["torch_dtype"],
        param_dtype=stored["torch_dtype"],
    )


def _shortest_pattern(kinds: tuple[AttentionKind, ...]) -> tuple[AttentionKind, ...]:
    """The shortest tuple that gives `kinds` when repeated, so that a configuration that was written is equal when it is read."""
    n = len(kinds)
    return next(kinds[:size] for size in range(1, n + 1) if all(kinds[i] == kinds[i % size] for i in range(n)))
