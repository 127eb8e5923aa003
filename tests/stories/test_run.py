"""A run from its spec to the tracking store, and what survives when it is interrupted."""

import json
import signal
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from story_project import PAIRS, Project, metrics_of

from tunix_lab.lab.record.journal import read_metrics, run_status


def _points_in_mlflow(home: Path) -> list[tuple[str, int, float]]:
    with sqlite3.connect(home / "mlflow.db") as db:
        return db.execute("select key, step, value from metrics where key not like 'system/%'").fetchall()


def _statuses(home: Path) -> list[str]:
    with sqlite3.connect(home / "mlflow.db") as db:
        return [status for (status,) in db.execute("select status from runs order by start_time")]


def test_run_leaves_a_complete_record(project: Project) -> None:
    spec = project.write_spec("first")
    printed = project.cli("run", str(spec))
    (run,) = project.runs()
    assert run_status(run).status == "finished" and run.name in printed

    final = load_file(run / "final/model.safetensors")
    assert final["model.embed_tokens.weight"].shape == (512, 96)
    assert {"config.json", "tokenizer.json", "chat_template.jinja"} <= {path.name for path in (run / "final").iterdir()}
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["params"]["training.batch_size"] == 8 and len(manifest["params"]) <= 60
    assert {d["context"] for d in manifest["datasets"]} == {"train", "validation"}
    samples = json.loads((run / "samples/latest.json").read_text())
    assert {"id", "prompt", "completion", "reference", "score"} <= set(samples["columns"]) and len(samples["data"]) == 4
    assert len(list((run / "samples").glob("step-*.jsonl"))) == 4  # steps 0, 8, 16, 24
    assert "Finished after 24 of 24 updates" in (run / "report.html").read_text("utf-8")
    (uploaded,) = (project.home / "mlartifacts").rglob("report.html")
    assert uploaded.read_bytes() == (run / "report.html").read_bytes()

    metrics = metrics_of(run)
    assert {step for step, name in metrics if name == "train/loss"} == set(range(1, 25))
    assert {step for step, name in metrics if name == "eval/loss"} == {0, 6, 12, 18, 24}
    assert metrics[24, "train/loss"] < 0.8 * metrics[1, "train/loss"]
    # warm-up over 4 updates: the first update uses rate 0, the fifth the peak
    assert metrics[1, "train/learning_rate"] == 0 and np.isclose(metrics[5, "train/learning_rate"], 1e-3)

    journal = [(name, step) for _, step, values in read_metrics(run) for name in values if not name.startswith("system/")]
    in_mlflow = [(name, step) for name, step, _ in _points_in_mlflow(project.home)]
    assert sorted(in_mlflow) == sorted(journal) and _statuses(project.home) == ["FINISHED"]


@pytest.mark.slow
def test_killed_run_goes_on_to_the_same_bytes(project: Project) -> None:
    spec = project.write_spec("whole")
    project.cli("run", str(spec), TUNIX_LAB_SYNC="off")
    (whole,) = project.runs()

    killed = Project(project.home.parent / "killed", project.cache)
    killed.home.mkdir()
    (killed.home / "data").symlink_to(project.home / "data")
    spec = killed.write_spec("whole")
    assert killed.interrupt(killed.start("run", str(spec)), step=10) == -signal.SIGKILL
    (run,) = killed.runs()
    assert run_status(run).status == "killed"
    printed = killed.cli("run", str(spec))
    assert f"continuing interrupted run {run.name}" in printed and "resuming after step" in printed
    assert killed.runs() == [run] and run_status(run).attempt == 2

    assert (run / "final/model.safetensors").read_bytes() == (whole / "final/model.safetensors").read_bytes()
    assert metrics_of(run) == metrics_of(whole)
    points = [(name, step) for name, step, _ in _points_in_mlflow(killed.home) if name.startswith(("train/", "eval/"))]
    assert len(points) == len(set(points)) == len(metrics_of(run)) and _statuses(killed.home) == ["FINISHED"]


@pytest.mark.slow
def test_sigterm_saves_and_goes_on(project: Project) -> None:
    spec = project.write_spec("dpo", algorithm="{kind: dpo, max_prompt_length: 40, max_response_length: 24}", data=PAIRS)
    assert project.interrupt(project.start("run", str(spec)), step=6, signum=signal.SIGTERM) == 128 + signal.SIGTERM
    (run,) = project.runs()
    stopped_at = run_status(run).step
    assert run_status(run).status == "killed" and stopped_at < 24
    saved = [int(path.name) for path in (project.home / "checkpoints").glob("*/*/*") if path.name.isdigit()]
    assert max(saved) >= stopped_at  # saved where it stopped, not at the last regular checkpoint

    project.cli("run", str(spec), TUNIX_LAB_SYNC="off")
    project.cli("run", str(spec), "--fresh", TUNIX_LAB_SYNC="off")
    resumed, fresh = project.runs()
    assert (resumed / "final/model.safetensors").read_bytes() == (fresh / "final/model.safetensors").read_bytes()


def test_user_mistakes_are_one_message(project: Project) -> None:
    spec = project.write_spec("mistake", init="{kind: experiment, name: nowhere}")
    printed = project.cli("run", str(spec), exit_code=2)
    assert "nowhere" in printed and "Traceback" not in printed
    printed = project.cli("run", str(spec), "--set", "mesh.fsdp=3", "--set", "model.init={kind: random}", exit_code=2)
    assert "Traceback" not in printed and "mesh" in printed
    assert not (project.home / "runs").exists()
