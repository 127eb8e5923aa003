"""WeightedMean: sums and weights by hand, in any grouping, and what weight zero hides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunix_lab.ops.cross_entropy import cross_entropy
from tunix_lab.ops.weighted import WeightedMean


def test_of_by_hand():
    # 1·2 + 0·4 + 3·1 = 5 over 1 + 0 + 3 = 4: mean 1.25
    value = WeightedMean.of(jnp.array([2.0, 4.0, 1.0]), jnp.array([1.0, 0.0, 3.0]))
    assert (float(value.total), float(value.count), float(value.mean)) == (5.0, 4.0, 1.25)


def test_without_weights_each_value_counts_once():
    value = WeightedMean.of(jnp.arange(6.0).reshape(2, 3))
    assert (float(value.total), float(value.count), float(value.mean)) == (15.0, 6.0, 2.5)


def test_a_boolean_mask_is_a_weight():
    value = WeightedMean.of(jnp.array([2.0, 4.0]), jnp.array([True, False]))
    assert (float(value.total), float(value.count)) == (2.0, 1.0)


def test_parts_add_up_in_any_grouping():
    # one part of 1 token at 8, one of 3 tokens at 0: (8 + 0)/(1 + 3) = 2, not the mean of means (8 + 0)/2 = 4
    parts = WeightedMean.of(jnp.array([8.0])) + WeightedMean.of(jnp.zeros(3))
    assert float(parts.mean) == 2.0


def test_nothing_weighs_nothing():
    value = WeightedMean.of(jnp.array([3.0, 4.0]), jnp.zeros(2))
    assert (float(value.mean), float(value.count)) == (0.0, 0.0)
    gradient = jax.grad(lambda x: WeightedMean.of(x, jnp.zeros(2)).mean)(jnp.array([3.0, 4.0]))
    assert gradient.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_masked_nan_stays_masked(bad):
    def loss(logps):
        return cross_entropy(logps, jnp.array([[True, False, True]])).mean

    clean, gradient = jax.value_and_grad(loss)(jnp.array([[-1.0, -9.0, -2.0]]))
    dirty, dirty_gradient = jax.value_and_grad(loss)(jnp.array([[-1.0, bad, -2.0]]))
    assert float(dirty) == float(clean) == 1.5
    assert dirty_gradient.tolist() == gradient.tolist() == [[-0.5, 0.0, -0.5]]


def test_low_precision_values_are_summed_in_float32():
    # bfloat16 has 8 bits: 1 + 1 + … stops growing at 256 there
    assert float(WeightedMean.of(jnp.ones(1000, jnp.bfloat16)).total) == 1000.0


def test_cross_entropy_by_hand():
    # −(−1 − 2 − 4) = 7 nats over 3 tokens
    loss = cross_entropy(jnp.array([[-1.0, -2.0], [-3.0, -4.0]]), jnp.array([[True, True], [False, True]]))
    assert (float(loss.total), float(loss.count)) == (7.0, 3.0)
    assert float(loss.mean) == pytest.approx(7 / 3)
