"""Whether a run could write where it is going to: told before hours of training instead of after them. Changes nothing."""

import os
import tempfile
from pathlib import Path

from tunix_lab.errors import EnvironmentProblem, unwritable
from tunix_lab.lab.tracking.store import check_address
from tunix_lab.spec import LabSettings, tracking_uri


def check_places(home: Path, settings: LabSettings, out: Path | None = None) -> None:
    """Looks at the folders of a project, the cache, the outputs and the tracking store.

    Raises:
      EnvironmentProblem: one of them cannot be used.
    """
    check_folder(home / "runs", "runs are recorded there")
    check_folder(home / "checkpoints", "checkpoints are kept there")
    check_folder(settings.cache_dir, "TUNIX_LAB_CACHE_DIR, or the default cache")
    if out is not None:
        for folder in (out, out / "final"):
            check_folder(folder, "--out")
    if settings.replicates:
        check_address(tracking_uri(settings, home))


def check_folder(folder: Path, role: str) -> None:
    """Whether a folder, or the nearest one above that exists, takes a new file. Raises EnvironmentProblem naming `role`."""
    folder = folder.absolute()
    nearest = next(path for path in (folder, *folder.parents) if os.path.exists(path))  # what may not be seen is not there
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return
    except OSError as error:
        problem = unwritable(error, f"{nearest} ({role})")
        raise problem or EnvironmentProblem(f"{nearest} ({role}): cannot be written: {error.strerror}") from error
