"""Small runs made through the real journal, and a prepared SQLite store to copy (making one takes more than a second)."""

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hand_made import manifest

from tunix_lab.lab.record.journal import Journal

MakeRun = Callable[..., Path]
Query = Callable[[str], list[tuple[Any, ...]]]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Makes a run directory with manifest and specs, ready for `Journal.open`; keywords change the manifest."""

    def make(run_id: str = "dpo_nano-20261123-080000-3a61", **changes: Any) -> Path:
        run_dir = tmp_path / "runs" / run_id
        run_dir.mkdir(parents=True)
        (run_dir / "manifest.json").write_text(json.dumps(manifest(run_id, **changes)))
        (run_dir / "spec.yaml").write_text("name: dpo_nano\n")
        (run_dir / "resolved.yaml").write_text("name: dpo_nano\nseed: 0\n")
        return run_dir

    return make


@pytest.fixture
def train() -> Callable[..., None]:
    """Journals steps `first`..`last` like a trainer; a status of None is that of a killed process: the lock just ends."""

    def run(run_dir: Path, first: int = 1, last: int = 10, status: str | None = "finished") -> None:
        journal = Journal.open(run_dir)
        for step in range(first, last + 1):
            journal.metrics(step, {"train/loss": 1 / step, "train/grad_norm": 0.5})
        if status is not None:
            journal.finish(status)
        journal.close()

    return run


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tunix_lab.lab.tracking.store import open_store, parse_store

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_store(parse_store(f"sqlite:///{file}"))
    with closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return file


@pytest.fixture
def store_file(tmp_path: Path, empty_store: Path) -> Path:
    return Path(shutil.copy(empty_store, tmp_path / "mlflow.db"))


@pytest.fixture
def tracking_uri(store_file: Path) -> str:
    return f"sqlite:///{store_file}"


@pytest.fixture
def query(store_file: Path) -> Iterator[Query]:
    """Rows of an SQL statement on the store, which knows what MLflow's own readers would hide (duplicates)."""
    with closing(sqlite3.connect(store_file)) as database:
        yield lambda sql: database.execute(sql).fetchall()
