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
    """Adds up wall-clock seconds by span name; what a span inside another takes is the inner one's alone.

    Dispatch is asynchronous: device time appears in the span that waits for it.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._inner: list[float] = [0.0]  # seconds of the spans within each open one

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            whole = time.perf_counter() - start
            self._seconds[name] += whole - self._inner.pop()
            self._inner[-1] += whole

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
