"""`tunix-lab runs` and `tunix-lab sync`."""

import json
import math
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from tunix_lab.cli.main import app as every_verb
from tunix_lab.cli.runs import runs
from tunix_lab.cli.sync import sync
from tunix_lab.errors import EnvironmentProblem, UserError
from tunix_lab.lab.record.journal import Journal
from tunix_lab.lab.tracking.sync import is_complete

pytestmark = [pytest.mark.filterwarnings(f"ignore:::{package}") for package in ("mlflow", "alembic", "sqlalchemy")]


@pytest.fixture
def invoke(monkeypatch, tmp_path):
    """Runs a command line in a project at `tmp_path`, on a terminal of 200 columns; returns what it printed."""
    monkeypatch.setenv("TUNIX_LAB_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    app = typer.Typer()
    app.command()(runs)
    app.command()(sync)

    def call(*arguments, error=None):
        result = CliRunner().invoke(app, arguments)
        if error is not None:
            assert isinstance(result.exception, error), result.exception
            return f"{result.stdout}{result.exception}"
        assert result.exception is None, result.exception
        return result.stdout

    return call


def test_runs_shows_status_and_headline_metrics(invoke, make_run, train):
    assert "No runs yet" in invoke("runs")
    train(make_run("sft_nano-20261123-070000-aaaa", kind="train", primary_metric="eval/loss", algorithm="sft"), status="failed")
    with Journal.open(make_run("dpo_nano-20261123-080000-3a61")) as journal:
        journal.metrics(50, {"train/loss": 0.1234567, "eval/exact_match": 0.875, "eval/loss": math.nan})
        lines = invoke("runs").splitlines()
    header, newest, oldest = (line.split() for line in lines)
    assert header == ["run", "status", "step", "duration", "headline"]
    metrics = ["eval/exact_match", "0.875", "eval/loss", "nan", "train/loss", "0.1235"]
    assert newest == ["dpo_nano-20261123-080000-3a61", "running", "50", "0:00", *metrics]
    assert oldest == ["sft_nano-20261123-070000-aaaa", "failed", "10", "0:00", "train/loss", "0.1"]


def test_a_run_that_samples_is_told_by_its_rewards(invoke, make_run):
    with Journal.open(make_run("grpo_nano-20261123-080000-3a61", algorithm="grpo", primary_metric="eval/reward")) as journal:
        journal.metrics(50, {"train/reward": 0.25, "train/loss": 0.0, "eval/loss": -0.5, "eval/reward": 0.5})
    assert invoke("runs").splitlines()[1].split()[4:] == ["eval/reward", "0.5", "train/reward", "0.25"]


def test_runs_for_programs(invoke, make_run, train):
    train(make_run())
    [row] = json.loads(invoke("runs", "--json"))
    assert (row["run_id"], row["status"], row["step"], row["attempt"]) == ("dpo_nano-20261123-080000-3a61", "finished", 10, 1)
    assert row["metrics"]["train/loss"] == 0.1
    assert row["duration_s"] >= 0


def test_only_the_newest_runs_unless_all_are_asked_for(invoke, make_run):
    for number in range(23):
        Journal.open(make_run(f"dpo_nano-20261123-080000-{number:04x}")).close()
    assert "3 older runs" in invoke("runs")
    assert invoke("runs", "--all").count("killed") == 23


def test_a_sweep_is_one_line_and_all_shows_its_runs(invoke, make_run, train):
    sweep = "sweep-dpo_nano-20261123-080000-3a61"
    with Journal.open(make_run(sweep, kind="sweep", primary_metric="eval/loss")) as journal:
        journal.metrics(4, {"sweep/trials": 6, "sweep/finished": 3, "sweep/failed": 1, "sweep/best": 0.51234})
    train(make_run("dpo_nano-20261123-090000-beef", sweep=sweep, trial=f"{sweep}/12"))
    header, line, hidden = invoke("runs").splitlines()
    assert line.split()[1:] == "finished 4 0:00 3 of 6 trials 1 failed best eval/loss 0.5123".split()
    assert hidden == "1 runs of sweeps: tunix-lab runs --all"
    assert f"train/loss 0.1  trial 12 of {sweep}" in invoke("runs", "--all")
    assert {row["trial"] for row in json.loads(invoke("runs", "--json"))} == {None, f"{sweep}/12"}


def test_a_run_that_died_before_its_manifest_is_listed(invoke, tmp_path):
    Journal.open(tmp_path / "runs/dpo_nano-20261123-080000-3a61").close()
    assert "killed" in invoke("runs")


def test_listing_runs_imports_neither_mlflow_nor_jax():
    program = "import sys, tunix_lab.cli.runs, tunix_lab.cli.sync, tunix_lab.cli.ui, tunix_lab.lab.record.journal as journal\n"
    program += "journal.list_runs('.'); heavy = {'mlflow', 'jax', 'dvc', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_sync_pushes_what_is_missing_and_then_nothing(invoke, make_run, train, tracking_uri):
    run_dirs = [make_run(), make_run("dpo_nano-20261123-090000-beef")]
    for run_dir in run_dirs:
        train(run_dir)
    assert "beef: 20 points pushed (complete)" in invoke("sync", "beef")
    out = invoke("sync")
    assert "3a61: 20 points pushed (complete)" in out
    assert "beef" not in out
    assert invoke("sync") == "Everything is in MLflow.\n"
    assert invoke("sync", "--all").count("0 points pushed (complete)") == 2
    assert all(is_complete(run_dir, tracking_uri) for run_dir in run_dirs)


def test_a_run_that_died_before_its_manifest_holds_up_no_other(invoke, make_run, train, tmp_path, tracking_uri):
    Journal.open(tmp_path / "runs/dpo_nano-20261123-080000-dead").close()
    run_dir = make_run("dpo_nano-20261123-090000-beef")
    train(run_dir)
    assert "beef: 20 points pushed (complete)" in invoke("sync")
    assert is_complete(run_dir, tracking_uri)
    assert invoke("sync") == "Everything is in MLflow.\n"
    assert "dead: not pushed: " in invoke("sync", "dead", error=EnvironmentProblem)


def test_a_run_that_cannot_be_pushed_is_told_and_the_others_go_on(invoke, make_run, train, tracking_uri):
    broken, run_dir = make_run(), make_run("dpo_nano-20261123-090000-beef")
    for folder in (broken, run_dir):
        train(folder)
    (broken / "manifest.json").write_text("{")
    out = invoke("sync", error=EnvironmentProblem)
    assert "3a61: not pushed: " in out and "manifest.json: not valid JSON" in out
    assert "beef: 20 points pushed (complete)" in out and "1 of 2 runs are not in MLflow yet" in out
    assert is_complete(run_dir, tracking_uri)


def test_sync_without_a_server_says_what_waits(invoke, make_run, train, monkeypatch):
    train(make_run())
    monkeypatch.setenv("TUNIX_LAB_TRACKING_URI", "http://127.0.0.1:9")
    out = invoke("sync", error=EnvironmentProblem)
    assert out.startswith("tracking server http://127.0.0.1:9 refuses the connection")
    assert "1 run with 20 points waits" in out


@pytest.mark.parametrize("verb", ["report", "compare", "diff"])
def test_a_sweep_is_no_run(make_run, verb, monkeypatch, tmp_path):
    """Its trials are what can be looked at."""
    sweep = make_run("sweep_dpo-20261123-080000-beef", kind="sweep")
    with Journal.open(sweep):
        pass
    monkeypatch.setenv("TUNIX_LAB_HOME", str(tmp_path))
    result = CliRunner().invoke(every_verb, [verb, "beef", *(["beef"] if verb != "report" else [])])
    assert isinstance(result.exception, UserError) and "is a sweep" in str(result.exception)
