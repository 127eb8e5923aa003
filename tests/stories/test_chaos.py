"""Kills at random instants, of every algorithm: whatever the instant, the run that goes on is the run that was never killed.

A few kills in every test run; `pytest tests/stories/test_chaos.py --chaos 100 -s` makes a hundred and prints what they hit.
"""

import collections
import concurrent.futures
import dataclasses
import random
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from story_project import CHAT, PAIRS, RL_KINDS, Project

from tunix_lab.lab.record.journal import run_status
from tunix_lab.lab.record.run_state import read_events
from tunix_lab.lab.same_run import compare, read_outcome

pytestmark = pytest.mark.slow

PREFERENCE = "max_prompt_length: 40, max_response_length: 24"
TEACHER = "teacher: {kind: path, path: teacher/final}"
PACKED = CHAT.replace("max_length: 64", "max_length: 96, packing: true")
MIXED = CHAT.replace(
    "train: data/arithmetic/sft/train.jsonl",
    "train: [{path: data/arithmetic/sft/train.jsonl, weight: 2}, {path: data/arithmetic/sft/validation.jsonl, weight: 1}]",
)
# name -> (algorithm, data, overrides); those of reinforcement learning are `RL_KINDS`
ALGORITHMS = {
    "sft": ("{kind: sft}", CHAT, ()),
    "packed": ("{kind: sft}", PACKED, ("training.scan_layers=true", "training.remat=block")),
    "mixture": ("{kind: sft}", MIXED, ("data.buckets=[32, 64]",)),
    "lora": ("{kind: sft}", CHAT, ("adapter={kind: lora, rank: 4, alpha: 8}",)),
    "qlora": ("{kind: sft}", CHAT, ("adapter={kind: qlora, rank: 4, alpha: 8, tile_size: 16}",)),
    "dpo": (f"{{kind: dpo, {PREFERENCE}}}", PAIRS, ()),
    "dpo_lora": (f"{{kind: dpo, precompute_reference: true, {PREFERENCE}}}", PAIRS, ("adapter={kind: lora, rank: 4, alpha: 8}",)),
    "ipo": (f"{{kind: ipo, {PREFERENCE}}}", PAIRS, ()),
    "orpo": (f"{{kind: orpo, {PREFERENCE}}}", PAIRS, ()),
    "distill": (f"{{kind: distill, {TEACHER}}}", CHAT, ()),
    "distill_features": (f"{{kind: distill, {TEACHER}, strategy: {{kind: feature_projection}}}}", CHAT, ()),
}
OF_EVERY_DAY = ("sft", "dpo_lora", "ppo")
KILLS_A_RUN = 3
QUIET = {"TUNIX_LAB_SYNC": "off"}


@dataclasses.dataclass(frozen=True)
class Reference:
    """The run that nobody killed, and how long it took in seconds."""

    project: Project
    seconds: float


@dataclasses.dataclass
class Arena:
    """Where runs are killed.

    Attributes:
      folder: of all projects.
      data: of all stories.
      cache: of compiled programs.
      hits: number of kills by algorithm and by what the run was doing.
    """

    folder: Path
    data: Path
    cache: Path
    hits: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def project(self, name: str) -> Project:
        project = Project(self.folder / name, self.cache)
        project.home.mkdir()
        (project.home / "data").symlink_to(self.data)
        (project.home / "teacher").symlink_to(self.folder / "sft/runs/teacher")
        return project

    def command(self, project: Project, algorithm: str) -> list[str]:
        if algorithm in RL_KINDS:
            return project.rl_command(algorithm, "training.max_steps=16")
        kind, data, overrides = ALGORITHMS[algorithm]
        spec = project.write_spec(algorithm, algorithm=kind, data=data)
        short = ("model.size=pico", "training.max_steps=16", "training.eval_every=5", "checkpoint.every=3", "samples.every=7")
        return ["run", str(spec), *(f"--set={text}" for text in (*short, *overrides))]

    def reference(self, algorithm: str) -> Reference:
        project, began = self.project(algorithm), time.monotonic()
        project.cli(*self.command(project, algorithm), **QUIET)
        if algorithm == "sft":
            shutil.copytree(project.runs()[0], project.home / "runs/teacher")
            shutil.rmtree(project.home / "runs/teacher/journal")
        return Reference(project, time.monotonic() - began)


