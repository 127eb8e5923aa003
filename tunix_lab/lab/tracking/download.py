"""The record of a run fetched from MLflow, where its directory is gone or on another machine."""

import re
import shutil
from pathlib import Path

from tunix_lab.errors import EnvironmentProblem, UserError
from tunix_lab.lab.record.run_state import MANIFEST
from tunix_lab.lab.tracking.artifacts import ARTIFACTS, LAST_ARTIFACTS
from tunix_lab.lab.tracking.problems import without_credentials
from tunix_lab.lab.tracking.runs import find_run
from tunix_lab.lab.tracking.store import impatient_requests, open_store, parse_store

_RUN_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def download_run(tracking_uri: str, run_id: str, folder: Path) -> Path:
    """Fetches what MLflow has of a run into `folder/<run id>`, laid out as a run directory.

    Args:
      tracking_uri: of the store.
      run_id: the whole id, as the tag `lab.run_id` has it.
      folder: receives the directory.

    Raises:
      UserError: the store has no such run, or not its manifest.
      EnvironmentProblem: the store does not answer.
    """
    import requests
    from mlflow.exceptions import MlflowException

    store = parse_store(tracking_uri)
    missing = UserError(f"no run {run_id!r} here, and none with this id in {store.shown}; `tunix-lab runs --all` lists runs")
    if not _RUN_ID.fullmatch(run_id) or (store.sqlite_file is not None and not store.sqlite_file.is_file()):
        raise missing
    target = folder / run_id
    shutil.rmtree(target, ignore_errors=True)
    with impatient_requests():
        try:
            client = open_store(store)
            run = find_run(client, run_id)
            if run is None:
                raise missing
            _download(client, run.info.run_id, target)
        except (MlflowException, requests.RequestException, OSError) as error:
            reason = without_credentials(store, str(error).splitlines()[0])
            raise EnvironmentProblem(f"{store.shown} cannot give run {run_id}: {reason}") from error
    if not (target / MANIFEST).is_file():
        raise UserError(f"{store.shown} has run {run_id}, but not its manifest: it was not pushed to the end (`tunix-lab sync`)")
    return target


def _download(client, mlflow_run_id: str, target: Path) -> None:
    folders = {folder for folder in (ARTIFACTS | LAST_ARTIFACTS).values() if folder}
    present = {entry.path for folder in ("", *sorted(folders)) for entry in client.list_artifacts(mlflow_run_id, folder or None)}
    for name, folder in (ARTIFACTS | LAST_ARTIFACTS).items():
        path = f"{folder}/{Path(name).name}" if folder else Path(name).name
        if path in present:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            found = client.download_artifacts(mlflow_run_id, path, str(target.parent))
            shutil.move(found, target / name)
