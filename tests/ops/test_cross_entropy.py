"""Cross-entropy from hidden states: value and gradient against a plain log-softmax, whole and in slices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunix_lab.ops.cross_entropy import cross_entropy, head_cross_entropy

BATCH, LENGTH, EMBED, VOCAB = 3, 7, 5, 12


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((BATCH, LENGTH, EMBED)), jnp.float32)
    head = jnp.asarray(rng.standard_normal((VOCAB, EMBED)), jnp.float32)
    return hidden, head, jnp.asarray(rng.integers(0, VOCAB, (BATCH, LENGTH))), jnp.asarray(rng.random((BATCH, LENGTH)) < 0.6)


def plain(hidden, head, targets, mask, softcap=None):
    logits = hidden @ head.T
    logits = logits if softcap is None else softcap * jnp.tanh(logits / softcap)
    logps = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
    return cross_entropy(logps, mask)


def test_cross_entropy_by_hand():
    # −(−1 − 3) = 4 over two tokens
    loss = cross_entropy(jnp.array([[-1.0, jnp.nan, -3.0]]), jnp.array([[True, False, True]]))
    assert (float(loss.total), float(loss.count)) == (4.0, 2.0)


# all at once; slices of 3 positions, the last one filled up; position by position
@pytest.mark.parametrize("logits_at_once", [2**22, 3 * BATCH * VOCAB, 1])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_value_and_gradient(inputs, logits_at_once, softcap):
    """A factor behind the sum, as an update's 1/count, reaches both gradients."""
    *arrays, targets, mask = inputs

    def loss(hidden, head):
        found = head_cross_entropy(hidden, head, targets, mask, softcap=softcap, logits_at_once=logits_at_once)
        return 0.3 * found.total, found

    gradients, found = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(*arrays)
    expected = plain(*inputs, softcap)
    wanted = jax.jit(jax.grad(lambda h, w: 0.3 * plain(h, w, targets, mask, softcap).total, argnums=(0, 1)))(*arrays)
    np.testing.assert_allclose(found.total, expected.total, rtol=1e-5)
    assert float(found.count) == float(mask.sum())
    for ours, theirs in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_what_is_masked_is_never_read(inputs):
    hidden, head, targets, mask = inputs
    spoilt = jnp.where(mask[..., None], hidden, jnp.nan)
    gradient = jax.jit(jax.grad(lambda h, w: head_cross_entropy(h, w, targets, mask).total, argnums=(0, 1)))
    for ours, clean in zip(gradient(spoilt, head), gradient(hidden, head), strict=True):
        np.testing.assert_array_equal(ours, clean)
    assert not np.asarray(gradient(spoilt, head)[0])[~np.asarray(mask)].any()


def test_a_frozen_head_costs_no_gradient(inputs):
    """Two products of hidden states and head instead of three, of 2 · tokens · vocab · embed operations each."""
    hidden, head, targets, mask = inputs

    def operations(argnums):
        loss = lambda h, w: head_cross_entropy(h, w, targets, mask).total  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss, argnums=argnums))(hidden, head)).count("dot_general")

    assert (operations(0), operations((0, 1))) == (2, 3)


def test_bfloat16_gradients_keep_their_dtype(inputs):
    hidden, head = (x.astype(jnp.bfloat16) for x in inputs[:2])
    d_hidden, d_head = jax.jit(jax.grad(lambda h, w: head_cross_entropy(h, w, *inputs[2:]).total, argnums=(0, 1)))(hidden, head)
    assert d_hidden.dtype == d_head.dtype == jnp.bfloat16
    wanted = jax.grad(lambda h, w: plain(h, w, *inputs[2:]).total, argnums=(0, 1))(*inputs[:2])
    for ours, theirs in zip((d_hidden, d_head), wanted, strict=True):
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs, rtol=0.05, atol=0.05)


def test_scratch_memory_is_that_of_a_slice():
    """At 256 · 16,384 tokens times vocabulary, 16 MiB of logits: a slice of 2**18 takes far less."""
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 128, 8), (2**14, 8))]
    rest = [jax.ShapeDtypeStruct((2, 128), dtype) for dtype in (jnp.int32, bool)]

    def scratch(at_once):
        loss = lambda h, w, t, m: head_cross_entropy(h, w, t, m, logits_at_once=at_once).total  # noqa: E731
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments, *rest).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert scratch(2**22) > 16 * 2**20 > 2 * scratch(2**18)
