"""What a forward pass hands out on request: hidden states and attention maps; asked for nothing it is the same as ever."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tunix_lab.models.adapters import add_lora
from tunix_lab.models.attention import attend, attention_weights
from tunix_lab.models.capture import Capture
from tunix_lab.ops.masks import causal_mask, positions_from_mask

LENGTH = 7


@pytest.fixture(scope="module")
def tokens():
    return jnp.asarray(np.random.default_rng(0).integers(0, 64, (2, LENGTH)))


@pytest.fixture(scope="module")
def valid():
    return jnp.asarray(np.arange(LENGTH)[None] < [[7], [5]])


def captured(model, tokens, valid, *layers):
    kept = Capture(layers, layers)
    final, _ = model(tokens, positions_from_mask(valid), None, causal_mask(valid), skip_lm_head=True, capture=kept)
    return final, kept


def test_hidden_states(tiny_decoder, tokens, valid):
    """The last layer's, normed, are the final ones; the first layer's are those of a model that has no other."""
    model = tiny_decoder(num_layers=2)
    final, kept = captured(model, tokens, valid, 0, 1)
    assert kept.hidden.keys() == kept.attention.keys() == {0, 1}
    np.testing.assert_array_equal(model.final_norm(kept.hidden[1]), final)
    first = nnx.merge(*nnx.split(model))
    first.layers = nnx.List([first.layers[0]])
    np.testing.assert_allclose(first.final_norm(kept.hidden[0]), captured(first, tokens, valid)[0], rtol=1e-5, atol=1e-6)


def test_attention_maps(tiny_decoder, tokens, valid):
    """Rows add up to 1 over the keys that the layer may see: the real ones, up to the query, in layer 0 four of them."""
    _, kept = captured(tiny_decoder(num_layers=2), tokens, valid, 0, 1)
    at = np.arange(LENGTH)
    causal = (at[:, None] >= at[None])[None] & np.asarray(valid)[:, None]
    for layer, seen in ((0, causal & (at[:, None] - at[None] < 4)[None]), (1, causal)):
        found = kept.attention[layer]
        is_real = np.asarray(valid)[:, :, None]  # what padding sees is nobody's matter
        np.testing.assert_array_equal(found.visible & is_real, seen & is_real)
        assert found.weights.shape == (2, 4, LENGTH, LENGTH) and found.weights.dtype == jnp.float32
        real = np.broadcast_to(seen[:, None], found.weights.shape)
        assert not np.any(np.asarray(found.weights)[~real & np.broadcast_to(is_real[:, None], real.shape)])
        np.testing.assert_allclose(np.asarray(found.weights).sum(-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_maps_are_those_that_attention_uses(softcap):
    """Weights times values, head by head, is what the layer itself computes; two query heads share a key head."""
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.standard_normal((2, 5, n, 8)), jnp.float32) for n in (4, 2, 2))
    mask = causal_mask(jnp.ones((2, 5), bool))
    weights = attention_weights(query, key, mask, scale=0.7, softcap=softcap)
    by_hand = jnp.einsum("bhts,bshd->bthd", weights, jnp.repeat(value, 2, axis=2))
    np.testing.assert_allclose(by_hand, attend(query, key, value, mask, scale=0.7, softcap=softcap), rtol=1e-4, atol=1e-5)


def test_who_asks_for_nothing_gets_the_ordinary_program(tiny_decoder, tokens, valid):
    graph, state = nnx.split(tiny_decoder(num_layers=2))

    def program(make_capture):
        def run(state):
            return nnx.merge(graph, state)(tokens, tokens, None, causal_mask(valid), capture=make_capture())[0]

        return str(jax.make_jaxpr(run)(state))

    assert program(lambda: None) == program(Capture)
    # hidden states cost nothing: they are computed anyway; a map does
    assert (
        program(lambda: Capture(hidden_layers=(0,))) == program(lambda: None) != program(lambda: Capture(attention_layers=(0,)))
    )


def test_adapters_are_part_of_what_is_captured(tiny_decoder, tokens, valid):
    base = tiny_decoder(num_layers=1)
    adapted = add_lora(base, rank=2, alpha=4.0, targets=".*q_einsum", seed=0)
    plain, same = captured(base, tokens, valid, 0)[1], captured(adapted, tokens, valid, 0)[1]
    np.testing.assert_allclose(same.attention[0].weights, plain.attention[0].weights, rtol=1e-5, atol=1e-6)
    query = adapted.layers[0].attn.q_einsum
    query.w_lora_b[...] = query.w_lora_b[...] + 0.5
    moved = captured(adapted, tokens, valid, 0)[1]
    assert np.abs(moved.attention[0].weights - plain.attention[0].weights).max() > 1e-3
    assert np.abs(moved.hidden[0] - plain.hidden[0]).max() > 1e-3
