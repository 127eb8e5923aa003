"""Keeps tokenised examples on disk under a key that tells their content: what they are made of and how.

The key knows bytes, never paths or times: a file that is moved or touched is found, and a changed byte of data, tokenizer or chat
template is not. The code that makes examples is part of the key too, so that nobody has to remember to count a version up.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tunix_lab.data.array_cache import read_arrays, write_arrays
from tunix_lab.data.examples import Example
from tunix_lab.data.ledger import Ledger
from tunix_lab.data.rows import CONTENT, Row

_LIBRARIES = ("tokenizers", "sentencepiece", "jinja2")
_LEDGER = "ledger"

Made = tuple[list[Example], Ledger]


def transform_version() -> str:
    """sha256 of the code of this package and of the versions of the libraries that turn text into tokens."""
    digest = hashlib.sha256(" ".join(importlib.metadata.version(name) for name in _LIBRARIES).encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def cache_key(rows: Sequence[Row], tokenizer: str, options: Mapping[str, Any], transform: str) -> str:
    """sha256 of all that examples depend on.

    Args:
      rows: of which only what training reads counts.
      tokenizer: digest of its files, the chat template among them.
      options: kind, lengths and the like, JSON-serialisable.
      transform: see `transform_version`.
    """
    digest = hashlib.sha256(json.dumps([tokenizer, options, transform], sort_keys=True).encode())
    for row in rows:
        content = {name: row[name] for name in CONTENT if name in row}
        digest.update(json.dumps(content, sort_keys=True, default=repr).encode() + b"\n")
    return digest.hexdigest()


def remembered(folder: Path | None, key: str, make: Callable[[], Made]) -> Made:
    """What `make` made earlier under this key, else what it makes now, which is kept.

    Args:
      folder: of the cache; None keeps nothing.
      key: see `cache_key`.
      make: gives examples and their ledger; what it raises is raised.
    """
    if folder is None:
        return make()
    path = folder / f"{key}.npz"
    found = _read(path)
    if found is None:
        found = make()
        _write(path, *found)
    return found


def _read(path: Path) -> Made | None:
    columns = read_arrays(path)
    if columns is None:
        return None
    ledger = Ledger(**json.loads(columns.pop(_LEDGER).tobytes()))
    count = len(next(iter(columns.values())))
    return [{name: column[i] for name, column in columns.items()} for i in range(count)], ledger


def _write(path: Path, examples: list[Example], ledger: Ledger) -> None:
    columns = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    columns[_LEDGER] = np.frombuffer(json.dumps(dataclasses.asdict(ledger)).encode(), np.uint8)
    write_arrays(path, columns, "tokenised data")
