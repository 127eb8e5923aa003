"""Where the rows of a spec lie on disk, and by what their content is told from another's."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunix_lab.data.hub import fetch_file
from tunix_lab.lab.versioning import dvc_digest
from tunix_lab.spec.data import FileSource, HubSource, Source
from tunix_lab.spec.experiment import ExperimentSpec

SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True)
class DataFile:
    """A file that a split is read from.

    Attributes:
      split: "train" or "validation".
      key: the split, with the number of the file where there are several: "train.0".
      dataset: the name under which trackers show it: the folder it lies in, or the hub's repository.
      name: what tells it from others: its path in the project, or repository, commit and file of the hub.
      path: where it lies.
      source: what the spec says of it.
    """

    split: str
    key: str
    dataset: str
    name: str
    path: Path
    source: Source

    @property
    def is_of_the_project(self) -> bool:
        """Whether DVC may know it; the hub's files lie outside the project."""
        return isinstance(self.source, FileSource)


def data_files(spec: ExperimentSpec, home: Path, split: str) -> list[DataFile]:
    """The files of a split, those of the hub fetched; for validation rows that are kept back, the files of training."""
    sources = spec.data.sources(split)
    keys = [split] if len(sources) == 1 else [f"{split}.{number}" for number in range(len(sources))]
    return [DataFile(split, key, *_found(source, home), source) for key, source in zip(keys, sources, strict=True)]


def _found(source: Source, home: Path) -> tuple[str, str, Path]:
    """Dataset, name and path of a file."""
    match source:
        case FileSource(path=path):
            return Path(path).parent.name, path, home / path
        case HubSource(repo=repo, revision=commit, file=file):
            return repo, f"{repo}@{commit}/{file}", fetch_file(repo, commit, file)


def project_paths(spec: ExperimentSpec) -> list[str]:
    """The files of the project that a run reads rows from, relative to it."""
    return [source.path for split in SPLITS for source in spec.data.sources(split) if isinstance(source, FileSource)]


def data_digests(spec: ExperimentSpec, home: Path) -> dict[str, str]:
    """Hash of every file by its key, as DVC shows it."""
    return {file.key: dvc_digest(file.path) for split in SPLITS for file in data_files(spec, home, split)}


def described(spec: ExperimentSpec, home: Path, digests: Mapping[str, str], rows: Mapping[str, int]) -> list[dict[str, Any]]:
    """The datasets of a manifest, a file each.

    Args:
      spec: the experiment.
      home: the project folder.
      digests: see `data_digests`.
      rows: number of rows by key.
    """
    return [
        {
            "name": file.dataset,
            "path": file.name,
            "digest": digests[file.key],
            "context": split,
            "rows": rows.get(file.key, 0),
        }
        for split in SPLITS
        for file in data_files(spec, home, split)
    ]


def data_tags(spec: ExperimentSpec, home: Path, digests: Mapping[str, str]) -> dict[str, str]:
    """The hashes as tags. A tag `dvc.*` is a hash that DVC shows too; the hub's content has names of its own."""
    files = [file for split in SPLITS for file in data_files(spec, home, split)]
    return {f"{'dvc' if file.is_of_the_project else 'lab.data'}.{file.key}": digests[file.key] for file in files}
