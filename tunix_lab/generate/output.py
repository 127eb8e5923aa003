"""What a sampler hands back."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class SamplerOutput:
    """One entry per row; the rows of the first prompt come first, then those of the second, …

    Attributes:
      text: the generated text without special tokens (with `echo` the prompt before it).
      tokens: generated ids, int32 [n], the terminator included; with `pad_output` all of one length, filled up behind.
      logprobs: log-probability of each of `tokens` at the sampling temperature over the whole vocabulary, nats (at temperature 0
        and in a beam search: at temperature 1), float32 [n]; padding has 0.
      finish_reason: "stop" if the row ended with a stop token, "length" if the budget cut it.
      lengths: tokens of each row, the terminator included, int32 [rows]; what `tokens` has beyond is padding.
      padded_prompt_tokens: each row's prompt, left-padded, int32 [rows, prompt].
      logits: from which each token was drawn, float32 [n, vocab]; None unless asked for.
    """

    text: list[str]
    tokens: list[np.ndarray]
    logprobs: list[np.ndarray]
    finish_reason: list[str]
    lengths: np.ndarray
    padded_prompt_tokens: np.ndarray
    logits: list[np.ndarray] | None = None


def left_padded(prompts: Sequence[Sequence[int] | np.ndarray], pad_id: int, width: int | None = None) -> np.ndarray:
    """The prompts as one array, int32 [prompts, width]; None is as wide as the longest."""
    out = np.full((len(prompts), width or max(map(len, prompts))), pad_id, np.int32)
    for row, prompt in zip(out, prompts, strict=True):
        row[len(row) - len(prompt) :] = prompt
    return out


def right_padded(output: SamplerOutput, width: int, pad_id: int) -> SamplerOutput:
    """The same rows, all `width` tokens long: ids filled up with `pad_id`, log-probabilities and logits with 0."""

    def pad(row: np.ndarray, filler: int) -> np.ndarray:
        return np.pad(row, [(0, width - len(row))] + [(0, 0)] * (row.ndim - 1), constant_values=filler)

    return dataclasses.replace(
        output,
        tokens=[pad(row, pad_id) for row in output.tokens],
        logprobs=[pad(row, 0) for row in output.logprobs],
        logits=None if output.logits is None else [pad(row, 0) for row in output.logits],
    )
