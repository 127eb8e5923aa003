"""Distances of hidden states and attention maps by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunix_lab.ops.features import attention_kl, attention_mse, average_pool, cosine_distance, mean_squared_error

LN2 = np.log(2.0)


@pytest.mark.parametrize(
    ("values", "size", "pooled"),
    [
        ([1.0, 3.0, 5.0, 7.0], 2, [2.0, 6.0]),  # windows of 2
        ([1.0, 2.0, 3.0, 4.0, 5.0], 2, [2.0, 4.0]),  # stride 2, width 5 − 1·2 = 3: (1 2 3), (3 4 5)
        ([1.0, 2.0, 3.0], 3, [1.0, 2.0, 3.0]),
        ([1.0, 2.0, 6.0], 1, [3.0]),
    ],
)
def test_average_pool_by_hand(values, size, pooled):
    np.testing.assert_allclose(average_pool(jnp.array([values, values]), size, axis=-1), [pooled, pooled], rtol=1e-6)
    np.testing.assert_allclose(average_pool(jnp.array([values]).T, size, axis=0)[:, 0], pooled, rtol=1e-6)


def test_average_pool_makes_nothing_longer():
    with pytest.raises(ValueError, match="cannot average 2 values down to 3"):
        average_pool(jnp.zeros((2, 4)), 3, axis=0)


def test_cosine_distance_by_hand():
    # (3, 4) with (6, 8): same direction; (0, 1) with (1, 0): orthogonal; (1, 0) with (−2, 0): opposite;
    # (1, 0) with (3, 4): 1 − 3/5; nothing with (1, 1): 1, and no NaN in the gradient
    student = jnp.array([[3.0, 4.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    teacher = jnp.array([[6.0, 8.0], [1.0, 0.0], [-2.0, 0.0], [3.0, 4.0], [1.0, 1.0]])
    np.testing.assert_allclose(cosine_distance(student, teacher), [0.0, 1.0, 2.0, 0.4, 1.0], atol=1e-6)
    assert np.isfinite(jax.grad(lambda s: cosine_distance(s, teacher).sum())(student)).all()


def test_mean_squared_error_by_hand():
    # (1² + 3²) / 2 = 5
    np.testing.assert_allclose(mean_squared_error(jnp.array([[1.0, 5.0]]), jnp.array([[2.0, 2.0]])), [5.0])


# One map of three queries and three keys; the last query may see the first two keys only (a window the teacher does not have),
# and the first one nothing (padding).
PAIRS = jnp.array([[False, False, False], [True, True, False], [True, True, False]])
STUDENT = jnp.array([[1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0.0], [0.25, 0.75, 0.0]])
TEACHER = jnp.array([[0.9, 0.1, 0.0], [1.0, 0.0, 0.0], [0.25, 0.25, 0.5]])


def test_attention_kl_by_hand():
    # query 1: 1 · ln(1 / ½) + 0 = ln 2; query 2: the teacher's renormalised (½, ½): ½ ln(½/¼) + ½ ln(½/¾) = ln 2 − ½ ln 3
    np.testing.assert_allclose(attention_kl(STUDENT, TEACHER, PAIRS), [0.0, LN2, LN2 - np.log(3) / 2], atol=1e-6)


def test_attention_mse_by_hand():
    # query 1: (½² + ½²) / 2 = ¼; query 2: (¼² + ¼²) / 2 = 1/16
    np.testing.assert_allclose(attention_mse(STUDENT, TEACHER, PAIRS), [0.0, 0.25, 0.0625], atol=1e-6)


@pytest.mark.parametrize("measure", [attention_kl, attention_mse])
def test_pairs_that_are_not_real_have_no_part(measure):
    """Neither value nor gradient; also where nothing is left of the teacher."""
    noisy = jnp.where(PAIRS, STUDENT, 7.0)
    np.testing.assert_array_equal(measure(noisy, TEACHER, PAIRS), measure(STUDENT, TEACHER, PAIRS))
    gradient = jax.grad(lambda s: measure(s, TEACHER, PAIRS).sum())(STUDENT)
    assert np.isfinite(gradient).all() and not np.any(gradient[~PAIRS]) and np.any(gradient[PAIRS])
    assert np.isfinite(measure(STUDENT, 0 * TEACHER, PAIRS)).all()


def test_a_weight_that_underflowed_is_not_infinitely_wrong():
    value = attention_kl(jnp.array([[1.0, 0.0]]), jnp.array([[0.5, 0.5]]), jnp.ones((1, 2), bool))
    # ½ ln(½ / 1) + ½ ln(½ / 1e-30)
    np.testing.assert_allclose(value, [-LN2 + 15 * np.log(10)], rtol=1e-5)
