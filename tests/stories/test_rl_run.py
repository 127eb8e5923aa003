"""Runs of reinforcement learning from their spec to their record: of every algorithm, with and without adapters."""

import json
import sqlite3

import numpy as np
import pytest
from safetensors.numpy import load_file
from story_project import RL_KINDS, Project, metrics_of

from tunix_lab.lab.record.fingerprints import read_fingerprints
from tunix_lab.lab.record.journal import read_events, read_metrics, run_status
from tunix_lab.lab.record.trajectories import read_trajectories
from tunix_lab.spec import load
from tunix_lab.spec.algorithm import metric_names
from tunix_lab.spec.rl_checks import rollout_prompts, updates_per_rollout

pytestmark = pytest.mark.slow

VALIDATION = 32
"""Rows, each answered once."""


@pytest.mark.parametrize("name", RL_KINDS)
def test_every_kind_leaves_a_complete_record(name: str, rl_run) -> None:
    project, run = rl_run(name)
    spec = load(run / "resolved.yaml", [], project.home).spec
    every, answers = updates_per_rollout(spec), rollout_prompts(spec) * spec.algorithm.num_generations
    assert run_status(run).status == "finished" and run_status(run).step == 8
    assert set(read_fingerprints(run)) == set(range(1, 9))

    rollouts = list(read_trajectories(run))
    assert [r.step for r in rollouts if r.mode == "train"] == list(range(0, 8, every))
    assert [r.step for r in rollouts if r.mode == "eval"] == [0, 4, 8]
    for rollout in rollouts:
        assert len(rollout) == (answers if rollout.mode == "train" else VALIDATION)
        assert set(rollout.rewards) == {"vowels", "brief"} | ({"overlong"} if name == "dapo" else set())
        np.testing.assert_allclose(rollout.reward, np.sum(list(rollout.rewards.values()), axis=0), rtol=1e-6)
        assert all(brief <= 0.5 for brief in rollout.rewards["brief"])  # its weight counts
        assert set(rollout.columns) == {"answer", "completion", "id"}
    events = [event for event in read_events(run) if event["kind"] == "trajectories"]
    assert [(event["mode"], event["step"]) for event in events] == [(r.mode, r.step) for r in _as_told(rollouts)]
    assert all((run / event["path"]).is_file() for event in events)

    told = {name for _, _, values in read_metrics(run) for name in values if name.startswith(("train/", "eval/", "perf/"))}
    named = metric_names(spec.algorithm)
    assert named - told == set()
    assert told - named <= {"train/empty_batches", "train/dual_clip_fraction"}, told - named
    metrics = metrics_of(run)
    assert {step for step, metric in metrics if metric == "train/loss"} == set(range(1, 9))
    assert {step for step, metric in metrics if metric == "train/reward"} == set(range(every, 9, every))
    assert {step for step, metric in metrics if metric == "eval/reward"} == {0, 4, 8}
    means = {(r.mode, r.step): float(np.mean(r.reward)) for r in rollouts}
    for step in (0, 4, 8):
        assert np.isclose(metrics[step, "eval/reward"], means["eval", step], rtol=1e-5)
    assert np.isclose(metrics[every, "train/reward"], means["train", 0], rtol=1e-5)
    assert max(metrics[step, "train/logp_gap_max"] for step in range(every, 9, every)) < 1e-4
    assert all(metrics[step, "train/ratio"] == pytest.approx(1.0, abs=1e-5) for step in range(1, 9, every))

    assert len(list((run / "samples").glob("step-*.jsonl"))) == 3
    assert load_file(run / "final/model.safetensors")["model.embed_tokens.weight"].shape == (512, 64)
    assert (run / "adapter").is_dir() == name.endswith("lora")
    saved = [event["step"] for event in read_events(run) if event["kind"] == "checkpoint"]
    assert saved == list(range(spec.checkpoint.every, 9, spec.checkpoint.every))
    report = (run / "report.html").read_text("utf-8")
    assert "Finished after 8 of 8 updates" in report and "vowels" in report
    assert "Traceback" not in report and not project.reward_workers()


def _as_told(rollouts):
    """A rollout of training is told of once its first update is done, an evaluation at once."""
    return sorted(rollouts, key=lambda r: (r.step + (r.mode == "train") * 0.5, r.mode))


def test_the_terminal_shows_what_was_sampled(rl_run) -> None:
    project, run = rl_run("grpo")
    said = project.cli("trajectories", run.name)
    assert f"{run.name}  train step 4: 4 prompts, 8 answers" in said
    found = json.loads(project.cli("trajectories", run.name, "--mode", "eval", "--step", "8", "--json"))
    assert found["steps"] == [0, 4, 8] and len(found["answers"]) == 32
    said = project.cli("trajectories", run.name, "--reward", "judging:brief", "--step", "0")
    assert "8 answers of 1 rollouts, by judging:brief" in said


def test_mlflow_has_tables_and_traces(project: Project) -> None:
    project.cli(*project.rl_command("rloo"))
    (run,) = project.runs()
    with sqlite3.connect(project.home / "mlflow.db") as db:
        points = db.execute("select key, step from metrics where key like 'train/%' or key like 'eval/%'").fetchall()
        traces = db.execute("select count(*) from trace_info").fetchone()[0]
        [(status,)] = db.execute("select status from runs").fetchall()
    assert sorted((step, name) for name, step in points) == sorted(metrics_of(run)) and status == "FINISHED"
    # two prompts of each of eight rollouts, and of each of three evaluations the first eight
    assert traces == 8 * 2 + 3 * 8
    (table,) = (project.home / "mlartifacts").rglob("trajectories/train-000007.json")
    content = json.loads(table.read_text())
    assert {"prompt", "completion", "reward", "reward_vowels", "reward_brief"} <= set(content["columns"]) and len(
        content["data"]
    ) == 4
