"""Token log-probabilities: values and gradients against a plain log-softmax, whole and in slices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunix_lab.ops.logps import gather_logps, sum_logps, token_logps, token_logps_and_entropy

BATCH, LENGTH, EMBED, VOCAB = 3, 7, 5, 12


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


# the vocabulary of 12 at once, in 4 parts of 3, in 5 that become 6 of 2, and row by row
@pytest.mark.parametrize("logits_at_once", [2**22, 3 * 21 * 3, 3 * 21 * 12 // 5 + 1, 1])
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

    # all logits: 4 · 256 · 512 float32 = 2 MiB; parts of 2**15: 128 KiB
    assert scratch(2**22) > 2 * 2**20 > 4 * scratch(2**15)


@pytest.mark.parametrize(("batch", "length"), [(4, 128), (1, 2000)])
def test_memory_at_a_vocabulary_of_256k(batch, length):
    """XLA's own account of forward and backward pass: scratch within 1.3 times what was allowed; all logits take 0.5 to 2 GB."""
    vocab, embed, at_once = 2**18, 64, 2**22
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((batch, length, embed), (vocab, embed))]
    targets = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    loss = lambda h, w, t: token_logps(h, w, t, logits_at_once=at_once).sum()  # noqa: E731
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments, targets).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1.3 * 4 * at_once < batch * length * vocab * 4 / 8


