"""The two kinds of files that hold a vocabulary, behind one protocol: `tokenizer.json` and SentencePiece's `tokenizer.model`."""

import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import tokenizers

from tunix_lab.errors import UserError

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

Span = tuple[int, int]
"""Characters [start, end) of a text."""


class Backend(Protocol):
    """Text to ids and back, without anything added.

    Attributes:
      special: text of the special tokens, by id.
      named: ids of `bos_token`, `eos_token` and `pad_token` as far as the file itself says which they are.
      vocab_size: number of ids.
    """

    special: Mapping[int, str]
    named: Mapping[str, int]
    vocab_size: int

    def find(self, text: str) -> int | None:
        """The id of the token that is written `text`."""

    def encode(self, text: str) -> tuple[list[int], list[Span]]:
        """Ids, and the characters of each. A token without characters of its own has those of the one that follows."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """The text of ids."""


class JsonBackend:
    """A `tokenizer.json`, read by Hugging Face's library."""

    def __init__(self, path: Path) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path.parent}: the tokenizer files cannot be read: {error}") from error
        # A stored truncation or padding would silently change every encoding.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self.special = {i: token.content for i, token in added.items() if token.special}
        self.named: dict[str, int] = dict()  # the file has roles for no token; tokenizer_config.json gives them
        self.vocab_size = self._tokenizer.get_vocab_size(with_added_tokens=True)

    def find(self, text: str) -> int | None:
        """The id of the token that is written `text`."""
        return self._tokenizer.token_to_id(text)

    def encode(self, text: str) -> tuple[list[int], list[Span]]:
        """Ids, and the characters of each."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """The text of ids."""
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


_TURN_MARKER = re.compile(r"<[^<>\s'\"{}]+>|\[/?[A-Z_]+\]")
"""How templates write the tokens around a turn: `<start_of_turn>`, `<|im_start|>`, `[INST]`."""

_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
"""Field 3 (`normalizer_spec`) with its field 3 (`add_dummy_prefix`) false: appended to a model it changes that one setting, since
protobuf merges a message that comes twice and the last value holds."""


class SentencePieceBackend:
    """A `tokenizer.model`, read by SentencePiece.

    SentencePiece never makes a control piece (`<bos>`) out of text; chat templates spell them. So a text is cut at its special
    tokens first, and only what lies between goes through the model. Special are: control pieces, the unknown piece, tokens that
    `tokenizer_config.json` calls so, and pieces of the vocabulary that the chat template spells or that are known to end a turn;
    the model itself does not tell `<start_of_turn>` from an HTML tag, both are "user defined".

    A model with a dummy prefix reads `pens` as ` pens`. That space is put before every stretch between special tokens, which is
    what the published Llama 2 and Mistral models were trained on, unless the config has `"legacy": false`: then only at the very
    beginning of a text. `decode` takes the same spaces away.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], template: str | None, terminators: tuple[str, ...]) -> None:
        from sentencepiece import SentencePieceProcessor

        model = path.read_bytes()
        try:
            self._model = SentencePieceProcessor.from_proto(model)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{path}: no SentencePiece model: {error}") from error
        legacy = config.get("legacy") is not False
        self._inner = self._model if legacy else SentencePieceProcessor.from_proto(model + _NO_DUMMY_PREFIX)
        size = self._model.get_piece_size()
        added = _added_tokens(path.parent, config)
        self._added = {text: i for i, (text, special) in added.items() if special or i >= size}
        self.vocab_size = max([size, *(i + 1 for i in self._added.values())])
        roles = (("bos_token", self._model.bos_id()), ("eos_token", self._model.eos_id()), ("pad_token", self._model.pad_id()))
        self.named = {name: i for name, i in roles if i >= 0}
        spelled = [*_TURN_MARKER.findall(template or ""), *terminators, *_special_texts(config)]
        found = {i: text for text in spelled if (i := self.find(text)) is not None}
        pieces = {i: self._model.id_to_piece(i) for i in range(size) if _has_a_role(self._model, i)}
        self.special = pieces | found | {i: text for i, (text, special) in added.items() if special}
        # What a text is cut at; the longest first, so that a token never hides one that goes on after it.
        self._atoms = {text: i for i, text in self.special.items()} | self._added
        self._texts = {i: text for text, i in self._atoms.items()}
        self._cut = re.compile("|".join(map(re.escape, sorted(self._atoms, key=len, reverse=True))))

    def find(self, text: str) -> int | None:
        """The id of the token that is written `text`."""
        if text in self._added:
            return self._added[text]
        found = self._model.piece_to_id(text)  # that of <unk> for what is no piece
        return found if self._model.id_to_piece(found) == text else None

    def encode(self, text: str) -> tuple[list[int], list[Span]]:
        """Ids, and the characters of each."""
        ids: list[int] = []
        spans: list[Span] = []
        at = 0
        for special in self._cut.finditer(text):
            self._encode_between(text[at : special.start()], at, ids, spans)
            ids.append(self._atoms[special.group()])
            spans.append(special.span())
            at = special.end()
        self._encode_between(text[at:], at, ids, spans)
        return ids, spans

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """The text of ids. As in all SentencePiece models with a dummy prefix, the first space is taken to be that prefix."""
        return "".join(self._decode_parts(ids, skip_special_tokens))

    def _encode_between(self, text: str, at: int, ids: list[int], spans: list[Span]) -> None:
        model = self._model if at == 0 else self._inner
        encoding = model.encode(text, return_type="offset_mapping")
        ids.extend(encoding["ids"])
        spans.extend(_widened(encoding["offsets"], at))

    def _decode_parts(self, ids: list[int], skip_special_tokens: bool) -> Iterator[str]:
        model = self._model
        for is_atom, run in groupby(ids, key=self._texts.__contains__):
            if is_atom:
                yield from (self._texts[i] for i in run if not (skip_special_tokens and i in self.special))
            else:
                yield model.decode(list(run))
            model = self._inner


