"""config.json as published checkpoints have it, by old writers and new ones; what is not understood is refused by name."""

import json

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from tunix_lab.errors import UserError
from tunix_lab.models.catalog import FAMILIES, load_model, read_config, save_model
from tunix_lab.models.config import LinearRope, Llama3Rope
from tunix_lab.models.sizes import SIZES
from tunix_lab.sft.train_state import digest, flat_params

_SILU = {"hidden_act": "silu", "attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": True, "torch_dtype": "bfloat16"}
_GELU = {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "attention_dropout": 0.0, "torch_dtype": "bfloat16"}
_LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def shape(vocab, embed, hidden, layers, heads, kv_heads, positions, **more):
    return {
        "vocab_size": vocab,
        "hidden_size": embed,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": positions,
        **more,
    }


# (family, size) -> its config.json on the hub, without bookkeeping
PUBLISHED = {
    ("gemma", "2b"): {
        "architectures": ["GemmaForCausalLM"],
        **shape(256_000, 2048, 16_384, 18, 8, 1, 8192, head_dim=256, rms_norm_eps=1e-6, rope_theta=10_000.0, rope_scaling=None),
        **_GELU | {"hidden_act": "gelu"},
    },
    ("gemma2", "27b"): {
        "architectures": ["Gemma2ForCausalLM"],
        **shape(256_000, 4608, 36_864, 46, 32, 16, 8192, head_dim=128, rms_norm_eps=1e-6, rope_theta=10_000.0),
        **_GELU | {"hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid", "query_pre_attn_scalar": 144},
        **{"sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    },
    ("gemma3", "1b"): {
        "architectures": ["Gemma3ForCausalLM"],
        **shape(262_144, 1152, 6912, 26, 4, 1, 32_768, head_dim=256, rms_norm_eps=1e-6, rope_theta=1_000_000, rope_scaling=None),
        **_GELU
        | {"rope_local_base_freq": 10_000, "sliding_window": 512, "sliding_window_pattern": 6, "query_pre_attn_scalar": 256},
        **{"attn_logit_softcapping": None, "final_logit_softcapping": None, "eos_token_id": [1, 106], "bos_token_id": 2},
    },
    ("gemma3", "4b"): {  # the multimodal files leave out what is a default
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {
            **{"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10_240, "num_hidden_layers": 34},
            **{"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
        },
        **{
            "vision_config": {"hidden_size": 1152},
            "boi_token_index": 255_999,
            "eoi_token_index": 256_000,
            "model_type": "gemma3",
        },
        **{"image_token_index": 262_144, "mm_tokens_per_image": 256, "torch_dtype": "bfloat16", "eos_token_id": [1, 106]},
    },
    ("llama3", "3.1-8b"): {
        "architectures": ["LlamaForCausalLM"],
        **shape(128_256, 4096, 14_336, 32, 32, 8, 131_072, rms_norm_eps=1e-5, rope_theta=500_000.0, tie_word_embeddings=False),
        **_SILU | {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1, "rope_scaling": {"factor": 8.0, **_LLAMA3}},
    },
    ("llama3", "3.2-1b"): {
        "architectures": ["LlamaForCausalLM"],
        **shape(128_256, 2048, 8192, 16, 32, 8, 131_072, head_dim=64, rms_norm_eps=1e-5, tie_word_embeddings=True),
        **_SILU | {"attention_bias": False, "mlp_bias": False},
        "rope_parameters": {"factor": 32.0, "rope_theta": 500_000.0, **_LLAMA3},  # as new writers have it
    },
    ("mistral", "7b-v0.1"): {
        "architectures": ["MistralForCausalLM"],
        **shape(32_000, 4096, 14_336, 32, 32, 8, 32_768, rms_norm_eps=1e-5, rope_theta=10_000.0, tie_word_embeddings=False),
        **_SILU | {"sliding_window": 4096},
    },
    ("mistral", "7b-v0.3"): {
        "architectures": ["MistralForCausalLM"],
        **shape(32_768, 4096, 14_336, 32, 32, 8, 32_768, rms_norm_eps=1e-5, rope_theta=1_000_000.0, tie_word_embeddings=False),
        **_SILU | {"sliding_window": None},
    },
    ("qwen2", "2.5-0.5b"): {
        "architectures": ["Qwen2ForCausalLM"],
        **shape(151_936, 896, 4864, 24, 14, 2, 32_768, rms_norm_eps=1e-6, rope_theta=1_000_000.0, tie_word_embeddings=True),
        **_SILU | {"sliding_window": 32_768, "max_window_layers": 24, "use_sliding_window": False, "use_mrope": False},
    },
    ("qwen2", "2.5-7b"): {
        "architectures": ["Qwen2ForCausalLM"],
        **shape(152_064, 3584, 18_944, 28, 28, 4, 32_768, rms_norm_eps=1e-6, rope_theta=1_000_000.0, tie_word_embeddings=False),
        **_SILU | {"sliding_window": 131_072, "max_window_layers": 28, "use_sliding_window": False},
    },
    ("qwen3", "0.6b"): {
        "architectures": ["Qwen3ForCausalLM"],
        **shape(151_936, 1024, 3072, 28, 16, 8, 40_960, head_dim=128, rms_norm_eps=1e-6, rope_theta=1_000_000, rope_scaling=None),
        **_SILU | {"attention_bias": False, "max_window_layers": 28, "use_sliding_window": False, "tie_word_embeddings": True},
    },
    ("qwen3_moe", "30b-a3b"): {
        "architectures": ["Qwen3MoeForCausalLM"],
        **shape(151_936, 2048, 6144, 48, 32, 4, 40_960, head_dim=128, rms_norm_eps=1e-6, rope_theta=1_000_000.0),
        **_SILU | {"attention_bias": False, "decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 768},
        **{"norm_topk_prob": True, "num_experts": 128, "num_experts_per_tok": 8, "router_aux_loss_coef": 0.001},
        **{"output_router_logits": False, "sliding_window": None, "tie_word_embeddings": False, "use_sliding_window": False},
    },
}


@pytest.fixture
def read(tmp_path):
    def read(stored):
        (tmp_path / "config.json").write_text(json.dumps(stored))
        return read_config(tmp_path)

    return read


@pytest.mark.parametrize(("family", "size"), PUBLISHED)
def test_published_files(read, family, size):
    assert read(PUBLISHED[family, size]) == SIZES[family][size]()


@pytest.mark.parametrize(("family", "size"), [(family, size) for family, sizes in SIZES.items() for size in sizes])
def test_written_and_read_again(read, family, size):
    config = SIZES[family][size]()
    assert read(FAMILIES[family].to_config_json(config)) == config


LLAMA = PUBLISHED["llama3", "3.1-8b"]


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (LLAMA | {"clip_qkv": 8.0, "some_flag": True}, r"not understood, and so not loaded: clip_qkv = 8.0, some_flag = True"),
        (LLAMA | {"mlp_bias": True}, "mlp_bias = True is not served, only False"),
        (LLAMA | {"hidden_act": "relu"}, "hidden_act = 'relu' is not served, only 'silu'"),
        (
            LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "rope type 'yarn' is not served, only default",
        ),
        (
            LLAMA | {"rope_scaling": {"type": "linear", "factor": 4.0, "beta": 1}},
            r"rope type 'linear' .* unknown .*'beta'",
        ),
        (LLAMA | {"rope_scaling": {"type": "linear"}}, r"rope type 'linear' with missing fields \['factor'\]"),
        (LLAMA | {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        (LLAMA | {"quantization_config": {"bits": 4}}, "quantized weights are not served; .* adapter.kind: qlora"),
        (LLAMA | {"layer_types": ["linear_attention"] * 32}, "not understood, and so not loaded: layer_types"),
        ({k: v for k, v in LLAMA.items() if k != "num_hidden_layers"}, "field 'num_hidden_layers' is missing"),
        (
            PUBLISHED["qwen3", "0.6b"] | {"layer_types": ["linear_attention"] * 28},
            "'linear_attention' are not served",
        ),
        (PUBLISHED["qwen3_moe", "30b-a3b"] | {"mlp_only_layers": [3]}, r"mlp_only_layers = \[3\] is not served"),
        (PUBLISHED["gemma3", "1b"] | {"use_bidirectional_attention": True}, "use_bidirectional_attention = True is not served"),
        (PUBLISHED["gemma3", "4b"] | {"audio_config": {"x": 1}}, "not understood, and so not loaded: audio_config"),
        (
            {"architectures": ["MambaForCausalLM"]},
            r"'MambaForCausalLM'\] is not served; there are Gemma2For",
        ),
        ({"architectures": None}, "architecture None is not served"),
        ([1], "must hold a JSON object, got list"),
    ],
)
def test_what_is_refused(read, stored, message):
    with pytest.raises(UserError, match=message):
        read(stored)


def test_features_that_are_absent_may_be_named(read):
    assert read(LLAMA | {"clip_qkv": None, "some_flag": False}) == SIZES["llama3"]["3.1-8b"]()


def test_ways_to_write_rotary_scaling(read):
    old = read(LLAMA | {"rope_scaling": {"type": "linear", "factor": 4}})
    assert old.rope_scaling == LinearRope(4.0) and old.rope_theta == 500_000.0
    assert read(LLAMA).rope_scaling == Llama3Rope(8.0, 1.0, 4.0, 8192)
    gemma = PUBLISHED["gemma3", "1b"]
    kinds = {
        "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0},
        "sliding_attention": {"rope_theta": 5.0},
    }
    new = read({name: value for name, value in gemma.items() if not name.startswith("rope_")} | {"rope_parameters": kinds})
    assert (new.rope_theta, new.rope_theta_local, new.rope_scaling) == (7.0, 5.0, LinearRope(2.0))


def test_windows_of_the_upper_layers(read):
    windows = {"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 3}
    config = read(PUBLISHED["qwen2", "2.5-0.5b"] | windows)
    assert [config.attention_kind(i) for i in (0, 2, 3, 23)] == [
        "global",
        "global",
        "local",
        "local",
    ] and config.sliding_window == 128


def test_a_tied_head_that_is_stored_too(tiny_decoder, tmp_path):
    """Readers ignore it; buffers that everyone computes as well."""
    model = tiny_decoder(num_layers=1)
    save_model(flat_params(nnx.state(model)), model.config, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    extra = {"lm_head.weight": np.zeros(3, np.float32), "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}
    save_file(tensors | extra, tmp_path / "model.safetensors")
    assert digest(flat_params(nnx.state(load_model(tmp_path)))) == digest(flat_params(nnx.state(model)))
