"""The prompts that training reads, as updates: an iterator whose place can be saved whenever nothing sampled waits."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tunix_lab.sft.data_position import ResumableIterator


class PromptStream(Iterator[Any]):
    """Gives the micro-batches of updates, and the prompts that they are made of to whoever makes them.

    Its state is JSON: how many batches of prompts were read, and the state of their iterator if that can tell it.
    """

    def __init__(self, prompts: Iterable[Any], make: Callable[["PromptStream"], Any]):
        """Begins to read.

        Args:
          prompts: batches of prompts.
          make: gives the next update; StopIteration of the prompts ends the stream.
        """
        self._inner = iter(prompts)
        self._make = make
        self._n_read = 0

    def __next__(self) -> Any:
        return self._make(self)

    def read(self) -> Any:
        """The next batch of prompts. Raises StopIteration at their end."""
        rows = next(self._inner)
        self._n_read += 1
        return rows

    def further(self) -> Any | None:
        """The next batch of prompts; None at their end."""
        try:
            return self.read()
        except StopIteration:
            return None

    def get_state(self) -> dict[str, Any]:
        """The place behind the last rollout; updates of it that were not made yet are no part of it."""
        inner = self._inner.get_state() if isinstance(self._inner, ResumableIterator) else None
        return {"batches_read": self._n_read, "prompts": inner}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on where `get_state` was called; prompts that cannot tell their place are read again and dropped."""
        if isinstance(self._inner, ResumableIterator):
            self._inner.set_state(state["prompts"])
            self._n_read = state["batches_read"]
        else:
            while self._n_read < state["batches_read"]:
                self.read()
