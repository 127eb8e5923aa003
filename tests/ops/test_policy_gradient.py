"""Policy-gradient losses by hand: clips, ratios of tokens and sequences, the five ways to aggregate, the critic's loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunix_lab.ops.policy_gradient import aggregate, importance_weights, policy_loss, value_loss
from tunix_lab.ops.weighted import WeightedMean

CLIP = {"epsilon_low": 0.2, "epsilon_high": 0.3}
MODES = [
    "token-mean",
    "sequence-mean-token-mean",
    "sequence-mean-token-scale",
    "seq-mean-token-sum",
    "sequence-mean-token-sum-norm",
]


def row(*numbers):
    return jnp.array([numbers], jnp.float32)


def loss_and_gradient(logps, old_logps, advantages, mask=None, **options):
    """The loss of each token, and d(Σ losses)/d logps."""
    mask = jnp.ones(logps.shape, bool) if mask is None else mask

    def total(logps):
        out = policy_loss(logps, old_logps, advantages, mask, **CLIP | options)
        return out.losses.sum(), out

    gradient, out = jax.grad(total, has_aux=True)(logps)
    return out, gradient


# ---- the clip --------------------------------------------------------------------------------------------------------------

# old log π is 0, so log π = log ρ. The clips are at 0.8 and 1.3, the ratios below, within and above them.
RATIOS = np.array([0.5, 0.9, 1.2, 2.0], np.float32)


def test_clip_asymmetric_with_positive_advantage():
    # A = 2: −2·0.5 = −1, −2·0.9 = −1.8, −2·1.2 = −2.4, and −2·1.3 = −2.6 in place of −4
    out, gradient = loss_and_gradient(row(*np.log(RATIOS)), row(0, 0, 0, 0), row(2, 2, 2, 2))
    np.testing.assert_allclose(out.losses, [[-1.0, -1.8, -2.4, -2.6]], rtol=1e-6)
    # dL/dlog π = −A ρ where the clip does not bind
    np.testing.assert_allclose(gradient, [[-1.0, -1.8, -2.4, 0.0]], rtol=1e-6)
    assert out.is_clipped.tolist() == [[False, False, False, True]] and float(gradient[0, 3]) == 0.0
    np.testing.assert_allclose(out.ratio, RATIOS[None], rtol=1e-6)


def test_clip_asymmetric_with_negative_advantage():
    # A = −2: 2·0.8 = 1.6 in place of 1, then 2·0.9, 2·1.2, 2·2
    out, gradient = loss_and_gradient(row(*np.log(RATIOS)), row(0, 0, 0, 0), row(-2, -2, -2, -2))
    np.testing.assert_allclose(out.losses, [[1.6, 1.8, 2.4, 4.0]], rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0.0, 1.8, 2.4, 4.0]], rtol=1e-6)
    assert out.is_clipped.tolist() == [[True, False, False, False]] and float(gradient[0, 0]) == 0.0


def test_dual_clip():
    # c = 1.5 bounds the loss of A = −2 at 3: 2·2 = 4 is cut, 2·1.2 = 2.4 is not; A = 2 has no such bound
    logps, advantages = row(*np.log([2.0, 1.2, 0.5])), row(-2, -2, 2)
    out, gradient = loss_and_gradient(logps, row(0, 0, 0), advantages, epsilon_c=1.5)
    np.testing.assert_allclose(out.losses, [[3.0, 2.4, -1.0]], rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0.0, 2.4, -1.0]], rtol=1e-6)
    assert out.is_dual_clipped.tolist() == [[True, False, False]] and not out.is_clipped.any()


def test_unclipped():
    out, gradient = loss_and_gradient(row(*np.log(RATIOS)), row(0, 0, 0, 0), row(2, -2, 2, 2), clip=False)
    np.testing.assert_allclose(out.losses, [[-1.0, 1.8, -2.4, -4.0]], rtol=1e-6)
    np.testing.assert_allclose(gradient, [[-1.0, 1.8, -2.4, -4.0]], rtol=1e-6)
    assert not out.is_clipped.any()


def test_weights_multiply_the_losses():
    # −2·1.2·0.5 = −1.2
    out, gradient = loss_and_gradient(row(np.log(1.2)), row(0), row(2), weights=row(0.5))
    np.testing.assert_allclose([out.losses, gradient], [[[-1.2]], [[-1.2]]], rtol=1e-6)


# ---- on-policy -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio_level", ["token", "sequence"])
@pytest.mark.parametrize("old", ["none", "same"])
@pytest.mark.parametrize("mode", MODES)
def test_grpo_step0(old, mode, ratio_level):
    """Ratio exactly 1, nothing clipped, and the gradient of the aggregated loss is that of −A log π, aggregated."""
    rng = np.random.default_rng(0)
    logps = jnp.asarray(-rng.random((3, 5)) * 4, jnp.float32)
    advantages = jnp.asarray(rng.standard_normal((3, 1)) * np.ones((1, 5)), jnp.float32)
    mask = jnp.arange(5)[None] < jnp.array([[5], [2], [0]])

    def surrogate(logps):
        old_logps = None if old == "none" else jax.lax.stop_gradient(logps)
        out = policy_loss(logps, old_logps, advantages, mask, **CLIP, epsilon_c=3.0, ratio_level=ratio_level)
        return aggregate(out.losses, mask, mode, norm=8).mean, out

    gradient, out = jax.grad(surrogate, has_aux=True)(logps)
    plain = jax.grad(lambda x: aggregate(-advantages * x, mask, mode, norm=8).mean)(logps)
    np.testing.assert_allclose(gradient, plain, rtol=1e-6)
    assert float(jnp.abs(plain).max()) > 0.01
    assert bool((out.ratio == 1.0).all()) and not out.is_clipped.any() and not out.is_dual_clipped.any()


def test_masked_nan_stays_masked():
    mask = jnp.array([[True, False, True]])
    bad = jnp.array([[0.0, jnp.nan, 0.0]])
    for level in ("token", "sequence"):
        out, gradient = loss_and_gradient(
            row(-1, -2, -3) + bad, row(-1.1, -2, -3) + bad, row(1, 1, 1) + bad, mask, ratio_level=level
        )
        clean, clean_gradient = loss_and_gradient(row(-1, -2, -3), row(-1.1, -2, -3), row(1, 1, 1), mask, ratio_level=level)
        np.testing.assert_array_equal(out.losses, clean.losses)
        np.testing.assert_array_equal(gradient, clean_gradient)
        assert float(out.losses[0, 1]) == 0.0 and float(out.ratio[0, 1]) == 1.0 and float(gradient[0, 1]) == 0.0


def test_ratios_stay_finite():
    out, gradient = loss_and_gradient(row(0.0, -1e4), row(-1e4, 0.0), row(-1, -1), clip=False)
    assert bool(jnp.isfinite(out.losses).all()) and gradient.tolist() == [[0.0, 0.0]]
    # a sequence's mean log-ratio is bounded at 10 from above
    out, gradient = loss_and_gradient(row(15.0), row(0.0), row(-1), clip=False, ratio_level="sequence")
    assert float(out.ratio[0, 0]) == pytest.approx(np.exp(10.0)) and float(gradient[0, 0]) == 0.0


def test_unknown_ratio_level():
    with pytest.raises(ValueError, match="'token' or 'sequence', got 'word'"):
        loss_and_gradient(row(0), row(0), row(1), ratio_level="word")


# ---- the ratio of a sequence -----------------------------------------------------------------------------------------------


def test_gspo_sequence_ratio_by_hand():
    # log ratios 0.1, 0.2, 0.6 of the first answer: mean 0.3; −0.2 of the second: mean −0.2
    logps = jnp.array([[0.1, 0.2, 0.6], [-0.2, 5.0, 5.0]])
    mask = jnp.array([[True, True, True], [True, False, False]])
    out, _ = loss_and_gradient(logps, jnp.zeros((2, 3)), jnp.ones((2, 3)), mask, ratio_level="sequence")
    np.testing.assert_allclose(out.ratio, np.exp([[0.3, 0.3, 0.3], [-0.2, 0.0, 0.0]]), rtol=1e-6)


def test_gspo_ratio_knows_neither_padding_nor_neighbours():
    options = {"ratio_level": "sequence"}
    alone, _ = loss_and_gradient(row(0.1, 0.4), row(0, 0), row(1, 1), **options)
    logps = jnp.array([[0.1, 0.4, 3.0, 3.0], [2.0, 2.0, 2.0, 2.0]])
    mask = jnp.array([[True, True, False, False], [True] * 4])
    among, _ = loss_and_gradient(logps, jnp.zeros((2, 4)), jnp.ones((2, 4)), mask, **options)
    np.testing.assert_array_equal(among.ratio[0, :2], alone.ratio[0])


def test_gspo_token_variant_equals_the_sequence_variant():
    """Value and gradient of the paper's GSPO, in which an answer is one action of ratio s, clipped as a whole."""
    rng = np.random.default_rng(0)
    old = jnp.asarray(-rng.random((4, 6)), jnp.float32)
    logps = old + jnp.asarray(0.5 * rng.standard_normal((4, 6)), jnp.float32)
    mask = jnp.arange(6)[None] < jnp.array([[6], [3], [1], [4]])
    advantages = jnp.array([[1.0], [-1.0], [2.0], [-0.5]])

    def of_sequences(logps):
        s = jnp.exp(jnp.where(mask, logps - old, 0.0).sum(1) / mask.sum(1))
        a = advantages[:, 0]
        return jnp.maximum(-a * s, -a * jnp.clip(s, 0.8, 1.3)).mean(), s

    def of_tokens(logps):
        out = policy_loss(logps, old, advantages * jnp.ones((1, 6)), mask, **CLIP, ratio_level="sequence")
        return aggregate(out.losses, mask, "sequence-mean-token-mean").mean, out

    (wanted, s), wanted_gradient = jax.value_and_grad(of_sequences, has_aux=True)(logps)
    (value, out), gradient = jax.value_and_grad(of_tokens, has_aux=True)(logps)
    assert out.is_clipped.any(axis=1).sum() == 1 and (s != 1).all()  # one is clipped, the others are not
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    np.testing.assert_allclose(gradient, wanted_gradient, rtol=1e-5, atol=1e-8)


