"""The replica of one run in MLflow: makes each part of the record there, and finds what is there already.

Every method may be repeated, and may be cut off at any point by a kill or a lost connection.
"""

import contextlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunix_lab.lab.record.journal import RunState
from tunix_lab.lab.record.run_state import METRICS, MetricLine, read_events, read_metric_lines
from tunix_lab.lab.tracking.artifacts import ARTIFACTS, LAST_ARTIFACTS, SAMPLES
from tunix_lab.lab.tracking.checkpoints import find_checkpoint, log_checkpoint, remove_twin_checkpoints
from tunix_lab.lab.tracking.cursor import Cursor, nested_under, new_values, save_cursor
from tunix_lab.lab.tracking.inputs import DIGEST_LIMIT, dataset_inputs, log_base, origin_tags, output_tags, param_text
from tunix_lab.lab.tracking.rollouts import chosen, read_groups, table_of, table_path, traces_of
from tunix_lab.lab.tracking.runs import create_run, find_run, remove_twins
from tunix_lab.lab.tracking.settled import CHECKPOINT, settled_end
from tunix_lab.lab.tracking.store import Store
from tunix_lab.lab.tracking.views import EVALUATE, experiment_tags, write_experiment_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

BATCH = 900  # MLflow takes 1,000 metrics a request; a journal line has fewer than a hundred
_MLFLOW_STATUS = {"running": "RUNNING", "finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}


class RunDeleted(Exception):
    """Somebody deleted the run in MLflow; it is not made again behind their back."""


class Replica:
    """Writes the run of `run_dir` to a store and keeps the cursor.

    Args:
      client: a client of the store.
      store: the store.
      run_dir: the run directory.
      manifest: its manifest.
      state: the run's state, read before anything else of the run directory.
      cursor: what the store has; saved as parts arrive.
    """

    def __init__(
        self,
        client: "MlflowClient",
        store: Store,
        run_dir: Path,
        manifest: Mapping[str, Any],
        state: RunState,
        cursor: Cursor,
    ) -> None:
        self.client = client
        self.store = store
        self.run_dir = run_dir
        self.manifest = manifest
        self.state = state
        self.cursor = cursor
        self.points = 0

    def push(self) -> None:
        """Brings the replica up to date with what the run directory holds now."""
        run = self._ensure_run()
        self._describe(run)
        self._inputs()
        known = (self.run_dir / METRICS).stat().st_size if self.state.attempt else 0
        events = list(read_events(self.run_dir))
        self._checkpoints(events)
        if self.state.status == "running" and self.manifest["kind"] == "train":
            known = settled_end(self.run_dir, self.cursor.offset, known, events, self.manifest.get("checkpoint_every"))
        self._metrics(known)
        self._artifacts(ARTIFACTS)
        self._rollouts(events)
        self._nest()
        if self.state.status != "running":
            self._artifacts(LAST_ARTIFACTS)
            self._base()
            self._end()

    def _save(self) -> None:
        save_cursor(self.run_dir, self.store, self.cursor)

    def _ensure_run(self) -> "Run":
        run = (
            self._known_run()
            or find_run(self.client, self.state.run_id)
            or create_run(self.client, self.store, self.manifest, self.state)
        )
        if run.info.lifecycle_stage == "deleted":
            raise RunDeleted
        if self.cursor.mlflow_run_id is None:
            self.cursor.mlflow_run_id = run.info.run_id
            self.cursor.experiment_id = run.info.experiment_id
            self._save()
        return run

    def _known_run(self) -> "Run | None":
        """The run that the cursor names; a store that lost it (a deleted database) is filled again from the start."""
        from mlflow.exceptions import MlflowException

        if self.cursor.mlflow_run_id is None:
            return None
        try:
            return self.client.get_run(self.cursor.mlflow_run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        self.cursor = Cursor()
        return None

    def _describe(self, run: "Run") -> None:
        """Parameters, tags and the experiment's page, once per attempt; a parameter that is there is never changed."""
        import mlflow
        from mlflow.entities import Param, RunTag

        if self.cursor.attempt == self.state.attempt:
            return
        params = {name: param_text(value) for name, value in self.manifest["params"].items()}
        tags = {
            "lab.kind": self.manifest["kind"],
            "lab.attempt": str(self.state.attempt),
            "mlflow.note.content": self.manifest.get("description") or "",
            **{name: str(value) for name, value in self.manifest["tags"].items()},
        }
        if self.manifest["parent_run_id"] is not None:
            tags["lab.parent_run_id"] = self.manifest["parent_run_id"]
        self.client.log_batch(
            run.info.run_id,
            params=[Param(name, value) for name, value in params.items() if name not in run.data.params],
            tags=[RunTag(name, value) for name, value in tags.items()],
            synchronous=True,
        )
        ranking = (self.manifest["algorithm"], self.manifest["primary_metric"], self.manifest["higher_is_better"])
        if self.manifest["kind"] == "evaluate":
            ranking = (EVALUATE, "eval/exact_match", True)
        page = experiment_tags(*ranking, mlflow.__version__)
        write_experiment_tags(self.client, self.cursor.experiment_id, page)
        if self.cursor.attempt or run.info.status != "RUNNING":  # a resumed run is open again
            self.client.update_run(run.info.run_id, status="RUNNING")
        self.cursor.attempt, self.cursor.status = self.state.attempt, None
        self._save()

    def _inputs(self) -> None:
        if self.cursor.inputs:
            return
        inputs = dataset_inputs(self.manifest)
        if inputs:
            self.client.log_inputs(self.cursor.mlflow_run_id, datasets=inputs)
        self.cursor.inputs = True
        self._save()

    def _metrics(self, until: int) -> None:
        """Pushes the journal up to byte `until`."""
        high, batch, end = dict(self.cursor.high), [], self.cursor.offset
        for line in read_metric_lines(self.run_dir, self.cursor.offset):
            if line.end > until:
                break
            batch += self._points(line, high)
            end = line.end
            if len(batch) >= BATCH:
                self._push_batch(batch, high, end)
                batch = []
        if end > self.cursor.offset:
            self._push_batch(batch, high, end)

    def _push_batch(self, batch: "list[Metric]", high: Mapping[str, int], end: int) -> None:
        self.client.log_batch(self.cursor.mlflow_run_id, metrics=batch, synchronous=True)
        self.cursor.offset, self.cursor.high = end, dict(high)
        self._save()
        self.points += len(batch)

    def _points(self, line: MetricLine, high: dict[str, int]) -> "list[Metric]":
        """The new points of a journal line; moves `high` on.

        Infinity becomes NaN (stored as such it would ruin the axis of every chart), and `health/nonfinite` counts both.
        """
        from mlflow.entities import Metric

        values = new_values(line, high)
        nonfinite = sum(not math.isfinite(value) for value in values.values())
        if nonfinite and line.step > high.get("health/nonfinite", -1):
            values["health/nonfinite"] = float(nonfinite)
        high.update(dict.fromkeys(values, line.step))
        return [
            Metric(name, value if math.isfinite(value) else math.nan, line.t, line.step, **self._measured_on(line, name, value))
            for name, value in values.items()
        ]

    def _measured_on(self, line: MetricLine, name: str, value: float) -> dict[str, str]:
        """The checkpoint and dataset of an evaluation metric. (MLflow would show the NaN of a model's metric as 0.)"""
        if line.checkpoint is None or not name.startswith("eval/") or not math.isfinite(value):
            return {}
        model_id = self._evaluated_model(line.checkpoint)
        if model_id is None:
            return {}
        context = "test" if self.manifest["kind"] == "evaluate" else "validation"
        dataset = next((entry for entry in self.manifest["datasets"] if entry["context"] == context), None)
        if dataset is None:
            return {"model_id": model_id}
        return {"model_id": model_id, "dataset_name": dataset["name"], "dataset_digest": dataset["digest"][:DIGEST_LIMIT]}

    def _evaluated_model(self, step: int) -> str | None:
        """MLflow's id of the checkpoint of `step`: this run's own, or for an evaluation that of the run it evaluates."""
        from mlflow.entities import LoggedModelInput

        if str(step) not in self.cursor.models and self.manifest["kind"] == "evaluate":
            parent = self.manifest["parent_run_id"] and find_run(self.client, self.manifest["parent_run_id"])
            model_id = parent and find_checkpoint(self.client, parent, self.manifest["parent_run_id"], step)
            if model_id:
                self.client.log_inputs(self.cursor.mlflow_run_id, models=[LoggedModelInput(model_id)])
                self.cursor.models[str(step)] = [model_id, ""]
        entry = self.cursor.models.get(str(step))
        return None if entry is None else entry[0]

    def _checkpoints(self, events: Iterable[Mapping[str, Any]]) -> None:
        """One external LoggedModel per checkpoint: link and hashes. The weights stay where they are."""
        for event in events:
            if event["kind"] != CHECKPOINT:
                continue
            model_id, digest = self.cursor.models.get(str(event["step"]), (None, None))
            if digest == event["digest"]:
                continue
            tags = {"ckpt.path": event["path"], "ckpt.digest": event["digest"], "ckpt.bytes": str(event["bytes"])}
            tags |= origin_tags(self.manifest)
            if model_id is None:
                params = {
                    "step": str(event["step"]),
                    "algorithm": self.manifest["algorithm"],
                    "seed": str(self.manifest.get("seed")),
                }
                run = self.client.get_run(self.cursor.mlflow_run_id)
                model_id = log_checkpoint(self.client, run, self.state.run_id, event["step"], params, tags)
            else:  # a resumed run wrote the checkpoint of this step again
                self.client.set_logged_model_tags(model_id, tags)
            self.cursor.models[str(event["step"])] = [model_id, event["digest"]]
            self._save()

    def _artifacts(self, artifacts: Mapping[str, str | None]) -> None:
        """Uploads the files that are new or changed since the last pass."""
        for name, folder in artifacts.items():
            path = self.run_dir / name
            if not path.exists() or not (stat := path.stat()).st_size:
                continue
            signature = f"{stat.st_size} {stat.st_mtime_ns}"
            if self.cursor.artifacts.get(name) == signature:
                continue
            self.client.log_artifact(self.cursor.mlflow_run_id, str(path), folder)
            self.cursor.artifacts[name] = signature
            if name == SAMPLES:
                self._tell_tables()
            self._save()

    def _tell_tables(self) -> None:
        """Makes MLflow offer samples and rollouts as tables that can be compared across runs."""
        paths = [SAMPLES] * (SAMPLES in self.cursor.artifacts) + [table_path(path) for path in sorted(self.cursor.rollouts)]
        tables = json.dumps([{"path": path, "type": "table"} for path in paths])
        self.client.set_tag(self.cursor.mlflow_run_id, "mlflow.loggedArtifacts", tables)

    def _rollouts(self, events: Iterable[Mapping[str, Any]]) -> None:
        """A table and a few traces for some of the rollouts that are new, or that a resumed run wrote again."""
        for event in chosen(events, self.manifest):
            path = self.run_dir / event["path"]
            stat = path.stat()
            signature = f"{stat.st_size} {stat.st_mtime_ns}"
            if self.cursor.rollouts.get(event["path"]) != signature:
                self._rollout(event, path)
                self.cursor.rollouts[event["path"]] = signature
                self._tell_tables()
                self._save()

    def _rollout(self, event: Mapping[str, Any], path: Path) -> None:
        from mlflow.tracing.client import TracingClient

        groups, run_id = read_groups(path), self.cursor.mlflow_run_id
        self.client.log_text(run_id, table_of(groups), table_path(event["path"]))
        traces = traces_of(groups, run_id=run_id, experiment_id=self.cursor.experiment_id, t=event["t"])
        tracing = TracingClient(self.store.uri)
        with contextlib.suppress(NotImplementedError):  # a server from before spans were kept so has the tables
            tracing.log_spans(self.cursor.experiment_id, [span for _, spans in traces for span in spans])
            for info, _ in traces:
                tracing.start_trace(info)

    def _nest(self) -> None:
        """Nests the run under its parent, see `nested_under`, once that is in the store too."""
        above = nested_under(self.manifest)
        if above is None or self.cursor.parent is not None:
            return
        parent = find_run(self.client, above)
        if parent is not None:
            self.client.set_tag(self.cursor.mlflow_run_id, "mlflow.parentRunId", parent.info.run_id)
            self.cursor.parent = parent.info.run_id
            self._save()

    def _base(self) -> None:
        """Makes the last checkpoint of the run whose weights this one starts from an input of it, once that is there too."""
        if self.manifest["kind"] == "evaluate" or self.manifest["parent_run_id"] is None or self.cursor.base:
            return
        parent = find_run(self.client, self.manifest["parent_run_id"])
        if parent is not None:
            log_base(self.client, parent, self.cursor.mlflow_run_id)
            self.cursor.base = True
            self._save()

    def _end(self) -> None:
        if self.cursor.status == self.state.status:
            return
        for name, value in output_tags(self.run_dir).items():
            self.client.set_tag(self.cursor.mlflow_run_id, name, value)
        if self.state.message:
            self.client.set_tag(self.cursor.mlflow_run_id, "lab.message", self.state.message)
        status, mlflow_run_id = _MLFLOW_STATUS[self.state.status], self.cursor.mlflow_run_id
        models = [model_id for model_id, _ in self.cursor.models.values()]
        remove_twins(self.client, self.state.run_id, mlflow_run_id)
        remove_twin_checkpoints(self.client, self.cursor.experiment_id, mlflow_run_id, self.state.run_id, models)
        self.client.set_terminated(mlflow_run_id, status, end_time=self.state.ended_ms)
        self.cursor.status = self.state.status
        self._save()
