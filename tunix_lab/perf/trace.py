"""Where the host's time goes: named spans, summed until somebody asks."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Protocol


class Tracer(Protocol):
    """What a trainer needs of a tracer."""

    def span(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Times the body of a `with` under `name`; spans of one name add up."""

    def take(self) -> dict[str, float]:
        """Seconds by span name since the last call, and starts again from zero."""


class HostTracer:
    """Adds up wall-clock seconds by span name. Dispatch is asynchronous: device time appears in the span that waits for it."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        taken = dict(self._seconds)
        self._seconds.clear()
        return taken


class NoopTracer:
    """Measures nothing."""

    def span(self, name: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def take(self) -> dict[str, float]:
        return {}