# ---- aggregation -----------------------------------------------------------------------------------------------------------

LOSSES = jnp.array([[1.0, 2.0, 3.0, 4.0], [6.0, 2.0, jnp.nan, jnp.nan], [jnp.nan] * 4])
MASK = jnp.array([[True] * 4, [True, True, False, False], [False] * 4])


# row sums 10, 8, 0; tokens 4, 2, 0; rows with tokens 2 of 3
@pytest.mark.parametrize(
    ("mode", "total", "count"),
    [
        ("token-mean", 18.0, 6.0),
        ("sequence-mean-token-mean", 10 / 4 + 8 / 2, 2.0),
        ("sequence-mean-token-scale", (10 + 8) / 5, 2.0),
        ("seq-mean-token-sum", 18.0, 2.0),
        ("sequence-mean-token-sum-norm", 18.0, 3.0),
    ],
)
def test_loss_agg_fixtures(mode, total, count):
    value = aggregate(LOSSES, MASK, mode, norm=5)
    assert (float(value.total), float(value.count)) == (pytest.approx(total), count)
    gradient = jax.grad(lambda x: aggregate(x, MASK, mode, norm=5).mean)(LOSSES)
    assert bool(jnp.isfinite(gradient).all()) and not gradient[2].any()
    padded = aggregate(*(jnp.pad(x, ((0, 0), (0, 3))) for x in (LOSSES, MASK)), mode, norm=5)
    assert (float(padded.total), float(padded.count)) == (float(value.total), count)


