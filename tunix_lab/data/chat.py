"""Renders messages through the chat template and tokenises them: the one function for training, evaluation and sampling.

Masks are born here, from the spans of characters that the assistant wrote: its words and the token that ends its turn are
trained, nothing else is. What generation is prompted with is, token for token, what training showed before the answer.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jinja2
import jinja2.sandbox
import numpy as np

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
    messages = as_messages(prompt)
    _check_messages(tokenizer, messages)
    ids = tokenizer.encode(_render(tokenizer, messages, add_generation_prompt=True))
    _check_bos(tokenizer, ids)
    return np.array(ids, np.int32)


def as_messages(prompt: str | Sequence[Message]) -> list[Message]:
    """The messages of a prompt; a string is one message of the user."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


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


def _render(tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    """The chat as text."""
    if tokenizer.chat_template is None:
        raise UserError(f"{tokenizer.folder}: the tokenizer has no chat template; add chat_template.jinja or use data.kind: text")
    bos = "" if tokenizer.bos_id is None else tokenizer.token_text(tokenizer.bos_id)
    try:
        return _compile(tokenizer.chat_template).render(
            messages=[dict(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            bos_token=bos,
            eos_token=tokenizer.token_text(tokenizer.eos_id),
        )
    except jinja2.TemplateError as error:
        raise UserError(f"chat: the template refuses these messages: {error}") from error


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    """The template in a sandbox with the settings that Hugging Face renders with. A pure function of its text."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.globals["raise_exception"] = raise_exception
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"chat_template.jinja:{error.lineno}: {error.message}") from error


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
