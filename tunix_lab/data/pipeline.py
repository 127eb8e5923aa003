"""Batches of tokenised examples: a resumable endless stream for training, a repeatable pass for evaluation.

Order is a pure function of seed and row number (`order.py`). An optimizer update takes the next `batch_size` rows of one global
order, so its content depends neither on the size of micro-batches nor on the number of processes or threads; each process reads
its share of the rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tunix_lab.data.order import ByLength, Share, row_order, smallest_bucket
from tunix_lab.errors import UserError

Batch = dict[str, np.ndarray]

LOSS_MASKS = ("input_mask", "chosen_mask", "rejected_mask")
"""Masks that say which tokens count; all False in a row that only fills up a batch."""


class TrainBatches(Iterator[Batch]):
    """An iterator over micro-batches whose place can be saved and restored exactly. Made by `train_batches`."""

    def __init__(self, inner: Any, *, identity: Mapping[str, Any], micro_batch_size: int) -> None:
        self._inner = inner  # grain's DatasetIterator; grain is imported late because it loads jax
        self._identity = dict(identity)  # all that the order depends on
        self._micro_batch_size = micro_batch_size

    def __next__(self) -> Batch:
        return next(self._inner)

    def get_state(self) -> dict[str, Any]:
        """The place in the stream: JSON-serialisable, the same on every process and for every size of micro-batch."""
        return {**self._identity, "next_row": self._inner.get_state()["next_index"] * self._micro_batch_size}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues where `get_state` was called.

        Raises:
          UserError: the state belongs to another seed, dataset or order, or lies inside a micro-batch of the present size.
        """
        for name in sorted((self._identity.keys() | state.keys()) - {"next_row"}):
            was, value = state.get(name), self._identity.get(name)
            if was != value:
                raise UserError(
                    f"data: cannot resume: the checkpoint was made with {name} = {was}, this run has {value}; "
                    "restore what the run began with, or start a new run"
                )
        index, rest = divmod(state["next_row"], self._micro_batch_size)
        if rest:
            raise UserError(
                f"data: cannot resume at row {state['next_row']} with micro batches of {self._micro_batch_size}; "
                "use a size that divides it"
            )
        self._inner.set_state({"next_index": index})


