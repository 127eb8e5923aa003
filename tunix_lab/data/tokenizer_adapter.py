"""One face for the tokenizers that people bring: ours, Hugging Face's, SentencePiece, or any object of that shape.

Which kind a tokenizer is, is decided once, by the protocols below; there is no guessing at each call.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from tunix_lab.data.tokenizer import Tokenizer


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


class TokenizerAdapter:
    """`encode`, `decode`, `bos_id()`, `eos_id()`, `pad_id()`, `stop_ids()` over any supported tokenizer.

    Raises:
      TypeError: the object is none of the supported kinds.
      ValueError: it has no EOS, so generation could never stop.
    """

    def __init__(self, tokenizer: "Tokenizer | HuggingFaceTokenizer | PlainTokenizer | TokenizerAdapter") -> None:
        self._encode: Callable[[str], Sequence[int]]
        self._decode: Callable[[list[int]], str]
        stop: set[int] = set()
        if isinstance(tokenizer, TokenizerAdapter):
            tokenizer = tokenizer.tokenizer
        match tokenizer:
            case Tokenizer():
                self._encode, self._decode = tokenizer.encode, tokenizer.decode
                bos, eos, pad = tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id
                stop = tokenizer.stop_ids
            case HuggingFaceTokenizer():
                self._encode = lambda text: tokenizer.encode(text, add_special_tokens=False)
                self._decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=True)
                bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
            case PlainTokenizer():
                self._encode, self._decode = tokenizer.encode, tokenizer.decode
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

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; neither BOS nor EOS is added."""
        return [int(i) for i in self._encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without special tokens."""
        return self._decode([int(i) for i in ids])

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


def _given_id(given: Callable[[], int] | int | None) -> int | None:
    """An id given as a method or as a value; SentencePiece writes -1 for a token that it does not have."""
    value = given() if callable(given) else given
    return None if value is None or value < 0 else int(value)
