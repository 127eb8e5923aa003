"""The trainer's metrics logger that writes to a run's journal."""

from collections.abc import Mapping

from tunix_lab.lab.record.journal import Journal
from tunix_lab.sft.metrics_logger import MetricsLogger


class JournalLogger(MetricsLogger):
    """Journals every `log_every`-th training step, the last one, and all evaluations."""

    def __init__(self, journal: Journal, *, log_every: int, last_step: int):
        super().__init__()
        self._journal = journal
        self._log_every = log_every
        self._last_step = last_step

    def _write(self, events: Mapping[str, float], step: int) -> None:
        is_evaluation = any(name.startswith("eval/") for name in events)
        if is_evaluation:
            self._journal.metrics(step, events, checkpoint=step)
        elif step % self._log_every == 0 or step == self._last_step:
            self._journal.metrics(step, events)
