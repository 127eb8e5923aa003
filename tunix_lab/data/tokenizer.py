"""The tokenizer: a folder of Hugging Face tokenizer files, read, used and identified by the hash of its content.

The folder holds `tokenizer.json` and `tokenizer_config.json` (which names BOS, EOS, padding and the end of a turn), or
SentencePiece's `tokenizer.model` with or without that config; and, if it likes, `special_tokens_map.json`,
`generation_config.json` (more tokens that stop generation) and `chat_template.jinja`. `transformers.AutoTokenizer` reads the same
files. Where both kinds lie in one folder, `tokenizer.json` is used.
"""

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunix_lab.data.tokenizer_backends import Backend, JsonBackend, SentencePieceBackend, Span
from tunix_lab.errors import UserError

FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)
"""All that may belong to a tokenizer; those that are there are saved and hashed."""

END_OF_TURN = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>")
"""How the supported families end a turn, where `tokenizer_config.json` has no `eot_token`."""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Token ids of a text and the span of characters that each token covers, `[start, end)`."""

    ids: list[int]
    spans: list[Span]


class Tokenizer:
    """Text to token ids and back; the same for training, evaluation, sampling and export.

    Attributes:
      folder: where the files lie.
      bos_id: id of the beginning of a sequence; None for a family that has none.
      eos_id: id of the end of a sequence.
      pad_id: id that fills padding. It may equal `eos_id`: masks never come from ids.
      end_of_turn_id: id that ends a turn of a chat; None for a tokenizer without chat. It may equal `eos_id`.
      declared_stop_ids: what `generation_config.json` lists as `eos_token_id`; empty without that file.
      special_ids: ids of special tokens, which `decode` leaves out unless told otherwise.
      chat_template: Jinja text that renders messages; None for a tokenizer without chat.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        config = self._read_object("tokenizer_config.json")
        self.chat_template = self._read_template(config or {})
        self._backend = self._open_backend(config)
        config = config or {}
        self.bos_id = self._named_id(config, "bos_token")
        eos = self._named_id(config, "eos_token")
        if eos is None:
            raise UserError(f"{self.folder}/tokenizer_config.json: eos_token is missing; generation could never stop")
        self.eos_id: int = eos
        pad = self._named_id(config, "pad_token")
        self.pad_id: int = self.eos_id if pad is None else pad
        self.special_ids = frozenset(self._backend.special)
        longest_first = sorted(self._backend.special.values(), key=len, reverse=True)
        self._special_text = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self.declared_stop_ids = self._read_stop_ids()
        self.end_of_turn_id = self._find_end_of_turn(config)

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """The tokenizer of `folder`. Raises UserError where files are missing or unreadable."""
        return cls(folder)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self._backend.vocab_size

    @property
    def stop_ids(self) -> set[int]:
        """Ids after which generation stops: the end of the sequence and, with chat, of the turn, and what the folder declares."""
        return {self.eos_id, *self.declared_stop_ids} | ({self.end_of_turn_id} - {None})

    @property
    def template_digest(self) -> str | None:
        """sha256 (hex) of the chat template alone, wherever it is stored; None without one."""
        return None if self.chat_template is None else hashlib.sha256(self.chat_template.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; nothing is added, so BOS is there only if the text spells it."""
        return self._backend.encode(text)[0]

    def encode_with_spans(self, text: str) -> Encoded:
        """Ids of `text` with the characters that each covers."""
        return Encoded(*self._backend.encode(text))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens)

    def find_special(self, text: str) -> str | None:
        """The first special token that `text` spells; None where it spells none."""
        found = self._special_text.search(text)
        return found.group() if found else None

    def token_text(self, token_id: int) -> str:
        """The text of one id, special or not."""
        return self.decode([token_id], skip_special_tokens=False)

    def digest(self) -> str:
        """sha256 (hex) over names and bytes of the files: the identity of the tokenizer and its chat template."""
        total = hashlib.sha256()
        for path in self._present_files():
            content = path.read_bytes()
            total.update(f"{path.name} {len(content)}\n".encode())
            total.update(content)
        return total.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Copies the files to `folder`, byte for byte."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for path in self._present_files():
            shutil.copyfile(path, Path(folder) / path.name)

    def _present_files(self) -> list[Path]:
        return [self.folder / name for name in FILES if (self.folder / name).is_file()]

    def _open_backend(self, config: dict[str, Any] | None) -> Backend:
        """The tokenizer file of the folder; a `tokenizer.json` needs the config, since nothing else names its EOS."""
        fast, sentencepiece = self.folder / "tokenizer.json", self.folder / "tokenizer.model"
        if fast.is_file() and config is not None:
            return JsonBackend(fast)
        if sentencepiece.is_file() and not fast.is_file():
            return SentencePieceBackend(sentencepiece, config or {}, self.chat_template, END_OF_TURN)
        missing = "tokenizer_config.json" if fast.is_file() else "tokenizer.json or tokenizer.model"
        raise UserError(
            f"{self.folder}: no tokenizer here ({missing} is missing); "
            "make one with `tunix-lab data tokenizer`, or point tokenizer.path at a folder that holds one"
        )

    def _read_object(self, name: str) -> dict[str, Any] | None:
        """The JSON object in the file `name`; None where there is no such file."""
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{self.folder}: the tokenizer files cannot be read: {name}: {error}") from error
        if not isinstance(content, dict):
            raise UserError(f"{path}: must hold a JSON object, got {type(content).__name__}")
        return content

    def _named_id(self, config: dict[str, Any], key: str) -> int | None:
        """The id of the token that the config gives as `key` (a string, or an object with `content`), else the file's own."""
        match config.get(key, self._backend.named.get(key)):
            case None:
                return None
            case str(text) | {"content": str(text)}:
                found = self._backend.find(text)
                if found is None:
                    raise UserError(f"{self.folder}/tokenizer_config.json: {key} {text!r} is not in the vocabulary")
                return found
            case int(own) if key not in config:
                return own
            case other:
                raise UserError(f"{self.folder}/tokenizer_config.json: {key} must be a string, got {other!r}")

    def _read_stop_ids(self) -> frozenset[int]:
        """`eos_token_id` of generation_config.json: one id or several, all after which the model's makers stop."""
        given = (self._read_object("generation_config.json") or {}).get("eos_token_id")
        ids = [] if given is None else given if isinstance(given, list) else [given]
        for i in ids:
            if type(i) is not int or not 0 <= i < self.vocab_size:
                raise UserError(
                    f"{self.folder}/generation_config.json: eos_token_id has {i!r}, which is no id of this tokenizer "
                    f"(0 to {self.vocab_size - 1}); take the file that came with these tokenizer files, or correct it"
                )
        return frozenset(ids)

    def _read_template(self, config: dict[str, Any]) -> str | None:
        """The template file, or the one inside the config as older folders have it."""
        path = self.folder / "chat_template.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8")
        match config.get("chat_template"):
            case None:
                return None
            case str(text):
                return text
            case _:
                raise UserError(
                    f"{self.folder}/tokenizer_config.json: several chat templates; put the one to use in chat_template.jinja"
                )

    def _find_end_of_turn(self, config: dict[str, Any]) -> int | None:
        """The declared `eot_token`, the known terminator that the template spells, or EOS where the template speaks of it."""
        if self.chat_template is None:
            return None
        declared = self._named_id(config, "eot_token")
        if declared is not None:
            return declared
        known = [text for text in END_OF_TURN if self._backend.find(text) is not None]
        spelled = [text for text in known if text in self.chat_template]
        if not spelled and ("eos_token" in self.chat_template or self.token_text(self.eos_id) in self.chat_template):
            return self.eos_id
        candidates = spelled or known
        if len(candidates) != 1:
            raise UserError(
                f"{self.folder}/tokenizer_config.json: cannot tell which token ends a turn of a chat; "
                f'add "eot_token" (looked for one of {", ".join(END_OF_TURN)}, and for eos_token in the template)'
            )
        return self._backend.find(candidates[0])
