"""Keeps the host from running too many updates ahead of the device."""

from collections import deque

import jax


class InflightThrottler:
    """A queue of outputs that are still being computed, at most `max_inflight` long."""

    def __init__(self, max_inflight: int):
        self._max_inflight = max_inflight
        self._pending: deque[jax.Array] = deque()

    def wait_for_next(self) -> None:
        """Returns once fewer than `max_inflight` computations are in flight."""
        while len(self._pending) >= self._max_inflight:
            self._pending.popleft().block_until_ready()

    def add_computation(self, output: jax.Array) -> None:
        """Registers an output of a computation that was just dispatched."""
        self._pending.append(output)

    def wait_for_all(self) -> None:
        """Returns once nothing is in flight."""
        while self._pending:
            self._pending.popleft().block_until_ready()
