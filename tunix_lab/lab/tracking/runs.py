"""The MLflow run of a run of ours: found by our run id, or made, together with its experiment."""

import getpass
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tunix_lab.errors import EnvironmentProblem
from tunix_lab.lab.record.run_state import RunState
from tunix_lab.lab.tracking.checkpoints import short_name
from tunix_lab.lab.tracking.store import Store, all_pages, impatient_requests, open_store, parse_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# Left alone, MLflow picks colours by a hash, and three runs in a chart are often two reds and a blue. After Okabe and Ito.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#6A3D9A", "#8C564B", "#7F7F7F", "#B2182B")


def find_run(client: "MlflowClient", run_id: str) -> "Run | None":
    """The MLflow run that replicates our run `run_id`, in whatever experiment; None if there is none (or it was deleted)."""
    found = _replicas(client, run_id)
    return min(found, key=lambda run: (not _is_described(run), run.info.run_id), default=None)


def remove_twins(client: "MlflowClient", run_id: str, kept: str) -> None:
    """Deletes empty runs that carry our run id beside the one that is `kept`.

    They come from a server that carries out a request to make a run after its answer was no longer awaited.
    """
    for run in _replicas(client, run_id):
        if run.info.run_id != kept and not _is_described(run):
            client.delete_run(run.info.run_id)


def _replicas(client: "MlflowClient", run_id: str) -> "list[Run]":
    experiments = [experiment.experiment_id for experiment in all_pages(client.search_experiments)]
    return list(client.search_runs(experiments, f"tags.`lab.run_id` = '{run_id}'", max_results=100))


def _is_described(run: "Run") -> bool:
    """Whether more than the run's creation was replicated."""
    return "lab.attempt" in run.data.tags


def tag_run(tracking_uri: str, run_id: str, tags: Mapping[str, str]) -> bool:
    """Sets tags on the MLflow run that replicates our run `run_id`; whether there is one, and the store answered."""
    import requests
    from mlflow.exceptions import MlflowException

    with impatient_requests():
        try:
            client = open_store(parse_store(tracking_uri))
            run = find_run(client, run_id)
            for name, value in tags.items() if run is not None else ():
                client.set_tag(run.info.run_id, name, value)
        except (MlflowException, requests.RequestException, OSError):
            return False
    return run is not None


def create_run(client: "MlflowClient", store: Store, manifest: Mapping[str, Any], state: RunState) -> "Run":
    """Makes the run, findable from its first moment.

    Raises:
      EnvironmentProblem: its experiment was deleted in MLflow.
    """
    experiment = _ensure_experiment(client, store, manifest["experiment"])
    newest = client.search_runs([experiment], order_by=["attributes.start_time DESC"], max_results=1)
    return client.create_run(
        experiment,
        start_time=state.started_ms or None,
        run_name=short_name(state.run_id),
        tags={
            "lab.run_id": state.run_id,
            "mlflow.user": _user(),
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": f"tunix-lab {manifest['kind']} {manifest['name']}",
            "mlflow.runColor": _next_colour(newest[0].data.tags.get("mlflow.runColor") if newest else None),
        },
    )


def _next_colour(previous: str | None) -> str:
    """The colour after that of the newest run in the experiment."""
    return _COLOURS[(_COLOURS.index(previous) + 1) % len(_COLOURS)] if previous in _COLOURS else _COLOURS[0]


def _ensure_experiment(client: "MlflowClient", store: Store, name: str) -> str:
    """MLflow's id of the experiment `name`."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        root = store.artifact_root
        location = None if root is None else (root / re.sub(r"[^\w.-]", "_", name)).as_uri()
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another run was faster
                raise
        experiment = client.get_experiment_by_name(name)
    if experiment.lifecycle_stage == "deleted":
        raise EnvironmentProblem(
            f"experiment {name!r} was deleted in {store.shown}: restore it there "
            f"(`mlflow experiments restore -x {experiment.experiment_id}`), or choose another tracking.experiment"
        )
    return experiment.experiment_id


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        return str(os.getuid())
