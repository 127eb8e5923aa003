"""Padding to either side, with masks that come from lengths."""

import numpy as np
import pytest

from tunix_lab.data.padding import pad_left, pad_right


def test_right():
    ids, mask = pad_right([np.array([5, 0]), np.array([7])], 3, pad_id=0)
    assert ids.tolist() == [[5, 0, 0], [7, 0, 0]] and ids.dtype == np.int32
    assert mask.tolist() == [[True, True, False], [True, False, False]]  # a real 0 stays real


def test_left():
    ids, mask = pad_left([np.array([5, 0]), np.array([7])], 3, pad_id=0)
    assert ids.tolist() == [[0, 5, 0], [0, 0, 7]]
    assert mask.tolist() == [[False, True, True], [False, False, True]]


def test_no_rows_and_empty_rows():
    assert pad_left([], 3, 0)[0].shape == (0, 3)
    assert not pad_left([np.array([], np.int32)], 3, 0)[1].any()


@pytest.mark.parametrize("pad", [pad_left, pad_right])
def test_nothing_is_cut(pad):
    with pytest.raises(ValueError, match="3 tokens and the row only 2"):
        pad([np.arange(3)], 2, 0)
