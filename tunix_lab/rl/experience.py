"""Sampled answers as the arrays that training reads.

A batch is a dict of host arrays, one row per answer: prompts are padded on the left, answers on the right, so that the places of
all answers' tokens agree.

  prompt_ids int32, prompt_mask bool                        [rows, prompt]
  completion_ids int32, completion_mask bool                [rows, tokens]   the mask is True where a token is real
  loss_mask bool, advantages float32, sampler_logps float32 [rows, tokens]   a token trains where loss_mask is True
  is_row bool                                               [rows]           False for rows that only fill up a batch

and, where the algorithm has them, old_logps, ref_logps, old_values, returns: float32 [rows, tokens].

What a model computes of it goes through `rl.packing`, which puts several answers into a row.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from tunix_lab.generate.cache import bucket

Batch = dict[str, np.ndarray]

_UNTRIMMED = 512  # so many tokens are cheap, and arrays of always the same shape save compilations


def pad(rows: Sequence[np.ndarray], length: int, *, left: bool, dtype: str = "int32") -> tuple[np.ndarray, np.ndarray]:
    """Rows of different lengths as one array [rows, length], padded with 0, and the mask of what is real."""
    out, mask = np.zeros((len(rows), length), dtype), np.zeros((len(rows), length), bool)
    for row, real, given in zip(out, mask, rows, strict=True):
        place = slice(length - len(given), length) if left else slice(0, len(given))
        row[place], real[place] = given, True
    return out, mask


def token_batch(
    prompts: Sequence[np.ndarray],
    completions: Sequence[np.ndarray],
    sampler_logps: Sequence[np.ndarray],
    trained: Sequence[bool],
    *,
    max_prompt: int,
    max_completion: int,
) -> Batch:
    """The arrays of answers, trimmed where much of what may come did not; advantages are zero.

    Args:
      prompts: ids int32 [P] of each answer's prompt.
      completions: ids int32 [T] of each answer.
      sampler_logps: float32 [T] of each answer's tokens, nats.
      trained: whether an answer trains anything.
      max_prompt: tokens of the longest prompt that may come.
      max_completion: tokens of the longest answer that may come.
    """
    prompt_length = min(max_prompt, bucket(max(map(len, prompts)), smallest=_UNTRIMMED))
    length = min(max_completion, bucket(max(map(len, completions)), smallest=_UNTRIMMED))
    prompt_ids, prompt_mask = pad(prompts, prompt_length, left=True)
    completion_ids, completion_mask = pad(completions, length, left=False)
    logps, _ = pad(sampler_logps, length, left=False, dtype="float32")
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "loss_mask": completion_mask & np.asarray(trained, bool)[:, None],
        "advantages": np.zeros(completion_ids.shape, np.float32),
        "sampler_logps": logps,
        "is_row": np.ones(len(completions), bool),
    }


def given_batch(
    prompt_tokens: np.ndarray,
    completion_tokens: np.ndarray,
    pad_id: int | None,
    eos_id: int | None,
    prompt_mask: np.ndarray | None = None,
    completion_mask: np.ndarray | None = None,
) -> Batch:
    """The tokens of a batch and their masks, from arrays that somebody else padded, and maybe without masks.

    For the arguments see `RLCluster.get_old_per_token_logps`.
    """
    prompts, answers = np.asarray(prompt_tokens, np.int32), np.asarray(completion_tokens, np.int32)
    if prompt_mask is None:
        prompt_mask = np.maximum.accumulate(prompts != pad_id, axis=1)
    if completion_mask is None:
        real = np.maximum.accumulate((answers != pad_id)[:, ::-1], axis=1)[:, ::-1]
        is_end = answers == eos_id
        after = np.cumsum(is_end, axis=1) - is_end > 0
        completion_mask = np.where(is_end.any(axis=1, keepdims=True), ~after, real)
    masks = {"prompt_mask": np.asarray(prompt_mask, bool), "completion_mask": np.asarray(completion_mask, bool)}
    return {"prompt_ids": prompts, "completion_ids": answers, **masks}


def rows_of(batch: Mapping[str, np.ndarray], rows: np.ndarray | slice) -> Batch:
    """Some rows of a batch."""
    return {name: array[rows] for name, array in batch.items()}


def fill_up(batch: Batch, rows: int) -> Batch:
    """The batch with copies of its last row behind it that train nothing, `rows` in all."""
    n = len(batch["loss_mask"])
    filled = rows_of(batch, np.minimum(np.arange(rows), n - 1))
    is_row = np.arange(rows) < n
    filled["loss_mask"] = filled["loss_mask"] & is_row[:, None]
    filled["is_row"] = filled["is_row"] & is_row
    return filled


def tokens_of(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tokens of a batch and their masks, under the names that the methods of `RLCluster` have for them."""
    masks = {name: batch[name] for name in ("prompt_mask", "completion_mask")}
    return {"prompt_tokens": batch["prompt_ids"], "completion_tokens": batch["completion_ids"], **masks}
