"""Checkpoints in MLflow: one external LoggedModel each, with links and hashes. The weights stay where they are."""

import re
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tunix_lab.lab.tracking.store import all_pages

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def short_name(run_id: str) -> str:
    """`<name>-<4 hex>` of a run id: what tells runs apart in a legend. (The time has its own column.)"""
    return re.sub(r"-\d{8}-\d{6}(?=-[0-9a-f]{4}$)", "", run_id)


def model_name(run_id: str, step: int) -> str:
    """Name of a checkpoint, the step first because MLflow cuts names after about 26 characters."""
    return f"s{step:06d}-" + re.sub(r"[^\w-]", "_", short_name(run_id))


def find_checkpoint(client: "MlflowClient", run: "Run", run_id: str, step: int) -> str | None:
    """MLflow's id of the checkpoint that our run `run_id`, in MLflow `run`, made at `step`."""
    found = client.search_logged_models(
        [run.info.experiment_id],
        filter_string=f"name = '{model_name(run_id, step)}' AND source_run_id = '{run.info.run_id}'",
    )
    return found[0].model_id if found else None


def log_checkpoint(
    client: "MlflowClient", run: "Run", run_id: str, step: int, params: Mapping[str, str], tags: Mapping[str, str]
) -> str:
    """Makes the LoggedModel of a checkpoint, or completes the one that an interrupted pass left; returns its id."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models.utils import get_external_mlflow_model_spec

    model_id = find_checkpoint(client, run, run_id, step)
    if model_id is None:
        model_id = client.create_logged_model(
            run.info.experiment_id,
            name=model_name(run_id, step),
            source_run_id=run.info.run_id,
            tags={"mlflow.model.isExternal": "true", "lab.run_id": run_id, **tags},
            params=dict(params),
            model_type="checkpoint",
        ).model_id
    # Output of the run first: a metric with a model unknown to its run would make the model an input of that run.
    if model_id not in {output.model_id for output in run.outputs.model_outputs}:
        client.log_outputs(run.info.run_id, [LoggedModelOutput(model_id, step)])
    with tempfile.TemporaryDirectory() as folder:  # the description that the model registry asks for
        get_external_mlflow_model_spec(client.get_logged_model(model_id)).save(str(Path(folder) / "MLmodel"))
        client.log_model_artifacts(model_id, folder)
    client.finalize_logged_model(model_id, "READY")
    return model_id


def remove_twin_checkpoints(
    client: "MlflowClient", experiment_id: str, mlflow_run_id: str, run_id: str, kept: Collection[str]
) -> None:
    """Deletes checkpoints of our run `run_id` beside those that are `kept`; they come about like twins of runs."""
    made = f"source_run_id = '{mlflow_run_id}' AND tags.`lab.run_id` = '{run_id}'"
    for model in list(all_pages(client.search_logged_models, experiment_ids=[experiment_id], filter_string=made)):
        if model.model_id not in kept:
            client.delete_logged_model(model.model_id)
