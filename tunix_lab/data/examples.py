"""Turns rows of text or chat into fixed-length examples for supervised training, with a ledger of their tokens.

An example is `{"input_tokens": int32 [T], "input_mask": bool [T], "valid": bool [T]}`: ids padded on the right, which of them
are trained targets, and which of them are real.
"""

from collections.abc import Callable, Sequence

import numpy as np

from tunix_lab.data.chat import as_messages, render_chat
from tunix_lab.data.ledger import Ledger, Overlong, check_lengths
from tunix_lab.data.padding import pad_right
from tunix_lab.data.rows import Row, blame, column, count_repeats, each, place_of, prompt_column, text_column
from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.errors import UserError

Example = dict[str, np.ndarray]


def sft_examples(
    rows: Sequence[Row], tokenizer: Tokenizer, max_length: int, overlong: Overlong = "error", *, split: str = "train"
) -> tuple[list[Example], Ledger]:
    """Chats: rows `{"prompt", "completion"}` or `{"messages"}`. Assistant turns and their terminators are trained.

    Args:
      rows: dataset rows.
      tokenizer: with a chat template.
      max_length: T, in tokens.
      overlong: what to do with longer rows.
      split: name in the ledger.

    Raises:
      UserError: a row is malformed, too long under `error`, or would have no trained token; the message names it.
    """
    return _examples(rows, lambda row: _chat_row(tokenizer, row), tokenizer.pad_id, max_length, overlong, split)


def text_examples(
    rows: Sequence[Row], tokenizer: Tokenizer, max_length: int, overlong: Overlong = "error", *, split: str = "train"
) -> tuple[list[Example], Ledger]:
    """Plain text: rows `{"text"}` as BOS + text + EOS, every token but the first trained. For the rest see `sft_examples`."""
    return _examples(rows, lambda row: _text_row(tokenizer, row), tokenizer.pad_id, max_length, overlong, split)


_Ids = tuple[np.ndarray, np.ndarray]
"""Ids int32 [n] of one row and the mask bool [n] of what is trained, before any limit."""


def _chat_row(tokenizer: Tokenizer, row: Row) -> _Ids:
    if "messages" in row:
        messages = column(row, "messages")
        if not isinstance(messages, list):
            raise UserError(f"column 'messages' must be a list, got {type(messages).__name__}")
    else:
        messages = [*as_messages(prompt_column(row)), {"role": "assistant", "content": text_column(row, "completion")}]
    chat = render_chat(tokenizer, messages)
    return chat.ids, chat.mask


def _text_row(tokenizer: Tokenizer, row: Row) -> _Ids:
    """BOS + text + EOS. A text that already spells them at its ends does not get them twice."""
    ids = tokenizer.encode(text_column(row, "text"))
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    if bos is not None:
        ids = ids if ids[:1] == [bos] else [bos, *ids]
        if ids.count(bos) > 1:
            raise UserError("the text spells BOS more than once; a sequence begins with exactly one")
    ids = ids if ids[-1:] == [eos] else [*ids, eos]
    return np.array(ids, np.int32), np.ones(len(ids), bool)


def _examples(
    rows: Sequence[Row],
    tokenize: Callable[[Row], _Ids],
    pad_id: int,
    max_length: int,
    overlong: Overlong,
    split: str,
) -> tuple[list[Example], Ledger]:
    places = [place_of(rows, i) for i in range(len(rows))]
    tokenized = each(rows, tokenize)
    for _, mask in tokenized:
        mask[:1] = False  # nothing comes before the first token, so it is never a target
    if overlong == "error":
        with blame(split):
            lengths = [len(ids) for ids, _ in tokenized]
            check_lengths(lengths, places, max_length, setting="data.max_length", what="rows", choices="drop | truncate")
    ledger = Ledger(split, rows_duplicate=count_repeats(rows))
    examples = []
    for (ids, mask), place in zip(tokenized, places, strict=True):
        tokens = len(ids)
        if tokens > max_length and overlong == "drop":
            ledger.drop(tokens=tokens)
            continue
        trained = int(mask[:max_length].sum())
        if trained == 0:
            raise UserError(_nothing_trained(place, tokens, int(np.argmax(mask)), max_length))
        ledger.keep(tokens=tokens, trained=trained, context=min(tokens, max_length) - trained)
        examples.append(_pad(ids[:max_length], mask[:max_length], max_length, pad_id))
    if not examples:
        raise UserError(f"{split}: no row is left: all {ledger.rows_in} are longer than data.max_length = {max_length}")
    return examples, ledger


def _nothing_trained(place: str, tokens: int, prompt: int, max_length: int) -> str:
    if tokens > max_length:
        return (
            f"{place}: the prompt alone has {prompt} tokens and data.max_length is {max_length}, so cutting would leave nothing "
            "to train on; raise data.max_length, or choose data.overlong: drop"
        )
    return f"{place}: the row has no trained token; give it an answer to learn, or remove it"


def _pad(ids: np.ndarray, mask: np.ndarray, max_length: int, pad_id: int) -> Example:
    padded, valid = pad_right([ids], max_length, pad_id)
    return {"input_tokens": padded[0], "input_mask": np.pad(mask, (0, max_length - len(mask))), "valid": valid[0]}
