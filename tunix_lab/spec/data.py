"""The data of an experiment: where its rows are, what they hold, and what to do with a row that is too long."""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeAlias

from annotated_types import Ge, Gt, Lt
from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator

from tunix_lab.spec.section import HUB_PATTERN, Section, Text

Columns: TypeAlias = dict[Text, Text]
"""The column that is read: what the file calls it."""


class _Source(Section):
    columns: Columns | None = None
    """What the file calls the columns that are read, as in {prompt: question}; null: data.columns."""
    weight: Annotated[float, Gt(0)] | None = None
    """Share of the rows drawn for training, relative to the other sources; null for all: every row once an epoch."""


class FileSource(_Source):
    """Rows of a file of the project."""

    kind: Literal["file"] = "file"
    path: Text
    """JSONL, Parquet or CSV file, as its suffix says, relative to the project."""


class HubSource(_Source):
    """Rows of a file of a dataset on the Hugging Face hub, fetched once into the hub's cache."""

    kind: Literal["hub"] = "hub"
    repo: Annotated[str, Field(pattern=HUB_PATTERN)]
    """The dataset's repository, as organisation/name."""
    revision: str
    """Full hash of a commit, by which the run can be made again; a branch or a tag may hold other rows tomorrow."""
    file: Text
    """JSONL, Parquet or CSV file in the repository, as its suffix says."""

    @field_validator("revision")
    @classmethod
    def _is_a_commit(cls, revision: str, info: ValidationInfo) -> str:
        if re.fullmatch("[0-9a-f]{40}", revision):
            return revision
        repo = info.data.get("repo", "REPO")
        raise ValueError(
            "must be the full hash of a commit (40 digits of 0-9a-f), since branches and tags move and short hashes become "
            f"ambiguous; got {revision!r}: `hf datasets info {repo} --revision {revision or 'main'} --expand sha` shows its "
            f"hash, and so does https://huggingface.co/datasets/{repo}/commits/{revision or 'main'}"
        )


class FractionHeldOut(Section):
    """A share of the training rows is held out, chosen by what they hold and the seed, whatever their order."""

    kind: Literal["fraction"] = "fraction"
    fraction: Annotated[float, Gt(0), Lt(1)]
    """Share of the rows."""


class RowsHeldOut(Section):
    """So many of the training rows are held out, chosen by what they hold and the seed, whatever their order."""

    kind: Literal["rows"] = "rows"
    rows: Annotated[int, Gt(0)]
    """Number of rows; copies of a row that is held out are held out too."""


Source: TypeAlias = FileSource | HubSource


def _form(value: Any) -> str | None:
    """Which form of a source, a list of sources or a held-out part is meant; `kind` may be left out where a field tells it."""
    match value:
        case str():
            return "path"
        case list():
            return "mixture"
        case FileSource() | HubSource() | FractionHeldOut() | RowsHeldOut():
            return value.kind
        case {"kind": str(kind)}:
            return kind
        case Mapping():
            return form_of(value)
    return None


def form_of(fields: Iterable[str]) -> str | None:
    """The kind of source, or of part held out, that has one of these fields; None where none tells it."""
    told_by = {"path": "file", "repo": "hub", "file": "hub", "fraction": "fraction", "rows": "rows"}
    return next((kind for field, kind in told_by.items() if field in fields), None)


_ONE_SOURCE = "a path, {path: …} or {kind: hub, repo: …, revision: …, file: …}"


def _forms(*others: str) -> Discriminator:
    words = ", ".join([_ONE_SOURCE, *others])
    return Discriminator(_form, custom_error_type="no_such_source", custom_error_message=f"must be one of: {words}")


_One: TypeAlias = Annotated[Text, Tag("path")] | Annotated[FileSource, Tag("file")] | Annotated[HubSource, Tag("hub")]
_Several: TypeAlias = Annotated[list[Annotated[_One, _forms()]], Field(min_length=1), Tag("mixture")]
_HeldOut: TypeAlias = Annotated[FractionHeldOut, Tag("fraction")] | Annotated[RowsHeldOut, Tag("rows")]


class _Files(Section):
    train: Annotated[_One | _Several, _forms("a list of these")]
    """File of training rows (JSONL, Parquet, CSV) relative to the project, or on the hub; or a list of them, with weights."""
    validation: Annotated[_One | _Several | _HeldOut, _forms("a list of these", "{fraction: 0.05}", "{rows: 200}")]
    """Held-out rows: files like those of train, or the part of the training rows that is kept back for it."""
    columns: Columns = {}
    """What the files call the columns that are read, as in {prompt: question, completion: answer}."""
    overlong: Literal["error", "drop", "truncate"] = "error"
    """What happens to a row that does not fit its length."""

    def held_out(self) -> FractionHeldOut | RowsHeldOut | None:
        """The part of the training rows that is the validation split; None where validation has files of its own."""
        return self.validation if isinstance(self.validation, FractionHeldOut | RowsHeldOut) else None

    def sources(self, split: str) -> tuple[Source, ...]:
        """Where the rows of "train" or "validation" are, each with its columns."""
        own = self.train if split == "train" or self.held_out() is not None else self.validation
        listed = own if isinstance(own, list) else [own]
        found = [FileSource(path=source) if isinstance(source, str) else source for source in listed]
        return tuple(s.model_copy(update={"columns": self.columns}) if s.columns is None else s for s in found)


class _Sequences(_Files):
    max_length: Annotated[int, Ge(2)]
    """Tokens of a row; shorter rows are padded to it."""
    packing: bool = False
    """Put several short rows into one of max_length tokens, where none sees another; training.batch_size counts the packed."""
    buckets: Annotated[list[Annotated[int, Ge(2)]], Field(min_length=1)] | None = None
    """Lengths, rising to max_length: each update is padded to the first that holds its rows. null: always to max_length."""


class TextData(_Sequences):
    """Rows {"text"}; every token is a target."""

    kind: Literal["text"] = "text"


class ChatData(_Sequences):
    """Rows {"prompt", "completion"} or {"messages"}; the tokens of the assistant are targets."""

    kind: Literal["chat"] = "chat"


class PreferenceData(_Files):
    """Rows {"prompt", "chosen", "rejected"}; their lengths are the algorithm's."""

    kind: Literal["preference"] = "preference"
    identical: Literal["error", "drop"] = "error"
    """What happens to a pair whose two answers are the same."""


class PromptData(_Files):
    """Rows {"prompt"}, to be answered; all their other columns are given to the rewards."""

    kind: Literal["prompts"] = "prompts"
    overlong: Literal["error", "drop"] = "error"
    """What happens to a prompt that is longer than algorithm.rollout.max_prompt_length; nothing ever cuts a prompt."""


Data: TypeAlias = Annotated[TextData | ChatData | PreferenceData | PromptData, Field(discriminator="kind")]
