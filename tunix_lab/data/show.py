"""Takes an example apart for people: its sequences, token by token, with what is trained."""

import dataclasses

import numpy as np

from tunix_lab.data.examples import Example
from tunix_lab.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Part:
    """One sequence of an example.

    Attributes:
      name: "row", "prompt", "chosen" or "rejected".
      tokens: the text of each real token.
      trained: whether each of them is a target.
      padding: positions without a token.
    """

    name: str
    tokens: list[str]
    trained: list[bool]
    padding: int


def parts_of(example: Example, tokenizer: Tokenizer) -> list[Part]:
    """The sequences of a supervised or a preference example."""
    if "input_tokens" in example:
        return [_part("row", example["input_tokens"], example["valid"], example["input_mask"], tokenizer)]
    untrained = np.zeros_like(example["prompt_mask"])
    prompt = _part("prompt", example["prompt_ids"], example["prompt_mask"], untrained, tokenizer)
    answers = [(name, example[f"{name}_ids"], example[f"{name}_mask"]) for name in ("chosen", "rejected")]
    return [prompt, *(_part(name, ids, mask, mask, tokenizer) for name, ids, mask in answers)]


def _part(name: str, ids: np.ndarray, real: np.ndarray, trained: np.ndarray, tokenizer: Tokenizer) -> Part:
    tokens = [tokenizer.token_text(token) for token in ids[real].tolist()]
    return Part(name, tokens, trained[real].tolist(), int((~real).sum()))
