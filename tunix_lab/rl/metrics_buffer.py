"""Metrics of rollouts, kept until the update that they belong to is told of."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tunix_lab.sft.metrics_logger import Mode

Reducer = Callable[[Any], Any]


@dataclasses.dataclass
class MetricsBuffer:
    """What was measured for one step.

    Attributes:
      global_steps: optimizer updates made.
      metrics: by name the values, and the function that makes one number of them; None is their mean.
      mode: what was measured: training or evaluation.
    """

    global_steps: int
    metrics: dict[str, tuple[list[Any], Reducer | None]] = dataclasses.field(default_factory=dict)
    mode: Mode = Mode.TRAIN

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Adds values: a number, or (number, function that reduces several)."""
        for name, given in metrics.items():
            value, reducer = given if isinstance(given, tuple) else (given, None)
            self.metrics.setdefault(name, ([], reducer))[0].append(value)

    def reduced(self) -> dict[str, float]:
        """One number by name; what is no number, such as texts, is left out."""
        reduced = {}
        for name, (values, reducer) in self.metrics.items():
            if not any(isinstance(value, str) for value in np.ravel(np.asarray(values, object))):
                reduced[name] = float((reducer or np.mean)(np.asarray(values)))
        return reduced


class MetricsBuffers:
    """The buffers of training and of evaluation, which are emptied when their step is told of."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[Mode, int], MetricsBuffer] = {}
        self.external_logger: Callable[[MetricsBuffer], None] | None = None

    def add(self, metrics: Mapping[str, Any], mode: Mode | str, step: int) -> None:
        """Adds to the buffer of a mode and a step."""
        mode = Mode(mode)
        self._buffers.setdefault((mode, step), MetricsBuffer(step, mode=mode)).add(metrics)

    def take(self, mode: Mode, step: int) -> dict[str, float]:
        """Empties the buffers of a mode up to a step, tells the external logger of them, and returns their numbers."""
        due = sorted(at for kind, at in self._buffers if kind is mode and at <= step)
        if not due:
            return {}
        whole = MetricsBuffer(step, mode=mode)
        for at in due:
            for name, (values, reducer) in self._buffers.pop((mode, at)).metrics.items():
                whole.metrics.setdefault(name, ([], reducer))[0].extend(values)
        if self.external_logger is not None:
            self.external_logger(whole)
        return whole.reduced()
