"""One face for the tokenizers that people bring: ours, Hugging Face's, SentencePiece, or any object of that shape.

Which kind a tokenizer is, is decided once, by the protocols below; there is no guessing at each call.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from tunix_lab.data import chat
from tunix_lab.data import tokenizer as tokenizer_folder
from tunix_lab.errors import UserError


@runtime_checkable
class HuggingFaceTokenizer(Protocol):
    """What is used of `transformers.PreTrainedTokenizerBase`."""

    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of a text."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Text of ids."""


@runtime_checkable
class PlainTokenizer(Protocol):
    """`encode`, `decode` and the ids of BOS, EOS and padding, as methods (SentencePiece) or attributes; negative is absent."""

    bos_id: Callable[[], int] | int | None
    eos_id: Callable[[], int] | int | None
    pad_id: Callable[[], int] | int | None

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS and EOS."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""


@runtime_checkable
class HasChatTemplate(Protocol):
    """Objects that render chats themselves, as those of Hugging Face do."""

    def apply_chat_template(self, conversation: Sequence[Mapping[str, Any]], **options: Any) -> Any:
        """The chat as text, or as ids."""


class TokenizerAdapter:
    """`encode`, `decode`, ids, `stop_ids()` and `apply_chat_template` over any supported tokenizer, which `.tokenizer` is.

    Raises:
      TypeError: the object is none of the supported kinds.
      ValueError: it has no EOS, so generation could never stop.
    """

    def __init__(
        self, tokenizer: "tokenizer_folder.Tokenizer | HuggingFaceTokenizer | PlainTokenizer | TokenizerAdapter"
    ) -> None:
        self._encode: Callable[..., Sequence[int]]
        self._decode: Callable[..., str]
        self._chat: Callable[..., Any] = self._no_template
        stop: set[int] = set()
        if isinstance(tokenizer, TokenizerAdapter):
            tokenizer = tokenizer.tokenizer
        if isinstance(tokenizer, HasChatTemplate):
            self._chat = tokenizer.apply_chat_template
        match tokenizer:
            case tokenizer_folder.Tokenizer():
                self._encode, self._decode = self._with_bos_if_asked(tokenizer.encode), tokenizer.decode
                self._chat = self._our_chat
                bos, eos, pad = tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id
                stop = tokenizer.stop_ids
            case HuggingFaceTokenizer():
                self._encode, self._decode = tokenizer.encode, tokenizer.decode
                self._chat = _as_ids(self._chat)
                bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
            case PlainTokenizer():
                self._encode, self._decode = self._with_bos_if_asked(tokenizer.encode), _hiding_special_tokens(tokenizer.decode)
                bos, eos, pad = _given_id(tokenizer.bos_id), _given_id(tokenizer.eos_id), _given_id(tokenizer.pad_id)
            case _:
                raise TypeError(
                    f"{type(tokenizer).__name__} is no tokenizer: it needs encode, decode and bos_id, eos_id, pad_id (or the "
                    "bos_token_id, eos_token_id, pad_token_id of Hugging Face)"
                )
        if eos is None:
            raise ValueError(f"{type(tokenizer).__name__} has no EOS token; generation could never stop")
        self.tokenizer: Any = tokenizer
        self._bos_id, self._eos_id = bos, eos
        # Padding is known by its mask, never by its id, so EOS serves where a tokenizer has no token for it.
        self._pad_id = eos if pad is None else pad
        self._stop_ids = frozenset(stop | {eos})

    def encode(self, text: str, *, add_special_tokens: bool = False, **options: Any) -> list[int]:
        """Ids of `text`.

        Args:
          text: what to encode.
          add_special_tokens: whether to add what the tokenizer adds to a whole text: BOS where the text does not spell it
            (Hugging Face's add what they are set to). Nothing is added unless this is asked for, whatever the kind.
          **options: handed on to the tokenizer's own `encode`.
        """
        return [int(i) for i in self._encode(text, add_special_tokens=add_special_tokens, **options)]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True, **options: Any) -> str:
        """The text of `ids`, without special tokens unless asked; `options` go on to the tokenizer's own `decode`."""
        return self._decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens, **options)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tokenize: bool = False,
        **options: Any,
    ) -> str | list[int]:
        """A chat as text, or as ids.

        Args:
          messages: the turns. For our tokenizers a content may also be a list of `{"type": "text", "text": text}`.
          add_generation_prompt: whether to open a turn of the assistant at the end.
          tokenize: whether to return ids instead of text.
          **options: for our tokenizers, variables that the template reads (`enable_thinking`); others get them as they are.

        Raises:
          UserError: the tokenizer has no template, or its template refuses the messages.
        """
        return self._chat(messages, add_generation_prompt=add_generation_prompt, tokenize=tokenize, **options)

    def dedup_bos_ids(self, ids: Sequence[int]) -> list[int]:
        """`ids` with one BOS where they begin with several."""
        repeated = 0
        while list(ids[repeated : repeated + 2]) == [self._bos_id] * 2:
            repeated += 1
        return list(ids[repeated:])

    def bos_id(self) -> int | None:
        """Id of the beginning of a sequence; None where the family has none."""
        return self._bos_id

    def eos_id(self) -> int:
        """Id of the end of a sequence."""
        return self._eos_id

    def pad_id(self) -> int:
        """Id that fills padding."""
        return self._pad_id

    def stop_ids(self) -> frozenset[int]:
        """Ids after which generation stops."""
        return self._stop_ids

    def _with_bos_if_asked(self, encode: Callable[..., Sequence[int]]) -> Callable[..., Sequence[int]]:
        def wrapped(text: str, *, add_special_tokens: bool, **options: Any) -> Sequence[int]:
            ids = list(encode(text, **options))
            missing = add_special_tokens and self._bos_id is not None and ids[:1] != [self._bos_id]
            return [self._bos_id, *ids] if missing else ids

        return wrapped

    def _our_chat(self, messages: Sequence[Mapping[str, Any]], *, tokenize: bool, **options: Any) -> str | list[int]:
        render = chat.render_ids if tokenize else chat.render_text
        return render(self.tokenizer, chat.join_parts(messages), **options)

    def _no_template(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        raise UserError(
            f"{type(self.tokenizer).__name__} has no chat template, and another model's format would be wrong for it; put its "
            "files and chat_template.jinja into one folder and load that with tunix_lab.data.tokenizer.Tokenizer"
        )


class Tokenizer(TokenizerAdapter):
    """A tokenizer opened by kind and path, for whole texts: BOS and EOS are added.

    Args:
      tokenizer_type: "sentencepiece" for a model file, "huggingface" for a folder of tokenizer files.
      tokenizer_path: the file or folder, on this machine; nothing is downloaded.
      add_bos: whether `encode` puts BOS in front.
      add_eos: whether `encode` puts EOS at the end.
    """

    def __init__(
        self,
        tokenizer_type: Literal["sentencepiece", "huggingface"],
        tokenizer_path: str | Path,
        add_bos: bool = True,
        add_eos: bool = True,
    ) -> None:
        match tokenizer_type:
            case "huggingface":
                super().__init__(tokenizer_folder.Tokenizer.load(tokenizer_path))
            case "sentencepiece":
                super().__init__(_sentencepiece_model(Path(tokenizer_path)))
            case _:
                raise UserError(f"tokenizer_type: sentencepiece or huggingface, got {tokenizer_type!r}")
        self.tokenizer_type = tokenizer_type
        self._add_bos, self._add_eos = add_bos, add_eos

    def encode(self, text: str, *, add_special_tokens: bool = True, **options: Any) -> list[int]:
        """Ids of `text`, with the BOS and EOS that were asked for at the start; `add_special_tokens=False` leaves them out."""
        ids = super().encode(text, **options)
        return self._between(ids, self._add_bos, self._add_eos) if add_special_tokens else ids

    def tokenize(self, example: str, prefix: str = "", suffix: str = "", add_eos: bool = True) -> np.ndarray:
        """Ids (int32 [T]) of prefix + example + suffix after exactly one BOS, where there is one, and before EOS if asked."""
        return np.array(self._between(super().encode(prefix + example + suffix), True, add_eos), np.int32)

    def _between(self, ids: list[int], add_bos: bool, add_eos: bool) -> list[int]:
        bos = [] if self._bos_id is None or not add_bos or ids[:1] == [self._bos_id] else [self._bos_id]
        return [*bos, *ids, *([self._eos_id] if add_eos and ids[-1:] != [self._eos_id] else [])]


def _sentencepiece_model(path: Path) -> PlainTokenizer:
    from sentencepiece import SentencePieceProcessor

    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of a SentencePiece model on this machine (nothing is downloaded)")
    return SentencePieceProcessor(model_file=str(path))


def _as_ids(apply_chat_template: Callable[..., Any]) -> Callable[..., Any]:
    """Hugging Face's newer versions give a dictionary in place of ids unless told not to."""

    def wrapped(messages: Sequence[Mapping[str, Any]], *, tokenize: bool, **options: Any) -> Any:
        options = {"return_dict": False, **options} if tokenize else options
        return apply_chat_template(messages, tokenize=tokenize, **options)

    return wrapped


def _hiding_special_tokens(decode: Callable[..., str]) -> Callable[..., str]:
    """Plain tokenizers leave special tokens out by themselves; one that can show them is told to."""

    def wrapped(ids: list[int], *, skip_special_tokens: bool, **options: Any) -> str:
        return decode(ids, **options) if skip_special_tokens else decode(ids, skip_special_tokens=False, **options)

    return wrapped


def _given_id(given: Callable[[], int] | int | None) -> int | None:
    """An id given as a method or as a value; SentencePiece writes -1 for a token that it does not have."""
    value = given() if callable(given) else given
    return None if value is None or value < 0 else int(value)
