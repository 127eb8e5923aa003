"""The dataset of a spec: reads the files of a split and turns their rows into the examples that its algorithm trains on."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunix_lab.data.cache import cache_key, remembered, transform_version
from tunix_lab.data.examples import Example, sft_examples, text_examples
from tunix_lab.data.files import read_rows
from tunix_lab.data.holdout import held_out
from tunix_lab.data.ledger import Ledger, total
from tunix_lab.data.order import Share
from tunix_lab.data.packing import pack
from tunix_lab.data.pairs import preference_examples
from tunix_lab.data.prompts import prompt_examples
from tunix_lab.data.rows import Row, Rows, count_repeats
from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.errors import UserError
from tunix_lab.lab.sources import SPLITS, DataFile, data_files
from tunix_lab.sft.config import PreferenceKnobs
from tunix_lab.spec.algorithm import Reinforcement
from tunix_lab.spec.data import ChatData, Data, FractionHeldOut, PreferenceData, PromptData, RowsHeldOut, TextData
from tunix_lab.spec.experiment import ExperimentSpec


@dataclasses.dataclass(frozen=True)
class Part:
    """What one file gives to a split.

    Attributes:
      file: where the rows come from.
      rows: its rows on this side of the split, under the names that are read.
      examples: fixed-length arrays.
      members: for each example the numbers of the rows in it; several where rows are packed.
      ledger: what became of rows and tokens.
    """

    file: DataFile
    rows: Rows
    examples: list[Example]
    members: list[list[int]]
    ledger: Ledger


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One split of a spec's data.

    Attributes:
      split: "train" or "validation".
      parts: what each of its files gives, in the order of the spec.
    """

    split: str
    parts: list[Part]

    @property
    def rows(self) -> list[Row]:
        """The rows of all parts, one part after the other."""
        return [row for part in self.parts for row in part.rows]

    @property
    def examples(self) -> list[Example]:
        """The examples of all parts, likewise."""
        return [example for part in self.parts for example in part.examples]

    @property
    def ledger(self) -> Ledger:
        """The ledgers of all parts together."""
        return total([part.ledger for part in self.parts], self.split, count_repeats(self.rows))

    def mixture(self) -> list[Share] | None:
        """Examples and weight of each part; None where the rows of all parts count alike."""
        weights = [part.file.source.weight for part in self.parts]
        if len(self.parts) == 1 or None in weights:
            return None
        return [Share(len(part.examples), weight) for part, weight in zip(self.parts, weights, strict=True)]


def load_dataset(
    spec: ExperimentSpec, home: Path, split: str, tokenizer: Tokenizer, *, first: int | None = None, cache: Path | None = None
) -> Dataset:
    """The split "train" or "validation" of `spec`.

    Args:
      spec: the experiment.
      home: project folder, to which its paths are relative.
      split: which.
      tokenizer: of the data.
      first: only so many rows of each file, if given. Where rows are packed all are needed to know which share a row.
      cache: folder that keeps tokenised examples; None keeps none.

    Raises:
      UserError: a file or a row cannot be used; the message names place and remedy.
    """
    if split not in SPLITS:
        raise UserError(f"no split {split!r}: a spec has {', '.join(SPLITS)}")
    files = data_files(spec, home, split)
    sides = _on_this_side(spec, split, [read_rows(file.path, file.source.columns) for file in files])
    if _packs(spec.data):
        first = None
    parts = [_part(spec, file, rows[:first], tokenizer, cache) for file, rows in zip(files, sides, strict=True) if rows]
    return Dataset(split, parts)


def _on_this_side(spec: ExperimentSpec, split: str, sources: list[Rows]) -> list[Rows]:
    """The rows of each file that belong to the split."""
    match spec.data.held_out():
        case None:
            return sources
        case FractionHeldOut(fraction=fraction):
            chosen = held_out(sources, spec.seed, fraction=fraction)
        case RowsHeldOut(rows=count):
            chosen = held_out(sources, spec.seed, count=count)
    wanted = split == "validation"
    sides = [rows.take([i for i in range(len(rows)) if c[i] == wanted]) for rows, c in zip(sources, chosen, strict=True)]
    for rows in sides:
        if not rows and not wanted:
            raise UserError(f"{rows.path}: data.validation holds out all of its rows; hold out fewer, or take the file out")
    return sides


def _part(spec: ExperimentSpec, file: DataFile, rows: Rows, tokenizer: Tokenizer, cache: Path | None) -> Part:
    key = cache_key(rows, tokenizer.digest(), _transform_options(spec, file.key), transform_version()) if cache else ""
    examples, ledger = remembered(cache, key, lambda: tokenize_rows(spec, rows, tokenizer, file.key))
    members = [[row] for row in ledger.kept_rows]
    if _packs(spec.data):
        packed = pack(examples, tokenizer.pad_id)
        examples, members = packed.examples, [[ledger.kept_rows[i] for i in chosen] for chosen in packed.members]
    return Part(file, rows, examples, members, ledger)


def _packs(data: Data) -> bool:
    return isinstance(data, TextData | ChatData) and data.packing


def buckets_of(data: Data) -> list[int] | None:
    """The lengths to which batches are cut; None where all have one."""
    return data.buckets if isinstance(data, TextData | ChatData) else None


def _transform_options(spec: ExperimentSpec, split: str) -> dict[str, Any]:
    """What `tokenize_rows` reads of a spec, for the key of the cache."""
    options: dict[str, Any] = {"kind": spec.data.kind, "overlong": spec.data.overlong, "split": split}
    match spec.data, spec.algorithm:
        case ((TextData(max_length=length) | ChatData(max_length=length)), _):
            return options | {"max_length": length}
        case PreferenceData(identical=identical), PreferenceKnobs(max_prompt_length=prompt, max_response_length=response):
            return options | {"max_prompt_length": prompt, "max_response_length": response, "identical": identical}
        case PromptData(), Reinforcement(rollout=rollout):
            return options | {"max_prompt_length": rollout.max_prompt_length}
    return options


def tokenize_rows(spec: ExperimentSpec, rows: Sequence[Row], tokenizer: Tokenizer, split: str) -> tuple[list[Example], Ledger]:
    """The examples and ledger of rows, in the format and with the lengths that `spec` says."""
    match spec.data, spec.algorithm:
        case TextData(max_length=length, overlong=overlong), _:
            return text_examples(rows, tokenizer, length, overlong, split=split)
        case ChatData(max_length=length, overlong=overlong), _:
            return sft_examples(rows, tokenizer, length, overlong, split=split)
        case (
            PreferenceData(overlong=overlong, identical=identical),
            PreferenceKnobs(max_prompt_length=prompt, max_response_length=response),
        ):
            return preference_examples(rows, tokenizer, prompt, response, overlong, identical=identical, split=split)
        case PromptData(overlong=overlong), Reinforcement(rollout=rollout):
            return prompt_examples(rows, tokenizer, rollout.max_prompt_length, overlong, split=split)
        case _:
            raise UserError(f"data of kind {spec.data.kind} does not suit the algorithm {spec.algorithm.kind}")
