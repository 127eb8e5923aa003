"""Adapters: a fresh one changes nothing, a trained one folds into the weights, plain or quantized."""

import jax
import numpy as np
import pytest
import qwix
from flax import nnx

from tunix_lab.errors import UserError
from tunix_lab.models.adapters import adapter_off, add_lora, merge_lora, parameter_table
from tunix_lab.models.config import Experts
from tunix_lab.models.sharding import make_mesh
from tunix_lab.sft.train_state import flat_params

TARGETS = ".*q_einsum|.*kv_einsum|.*gate_proj|.*up_proj|.*down_proj|.*attn_vec_einsum"
LORA = {"rank": 3, "alpha": 6.0, "targets": TARGETS, "seed": 0}
TOKENS = np.random.default_rng(0).integers(0, 64, (2, 7))
# a tile must divide the contracted axes of every targeted weight
WIDE = {"embed_dim": 32, "hidden_dim": 32, "num_layers": 1}


@pytest.fixture(scope="module")
def base(tiny_decoder):
    return tiny_decoder(**WIDE)


@pytest.fixture(scope="module")
def fresh(base):
    return add_lora(base, **LORA)


def excite(model):
    """Gives every factor random values, as training would."""
    rng = np.random.default_rng(1)
    state = nnx.state(model, nnx.LoRAParam)
    nnx.update(model, jax.tree.map(lambda a: jax.numpy.asarray(0.2 * rng.standard_normal(a.shape), a.dtype), state))
    return model


def test_lora_zero_init(base, fresh, run_model):
    np.testing.assert_allclose(run_model(fresh, TOKENS), run_model(base, TOKENS), rtol=1e-5, atol=1e-5)


def test_every_target_gets_an_adapter(base, fresh):
    adapted = flat_params(nnx.state(fresh, nnx.LoRAParam))
    assert len(adapted) == 2 * 6  # two factors of six weights
    assert adapted["layers.0.attn.q_einsum.w_lora_a"].shape == (32, 3)
    one = nnx.state(add_lora(base, **LORA | {"targets": "layers/0/mlp/down_proj"}), nnx.LoRAParam)
    assert sorted(flat_params(one)) == ["layers.0.mlp.down_proj.w_lora_a", "layers.0.mlp.down_proj.w_lora_b"]


def test_the_base_stays_as_it_was(tiny_decoder, numpy_params):
    base = tiny_decoder(**WIDE)
    before = numpy_params(base)
    excite(add_lora(base, **LORA))
    assert not jax.tree.leaves(nnx.state(base, nnx.LoRAParam))
    jax.tree.map(np.testing.assert_array_equal, numpy_params(base), before)


def test_seed_of_the_factors(base, fresh):
    again, other = (add_lora(base, **LORA | {"seed": seed}) for seed in (0, 1))
    first, again, other = (np.asarray(model.layers[0].mlp.up_proj.w_lora_a.get_value()) for model in (fresh, again, other))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_lora_merge_equals_adapter_on(base, run_model):
    adapted = excite(add_lora(base, **LORA))
    with_adapter = np.asarray(run_model(adapted, TOKENS))
    np.testing.assert_allclose(
        run_model(merge_lora(base, adapted, rank=3, alpha=6.0), TOKENS), with_adapter, rtol=1e-3, atol=1e-3
    )
    assert np.abs(with_adapter - run_model(base, TOKENS)).max() > 1.0


@pytest.mark.parametrize(("qtype", "error"), [("int8", 0.02), ("nf4", 0.3)])
def test_qlora_merge(base, run_model, qtype, error):
    """Merged into the plain base it differs from the quantized model by the quantization error of the base alone."""
    adapted = excite(add_lora(base, **LORA, weight_qtype=qtype, tile_size=8))
    on, folded = (
        np.asarray(run_model(adapted, TOKENS)),
        np.asarray(run_model(merge_lora(base, adapted, rank=3, alpha=6.0), TOKENS)),
    )
    relative = np.linalg.norm(on - folded) / np.linalg.norm(folded)
    assert 1e-5 < relative < error  # quantized it is, and little


def test_adapters_on_a_mesh(tiny_decoder, base, run_model):
    adapted = add_lora(tiny_decoder(**WIDE), **LORA, mesh=make_mesh(2, 4))
    np.testing.assert_allclose(run_model(adapted, TOKENS), run_model(base, TOKENS), rtol=1e-4, atol=1e-4)


