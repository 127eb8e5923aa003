"""What all stories share: data, a cache of compiled programs, and a project folder each."""

from collections.abc import Callable
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


@pytest.fixture(scope="session")
def rl_run(tmp_path_factory: pytest.TempPathFactory, data: Path, cache: Path) -> Callable[[str], tuple[Project, Path]]:
    """`rl_run(name)`: a finished run of one of `RL_KINDS` that nobody interrupted, and its project; made once."""
    made: dict[str, tuple[Project, Path]] = {}

    def get(name: str) -> tuple[Project, Path]:
        if name not in made:
            home = tmp_path_factory.mktemp(name) / "project"
            home.mkdir()
            (home / "data").symlink_to(data)
            project = Project(home, cache)
            project.cli(*project.rl_command(name), TUNIX_LAB_SYNC="off")
            (run,) = project.runs()
            made[name] = project, run
        return made[name]

    return get