def _widened(offsets: list[Span], at: int) -> Iterator[Span]:
    """Spans moved by `at`. Bytes of one character, and a dummy prefix that stands alone, get the span of what they lead to."""
    wide: list[Span] = []
    following: Span | None = None
    for start, end in reversed(offsets):
        if start < end or following is None:
            following = (start, end)
        wide.append(following)
    return ((start + at, end + at) for start, end in reversed(wide))


def _has_a_role(model: "SentencePieceProcessor", i: int) -> bool:
    return model.is_control(i) or model.is_unknown(i)


def _special_texts(config: Mapping[str, Any]) -> Iterator[str]:
    """The tokens that the config gives a role: `bos_token`, `additional_special_tokens` and so on."""
    for name, value in config.items():
        if name.endswith("_token") or name in ("additional_special_tokens", "extra_special_tokens"):
            for entry in value if isinstance(value, list) else [value]:
                match entry:
                    case str(text) | {"content": str(text)}:
                        yield text


def _added_tokens(folder: Path, config: Mapping[str, Any]) -> dict[int, tuple[str, bool]]:
    """`added_tokens_decoder` of the config as {id: (text, whether special)}."""
    place = f"{folder}/tokenizer_config.json: added_tokens_decoder"
    added = {}
    for key, entry in (config.get("added_tokens_decoder") or {}).items():
        match entry:
            case {"lstrip": True} | {"rstrip": True}:
                raise UserError(f"{place}: {key} has lstrip or rstrip, which needs a tokenizer.json; save one with transformers")
            case {"content": str(text), **rest}:
                added[int(key)] = (text, rest.get("special") is True)
            case _:
                raise UserError(f'{place}: an entry is {{"content": text, "special": true|false}}, got {entry!r}')
    if not added and (folder / "added_tokens.json").is_file():
        raise UserError(f"{folder}: added_tokens.json is not read; add tokenizer.json, or added_tokens_decoder to the config")
    return added
