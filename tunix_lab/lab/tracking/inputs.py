"""What a run was made from and what it made, in MLflow's terms: datasets by DVC's digests, and models that lead to models."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunix_lab.lab.lineage.records import read_output
from tunix_lab.lab.tracking.store import all_pages

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run

PARAM_LIMIT = 500
DIGEST_LIMIT = 36  # characters of a dataset's digest; DVC's longest has as many


def dataset_inputs(manifest: Mapping[str, Any]) -> "list[DatasetInput]":
    """The datasets of a run, with the digests that DVC shows."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    return [
        DatasetInput(
            Dataset(
                name=entry["name"],
                digest=entry["digest"][:DIGEST_LIMIT],
                source_type="local",
                source=json.dumps({"uri": entry["path"]}),
                profile=json.dumps({"num_rows": entry["rows"]}),
            ),
            [InputTag("mlflow.data.context", entry["context"])],
        )
        for entry in manifest["datasets"]
    ]


def param_text(value: Any) -> str:
    """A parameter as MLflow keeps it."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:PARAM_LIMIT]


def origin_tags(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Tags by which a checkpoint is found by what it was made from: data, tokenizer, weights, code, parent."""
    names = ("dvc.", "lab.base", "lab.teacher", "lab.critic", "lab.data", "lab.git", "lab.tokenizer", "mlflow.source.git.commit")
    tags = {name: str(value) for name, value in manifest["tags"].items() if name.startswith(names)}
    return tags | ({} if manifest["parent_run_id"] is None else {"lab.parent_run_id": manifest["parent_run_id"]})


def output_tags(run_dir: Path) -> dict[str, str]:
    """Tags that say which model a run left, once it has one."""
    said = read_output(run_dir / "run.json")
    if said is None:
        return {}
    tags = {"lab.output": said["path"], "lab.params_digest": said["params_digest"], "dvc.output": said["dvc_digest"]}
    return {name: value for name, value in tags.items() if value is not None}


def log_base(client: "MlflowClient", parent: "Run", mlflow_run_id: str) -> None:
    """Makes the last checkpoint of `parent` an input of the run that starts from it."""
    from mlflow.entities import LoggedModelInput

    made = f"source_run_id = '{parent.info.run_id}' AND tags.`ckpt.digest` LIKE '%'"
    models = list(all_pages(client.search_logged_models, experiment_ids=[parent.info.experiment_id], filter_string=made))
    if models:
        last = max(models, key=lambda model: int(model.params["step"]))
        client.log_inputs(mlflow_run_id, models=[LoggedModelInput(last.model_id)])
