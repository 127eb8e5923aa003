"""Gemma 3's text model written once more, in NumPy, from the definition that the Hugging Face hub's layout stands for."""

from collections.abc import Callable

import numpy as np
import pytest

Tensors = dict[str, np.ndarray]


def gemma3_logits(t: Tensors, config: dict, tokens: np.ndarray, without: str = "") -> np.ndarray:
    """Logits [len(tokens), vocab] of one unpadded text in float64; `without` leaves one feature out."""
    head_dim, length = config["head_dim"], len(tokens)
    position = np.arange(length)

    def norm(x, name):
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config["rms_norm_eps"])
        return x if "norm" in without and without in name else x * (1 + t[f"{name}.weight"])

    def rotate(x, base, factor):  # [T, heads, dim]
        inverse = 1.0 / base ** (np.arange(0, head_dim, 2) / head_dim) / factor
        angle = np.concatenate([position[:, None] * inverse] * 2, axis=-1)[:, None]
        half = np.concatenate([-x[..., head_dim // 2 :], x[..., : head_dim // 2]], axis=-1)
        return x * np.cos(angle) + half * np.sin(angle)

    def attention(x, layer, name):
        local = config["layer_types"][layer] == "sliding_attention"
        project = lambda which: (x @ t[f"{name}.{which}_proj.weight"].T).reshape(length, -1, head_dim)  # noqa: E731
        query, key, value = norm(project("q"), f"{name}.q_norm"), norm(project("k"), f"{name}.k_norm"), project("v")
        factor = (config["rope_scaling"] or {"factor": 1.0})["factor"]
        base, factor = (config["rope_local_base_freq"], 1.0) if local else (config["rope_theta"], factor)
        if without == "bases":
            base, factor = config["rope_theta"], 1.0
        query, key = rotate(query, base, factor), rotate(key, base, factor)
        groups = config["num_attention_heads"] // config["num_key_value_heads"]
        spread = (lambda x: np.tile(x, (1, groups, 1))) if without == "groups" else (lambda x: np.repeat(x, groups, axis=1))
        scores = np.einsum("tnh,snh->nts", query, spread(key)) * config["query_pre_attn_scalar"] ** -0.5
        distance = position[:, None] - position[None]
        seen = (distance >= 0) & ((distance < config["sliding_window"]) | (not local) | (without == "window"))
        scores = np.where(seen, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("nts,snh->tnh", weights / weights.sum(-1, keepdims=True), spread(value))
        return mixed.reshape(length, -1) @ t[f"{name}.o_proj.weight"].T

    def mlp(x, name):
        gate, up = x @ t[f"{name}.gate_proj.weight"].T, x @ t[f"{name}.up_proj.weight"].T
        gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        return (gelu * up) @ t[f"{name}.down_proj.weight"].T

    t = {name: tensor.astype(np.float64) for name, tensor in t.items()}
    table = t["model.embed_tokens.weight"]
    x = table[tokens] * (1.0 if without == "embedding scale" else np.sqrt(config["hidden_size"]))
    for i in range(config["num_hidden_layers"]):
        name = f"model.layers.{i}"
        attended = attention(norm(x, f"{name}.input_layernorm"), i, f"{name}.self_attn")
        x = x + norm(attended, f"{name}.post_attention_layernorm")
        fed = mlp(norm(x, f"{name}.pre_feedforward_layernorm"), f"{name}.mlp")
        x = x + norm(fed, f"{name}.post_feedforward_layernorm")
    return norm(x, "model.norm") @ table.T


@pytest.fixture(scope="session")
def reference_logits() -> Callable[..., np.ndarray]:
    return gemma3_logits
