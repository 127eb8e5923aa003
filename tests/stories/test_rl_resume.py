"""Runs of reinforcement learning that are killed in any phase, stopped, or left by their rewards, and go on to the same bytes."""

import collections
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from story_project import Project, metrics_of

from tunix_lab.lab.record.journal import read_events, run_status
from tunix_lab.lab.record.trajectories import read_trajectories
from tunix_lab.lab.same_run import compare, read_outcome

pytestmark = pytest.mark.slow

QUIET = {"TUNIX_LAB_SYNC": "off"}
KILL = [sys.executable, "-P", str(Path(__file__).parent / "kill_in_phase.py")]

# Each kill is of another attempt. With four updates of each rollout the checkpoints are of steps 4 and 8.
KILLS = {
    "grpo": [("sync", 2), ("rollout", 2), ("reward", 3), ("logps", 1), ("told", 1), ("save", 1), ("saved", 1), ("told", 1)],
    "ppo": [("critic", 3), ("update", 4), ("saved", 1), ("reward", 1), ("critic", 1)],
    # two rounds of sampling for each update, a checkpoint every second one
    "dapo": [("rollout", 4), ("saved", 1), ("told", 2)],
    "ppo_lora": [("critic", 4), ("saved", 1), ("rollout", 1)],
}


def same_outcome(project: Project, run: Path, whole: tuple[Project, Path]) -> None:
    """Everything that two runs left, which was compared, is the same."""
    checks = compare(read_outcome(whole[1], whole[0].home), read_outcome(run, project.home))
    assert all(check.compared for check in checks)
    assert [(check.what, check.first) for check in checks if check.different] == []


