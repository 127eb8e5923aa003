"""Takes an example apart for people: its sequences, token by token, with what is trained."""

import dataclasses

import numpy as np

from tunix_lab.data.examples import Example
from tunix_lab.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Part:
    """One sequence of an example.

    Attributes:
      name: "row", "prompt", "chosen" or "rejected"; "segment 1", "segment 2", … of a packed row.
      tokens: the text of each real token.
      trained: whether each of them is a target.
      padding: positions without a token.
    """

    name: str
    tokens: list[str]
    trained: list[bool]
    padding: int


def parts_of(example: Example, tokenizer: Tokenizer) -> list[Part]:
    """The sequences of an example of any kind; of a packed one its segments, the last with the padding."""
    if "segment_ids" in example:
        return _segments(example, tokenizer)
    if "input_tokens" in example:
        return [_part("row", example["input_tokens"], example["valid"], example["input_mask"], tokenizer)]
    untrained = np.zeros_like(example["prompt_mask"])
    prompt = _part("prompt", example["prompt_ids"], example["prompt_mask"], untrained, tokenizer)
    # Prompts to be answered stand alone.
    answers = [(n, example[f"{n}_ids"], example[f"{n}_mask"]) for n in ("chosen", "rejected") if f"{n}_ids" in example]
    return [prompt, *(_part(name, ids, mask, mask, tokenizer) for name, ids, mask in answers)]


def _segments(example: Example, tokenizer: Tokenizer) -> list[Part]:
    ids, last = example["segment_ids"], int(example["segment_ids"].max())
    parts = []
    for number in range(1, last + 1):
        here = (ids == number) | ((ids == 0) & (number == last))
        columns = (example[name][here] for name in ("input_tokens", "valid", "input_mask"))
        parts.append(_part(f"segment {number}", *columns, tokenizer))
    return parts


def _part(name: str, ids: np.ndarray, real: np.ndarray, trained: np.ndarray, tokenizer: Tokenizer) -> Part:
    tokens = [tokenizer.token_text(token) for token in ids[real].tolist()]
    return Part(name, tokens, trained[real].tolist(), int((~real).sum()))
