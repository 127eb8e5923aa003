"""Makes the folders beside this file: tiny models of every family, random weights, and what `transformers` computes with them.

    pip install torch transformers
    python tests/models/parity/make.py [OUT]

Each folder is a checkpoint as `transformers` writes it (config.json, model.safetensors, in bfloat16, which float32 holds
exactly) and `expected.npz`: two texts of 20 tokens, the second left-padded by 7; the logits in float32; 32 tokens of greedy
decoding after them.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

LENGTH, PADDING, NEW = 20, 7, 32

_SHAPE = dict(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=128, bos_token_id=2, eos_token_id=1, pad_token_id=0,
)  # fmt: skip
_GEMMA3 = _SHAPE | dict(
    head_dim=16, sliding_window=6, query_pre_attn_scalar=12,
    layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    rope_parameters={
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    },
)  # fmt: skip
_LLAMA3_ROPE = dict(
    rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=32,
)  # fmt: skip
_QWEN_WINDOWS = dict(use_sliding_window=True, sliding_window=6, max_window_layers=1)
_VISION = dict(
    hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=4,
)  # fmt: skip
_MOE = dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=16)


def _rope(theta: float) -> dict:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


# name -> configuration; the features of a family are spread over its cases
CASES = {
    "gemma": lambda: transformers.GemmaConfig(**_SHAPE | {"num_key_value_heads": 1}, head_dim=16, **_rope(300.0)),
    "gemma2": lambda: transformers.Gemma2Config(
        **_SHAPE, head_dim=16, sliding_window=6, query_pre_attn_scalar=12, attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0, **_rope(300.0),
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(**_GEMMA3),
    "gemma3_multimodal": lambda: transformers.Gemma3Config(
        text_config=_GEMMA3 | {"vocab_size": 100}, vision_config=_VISION, mm_tokens_per_image=4,
        image_token_index=96, boi_token_index=97, eoi_token_index=98,
    ),
    "llama3_tied": lambda: transformers.LlamaConfig(**_SHAPE, tie_word_embeddings=True, rope_parameters=_LLAMA3_ROPE),
    "llama3_untied": lambda: transformers.LlamaConfig(**_SHAPE, head_dim=16, rms_norm_eps=1e-5, **_rope(300.0)),
    "mistral_window": lambda: transformers.MistralConfig(**_SHAPE, sliding_window=6, **_rope(300.0)),
    "mistral": lambda: transformers.MistralConfig(**_SHAPE, head_dim=16, sliding_window=None, **_rope(300.0)),
    "qwen2_tied": lambda: transformers.Qwen2Config(**_SHAPE, tie_word_embeddings=True, **_rope(300.0)),
    "qwen2_windows": lambda: transformers.Qwen2Config(**_SHAPE, **_QWEN_WINDOWS, **_rope(300.0)),
    "qwen3_tied": lambda: transformers.Qwen3Config(**_SHAPE, head_dim=16, tie_word_embeddings=True, **_rope(300.0)),
    "qwen3_windows": lambda: transformers.Qwen3Config(**_SHAPE, head_dim=16, **_QWEN_WINDOWS, **_rope(300.0)),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**_SHAPE, **_MOE, norm_topk_prob=True, **_rope(300.0)),
    "qwen3_moe_plain": lambda: transformers.Qwen3MoeConfig(**_SHAPE, **_MOE, norm_topk_prob=False, **_rope(300.0)),
}  # fmt: skip


def build(name: str, seed: int) -> torch.nn.Module:
    """The model of a case; large enough weights that every feature shows, each rounded to bfloat16."""
    config = CASES[name]()
    kind = transformers.Gemma3ForConditionalGeneration if name == "gemma3_multimodal" else transformers.AutoModelForCausalLM
    make = kind if name == "gemma3_multimodal" else kind.from_config
    model = make(config).float().eval()
    model.set_attn_implementation("eager")
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for path, parameter in sorted(model.named_parameters()):
            shape = tuple(parameter.shape)
            if parameter.ndim == 1:  # norms, biases
                drawn = (path.endswith("norm.weight")) * 1.0 * ("gemma" not in name) + 0.4 * rng.standard_normal(shape)
            else:
                drawn = 1.5 * shape[-1] ** -0.5 * rng.standard_normal(shape)
            parameter.copy_(torch.tensor(drawn, dtype=torch.float32).bfloat16().float())
    model.tie_weights()
    return model


def expected(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """What the model computes for two texts, and by how much the likeliest token leads at the closest step of decoding."""
    tokens = np.random.default_rng(0).integers(3, 96, (2, LENGTH))
    mask = np.ones((2, LENGTH), np.int64)
    mask[1, :PADDING] = 0
    given = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask)}
    positions = torch.tensor(np.maximum(mask.cumsum(-1) - 1, 0))
    with torch.no_grad():
        logits = model(**given, position_ids=positions).logits.numpy()
        out = model.generate(
            **given, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0,
            output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
    best = torch.stack(out.scores).topk(2).values.numpy()
    greedy = out.sequences[:, LENGTH:].numpy()
    return {
        "tokens": tokens.astype(np.int32),
        "mask": mask.astype(bool),
        "logits": logits,
        "greedy": greedy.astype(np.int32),
        "margin": (best[..., 0] - best[..., 1]).min(),
    }


def build_clear(name: str) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    """A case's model and results, from the first seed whose decoding does not hang on a rounding error."""
    for seed in range(100):
        model = build(name, seed)
        results = expected(model)
        if results["margin"] > 5e-3:
            return model, results
    raise ValueError(f"{name}: the two likeliest tokens are always too close")


def main(out: Path) -> None:
    for name in CASES:
        model, results = build_clear(name)
        model.bfloat16().save_pretrained(out / name)
        (out / name / "generation_config.json").unlink(missing_ok=True)
        np.savez_compressed(out / name / "expected.npz", **results)
        print(name, sum(p.numel() for p in model.parameters()))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
