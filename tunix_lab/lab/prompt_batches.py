"""The batches that reinforcement learning reads: prompts, each with the columns of its row and a number of its own.

Their order is that of every other run, see `data.pipeline`: a pure function of the seed, which can be resumed exactly.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tunix_lab.data.pipeline import train_batches
from tunix_lab.data.prompts import prompt_ids, prompt_text
from tunix_lab.data.rows import Row
from tunix_lab.errors import UserError
from tunix_lab.lab.datasets import Dataset

PromptBatch = dict[str, Any]
"""`prompts` (list of text), `prompt_ids` (list of int32 [P]), `sample_ids` (int64 [B]), and a list for each column."""

_OWN = ("prompts", "prompt_ids", "sample_ids", "completions")


class PromptRows:
    """The prompts of a split by their number, with the columns that all of its rows have."""

    def __init__(self, dataset: Dataset) -> None:
        """Takes the rows that were kept.

        Args:
          dataset: of prompts.

        Raises:
          UserError: a column has a name that stands for something else.
        """
        rows = [part.rows[member[0]] for part in dataset.parts for member in part.members]
        self._prompts = [prompt_text(row) for row in rows]
        self._ids = [prompt_ids(example) for example in dataset.examples]
        self._columns = {name: [row[name] for row in rows] for name in shared_columns(rows)}
        for name in _OWN:
            if name in self._columns:
                raise UserError(
                    f"{dataset.split}: rewards are called with prompts and completions, so the rows' own column {name!r} has no "
                    "name under which they could get it; rename it in the file, or with data.columns"
                )

    def __len__(self) -> int:
        return len(self._prompts)

    def batch(self, rows: np.ndarray, sample_ids: np.ndarray) -> PromptBatch:
        """The prompts with these numbers, under these sample ids."""
        chosen = rows.tolist()
        return {
            "prompts": [self._prompts[row] for row in chosen],
            "prompt_ids": [self._ids[row] for row in chosen],
            "sample_ids": sample_ids.astype(np.int64),
            **{name: [column[row] for row in chosen] for name, column in self._columns.items()},
        }


def shared_columns(rows: Sequence[Row]) -> list[str]:
    """The columns that all rows have, the prompt aside, in the order of their names."""
    return sorted(set.intersection(*(set(row) for row in rows)) - {"prompt"})


class PromptTrainBatches(Iterator[PromptBatch]):
    """An endless iterator over batches of prompts whose place can be saved and restored exactly.

    A sample id says which random numbers answer a prompt. It is the number of the row, plus the number of rows for each epoch
    that has passed: the same whatever the size of batches is, and another one each time that a row comes again. The sources of
    a mixture have epochs of their own; there it is the place in the order in which rows are read.
    """

    def __init__(self, dataset: Dataset, *, prompts: int, seed: int, process_index: int = 0, process_count: int = 1) -> None:
        """Begins at the first row of the first epoch.

        Args:
          dataset: of prompts.
          prompts: of one batch, over all processes.
          seed: of the order.
          process_index: this process.
          process_count: number of processes; it must divide `prompts`.

        Raises:
          UserError: the sizes do not divide, or a column cannot be given to rewards.
        """
        self._rows = PromptRows(dataset)
        self._mixture = dataset.mixture()
        size = prompts // process_count
        self._share = np.arange(size) + size * process_index
        numbers = [{"row": np.int32(row)} for row in range(len(self._rows))]
        self._inner = train_batches(
            numbers,
            batch_size=prompts,
            seed=seed,
            mixture=self._mixture,
            process_index=process_index,
            process_count=process_count,
        )

    def __next__(self) -> PromptBatch:
        places = self.get_state()["next_row"] + self._share
        rows = next(self._inner)["row"]
        epochs = places // len(self._rows)
        return self._rows.batch(rows, places if self._mixture is not None else rows + epochs * len(self._rows))

    def get_state(self) -> dict[str, Any]:
        """The place in the order, see `data.pipeline.TrainBatches`."""
        return self._inner.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues where `get_state` was called. Raises UserError where the state is of other data."""
        self._inner.set_state(state)


class PromptEvalBatches:
    """A pass over prompts in their order; iterating again repeats it. The last batch may be smaller. Ids are row numbers."""

    def __init__(self, dataset: Dataset, prompts: int) -> None:
        self._rows = PromptRows(dataset)
        self._size = prompts

    def __len__(self) -> int:
        return -(-len(self._rows) // self._size)

    def __iter__(self) -> Iterator[PromptBatch]:
        for first in range(0, len(self._rows), self._size):
            rows = np.arange(first, min(first + self._size, len(self._rows)))
            yield self._rows.batch(rows, rows)
