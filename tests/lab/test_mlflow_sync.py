"""The replica in MLflow: whole, exactly once, and with the right status, however the pushing was interrupted."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tunix_lab.errors import EnvironmentProblem
from tunix_lab.lab.record.journal import Journal, run_status
from tunix_lab.lab.tracking.sync import is_complete, pending_points, push, start_follower, wait_follower

pytestmark = [pytest.mark.filterwarnings(f"ignore:::{package}") for package in ("mlflow", "alembic", "sqlalchemy")]

POINTS = "SELECT key, step, value, is_nan FROM metrics WHERE key NOT LIKE 'system/%' ORDER BY key, step"
TRAINER = """
import sys, time
from tunix_lab.lab.record.journal import Journal
journal = Journal.open(sys.argv[1])
for step in range(1, 51):
    journal.metrics(step, {"train/loss": 1 / step})
print("trained", flush=True)
time.sleep(600)
"""


@pytest.fixture
def client(tracking_uri):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri)


def test_the_whole_record_of_a_run_and_of_its_evaluation(make_run, client, tracking_uri, tmp_path):
    run_dir = make_run()
    with Journal.open(run_dir) as journal:
        journal.metrics(0, {"eval/loss": 0.7})
        journal.metrics(1, {"train/loss": math.inf, "train/grad_norm": math.nan, "train/tokens": 96.0})
        journal.checkpoint(1, "checkpoints/x/1", "d" * 64, 1000)
        journal.metrics(1, {"eval/loss": 0.5, "eval/exact_match": 0.25}, checkpoint=1)
        journal.samples(1, [{"id": "p1", "prompt": "3+4?", "completion": "7"}])
    pushed = push(run_dir, tracking_uri)
    assert (pushed.outcome, pushed.pending, pushed.problem) == ("complete", 0, None)

    run = client.get_run(pushed.mlflow_run_id)
    state = run_status(run_dir)
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("FINISHED", state.started_ms, state.ended_ms)
    assert run.info.run_name == "dpo_nano-3a61"
    assert run.data.params["optimizer.learning_rate"] == "0.0003"
    assert run.data.params["optimizer.clip_norm"] == "null"
    assert run.data.tags["lab.run_id"] == run_dir.name
    assert run.data.tags["lab.git.dirty"] == "false"
    assert run.data.tags["mlflow.note.content"] == "Does beta matter?"
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "samples/latest.json", "type": "table"}]
    assert math.isnan(run.data.metrics["train/loss"])
    assert run.data.metrics["health/nonfinite"] == 2
    inputs = {
        (given.dataset.name, given.dataset.digest, given.tags[0].value, json.loads(given.dataset.profile)["num_rows"])
        for given in run.inputs.dataset_inputs
    }
    assert ("prefs", "a" * 32, "train", 4000) in inputs
    assert len(inputs) == 3

    # The checkpoint: an output of the run, with links, hashes and what was measured on it.
    [output] = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert (model.name, str(model.status), output.step) == ("s000001-dpo_nano-3a61", "READY", 1)
    assert (model.tags["ckpt.path"], model.tags["ckpt.digest"]) == ("checkpoints/x/1", "d" * 64)
    measured = {(m.key, m.value, m.step, m.dataset_name, m.dataset_digest) for m in model.metrics}
    assert ("eval/exact_match", 0.25, 1, "prefs-validation", "b" * 32) in measured
    assert len(measured) == 2

    artifacts = tmp_path / "mlartifacts/arithmetic" / pushed.mlflow_run_id / "artifacts"
    files = {str(path.relative_to(artifacts)) for path in artifacts.rglob("*") if path.is_file()}
    assert files == {
        "journal/metrics.jsonl",
        "manifest.json",
        "samples/history.jsonl",
        "samples/latest.json",
        "spec/resolved.yaml",
        "spec/spec.yaml",
    }
    table = json.loads((artifacts / "samples/latest.json").read_text())
    assert table["columns"][:2] == ["prompt", "completion"]
    weights = [path for path in tmp_path.rglob("mlartifacts/**/*") if path.is_file() and path.stat().st_size > 10_000]
    assert not weights

    experiment = client.get_experiment_by_name("arithmetic")
    assert experiment.tags["mlflow.experiment.primaryMetric.name"] == "eval/exact_match"
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert "mlflow.sharedViewState.lab-dpo-charts" in experiment.tags

    # An evaluation is a child of the run, and what it measures appears on the checkpoint too.
    child = make_run("dpo_nano-20261123-090000-beef", kind="evaluate", parent_run_id=run_dir.name)
    with Journal.open(child) as journal:
        journal.metrics(1, {"eval/exact_match": 0.5}, checkpoint=1)
    evaluated = client.get_run(push(child, tracking_uri).mlflow_run_id)
    assert evaluated.data.tags["mlflow.parentRunId"] == pushed.mlflow_run_id
    assert evaluated.data.tags["lab.parent_run_id"] == run_dir.name
    assert [given.model_id for given in evaluated.inputs.model_inputs] == [output.model_id]
    on_model = client.get_logged_model(output.model_id).metrics
    assert ("eval/exact_match", 0.5, "prefs-test") in {(m.key, m.value, m.dataset_name) for m in on_model}
    assert is_complete(child, tracking_uri)

    # A run that starts from the weights of another names it, but is not folded away under it.
    heir = make_run("dpo_nano-20261123-100000-cafe", parent_run_id=run_dir.name)
    Journal.open(heir).close()
    tags = client.get_run(push(heir, tracking_uri).mlflow_run_id).data.tags
    assert tags["lab.parent_run_id"] == run_dir.name
    assert "mlflow.parentRunId" not in tags


def test_a_parent_that_comes_later_is_linked_later(make_run, train, client, tracking_uri):
    run_dir = make_run()
    child = make_run("dpo_nano-20261123-090000-beef", kind="evaluate", parent_run_id=run_dir.name, primary_metric=None)
    for folder in (run_dir, child):
        train(folder)
    assert "mlflow.parentRunId" not in client.get_run(push(child, tracking_uri).mlflow_run_id).data.tags
    assert not is_complete(child, tracking_uri)
    parent = push(run_dir, tracking_uri).mlflow_run_id
    assert client.get_run(push(child, tracking_uri).mlflow_run_id).data.tags["mlflow.parentRunId"] == parent
    assert is_complete(child, tracking_uri)


def test_a_trial_is_nested_under_its_sweep_and_the_ranking_is_an_artifact(make_run, train, client, tracking_uri):
    sweep = make_run("sweep-dpo_nano-20261123-080000-3a61", kind="sweep")
    trial = make_run("dpo_nano-20261123-090000-beef", sweep=sweep.name, trial=f"{sweep.name}/0", parent_run_id="another-run")
    train(trial)
    assert "mlflow.parentRunId" not in client.get_run(push(trial, tracking_uri).mlflow_run_id).data.tags
    assert not is_complete(trial, tracking_uri)
    with Journal.open(sweep):
        (sweep / "sweep.csv").write_text("trial\n")
    parent = push(sweep, tracking_uri).mlflow_run_id
    assert "sweep.csv" in {file.path for file in client.list_artifacts(parent)}
    assert client.get_run(push(trial, tracking_uri).mlflow_run_id).data.tags["mlflow.parentRunId"] == parent
    assert is_complete(trial, tracking_uri)


def test_pushing_twice_changes_nothing(make_run, train, query, tracking_uri):
    run_dir = make_run()
    train(run_dir)
    assert not is_complete(run_dir, tracking_uri)
    assert pending_points(run_dir, tracking_uri) == 20
    assert push(run_dir, tracking_uri).points == 20
    before = [query(f"SELECT * FROM {table}") for table in ("metrics", "params", "tags", "inputs", "runs")]
    assert is_complete(run_dir, tracking_uri)
    assert push(run_dir, tracking_uri).points == 0
    # A kill between the store's success and the note of it: the same work is done again from an older cursor, or from none.
    cursor = run_dir / "sync/mlflow.json"
    entries = json.loads(cursor.read_text())
    [entry] = entries.values()
    entry["cursor"] |= {"offset": 0, "high": {}}
    cursor.write_text(json.dumps(entries))
    assert push(run_dir, tracking_uri).outcome == "complete"
    cursor.unlink()
    assert push(run_dir, tracking_uri).outcome == "complete"
    assert [query(f"SELECT * FROM {table}") for table in ("metrics", "params", "tags", "inputs", "runs")] == before


def test_metrics_once(make_run, train, client, query, tracking_uri):
    run_dir = make_run()
    train(run_dir, 1, 8, status=None)
    first = push(run_dir, tracking_uri)
    assert client.get_run(first.mlflow_run_id).info.status == "KILLED"
    with Journal.open(run_dir) as journal:  # from the checkpoint of step 5
        journal.checkpoint(5, "checkpoints/5", "e" * 64, 10)
        for step in (6, 7, 8, 9):
            journal.metrics(step, {"train/loss": 1 / step, "train/grad_norm": 0.25})
        again = push(run_dir, tracking_uri)
        assert (again.outcome, again.points, again.mlflow_run_id) == ("running", 2, first.mlflow_run_id)
        assert client.get_run(first.mlflow_run_id).info.status == "RUNNING"
    assert push(run_dir, tracking_uri).outcome == "complete"
    run = client.get_run(first.mlflow_run_id)
    assert (run.info.status, run.data.tags["lab.attempt"]) == ("FINISHED", "2")
    assert [step for key, step, *_ in query(POINTS) if key == "train/loss"] == list(range(1, 10))
    train(run_dir, 10, 11)
    (run_dir / "sync/mlflow.json").unlink()  # even without a memory, the function of the journal is the same
    push(run_dir, tracking_uri)
    assert [step for key, step, *_ in query(POINTS) if key == "train/loss"] == list(range(1, 12))
    assert query("SELECT count(*) FROM runs") == [(1,)]
    assert query("SELECT count(*) FROM logged_models") == [(1,)]


def test_a_checkpoint_that_a_resumed_run_wrote_again_shows_the_new_digest(make_run, client, query, tracking_uri):
    run_dir = make_run()
    for digest in ("1" * 64, "2" * 64):
        with Journal.open(run_dir) as journal:
            journal.checkpoint(5, "checkpoints/5", digest, 10)
        push(run_dir, tracking_uri)
    [(model_id,)] = query("SELECT model_id FROM logged_models")
    assert client.get_logged_model(model_id).tags["ckpt.digest"] == "2" * 64


def test_an_evaluation_waits_for_the_checkpoint_that_is_being_written(make_run, client, tracking_uri):
    run_dir = make_run(checkpoint_every=4)

    def pushed():
        run_id = push(run_dir, tracking_uri).mlflow_run_id
        return {metric.step for metric in client.get_metric_history(run_id, "eval/loss")}

    with Journal.open(run_dir) as journal:
        journal.metrics(0, {"eval/loss": 1.0}, checkpoint=0)
        assert pushed() == set()
        journal.metrics(1, {"train/loss": 1.0})
        assert pushed() == {0}
        journal.metrics(2, {"eval/loss": 0.5}, checkpoint=2)
        journal.metrics(30, {"system/cpu": 1.0})  # seconds
        assert pushed() == {0}
        journal.metrics(3, {"train/loss": 0.5})  # no checkpoint was due
        assert pushed() == {0, 2}
        journal.metrics(4, {"eval/loss": 0.25}, checkpoint=4)
        journal.metrics(4, {"eval/exact_match": 0.5}, checkpoint=4)
        journal.metrics(5, {"train/loss": 0.5})
        assert pushed() == {0, 2}  # training has gone on, and the checkpoint is still being written
        journal.checkpoint(4, "checkpoints/4", "d" * 64, 10)
        assert pushed() == {0, 2, 4}
        journal.metrics(8, {"eval/loss": 0.2}, checkpoint=8)
        journal.metrics(9, {"train/loss": 0.5})
        assert pushed() == {0, 2, 4}
        journal.event("checkpoint_failed", step=8, reason="the disk is full")
        assert pushed() == {0, 2, 4, 8}
        journal.metrics(10, {"eval/loss": 0.1}, checkpoint=10)  # the run is stopped here, and saves
        assert pushed() == {0, 2, 4, 8}
        journal.checkpoint(10, "checkpoints/10", "e" * 64, 10)
        journal.metrics(12, {"eval/loss": 0.1}, checkpoint=12)
    assert pushed() == {0, 2, 4, 8, 10, 12}  # it has ended
    for step, values in {4: {"eval/loss": 0.25, "eval/exact_match": 0.5}, 10: {"eval/loss": 0.1}}.items():
        model = f"s{step:06d}-dpo_nano-3a61"
        [found] = client.search_logged_models(["1"], filter_string=f"name = '{model}'")
        assert {m.key: m.value for m in found.metrics} == values


@pytest.mark.parametrize(
    ("status", "expected"), [("finished", "FINISHED"), ("failed", "FAILED"), ("killed", "KILLED"), (None, "KILLED")]
)
def test_how_a_run_ended(make_run, train, client, tracking_uri, status, expected):
    run_dir = make_run()
    train(run_dir, status=status)
    info = client.get_run(push(run_dir, tracking_uri).mlflow_run_id).info
    assert (info.status, info.end_time) == (expected, run_status(run_dir).ended_ms)


def test_a_new_store_is_filled_although_another_is_complete(make_run, train, tracking_uri, query, empty_store, tmp_path):
    run_dir = make_run()
    train(run_dir)
    push(run_dir, tracking_uri)
    before = query(POINTS)
    other = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'other.db')}"
    assert push(run_dir, other).points == 20
    assert is_complete(run_dir, tracking_uri)
    assert is_complete(run_dir, other)
    assert query(POINTS) == before


def test_a_run_that_somebody_deleted_is_left_alone(make_run, train, client, query, tracking_uri):
    run_dir = make_run()
    train(run_dir, status=None)
    client.delete_run(push(run_dir, tracking_uri).mlflow_run_id)
    train(run_dir, 11, 12)
    assert push(run_dir, tracking_uri).outcome == "deleted"
    assert query("SELECT count(*) FROM runs") == [(1,)]


def test_a_deleted_experiment_is_one_message(make_run, train, client, tracking_uri):
    run_dir = make_run()
    train(run_dir)
    client.delete_experiment(client.create_experiment("arithmetic"))
    with pytest.raises(EnvironmentProblem, match="'arithmetic' was deleted .*mlflow experiments restore -x 1"):
        push(run_dir, tracking_uri)


def test_only_one_process_replicates_a_run(make_run, train, tracking_uri):
    from tunix_lab.lab.tracking.cursor import exclusive

    run_dir = make_run()
    train(run_dir)
    with exclusive(run_dir):
        busy = push(run_dir, tracking_uri)
    assert (busy.outcome, busy.points, busy.pending) == ("busy", 0, 20)


@pytest.mark.parametrize(
    "uri", ["file:///tmp/mlruns", "mlruns", "sqlite://", "ftp://host/x", "http://", "http://[::1", "http://me:se@cret@h:1x"]
)
def test_an_address_that_can_never_work_is_one_message(make_run, train, uri):
    run_dir = make_run()
    train(run_dir)
    with pytest.raises(EnvironmentProblem, match="TUNIX_LAB_TRACKING_URI") as caught:
        push(run_dir, uri)
    assert "cret" not in str(caught.value)


def test_a_database_that_is_none_is_one_message(make_run, train, tmp_path):
    run_dir = make_run()
    train(run_dir)
    (tmp_path / "text.db").write_text("no database" * 100)
    with pytest.raises(EnvironmentProblem, match="text.db cannot be used: .*not a database"):
        push(run_dir, f"sqlite:///{tmp_path}/text.db")
    with pytest.raises(EnvironmentProblem, match="text.db"):
        push(run_dir, f"sqlite:///{tmp_path}/text.db/mlflow.db")


def test_a_killed_pass_and_the_next_one_push_every_point_once(make_run, client, query, tracking_uri):
    run_dir = make_run()
    with Journal.open(run_dir) as journal:
        for step in range(2000):
            journal.metrics(step, {f"train/m{i}": float(step) for i in range(10)})
    command = [sys.executable, "-m", "tunix_lab.lab.tracking.sync", str(run_dir), "--tracking-uri", tracking_uri]
    with subprocess.Popen(command) as process:
        while process.poll() is None and query("SELECT count(*) FROM metrics")[0][0] < 3000:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert 0 < query("SELECT count(*) FROM metrics")[0][0] < 20_000, "the kill came too late to test anything"
    assert push(run_dir, tracking_uri).outcome == "complete"
    assert query("SELECT count(*) FROM runs") == [(1,)]
    expected = [(f"train/m{i}", step, float(step), 0) for i in range(10) for step in range(2000)]
    assert query(POINTS) == expected


def test_the_follower_pushes_while_the_run_lives_and_tells_of_its_sigkill(make_run, client, query, tracking_uri):
    run_dir = make_run()
    with subprocess.Popen([sys.executable, "-c", TRAINER, str(run_dir)], stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout.readline() == "trained\n"
        follower = start_follower(run_dir, tracking_uri)
        deadline = time.monotonic() + 60
        while not query(POINTS) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(query(POINTS)) == 50
        assert not wait_follower(follower, 0.1)
        follower.send_signal(signal.SIGINT)  # Ctrl-C in the terminal is for the trainer
        trainer.send_signal(signal.SIGKILL)
        trainer.wait()
        assert wait_follower(follower, 30)
    assert query("SELECT status FROM runs") == [("KILLED",)]
    assert is_complete(run_dir, tracking_uri)
    assert (run_dir / "sync/follower.log").read_text() == ""


@pytest.mark.slow
def test_four_processes_share_a_store_that_does_not_exist_yet(make_run, train, tmp_path):
    uri = f"sqlite:///{tmp_path}/fresh/mlflow.db"
    run_dirs = [make_run(f"dpo_nano-20261123-08000{i}-000{i}") for i in range(4)]
    for run_dir in run_dirs:
        train(run_dir)
    command = [sys.executable, "-m", "tunix_lab.lab.tracking.sync", "--tracking-uri", uri]
    processes = [subprocess.Popen([*command, str(run_dir)]) for run_dir in run_dirs]
    assert [process.wait(120) for process in processes] == [0, 0, 0, 0]
    assert all(is_complete(run_dir, uri) for run_dir in run_dirs)
