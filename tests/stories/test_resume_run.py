"""Runs that stop before their time, and go on: budgets, stop files, numbers that are none, inputs that changed."""

import json
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from story_project import Project, metrics_of

from tunix_lab.lab.record.fingerprints import read_fingerprints
from tunix_lab.lab.record.journal import read_events, run_status
from tunix_lab.lab.same_run import read_checkpoint

pytestmark = pytest.mark.slow


def last_digest(run: Path) -> tuple[int, str]:
    """Step and digest of the last checkpoint."""
    event = [event for event in read_events(run) if event["kind"] == "checkpoint"][-1]
    return event["step"], event["digest"]


def same_outcome(one: Path, other: Path) -> None:
    assert (one / "final/model.safetensors").read_bytes() == (other / "final/model.safetensors").read_bytes()
    assert metrics_of(one) == metrics_of(other)
    assert read_fingerprints(one) == read_fingerprints(other)
    assert last_digest(one) == last_digest(other)


def test_a_run_that_is_stopped_again_and_again(project: Project) -> None:
    """By a stop file, by its budget, by a signal; `resume` and `run` go on; the end is that of the run nobody stopped."""
    spec = project.write_spec("steps")
    quiet = {"TUNIX_LAB_SYNC": "off"}
    project.cli("run", str(spec), **quiet)
    (whole,) = project.runs()
    assert set(read_fingerprints(whole)) == set(range(1, 25))

    machine = project.home / "preempted"
    machine.touch()
    printed = project.cli("run", str(spec), "--fresh", exit_code=75, TUNIX_LAB_STOP_FILE=str(machine), **quiet)
    assert f"stopped by the stop file {machine}: step 1 is saved and verified" in printed
    _, run = project.runs()
    assert run_status(run).status == "killed" and "stop file" in run_status(run).message
    resume = ("resume", run.name)
    # the budget cannot be met: one update, and it stops
    printed = project.cli("run", str(spec), "--set", "training.budget=1s", exit_code=75, **quiet)
    assert "stopped by its time budget (1s): step 2 is saved and verified" in printed
    assert project.interrupt(project.start(*resume, **quiet), step=8, signum=signal.SIGUSR1) == 128 + signal.SIGUSR1
    # what it saved then is damaged on disk: the checkpoint before it is taken
    newest = project.home / [event for event in read_events(run) if event["kind"] == "checkpoint"][-1]["path"]
    for path in (path for path in (newest / "opt_state").rglob("*") if path.is_file() and path.parent.name == "d"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    printed = project.cli(*resume, **quiet)
    assert "continuing interrupted run" in printed and f"of step {newest.name} is unusable and skipped" in printed
    assert run_status(run).attempt == 4
    same_outcome(run, whole)

    printed = project.cli(*resume, exit_code=2, **quiet)
    assert "has finished: there is nothing to resume" in printed
    assert "no run 'nobody'" in project.cli("resume", "nobody", exit_code=2)


def test_a_disk_that_fills_up(project: Project) -> None:
    """Room for one checkpoint: the others are left out with a message, the run ends well, and the one that fits can be read."""
    spec, disk = project.write_spec("disk"), project.home / "checkpoints"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        printed = project.cli("run", str(spec), "--set", "checkpoint.keep_last=5", "--set", "samples=null", TUNIX_LAB_SYNC="off")
        (run,) = project.runs()
        events = list(read_events(run))
        assert run_status(run).status == "finished" and (run / "final/model.safetensors").is_file()
        assert [event["step"] for event in events if event["kind"] == "checkpoint"] == [4]
        # the last one, which matters most, is tried once more
        assert [event["step"] for event in events if event["kind"] == "checkpoint_failed"] == [8, 12, 16, 20, 24, 24]
        assert "no checkpoint of step 8" in printed and "the disk lacks" in printed and "Traceback" not in printed
        leaves, counters = read_checkpoint(next(disk.glob("*/*/4")))
        assert counters["train_steps"] == 4 and leaves
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_changed_inputs_are_refused(project: Project) -> None:
    spec = project.write_spec("inputs")
    assert project.interrupt(project.start("run", str(spec), TUNIX_LAB_SYNC="off"), step=5) == -signal.SIGKILL
    (run,) = project.runs()
    data = project.home / "data"
    real = data.resolve()
    data.unlink()
    (data / "arithmetic/sft").mkdir(parents=True)
    (data / "tokenizer").symlink_to(real / "tokenizer")
    for split in ("train", "validation"):
        lines = (real / f"arithmetic/sft/{split}.jsonl").read_text().splitlines(keepends=True)
        (data / f"arithmetic/sft/{split}.jsonl").write_text("".join(lines[:-1] if split == "train" else lines))
    printed = project.cli("resume", run.name, exit_code=2)
    assert f"{run.name} cannot go on: it began with another data.train (" in printed and "data.validation" not in printed
    assert run_status(run).attempt == 1


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_numbers_that_are_none(project: Project, policy: str) -> None:
    """A learning rate that explodes: the batch is kept and the step named; skipped updates leave the parameters finite."""
    spec = project.write_spec("explodes")
    explosive = ["optimizer.learning_rate=1.0e30", "optimizer.schedule={kind: constant}", "training.max_steps=4"]
    overrides = [f"--set={text}" for text in [*explosive, f"training.nonfinite={policy}", "samples=null"]]
    printed = project.cli("run", str(spec), *overrides, exit_code=4 if policy == "stop" else 0, TUNIX_LAB_SYNC="off")
    (run,) = project.runs()
    event = next(event for event in read_events(run) if event["kind"] == "nonfinite")
    assert f"at step {event['step']}" in printed and "Traceback" not in printed
    with np.load(run / event["batch"]) as batch:
        assert batch["input_tokens"].shape[:2] == (2, 4)  # two micro-batches of four rows
    if policy == "skip":
        assert run_status(run).latest["train/skipped"] == 1.0 and run_status(run).status == "finished"
    else:
        assert run_status(run).status == "failed" and "training.nonfinite" in printed
        assert json.loads((run / "manifest.json").read_text())["inputs"]["tokenizer"]