def doing(project: Project) -> str:
    """What a run was doing when it was killed, by what it left."""
    runs = [run for run in project.runs() if (run / "state.json").is_file()] if (project.home / "runs").is_dir() else []
    if not runs:
        return "starting"
    if list((project.home / "checkpoints").glob("*/*/*tmp*")):
        return "saving"
    step = run_status(runs[0]).step
    if any(event["kind"] == "finish" for event in read_events(runs[0])):
        return "ending"
    return "starting" if step == 0 else "writing outputs" if step == 16 else "training"


def finished_runs(project: Project) -> list[Path]:
    runs = project.runs() if (project.home / "runs").is_dir() else []
    return [run for run in runs if run_status(run).status == "finished"]


def wait_for_the_moment(project: Project, process: subprocess.Popen, reference: Reference, rng: random.Random) -> None:
    """Returns at an instant of one of three kinds: any at all, some time after some step, or in the middle of a save."""
    kind, patience = rng.choice(["any", "step", "save"]), time.monotonic() + 3 * reference.seconds
    if kind == "any":
        patience = time.monotonic() + rng.uniform(0, reference.seconds)
    step = rng.randrange(16)
    while process.poll() is None and time.monotonic() < patience:
        runs = list(project.home.glob("runs/*/state.json"))
        if kind == "step" and runs and run_status(runs[0].parent).step >= step:
            time.sleep(rng.uniform(0, 0.1))
            return
        if kind == "save" and list(project.home.glob("checkpoints/*/*/*tmp*")) and rng.random() < 0.3:
            return
        time.sleep(0.002)


def torment(arena: Arena, algorithm: str, reference: Reference, number: int, seed: int) -> list[str]:
    """Starts a run, kills it, lets it go on, kills it again …; returns what differs from the reference in the end."""
    rng, project = random.Random(f"{seed} {number}"), arena.project(f"{algorithm}-{number}")
    command, kills = arena.command(project, algorithm), 0
    while True:
        process = project.start(*command, **QUIET)
        if kills < KILLS_A_RUN:
            wait_for_the_moment(project, process, reference, rng)
            process.send_signal(signal.SIGKILL)
        said = process.communicate(timeout=600)
        if process.returncode != -signal.SIGKILL:
            break
        kills += 1
        with arena.lock:
            arena.hits[algorithm, doing(project)] += 1
        if finished_runs(project):  # all was done; the same command would begin another run
            break
    finished = finished_runs(project)
    assert len(finished) == 1, (algorithm, number, process.returncode, said)
    expected = read_outcome(reference.project.runs()[0], reference.project.home)
    checks = compare(expected, read_outcome(finished[0], project.home))
    assert [check.what for check in checks if not check.compared] == ([] if algorithm in RL_KINDS else ["trajectories"])
    wrong = [f"{algorithm} {number}: {check.what}: {'; '.join(check.first)}" for check in checks if check.different]
    if not wrong:
        shutil.rmtree(project.home)
    return wrong


def test_chaos(tmp_path: Path, data: Path, cache: Path, pytestconfig: pytest.Config) -> None:
    wanted, seed = pytestconfig.getoption("--chaos"), pytestconfig.getoption("--chaos-seed")
    names = [*ALGORITHMS, *RL_KINDS] if wanted else OF_EVERY_DAY
    wanted, arena = wanted or KILLS_A_RUN * len(names), Arena(tmp_path, data, cache)
    references, wrong, number = {name: arena.reference(name) for name in names}, [], 0
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        while arena.hits.total() < wanted:
            rounds = [names[(number + i) % len(names)] for i in range(2)]
            trials = [pool.submit(torment, arena, name, references[name], number + i, seed) for i, name in enumerate(rounds)]
            wrong += [line for trial in trials for line in trial.result()]
            number += 2
    print(f"\n{arena.hits.total()} kills in {number} runs, seed {seed}; differences: {len(wrong)}")
    for (algorithm, what), count in sorted(arena.hits.items()):
        print(f"  {algorithm:<18}{what:<18}{count}")
    assert wrong == []
