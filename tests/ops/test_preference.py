"""DPO and ORPO losses by hand, at step 0, with smoothed labels, and at the edge of certainty."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunix_lab.ops.preference import dpo_loss, ipo_loss, orpo_odds_loss


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_dpo_by_hand():
    # Δ = (−2 − (−3)) − (−5 − (−4)) = 1 + 1 = 2; β·Δ = 1; −log σ(1) = log(1 + e⁻¹) = 0.313262
    pair = [jnp.array([x]) for x in (-2.0, -5.0, -3.0, -4.0)]
    assert float(dpo_loss(*pair, beta=0.5)[0]) == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-6)


def test_dpo_step0_ln2():
    # policy = reference: Δ = 0, −log σ(0) = ln 2, whatever β and the smoothing
    logps = jnp.array([-3.0, -40.0]), jnp.array([-7.0, -0.5])
    for beta, smoothing in ((0.1, 0.0), (5.0, 0.0), (0.1, 0.3)):
        loss = dpo_loss(*logps, *logps, beta=beta, label_smoothing=smoothing)
        np.testing.assert_allclose(loss, math.log(2), atol=1e-6)


def test_dpo_label_smoothing_by_hand():
    # βΔ = 0.1 · (1 − (−1)) = 0.2, ε = 0.1: −0.9·log σ(0.2) − 0.1·log σ(−0.2) = 0.9·0.598139 + 0.1·0.798139 = 0.618139
    pair = [jnp.array([x]) for x in (-2.0, -5.0, -3.0, -4.0)]
    assert float(dpo_loss(*pair, beta=0.1, label_smoothing=0.1)[0]) == pytest.approx(0.618139, abs=1e-6)


def test_dpo_gradient_sign():
    # dL/dΔ = −β·σ(−βΔ): up for the chosen, down for the rejected, and at Δ = 0 by β/2
    zero = jnp.zeros(1)
    chosen, rejected = jax.grad(lambda c, r: dpo_loss(c, r, zero, zero, beta=0.1)[0], argnums=(0, 1))(zero, zero)
    assert float(chosen[0]) == pytest.approx(-0.05) and float(rejected[0]) == pytest.approx(0.05)


def test_swapping_the_pair_flips_the_margin():
    a, b, ref_a, ref_b = (jnp.array([x]) for x in (-2.0, -5.0, -3.0, -4.0))
    right, wrong = dpo_loss(a, b, ref_a, ref_b, beta=0.5), dpo_loss(b, a, ref_b, ref_a, beta=0.5)
    # −log σ(−x) = −log σ(x) + x with x = 1
    assert float(wrong[0] - right[0]) == pytest.approx(1.0, rel=1e-6)


def test_dpo_is_finite_where_the_margin_is_huge():
    huge = jnp.array([1e4, -1e4])
    loss, gradient = jax.value_and_grad(lambda c: dpo_loss(c, -huge, 0 * huge, 0 * huge, beta=1.0).sum())(huge)
    assert float(loss) == pytest.approx(2e4) and bool(jnp.isfinite(gradient).all())


def test_ipo_by_hand():
    # Δ = (−2 − (−3)) − (−5 − (−4)) = 2; β = 0.2: 1/(2β) = 2.5; (2 − 2.5)² = 0.25, and dL/dchosen = 2·(2 − 2.5) = −1
    pair = [jnp.array([x]) for x in (-2.0, -5.0, -3.0, -4.0)]
    value, gradient = jax.value_and_grad(lambda chosen: ipo_loss(chosen, *pair[1:], beta=0.2)[0])(pair[0])
    assert float(value) == pytest.approx(0.25) and float(gradient[0]) == pytest.approx(-1.0)


def test_ipo_has_a_best_margin():
    # at Δ = 1/(2β) = 5 the loss is 0, and a larger margin costs as much as a smaller one
    zero = jnp.zeros(3)
    np.testing.assert_allclose(ipo_loss(jnp.array([5.0, 7.0, 3.0]), zero, zero, zero, beta=0.1), [0.0, 4.0, 4.0])


def odds_formula(chosen, rejected, smoothing=0.0):
    """Straight from the paper, in float64."""
    odds = lambda logp: np.exp(logp) / (1 - np.exp(logp))  # noqa: E731
    ratio = odds(np.float64(chosen)) / odds(np.float64(rejected))
    return -(1 - smoothing) * np.log(sigmoid(np.log(ratio))) - smoothing * np.log(1 - sigmoid(np.log(ratio)))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_orpo_odds_against_the_formula(smoothing):
    chosen, rejected = np.array([-0.1, -1.0, -4.0]), np.array([-1.0, -0.2, -9.0])
    got = orpo_odds_loss(jnp.asarray(chosen, jnp.float32), jnp.asarray(rejected, jnp.float32), label_smoothing=smoothing)
    np.testing.assert_allclose(got, odds_formula(chosen, rejected, smoothing), rtol=1e-5)


def test_orpo_by_hand():
    # p = 1/2 -> odds 1; p = 1/5 -> odds 1/4; ratio 4; −log σ(log 4) = −log(4/5)
    loss = orpo_odds_loss(jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.2])))
    assert float(loss[0]) == pytest.approx(math.log(5 / 4), rel=1e-6)


def test_orpo_gradient_against_differences():
    chosen, rejected, h = np.array([-0.7]), np.array([-1.3]), 1e-6
    got = jax.grad(lambda c, r: orpo_odds_loss(c, r)[0], argnums=(0, 1))(jnp.float32(chosen), jnp.float32(rejected))
    by_chosen = (odds_formula(chosen + h, rejected) - odds_formula(chosen - h, rejected)) / (2 * h)
    by_rejected = (odds_formula(chosen, rejected + h) - odds_formula(chosen, rejected - h)) / (2 * h)
    np.testing.assert_allclose(got, [by_chosen, by_rejected], rtol=1e-4)


@pytest.mark.parametrize("logps", [(0.0, -1.0), (-1.0, 0.0), (0.0, 0.0), (-1e-9, -1e-9), (-1e-12, -80.0)])
def test_orpo_is_finite_at_certainty(logps):
    chosen, rejected = (jnp.array([x]) for x in logps)
    value, gradient = jax.value_and_grad(lambda c, r: orpo_odds_loss(c, r).sum(), argnums=(0, 1))(chosen, rejected)
    assert bool(jnp.isfinite(value)) and all(bool(jnp.isfinite(g).all()) for g in gradient)
