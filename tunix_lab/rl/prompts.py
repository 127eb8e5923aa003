"""Prompts as token ids."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tunix_lab.data.tokenizer_adapter import TokenizerAdapter
from tunix_lab.errors import UserError


def prompt_ids(tokenizer: TokenizerAdapter, prompt: Any, apply_chat_template: bool, most: int) -> np.ndarray:
    """The ids of a prompt, int32 [P], with exactly one BOS where the tokenizer has one.

    Args:
      tokenizer: of the model.
      prompt: a string, a conversation (a list of messages), or token ids, which stay as they are.
      apply_chat_template: render a string as a user's turn.
      most: tokens that a prompt may have.

    Raises:
      UserError: it has none, or too many.
    """
    match prompt:
        case str() if apply_chat_template:
            ids = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=True)
        case str():
            ids = _with_bos(tokenizer, tokenizer.encode(prompt))
        case [{"role": _}, *_]:
            ids = tokenizer.apply_chat_template(list(prompt), tokenize=True)
        case _:
            ids = prompt
    ids = np.asarray(ids, np.int32)
    if not 0 < len(ids) <= most:
        shown = tokenizer.decode(ids[:20].tolist())
        raise UserError(f"a prompt has {len(ids)} tokens, RolloutConfig.max_prompt_length is {most}; it begins {shown!r}")
    return ids


def _with_bos(tokenizer: TokenizerAdapter, ids: Sequence[int]) -> list[int]:
    bos = tokenizer.bos_id()
    ids = list(ids)
    if bos is None:
        return ids
    while ids[:1] == [bos]:
        ids.pop(0)
    return [bos, *ids]
