"""Advantages of groups by hand, and generalized advantage estimation against a loop over ragged masks with holes."""

import numpy as np
import pytest

from tunix_lab.ops.advantages import gae, group_advantages, whiten, zero_std_groups

REWARDS = np.array([[1.0, 0.0, 0.0, 3.0], [2.0, 2.0, 2.0, 2.0]], np.float32)


# mean 1, Σ(r − 1)² = 0 + 1 + 1 + 4 = 6, std = √(6/3) = √2; rloo: r − (4 − r)/3, so 1 − 1, 0 − 4/3, 0 − 4/3, 3 − 1/3
@pytest.mark.parametrize(
    ("estimator", "wanted"),
    [
        ("grpo", np.array([0.0, -1.0, -1.0, 2.0]) / (np.sqrt(2) + 1e-6)),
        ("drgrpo", [0.0, -1.0, -1.0, 2.0]),
        ("rloo", [0.0, -4 / 3, -4 / 3, 8 / 3]),
    ],
)
def test_by_hand(estimator, wanted):
    advantages = group_advantages(REWARDS, estimator)
    np.testing.assert_allclose(advantages[0], wanted, rtol=1e-6, atol=1e-7)
    assert advantages[1].tolist() == [0.0] * 4


# the third answer does not count: of 1, 0, 3 the mean is 4/3, Σ(r − 4/3)² = 1/9 + 16/9 + 25/9 = 42/9, std = √(21/9)
@pytest.mark.parametrize(
    ("estimator", "wanted"),
    [
        ("grpo", np.array([-1 / 3, -4 / 3, 0.0, 5 / 3]) / (np.sqrt(21 / 9) + 1e-6)),
        ("drgrpo", [-1 / 3, -4 / 3, 0.0, 5 / 3]),
        ("rloo", [-0.5, -2.0, 0.0, 2.5]),  # 1 − 3/2, 0 − 4/2, 3 − 1/2
    ],
)
def test_answers_that_do_not_count(estimator, wanted):
    valid = np.array([[True, True, False, True]])
    rewards = REWARDS[:1].copy()
    rewards[0, 2] = np.nan
    np.testing.assert_allclose(group_advantages(rewards, estimator, valid)[0], wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("estimator", ["grpo", "drgrpo", "rloo"])
def test_zero_std_group(estimator):
    """Equal rewards give exactly 0, also where a float32's mean of them is not the reward; so does one answer, and none."""
    rewards = np.full((4, 7), 0.1, np.float32)
    rewards[1, 0] = 0.2
    valid = np.ones((4, 7), bool)
    valid[2, 1:] = False
    valid[3] = False
    assert zero_std_groups(rewards, valid).tolist() == [True, False, True, True]
    advantages = np.asarray(group_advantages(rewards, estimator, valid))
    assert advantages[[0, 2, 3]].tolist() == np.zeros((3, 7)).tolist()
    assert advantages[1, 0] > 0 > advantages[1, 1]


def test_a_float32_does_not_know_the_mean_of_equal_rewards():
    """What the test above guards against: without the rule these tiny differences would be divided by 1e-6."""
    rewards = np.full(7, 0.1, np.float32)
    assert (rewards - rewards.sum() / np.float32(7)).any()


def test_reference_values_of_grpo():
    """NumPy, written from the formula, on random groups."""
    rewards = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    wanted = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(group_advantages(rewards, "grpo"), wanted, rtol=1e-4, atol=1e-6)


def test_rewards_whose_squares_are_no_float32():
    """0 and 1e38 are as far apart as 0 and 1: ∓ 0.5 over a deviation of √½, less what 1e-6 takes off the latter alone."""
    found = group_advantages(np.float32([[0, 1e38], [0, 1]]), "grpo")
    np.testing.assert_allclose(found, [[-(0.5**0.5), 0.5**0.5]] * 2, rtol=2e-6)


def test_unknown_estimator():
    with pytest.raises(ValueError, match="'grpo', 'drgrpo' or 'rloo', got 'gae'"):
        group_advantages(REWARDS, "gae")


# ---- generalized advantage estimation --------------------------------------------------------------------------------------


def gae_loop(rewards, values, mask, gamma, gae_lambda, bootstrap):
    """Row by row over the tokens of the mask alone, in float64, from δ_t + γλ δ_{t+1} + (γλ)² δ_{t+2} + …"""
    advantages = np.zeros(mask.shape)
    for row, chosen in enumerate(mask):
        places = np.flatnonzero(chosen)
        r, v = rewards[row, places].astype(np.float64), values[row, places].astype(np.float64)
        deltas = r + gamma * np.append(v[1:], bootstrap[row])[: len(v)] - v
        for i, place in enumerate(places):
            advantages[row, place] = sum((gamma * gae_lambda) ** k * delta for k, delta in enumerate(deltas[i:]))
    return advantages, np.where(mask, advantages + np.where(mask, values, 0.0), 0.0)


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.0), (0.99, 1.0)])
def test_gae_with_holes(gamma, gae_lambda):
    """Ragged rows with gaps where a tool spoke, an empty row, holes at both ends; some answers were cut off and bootstrap."""
    rng = np.random.default_rng(0)
    mask = rng.random((6, 11)) < 0.6
    mask[0], mask[1], mask[2, :3], mask[2, -3:] = True, False, False, False
    rewards, values = (np.where(mask, rng.standard_normal(mask.shape), np.nan).astype(np.float32) for _ in range(2))
    bootstrap = np.array([0.0, 0.0, 0.7, 0.0, -1.2, 2.0], np.float32)
    ours = gae(rewards, values, mask, gamma=gamma, gae_lambda=gae_lambda, bootstrap=bootstrap)
    for got, wanted in zip(ours, gae_loop(rewards, values, mask, gamma, gae_lambda, bootstrap), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_gae_by_hand():
    # γ = 0.5, λ = 0.5; the middle token is a tool's: V and A of the third are those behind the first.
    # third: δ = 1 + 0.5·0 − 0.4 = 0.6, A = 0.6, R = 1.0; first: δ = 0 + 0.5·0.4 − 0.2 = 0, A = 0 + 0.25·0.6 = 0.15, R = 0.35
    rewards, values = np.array([[0.0, 9.0, 1.0]], np.float32), np.array([[0.2, 7.0, 0.4]], np.float32)
    mask = np.array([[True, False, True]])
    advantages, returns = gae(rewards, values, mask, gamma=0.5, gae_lambda=0.5)
    np.testing.assert_allclose(advantages, [[0.15, 0.0, 0.6]], atol=1e-7)
    np.testing.assert_allclose(returns, [[0.35, 0.0, 1.0]], atol=1e-7)
    # cut off with 2 still to come: the third's δ = 1 + 0.5·2 − 0.4 = 1.6; the first's A = 0.25·1.6 = 0.4
    advantages, _ = gae(rewards, values, mask, gamma=0.5, gae_lambda=0.5, bootstrap=np.array([2.0], np.float32))
    np.testing.assert_allclose(advantages, [[0.4, 0.0, 1.6]], atol=1e-7)


# ---- whitening -------------------------------------------------------------------------------------------------------------


def test_whiten_by_hand():
    # 1, 2, 6 of the mask: mean 3, variance (4 + 1 + 9)/2 = 7
    advantages = np.array([[1.0, np.nan, 2.0], [6.0, 100.0, np.inf]], np.float32)
    mask = np.array([[True, False, True], [True, False, False]])
    wanted = np.array([[-2.0, 0.0, -1.0], [3.0, 0.0, 0.0]]) / np.sqrt(7 + 1e-8)
    np.testing.assert_allclose(whiten(advantages, mask), wanted, rtol=1e-6)


@pytest.mark.parametrize("count", [0, 1])
def test_whitening_next_to_nothing(count):
    mask = np.arange(4)[None] < count
    assert whiten(np.full((1, 4), 5.0, np.float32), mask).tolist() == [[0.0] * 4]
