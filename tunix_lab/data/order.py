"""The order in which training reads rows: a pure function of the seed, which any process can look up at any place.

Nothing here knows micro-batches, processes or threads: they cut up one global order, and so cannot change it.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from tunix_lab.errors import UserError

WINDOW = 32
"""Updates among whose rows `ByLength` sorts: more would save little padding, fewer much less."""


@dataclasses.dataclass(frozen=True)
class Share:
    """A source of a mixture: how many rows it has, and its share of what is drawn, relative to the others'."""

    rows: int
    weight: float


def row_order(num_rows: int, seed: int, num_epochs: int | None, mixture: Sequence[Share] | None = None) -> Any:
    """Row numbers as a grain dataset.

    Without a mixture every row comes once an epoch, in an order of its own each time. In a mixture the sources take turns by
    their weights (read to a hundredth of the smallest): not by chance, but so that each has had its share to within a row or two
    at any time. Each is shuffled by itself and begins anew when it is through, whatever the others do; an epoch is as many rows
    as all have together.

    Args:
      num_rows: of all sources.
      seed: of the order, below 2**32.
      num_epochs: None never ends.
      mixture: the sources, in the order of their rows; None is one source.

    Raises:
      UserError: a source of the mixture has no rows.
    """
    import grain

    if mixture is None:
        return grain.MapDataset.range(num_rows).seed(seed).shuffle().repeat(num_epochs)
    if min(part.rows for part in mixture) < 1 or sum(part.rows for part in mixture) != num_rows:
        raise UserError(f"data: a mixture of sources with {[part.rows for part in mixture]} rows cannot make up {num_rows} rows")
    ends = np.cumsum([part.rows for part in mixture]).tolist()
    begins = [end - part.rows for end, part in zip(ends, mixture, strict=True)]
    ranges = [grain.MapDataset.range(begin, end) for begin, end in zip(begins, ends, strict=True)]
    sources = [numbers.seed(seed).shuffle().repeat(None) for numbers in ranges]
    mixed = grain.MapDataset.mix(sources, [part.weight for part in mixture])
    return mixed if num_epochs is None else mixed[: num_rows * num_epochs]


class ByLength:
    """Updates of rows of similar length, so that each can be cut to a short bucket.

    The global order of rows is cut into windows of `WINDOW` updates. Within a window rows are sorted by length and dealt out to
    updates, the shortest to the first, and the updates are then shuffled by the seed. So a window trains on exactly the rows it
    would train on without buckets, each once; which of its updates a row falls into depends on seed, lengths and batch size, and
    on nothing else: micro-batches and processes cut up an update that is already made. The bucket belongs to the update, hence
    all of its micro-batches, on all processes, have one shape. Within an update the rows keep the global order, so that no
    process gets all the short ones.
    """

    def __init__(self, order: Any, lengths: np.ndarray, buckets: Sequence[int], batch_size: int, seed: int) -> None:
        self._order = order  # a grain dataset of row numbers
        self._lengths = lengths
        self._buckets = buckets
        self._seed = seed
        self.batch_size = batch_size
        # One window is looked at again and again while its updates are read; two, since threads may be a little ahead.
        self._window = functools.lru_cache(maxsize=2)(self._arranged)

    def __len__(self) -> int:
        return len(self._order) // self.batch_size

    def __getitem__(self, update: int) -> tuple[np.ndarray, int]:
        """Row numbers [batch_size] of an update, and the length to which they are cut."""
        window, place = divmod(update, WINDOW)
        rows = self._window(window)[place]
        return rows, smallest_bucket(self._buckets, int(self._lengths[rows].max()))

    def _arranged(self, window: int) -> np.ndarray:
        """The rows of a window's updates, [updates, batch_size]; the last window of a stream that ends may be smaller."""
        first = window * WINDOW
        updates = min(WINDOW, len(self) - first)
        span = range(first * self.batch_size, (first + updates) * self.batch_size)
        rows = np.array([self._order[index] for index in span])
        by_length = np.argsort(self._lengths[rows], kind="stable").reshape(updates, self.batch_size)
        shuffled = np.random.default_rng([self._seed, window]).permutation(updates)
        return rows[np.sort(by_length[shuffled], axis=1)]


def smallest_bucket(buckets: Sequence[int], length: int) -> int:
    """The first of rising `buckets` that holds `length` tokens."""
    return next(bucket for bucket in buckets if bucket >= length)
