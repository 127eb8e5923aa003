"""Records one window of updates with `jax.profiler`."""

import jax

from tunix_lab.sft.config import ProfilerOptions


class Profiler:
    """Starts and stops the trace at the configured updates; does nothing without options."""

    def __init__(self, options: ProfilerOptions | None):
        self._options = options
        self._active = False

    def before_step(self, steps_done: int) -> None:
        """Call before each update with the number of updates made in this process."""
        if self._options is None:
            return
        first = self._options.skip_first_n_steps
        if steps_done == first:
            jax.profiler.start_trace(self._options.log_dir)
            self._active = True
        elif steps_done == first + self._options.profiler_steps:
            self.stop()

    def stop(self) -> None:
        """Ends the window if it is open."""
        if self._active:
            jax.profiler.stop_trace()
            self._active = False