@pytest.mark.parametrize("logits_at_once", [2**22, 1])
def test_soft_capped_logits(inputs, weights, logits_at_once):
    """Value and gradient of log softmax(c · tanh(z / c)), against automatic differentiation of the plain formula."""
    cap, (hidden, head, targets) = 1.5, inputs
    capped = lambda h, w: cap * jnp.tanh(h @ w.T / cap)  # noqa: E731
    plain = lambda h, w: jnp.take_along_axis(jax.nn.log_softmax(capped(h, w)), targets[..., None], -1)[..., 0]  # noqa: E731
    ours = lambda h, w: token_logps(h, w, targets, logits_at_once, cap)  # noqa: E731
    np.testing.assert_allclose(ours(hidden, head), plain(hidden, head), rtol=1e-5, atol=1e-5)
    gradient = lambda f: jax.grad(lambda h, w: (weights * f(h, w)).sum(), argnums=(0, 1))(hidden, head)  # noqa: E731
    for a, b in zip(gradient(ours), gradient(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert np.abs(ours(hidden, head) - naive(*inputs)).max() > 0.1


def test_split_over_devices():
    """Rows over "fsdp" and vocabulary over "tp": the same numbers, and no device holds the whole head's gradient."""
    from tunix_lab.models.sharding import make_mesh

    mesh = make_mesh(2, 4)
    place = lambda x, *spec: jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)))  # noqa: E731
    rng = np.random.default_rng(0)
    hidden, head = rng.standard_normal((4, 6, 8)).astype(np.float32), rng.standard_normal((64, 8)).astype(np.float32)
    targets = rng.integers(0, 64, (4, 6))
    gradient = jax.jit(jax.grad(lambda h, w, t: token_logps(h, w, t, logits_at_once=3 * 24 * 16).sum(), argnums=(0, 1)))
    alone = gradient(hidden, head, targets)
    split = gradient(place(hidden, "fsdp"), place(head, "tp"), place(targets, "fsdp"))
    for a, b in zip(alone, split, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert split[1].addressable_shards[0].data.shape[0] == 16


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


# ---- temperature and entropy ----------------------------------------------------------------------------------------------


def dense(hidden, head, targets, softcap, temperature):
    """(log-probabilities, entropies) with all logits held, in float32."""
    logits = jnp.einsum("btd,vd->btv", hidden, head, preferred_element_type=jnp.float32)
    logits = logits if softcap is None else softcap * jnp.tanh(logits / softcap)
    logp = jax.nn.log_softmax(logits / temperature, axis=-1)
    return jnp.take_along_axis(logp, targets[..., None], axis=-1)[..., 0], -(jnp.exp(logp) * logp).sum(axis=-1)


def values_and_gradients(function, hidden, head, weights):
    """What it gives, and the gradients of a weighted sum of both parts by hidden states and head."""

    def total(hidden, head):
        logps, entropy = function(hidden, head)
        return (weights * logps + weights[::-1] * entropy).sum(), (logps, entropy)

    gradients, values = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(hidden, head)
    return *values, *gradients


# the vocabulary of 12 in 1, 4 and 12 parts
@pytest.mark.parametrize("logits_at_once", [2**22, 3 * 21 * 3, 1])
@pytest.mark.parametrize(("softcap", "temperature"), [(None, 1.0), (None, 0.7), (1.5, 1.0), (1.5, 2.0)])
def test_logps_and_entropy(inputs, weights, softcap, temperature, logits_at_once):
    hidden, head, targets = inputs
    ours = values_and_gradients(
        lambda h, w: token_logps_and_entropy(h, w, targets, logits_at_once, softcap, temperature), hidden, head, weights
    )
    wanted = values_and_gradients(lambda h, w: dense(h, w, targets, softcap, temperature), hidden, head, weights)
    for got, plain in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(got, plain, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("logits_at_once", [2**22, 3 * 21 * 3])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_temperature_without_entropy(inputs, weights, softcap, logits_at_once):
    """Value and gradient alone are those beside the entropy; temperature 0.7 is felt."""
    hidden, head, targets = inputs
    none = jnp.zeros(targets.shape)
    ours = values_and_gradients(
        lambda h, w: (token_logps(h, w, targets, logits_at_once, softcap, 0.7), none), hidden, head, weights
    )
    wanted = values_and_gradients(lambda h, w: (dense(h, w, targets, softcap, 0.7)[0], none), hidden, head, weights)
    for got, plain in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(got, plain, rtol=1e-4, atol=2e-5)
    assert np.abs(ours[0] - token_logps(hidden, head, targets, softcap=softcap)).max() > 0.1


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_bfloat16_logps_and_entropy(inputs, weights, softcap):
    """Values are those of float32 arithmetic on the rounded inputs; gradients come in bfloat16, within its precision of 2⁻⁸."""
    hidden, head = (x.astype(jnp.bfloat16) for x in inputs[:2])
    ours = values_and_gradients(
        lambda h, w: token_logps_and_entropy(h, w, inputs[2], 3 * 21 * 3, softcap, 0.7), hidden, head, weights
    )
    exact = (x.astype(jnp.float32) for x in (hidden, head))
    wanted = values_and_gradients(lambda h, w: dense(h, w, inputs[2], softcap, 0.7), *exact, weights)
    assert [x.dtype for x in ours] == ["float32", "float32", "bfloat16", "bfloat16"]
    for got, plain in zip(ours[:2], wanted[:2], strict=True):
        np.testing.assert_allclose(got, plain, rtol=1e-4, atol=2e-5)
    for got, plain in zip(ours[2:], wanted[2:], strict=True):
        np.testing.assert_allclose(np.float32(got), plain, rtol=0.02, atol=0.02 * float(jnp.abs(plain).max()))


def test_entropy_by_hand():
    # p = 1/8, 2/8, 5/8: H = ⅛ ln 8 + ¼ ln 4 + ⅝ ln(8/5) = 0.259930 + 0.346574 + 0.293752 = 0.900256
    hidden, head = jnp.ones((1, 1, 1)), jnp.log(jnp.array([[1.0], [2.0], [5.0]]))
    logps, entropy = token_logps_and_entropy(hidden, head, jnp.array([[2]]))
    np.testing.assert_allclose([logps[0, 0], entropy[0, 0]], [np.log(5 / 8), 0.900256], rtol=1e-5)


@pytest.mark.parametrize("logits_at_once", [2**22, 1])
def test_entropy_of_a_certain_token(logits_at_once):
    """Logits of ±500: entropy 0, and neither value nor gradient is NaN, in whatever order the parts come."""
    hidden, head = jnp.array([[[500.0], [-500.0]]]), jnp.array([[1.0], [0.0], [-1.0]])

    def total(hidden, head):
        logps, entropy = token_logps_and_entropy(hidden, head, jnp.array([[0, 1]]), logits_at_once)
        return entropy.sum() + logps.sum(), (logps, entropy)

    gradients, (logps, entropy) = jax.grad(total, argnums=(0, 1), has_aux=True)(hidden, head)
    assert logps.tolist() == [[0.0, -500.0]] and entropy.tolist() == [[0.0, 0.0]]
    assert all(bool(jnp.isfinite(g).all()) for g in gradients)


def test_entropy_holds_no_logits_of_the_whole_batch():
    """Scratch of forward and backward pass within 1.3 times what was allowed, as without the entropy."""
    batch, length, vocab, embed, at_once = 4, 128, 2**18, 64, 2**22
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((batch, length, embed), (vocab, embed))]
    targets = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    loss = lambda h, w, t: sum(x.sum() for x in token_logps_and_entropy(h, w, t, logits_at_once=at_once))  # noqa: E731
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments, targets).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1.3 * 4 * at_once < batch * length * vocab * 4 / 8


def test_the_plain_path_pays_for_nothing(inputs):
    """At temperature 1 nothing is divided; else the logits are, in forward and backward pass, and their gradient."""
    hidden, head, targets = inputs
    program = lambda t: jax.make_jaxpr(jax.grad(lambda h: token_logps(h, head, targets, temperature=t).sum()))(hidden)  # noqa: E731
    assert [len(re.findall(r"f32\[3,7,12\] = div", str(program(t)))) for t in (1.0, 0.5)] == [0, 3]
