"""How what is sampled at once is cut into updates, and those into micro-batches."""

import dataclasses

import numpy as np

from tunix_lab.errors import UserError
from tunix_lab.rl.experience import Batch, fill_up, rows_of

_SHUFFLE = 3  # purpose of the random numbers that order the prompts


@dataclasses.dataclass(frozen=True)
class UpdatePlan:
    """The updates of one rollout: all of its prompts, `mini` at a time, `iterations` times.

    Attributes:
      n_prompts: of the rollout.
      group: answers to each prompt; they stay together.
      mini: prompts of one update.
      micro: prompts of one forward pass.
      iterations: times that every answer is trained on.
      shuffle: seed, and updates made before, by which the prompts are dealt out; None keeps their order.
    """

    n_prompts: int
    group: int
    mini: int
    micro: int
    iterations: int
    shuffle: tuple[int, int] | None = None

    @classmethod
    def of(
        cls, n_prompts: int, group: int, mini: int | None, micro: int | None, iterations: int, shuffle: tuple[int, int] | None
    ) -> "UpdatePlan":
        """A plan with the sizes that are None filled in: one update, one forward pass.

        Raises:
          UserError: the prompts do not divide.
        """
        mini = min(mini or n_prompts, n_prompts)
        if n_prompts % mini:
            raise UserError(
                f"a batch of {n_prompts} prompts cannot be divided into updates of {mini} (mini_batch_size); take a multiple"
            )
        return cls(n_prompts, group, mini, min(micro or mini, mini), iterations, shuffle)

    @property
    def n_updates(self) -> int:
        """Updates that are made."""
        return self.iterations * (self.n_prompts // self.mini)

    @property
    def first_rows(self) -> np.ndarray:
        """The rows of the first update, in its order."""
        return self._rows(self._order(0)[: self.mini])

    def updates(self, batch: Batch) -> list[list[Batch]]:
        """The micro-batches of every update; where rows are missing, copies that weigh nothing fill them up."""
        batch = fill_up(batch, self.n_prompts * self.group)
        updates = []
        for iteration in range(self.iterations):
            order = self._order(iteration)
            for begin in range(0, self.n_prompts, self.mini):
                part, size = rows_of(batch, self._rows(order[begin : begin + self.mini])), self.micro * self.group
                pieces = [rows_of(part, slice(i, i + size)) for i in range(0, self.mini * self.group, size)]
                updates.append([fill_up(piece, size) for piece in pieces])
        return updates

    def _rows(self, prompts: np.ndarray) -> np.ndarray:
        return (prompts[:, None] * self.group + np.arange(self.group)).ravel()

    def _order(self, iteration: int) -> np.ndarray:
        if self.shuffle is None or self.n_updates == 1:
            return np.arange(self.n_prompts)
        seed, step = self.shuffle
        return np.random.default_rng([seed, _SHUFFLE, step, iteration]).permutation(self.n_prompts)
