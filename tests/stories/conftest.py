"""What all stories share: data, a cache of compiled programs, and a project folder each."""

from pathlib import Path

import pytest
from story_project import Project

from tunix_lab.data.files import read_rows
from tunix_lab.data.tokenizer_training import train_tokenizer
from tunix_lab.tasks.arithmetic import write


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of compiled programs for all stories."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small arithmetic dataset and its tokenizer."""
    folder = tmp_path_factory.mktemp("data")
    write(folder / "arithmetic", seed=0, train=200, validation=32, test=32)
    rows = [*read_rows(folder / "arithmetic/pretrain/train.jsonl"), *read_rows(folder / "arithmetic/sft/train.jsonl")]
    train_tokenizer(rows, 512, folder / "tokenizer")
    return folder


@pytest.fixture
def project(tmp_path: Path, data: Path, cache: Path) -> Project:
    """A project with data and no runs yet."""
    home = tmp_path / "project"
    home.mkdir()
    (home / "data").symlink_to(data)
    return Project(home, cache)
