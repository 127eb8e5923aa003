"""Arrays in a cache are whole or not there, whoever writes at the same time."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tunix_lab.data.array_cache import read_arrays, write_arrays
from tunix_lab.errors import EnvironmentProblem

COLUMNS = {"a": np.arange(50_000.0), "b": np.arange(3, dtype=np.int32)}


def test_several_writers_of_one_file(tmp_path: Path) -> None:
    """Trials of a sweep begin together and need the same file; none may take the temporary file of another."""
    path = tmp_path / "cache/key.npz"
    with ThreadPoolExecutor(8) as pool:
        for written in [pool.submit(write_arrays, path, COLUMNS, "numbers") for _ in range(64)]:
            written.result()
    assert list(path.parent.iterdir()) == [path]
    found = read_arrays(path)
    assert found.keys() == COLUMNS.keys()
    for name, array in COLUMNS.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


@pytest.mark.parametrize("damage", [b"", b"no zip", np.lib.format.MAGIC_PREFIX, None])
def test_what_cannot_be_read_is_not_there(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "key.npz"
    assert read_arrays(path) is None
    write_arrays(path, COLUMNS, "numbers")
    path.write_bytes(path.read_bytes()[:100] if damage is None else damage)
    assert read_arrays(path) is None


def test_a_place_that_takes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentProblem, match="numbers cannot be kept there: .*TUNIX_LAB_CACHE_DIR"):
        write_arrays(tmp_path / "file/key.npz", COLUMNS, "numbers")
