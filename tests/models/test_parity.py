"""Every family against `transformers`: logits and greedy decoding of tiny checkpoints that it wrote (see parity/make.py)."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from tunix_lab.generate.config import CacheConfig
from tunix_lab.generate.sampler import Sampler
from tunix_lab.models.catalog import FAMILIES, load_model
from tunix_lab.models.decoder import Decoder
from tunix_lab.models.sharding import make_mesh
from tunix_lab.sft.train_state import flat_params

FIXTURES = Path(__file__).parent / "parity"
CASES = sorted(path.parent.name for path in FIXTURES.glob("*/config.json"))

# case -> what must be felt when it is taken away: fields of the configuration with other values
FEATURES = {
    "gemma": [{"norm_adds_one": False}, {"scale_embeddings": False}, {"activation": "silu"}, {"rope_theta": 1e4}],
    "gemma2": [
        {"attention_pattern": ("global",)},
        {"sliding_window": 7},
        {"attn_logit_softcap": None},
        {"final_logit_softcap": None},
        {"query_scale": 16**-0.5},
    ],
    "gemma3": [
        {"attention_pattern": ("global",)},
        {"rope_theta_local": 5000.0},
        {"rope_scaling": None},
        {"query_scale": 16**-0.5},
    ],
    "llama3_tied": [{"rope_scaling": None}, {"rope_theta": 1e4}],
    "llama3_untied": [{"rms_norm_eps": 1e-1}],
    "mistral_window": [{"attention_pattern": ("global",)}, {"sliding_window": 5}],
    "qwen2_windows": [{"attention_pattern": ("local",)}],
    "qwen3_moe": ["normalize", "per_token"],
}


def load(name: str):
    return load_model(FIXTURES / name, dtype="float32", param_dtype="float32")


@pytest.fixture(scope="module")
def expected():
    return {name: dict(np.load(FIXTURES / name / "expected.npz")) for name in CASES}


def test_all_families_are_there():
    assert {load(name).config.family for name in CASES} == set(FAMILIES)


@pytest.mark.parametrize("name", CASES)
def test_model_parity_family(name, expected, run_model):
    """Logits within 1e-4 at every real token, of a whole row and of one padded on the left."""
    want = expected[name]
    logits = np.asarray(run_model(load(name), want["tokens"], want["mask"]))
    np.testing.assert_allclose(logits[want["mask"]], want["logits"][want["mask"]], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["gemma2", "llama3_untied", "qwen2_tied", "qwen3_moe"])
def test_model_parity_on_a_mesh(name, expected, run_model):
    """The same, read straight onto 2 x 4 devices; biases, own heads and experts have places there too."""
    want = expected[name]
    model = load_model(FIXTURES / name, make_mesh(2, 4), dtype="float32", param_dtype="float32")
    logits = np.asarray(run_model(model, want["tokens"], want["mask"]))
    np.testing.assert_allclose(logits[want["mask"]], want["logits"][want["mask"]], rtol=0, atol=1e-4)
    sizes = {name: (a.size, a.addressable_shards[0].data.size) for name, a in flat_params(nnx.state(model)).items()}
    spread = {name for name, (whole, part) in sizes.items() if part < whole}
    assert all("norm" in name or name in spread for name in sizes if not name.endswith("kv_einsum.b"))


@pytest.mark.parametrize("name", CASES)
def test_greedy_decoding(name, expected, word_tokenizer):
    """32 tokens through the key-value cache, past the window."""
    want = expected[name]
    model = load(name)
    config = model.config
    cache = CacheConfig(64, config.num_layers, config.num_kv_heads, config.head_dim)
    prompts = [row[mask] for row, mask in zip(want["tokens"], want["mask"], strict=True)]
    out = Sampler(model, word_tokenizer, cache).generate_tokens(prompts, 32, stop_ids=[config.vocab_size], temperature=0.0)
    np.testing.assert_array_equal(out.tokens, want["greedy"])


@pytest.mark.parametrize(("name", "change"), [(name, change) for name, changes in FEATURES.items() for change in changes])
def test_every_feature_counts(name, change, expected, run_model):
    """The parity test would see the feature missing: without it the logits are far from the reference's."""
    model, want = load(name), expected[name]
    if isinstance(change, str):
        experts = model.config.experts
        less = {"normalize": False, "per_token": experts.per_token - 1}
        change = {"experts": dataclasses.replace(experts, **{change: less[change]})}
    changed = nnx.eval_shape(lambda: Decoder(model.config.replace(**change), rngs=nnx.Rngs(0)))
    changed = nnx.merge(nnx.split(changed)[0], nnx.state(model))
    logits = np.asarray(run_model(changed, want["tokens"], want["mask"]))
    assert np.abs(logits - want["logits"])[want["mask"]].max() > 0.02


@pytest.mark.slow
def test_fixtures_are_what_transformers_computes(tmp_path):
    """Makes the folders anew with the installed `transformers` and compares."""
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    subprocess.run([sys.executable, FIXTURES / "make.py", tmp_path], check=True, capture_output=True)
    for name in CASES:
        new, old = np.load(tmp_path / name / "expected.npz"), np.load(FIXTURES / name / "expected.npz")
        np.testing.assert_allclose(new["logits"], old["logits"], rtol=0, atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(new["greedy"], old["greedy"], err_msg=name)
        ours, theirs = (folder / name / "model.safetensors" for folder in (tmp_path, FIXTURES))
        assert ours.read_bytes() == theirs.read_bytes()
