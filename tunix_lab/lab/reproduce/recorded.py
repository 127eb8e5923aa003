"""The record of a run to be made again: found here or in MLflow, whole, and free of what was taken out as a secret."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from tunix_lab.errors import Mismatch, UserError
from tunix_lab.lab.record.run_state import BUNDLE, PATCH, find_run, read_manifest, run_status

RESOLVED = "resolved.yaml"


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A run's record.

    Attributes:
      folder: the run directory, or what was fetched of it.
      manifest: its manifest.
    """

    folder: Path
    manifest: dict[str, Any]

    @property
    def run_id(self) -> str:
        """Id of the run."""
        return self.folder.name

    @property
    def git(self) -> dict[str, Any]:
        """What git knew of its code."""
        return self.manifest["git"]

    @property
    def patch(self) -> bytes | None:
        """How its tracked files differed from the commit; None where they did not."""
        return self._read(PATCH)

    @property
    def bundle(self) -> bytes | None:
        """Its untracked files; None where there were none."""
        return self._read(BUNDLE)

    def _read(self, name: str) -> bytes | None:
        return (self.folder / name).read_bytes() if name in self.manifest["files"] else None


def open_record(home: Path, text: str, tracking_uri: str, downloads: Path) -> Recorded:
    """The record of the run that `text` names: from its directory, else from MLflow by its whole id.

    Args:
      home: the project folder.
      text: a run id, or for local runs its beginning or end.
      tracking_uri: of the store that is asked.
      downloads: folder that receives what is fetched.

    Raises:
      UserError: there is no such run, it has not ended, or its record cannot be made again; the message says why.
      Mismatch: a file of the record is not the one that was written.
    """
    if any(name.startswith(text) or name.endswith(text) for name in (path.name for path in (home / "runs").glob("*"))):
        folder = find_run(home, text)
        if run_status(folder).status == "running":
            raise UserError(f"run {folder.name} is still running: it can be made again once it has ended")
    else:
        from tunix_lab.lab.tracking.download import download_run

        folder = download_run(tracking_uri, text, downloads)
    recorded = Recorded(folder, read_manifest(folder))
    _check(recorded)
    return recorded


def _check(recorded: Recorded) -> None:
    """Refuses a record that cannot lead to the same run."""
    manifest, run_id = recorded.manifest, recorded.run_id
    if "input_files" not in manifest or "files" not in manifest:
        others = {"evaluate": "an evaluation", "sweep": "a sweep, whose trials are runs that can be"}
        what = others.get(manifest.get("kind"), "recorded by a version that kept too little for it")
        raise UserError(f"run {run_id} cannot be made again: it is {what}")
    if recorded.git["commit"] is None:
        raise UserError(f"run {run_id} cannot be made again: its project was not under git, so its code is not known")
    redacted = [name for name in manifest["redacted"] if name in (RESOLVED, PATCH)]
    if redacted:
        raise UserError(
            f"run {run_id} cannot be made again: secrets were taken out of {' and '.join(redacted)}, so that it is not what ran; "
            "keep secrets in environment variables"
        )
    for name, digest in manifest["files"].items():
        path = recorded.folder / name
        if not path.is_file():
            raise Mismatch(f"the record of run {run_id} is not whole: {name} is missing from {recorded.folder}")
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise Mismatch(f"the record of run {run_id} was changed: {name} is not the file that its manifest names")
