"""Where a `MetricsLogger` sends scalars: TensorBoard, Weights & Biases, MLflow, or any object of the protocol's shape."""

import importlib.util
import logging
import time
from typing import Any, Protocol

from tunix_lab.sft.config import MetricsLoggerOptions

logger = logging.getLogger(__name__)


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


class MlflowBackend:
    """Writes to a run of its own in MLflow, in batches; for library users, since the lab's runs have their record anyway.

    Use it as `MetricsLoggerOptions(backend_factories=[lambda: MlflowBackend("sqlite:///mlflow.db", "my experiment")])`.
    """

    def __init__(self, tracking_uri: str, experiment: str, run_name: str | None = None, flush_every: int = 100):
        """Begins the run.

        Args:
          tracking_uri: of the MLflow store.
          experiment: its experiment; made if it is not there.
          run_name: of the run; None lets MLflow choose one.
          flush_every: scalars that are sent together.
        """
        from mlflow import MlflowClient

        # A client of its own, no active run: two loggers in one process never meet.
        self._client = MlflowClient(tracking_uri)
        found = self._client.get_experiment_by_name(experiment)
        experiment_id = self._client.create_experiment(experiment) if found is None else found.experiment_id
        self.run_id = self._client.create_run(experiment_id, run_name=run_name).info.run_id
        self._flush_every = flush_every
        self._waiting: list[Any] = []

    def log_scalar(self, event: str, value: float, **kwargs: Any) -> None:
        from mlflow.entities import Metric

        self._waiting.append(Metric(event, value, int(time.time() * 1000), kwargs["step"]))
        if len(self._waiting) >= self._flush_every:
            self._flush()

    def _flush(self) -> None:
        self._client.log_batch(self.run_id, metrics=self._waiting)
        self._waiting = []

    def close(self) -> None:
        if self._waiting:
            self._flush()
        self._client.set_terminated(self.run_id)


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
