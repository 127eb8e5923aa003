"""Puts several short examples into one row, so that little of a batch is padding, and says where each begins and ends.

A packed example has, besides the keys of a supervised one, `segment_ids` int32 [T]: 1, 2, … in the tokens of its first, second, …
segment and 0 in the padding, and `positions` int32 [T], which count from 0 in every segment. Segments must be kept apart in three
places: attention (`ops.masks.segment_causal_mask`), positions, and the loss, where the first token of a segment must not be
predicted from the last one of its neighbour; here that token is never a target.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tunix_lab.data.examples import Example


@dataclasses.dataclass(frozen=True)
class Packed:
    """Packed examples.

    Attributes:
      examples: rows of several segments each.
      members: for each of them, the examples that are its segments, in their order.
    """

    examples: list[Example]
    members: list[list[int]]


def pack(examples: Sequence[Example], pad_id: int) -> Packed:
    """Packs supervised examples, padded on the right to one length, into rows of that length.

    Which rows share one depends on their lengths alone, so it is the same in every run and in every epoch; training shuffles the
    packed rows. Nothing is cut or dropped.
    """
    lengths = [int(example["valid"].sum()) for example in examples]
    members = first_fit_decreasing(lengths, len(examples[0]["valid"]))
    return Packed([_joined([examples[i] for i in chosen], pad_id) for chosen in members], members)


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Spreads items over as few bins as this rule finds: longest first, each into the first bin that still has room.

    At most 11/9 of the fewest possible bins and one more. Items of one length keep their order.

    Returns:
      for each bin the numbers of its items, in the order in which they were put there.
    """
    bins: list[list[int]] = []
    room = _FirstWithRoom(len(lengths), capacity)
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        chosen = room.take(lengths[item])
        if chosen == len(bins):
            bins.append([])
        bins[chosen].append(item)
    return bins


class _FirstWithRoom:
    """Finds the first of many bins with enough room, in logarithmic time: a tree whose nodes hold the most room below them."""

    def __init__(self, bins: int, capacity: int) -> None:
        self._leaves = 1 << max(bins - 1, 0).bit_length()
        self._most = [capacity] * (2 * self._leaves)

    def take(self, amount: int) -> int:
        """Takes so much room of the first bin that has it, and returns the bin's number."""
        most = self._most
        if amount > most[1]:
            raise ValueError(f"an item of {amount} fits into no bin")
        node = 1
        while node < self._leaves:
            node = 2 * node if most[2 * node] >= amount else 2 * node + 1
        found = node - self._leaves
        most[node] -= amount
        while node > 1:
            node //= 2
            most[node] = max(most[2 * node], most[2 * node + 1])
        return found


def _joined(segments: Sequence[Example], pad_id: int) -> Example:
    """One row that holds the real tokens of the segments, one after the other."""
    length = len(segments[0]["valid"])
    row = {
        "input_tokens": np.full(length, pad_id, np.int32),
        "input_mask": np.zeros(length, bool),
        "valid": np.zeros(length, bool),
        "segment_ids": np.zeros(length, np.int32),
        "positions": np.zeros(length, np.int32),
    }
    begin = 0
    for number, segment in enumerate(segments, start=1):
        real = segment["valid"]
        count = int(real.sum())
        here = slice(begin, begin + count)
        row["input_tokens"][here] = segment["input_tokens"][real]
        row["input_mask"][here] = segment["input_mask"][real]
        row["input_mask"][begin] = False
        row["valid"][here] = True
        row["segment_ids"][here] = number
        row["positions"][here] = np.arange(count)
        begin += count
    return row
