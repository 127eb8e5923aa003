"""A sampler thread that journals what the machine does while a run trains: processor, memory, device memory."""

import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import psutil

from tunix_lab.lab.record.journal import Journal

_MB = 1e6
_FIRST_WINDOW_SECONDS = 0.1


class SystemMetrics:
    """Writes `system/*` metrics to a journal: one sample at once, then one every `interval` seconds, and one at the end.

    Their step is whole seconds since the run began, so that it goes on growing when a run is resumed. Names are those that
    MLflow shows on its page of system metrics. A context manager; it must end before its journal is closed.

    Args:
      journal: where the samples go.
      interval: seconds between samples.
      device_memory: returns values by name (for example `gpu_0_memory_usage_megabytes`), without the `system/` prefix.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        interval: float = 10.0,
        device_memory: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        self._journal = journal
        self._interval = interval
        self._device_memory = device_memory
        self._process = psutil.Process()
        self._last_step = -1
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="system-metrics", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def sample(self, cpu_window: float | None = None) -> dict[str, float]:
        """One set of values by metric name; the processor's share is that since the last call, or over `cpu_window` seconds."""
        cpu = psutil.cpu_percent(cpu_window)
        memory = psutil.virtual_memory()
        values = {
            "system/cpu_utilization_percentage": cpu,
            "system/system_memory_usage_megabytes": memory.used / _MB,
            "system/system_memory_usage_percentage": memory.percent,
            "system/process_memory_usage_megabytes": self._process.memory_info().rss / _MB,
        }
        if self._device_memory is not None:
            values |= {f"system/{name}": value for name, value in self._device_memory().items()}
        return values

    def _loop(self) -> None:
        self._write(self.sample(_FIRST_WINDOW_SECONDS))
        while not self._stop.wait(self._interval):
            self._write(self.sample())
        self._write(self.sample())

    def _write(self, values: Mapping[str, float]) -> None:
        step = (time.time_ns() // 1_000_000 - self._journal.started_ms) // 1000
        if step > self._last_step:  # a run shorter than a second has one sample, not two of the same step
            self._journal.metrics(max(step, 0), values)
            self._last_step = step
