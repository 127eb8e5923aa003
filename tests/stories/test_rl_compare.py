"""Runs of reinforcement learning side by side: made again from their record, told apart, and two in one process."""

import json
import shutil
import subprocess
import sys

import pytest
from story_project import Project, metrics_of

from tunix_lab.lab.record.fingerprints import read_fingerprints
from tunix_lab.lab.record.journal import read_events
from tunix_lab.lab.record.trajectories import trajectory_files
from tunix_lab.lab.run_diff import diff_runs

pytestmark = pytest.mark.slow

QUIET = {"TUNIX_LAB_SYNC": "off"}
OTHER_WEIGHT = 'algorithm.rewards.functions=[{function: "judging:digits"}, {function: "judging:brief", weight: 0.25}]'


@pytest.fixture(scope="module")
def made(tmp_path_factory, data, cache) -> Project:
    """A project under git, and in it the runs of a spec and of that with another seed, weight of a reward, and temperature."""
    project = Project(tmp_path_factory.mktemp("compare") / "project", cache)
    project.home.mkdir()
    shutil.copytree(data, project.home / "data")
    command = project.rl_command("grpo")
    git = ["git", "-C", str(project.home), "-c", "user.name=Mia", "-c", "user.email=mia@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "experiments", "judging.py"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "a spec"], check=True)
    changes = ("seed=0", "seed=1", OTHER_WEIGHT, "algorithm.rollout.temperature=0.7")
    for change in changes:
        project.cli(*command, "--fresh", "--set", change, **QUIET)
    return project


def test_made_again_from_its_record(made: Project) -> None:
    first, *others = made.runs()
    (made.home / "judging.py").write_text("nobody = 0\n")  # the project moves on
    said = made.cli("reproduce", first.name, "--check")
    assert "everything that the run needs is here" in said
    said = made.cli("reproduce", first.name, **QUIET)
    assert "reproduced bit for bit: 8 updates" in said
    (again,) = set(made.runs()) - {first, *others}
    record = json.loads((again / "reproduction.json").read_text())
    assert record["grade"] == "bit for bit"
    digests = [json.loads((run / "run.json").read_text())["params_digest"] for run in (first, again)]
    assert digests[0] == digests[1] and read_fingerprints(first) == read_fingerprints(again)
    ours, theirs = trajectory_files(first), trajectory_files(again)
    assert ours.keys() == theirs.keys() and all(ours[key].read_bytes() == theirs[key].read_bytes() for key in ours)


@pytest.mark.parametrize(
    ("number", "cause", "what"), [(1, "data order", "prompts"), (2, "reward", "rewards"), (3, "rollout", None)]
)
def test_told_apart(made: Project, number: int, cause: str, what: str | None) -> None:
    runs = [run for run in made.runs() if not (run / "reproduction.json").is_file()]
    found = diff_runs(runs[0], runs[number])
    assert (found.divergence.step, found.divergence.cause, found.rollout.step) == (1, cause, 0)
    assert what in (None, found.rollout.what) and found.rollout.a != found.rollout.b
    if number == 2:
        assert found.rollout.a.startswith("brief ") and found.rollout.differing == found.rollout.answers == 8
        said = made.cli("diff", runs[0].name, runs[number].name)
        assert "updates: diverge at step 1: reward" in said and "the same prompts and answers, other rewards: 8 of 8" in said
        assert "algorithm.rewards.functions.1.weight" in said


def test_the_ledger_counts_prompts(made: Project) -> None:
    run = made.runs()[0]
    told = {event["source"]: event for event in read_events(run) if event["kind"] == "ledger"}
    assert {source: event["rows_in"] - event["rows_dropped"] for source, event in told.items()} == {
        "train": 200,
        "validation": 32,
    }
    tokens = {source: (event["trained"], event["context"] - event["tokens_in"]) for source, event in told.items()}
    assert tokens == {"train": (0, 0), "validation": (0, 0)}  # prompts are read alone


def test_runs_of_one_process_do_not_meet(project: Project) -> None:
    """Of PPO: three models, two optimizers and a pool of processes each; the run in between has another seed."""
    _, spec, *overrides = project.rl_command("ppo", "training.max_steps=4", "samples=null")
    program = f"""
from pathlib import Path
from tunix_lab.lab.runner import run
from tunix_lab.spec import LabSettings, load
home = Path({str(project.home)!r})
for seed in (0, 1, 0):
    overrides = {[text.removeprefix("--set=") for text in overrides]!r} + [f"seed={{seed}}"]
    run(load({spec!r}, overrides, home), home, LabSettings(), fresh=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=project.environment(**QUIET),
        cwd=project.home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, other, again = project.runs()
    assert metrics_of(first) == metrics_of(again) != metrics_of(other)
    assert read_fingerprints(first) == read_fingerprints(again) != read_fingerprints(other)
    answers = [{key: path.read_bytes() for key, path in trajectory_files(run).items()} for run in (first, other, again)]
    assert answers[0] == answers[2] != answers[1]
    assert not project.reward_workers()
