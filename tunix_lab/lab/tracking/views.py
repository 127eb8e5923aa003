"""The curated MLflow page of an experiment: which columns, order and charts its run list opens with.

MLflow's UI keeps a shared view as a JSON tag of the experiment. The format is not documented, so views are written only
for the versions of MLflow that were tried in a browser; with any other version the addresses lead to MLflow's own page.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

if TYPE_CHECKING:
    from mlflow import MlflowClient

TRIED_FROM, TRIED_BELOW = (3, 17), (3, 18)
TAG_LIMIT = 20_000  # characters in an experiment tag
_TAG = "mlflow.sharedViewState."
_PREFERENCE = ("dpo", "orpo")
_REINFORCEMENT = ("grpo", "gspo", "dapo", "drgrpo", "rloo", "ppo")
EVALUATE = "evaluate"

Layout = Literal["table", "charts"]


def views_supported(mlflow_version: str) -> bool:
    """Whether shared views were tried with this version of MLflow."""
    try:
        major, minor = (int(part) for part in mlflow_version.split(".")[:2])
    except ValueError:
        return False
    return TRIED_FROM <= (major, minor) < TRIED_BELOW


def view_key(algorithm: str, layout: Layout) -> str:
    """Name of the shared view of an algorithm's training runs, or of all evaluations where `algorithm` is "evaluate"."""
    return f"lab-{algorithm}-{layout}"


def view_url(base: str, experiment_id: str, key: str | None) -> str:
    """Address of an experiment's run list, opened with the shared view `key`; None is MLflow's own view.

    Without `workflowType` MLflow 3 opens every experiment as one of generative-AI traces, with empty charts.
    """
    url = f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
    if key is None:
        return url
    mode = "CHART" if key.endswith("-charts") else "TABLE"
    return f"{url}&compareRunsMode={mode}&viewStateShareKey={key}"


def samples_url(base: str, experiment_id: str) -> str:
    """Address of the page that lays the tables of the experiment's training runs side by side."""
    runs = quote("tags.`lab.kind` = 'train'")
    return f"{view_url(base, experiment_id, None)}&compareRunsMode=ARTIFACT&searchFilter={runs}"


def experiment_tags(algorithm: str, primary_metric: str, higher_is_better: bool, mlflow_version: str) -> dict[str, str]:
    """Tags that make the page of an experiment with runs of `algorithm`; one experiment may hold several.

    Args:
      algorithm: kind of algorithm of a training run; "evaluate" for an evaluation, which has a table and no charts.
      primary_metric: metric that orders the runs.
      higher_is_better: whether the run with its highest value comes first.
      mlflow_version: version of MLflow that writes, and presumably serves, the page.
    """
    tags = {"mlflow.experimentKind": "custom_model_development"}
    if algorithm != EVALUATE:
        tags["mlflow.experiment.primaryMetric.name"] = primary_metric
        tags["mlflow.experiment.primaryMetric.greaterIsBetter"] = str(higher_is_better)
    if views_supported(mlflow_version):
        for layout in ("table",) if algorithm == EVALUATE else ("table", "charts"):
            state = view_state(algorithm, primary_metric, higher_is_better, layout)
            tags[_TAG + view_key(algorithm, layout)] = json.dumps(state, separators=(",", ":"))
    return tags


def write_experiment_tags(client: "MlflowClient", experiment_id: str, tags: Mapping[str, str]) -> None:
    """Sets those of `tags` that the experiment does not have already."""
    present = client.get_experiment(experiment_id).tags
    for name, value in tags.items():
        if present.get(name) != value:
            client.set_experiment_tag(experiment_id, name, value)


def shared_views(experiment_tags: Mapping[str, str]) -> list[str]:
    """Names of our shared views that an experiment with these tags has."""
    return sorted(name.removeprefix(_TAG) for name in experiment_tags if name.startswith(_TAG + "lab-"))


