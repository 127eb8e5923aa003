"""Continuous batching: rows that end make room for rows that wait, so that the device decodes no dead ones.

The device runs two programs, `prefill` and `decode`; decoding is left where the host has something to do: take finished rows,
admit waiting ones, give the cache more slots, or go on with fewer rows. When that happens depends on nothing but the call, so a
call made twice gives the same bits.
"""

import dataclasses
from collections import deque
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tunix_lab.generate.cache import Cache, bucket, grown
from tunix_lab.generate.config import CacheConfig
from tunix_lab.generate.decode import Arrivals, Call, Rows, admit, decode, prefill

# Smallest shapes; larger ones double.
_MIN_PROMPT, _MIN_NEW, _MIN_SLOTS = 16, 16, 64
# A cache of this many slots is read whole; where more may be needed, it grows as the rows do.
_FIRST_SLOTS = 256
# Fewer rows are decoded only if at least so many remain and the longest has this many tokens to go: it costs a compilation.
_MIN_ROWS, _MIN_STEPS = 4, 32
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


class Engine:
    """The compiled programs of one model, and the host's side of running them."""

    def __init__(self, graph: nnx.GraphDef, treedef: jax.tree_util.PyTreeDef, config: CacheConfig, dtype: str, mesh: Mesh | None):
        """Prepares the programs; each compiles when a shape is first met.

        Args:
          graph: of the model.
          treedef: of its state, whose leaves come with each run.
          config: shape of its cache.
          dtype: of the cache.
          mesh: where the model lies: rows are split over "fsdp", heads over "tp"; None is one device.
        """
        self.mesh = mesh
        model = lambda leaves: nnx.merge(graph, jax.tree.unflatten(treedef, leaves))  # noqa: E731

        def run_prefill(leaves, tokens):
            return self._split(prefill(model(leaves), tokens, config=config, dtype=dtype))

        def run_decode(leaves, rows, call, leave_at):
            rows, status = decode(model(leaves), rows, call, leave_at)
            return self._split(rows), status

        empty = lambda *shape: self._split(Rows.empty(config, dtype, *shape))  # noqa: E731
        self.prefill = jax.jit(run_prefill)
        self.decode = jax.jit(run_decode, donate_argnums=1)
        self.empty = jax.jit(empty, static_argnums=(0, 1, 2, 3))
        self.admit = jax.jit(lambda *args: self._split(admit(*args)), donate_argnums=0)
        self.grow = jax.jit(lambda rows, slots: self._split(_with_slots(rows, slots)), static_argnums=1)
        self.keep = jax.jit(lambda rows, order: self._split(jax.tree.map(lambda a: a[order], rows)))

    @property
    def row_multiple(self) -> int:
        """Rows come in multiples of this, so that they split over the devices."""
        return 1 if self.mesh is None else self.mesh.shape.get("fsdp", 1)

    def run(
        self,
        leaves: Sequence[jax.Array],
        requests: Sequence[Request],
        call: Call,
        budget: int,
        *,
        max_rows: int | None = None,
        vocab: int | None = None,
    ) -> list[Finished]:
        """Generates all rows.

        Args:
          leaves: of the model's state.
          requests: prompts and their rows.
          call: what all rows share.
          budget: tokens of a row at most.
          max_rows: rows decoded side by side at most; None is all.
          vocab: size of the vocabulary, if the logits are wanted.

        Returns:
          One per row, in the order of the requests.
        """
        return _Run(self, leaves, requests, call, budget, max_rows, vocab).finish()

    def _split(self, tree):
        """Rows over "fsdp" and key-value heads over "tp", where those divide."""
        if self.mesh is None:
            return tree
        return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, NamedSharding(self.mesh, self._spec(a))), tree)

    def _spec(self, array: jax.Array) -> PartitionSpec:
        divides = lambda axis, size: axis in self.mesh.shape and size % self.mesh.shape[axis] == 0  # noqa: E731
        rows = "fsdp" if divides("fsdp", array.shape[0]) else None
        is_cache = array.ndim == 4
        return PartitionSpec(rows, None, "tp") if is_cache and divides("tp", array.shape[2]) else PartitionSpec(rows)


