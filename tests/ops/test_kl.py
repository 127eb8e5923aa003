"""Estimators of the KL divergence: value and gradient against the exact ones of an 8-token vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunix_lab.ops.kl import kl_estimate

VOCAB = 8
ESTIMATORS = ["kl", "mse_kl", "low_var_kl"]


@pytest.fixture(scope="module")
def logits():
    """Of a policy, its reference, and another policy that sampled."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(VOCAB), jnp.float32) for _ in range(3)]


def exact_kl(p_logits, q_logits):
    """KL(p ‖ q) of softmaxes, straight from the definition."""
    p, q = jax.nn.log_softmax(p_logits), jax.nn.log_softmax(q_logits)
    return (jnp.exp(p) * (p - q)).sum()


def expected(estimator, theta, reference, sampler, is_weighted=True):
    """(E_μ[w k], E_μ[w ∇k]): an exact sum over the vocabulary, each token's weight and probability held fixed."""
    mu, pi = jax.nn.softmax(sampler), jax.nn.softmax(theta)
    weights = pi / mu if is_weighted else jnp.ones(VOCAB)

    def loss(theta):
        estimates = kl_estimate(jax.nn.log_softmax(theta)[None], jax.nn.log_softmax(reference)[None], estimator)[0]
        return (mu * weights * estimates).sum()

    return jax.value_and_grad(loss)(theta)


def known_gradient(estimator, theta, reference):
    match estimator:
        case "kl":
            return jnp.zeros(VOCAB)
        case "mse_kl":
            return jax.grad(exact_kl)(theta, reference)
        case "low_var_kl":
            return jax.grad(lambda theta: exact_kl(reference, theta))(theta)


@pytest.mark.parametrize("is_on_policy", [True, False])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_kl_value_and_grad(logits, estimator, is_on_policy):
    theta, reference, other = logits
    value, gradient = expected(estimator, theta, reference, theta if is_on_policy else other)
    k1 = np.float64(jax.nn.log_softmax(theta) - jax.nn.log_softmax(reference))
    second_moment = 0.5 * (np.float64(jax.nn.softmax(theta)) * k1**2).sum()
    wanted = second_moment if estimator == "mse_kl" else exact_kl(theta, reference)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    np.testing.assert_allclose(gradient, known_gradient(estimator, theta, reference), atol=1e-6)


def test_the_three_gradients_differ(logits):
    """What the test above tells apart: none of the known gradients is near another, nor near zero."""
    theta, reference, _ = logits
    k2, k3 = (known_gradient(estimator, theta, reference) for estimator in ("mse_kl", "low_var_kl"))
    assert min(np.abs(k2).max(), np.abs(k3).max(), np.abs(k2 - k3).max()) > 0.05


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_off_policy_without_weights_is_something_else(logits, estimator):
    theta, reference, other = logits
    value, gradient = expected(estimator, theta, reference, other, is_weighted=False)
    on_policy = expected(estimator, theta, reference, theta)
    assert abs(value - on_policy[0]) > 0.03
    assert np.abs(gradient - known_gradient(estimator, theta, reference)).max() > 0.03


def test_k2_and_k3_agree_with_kl_while_the_two_are_close(logits):
    theta, nudge, _ = logits
    reference = theta + 0.01 * nudge
    kl = exact_kl(np.float64(theta), np.float64(reference))
    for estimator in ("mse_kl", "low_var_kl"):
        value, gradient = expected(estimator, theta, reference, theta)
        np.testing.assert_allclose(value, kl, rtol=0.05)
        np.testing.assert_allclose(gradient, jax.grad(exact_kl)(theta, reference), rtol=0.1, atol=1e-5)


def test_by_hand():
    # log π − log π_ref = −1 − (−3) = 2: k1 = 2; k2 = ½·4 = 2; k3 = e⁻² + 2 − 1 = 1.135335
    logps, ref_logps = jnp.array([[-1.0]]), jnp.array([[-3.0]])
    for estimator, wanted in zip(ESTIMATORS, (2.0, 2.0, 1.135335), strict=True):
        assert float(kl_estimate(logps, ref_logps, estimator)[0, 0]) == pytest.approx(wanted, abs=1e-6)
        assert float(kl_estimate(logps, ref_logps, estimator, clamp=0.5)[0, 0]) == 0.5
    # k1 is bounded from below too: −1 − (−0.2) = −0.8
    assert float(kl_estimate(logps, jnp.array([[-0.2]]), "kl", clamp=0.5)[0, 0]) == -0.5


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("gap", [-1e4, 1e4])
def test_finite_where_the_two_are_worlds_apart(estimator, gap):
    value, gradient = jax.value_and_grad(lambda x: kl_estimate(x, x * 0 + gap, estimator).sum())(jnp.zeros((1, 1)))
    assert bool(jnp.isfinite(value)) and float(gradient[0, 0]) == 0.0


def test_k3_is_exact_near_zero():
    # d = 1e-3: e^d − 1 − d = d²/2 + d³/6 = 5.00167e-7, to one part in a thousand; e^d − d − 1 knows it to one in eight
    estimate = kl_estimate(jnp.zeros((1, 1)), jnp.full((1, 1), 1e-3), "low_var_kl")
    assert float(estimate[0, 0]) == pytest.approx(5.00167e-7, rel=1e-3)
    assert abs(float(jnp.exp(1e-3) - jnp.float32(1e-3) - 1) / 5.00167e-7 - 1) > 0.01


def test_unknown_estimator():
    with pytest.raises(ValueError, match="'kl', 'mse_kl' or 'low_var_kl', got 'k4'"):
        kl_estimate(jnp.zeros((1, 1)), jnp.zeros((1, 1)), "k4")
