"""The journal: what a killed writer leaves, who may write, and how a run's end is known."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tunix_lab.errors import EnvironmentProblem, UserError
from tunix_lab.lab.record.journal import Journal, find_run, list_runs, new_run_id, read_events, read_metrics, run_status
from tunix_lab.lab.system_metrics import SystemMetrics

WRITER = """
import sys
from tunix_lab.lab.record.journal import Journal
heavy = {"mlflow", "jax", "numpy", "dvc"} & set(sys.modules)
assert not heavy, heavy
journal = Journal.open(sys.argv[1])
step = 0
while True:
    step += 1
    journal.metrics(step, {"train/loss": 1 / step})
    print(step, flush=True)
"""


def strict_json(line):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(line, parse_constant=refuse)


def test_every_number_comes_back_and_every_line_is_strict_json(tmp_path):
    written = {"train/loss": math.inf, "train/grad_norm": -math.inf, "eval/loss": math.nan, "perf/step_s": 0.1}
    with Journal.open(tmp_path / "r") as journal:
        journal.metrics(7, written, checkpoint=5)
    [(t, step, read)] = read_metrics(tmp_path / "r")
    assert step == 7
    assert abs(t - time.time() * 1000) < 60_000
    assert {name: str(value) for name, value in read.items()} == {name: str(value) for name, value in written.items()}
    for line in (tmp_path / "r/journal/metrics.jsonl").read_text().splitlines():
        assert strict_json(line)["c"] == 5
    assert strict_json((tmp_path / "r/state.json").read_text())["latest"]["train/loss"] == "Infinity"


@pytest.mark.parametrize("name", ["loss", "a/b/c", "/loss", "train/", "train/a,b", "Train/loss"])
def test_a_metric_name_has_one_slash(tmp_path, name):
    with Journal.open(tmp_path / "r") as journal, pytest.raises(ValueError, match="group/name"):
        journal.metrics(1, {name: 1.0})


def test_a_step_is_a_count(tmp_path):
    with Journal.open(tmp_path / "r") as journal:
        with pytest.raises(ValueError, match="negative"):
            journal.metrics(-1, {"train/loss": 1.0})
        with pytest.raises(TypeError):
            journal.metrics(1.5, {"train/loss": 1.0})


def test_a_torn_line_is_not_read_and_is_cut_off_by_the_next_attempt(tmp_path):
    with Journal.open(tmp_path / "r") as journal:
        journal.metrics(1, {"train/loss": 1.0})
    metrics = tmp_path / "r/journal/metrics.jsonl"
    with open(metrics, "ab") as file:
        file.write(b'{"t":1,"step":2,"m":{"train/lo' + b"x" * 100_000)
    assert [step for _, step, _ in read_metrics(tmp_path / "r")] == [1]
    with Journal.open(tmp_path / "r") as journal:
        journal.metrics(2, {"train/loss": 0.5})
    assert [(step, values) for _, step, values in read_metrics(tmp_path / "r")] == [
        (1, {"train/loss": 1.0}),
        (2, {"train/loss": 0.5}),
    ]
    assert len(metrics.read_bytes().splitlines()) == 2


def test_a_block_of_zeros_from_a_power_failure_is_skipped(tmp_path):
    with Journal.open(tmp_path / "r") as journal:
        journal.metrics(1, {"train/loss": 1.0})
    with open(tmp_path / "r/journal/metrics.jsonl", "ab") as file:
        file.write(b"\0" * 512 + b"\n")
    with Journal.open(tmp_path / "r") as journal:
        journal.metrics(2, {"train/loss": 0.5})
    assert [step for _, step, _ in read_metrics(tmp_path / "r")] == [1, 2]


def test_the_last_writer_of_a_step_wins(tmp_path):
    with Journal.open(tmp_path / "r") as journal:
        for step in (1, 2, 3):
            journal.metrics(step, {"train/loss": float(step), "train/grad_norm": 1.0})
    with Journal.open(tmp_path / "r") as journal:  # resumed from step 1
        journal.metrics(2, {"train/loss": 20.0})
        journal.metrics(3, {"train/loss": 30.0})
    assert [(step, values) for _, step, values in read_metrics(tmp_path / "r")] == [
        (1, {"train/loss": 1.0, "train/grad_norm": 1.0}),
        (2, {"train/grad_norm": 1.0}),
        (3, {"train/grad_norm": 1.0}),
        (2, {"train/loss": 20.0}),
        (3, {"train/loss": 30.0}),
    ]
    assert run_status(tmp_path / "r").latest["train/loss"] == 30.0


def test_one_writer_at_a_time_and_the_other_learns_who(tmp_path):
    with Journal.open(tmp_path / "r") as journal:
        with pytest.raises(EnvironmentProblem, match=f"r is active .pid {os.getpid()} on host {socket.gethostname()}"):
            Journal.open(tmp_path / "r")
        journal.metrics(1, {"train/loss": 1.0})
    Journal.open(tmp_path / "r").close()


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot write the run directory"):
        Journal.open(tmp_path / "file" / "r")


def test_sigkill_leaves_a_run_that_reads_as_killed_and_can_go_on(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "r")], stdout=subprocess.PIPE, text=True)
    with process:
        seen = [int(process.stdout.readline()) for _ in range(200)][-1]
        alive = run_status(tmp_path / "r")
        assert (alive.status, alive.pid, alive.ended_ms) == ("running", process.pid, None)
        process.send_signal(signal.SIGKILL)
        process.wait()
    dead = run_status(tmp_path / "r")
    assert dead.status == "killed"
    assert dead.step >= seen  # also what was written after the last summary
    assert dead.ended_ms == dead.updated_ms >= dead.started_ms
    assert [step for _, step, _ in read_metrics(tmp_path / "r")] == list(range(1, dead.step + 1))
    with Journal.open(tmp_path / "r") as journal:
        assert journal.attempt == 2
        assert journal.started_ms == dead.started_ms
        assert run_status(tmp_path / "r").status == "running"
        journal.finish("finished")
    assert run_status(tmp_path / "r").status == "finished"


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [(None, "finished", None), (RuntimeError("boom"), "failed", "RuntimeError: boom"), (KeyboardInterrupt(), "killed", None)],
)
def test_leaving_the_block_ends_the_run(tmp_path, error, status, message):
    try:
        with Journal.open(tmp_path / "r"):
            if error is not None:
                raise error
    except (RuntimeError, KeyboardInterrupt):
        pass
    state = run_status(tmp_path / "r")
    assert state.status == status
    assert message is None or state.message == message


def test_what_was_said_about_the_end_stands(tmp_path):
    with pytest.raises(RuntimeError), Journal.open(tmp_path / "r") as journal:
        journal.finish("killed", "SIGTERM")
        raise RuntimeError
    assert run_status(tmp_path / "r").message == "SIGTERM"
    with pytest.raises(RuntimeError, match="closed"):
        journal.metrics(1, {"train/loss": 1.0})


def test_events_and_checkpoints_in_order(tmp_path):
    with Journal.open(tmp_path / "r") as journal:
        journal.checkpoint(5, "checkpoints/5", "d" * 64, 123)
        journal.event("note", text="hello")
    kinds = [event["kind"] for event in read_events(tmp_path / "r")]
    assert kinds == ["attempt", "checkpoint", "note", "finish"]
    checkpoint = list(read_events(tmp_path / "r"))[1]
    assert (checkpoint["step"], checkpoint["digest"], checkpoint["bytes"]) == (5, "d" * 64, 123)


def rows(step, completion="7"):
    return [
        {"id": f"p{i}", "prompt": f"What is {i} + 4?", "completion": f"{completion} at {step}", "score": math.nan} for i in (1, 2)
    ]


def test_samples_are_a_table_for_people_and_lines_for_programs(tmp_path):
    samples = tmp_path / "r/samples"
    with Journal.open(tmp_path / "r") as journal:
        journal.samples(0, rows(0))
        journal.samples(5, rows(5))
        journal.samples(5, rows(5, "again \udc80"))  # a resumed run makes the step again; bytes that are no character
        with pytest.raises(ValueError, match="needs `id` and `completion`"):
            journal.samples(6, [{"id": "p1"}])
    table = strict_json((samples / "latest.json").read_text())
    assert table["columns"] == ["prompt", "completion", "id", "score", "step"]
    assert table["data"][0] == ["What is 1 + 4?", "again \udc80 at 5", "p1", None, 5]
    history = [strict_json(line) for line in (samples / "history.jsonl").read_text().splitlines()]
    assert [(row["step"], row["id"]) for row in history] == [(0, "p1"), (0, "p2"), (5, "p1"), (5, "p2")]
    assert list(history[0]) == ["id", "completion", "prompt", "score", "step"]
    assert (samples / "step-000005.jsonl").read_text() in (samples / "history.jsonl").read_text()


def test_several_completions_of_one_prompt_are_told_apart_by_id(tmp_path):
    with Journal.open(tmp_path / "r") as journal:
        journal.samples(1, [{"id": f"p1.{i}", "prompt": "Why?", "completion": str(i)} for i in range(3)])
    table = json.loads((tmp_path / "r/samples/latest.json").read_text())
    assert table["columns"][:2] == ["id", "completion"]


def test_system_metrics_of_a_short_run_and_of_its_next_attempt(tmp_path):
    with Journal.open(tmp_path / "r") as journal:
        with SystemMetrics(journal, device_memory=lambda: {"gpu_0_memory_usage_megabytes": 3.0}):
            pass
        journal.metrics(4, {"train/loss": 1.0})
    [(_, first, values), _] = read_metrics(tmp_path / "r")
    assert 0 <= values["system/cpu_utilization_percentage"] <= 100
    assert values["system/system_memory_usage_megabytes"] > values["system/process_memory_usage_megabytes"] > 1
    assert values["system/gpu_0_memory_usage_megabytes"] == 3.0
    assert run_status(tmp_path / "r").step == 4  # seconds are not steps
    time.sleep(1.0)
    with Journal.open(tmp_path / "r") as journal, SystemMetrics(journal):
        pass
    assert list(read_metrics(tmp_path / "r"))[-1][1] > first


def test_runs_are_listed_newest_first_and_found_by_a_part_of_their_name(tmp_path):
    names = [new_run_id("sft"), new_run_id("dpo_x")]
    for name in names:
        Journal.open(tmp_path / "runs" / name).close()
        time.sleep(0.002)
    (tmp_path / "runs/not-a-run").mkdir()
    assert [run.run_id for run in list_runs(tmp_path)] == names[::-1]
    assert find_run(tmp_path, "dpo").name == names[1]
    assert find_run(tmp_path, names[0][-4:]).name == names[0]
    with pytest.raises(UserError, match="no run 'grpo'"):
        find_run(tmp_path, "grpo")
    with pytest.raises(UserError, match="ambiguous"):
        find_run(tmp_path, "")
