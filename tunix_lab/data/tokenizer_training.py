"""Trains a small byte-level BPE tokenizer whose digits are single tokens, with Gemma's special tokens and chat template.

Byte level means that every text can be written and read back; single digits mean that `12` is always `1`, `2`, so arithmetic
sees places of numbers. The same corpus gives the same bytes.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.errors import UserError

SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
"""Their ids are their places here."""

SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256

PIECES = r"\p{N}|</?\p{L}+>| ?\p{L}+| ?[^\s\p{L}\p{N}<>]+|[<>]|\n|[^\S\n]+"
"""What a token may never reach across: a digit, an XML tag, a word or punctuation with the space before it, a line break."""

CHAT_TEMPLATE = """\
{{ bos_token }}
{%- set rest = messages -%}
{%- set preamble = '' -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set preamble = messages[0]['content'] | trim + '\\n\\n' -%}
    {%- set rest = messages[1:] -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) or message['role'] not in ('user', 'assistant') -%}
        {{ raise_exception('roles must alternate user, assistant, user, assistant, ...') }}
    {%- endif -%}
    {{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' }}
    {{- (preamble if loop.first else '') + message['content'] | trim }}
    {{- '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""
"""Gemma's format: `<bos><start_of_turn>user\\n…<end_of_turn>\\n<start_of_turn>model\\n…<end_of_turn>\\n`."""


def train_tokenizer(rows: Iterable[Mapping[str, object]], vocab_size: int, folder: str | Path) -> Tokenizer:
    """Trains on the texts of `rows` and writes the folder of a tokenizer with at most `vocab_size` ids.

    Args:
      rows: dataset rows of any format (text | prompt, completion | prompt, chosen, rejected | messages).
      vocab_size: special tokens and the 256 bytes included.
      folder: made if missing; files in it are replaced.

    Raises:
      UserError: `vocab_size` is below `SMALLEST_VOCABULARY`, or no row has text.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise UserError(
            f"tokenizer: vocab size must be at least {SMALLEST_VOCABULARY} (256 bytes and {len(SPECIAL_TOKENS)} special tokens), "
            f"got {vocab_size}"
        )
    texts = list(_texts(rows))
    if not texts:
        raise UserError("tokenizer: the corpus has no text; its rows need one of the columns text, prompt or messages")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config = {
        **named,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eot_token": "<end_of_turn>",
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "model_max_length": 10**30,
    }
    _write(folder / "tokenizer.json", backend.to_str(pretty=True) + "\n")
    _write(folder / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")
    _write(folder / "special_tokens_map.json", json.dumps(named, indent=2) + "\n")
    _write(folder / "chat_template.jinja", CHAT_TEMPLATE)
    return Tokenizer.load(folder)


def _texts(rows: Iterable[Mapping[str, object]]) -> Iterator[str]:
    """The texts of rows, chats with the words that the template puts before a turn."""
    for row in rows:
        for column, value in row.items():
            match column, value:
                case "text", str(text):
                    yield text
                case "prompt", str(text):
                    yield from ("user\n", text)
                case (("completion" | "chosen" | "rejected"), str(text)):
                    yield from ("model\n", text)
                case (("prompt" | "messages"), [*messages]):
                    for message in messages:
                        yield from _turn(message)


def _turn(message: object) -> Iterator[str]:
    match message:
        case {"role": "assistant", "content": str(text)}:
            yield from ("model\n", text)
        case {"content": str(text)}:
            yield from ("user\n", text)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