def no_workers(project: Project) -> None:
    """Nobody who judged answers is left: those of a killed run notice that it is gone."""
    deadline = time.monotonic() + 20
    while (left := project.reward_workers()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


@pytest.mark.parametrize("name", KILLS)
def test_killed_in_every_phase(project: Project, rl_run, name: str) -> None:
    whole, command = rl_run(name), project.rl_command(name)
    for phase, number in KILLS[name]:
        arguments = [*KILL, phase, str(number), *command]
        done = subprocess.run(
            arguments, cwd=project.home, env=project.environment(**QUIET), capture_output=True, text=True, check=False
        )
        assert done.returncode == -signal.SIGKILL, f"{phase} {number}\n{done.stdout}\n{done.stderr}"
        no_workers(project)
    project.cli(*command, **QUIET)
    (run,) = project.runs()
    assert run_status(run).attempt == len(KILLS[name]) + 1
    assert any(event["kind"] == "resumed" for event in read_events(run))
    same_outcome(project, run, whole)


def test_a_stop_waits_for_the_last_update_of_the_rollout(project: Project, rl_run) -> None:
    """Asked for by a file, by the budget, by a signal: after one update or while answers are judged."""
    whole, command = rl_run("grpo"), project.rl_command("grpo")
    machine = project.home / "preempted"
    machine.touch()
    said = project.cli(*command, exit_code=75, TUNIX_LAB_STOP_FILE=str(machine), **QUIET)
    assert "stopping after the last update of this rollout" in said
    assert f"stopped by the stop file {machine}: step 4 is saved and verified" in said
    no_workers(project)
    (run,) = project.runs()
    assert (run_status(run).status, run_status(run).step) == ("killed", 4)
    project.cli("resume", run.name, **QUIET)
    same_outcome(project, run, whole)

    said = project.cli(*command, "--set", "training.budget=1s", exit_code=75, **QUIET)
    assert "stopped by its time budget (1s): step 4 is saved and verified" in said
    # in the first call of this attempt, which is of the rollout after step 4
    said = project.cli(*command, exit_code=128 + signal.SIGTERM, STORY_REWARD="stop:1", **QUIET)
    assert "SIGTERM: stopping after" in said and "step 8 is saved" in said
    no_workers(project)
    again = next(path for path in project.runs() if path != run)
    project.cli("resume", again.name, **QUIET)
    same_outcome(project, again, whole)


def test_a_reward_that_fails_stops_the_run_which_then_goes_on(project: Project, rl_run) -> None:
    whole, command = rl_run("grpo"), project.rl_command("grpo")
    # of the evaluation, the first rollout, the evaluation of step 4, and then the second rollout
    said = project.cli(*command, exit_code=4, STORY_REWARD="raise:4", **QUIET)
    assert "reward vowels: raised RuntimeError: nobody can judge this at " in said and ", for answer 0 of 8 (from 0):" in said
    assert "prompt: " in said and "completion: " in said and "Traceback" not in said
    (run,) = project.runs()
    assert run_status(run).status == "failed" and "nobody can judge this" in run_status(run).message
    no_workers(project)
    said = project.cli(*command, exit_code=4, STORY_REWARD="raise:1", **QUIET)
    assert "resuming after step 4" in said
    said = project.cli(*command, **QUIET)
    assert f"continuing interrupted run {run.name}" in said and "resuming after step 4" in said
    same_outcome(project, run, whole)


def test_a_reward_that_hangs(project: Project) -> None:
    command = project.rl_command("grpo", "algorithm.rewards.timeout_s=2")
    said = project.cli(*command, exit_code=4, STORY_REWARD="hang:2", **QUIET)
    # Each worker that hangs is replaced, and the second call of the next one hangs again: a prompt's answers, then one alone.
    assert "reward vowels: took longer than 2 s" in said and " of 8 (from 0):" in said
    assert "prompt: " in said and "completion: " in said and "Traceback" not in said
    (run,) = project.runs()
    assert run_status(run).status == "failed"
    no_workers(project)


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_rewards_that_fail_can_be_masked(project: Project, name: str) -> None:
    command = project.rl_command(name, "algorithm.rewards.on_error=mask", "samples=null")
    project.cli(*command, STORY_REWARD="some", **QUIET)
    (run,) = project.runs()
    assert run_status(run).status == "finished"
    events = [event for event in read_events(run) if event["kind"] == "reward_failed"]
    assert {event["function"] for event in events} == {"vowels"} and {event["step"] for event in events} <= {0, 4, 8}
    assert all("leaves one over three" in event["reason"] for event in events)
    metrics = metrics_of(run)
    assert any(metrics[step, "train/masked_answers"] > 0 for step in (4, 8))
    for rollout in read_trajectories(run, mode="train"):
        failed = [sum(text.encode()) % 3 == 1 for text in rollout.completions]
        assert [not trained for trained in rollout.trained] == failed
        assert metrics[rollout.step + 4, "train/masked_answers"] == pytest.approx(sum(failed) / len(failed))
    unrewarded = collections.Counter({r.step: 0 for r in read_trajectories(run)})
    for rollout in read_trajectories(run):
        unrewarded[rollout.step] += sum(not math.isfinite(value) for value in rollout.reward)
    assert collections.Counter(event["step"] for event in events) == unrewarded
    no_workers(project)


def test_rewards_beyond_all_bounds(project: Project) -> None:
    """0 and 1e38 are as far apart as 0 and 1 to GRPO; to a critic, whose loss is a square, they are no numbers."""
    huge = {"STORY_REWARD": "huge", **QUIET}
    said = project.cli(*project.rl_command("grpo", "training.nonfinite=skip", "samples=null"), **huge)
    (run,) = project.runs()
    metrics = metrics_of(run)
    assert run_status(run).status == "finished" and "Warning" not in said
    assert metrics[1, "train/skipped"] == 0.0 and metrics[4, "train/reward"] == pytest.approx(5e37, rel=1e-3)

    command = project.rl_command("ppo", "algorithm.num_generations=2", "samples=null")
    said = project.cli(*command, "--set", "training.nonfinite=skip", **huge)
    run = project.runs()[-1]
    assert run_status(run).status == "finished" and "the critic's loss inf" in said and "skipped; its batch is in" in said
    assert metrics_of(run)[1, "train/skipped"] == 1.0 and "Warning" not in said
    said = project.cli(*command, exit_code=4, **huge)
    assert "at step 1: stopped. Its batch is in" in said and "Traceback" not in said


@pytest.mark.parametrize(("name", "steps"), [("grpo", "16"), ("ppo", "8")])
def test_verify_resume(project: Project, name: str, steps: str) -> None:
    _, spec, *overrides = project.rl_command(name)
    arguments = ("verify-resume", spec, *overrides, "--steps", steps)
    said = project.cli("verify-resume", spec, *overrides, "--steps", "6", exit_code=2)
    assert "--steps: must be a multiple of 4, the updates made from one rollout; got 6" in said
    said = project.cli(*arguments, "--kill-after", "5")
    assert "is the run that was not killed, bit for bit" in said and "trajectories" in said
