"""Rollouts in MLflow: a few of them as tables and as traces of prompt, completions and rewards, each once."""

import json
import math
import os
import time

import pytest
from hand_made_rollouts import PROMPTS, rollout

from tunix_lab.lab.record.journal import Journal, read_events
from tunix_lab.lab.record.trajectories import record_trajectories
from tunix_lab.lab.tracking.cursor import CURSOR
from tunix_lab.lab.tracking.rollouts import MAX_PROMPTS, MAX_ROLLOUTS, due, read_groups, table_of
from tunix_lab.lab.tracking.sync import push

pytestmark = [pytest.mark.filterwarnings(f"ignore:::{package}") for package in ("mlflow", "alembic", "sqlalchemy")]

RUN = "grpo_nano-20261123-080000-3a61"
CADENCE = {"train": 4, "eval": 8, "last": 16}


@pytest.fixture
def client(tracking_uri):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri)


@pytest.fixture
def run_dir(make_run):
    run_dir = make_run(RUN, algorithm="grpo", rollouts=CADENCE)
    with Journal.open(run_dir) as journal:
        record_trajectories(journal, rollout(0))
        record_trajectories(journal, rollout(8, "eval"))
        record_trajectories(journal, rollout(3))  # of no cadence: not shown
        journal.samples(0, [{"id": "p1", "prompt": "3+4?", "completion": "7"}])
    return run_dir


def traces(client, pushed):
    run = client.get_run(pushed.mlflow_run_id)
    return list(client.search_traces(locations=[run.info.experiment_id], run_id=run.info.run_id))


def test_tables_and_traces(run_dir, client, tracking_uri, tmp_path):
    pushed = push(run_dir, tracking_uri)
    assert (pushed.outcome, pushed.problem) == ("complete", None)
    run = client.get_run(pushed.mlflow_run_id)
    names = ["samples/latest.json", "trajectories/eval-000008.json", "trajectories/train-000000.json"]
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": name, "type": "table"} for name in names]
    table = json.loads((tmp_path / f"mlartifacts/arithmetic/{run.info.run_id}/artifacts" / names[2]).read_text())
    assert table["columns"] == [
        *("prompt", "completion", "reward", "reward_exact_match", "reward_shape", "tokens", "finish_reason", "step")
    ]
    assert table["data"][0] == [f"{PROMPTS[0]} [0]", "2", 1.5, 1.0, 0.5, 2, "stop", 0]
    assert len({row[0] for row in table["data"]}) == 4

    found = {(trace.info.tags["mlflow.traceName"], trace.info.request_preview): trace for trace in traces(client, pushed)}
    assert found.keys() == {(name, prompt) for name in ("train step 0", "eval step 8") for prompt in PROMPTS}
    trace = found["train step 0", PROMPTS[0]]
    recorded = next(event["t"] for event in read_events(run_dir) if event["kind"] == "trajectories")
    assert (trace.info.request_time, trace.info.execution_duration, str(trace.info.state)) == (recorded, 2, "OK")
    assert (trace.info.tags["lab.mode"], trace.info.tags["lab.step"], trace.info.tags["lab.reward"]) == ("train", "0", "1")
    root, *below = trace.data.spans
    assert (root.name, root.inputs, root.parent_id) == ("train step 0", PROMPTS[0], None)
    assert root.outputs == {"mean_reward": 1.0, "std": 0.5, "best": "2"}
    completions = {span.name: span for span in below if span.parent_id == root.span_id}
    assert {name: span.outputs for name, span in completions.items()} == {"completion 0": "2", "completion 1": "3"}
    assert completions["completion 1"].attributes["advantage"] == -1.0
    rewards = {
        (completion, span.name): span.outputs
        for completion, above in completions.items()
        for span in below
        if span.parent_id == above.span_id
    }
    assert rewards == {
        ("completion 0", "exact_match"): 1.0,
        ("completion 0", "shape"): 0.5,
        ("completion 1", "exact_match"): 0.0,
        ("completion 1", "shape"): 0.5,
    }
    assert len(trace.data.spans) == 1 + 2 + 4


def test_pushed_again_they_are_there_once(run_dir, client, tracking_uri, query):
    pushed = push(run_dir, tracking_uri)
    before = query("SELECT trace_id, span_id, name, start_time_unix_nano FROM spans ORDER BY 1, 2")
    assert len(before) == 2 * 2 * 7 and len(traces(client, pushed)) == 4
    (run_dir / CURSOR).unlink()  # all is pushed again, as after a kill before the cursor was saved
    assert push(run_dir, tracking_uri).mlflow_run_id == pushed.mlflow_run_id
    assert query("SELECT trace_id, span_id, name, start_time_unix_nano FROM spans ORDER BY 1, 2") == before
    assert len(traces(client, pushed)) == 4 and query("SELECT COUNT(*) FROM trace_info") == [(4,)]


def test_a_resumed_run_that_samples_again_changes_nothing(run_dir, tracking_uri, query):
    """The same answers at a later time: the traces keep the time of the first."""
    push(run_dir, tracking_uri)
    before = query("SELECT request_id, timestamp_ms FROM trace_info ORDER BY 1")
    time.sleep(0.01)
    with Journal.open(run_dir) as journal:
        path = record_trajectories(journal, rollout(0))
    os.utime(path, ns=(0, 10**18))
    assert push(run_dir, tracking_uri).outcome == "complete"
    assert query("SELECT request_id, timestamp_ms FROM trace_info ORDER BY 1") == before


def test_a_rollout_that_did_not_change_is_not_read_again(run_dir, tracking_uri, monkeypatch):
    push(run_dir, tracking_uri)
    (run_dir / "trajectories/train-000003.parquet").unlink()
    monkeypatch.setattr("tunix_lab.lab.tracking.replica.read_groups", lambda path: pytest.fail(f"{path} was read again"))
    assert push(run_dir, tracking_uri).outcome == "complete"


@pytest.mark.parametrize(
    ("mode", "between", "last"), [("train", 1, 10), ("train", 4, 1000), ("eval", 50, 3000), ("train", 1, 26)]
)
def test_there_are_never_more_than_a_page_holds(mode, between, last):
    cadence = {"train": between, "eval": between, "last": last}
    last = last - between if mode == "train" else last  # updates follow a rollout of training
    steps = [step for step in range(0, last + 1, between) if due(cadence, mode, step)]
    assert steps[0] == 0 and MAX_ROLLOUTS // 2 - 2 <= len(steps) <= MAX_ROLLOUTS + 1
    assert due(cadence, mode, last)
    assert len({b - a for a, b in zip(steps, steps[1:], strict=False) if b != last}) == 1  # evenly spaced


def test_large_rollouts_are_cut_and_odd_ones_are_told(tmp_path):
    from tunix_lab.lab.record.trajectories import write_trajectories

    once = rollout(reward=[math.nan] * 4, rewards={"f": [math.nan] * 4})
    many = rollout(**{
        field: [*getattr(once, field)] * 5
        for field in ("prompts", "completions", "prompt_ids", "completion_ids", "finish_reasons", "trained", "sampler_logps",
                      "trainer_logps", "reward", "advantages")
    } | {"groups": [i // 2 for i in range(20)], "rewards": {"f": [math.nan] * 20}, "columns": {}})  # fmt: skip
    groups = read_groups(write_trajectories(tmp_path, many))
    assert len(groups) == MAX_PROMPTS
    table = json.loads(table_of(groups))
    assert len(table["data"]) == 2 * MAX_PROMPTS and table["data"][0][2:4] == [None, None]