@pytest.mark.parametrize("mode", MODES)
def test_micro_batches_add_up(mode):
    rng = np.random.default_rng(0)
    losses = jnp.asarray(rng.standard_normal((8, 6)), jnp.float32)
    mask = jnp.arange(6)[None] < jnp.asarray(rng.integers(0, 7, (8, 1)))
    whole = aggregate(losses, mask, mode, norm=6)
    for sizes in ((4, 4), (1,) * 8, (5, 1, 2)):
        ends = np.cumsum(sizes)
        parts = [aggregate(losses[e - n : e], mask[e - n : e], mode, norm=6) for n, e in zip(sizes, ends, strict=True)]
        value = functools.reduce(WeightedMean.__add__, parts)
        np.testing.assert_allclose([value.total, value.count], [whole.total, whole.count], rtol=1e-5)


# An answer of 2 tokens beside one of 4, each token's loss x: the weight of a token of either, times what is common to both.
@pytest.mark.parametrize(
    ("mode", "short", "long"),
    [
        ("token-mean", 1 / 6, 1 / 6),  # every token alike
        ("sequence-mean-token-mean", 1 / 2 / 2, 1 / 4 / 2),  # every answer alike: tokens of a long one count less
        ("sequence-mean-token-scale", 1 / 10 / 2, 1 / 10 / 2),  # every token alike, whatever the batch's lengths are
        ("seq-mean-token-sum", 1 / 2, 1 / 2),
        ("sequence-mean-token-sum-norm", 1 / 2, 1 / 2),
    ],
)
def test_length_bias(mode, short, long):
    mask = jnp.array([[True, True, False, False], [True] * 4])
    gradient = jax.grad(lambda x: aggregate(x, mask, mode, norm=10).mean)(jnp.ones((2, 4)))
    np.testing.assert_allclose(gradient, [[short, short, 0, 0], [long] * 4], rtol=1e-6)


