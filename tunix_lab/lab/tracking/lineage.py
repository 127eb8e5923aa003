"""Reads runs from a tracking store as records of lineage: those of colleagues, whose run directories lie elsewhere."""

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from tunix_lab.lab.lineage.records import RunRecord
from tunix_lab.lab.tracking.problems import check_store
from tunix_lab.lab.tracking.store import Store, all_pages, impatient_requests, open_store

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run

_PATIENCE_SECONDS = 60.0


def read_remote_runs(store: Store) -> list[RunRecord]:
    """The runs of ours that the store holds, oldest first.

    Raises:
      EnvironmentProblem: the store cannot be reached or used.
    """
    check_store(store)
    with impatient_requests(_PATIENCE_SECONDS):
        client = open_store(store)
        experiments = {e.experiment_id: e.name for e in all_pages(client.search_experiments)}
        ours = "tags.`lab.run_id` LIKE '%'"
        runs = list(all_pages(client.search_runs, experiment_ids=[*experiments], filter_string=ours, max_results=500))
        models: dict[str, list[LoggedModel]] = defaultdict(list)
        for model in all_pages(client.search_logged_models, experiment_ids=[*experiments], filter_string=ours):
            models[model.source_run_id].append(model)
    runs.sort(key=lambda run: run.info.start_time)
    return [_record(run, experiments[run.info.experiment_id], models[run.info.run_id], store.shown) for run in runs]


def _record(run: "Run", experiment: str, models: "list[LoggedModel]", place: str) -> RunRecord:
    tags = run.data.tags
    manifest = {
        "kind": tags.get("lab.kind", "train"),
        "experiment": experiment,
        "parent_run_id": tags.get("lab.parent_run_id"),
        "primary_metric": "eval/loss",
        "params": run.data.params,
        "tags": tags,
        "datasets": [_dataset(given) for given in run.inputs.dataset_inputs],
    }
    output = None
    if "lab.params_digest" in tags:
        output = {"path": tags["lab.output"], "params_digest": tags["lab.params_digest"], "dvc_digest": tags.get("dvc.output")}
    saved = [
        {"step": int(model.params["step"]), "path": model.tags["ckpt.path"], "digest": model.tags["ckpt.digest"]}
        for model in models
        if "ckpt.path" in model.tags
    ]
    checkpoints = tuple(sorted(saved, key=lambda checkpoint: checkpoint["step"]))
    return RunRecord(tags["lab.run_id"], manifest, run.info.status.lower(), run.data.metrics, output, checkpoints, place=place)


def _dataset(given: Any) -> dict[str, Any]:
    dataset = given.dataset
    context = next((tag.value for tag in given.tags if tag.key == "mlflow.data.context"), "read")
    rows = json.loads(dataset.profile)["num_rows"] if dataset.profile else None
    return {"path": json.loads(dataset.source)["uri"], "digest": dataset.digest, "context": context, "rows": rows}
