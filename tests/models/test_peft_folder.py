"""Adapters in PEFT's layout: the stored factors are those of the merged weights, both ways, and what is not served is refused."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from tunix_lab.errors import UserError
from tunix_lab.models.adapters import adapter_factors, add_lora, merge_factors, set_factors
from tunix_lab.models.catalog import load_model, save_model
from tunix_lab.models.peft_folder import Lora, cast_factors, module_prefix, read_lora, read_peft, write_peft
from tunix_lab.sft.train_state import flat_params

PARITY = Path(__file__).parent / "parity"
ATTENTION = ".*q_einsum|.*kv_einsum|.*attn_vec_einsum"
ALL = f"{ATTENTION}|.*gate_proj|.*up_proj|.*down_proj"
LORA = Lora(3, 6.0, "models/base")
WIDE = {"embed_dim": 32, "hidden_dim": 48, "num_layers": 2}


@pytest.fixture(scope="module")
def base(tiny_decoder):
    return tiny_decoder(**WIDE)


def trained(base, targets=ALL, **quantized):
    """Factors as training would leave them."""
    rng = np.random.default_rng(1)
    fresh = adapter_factors(add_lora(base, rank=3, alpha=6.0, targets=targets, seed=0, **quantized))
    return {name: tuple((0.2 * rng.standard_normal(f.shape)).astype(f.dtype) for f in pair) for name, pair in fresh.items()}


def stored(params, config, folder):
    save_model(params, config, folder)
    return load_file(folder / "model.safetensors")


@pytest.fixture
def folder(base, tmp_path):
    write_peft(tmp_path / "adapter", trained(base), base.config, LORA)
    return tmp_path / "adapter"


def rewrite(folder, change):
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.mark.parametrize("case", ["llama3_untied", "gemma", "qwen2_tied", "qwen3_moe"])
def test_the_factors_are_those_of_the_merged_weights(case, tmp_path):
    """stored weight of the merged model - stored weight of the base = alpha / rank · lora_B · lora_A, module by module."""
    base = load_model(PARITY / case, dtype="float32", param_dtype="float32")
    factors = trained(base, ATTENTION if base.config.experts else ALL)
    before = stored(flat_params(nnx.state(base)), base.config, tmp_path / "base")
    after = stored(merge_factors(base, factors, 6.0 / 3), base.config, tmp_path / "merged")
    write_peft(tmp_path / "adapter", factors, base.config, LORA)
    lora = load_file(tmp_path / "adapter/adapter_model.safetensors")
    modules = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in lora}
    assert len(modules) == 3 * (4 if base.config.experts else 7)
    for name, weight in after.items():
        if (module := name.removesuffix(".weight")) in modules:
            a, b = (lora[f"base_model.model.{module}.lora_{letter}.weight"] for letter in "AB")
            assert a.shape == (3, weight.shape[1]) and b.shape == (weight.shape[0], 3)
            np.testing.assert_allclose(weight - before[name], 2.0 * b @ a, atol=1e-5)
            assert np.abs(b @ a).max() > 0.01
        else:
            np.testing.assert_array_equal(weight, before[name])


def test_keys_and_values_share_their_a(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    place = "base_model.model.model.layers.1.self_attn"
    np.testing.assert_array_equal(tensors[f"{place}.k_proj.lora_A.weight"], tensors[f"{place}.v_proj.lora_A.weight"])
    assert not np.array_equal(tensors[f"{place}.k_proj.lora_B.weight"], tensors[f"{place}.v_proj.lora_B.weight"])


@pytest.mark.parametrize("quantized", [{}, {"weight_qtype": "nf4", "tile_size": 8}], ids=["lora", "qlora"])
def test_written_and_read_back(base, tmp_path, quantized):
    factors = trained(base, **quantized)
    write_peft(tmp_path / "one", factors, base.config, Lora(3, 6.5, "org/model", "c" * 40))
    lora, again = read_peft(tmp_path / "one", base.config)
    assert lora == Lora(3, 6.5, "org/model", "c" * 40) and lora.scale == 6.5 / 3 and again.keys() == factors.keys()
    for name, pair in factors.items():
        for one, other in zip(pair, again[name], strict=True):
            np.testing.assert_array_equal(one, other)
    write_peft(tmp_path / "two", again, base.config, lora)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_other_dtypes(base, tmp_path):
    write_peft(tmp_path, cast_factors(trained(base), "bfloat16"), base.config, LORA)
    _, factors = read_peft(tmp_path, base.config)
    a = factors["layers.0.attn.q_einsum"][0]
    assert a.dtype == jnp.bfloat16
    np.testing.assert_array_equal(a, trained(base)["layers.0.attn.q_einsum"][0].astype(jnp.bfloat16))


def test_the_config_is_one_that_peft_reads(folder):
    described = json.loads((folder / "adapter_config.json").read_text())
    expected = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 6, "bias": "none", "fan_in_fan_out": False}
    assert expected.items() <= described.items() and type(described["lora_alpha"]) is int
    assert described["base_model_name_or_path"] == "models/base" and described["revision"] is None
    assert described["target_modules"] == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def test_modules_of_single_layers_are_named_in_full(base, tmp_path):
    write_peft(tmp_path, trained(base, "layers/1/mlp/down_proj|layers/0/attn/kv_einsum"), base.config, LORA)
    attention = "model.layers.0.self_attn"
    expected = [f"{attention}.k_proj", f"{attention}.v_proj", "model.layers.1.mlp.down_proj"]
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == expected


def test_the_text_model_of_a_multimodal_one(base, tmp_path):
    prefix = module_prefix(PARITY / "gemma3_multimodal")
    assert (prefix, module_prefix(PARITY / "gemma3")) == ("model.language_model.", "model.")
    factors = trained(base)
    write_peft(tmp_path, factors, base.config, LORA, prefix)
    name = "base_model.model.model.language_model.layers.0.mlp.up_proj.lora_A.weight"
    assert name in load_file(tmp_path / "adapter_model.safetensors")
    targets = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert (
        len(targets) == 2 * 7 and "model.language_model.layers.0.mlp.up_proj" in targets
    )  # a bare name is in the vision tower too
    _, again = read_peft(tmp_path, base.config)
    np.testing.assert_array_equal(again["layers.0.mlp.up_proj"][0], factors["layers.0.mlp.up_proj"][0])


def test_keys_and_values_of_different_a(folder, base):
    """As PEFT itself trains them: rank 6 = 3 of the keys + 3 of the values."""
    place = "base_model.model.model.layers.0.self_attn"
    other = np.random.default_rng(5).standard_normal((3, 32)).astype(np.float32)
    rewrite(folder, lambda tensors: tensors.update({f"{place}.v_proj.lora_A.weight": other}))
    a, b = read_peft(folder, base.config)[1]["layers.0.attn.kv_einsum"]
    assert a.shape == (32, 6) and b.shape == (6, 2, 2, 8)
    tensors = load_file(folder / "adapter_model.safetensors")
    for i, name in enumerate(("k_proj", "v_proj")):
        lora_a, lora_b = (tensors[f"{place}.{name}.lora_{letter}.weight"] for letter in "AB")
        delta = np.einsum("dr,rkh->khd", a, b[:, i]).reshape(16, 32)
        np.testing.assert_allclose(delta, lora_b @ lora_a, atol=1e-6)


def test_values_alone(folder, base):
    place = "base_model.model.model.layers.0.self_attn.k_proj"
    rewrite(folder, lambda tensors: [tensors.pop(f"{place}.lora_{letter}.weight") for letter in "AB"])
    _, b = read_peft(folder, base.config)[1]["layers.0.attn.kv_einsum"]
    assert not b[:, 0].any() and b[:, 1].any()


@pytest.mark.parametrize("change", [
    {"peft_type": "LOHA"}, {"use_rslora": True}, {"use_dora": True}, {"bias": "all"}, {"fan_in_fan_out": True},
    {"rank_pattern": {"q_proj": 4}}, {"modules_to_save": ["lm_head"]},
])  # fmt: skip
def test_kinds_that_are_not_served(folder, change):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    (name,) = change
    with pytest.raises(UserError, match=f"{name} = .* is not served"):
        read_lora(folder)


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t.pop("base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"), "layers.0.mlp.up_proj has only one"),
    (lambda t: t.update({"base_model.model.model.layers.7.mlp.up_proj.lora_B.weight": np.zeros(1)}), "layers.7.mlp.up_proj.B"),
    (lambda t: t.update({"base_model.model.lm_head.lora_A.weight": np.zeros(1)}), "lm_head.lora_A.weight is no factor"),
])  # fmt: skip
def test_tensors_that_do_not_fit(folder, base, change, message):
    rewrite(folder, change)
    with pytest.raises(UserError, match=message):
        read_peft(folder, base.config)


def test_folders_that_hold_no_adapter(folder, base):
    (folder / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        read_peft(folder, base.config)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="no adapter_model.safetensors"):
        read_peft(folder, base.config)
    with pytest.raises(UserError, match="no adapter_config.json"):
        read_lora(folder / "elsewhere")
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_lora(folder)


def test_factors_put_on_a_model(base, run_model):
    """The model with adapters computes what the merged one does: the factors are where they belong."""
    tokens = np.random.default_rng(0).integers(0, 64, (2, 7))
    adapted, factors = add_lora(base, rank=3, alpha=6.0, targets=ALL, seed=0), trained(base)
    set_factors(adapted, factors)
    for name, pair in adapter_factors(adapted).items():
        for one, other in zip(pair, factors[name], strict=True):
            np.testing.assert_array_equal(one, other)
    assert np.abs(np.asarray(run_model(adapted, tokens)) - run_model(base, tokens)).max() > 1.0
