"""Collects scalar metrics and hands them to backends; owned by one run, no process-wide listeners."""

import enum
import importlib.util
import logging
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol

from tunix_lab.sft.config import MetricsLoggerOptions

logger = logging.getLogger(__name__)

# Values kept per metric for `get_metric_history`.
_HISTORY = 100_000


class Mode(enum.StrEnum):
    """What a metric was measured on."""

    TRAIN = "train"
    EVAL = "eval"


class LoggingBackend(Protocol):
    """Anything that takes scalars."""

    def log_scalar(self, event: str, value: float, **kwargs: Any) -> None:
        """Records `value` under `event` ("train/loss"); `step` comes as a keyword."""

    def close(self) -> None:
        """Writes what is buffered and lets go of files and connections."""


class TensorBoardBackend:
    """Writes TensorBoard event files."""

    def __init__(self, log_dir: str, flush_every_n_steps: int):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(log_dir, max_queue=flush_every_n_steps)

    def log_scalar(self, event: str, value: float, **kwargs: Any) -> None:
        self._writer.add_scalar(event, value, kwargs["step"])

    def close(self) -> None:
        self._writer.close()


class WandbBackend:
    """Writes to Weights & Biases (the extra `wandb`)."""

    def __init__(self, project: str, run_name: str | None):
        import wandb

        # A run of its own: two loggers in one process must not share wandb's current run.
        self._run = wandb.init(project=project, name=run_name, reinit="create_new")

    def log_scalar(self, event: str, value: float, **kwargs: Any) -> None:
        self._run.log({event: value}, step=kwargs["step"])

    def close(self) -> None:
        self._run.finish()


class MetricsLogger:
    """Keeps metrics in memory and sends them to the backends of its options."""

    def __init__(self, metrics_logger_options: MetricsLoggerOptions | None = None, *, prefix: str = ""):
        options = metrics_logger_options or MetricsLoggerOptions()
        self._prefix = prefix
        self._history: dict[str, deque[float]] = {}
        self._sums: dict[str, tuple[float, int]] = {}
        self._backends = create_backends(options)

    def log(self, metric_name: str, value: float, step: int, mode: Mode | str = Mode.TRAIN) -> None:
        """Records one scalar of step `step`."""
        self.log_all({metric_name: value}, step, mode)

    def log_all(self, metrics: Mapping[str, float], step: int, mode: Mode | str = Mode.TRAIN) -> None:
        """Records the scalars of one step together. A name without a slash gets the mode in front: loss -> train/loss."""
        events = {self._event(name, mode): float(value) for name, value in metrics.items()}
        for event, value in events.items():
            self._history.setdefault(event, deque(maxlen=_HISTORY)).append(value)
            total, count = self._sums.get(event, (0.0, 0))
            self._sums[event] = (total + value, count + 1)
        self._write(events, step)

    def _write(self, events: Mapping[str, float], step: int) -> None:
        for backend in self._backends:
            for event, value in events.items():
                backend.log_scalar(event, value, step=step)

    def _event(self, name: str, mode: Mode | str) -> str:
        event = name if "/" in name else f"{Mode(mode)}/{name}"
        return f"{self._prefix}{event}"

    def metric_exists(self, metric_name: str, mode: Mode | str = Mode.TRAIN) -> bool:
        """Whether anything was logged under this name and mode."""
        return self._event(metric_name, mode) in self._history

    def get_metric(self, metric_name: str, mode: Mode | str = Mode.TRAIN) -> float:
        """The mean of all values logged under this name and mode.

        Raises:
          KeyError: if there are none.
        """
        total, count = self._sums[self._event(metric_name, mode)]
        return total / count

    def get_metric_history(self, metric_name: str, mode: Mode | str = Mode.TRAIN) -> list[float]:
        """The values logged under this name and mode, oldest first, the last 100,000 at most.

        Raises:
          KeyError: if there are none.
        """
        return list(self._history[self._event(metric_name, mode)])

    def close(self) -> None:
        """Closes the backends."""
        for backend in self._backends:
            backend.close()


def create_backends(options: MetricsLoggerOptions) -> list[LoggingBackend]:
    """Fresh backends: those of `backend_factories`; without any, TensorBoard if `log_dir` and W&B if `project_name` is set."""
    if options.backend_factories:
        return [factory() for factory in options.backend_factories]
    backends: list[LoggingBackend] = []
    if options.log_dir is not None:
        backends.append(TensorBoardBackend(options.log_dir, options.flush_every_n_steps))
    if options.project_name is not None:
        if importlib.util.find_spec("wandb") is None:
            logger.warning("project %s: wandb is not installed (pip install wandb), nothing goes there", options.project_name)
        else:
            backends.append(WandbBackend(options.project_name, options.run_name))
    return backends