def view_state(algorithm: str, primary_metric: str, higher_is_better: bool, layout: Layout) -> dict[str, Any]:
    """The state of MLflow's run list, as its UI would save it."""
    sections = _sections(algorithm)
    return {
        "searchFilter": _filter(algorithm),
        "orderByKey": f"metrics.`{primary_metric}`",
        "orderByAsc": not higher_is_better,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": _columns(algorithm),
        "viewMaximized": layout == "table",
        "runListHidden": False,
        "compareRunsMode": "CHART" if layout == "charts" else "TABLE",
        "compareRunSections": [
            {"uuid": f"lab-{number}", "name": f"{number} · {title}", "display": True, "isReordered": True}
            for number, (title, _) in enumerate(sections.items(), 1)
        ],
        "compareRunCharts": [
            _line_chart(f"lab-{number}", metrics) for number, charts in enumerate(sections.values(), 1) for metrics in charts
        ],
    }


def _filter(algorithm: str) -> str:
    """Runs that may be compared: losses of different algorithms share no axis, and a chart's lines no evaluation."""
    if algorithm == EVALUATE:
        return "tags.`lab.kind` = 'evaluate'"
    return f"tags.`lab.kind` = 'train' AND params.`algorithm.kind` = '{algorithm}'"


def _columns(algorithm: str) -> list[str]:
    if algorithm == EVALUATE:
        metrics = ["eval/exact_match", "eval/preference_accuracy", "eval/ranking_accuracy", "eval/margin"]
        return ["attributes.`Duration`", *(f"metrics.`{name}`" for name in metrics), "tags.`lab.parent_run_id`"]
    metrics = ["eval/exact_match", "eval/accuracy", "eval/loss"]
    metrics += ["eval/margin"] if algorithm in _PREFERENCE else []
    if algorithm in _REINFORCEMENT:
        metrics = ["eval/reward", "eval/exact_match", "train/reward", "train/kl", "train/entropy", "train/answer_tokens"]
    metrics += ["train/loss", "perf/tokens_per_s"]
    params = ["algorithm.kind", "optimizer.learning_rate", "seed"]
    return [
        "attributes.`Duration`",
        *(f"metrics.`{name}`" for name in metrics),
        *(f"params.`{name}`" for name in params),
        "tags.`lab.git.dirty`",
        "tags.`lab.attempt`",
    ]


def _sections(algorithm: str) -> dict[str, list[list[str]]]:
    """Charts by section; a chart is the list of metrics drawn in it."""
    if algorithm in _REINFORCEMENT:
        return _rollout_sections(algorithm)
    preference = algorithm in _PREFERENCE
    sections = {  # three charts fill a row
        "eval": [["eval/exact_match"], ["eval/accuracy"], ["eval/loss"]],
        "training": [["train/loss"], ["train/grad_norm"], ["train/learning_rate"]],
        "preference": [["train/margin", "eval/margin"], ["train/accuracy"], ["train/chosen_logp", "train/rejected_logp"]],
        "performance": [["perf/tokens_per_s"], ["perf/step_s"], ["perf/data_s"]],
    }
    return sections if preference else {title: charts for title, charts in sections.items() if title != "preference"}


def _rollout_sections(algorithm: str) -> dict[str, list[list[str]]]:
    """Those of reinforcement learning, whose loss says little."""
    sections = {
        "reward": [["train/reward", "eval/reward"], ["train/reward_std"], ["eval/exact_match"]],
        "policy": [["train/kl"], ["train/entropy"], ["train/clip_fraction"]],
        "answers": [["train/answer_tokens", "eval/answer_tokens"], ["train/frac_zero_std_groups"], ["train/stopped"]],
        "critic": [["train/value_loss"], ["train/value_mean", "train/return_mean"], ["train/value_clip_fraction"]],
        "training": [["train/loss"], ["train/grad_norm"], ["train/logp_gap_mean"]],
        "performance": [["perf/tokens_per_s"], ["perf/rollout_s"], ["perf/step_s"]],
    }
    return sections if algorithm == "ppo" else {title: charts for title, charts in sections.items() if title != "critic"}


def _line_chart(section: str, metrics: list[str]) -> dict[str, Any]:
    return {
        "type": "LINE",
        "uuid": f"{section}-{metrics[0].replace('/', '-')}",
        "metricSectionId": section,
        "metricKey": metrics[0],
        "selectedMetricKeys": metrics,
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "lineSmoothness": 0,
        "runsCountToCompare": 20,
        "isGenerated": False,
        "deleted": False,
        "range": {},
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "selectedXAxisMetricKey": "",
    }
