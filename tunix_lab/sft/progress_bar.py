"""Shows how far training is: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

# Seconds between two plain lines.
_PLAIN_EVERY_S = 10.0


class ProgressBar:
    """Counts optimizer updates and shows a few numbers beside them."""

    def __init__(self, description: str | None, total: int | None, initial: int):
        self._description = description
        self._total = total
        self._initial = initial
        self._start = self._last_line = time.monotonic()
        self._bar: tqdm | None = None
        if description is not None and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=initial, desc=description, dynamic_ncols=True, unit="step")

    def update(self, step: int, numbers: Mapping[str, float]) -> None:
        """Shows update `step` and its numbers; the time left comes from tqdm, or stands in the plain line."""
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in numbers.items()}, refresh=False)
            self._bar.update(step - self._bar.n)
        elif self._description is not None and (self._is_last(step) or time.monotonic() - self._last_line > _PLAIN_EVERY_S):
            self._last_line = time.monotonic()
            of_total = f"/{self._total}" if self._total is not None else ""
            shown = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            print(f"{self._description}  step {step}{of_total}  {shown}{self._time_left(step)}", file=sys.stderr, flush=True)

    def _time_left(self, step: int) -> str:
        if self._total is None or step <= self._initial:
            return ""
        per_step = (time.monotonic() - self._start) / (step - self._initial)
        return f"  {per_step * (self._total - step):.0f} s left"

    def _is_last(self, step: int) -> bool:
        return self._total is not None and step >= self._total

    def close(self) -> None:
        """Leaves the last state on the screen."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
