"""Renders messages through the chat template and tokenises them: the one function for training, evaluation and sampling.

Masks are born here, from the spans of characters that the assistant wrote: its words and the token that ends its turn are
trained, nothing else is. What generation is prompted with is, token for token, what training showed before the answer.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tunix_lab.data.chat_template import ChatTemplate
from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.errors import UserError

Message = Mapping[str, str]
"""`{"role": "system" | "user" | "assistant", "content": text}`."""


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A tokenised chat.

    Attributes:
      ids: int32 [T], with exactly the declared number of BOS.
      mask: bool [T], True where the token is trained: assistant spans and their terminators.
      answer: the place of the last assistant turn: `ids[:answer.start]` is the prompt that asks for it, `ids[answer]` the turn.
    """

    ids: np.ndarray
    mask: np.ndarray
    answer: slice


def render_chat(tokenizer: Tokenizer, messages: Sequence[Message]) -> Rendered:
    """Tokenises a chat for training.

    Raises:
      UserError: the template refuses the messages; an assistant turn has no terminator; a token reaches across the edge of an
        assistant span; the generation prompt is not a prefix of the chat; BOS is not there exactly as often as declared.
    """
    _check_messages(tokenizer, messages)
    if not any(message["role"] == "assistant" for message in messages):
        raise UserError("chat: no message has the role assistant, so there is nothing to train on")
    text = _render(tokenizer, messages, add_generation_prompt=False)
    encoded = tokenizer.encode_with_spans(text)
    mask, answer = np.zeros(len(encoded.ids), bool), slice(0)
    starts = np.array([start for start, _ in encoded.spans])
    ends = np.array([end for _, end in encoded.spans])
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = _render(tokenizer, messages[:i], add_generation_prompt=True)
        last = i == len(messages) - 1
        through = text if last else _render(tokenizer, messages[: i + 1], add_generation_prompt=False)
        begin, end = _assistant_span(tokenizer, text, prompt, through)
        for edge in (begin, end):
            if np.any((starts < edge) & (edge < ends)):
                raise UserError(
                    f"chat: a token reaches across the edge of an assistant turn, near {text[max(0, edge - 12) : edge + 12]!r}; "
                    "prompt and answer would not be tokenised in generation as they are in training"
                )
        inside = (starts >= begin) & (ends <= end)
        first = int(np.argmax(inside))
        answer = slice(first, first + int(inside.sum()))
        if tokenizer.encode(prompt) != encoded.ids[:first]:
            raise UserError("chat: the generation prompt, tokenised alone, is not what training shows before the answer")
        mask |= inside
    _check_bos(tokenizer, encoded.ids)
    return Rendered(np.array(encoded.ids, np.int32), mask, answer)


def render_prompt(tokenizer: Tokenizer, prompt: str | Sequence[Message]) -> np.ndarray:
    """Ids (int32 [P]) that ask the model for its next turn; a string is one message of the user."""
    return np.array(render_ids(tokenizer, as_messages(prompt), add_generation_prompt=True), np.int32)


def render_ids(tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool, **variables: Any) -> list[int]:
    """Ids of a chat, with exactly the declared number of BOS. Arguments and errors of `render_text`."""
    ids = tokenizer.encode(render_text(tokenizer, messages, add_generation_prompt=add_generation_prompt, **variables))
    _check_bos(tokenizer, ids)
    return ids


def render_text(tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool, **variables: Any) -> str:
    """A chat as the text that its tokens spell.

    Args:
      tokenizer: with a chat template.
      messages: the turns so far.
      add_generation_prompt: whether to open a turn of the assistant at the end.
      **variables: what this template reads besides the messages, `enable_thinking` for one.

    Raises:
      UserError: a message has no known shape or spells a special token; the template refuses the messages or knows no such
        variable.
    """
    _check_messages(tokenizer, messages)
    return _render(tokenizer, messages, add_generation_prompt=add_generation_prompt, **variables)


def as_messages(prompt: str | Sequence[Message]) -> list[Message]:
    """The messages of a prompt; a string is one message of the user."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def join_parts(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages whose content, where it was a list of `{"type": "text", "text": text}`, is the text of all parts.

    Raises:
      UserError: a part is something else, such as an image.
    """
    return [
        {**message, "content": "".join(_part_texts(message["content"]))} if isinstance(message.get("content"), list) else message
        for message in messages
    ]


def _part_texts(parts: Sequence[object]) -> Iterator[str]:
    for part in parts:
        match part:
            case {"type": "text", "text": str(text)}:
                yield text
            case {"type": kind}:
                raise UserError(f"chat: a message has a part of type {kind!r}; only text can be read, take that part out")
            case _:
                raise UserError(f'chat: a part of a message is {{"type": "text", "text": text}}, got {part!r}')


def _assistant_span(tokenizer: Tokenizer, text: str, prompt: str, through: str) -> tuple[int, int]:
    """Characters [begin, end) of `text` that the assistant wrote in the turn between `prompt` and `through`."""
    if not (through.startswith(prompt) and text.startswith(through)):
        raise UserError(
            "chat: the template renders a turn differently once later turns follow, so the generation prompt is not a prefix "
            "of the training text; use a template that only appends"
        )
    terminators = {tokenizer.token_text(i) for i in tokenizer.stop_ids}
    ends = [through.rfind(t, len(prompt)) + len(t) for t in terminators if through.rfind(t, len(prompt)) >= 0]
    if not ends:
        raise UserError(
            f"chat: the template ends an assistant turn with none of {sorted(terminators)}, so a model would never learn to stop"
        )
    return len(prompt), max(ends)


def _render(tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool, **variables: Any) -> str:
    """The chat as text, its messages unchecked."""
    if tokenizer.chat_template is None:
        raise UserError(f"{tokenizer.folder}: the tokenizer has no chat template; add chat_template.jinja or use data.kind: text")
    return ChatTemplate.compile(tokenizer.chat_template).render(
        variables,
        messages=[dict(message) for message in messages],
        add_generation_prompt=add_generation_prompt,
        bos_token="" if tokenizer.bos_id is None else tokenizer.token_text(tokenizer.bos_id),
        eos_token=tokenizer.token_text(tokenizer.eos_id),
    )


def _check_messages(tokenizer: Tokenizer, messages: Sequence[Message]) -> None:
    """Refuses what would break the format from within: a message of unknown shape, or text that spells a special token."""
    for message in messages:
        match message:
            case {"role": "system" | "user" | "assistant", "content": str(content)}:
                special = tokenizer.find_special(content)
                if special is not None:
                    raise UserError(
                        f"chat: a message spells the special token {special}; give plain text, the template adds its own"
                    )
            case _:
                raise UserError(f'chat: a message is {{"role": "system|user|assistant", "content": text}}, got {message!r}')


def _check_bos(tokenizer: Tokenizer, ids: Sequence[int]) -> None:
    """The declared number of BOS, at the start and nowhere else."""
    if tokenizer.bos_id is None:
        return
    count = list(ids).count(tokenizer.bos_id)
    if count != 1 or ids[0] != tokenizer.bos_id:
        raise UserError(f"chat: the template must begin with exactly one BOS, this text has {count}; mend chat_template.jinja")
