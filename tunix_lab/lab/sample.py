"""Answers prompts with a model on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunix_lab.data.chat import render_prompt
from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.errors import UserError
from tunix_lab.lab.outputs import find_model
from tunix_lab.lab.samples import make_sampler
from tunix_lab.models.catalog import load_model


def answer(home: Path, model: str, prompts: Sequence[str], max_new_tokens: int, *, raw: bool, **sampling: Any) -> list[str]:
    """The completions of prompts.

    Args:
      home: the project folder.
      model: a run id, or the folder of a model.
      prompts: questions, or with `raw` texts to continue.
      max_new_tokens: of each answer.
      raw: without the chat template.
      **sampling: temperature, top_k, top_p, seed of `Sampler.generate_tokens`.

    Raises:
      UserError: there is no such model, or a sampling parameter is out of range.
    """
    folder = find_model(home, model).folder
    tokenizer = Tokenizer.load(folder)
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids = [[*bos, *tokenizer.encode(text)] if raw else render_prompt(tokenizer, text) for text in prompts]
    sampler = make_sampler(load_model(folder), tokenizer, max(map(len, ids)) + max_new_tokens)
    try:
        return sampler.generate_tokens(ids, max_new_tokens, stop_ids=sorted(tokenizer.stop_ids), **sampling).text
    except ValueError as error:
        raise UserError(f"sample: {error}") from None
