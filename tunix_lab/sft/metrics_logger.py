"""Collects scalar metrics and hands them to backends; owned by one run, no process-wide listeners.

Every method is called as documented, `log(name, value, step, mode)` and `get_metric(name, mode)`, or as in the original library,
with a prefix in front: `log(prefix, name, value, mode, step)` and `get_metric(prefix, name, mode)`.
"""

import enum
from collections import deque
from collections.abc import Mapping
from typing import Any

from tunix_lab.sft.config import MetricsLoggerOptions
from tunix_lab.sft.metrics_backends import LoggingBackend as LoggingBackend
from tunix_lab.sft.metrics_backends import MlflowBackend as MlflowBackend
from tunix_lab.sft.metrics_backends import TensorBoardBackend as TensorBoardBackend
from tunix_lab.sft.metrics_backends import WandbBackend as WandbBackend
from tunix_lab.sft.metrics_backends import create_backends

# Values kept per metric for `get_metric_history`.
_HISTORY = 100_000


class Mode(enum.StrEnum):
    """What a metric was measured on."""

    TRAIN = "train"
    EVAL = "eval"


class MetricsLogger:
    """Keeps metrics in memory and sends them to the backends of its options."""

    def __init__(self, metrics_logger_options: MetricsLoggerOptions | None = None, *, prefix: str = ""):
        options = metrics_logger_options or MetricsLoggerOptions()
        self._prefix = prefix
        self._history: dict[str, deque[float]] = {}
        self._sums: dict[str, tuple[float, int]] = {}
        self._backends = create_backends(options)

    def log(self, metric_name: str, value: float, step: int, mode: Mode | str = Mode.TRAIN, *original: Any) -> None:
        """Records one scalar: `log(metric_name, value, step, mode="train")`, or `log(prefix, metric_name, value, mode, step)`."""
        if original:
            prefix, metric_name, value, (step,) = metric_name, value, step, original
            self._record({self._event(metric_name, mode, prefix): float(value)}, step)
        else:
            self.log_all({metric_name: value}, step, mode)

    def log_all(self, metrics: Mapping[str, float], step: int, mode: Mode | str = Mode.TRAIN) -> None:
        """Records the scalars of one step together. A name without a slash gets the mode in front: loss -> train/loss."""
        self._record({self._event(name, mode, self._prefix): float(value) for name, value in metrics.items()}, step)

    def _record(self, events: Mapping[str, float], step: int) -> None:
        for event, value in events.items():
            self._history.setdefault(event, deque(maxlen=_HISTORY)).append(value)
            total, count = self._sums.get(event, (0.0, 0))
            self._sums[event] = (total + value, count + 1)
        self._write(events, step)

    def _write(self, events: Mapping[str, float], step: int) -> None:
        for backend in self._backends:
            for event, value in events.items():
                backend.log_scalar(event, value, step=step)

    def _event(self, name: str, mode: Mode | str, prefix: str) -> str:
        """The name under which a metric is kept: [prefix/]mode/name; a name that has a slash says itself what it is of."""
        event = name if "/" in name else f"{Mode(mode)}/{name}"
        return event if not prefix else f"{prefix.removesuffix('/')}/{event}"

    def _asked(self, metric_name: str, mode: Mode | str, original: tuple[Any, ...]) -> str:
        """The event that is asked for by (name, mode), or by (prefix, name, mode)."""
        if original:
            prefix, metric_name, (mode,) = metric_name, mode, original
            return self._event(metric_name, mode, prefix)
        return self._event(metric_name, mode, self._prefix)

    def metric_exists(self, metric_name: str, mode: Mode | str = Mode.TRAIN, *original: Any) -> bool:
        """Whether anything was logged: `metric_exists(name, mode="train")` or `metric_exists(prefix, name, mode)`."""
        return self._asked(metric_name, mode, original) in self._history

    def get_metric(self, metric_name: str, mode: Mode | str = Mode.TRAIN, *original: Any) -> float:
        """The mean of all values: `get_metric(name, mode="train")` or `get_metric(prefix, name, mode)`.

        Raises:
          KeyError: if there are none.
        """
        total, count = self._sums[self._asked(metric_name, mode, original)]
        return total / count

    def get_metric_history(self, metric_name: str, mode: Mode | str = Mode.TRAIN, *original: Any) -> list[float]:
        """All values, oldest first, the last 100,000 at most: `get_metric_history(name, mode="train")` or with a prefix in front.

        Raises:
          KeyError: if there are none.
        """
        return list(self._history[self._asked(metric_name, mode, original)])

    def close(self) -> None:
        """Closes the backends."""
        for backend in self._backends:
            backend.close()
