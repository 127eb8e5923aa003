"""Continuous batching: rows that end make room for rows that wait, so that the device decodes no dead ones.

Decoding is left where the host has something to do: take finished rows, admit waiting ones, give the cache more slots, or go on
with fewer rows. When that happens depends on nothing but the call, so a call made twice gives the same bits.
"""

import dataclasses
from collections import deque
from collections.abc import Sequence

import jax
import numpy as np

from tunix_lab.generate.cache import Cache, bucket
from tunix_lab.generate.decode import Arrivals, Call
from tunix_lab.generate.programs import MIN_NEW, MIN_SLOTS, Programs, prompt_batch

# A cache of this many slots is read whole; where more may be needed, it grows as the rows do.
_FIRST_SLOTS = 256
# Fewer rows are decoded only if at least so many remain and the longest has this many tokens to go: it costs a compilation.
_MIN_ROWS, _MIN_STEPS = 4, 32
# A CPU takes half the time for one row as for two to four, because it need not prepare the weights for a product of matrices.
_LAST_ROWS = {"cpu": 1}
# Rows are replaced when this part of them has ended.
_REPLACED = 8


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt, and the rows that continue it.

    Attributes:
      prompt: token ids.
      sample_ids: one per row, its identity for the random numbers.
    """

    prompt: np.ndarray
    sample_ids: Sequence[int] | np.ndarray


@dataclasses.dataclass(frozen=True)
class Finished:
    """What one row generated, on the host.

    Attributes:
      tokens: ids, int32 [n], the terminator included.
      logps: log-probability of each at the sampling temperature, nats, float32 [n].
      logits: from which each was drawn, float32 [n, vocab]; None if nobody asked.
    """

    tokens: np.ndarray
    logps: np.ndarray
    logits: np.ndarray | None


def run(
    programs: Programs,
    leaves: Sequence[jax.Array],
    requests: Sequence[Request],
    call: Call,
    budget: int,
    *,
    max_rows: int | None = None,
    vocab: int | None = None,
) -> list[Finished]:
    """Generates all rows of the requests.

    Args:
      programs: of the model.
      leaves: of its state.
      requests: prompts and their rows.
      call: what all rows share.
      budget: tokens of a row at most.
      max_rows: rows decoded side by side at most; None is all.
      vocab: size of the vocabulary, if the logits are wanted.

    Returns:
      One per row, in the order of the requests.
    """
    return _Run(programs, leaves, requests, call, budget, max_rows, vocab).finish()


@dataclasses.dataclass(frozen=True)
class _Row:
    """A row that waits for a place.

    Attributes:
      number: of the row in the output.
      prompt: its token ids.
      prompt_row: where the prompt lies in the cache that was prefilled.
      sample_id: its identity for the random numbers.
    """

    number: int
    prompt: np.ndarray
    prompt_row: int
    sample_id: int


@dataclasses.dataclass
class _Waiting:
    """Prompts in a cache of their own, made by `prefill`, and those of their rows that wait for a place."""

    cache: Cache
    rows: deque[_Row]


class _Run:
    """One call: who waits, who is where, who has finished."""

    def __init__(self, programs, leaves, requests, call, budget, max_rows, vocab):
        self.programs, self.leaves, self.call, self.budget = programs, leaves, call, budget
        self.requests, self.next_request, self.next_output = requests, 0, 0
        n_rows = sum(len(request.sample_ids) for request in requests)
        self.finished: list[Finished | None] = [None] * n_rows
        size = bucket(n_rows, smallest=1)
        size = size if max_rows is None else min(size, max_rows)
        multiple = programs.row_multiple
        size = -(-size // multiple) * multiple
        # Prompts whose rows fill the batch are prefilled at once.
        answers = max(len(request.sample_ids) for request in requests)
        self.n_prompts = bucket(-(-size // answers), smallest=multiple)
        longest = max(len(request.prompt) for request in requests)
        self.most_slots = bucket(longest + budget, smallest=MIN_SLOTS)
        self.slots = min(self.most_slots, bucket(longest + 1, smallest=_FIRST_SLOTS))
        self.owner = np.full(size, -1)  # number in the output of the row in each place
        self.place, self.n_new = np.zeros(size, int), np.zeros(size, int)
        self.rows = programs.empty(size, self.slots, bucket(budget, smallest=MIN_NEW), vocab)
        self.waiting: _Waiting | None = None

    def finish(self) -> list[Finished]:
        """Runs until nobody waits and nobody is decoded."""
        while True:
            self._admit()
            if not self._is_live().any():
                return self.finished
            self.rows, status = self.programs.decode(self.leaves, self.rows, self.call, np.int32(self._leave_at()))
            live, self.place, self.n_new = np.array(status).T
            self._collect(np.flatnonzero(self._is_live() & (live == 0)))
            self._keep_fewer()
            if self._is_live().any() and self.place[self._is_live()].max() >= self.slots:
                self.slots *= 2
                self.rows = self.programs.grow(self.rows, self.slots)

    def _is_live(self) -> np.ndarray:
        return self.owner >= 0

    def _waits(self) -> bool:
        return self.waiting is not None or self.next_request < len(self.requests)

    def _leave_at(self) -> int:
        """How many rows may be left when decoding is."""
        size, n_live = len(self.owner), int(self._is_live().sum())
        if self._waits():
            return max(0, n_live - max(1, size // _REPLACED))
        wanted = size // 2 if size // 2 >= _MIN_ROWS else _LAST_ROWS.get(jax.default_backend(), _MIN_ROWS)
        return wanted if n_live > wanted and self._fewer(wanted) else 0

    def _fewer(self, n: int) -> int | None:
        """Rows of a smaller batch that holds n; None if it is not worth while."""
        to_go = self.budget - int(self.n_new[self._is_live()].min(initial=self.budget))
        multiple = self.programs.row_multiple
        least = _LAST_ROWS.get(jax.default_backend(), _MIN_ROWS) if n == 1 else _MIN_ROWS
        size = bucket(n, smallest=-(-least // multiple) * multiple)
        return size if size <= len(self.owner) // 2 and to_go >= _MIN_STEPS else None

    def _admit(self) -> None:
        """Gives the free places to those who wait."""
        while (free := np.flatnonzero(~self._is_live())).size and self._waits():
            if self.waiting is None:
                self.waiting = self._prepare()
            queue = self.waiting.rows
            places = free[: len(queue)]
            new = [queue.popleft() for _ in places]
            self.rows = self.programs.admit(self.rows, self.waiting.cache, self._arrivals(places, new))
            self.owner[places], self.n_new[places] = [row.number for row in new], 0
            if not queue:
                self.waiting = None

    def _prepare(self) -> _Waiting:
        """Prefills the next prompts."""
        requests = self.requests[self.next_request : self.next_request + self.n_prompts]
        self.next_request += len(requests)
        n = min(self.n_prompts, bucket(len(requests), smallest=self.programs.row_multiple))
        rows = deque()
        for i, request in enumerate(requests):
            for sample_id in request.sample_ids:
                rows.append(_Row(self.next_output, request.prompt, i, sample_id))
                self.next_output += 1
        prompts = prompt_batch([request.prompt for request in requests], n)
        return _Waiting(self.programs.prefill(self.leaves, prompts), rows)

    def _arrivals(self, places: np.ndarray, new: Sequence[_Row]) -> Arrivals:
        def column(values: list, filler: int = 0, dtype=np.int32) -> np.ndarray:
            out = np.full(len(self.owner), filler, dtype)
            out[places] = values
            return out

        return Arrivals(
            source=column([row.prompt_row for row in new], filler=-1),
            last=column([row.prompt[-1] for row in new]),
            place=column([len(row.prompt) - 1 for row in new]),
            sample_ids=column([row.sample_id for row in new], dtype=np.uint32),
            budget=column([self.budget for _ in new]),
        )

    def _collect(self, places: np.ndarray) -> None:
        """Takes what the rows in these places generated, and frees the places."""
        if not places.size:
            return
        arrays = jax.device_get((self.rows.tokens, self.rows.logps, self.rows.logits))
        for place in places:
            parts = [None if array is None else array[place, : self.n_new[place]].copy() for array in arrays]
            self.finished[self.owner[place]] = Finished(*parts)
        self.owner[places] = -1

    def _keep_fewer(self) -> None:
        """Goes on with a smaller batch if half of the rows are gone and nobody waits."""
        live = np.flatnonzero(self._is_live())
        size = self._fewer(len(live))
        if self._waits() or not len(live) or size is None:
            return
        dead = np.flatnonzero(~self._is_live())
        order = np.concatenate([live, dead])[:size].astype(np.int32)
        self.rows = self.programs.keep(self.rows, order)
        self.owner, self.place, self.n_new = self.owner[order], self.place[order], self.n_new[order]
