"""The rollouts of a run as someone asks for them on the command line."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.errors import UserError
from tunix_lab.lab.origin import tokenizer_folder
from tunix_lab.lab.record.run_state import find_run, read_manifest
from tunix_lab.lab.record.trajectories import MODES, read_file, trajectory_files
from tunix_lab.lab.rollouts import Group, Rescored, rescore, select
from tunix_lab.rl.trajectories import Trajectories
from tunix_lab.spec import import_function, load
from tunix_lab.spec.errors import did_you_mean


@dataclasses.dataclass(frozen=True)
class Browsed:
    """What was asked for.

    Attributes:
      run_dir: of the run.
      steps: of all its rollouts of this mode.
      shown: those that were read.
      rollouts: they themselves, whole.
      groups: what was looked for in them.
    """

    run_dir: Path
    steps: tuple[int, ...]
    shown: tuple[int, ...]
    rollouts: tuple[Trajectories, ...]
    groups: tuple[Group, ...]

    def tokenizer(self, home: Path) -> Tokenizer | None:
        """The run's tokenizer; None where its files are gone or its spec is of another version."""
        try:
            return Tokenizer.load(tokenizer_folder(load(self.run_dir / "resolved.yaml", home=home).spec, home))
        except UserError:
            return None


def browse(
    home: Path,
    run_id: str,
    *,
    mode: str = "train",
    step: int | None = None,
    everything: bool = False,
    prompt: str | None = None,
    failed: str | None = None,
) -> Browsed:
    """The rollout that was asked for: the last one, that of a step, or all.

    Args:
      home: the project folder.
      run_id: a run's id, its beginning or its end.
      mode: "train" or "eval".
      step: updates that had been made before; None is the last rollout, or all where a prompt is looked for.
      everything: all rollouts.
      prompt: see `rollouts.select`.
      failed: see there.

    Raises:
      UserError: there is no such run, rollout or reward.
    """
    if mode not in MODES:
        raise UserError(f"--mode {mode}: must be one of {', '.join(MODES)}{did_you_mean(mode, MODES)}")
    run_dir = find_run(home, run_id)
    files = trajectory_files(run_dir)
    steps = tuple(at for at, kind in files if kind == mode)
    if not files:
        raise UserError(
            f"{run_dir.name} has no trajectories: runs of reinforcement learning keep them, from their first rollout on"
        )
    if not steps:
        raise UserError(f"{run_dir.name} has no trajectories of mode {mode}, only of {next(iter(files))[1]}")
    if step is not None and step not in steps:
        raise UserError(f"--step {step}: {run_dir.name} has no {mode} rollout there, but at {_listed(steps)}")
    shown = (step,) if step is not None else steps if everything or prompt is not None else steps[-1:]
    rollouts = tuple(read_file(files[at, mode]) for at in shown)
    return Browsed(run_dir, steps, shown, rollouts, tuple(select(rollouts, prompt=prompt, failed=failed)))


def _listed(steps: Sequence[int]) -> str:
    """Steps in words; of many, the first and the last."""
    return ", ".join(map(str, steps)) if len(steps) <= 12 else f"{', '.join(map(str, steps[:6]))}, … {steps[-1]}"


def rescored(home: Path, found: Browsed, reference: str) -> list[Rescored]:
    """What was found, scored again by `module:function`.

    It is compared with the reward that the run had of the same function, or under its name, with that one's weight; without
    such a reward with the whole reward.

    Raises:
      UserError: there is no such function, or it fails.
    """
    function = import_function(reference, home)
    name, weight = _of_the_run(found, reference)
    wanted = {(answer.step, answer.group) for group in found.groups for answer in group.answers}
    scores = rescore(found.rollouts, function, name, weight)
    return [score for score in scores if (score.answer.step, score.answer.group) in wanted]


def _of_the_run(found: Browsed, reference: str) -> tuple[str | None, float]:
    """Name and weight of the run's own reward by this function, as its manifest has it."""
    params = read_manifest(found.run_dir)["params"]
    stored = found.rollouts[0].rewards
    label = reference.partition(":")[2]
    number = 0
    while (function := params.get(f"algorithm.rewards.functions.{number}.function")) is not None:
        name = params.get(f"algorithm.rewards.functions.{number}.name") or function.partition(":")[2]
        if function == reference or name == label:
            return name if name in stored else None, float(params[f"algorithm.rewards.functions.{number}.weight"])
        number += 1
    return (label if label in stored else None), 1.0
