"""Prompts that a model answers while it trains or is evaluated, made of rows and checked before anything heavy is loaded."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tunix_lab.data.chat import render_prompt
from tunix_lab.data.files import read_rows
from tunix_lab.data.rows import Row, column, each, prompt_column, text_column
from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.errors import UserError
from tunix_lab.lab.datasets import Dataset
from tunix_lab.spec.data import PromptData
from tunix_lab.spec.experiment import ExperimentSpec


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
      row: that it was made of.
      text: for people: the last message of the prompt, or the text to go on with.
      ids: what the model reads, int32 [P].
      reference: what the row gives as the right answer; "" where it gives none.
    """

    row: Row
    text: str
    ids: np.ndarray
    reference: str


def sample_prompts(spec: ExperimentSpec, home: Path, validation: Dataset, tokenizer: Tokenizer) -> list[Prompt]:
    """The prompts that a run answers again and again; none where its spec has no `samples`.

    Raises:
      UserError: a row is no prompt; the message names file and line.
    """
    if spec.samples is None:
        return []
    only_prompt = isinstance(spec.data, PromptData)
    if spec.samples.prompts is not None:
        rows = read_rows(home / spec.samples.prompts, spec.data.columns, partly=True)
        return make_prompts(rows[: spec.samples.count], tokenizer, only_prompt=only_prompt)
    prompts: list[Prompt] = []
    for part in validation.parts:
        prompts += make_prompts(part.rows[: spec.samples.count - len(prompts)], tokenizer, only_prompt=only_prompt)
    return prompts


def make_prompts(rows: Sequence[Row], tokenizer: Tokenizer, *, only_prompt: bool = False) -> list[Prompt]:
    """A prompt of each row: of its text the first half, of its messages those before the last answer, else its prompt.

    Args:
      rows: of any kind of data.
      tokenizer: with a chat template, unless all rows are texts.
      only_prompt: take the column `prompt` whatever else the rows have: columns of another name are for rewards.

    Raises:
      UserError: a row is no prompt; the message names its place.
    """
    return each(rows, lambda row: _prompt(row, tokenizer, only_prompt))


def _prompt(row: Row, tokenizer: Tokenizer, only_prompt: bool) -> Prompt:
    if only_prompt:
        return _rendered(row, tokenizer, prompt_column(row), _right_answer(row))
    if "text" in row:
        text = text_column(row, "text")
        words = text.split(" ")
        begin = " ".join(words[: max(1, len(words) // 2)])
        bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        return Prompt(row, begin, np.asarray([*bos, *tokenizer.encode(begin)], np.int32), text)
    if "messages" in row:
        return _rendered(row, tokenizer, *_before_the_answer(row))
    return _rendered(row, tokenizer, prompt_column(row), _right_answer(row))


def _right_answer(row: Row) -> str:
    return str(row.get("completion", row.get("chosen", row.get("answer", ""))))


def _rendered(row: Row, tokenizer: Tokenizer, messages: str | Sequence[Row], reference: str) -> Prompt:
    ids = render_prompt(tokenizer, messages)  # refuses messages of another shape
    return Prompt(row, messages if isinstance(messages, str) else messages[-1]["content"], ids, reference)


def _before_the_answer(row: Row) -> tuple[list[Row], str]:
    """The messages before the last one of the assistant, and that one."""
    messages = column(row, "messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise UserError("column 'messages' must be a list of messages")
    answers = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
    if not answers or answers[-1] == 0:
        raise UserError(
            "chat: the messages before the last one of the assistant are the prompt, and there are none; give the messages of a "
            "prompt without an answer in the column 'prompt'"
        )
    return messages[: answers[-1]], str(messages[answers[-1]].get("content", ""))