def train_batches(
    examples: Sequence[Mapping[str, np.ndarray]],
    *,
    batch_size: int,
    seed: int,
    micro_batch_size: int | None = None,
    num_epochs: int | None = None,
    mixture: Sequence[Share] | None = None,
    buckets: Sequence[int] | None = None,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 0,
) -> TrainBatches:
    """Micro-batches for training, shuffled anew each epoch.

    Args:
      examples: dicts of arrays of the same keys and shapes.
      batch_size: rows of one optimizer update, over all processes. Rows left over at the very end are not used.
      seed: of the order, below 2**32.
      micro_batch_size: rows of one forward pass, over all processes; None is `batch_size`, which it must divide.
      num_epochs: passes over the examples; None never ends.
      mixture: for examples of several sources, one after the other: rows and weight of each, see `order.row_order`.
      buckets: lengths, rising to that of the examples: rows of similar length make up an update, which is cut to the smallest
        that holds it, see `order.ByLength`. All micro-batches of an update have one shape, and there are no more shapes than
        buckets. None leaves all rows at their length.
      process_index: this process (`jax.process_index()`).
      process_count: number of processes (`jax.process_count()`); it must divide `micro_batch_size`.
      num_threads: threads that gather batches ahead of time; 0 gathers when asked, which takes microseconds for rows in memory
        and leaves nothing running when the iterator goes.

    Returns:
      An iterator over dicts of arrays `[micro_batch_size / process_count, ...]`: the rows of this process. The rows of all
      processes, joined in their order, are the global micro-batch.

    Raises:
      UserError: sizes do not divide, or there are not enough examples for one update.
    """
    import grain

    micro = batch_size if micro_batch_size is None else micro_batch_size
    if batch_size % micro:
        raise UserError(f"data: batch_size {batch_size} is not a multiple of micro_batch_size {micro}")
    share = _share(micro, process_index, process_count)
    columns = _columns(examples)
    if num_epochs is not None and len(examples) * num_epochs < batch_size:
        raise UserError(f"data: {len(examples)} rows x {num_epochs} epochs do not fill one batch of {batch_size}")
    order = row_order(len(examples), seed, num_epochs, mixture)
    identity: dict[str, Any] = {"seed": seed, "num_rows": len(examples)}
    if mixture is not None:
        identity["mixture"] = [[part.rows, part.weight] for part in mixture]
    if buckets is None:
        micro_batches = order.batch(micro, drop_remainder=True)
        if num_epochs is not None:
            micro_batches = micro_batches[: len(examples) * num_epochs // batch_size * (batch_size // micro)]
        gathered = micro_batches.map(lambda rows: _gather(columns, rows[share]))
    else:
        identity |= {"buckets": list(buckets), "batch_size": batch_size}
        by_length = ByLength(order, _lengths(columns), buckets, batch_size, seed)
        count = len(by_length) * (batch_size // micro)
        gathered = grain.MapDataset.range(count).map(lambda index: _bucketed(columns, by_length, index, micro, share))
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    iterator = iter(gathered.to_iter_dataset(options))
    return TrainBatches(iterator, identity=identity, micro_batch_size=micro)


def _gather(columns: Batch, rows: np.ndarray) -> Batch:
    return {name: column[rows] for name, column in columns.items()}


def _bucketed(columns: Batch, by_length: ByLength, index: int, micro: int, share: slice) -> Batch:
    """Micro-batch number `index`, cut to the bucket of its update."""
    update, begin = divmod(index * micro, by_length.batch_size)
    rows, length = by_length[update]
    return _gather(_cut(columns, length), rows[begin : begin + micro][share])


def _cut(columns: Batch, length: int) -> Batch:
    return {name: column[:, :length] for name, column in columns.items()}


def _lengths(columns: Batch) -> np.ndarray:
    """Real tokens of each row."""
    return columns["valid"].sum(axis=1)


class EvalBatches:
    """A pass over examples in a fixed order; iterating again repeats it. Made by `eval_batches`."""

    def __init__(self, columns: Batch, batch_size: int, share: slice, buckets: Sequence[int] | None) -> None:
        self._columns = columns
        self._num_rows = len(next(iter(columns.values())))
        self._batch_size = batch_size
        self._share = share
        self._buckets = buckets
        if buckets is not None:  # short rows together, or one long row would make every batch long
            self._lengths = _lengths(columns)
            self._order = np.argsort(self._lengths, kind="stable")

    def __len__(self) -> int:
        return -(-self._num_rows // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self._num_rows, self._batch_size):
            rows = np.arange(start, start + self._batch_size)
            real = (rows < self._num_rows)[self._share]
            rows = np.minimum(rows, self._num_rows - 1)
            columns = self._columns
            if self._buckets is not None:
                rows = self._order[rows]
                columns = _cut(columns, smallest_bucket(self._buckets, self._lengths[rows].max()))
            batch = _gather(columns, rows[self._share])
            for name in LOSS_MASKS:
                if name in batch:
                    batch[name] = batch[name] & real[:, None]
            yield batch


def eval_batches(
    examples: Sequence[Mapping[str, np.ndarray]],
    batch_size: int,
    *,
    buckets: Sequence[int] | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> EvalBatches:
    """Batches for evaluation: every example exactly once.

    The last batch is filled up with copies of an example whose loss masks are all False: rows of weight zero, with real tokens to
    attend to, so a mean weighted by the masks does not depend on `batch_size`.

    Args:
      examples: dicts of arrays of the same keys and shapes.
      batch_size: rows, over all processes.
      buckets: lengths, rising to that of the examples: rows come sorted by length, and each batch is cut to the smallest that
        holds it. None: rows come in their order, all batches of one shape.
      process_index: this process.
      process_count: number of processes; it must divide `batch_size`.
    """
    return EvalBatches(_columns(examples), batch_size, _share(batch_size, process_index, process_count), buckets)


def _columns(examples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
    """The examples as one array per key, [rows, ...]."""
    if not examples:
        raise UserError("data: there are no examples")
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def _share(rows: int, process_index: int, process_count: int) -> slice:
    """The rows of a batch that belong to this process."""
    if rows < 1 or rows % process_count:
        raise UserError(f"data: {rows} rows cannot be shared among {process_count} processes; use a positive multiple")
    size = rows // process_count
    return slice(process_index * size, (process_index + 1) * size)
