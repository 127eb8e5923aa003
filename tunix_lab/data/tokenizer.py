"""The tokenizer: a folder of Hugging Face tokenizer files, read, used and identified by the hash of its content.

The folder holds `tokenizer.json`, `tokenizer_config.json` (which names BOS, EOS, padding and the end of a turn),
`special_tokens_map.json` and `chat_template.jinja`; `transformers.AutoTokenizer` reads the same files.
"""

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from tunix_lab.errors import UserError

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
REQUIRED = FILES[:2]

END_OF_TURN = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>")
"""How the supported families end a turn, where `tokenizer_config.json` has no `eot_token`."""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Token ids of a text and the span of characters that each token covers, `[start, end)`."""

    ids: list[int]
    spans: list[tuple[int, int]]


class Tokenizer:
    """Text to token ids and back; the same for training, evaluation, sampling and export.

    Attributes:
      folder: where the files lie.
      bos_id: id of the beginning of a sequence; None for a family that has none.
      eos_id: id of the end of a sequence.
      pad_id: id that fills padding. It may equal `eos_id`: masks never come from ids.
      end_of_turn_id: id that ends a turn of a chat; None for a tokenizer without chat.
      special_ids: ids of special tokens, which `decode` leaves out unless told otherwise.
      chat_template: Jinja text that renders messages; None for a tokenizer without chat.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        for name in REQUIRED:
            if not (self.folder / name).is_file():
                raise UserError(
                    f"{self.folder}: no tokenizer here ({name} is missing); "
                    "make one with `tunix-lab data tokenizer`, or point tokenizer.path at a folder that holds one"
                )
        try:
            self._backend = tokenizers.Tokenizer.from_file(str(self.folder / "tokenizer.json"))
            config = json.loads((self.folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        except Exception as error:  # the `tokenizers` library raises bare Exception
            raise UserError(f"{self.folder}: the tokenizer files cannot be read: {error}") from error
        # A stored truncation or padding would silently change every encoding.
        self._backend.no_truncation()
        self._backend.no_padding()
        self.bos_id = self._named_id(config, "bos_token")
        eos = self._named_id(config, "eos_token")
        if eos is None:
            raise UserError(f"{self.folder}/tokenizer_config.json: eos_token is missing; generation could never stop")
        self.eos_id: int = eos
        pad = self._named_id(config, "pad_token")
        self.pad_id: int = self.eos_id if pad is None else pad
        added = self._backend.get_added_tokens_decoder()
        special = {i: token.content for i, token in added.items() if token.special}
        self.special_ids = frozenset(special)
        self._special_text = re.compile("|".join(map(re.escape, special.values())) or r"(?!)")
        self.chat_template = self._read_template(config)
        self.end_of_turn_id = self._find_end_of_turn(config)

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """The tokenizer of `folder`. Raises UserError where files are missing or unreadable."""
        return cls(folder)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def stop_ids(self) -> set[int]:
        """Ids after which generation stops: the end of the sequence and, with chat, of the turn."""
        return {self.eos_id} if self.end_of_turn_id is None else {self.eos_id, self.end_of_turn_id}

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; nothing is added, so BOS is there only if the text spells it."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_with_spans(self, text: str) -> Encoded:
        """Ids of `text` with the characters that each covers."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        return Encoded(encoding.ids, encoding.offsets)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

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

    def _named_id(self, config: dict[str, Any], key: str) -> int | None:
        """The id of the token that the config gives as `key`: a string, or an object with `content`."""
        match config.get(key):
            case None:
                return None
            case str(text) | {"content": str(text)}:
                found = self._backend.token_to_id(text)
                if found is None:
                    raise UserError(f"{self.folder}/tokenizer_config.json: {key} {text!r} is not in the vocabulary")
                return found
            case other:
                raise UserError(f"{self.folder}/tokenizer_config.json: {key} must be a string, got {other!r}")

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
        """The declared `eot_token`, or the one known terminator that the vocabulary has."""
        if self.chat_template is None:
            return None
        declared = self._named_id(config, "eot_token")
        if declared is not None:
            return declared
        known = [self._backend.token_to_id(text) for text in END_OF_TURN if self._backend.token_to_id(text) is not None]
        if len(known) != 1:
            raise UserError(
                f"{self.folder}/tokenizer_config.json: cannot tell which token ends a turn of a chat; "
                f'add "eot_token" (looked for one of {", ".join(END_OF_TURN)})'
            )
        return known[0]