def test_targets_that_match_nothing(base):
    with pytest.raises(UserError, match="no module matches targets 'q_proj'.*layers/0/attn/q_einsum"):
        add_lora(base, **LORA | {"targets": "q_proj"})


def test_tiles_that_do_not_divide(base):
    with pytest.raises(UserError, match="tile_size must divide"):
        add_lora(base, **LORA, weight_qtype="int8", tile_size=7)


def test_adapter_off_equals_the_base_bit_for_bit(base, run_model):
    """The same program on the same arrays: nothing is copied, and not one bit differs, whatever the adapters hold."""
    adapted = excite(add_lora(base, **LORA))
    off = adapter_off(adapted)
    np.testing.assert_array_equal(run_model(off, TOKENS), run_model(base, TOKENS))
    assert np.abs(run_model(adapted, TOKENS) - run_model(off, TOKENS)).max() > 1.0
    places = lambda model: {a.unsafe_buffer_pointer() for a in jax.tree.leaves(nnx.state(model))}  # noqa: E731
    assert places(off) == places(base)


@pytest.mark.parametrize("qtype", ["nf4", "int8", "int4"])
def test_adapter_off_of_a_quantized_base(base, run_model, qtype):
    """It is the quantized base: bit for bit what qwix makes of the base without any adapter."""
    adapted = excite(add_lora(base, **LORA, weight_qtype=qtype, tile_size=8))
    rule = qwix.QuantizationRule(module_path=TARGETS, weight_qtype=qtype, tile_size=8)
    quantized = qwix.quantize_model(base, qwix.PtqProvider([rule]), **base.get_model_input())
    np.testing.assert_array_equal(run_model(adapter_off(adapted), TOKENS), run_model(quantized, TOKENS))


def test_merging_twice_is_refused(base):
    adapted = excite(add_lora(base, **LORA))
    once = merge_lora(base, adapted, rank=3, alpha=6.0)
    for call in (lambda: merge_lora(base, once, rank=3, alpha=6.0), lambda: adapter_off(once)):
        with pytest.raises(UserError, match="the model has no adapters: none were added, or they are merged already"):
            call()
    with pytest.raises(UserError, match="the base has adapters itself"):
        merge_lora(adapted, adapted, rank=3, alpha=6.0)


def test_factors_lie_on_the_mesh_like_their_weights(base):
    adapted = add_lora(base, **LORA, mesh=make_mesh(2, 4))
    parts = {name: a.addressable_shards[0].data.shape for name, a in flat_params(nnx.state(adapted, nnx.LoRAParam)).items()}
    assert parts["layers.0.mlp.gate_proj.w_lora_a"] == (16, 3) and parts["layers.0.mlp.gate_proj.w_lora_b"] == (3, 8)
    assert parts["layers.0.attn.q_einsum.w_lora_b"] == (3, 1, 8)
    assert parts["layers.0.attn.attn_vec_einsum.w_lora_a"] == (1, 8, 3)


def test_experts_carry_no_adapter(tiny_decoder, run_model):
    model = tiny_decoder(num_layers=1, experts=Experts(count=4, per_token=2, hidden_dim=8, normalize=True))
    with pytest.raises(UserError, match="match the weights of experts.*name the attention alone"):
        add_lora(model, **LORA)
    adapted = add_lora(model, **LORA | {"targets": ".*q_einsum|.*kv_einsum|.*attn_vec_einsum"})
    assert len(flat_params(nnx.state(adapted, nnx.LoRAParam))) == 6


def test_parameter_table(tiny_decoder):
    """Two layers in one row; what is trained of it."""
    adapted = add_lora(tiny_decoder(num_layers=2), **LORA | {"targets": ".*down_proj"})
    rows = {name: row for name, *row in parameter_table(adapted, nnx.LoRAParam)}
    assert rows["layers.*.mlp.down_proj.w"] == ["(24, 16)", 2 * 24 * 16, 0]
    assert rows["layers.*.mlp.down_proj.w_lora_a"] == ["(24, 3)", 2 * 24 * 3, 2 * 24 * 3]
    assert rows["embedder.input_embedding"] == ["(64, 16)", 64 * 16, 0]
    assert sum(trained for *_, trained in rows.values()) == 2 * 3 * (24 + 16)
    plain = parameter_table(tiny_decoder(num_layers=2), nnx.Param)
    assert all(count == trained for *_, count, trained in plain)
