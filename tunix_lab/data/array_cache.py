"""Arrays that a cache keeps in a file: whole or not at all, whoever else reads or writes it at the same time."""

import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tunix_lab.errors import EnvironmentProblem


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays in `path` by name; None where there is no file, or one that was cut short: then they are made again."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile):
        return None


def write_arrays(path: Path, columns: Mapping[str, np.ndarray], what: str) -> None:
    """Keeps arrays in `path`. It has this name only when it is whole, so several processes may make the same at one time.

    Args:
      path: of the file; its folder is made.
      columns: arrays by name.
      what: they are, for people.

    Raises:
      EnvironmentProblem: the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            try:
                np.savez(file, **columns)
            except OSError:
                Path(file.name).unlink()
                raise
        os.replace(file.name, path)
    except OSError as error:
        raise EnvironmentProblem(
            f"{path.parent}: {what} cannot be kept there: {error.strerror}; make room, or set TUNIX_LAB_CACHE_DIR"
        ) from error
