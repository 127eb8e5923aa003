"""Generation by hand: the logits of every row's next token, and a step for the tokens that someone chose."""

import dataclasses

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from tunix_lab.generate.cache import Cache


@dataclasses.dataclass(frozen=True)
class SampleState:
    """Rows in the midst of generation; `Sampler.step` makes the next state and leaves this one as it is.

    Attributes:
      logits: of each row's next token.
      lengths: tokens that each row has, the prompt's included.
      tokens: those that were chosen so far.
      cache: keys and values of all tokens.
    """

    logits: Float[Array, "batch vocab"]
    lengths: Int[np.ndarray, " batch"]
    tokens: Int[np.ndarray, "batch new"]
    cache: Cache


def prompts_of(input_ids: ArrayLike, positions: ArrayLike) -> list[np.ndarray]:
    """The rows of a left-padded batch without their padding.

    Args:
      input_ids: [batch, seq].
      positions: [batch, seq] that count each row's tokens from 0; the last one says how many there are.

    Raises:
      ValueError: the positions do not count left-padded rows.
    """
    input_ids, positions = np.asarray(input_ids), np.asarray(positions)
    if input_ids.shape != positions.shape:
        raise ValueError(f"input_ids {input_ids.shape} and positions {positions.shape} must have one shape")
    lengths = positions[:, -1] + 1
    counted = np.maximum(np.arange(input_ids.shape[1]) - (input_ids.shape[1] - lengths[:, None]), 0)
    if (lengths > input_ids.shape[1]).any() or not np.array_equal(counted, positions):
        raise ValueError("positions must count each row's tokens from 0 up to its end, with padding (position 0) only in front")
    return [row[len(row) - n :] for row, n in zip(input_ids, lengths, strict=True)]
