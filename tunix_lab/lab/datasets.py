"""The dataset of a spec: reads the file of a split and turns its rows into the examples that the spec's algorithm trains on."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from tunix_lab.data.examples import Example, sft_examples, text_examples
from tunix_lab.data.ledger import Ledger
from tunix_lab.data.pairs import preference_examples
from tunix_lab.data.rows import Row, Rows, read_rows
from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.errors import UserError
from tunix_lab.sft.config import PreferenceKnobs
from tunix_lab.spec.data import ChatData, PreferenceData, TextData
from tunix_lab.spec.experiment import ExperimentSpec


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One split of a spec's data.

    Attributes:
      rows: what the file holds, with its digest.
      examples: fixed-length arrays, in the order of the rows.
      ledger: what became of rows and tokens.
    """

    rows: Rows
    examples: list[Example]
    ledger: Ledger


def load_dataset(spec: ExperimentSpec, home: Path, split: str, tokenizer: Tokenizer, *, first: int | None = None) -> Dataset:
    """The split "train" or "validation" of `spec`, whose paths are relative to `home`; of it only the `first` rows, if given.

    Raises:
      UserError: the file or a row cannot be used; the message names place and remedy.
    """
    paths = {"train": spec.data.train, "validation": spec.data.validation}
    if split not in paths:
        raise UserError(f"no split {split!r}: a spec has {', '.join(paths)}")
    rows = read_rows(home / paths[split])[:first]
    examples, ledger = tokenize_rows(spec, rows, tokenizer, split)
    return Dataset(rows, examples, ledger)


def tokenize_rows(spec: ExperimentSpec, rows: Sequence[Row], tokenizer: Tokenizer, split: str) -> tuple[list[Example], Ledger]:
    """The examples and ledger of rows, in the format and with the lengths that `spec` says."""
    match spec.data, spec.algorithm:
        case TextData(max_length=length, overlong=overlong), _:
            return text_examples(rows, tokenizer, length, overlong, split=split)
        case ChatData(max_length=length, overlong=overlong), _:
            return sft_examples(rows, tokenizer, length, overlong, split=split)
        case PreferenceData(overlong=overlong), PreferenceKnobs(max_prompt_length=prompt, max_response_length=response):
            return preference_examples(rows, tokenizer, prompt, response, overlong, split=split)
        case _:
            raise UserError(f"data of kind {spec.data.kind} does not suit the algorithm {spec.algorithm.kind}")
