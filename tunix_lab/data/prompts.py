"""Turns rows into the prompts that reinforcement learning samples answers to, with a ledger of their tokens.

An example is `{"prompt_ids": int32 [P], "prompt_mask": bool [P]}`: ids padded on the left, and which of them are real.
"""

from collections.abc import Sequence

import numpy as np

from tunix_lab.data.chat import render_prompt
from tunix_lab.data.examples import Example
from tunix_lab.data.ledger import Ledger, check_lengths
from tunix_lab.data.padding import pad_left
from tunix_lab.data.rows import Row, blame, count_repeats, each, place_of, prompt_column
from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.errors import UserError

SETTING = "algorithm.rollout.max_prompt_length"


def prompt_examples(
    rows: Sequence[Row], tokenizer: Tokenizer, max_prompt_length: int, overlong: str = "error", *, split: str = "train"
) -> tuple[list[Example], Ledger]:
    """Rows `{"prompt"}`, text or messages, rendered so that they ask for the next turn of the assistant.

    Args:
      rows: dataset rows; their other columns are not looked at.
      tokenizer: with a chat template.
      max_prompt_length: P, in tokens.
      overlong: what to do with longer prompts, "error" or "drop"; nothing ever cuts a prompt.
      split: name in the ledger.

    Raises:
      UserError: a row is no prompt, or is too long under `error`; the message names it.
    """
    prompts = each(rows, lambda row: render_prompt(tokenizer, prompt_column(row)))
    lengths = [len(ids) for ids in prompts]
    if overlong == "error":
        places = [place_of(rows, i) for i in range(len(rows))]
        with blame(split):
            check_lengths(lengths, places, max_prompt_length, setting=SETTING, what="prompts", choices="drop")
    ledger = Ledger(split, rows_duplicate=count_repeats(rows))
    examples = []
    for ids, tokens in zip(prompts, lengths, strict=True):
        if tokens > max_prompt_length:
            ledger.drop(tokens=tokens)
            continue
        ledger.keep(tokens=tokens, trained=0, context=tokens)
        padded, mask = pad_left([ids], max_prompt_length, tokenizer.pad_id)
        examples.append({"prompt_ids": padded[0], "prompt_mask": mask[0]})
    if not examples:
        raise UserError(f"{split}: no row is left: all {ledger.rows_in} are longer than {SETTING} = {max_prompt_length}")
    return examples, ledger


def prompt_ids(example: Example) -> np.ndarray:
    """The real ids of an example, int32 [P]."""
    return example["prompt_ids"][example["prompt_mask"]]


def prompt_text(row: Row) -> str:
    """A prompt for people and for rewards: its text, or its last message."""
    prompt = prompt_column(row)
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]