def test_nothing_to_aggregate():
    for mode in MODES:
        assert float(aggregate(jnp.full((2, 3), jnp.nan), jnp.zeros((2, 3), bool), mode, norm=3).mean) == 0.0


def test_modes_that_cannot_be():
    with pytest.raises(ValueError, match="no loss aggregation 'mean'"):
        aggregate(LOSSES, MASK, "mean")
    with pytest.raises(ValueError, match="'sequence-mean-token-scale' needs norm"):
        aggregate(LOSSES, MASK, "sequence-mean-token-scale")


# ---- weights, values -------------------------------------------------------------------------------------------------------


def test_importance_weights_by_hand():
    # e^(−1 − (−1.5)) = e^0.5; e^(−1 − (−4)) = e³ is cut at 2; e^(−3 − (−1)) = e^−2
    trainer, sampler = row(-1, -1, -3, jnp.nan), row(-1.5, -4, -1, -1)
    mask = jnp.array([[True, True, True, False]])
    weights = importance_weights(trainer, sampler, mask, 2.0)
    np.testing.assert_allclose(weights, [[np.exp(0.5), 2.0, np.exp(-2), 1.0]], rtol=1e-6)
    assert not jax.grad(lambda x: importance_weights(x, sampler, mask, 2.0).sum())(trainer).any()


def test_value_loss_by_hand():
    # c = 0.5, V_old = 1, R = 3.
    # V = 1.2: within the clip, ½·1.8² = 1.62, gradient V − R = −1.8
    # V = 2.0: clipped to 1.5, ½·max(1, 1.5²) = 1.125, no gradient: it has moved far enough towards R
    # V = 0.0: clipped to 0.5, ½·max(9, 2.5²) = 4.5, gradient −3: it has moved the wrong way
    values, old, returns = row(1.2, 2.0, 0.0), row(1, 1, 1), row(3, 3, 3)
    losses, is_clipped = value_loss(values, old, returns, 0.5)
    np.testing.assert_allclose(losses, [[1.62, 1.125, 4.5]], rtol=1e-6)
    assert is_clipped.tolist() == [[False, True, False]]
    gradient = jax.grad(lambda v: value_loss(v, old, returns, 0.5)[0].sum())(values)
    np.testing.assert_allclose(gradient, [[-1.8, 0.0, -3.0]], rtol=1e-6)
