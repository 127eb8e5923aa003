"""The decoder against an independent NumPy Gemma 3, with padding on either side, and step by step through a cache."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from tunix_lab.generate.cache import init_cache
from tunix_lab.generate.config import CacheConfig
from tunix_lab.models.catalog import save_model
from tunix_lab.models.config import LinearRope
from tunix_lab.models.decoder import Decoder, init_decoder
from tunix_lab.models.gemma3.config import Gemma3Config
from tunix_lab.sft.train_state import flat_params

LENGTH = 11


@pytest.fixture(scope="module")
def model(tiny_decoder):
    return tiny_decoder(rope_scaling=LinearRope(8.0))


@pytest.fixture(scope="module")
def stored(model, tmp_path_factory):
    """The model as the hub stores it: tensors and config.json."""
    folder = tmp_path_factory.mktemp("stored")
    save_model(flat_params(nnx.state(model)), model.config, folder)
    return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, 64, (2, LENGTH))


@pytest.fixture(scope="module")
def logits(model, tokens, run_model):
    return np.asarray(run_model(model, tokens))


def test_model_parity_family(stored, tokens, logits, reference_logits):
    for row, ours in zip(tokens, logits, strict=True):
        np.testing.assert_allclose(ours, reference_logits(*stored, row), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("feature", ["window", "bases", "groups", "q_norm", "k_norm", "embedding scale"])
def test_every_feature_of_the_family_counts(stored, tokens, logits, reference_logits, feature):
    """The parity test would see each feature missing: the reference without it is far from ours."""
    if feature.endswith("norm"):
        without = stored[0] | {name: 0 * t for name, t in stored[0].items() if feature in name}
        crippled = reference_logits(without, stored[1], tokens[0])
    else:
        crippled = reference_logits(*stored, tokens[0], without=feature)
    assert np.abs(crippled - logits[0]).max() > 0.05


def test_default_mask_is_causal(model, tokens, logits):
    out, cache = model(jnp.asarray(tokens), jnp.arange(LENGTH)[None].repeat(2, 0))
    np.testing.assert_allclose(out, logits, rtol=1e-4, atol=1e-5)
    assert cache is None


def test_the_future_is_not_seen(model, tokens, logits, run_model):
    changed = tokens.copy()
    changed[:, 7:] = (changed[:, 7:] + 1) % 64
    np.testing.assert_array_equal(run_model(model, changed)[:, :7], logits[:, :7])


@pytest.mark.parametrize(("left", "right"), [(5, 0), (0, 5), (3, 2), (64, 0), (0, 64)])
def test_pad_side_and_amount(model, tokens, logits, run_model, left, right):
    padded = np.pad(tokens, ((0, 0), (left, right)), constant_values=9)
    valid = np.pad(np.ones_like(tokens, bool), ((0, 0), (left, right)))
    out = np.asarray(run_model(model, padded, valid))
    np.testing.assert_allclose(out[:, left : left + LENGTH], logits, rtol=1e-4, atol=1e-4)
    assert np.isfinite(out).all()


def test_hidden_states_times_head_are_logits(model, tokens, logits, run_model):
    hidden = run_model(model, tokens, skip_lm_head=True)
    np.testing.assert_allclose(np.asarray(hidden) @ np.asarray(model.head()).T, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pad", [0, 3])
def test_cache_decode_equals_full_forward(model, tokens, logits, run_model, pad):
    """A prompt of 6 (past the window), then five single steps, in a cache with room to spare."""
    config = model.config
    slots, prompt = 24, 6 + pad
    cache = init_cache(CacheConfig(slots, config.num_layers, config.num_kv_heads, config.head_dim), 2, slots, "float32")
    padded = np.pad(tokens, ((0, 0), (pad, 0)))
    valid = np.arange(slots) >= pad
    out, cache = run_model(model, padded[:, :prompt], np.tile(valid[:prompt], (2, 1)), cache=cache)
    np.testing.assert_allclose(out[:, pad:], logits[:, :6], rtol=1e-4, atol=1e-4)
    for t in range(prompt, prompt + 5):
        mask = np.tile(valid & (np.arange(slots) <= t), (2, 1, 1))
        position = np.full((2, 1), t - pad)
        out, cache = run_model(model, padded[:, t : t + 1], positions=position, cache=cache, mask=mask)
        np.testing.assert_allclose(out[:, 0], logits[:, t - pad], rtol=1e-4, atol=1e-4)
    assert cache["layer_0"]["end_index"].tolist() == [prompt + 5] * 2


def test_rows_of_a_cache_end_where_they_end(model, tokens, logits, run_model):
    """Prompts of 6 and 3 tokens side by side, padded behind; each step writes every row's next slot, its window counts slots."""
    config, slots, ends = model.config, 16, np.array([6, 3])
    cache = init_cache(CacheConfig(slots, config.num_layers, config.num_kv_heads, config.head_dim), 2, slots, "float32")
    padded = np.where(np.arange(6) < ends[:, None], tokens[:, :6], 9)
    out, cache = run_model(model, padded, cache=cache)
    for row in range(2):
        np.testing.assert_allclose(out[row, : ends[row]], logits[row, : ends[row]], rtol=1e-4, atol=1e-4)
    for step in range(5):
        at = ends + step
        cache = {name: layer | {"end_index": jnp.asarray(at)} for name, layer in cache.items()}
        mask = np.arange(slots) <= at[:, None, None]
        out, cache = run_model(model, tokens[[0, 1], at][:, None], positions=at[:, None], cache=cache, mask=mask)
        np.testing.assert_allclose(out[:, 0], logits[[0, 1], at], rtol=1e-4, atol=1e-4)


def test_bfloat16_activations_and_float32_logits(tiny_decoder, tokens, run_model):
    model = tiny_decoder(dtype="bfloat16", param_dtype="bfloat16")
    assert run_model(model, tokens, skip_lm_head=True).dtype == jnp.bfloat16
    assert run_model(model, tokens).dtype == jnp.float32


def test_fresh_weights(tiny_config, numpy_params):
    """They follow the seed; each linear map is drawn with variance 1/fan_in; norms begin as the identity."""
    config = tiny_config.replace(num_layers=1, embed_dim=64, hidden_dim=128)
    first, again, other = (numpy_params(init_decoder(config, seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for name, fan_in in {"mlp.gate_proj": 64, "mlp.down_proj": 128, "attn.q_einsum": 64, "attn.attn_vec_einsum": 4 * 8}.items():
        drawn = first[f"layers.0.{name}.w"]
        assert drawn.std() == pytest.approx(fan_in**-0.5, rel=0.1)
        assert not np.array_equal(drawn, other[f"layers.0.{name}.w"])
    assert not any(value.any() for name, value in first.items() if name.endswith("scale"))


def test_heads_must_share_evenly(tiny_config):
    with pytest.raises(ValueError, match=r"num_heads \(4\) must be a multiple of num_kv_heads \(3\)"):
        tiny_config.replace(num_kv_heads=3)


def test_published_sizes():
    """Gemma 3 1B has 999,885,952 parameters; of 26 layers every sixth is global."""
    config = Gemma3Config.gemma3_1b()
    state = nnx.state(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    assert sum(int(np.prod(value.shape)) for value in flat_params(state).values()) == 999_885_952
    assert [i for i in range(26) if config.attention_kind(i) == "global"] == [5, 11, 17, 23]
