"""Token log-probabilities: values and gradients against a plain log-softmax, whole and in slices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunix_lab.ops.logps import gather_logps, sum_logps, token_logps

BATCH, LENGTH, EMBED, VOCAB = 3, 7, 5, 11


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((BATCH, LENGTH, EMBED)), jnp.float32)
    head = jnp.asarray(rng.standard_normal((VOCAB, EMBED)), jnp.float32)
    return hidden, head, jnp.asarray(rng.integers(0, VOCAB, (BATCH, LENGTH)))


def naive(hidden, head, targets):
    return jnp.take_along_axis(jax.nn.log_softmax(hidden @ head.T, axis=-1), targets[..., None], axis=-1)[..., 0]


def test_gather_logps_by_hand():
    # softmax(ln 1, ln 2, ln 5) = 1/8, 2/8, 5/8
    logits = jnp.log(jnp.array([[[1.0, 2.0, 5.0]] * 3]))
    logps = gather_logps(logits, jnp.array([[0, 1, 2]]))
    np.testing.assert_allclose(logps[0], np.log([1 / 8, 2 / 8, 5 / 8]), rtol=1e-6)


def test_gather_logps_stays_finite_for_large_logits():
    # log softmax(300, 0) = (0, −300)
    np.testing.assert_allclose(gather_logps(jnp.array([[[300.0, 0.0]]]), jnp.array([[1]])), [[-300.0]])


@pytest.fixture(scope="module")
def weights():
    return jnp.asarray(np.random.default_rng(1).standard_normal((BATCH, LENGTH)), jnp.float32)


@pytest.fixture(scope="module")
def expected(inputs, weights):
    """Values, and gradients of their weighted sum by hidden states and head."""
    loss = lambda h, w: (weights * naive(h, w, inputs[2])).sum()  # noqa: E731
    return naive(*inputs), *jax.jit(jax.grad(loss, argnums=(0, 1)))(*inputs[:2])


# rows · vocabulary = 33 logits a token: 7 tokens at once, 3 (uneven slices), and the least, 1
@pytest.mark.parametrize("logits_at_once", [2**22, 3 * 33 + 5, 1])
def test_token_logps_value_and_gradient(inputs, weights, expected, logits_at_once):
    def loss(hidden, head):
        logps = token_logps(hidden, head, inputs[2], logits_at_once=logits_at_once)
        return (weights * logps).sum(), logps

    gradients, logps = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(*inputs[:2])
    for ours, theirs in zip((logps, *gradients), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_slices_hold_no_logits_of_the_whole_batch():
    """The compiled backward pass needs less scratch memory in slices than at once."""
    hidden, head, targets = jnp.zeros((4, 256, 8)), jnp.zeros((512, 8)), jnp.zeros((4, 256), jnp.int32)

    def scratch(logits_at_once):
        loss = lambda h, w: token_logps(h, w, targets, logits_at_once=logits_at_once).sum()  # noqa: E731
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(hidden, head).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # all logits: 4 · 256 · 512 float32 = 2 MiB; a slice of 2**15: 128 KiB
    assert scratch(2**22) > 2 * 2**20 > 4 * scratch(2**15)


def test_bfloat16_gradients_keep_their_dtype(inputs):
    hidden, head = (x.astype(jnp.bfloat16) for x in inputs[:2])
    d_hidden, d_head = jax.jit(jax.grad(lambda h, w: token_logps(h, w, inputs[2]).sum(), argnums=(0, 1)))(hidden, head)
    assert d_hidden.dtype == d_head.dtype == jnp.bfloat16
    assert jax.eval_shape(token_logps, hidden, head, inputs[2]).dtype == jnp.float32


def test_sum_logps_by_hand():
    # row 0: −1 − 3 = −4; row 1: nothing
    logps = jnp.array([[-1.0, jnp.nan, -3.0], [-jnp.inf, -5.0, jnp.nan]])
    mask = jnp.array([[True, False, True], [False, False, False]])
    assert sum_logps(logps, mask).tolist() == [-4.0, 0.0]
    gradient = jax.grad(lambda x: sum_logps(x, mask).sum())(logps)
    assert gradient.tolist() == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
