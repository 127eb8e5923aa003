"""Where training stands in its data: part of every checkpoint, and found again after a restart."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class ResumableIterator(Protocol):
    """An iterator, such as grain's, that can say where it is and go back there."""

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...


class DataPosition:
    """The iterator that training reads, and its place, as far as it can tell."""

    def __init__(self) -> None:
        self._iterator: Iterator[Any] | None = None
        self._state: Any = None

    @property
    def state(self) -> Any:
        """JSON of the place; None if the data cannot tell."""
        return self._iterator.get_state() if isinstance(self._iterator, ResumableIterator) else self._state

    def restore(self, state: Any) -> None:
        """Says where the next `open` is to begin."""
        self._state = state

    def open(self, dataset: Iterable[Any], n_read: int) -> Iterator[Any]:
        """An iterator over `dataset` that stands where training stands.

        Args:
          dataset: micro-batches.
          n_read: how many were read; of data that cannot tell its place they are read again and dropped.
        """
        self._state = self.state  # of an earlier call, or restored
        self._iterator = iter(dataset)
        if isinstance(self._iterator, ResumableIterator):
            if self._state is not None:
                self._iterator.set_state(self._state)
            return self._iterator
        return itertools.islice(self._iterator, n_read, None)
