"""A sweep of real trainings through the command line, and what the tracking store has of it."""

import json
import signal
import sqlite3

import pytest
from story_project import Project

from tunix_lab.lab.record.journal import read_manifest, run_status

pytestmark = pytest.mark.slow
SMALL = (
    "--set",
    "training.max_steps=4",
    "--set",
    "training.eval_every=4",
    "--set",
    "optimizer.schedule={kind: constant}",
    "--set",
    "samples=null",
)


def _mlflow(project: Project, sql: str) -> list[tuple]:
    with sqlite3.connect(project.home / "mlflow.db") as db:
        return db.execute(sql).fetchall()


def test_two_values_and_two_seeds(project: Project) -> None:
    spec = str(project.write_spec("small"))
    command = ("sweep", spec, "--grid", "optimizer.learning_rate=1e-3,1e-4", "--seeds", "2", "-j", "2", *SMALL)
    printed = project.cli(*command, TUNIX_LAB_SYNC_DRAIN_SECONDS="120")
    (sweep,) = (path for path in project.runs() if path.name.startswith("sweep-"))
    trials = [path for path in project.runs() if path != sweep]
    assert len(trials) == 4 and all(run_status(run).status == "finished" for run in (sweep, *trials))
    manifests = [read_manifest(run) for run in trials]
    assert {m["trial"] for m in manifests} == {f"{sweep.name}/{number}" for number in range(4)}
    assert {(m["params"]["optimizer.learning_rate"], m["seed"]) for m in manifests} == {
        (rate, seed) for rate in (1e-3, 1e-4) for seed in (0, 1)
    }
    results = json.loads((sweep / "sweep.json").read_text())["settings"]
    assert [setting["n"] for setting in results] == [2, 2] and results[0]["mean"] < results[1]["mean"]
    losses = {run.name: run_status(run).latest["eval/loss"] for run in trials}
    assert {t["run_id"]: t["metrics"]["eval/loss"] for setting in results for t in setting["trials"]} == losses
    assert "--set optimizer.learning_rate=1e-3" in printed and " ± " in printed
    assert (sweep / "trials/0000/out/final/model.safetensors").is_file()

    # in MLflow: one parent, four finished children, the sweep's files
    parents = _mlflow(project, "select run_uuid, value from tags where key = 'mlflow.parentRunId'")
    (parent,) = _mlflow(project, "select run_uuid from tags where key = 'lab.kind' and value = 'sweep'")
    assert len(parents) == 4 and {value for _, value in parents} == set(parent)
    assert _mlflow(project, "select status, count(*) from runs group by status") == [("FINISHED", 5)]
    assert {path.name for path in (project.home / "mlartifacts").rglob("sweep.*")} == {"sweep.csv", "sweep.json", "sweep.png"}

    project.cli(*command, TUNIX_LAB_SYNC="off")  # nothing is run again
    assert len(project.runs()) == 5
    assert "4 of 4 trials" in project.cli("runs", COLUMNS="200")


def test_a_killed_sweep_goes_on_with_its_runs(project: Project) -> None:
    spec = str(project.write_spec("small"))
    command = ("sweep", spec, "--seeds", "2", "--set", "training.max_steps=12", "--set", "samples=null")
    project.interrupt(project.start(*command, TUNIX_LAB_SYNC="off"), step=5, signum=signal.SIGTERM)
    sweep, run = sorted(project.runs(), key=lambda path: not path.name.startswith("sweep-"))
    assert run_status(sweep).status == run_status(run).status == "killed"
    project.cli(*command, TUNIX_LAB_SYNC="off")
    runs = [path for path in project.runs() if path != sweep]
    assert len(runs) == 2 and run in runs and run_status(run).attempt == 2
    assert all(run_status(path).status == "finished" and run_status(path).step == 12 for path in (*runs,))