def _with_slots(rows: Rows, slots: int) -> Rows:
    return dataclasses.replace(rows, cache=grown(rows.cache, slots))


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

    def __init__(self, engine, leaves, requests, call, budget, max_rows, vocab):
        self.engine, self.leaves, self.call, self.budget = engine, leaves, call, budget
        self.requests, self.next_request, self.next_output = requests, 0, 0
        n_rows = sum(len(request.sample_ids) for request in requests)
        self.finished: list[Finished | None] = [None] * n_rows
        size = bucket(n_rows, smallest=1)
        size = size if max_rows is None else min(size, max_rows)
        multiple = engine.row_multiple
        size = -(-size // multiple) * multiple
        # Prompts whose rows fill the batch are prefilled at once.
        answers = max(len(request.sample_ids) for request in requests)
        self.n_prompts = bucket(-(-size // answers), smallest=multiple)
        longest = max(len(request.prompt) for request in requests)
        self.most_slots = bucket(longest + budget, smallest=_MIN_SLOTS)
        self.slots = min(self.most_slots, bucket(longest + 1, smallest=_FIRST_SLOTS))
        self.owner = np.full(size, -1)  # number in the output of the row in each place
        self.place, self.n_new = np.zeros(size, int), np.zeros(size, int)
        self.rows = engine.empty(size, self.slots, bucket(budget, smallest=_MIN_NEW), vocab)
        self.waiting: _Waiting | None = None

    def finish(self) -> list[Finished]:
        """Runs until nobody waits and nobody is decoded."""
        while True:
            self._admit()
            if not self._is_live().any():
                return self.finished
            self.rows, status = self.engine.decode(self.leaves, self.rows, self.call, np.int32(self._leave_at()))
            live, self.place, self.n_new = np.array(status)
            self._collect(np.flatnonzero(self._is_live() & (live == 0)))
            self._keep_fewer()
            if self._is_live().any() and self.place[self._is_live()].max() >= self.slots:
                self.slots *= 2
                self.rows = self.engine.grow(self.rows, self.slots)

    def _is_live(self) -> np.ndarray:
        return self.owner >= 0

    def _waits(self) -> bool:
        return self.waiting is not None or self.next_request < len(self.requests)

    def _leave_at(self) -> int:
        """How many rows may be left when decoding is."""
        size, n_live = len(self.owner), int(self._is_live().sum())
        if self._waits():
            return max(0, n_live - max(1, size // _REPLACED))
        return size // 2 if n_live > size // 2 and self._fewer(size // 2) else 0

    def _fewer(self, n: int) -> int | None:
        """Rows of a smaller batch that holds n; None if it is not worth while."""
        to_go = self.budget - int(self.n_new[self._is_live()].min(initial=self.budget))
        multiple = self.engine.row_multiple
        size = bucket(n, smallest=-(-_MIN_ROWS // multiple) * multiple)
        return size if size <= len(self.owner) // 2 and to_go >= _MIN_STEPS else None

    def _admit(self) -> None:
        """Gives the free places to those who wait."""
        while (free := np.flatnonzero(~self._is_live())).size and self._waits():
            if self.waiting is None:
                self.waiting = self._prepare()
            queue = self.waiting.rows
            places = free[: len(queue)]
            new = [queue.popleft() for _ in places]
            self.rows = self.engine.admit(self.rows, self.waiting.cache, self._arrivals(places, new))
            self.owner[places], self.n_new[places] = [row.number for row in new], 0
            if not queue:
                self.waiting = None

    def _prepare(self) -> _Waiting:
        """Prefills the next prompts."""
        requests = self.requests[self.next_request : self.next_request + self.n_prompts]
        self.next_request += len(requests)
        n = min(self.n_prompts, bucket(len(requests), smallest=self.engine.row_multiple))
        width = bucket(max(len(request.prompt) for request in requests) - 1, smallest=_MIN_PROMPT)
        tokens, rows = np.zeros((n, width), np.int32), deque()
        for i, request in enumerate(requests):
            tokens[i, : len(request.prompt) - 1] = request.prompt[:-1]
            for sample_id in request.sample_ids:
                rows.append(_Row(self.next_output, request.prompt, i, sample_id))
                self.next_output += 1
        return _Waiting(self.engine.prefill(self.leaves, tokens), rows)

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
        self.rows = self.engine.keep(self.rows, order)
        self.owner, self.place, self.n_new = self.owner[order], self.place[order], self.n_new[order]
