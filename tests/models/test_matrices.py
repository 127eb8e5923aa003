"""Linear maps as matrices compute what the model computes; a model that is quantized or adapted stays as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tunix_lab.models.adapters import adapter_off, add_lora
from tunix_lab.models.config import Experts
from tunix_lab.models.layers import Einsum
from tunix_lab.models.matrices import Matrix, with_matrices


def maps_of(model) -> dict[str, type]:
    """Path of each linear map -> its type."""
    return {
        "/".join(map(str, path)): type(module) for path, module in nnx.iter_modules(model) if isinstance(module, Einsum | Matrix)
    }


@pytest.mark.parametrize(
    "changes", [{}, {"qkv_bias": True}, {"experts": Experts(count=4, per_token=2, hidden_dim=8, normalize=True)}]
)
def test_the_same_outputs(tiny_decoder, run_model, changes):
    model = tiny_decoder(**changes)
    tokens = np.random.default_rng(0).integers(0, 64, (2, 5))
    changed = with_matrices(model)
    np.testing.assert_allclose(run_model(changed, tokens), run_model(model, tokens), rtol=1e-4, atol=1e-5)
    assert set(maps_of(changed).values()) == {Matrix} and set(maps_of(model).values()) == {Einsum}
    assert maps_of(changed).keys() == maps_of(model).keys()


def test_a_map_by_hand(tiny_config):
    """out[c, b, s, h] = Σ_d x[b, s, d] · w[c, d, h] + b[c, h]: the output's axes are not in the order of the matrix."""
    einsum = Einsum("bsd,cdh->cbsh", (2, 4, 5), (None, None, None), 4, tiny_config, nnx.Rngs(0), bias="ch")
    rng = np.random.default_rng(0)
    x, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 4), (2, 5)))
    einsum.b.set_value(jnp.asarray(bias))
    matrix = Matrix(einsum)
    assert matrix.w.shape == (4, 2 * 5)
    weight = np.asarray(einsum.w[...])
    expected = (x[None, ..., None] * weight[:, None, None]).sum(axis=3) + bias[:, None, None]
    np.testing.assert_allclose(matrix(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weight_qtype", [None, "int8"])
def test_adapted_models_stay(tiny_decoder, weight_qtype):
    """Also where the adapters are on one map alone, the last."""
    model = add_lora(tiny_decoder(), rank=2, alpha=4.0, targets="layers/2/mlp/down_proj", seed=0, weight_qtype=weight_qtype)
    assert with_matrices(model) is model
    base = adapter_off(model)
    assert (with_matrices(base) is base) == (weight_qtype is not None)


def test_the_model_stays(tiny_decoder):
    model = tiny_decoder()
    before = jax.tree.leaves(nnx.state(model))
    changed = with_matrices(model)
    assert all(a is b for a, b in zip(before, jax.tree.leaves(nnx.state(model)), strict=True))
    assert model.layers[0].attn.q_einsum.w.shape == (4, 16, 8) and changed.layers[0].attn.q_einsum.w.shape == (16, 4 * 8)
