"""The first rollout of training in which two runs of reinforcement learning sampled, or were rewarded, differently."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from tunix_lab.lab.divergence import Divergence
from tunix_lab.lab.record.trajectories import read_file, trajectory_files
from tunix_lab.rl.trajectories import Trajectories

What = Literal["prompts", "answers", "log-probabilities", "rewards", "advantages", "columns"]
_SHOWN = 200  # characters


@dataclasses.dataclass(frozen=True)
class RolloutGap:
    """A rollout that two runs do not share.

    Attributes:
      step: updates made before it.
      what: the first thing that differs, in the order in which it came to be.
      differing: answers of which it differs.
      answers: of the rollout, in the run that has more.
      prompt: of the first answer of which it differs, in the first run.
      a: what the first run has there.
      b: what the second run has there.
    """

    step: int
    what: What
    differing: int
    answers: int
    prompt: str
    a: str
    b: str

    @property
    def detail(self) -> str:
        """In words."""
        some = f"{self.differing} of {self.answers} answers, sampled after {self.step} updates"
        match self.what:
            case "prompts":
                return f"other prompts: {some}"
            case "answers" | "log-probabilities":
                return f"the same prompts, other {self.what}: {some}"
            case _:
                return f"the same prompts and answers, other {self.what}: {some}"


def first_rollout_gap(a: Path, b: Path) -> RolloutGap | None:
    """The first rollout of training, of those that both run directories have, that is not the same; None if there is none.

    Raises:
      UserError: a file cannot be read.
    """
    ours, theirs = trajectory_files(a), trajectory_files(b)
    for step, mode in ours:
        if mode != "train" or (step, mode) not in theirs:
            continue
        files = ours[step, mode], theirs[step, mode]
        if files[0].read_bytes() != files[1].read_bytes():
            return _gap(*map(read_file, files))
    return None


def blamed_on_rollout(divergence: Divergence | None, gap: RolloutGap | None) -> Divergence | None:
    """The divergence with the cause of it in the rollout that the update was made of, where that is not the same already."""
    if (
        divergence is None
        or gap is None
        or gap.step >= divergence.step
        or divergence.cause not in ("data order", "batch content")
    ):
        return divergence
    causes = {"prompts": "data order", "answers": "rollout", "log-probabilities": "rollout"}
    return dataclasses.replace(divergence, cause=causes.get(gap.what, "reward"), detail=gap.detail)


def _gap(a: Trajectories, b: Trajectories) -> RolloutGap | None:
    compared: dict[What, tuple[Sequence[object], Sequence[object]]] = {
        "prompts": (_tuples(a.prompt_ids), _tuples(b.prompt_ids)),
        "answers": (_tuples(a.completion_ids), _tuples(b.completion_ids)),
        "log-probabilities": (_tuples(a.sampler_logps), _tuples(b.sampler_logps)),
        "rewards": (_rewards(a), _rewards(b)),
        "advantages": (_tuples(a.advantages), _tuples(b.advantages)),
    }
    shown = {"prompts": (a.prompts, b.prompts), "answers": (a.completions, b.completions)}
    longest = max(len(a), len(b))
    for what, (ours, theirs) in compared.items():
        differing = [i for i, (x, y) in enumerate(zip(ours, theirs, strict=False)) if x != y]
        differing += range(min(len(a), len(b)), longest)
        if not differing:
            continue
        first = differing[0]
        texts = [str(side[first])[:_SHOWN] if first < len(side) else "–" for side in shown.get(what, (ours, theirs))]
        prompt = (a if first < len(a) else b).prompts[first]
        return RolloutGap(a.step, what, len(differing), longest, prompt[:_SHOWN], *texts)
    return RolloutGap(
        a.step, "columns", longest, longest, a.prompts[0][:_SHOWN], str(a.columns)[:_SHOWN], str(b.columns)[:_SHOWN]
    )


def _tuples(arrays: Sequence[np.ndarray]) -> list[tuple[float, ...]]:
    """NaN is the same as NaN."""
    return [tuple(np.nan_to_num(array, nan=float("inf")).tolist()) for array in arrays]


def _rewards(rollout: Trajectories) -> list[str]:
    """The weighted rewards of each answer, as one reads them."""
    names = sorted(rollout.rewards)
    return [", ".join(f"{name} {rollout.rewards[name][i]:.6g}" for name in names) for i in range(len(rollout))]
