"""Pads sequences of ids to one length; the masks come from the lengths, never from the ids."""

from collections.abc import Sequence

import numpy as np


def pad_right(sequences: Sequence[np.ndarray], length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Puts each sequence at the start of a row: ids int32 [B, length] and mask bool [B, length], True on real tokens.

    Raises:
      ValueError: a sequence is longer than `length`.
    """
    ids, mask = _blank(sequences, length, pad_id)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = True
    return ids, mask


def pad_left(sequences: Sequence[np.ndarray], length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Puts each sequence at the end of a row: ids int32 [B, length] and mask bool [B, length], True on real tokens.

    Raises:
      ValueError: a sequence is longer than `length`.
    """
    ids, mask = _blank(sequences, length, pad_id)
    for row, sequence in enumerate(sequences):
        ids[row, length - len(sequence) :] = sequence
        mask[row, length - len(sequence) :] = True
    return ids, mask


def _blank(sequences: Sequence[np.ndarray], length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    longest = max((len(sequence) for sequence in sequences), default=0)
    if longest > length:
        raise ValueError(f"a sequence has {longest} tokens and the row only {length}")
    shape = (len(sequences), length)
    return np.full(shape, pad_id, np.int32), np.zeros(shape, bool)
