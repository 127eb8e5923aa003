"""Positions and attention masks, written out."""

import jax.numpy as jnp

from tunix_lab.ops.masks import causal_mask, positions_from_mask, segment_causal_mask, window_mask


def rows(*lines):
    """ "x" is True, "." False."""
    return jnp.array([[c == "x" for c in line] for line in lines])


def test_positions_count_real_tokens_from_zero():
    positions = positions_from_mask(rows("xxxx", "..xx", "xx..", ".xx.", "...."))
    assert positions.tolist() == [[0, 1, 2, 3], [0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]]


def test_causal_mask_sees_real_tokens_of_the_past():
    left, right = causal_mask(rows(".xx", "xx."))
    assert jnp.array_equal(left, rows("...", ".x.", ".xx"))
    assert jnp.array_equal(right, rows("x..", "xx.", "xx."))


def test_a_hole_is_not_seen():
    assert jnp.array_equal(causal_mask(rows("x.x"))[0], rows("x..", "x..", "x.x"))


def test_segments_do_not_see_each_other():
    first, second, empty = segment_causal_mask(jnp.array([[1, 1, 2, 2, 0], [1, 2, 2, 2, 3], [0, 0, 0, 0, 0]]))
    assert jnp.array_equal(first, rows("x....", "xx...", "..x..", "..xx.", "....."))
    assert jnp.array_equal(second, rows("x....", ".x...", ".xx..", ".xxx.", "....x"))
    assert not empty.any()


def test_one_segment_is_plain_causality():
    valid = rows("xxx.", "xxxx")
    # padding sees real tokens under plain causality and nothing here; it is no target in either
    assert jnp.array_equal(segment_causal_mask(valid.astype(jnp.int32)), causal_mask(valid) & valid[:, :, None])


def test_window_holds_the_query_itself():
    # a window of 2: slot 3 sees 2 and 3 (and what lies ahead, which causality forbids)
    assert jnp.array_equal(window_mask(jnp.arange(4), jnp.arange(4), 2), rows("xxxx", "xxxx", ".xxx", "..xx"))


def test_window_of_one_query_late_in_the_cache():
    assert jnp.array_equal(window_mask(jnp.array([5]), jnp.arange(7), 3), rows("...xxxx"))
