"""The critic: values of every family, what is trained of it, and where it lies on a mesh."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tunix_lab.models.adapters import add_lora
from tunix_lab.models.catalog import FAMILIES, load_model
from tunix_lab.models.sharding import make_mesh, place_model
from tunix_lab.models.value_head import value_model
from tunix_lab.sft.train_state import split_model

FIXTURES = Path(__file__).parent / "parity"
CASES = sorted(path.parent.name for path in FIXTURES.glob("*/config.json"))
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 60, (2, 6)), jnp.int32)
POSITIONS = jnp.arange(6)[None].repeat(2, 0)


def excited(critic):
    """The critic with a head that is not zero."""
    weight = np.random.default_rng(1).standard_normal(critic.head.get_value().shape)
    critic.head.set_value(jnp.asarray(weight, critic.head.get_value().dtype))
    return critic


def gradients(critic):
    """Of Σ values, by trained parameter."""
    parts, params, variables, frozen = split_model(critic)

    @jax.jit
    def gradient(params):
        return jax.grad(lambda p: parts.merge(p, variables, frozen)(TOKENS, POSITIONS)[0].sum())(params)

    return gradient(params)


def test_all_families_are_there():
    assert {load_model(FIXTURES / name).config.family for name in CASES} == set(FAMILIES)


@pytest.mark.parametrize("name", CASES)
def test_every_family_has_values(name, run_model):
    """Zero at first; then the head's product with the final hidden states."""
    backbone = load_model(FIXTURES / name, dtype="float32", param_dtype="float32")
    critic = value_model(backbone)
    graph, state = nnx.split(critic)
    run = jax.jit(lambda state: nnx.merge(graph, state)(TOKENS, POSITIONS))
    values, cache = run(state)
    assert values.shape == (2, 6, 1) and values.dtype == jnp.float32 and cache is None and not values.any()
    values, _ = run(nnx.state(excited(critic)))
    hidden = run_model(backbone, TOKENS, skip_lm_head=True)
    np.testing.assert_allclose(values, hidden @ critic.head.get_value(), rtol=1e-4, atol=1e-5)
    assert critic.config is backbone.config


def test_gradient_reaches_head_and_backbone(tiny_decoder):
    """All that is trained gets a gradient: there is no output head that nothing would move."""
    critic = excited(value_model(tiny_decoder(tie_embeddings=False)))
    moved = gradients(critic)
    assert "head" in moved and "backbone.embedder.input_embedding" in moved and "backbone.lm_head.w" not in moved
    assert all(bool(jnp.isfinite(g).all()) and bool((g != 0).any()) for g in moved.values())
    # a fresh head is zero, so at first only the head moves
    fresh = gradients(value_model(tiny_decoder(tie_embeddings=False)))
    assert {name for name, g in fresh.items() if bool((g != 0).any())} == {"head"}


def test_only_adapters_and_head_move(tiny_decoder):
    adapted = add_lora(tiny_decoder(num_layers=2), rank=2, alpha=4.0, targets=".*q_einsum|.*down_proj", seed=0)
    critic = excited(value_model(adapted))
    parts, params, variables, frozen = split_model(critic)
    adapters = [f"layers.{i}.{name}.w_lora_{x}" for i in "01" for name in ("attn.q_einsum", "mlp.down_proj") for x in "ab"]
    assert sorted(params) == [*(f"backbone.{name}" for name in adapters), "head"]
    before = [np.array(array) for array in jax.tree.leaves(frozen)]

    @jax.jit
    def step(params, frozen):
        loss = lambda p: jnp.square(parts.merge(p, variables, frozen)(TOKENS, POSITIONS)[0] - 1.0).sum()  # noqa: E731
        gradient = jax.grad(loss)(params)
        return optax.apply_updates(params, jax.tree.map(lambda g: -1e-3 * g, gradient))

    after = step(step(params, frozen), frozen)
    assert all(not np.array_equal(params[name], after[name]) for name in params)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.leaves(frozen))


def test_the_actor_stays_as_it_was(tiny_decoder, run_model):
    actor = tiny_decoder(tie_embeddings=False)
    before = np.asarray(run_model(actor, TOKENS))
    excited(value_model(actor))
    np.testing.assert_array_equal(run_model(actor, TOKENS), before)


def test_padding_is_masked(tiny_decoder):
    """Two more padded slots in front change no value of a real token."""
    critic = excited(value_model(tiny_decoder()))
    mask = jnp.broadcast_to(jnp.tri(8, dtype=bool) & (jnp.arange(8) >= 2), (2, 8, 8))
    padded, positions = (jnp.pad(x, ((0, 0), (2, 0))) for x in (TOKENS, POSITIONS))
    graph, state = nnx.split(critic)
    run = jax.jit(lambda *arguments: nnx.merge(graph, state)(*arguments)[0])
    plain = run(TOKENS, POSITIONS)
    np.testing.assert_allclose(run(padded, positions, None, mask)[:, 2:], plain, rtol=1e-4, atol=1e-5)


def test_the_head_lies_on_the_mesh_like_its_axes(tiny_decoder):
    critic = value_model(tiny_decoder(num_layers=1))
    place_model(critic, make_mesh(2, 4))
    assert critic.head.get_value().addressable_shards[0].data.shape == (8, 1)
