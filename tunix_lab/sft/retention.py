"""Which checkpoints stay on disk: the newest ones, and the best by a metric of their own step."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

JUDGED = "judged"
"""The entry of a checkpoint's record with the metrics of its step."""


@dataclasses.dataclass(frozen=True)
class Best:
    """Which checkpoints are best.

    Attributes:
      metric: its name, for example "eval/loss".
      higher_is_better: which way it improves.
      count: how many stay.
    """

    metric: str
    higher_is_better: bool = False
    count: int = 1


class Retention:
    """Orbax's preservation policy of a run. What makes a checkpoint good is part of it, so a resumed run knows it too.

    Args:
      last: newest checkpoints that stay.
      best: which others stay; a checkpoint whose step has no such metric, or none that is finite, is no candidate. None: none.
    """

    def __init__(self, last: int, best: Best | None = None):
        self._last = last
        self._best = best
        self._scores: dict[int, float] = {}

    def read(self, root: Path, steps: Sequence[int]) -> None:
        """Learns the metrics of the checkpoints that lie in `root`; one that cannot be read is no candidate."""
        for step in steps:
            try:
                record = json.loads((root / str(step) / "record" / "metadata").read_bytes())
                self.judge(step, record[JUDGED])
            except (OSError, ValueError, KeyError):
                continue

    def judge(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tells the metrics of the checkpoint of `step`."""
        if self._best is not None and math.isfinite(metrics.get(self._best.metric, math.nan)):
            self._scores[step] = metrics[self._best.metric]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Which of the checkpoints, in the order of their steps, stay."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = set(steps[-self._last :])
        if self._best is not None:
            sign = -1 if self._best.higher_is_better else 1
            ranked = sorted((step for step in steps if step in self._scores), key=lambda step: sign * self._scores[step])
            kept |= set(ranked[: self._best.count])
        return [step in kept for step in steps]
