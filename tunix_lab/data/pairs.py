"""Turns preference rows into fixed-length examples: one prompt, a chosen and a rejected response, each with its mask.

An example is `{"prompt_ids": int32 [P], "prompt_mask": bool [P]}`, padded on the left, and `{"chosen_ids": int32 [R],
"chosen_mask": bool [R]}` and the same for rejected, padded on the right. The prompt holds the only BOS; a response ends with the
terminator of its turn, which counts. Prompt and response are cut out of one tokenised chat, so that prompt + response is what
supervised training sees.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tunix_lab.data.chat import as_messages, render_chat
from tunix_lab.data.examples import Example
from tunix_lab.data.ledger import Ledger, Overlong, check_lengths
from tunix_lab.data.padding import pad_left, pad_right
from tunix_lab.data.rows import Row, blame, column, count_repeats, each, place_of, prompt_column, text_column
from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.data.tokenizer_adapter import TokenizerAdapter
from tunix_lab.errors import UserError

Identical = Literal["error", "drop"]
"""What to do with a pair that prefers nothing: stop with a message, or leave it out and count it."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """A tokenised preference: ids (int32) of the prompt and of both responses."""

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray


def preference_examples(
    rows: Sequence[Row],
    tokenizer: Tokenizer,
    max_prompt_length: int,
    max_response_length: int,
    overlong: Overlong = "error",
    *,
    identical: Identical = "error",
    split: str = "train",
) -> tuple[list[Example], Ledger]:
    """Preferences: rows `{"prompt", "chosen", "rejected"}`.

    Args:
      rows: dataset rows; the prompt is text or messages, a response is text, or messages that end with it after the prompt's.
      tokenizer: with a chat template.
      max_prompt_length: P, in tokens.
      max_response_length: R, in tokens, the terminator included.
      overlong: what to do with rows whose prompt or response is longer. `truncate` cuts the end of responses and refuses to cut
        a prompt.
      identical: what to do with a pair whose answers are the same tokens, also once cut: there is nothing to prefer.
      split: name in the ledger.

    Raises:
      UserError: a row is malformed, or too long or without a preference where that is an error; the message names it.
    """
    places = [place_of(rows, i) for i in range(len(rows))]
    pairs = each(rows, lambda row: _tokenize(tokenizer, row))
    if overlong != "drop":
        _check(pairs, places, max_prompt_length, max_response_length if overlong == "error" else None, split)
    ledger = Ledger(split, rows_duplicate=count_repeats(rows))
    examples = []
    for pair, place in zip(pairs, places, strict=True):
        lengths = len(pair.prompt), len(pair.chosen), len(pair.rejected)
        if overlong == "drop" and (lengths[0] > max_prompt_length or max(lengths[1:]) > max_response_length):
            ledger.drop(tokens=sum(lengths))
            continue
        chosen, rejected = pair.chosen[:max_response_length], pair.rejected[:max_response_length]
        is_same = np.array_equal(chosen, rejected)
        if is_same and identical == "drop":
            ledger.drop(tokens=sum(lengths))
            continue
        if is_same:
            cut = len(chosen) < lengths[1] or len(rejected) < lengths[2]
            when, remedy = (
                (f" once cut to {len(chosen)}", "raise the limit") if cut else ("", "remove the row, or set data.identical: drop")
            )
            raise UserError(f"{place}: chosen and rejected are the same tokens{when}, so there is nothing to prefer; {remedy}")
        ledger.keep(tokens=sum(lengths), trained=len(chosen) + len(rejected), context=len(pair.prompt))
        kept = Pair(pair.prompt, chosen, rejected)
        examples.append(_pad(kept, max_prompt_length, max_response_length, tokenizer.pad_id))
    if not examples:
        raise UserError(f"{split}: no row is left: all {ledger.rows_in} are longer than the limits, or prefer nothing")
    return examples, ledger


def tokenize_pairs(
    tokenizer: Any,
    prompts: Sequence[str],
    chosen_responses: Sequence[str],
    rejected_responses: Sequence[str],
    *,
    max_prompt_length: int,
    max_response_length: int,
) -> dict[str, np.ndarray]:
    """A batch of preferences from strings whose prompts are rendered already; keys and shapes of an example, with rows in front.

    A prompt gets BOS where its text does not spell it. A response that does not end with a stop token of the tokenizer gets EOS;
    where turns end with another token, let the response spell it.

    Args:
      tokenizer: anything `TokenizerAdapter` takes.
      prompts: rendered prompts.
      chosen_responses: the better answer to each.
      rejected_responses: the worse answer to each.
      max_prompt_length: P, in tokens.
      max_response_length: R, in tokens, the terminator included.

    Raises:
      UserError: a text is too long, spells BOS elsewhere, or would be tokenised differently joined than apart.
    """
    tokenizer = TokenizerAdapter(tokenizer)
    pairs = []
    for row, (prompt, chosen, rejected) in enumerate(zip(prompts, chosen_responses, rejected_responses, strict=True)):
        with blame(f"row {row}"):
            ids = _prompt_ids(tokenizer, prompt)
            pairs.append(Pair(ids, _answer_ids(tokenizer, prompt, chosen), _answer_ids(tokenizer, prompt, rejected)))
    places = [f"row {row}" for row in range(len(pairs))]
    _check(pairs, places, max_prompt_length, max_response_length, "batch")
    examples = [_pad(pair, max_prompt_length, max_response_length, tokenizer.pad_id()) for pair in pairs]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def _prompt_ids(tokenizer: TokenizerAdapter, prompt: str) -> np.ndarray:
    ids, bos = tokenizer.encode(prompt), tokenizer.bos_id()
    if bos is not None:
        ids = ids if ids[:1] == [bos] else [bos, *ids]
        if ids.count(bos) > 1:
            raise UserError("the prompt spells BOS more than once; a sequence begins with exactly one")
    return np.array(ids, np.int32)


def _answer_ids(tokenizer: TokenizerAdapter, prompt: str, response: str) -> np.ndarray:
    ids = tokenizer.encode(response)
    if tokenizer.bos_id() is not None and tokenizer.bos_id() in ids:
        raise UserError("the response spells BOS; it belongs to the prompt alone")
    if tokenizer.encode(prompt) + ids != tokenizer.encode(prompt + response):
        raise UserError(
            f"a token reaches from the prompt into the response, near {prompt[-12:]!r} + {response[:12]!r}; "
            "move the space or line break between them to the other side"
        )
    return np.array(ids if ids[-1:] and ids[-1] in tokenizer.stop_ids() else [*ids, tokenizer.eos_id()], np.int32)


def _tokenize(tokenizer: Tokenizer, row: Row) -> Pair:
    """The ids of one preference row, without limits of length."""
    messages = as_messages(prompt_column(row))
    chosen, rejected = (
        render_chat(tokenizer, [*messages, {"role": "assistant", "content": _response(row, name, messages)}])
        for name in ("chosen", "rejected")
    )
    prompt = chosen.ids[: chosen.answer.start]
    if not np.array_equal(prompt, rejected.ids[: rejected.answer.start]):
        raise UserError("the template renders the prompt differently for the chosen and the rejected answer")
    return Pair(prompt, chosen.ids[chosen.answer], rejected.ids[rejected.answer])


def _response(row: Row, name: str, prompt: Sequence[Mapping[str, str]]) -> str:
    """The text of a response; given as a chat, it is the last turn, and the turns before it must be the prompt's."""
    match column(row, name):
        case [*before, {"role": "assistant", "content": str(text)}]:
            if before and [dict(message) for message in before] != [dict(message) for message in prompt]:
                raise UserError(f"column {name!r} is a chat whose turns before the answer are not those of column 'prompt'")
            return text
        case list():
            raise UserError(f"column {name!r} is a chat that does not end with an answer of the assistant")
    return text_column(row, name, may_be_empty=name == "rejected")  # to say nothing may be the answer that is not wanted


def _check(pairs: Sequence[Pair], places: Sequence[str], max_prompt: int, max_response: int | None, split: str) -> None:
    """Refuses overlong prompts, which nothing may cut, and, unless `max_response` is None, overlong responses."""
    with blame(split):
        prompts = [len(p.prompt) for p in pairs]
        check_lengths(prompts, places, max_prompt, setting="algorithm.max_prompt_length", what="prompts", choices="drop")
        if max_response is not None:
            responses = [max(len(p.chosen), len(p.rejected)) for p in pairs]
            setting = "algorithm.max_response_length"
            check_lengths(responses, places, max_response, setting=setting, what="responses", choices="drop | truncate")


def _pad(pair: Pair, max_prompt: int, max_response: int, pad_id: int) -> Example:
    prompt_ids, prompt_mask = pad_left([pair.prompt], max_prompt, pad_id)
    ids, mask = pad_right([pair.chosen, pair.rejected], max_response, pad_id)
    return {
        "prompt_ids": prompt_ids[0],
        "prompt_mask": prompt_mask[0],
        "chosen_ids": ids[0],
        "chosen_mask": mask[0],
        "rejected_ids": ids[1],
        "rejected_mask": mask[1],
    }
