"""What ends a run before its last step: a signal, a stop file, its time budget, the end of its pipeline. Each saves first."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from tunix_lab.errors import EnvironmentProblem, Stopped
from tunix_lab.lab.record.run_state import read_events
from tunix_lab.sft.peft_trainer import PeftTrainer

STOP_FILE = "STOP"
"""In a run directory: asks the run to save and stop."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""USR1 is what batch systems send ahead of their time limit (`sbatch --signal=USR1@120`)."""

FIRST_SAVE_S = 30.0
"""Kept in reserve for a checkpoint as long as none has been timed."""


class Stopping:
    """Asks the trainer to stop after the update that is running, and knows why.

    Args:
      run_dir: of the run; a file `STOP` in it is a reason.
      stop_file: another file whose existence is a reason, for all runs of the machine; None for none.
      budget_s: seconds that this process may live; None for no end.
    """

    def __init__(self, run_dir: Path, stop_file: Path | None, budget_s: float | None):
        self._run_id = run_dir.name
        self._files = [run_dir / STOP_FILE, *([] if stop_file is None else [stop_file])]
        (run_dir / STOP_FILE).unlink(missing_ok=True)  # it stopped the attempt before this one
        self._budget = None if budget_s is None else Budget(budget_s, psutil.Process().create_time())
        self._save_s = None
        for event in read_events(run_dir):
            if event["kind"] == "pace" and self._budget is not None:  # what an attempt before this one has learnt
                self._budget.saw(event["longest_s"])
                self._save_s = max(event["save_s"], self._save_s or 0.0)
        # DVC does not take its stages along when it is killed; training on would meet the next `dvc repro` in the same folders.
        self._parent = os.getppid() if os.environ.get("DVC_STAGE") else None
        self._reason: str | None = None
        self._exit_code = 75
        self._is_warned = False

    @contextlib.contextmanager
    def on_signals(self, trainer: PeftTrainer) -> Iterator[None]:
        """Within it the first signal asks the trainer to stop; a second one ends the process at once.

        A SIGTERM after SIGUSR1 is no second one: a batch system sends both, and so do it and the worker of a sweep together.
        """

        def stop(signum: int, frame: Any) -> None:
            if self._is_warned and signum == signal.SIGTERM:
                self._is_warned = False
                return
            if self._reason is not None:
                raise KeyboardInterrupt
            self._exit_code = 128 + signum
            self._is_warned = signum == signal.SIGUSR1
            self._stop(trainer, signal.Signals(signum).name, "once more ends at once")

        before = {signum: signal.signal(signum, stop) for signum in SIGNALS}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def pace(self, trainer: PeftTrainer) -> dict[str, float]:
        """The longest update (all those of a rollout together) and save in seconds, for the attempt that goes on."""
        longest = 0.0 if self._budget is None else self._budget.longest_s
        return {"longest_s": longest, "save_s": trainer.checkpoint_manager.longest_save_s or 0.0}

    def begin(self) -> None:
        """Starts the clock of the first update; the evaluation before it counts."""
        if self._budget is not None:
            self._budget.is_over(time.time(), self._save_s)

    def after_update(self, trainer: PeftTrainer) -> None:
        """Looks for a reason to stop; costs microseconds."""
        if self._reason is not None:
            return
        found = next((path for path in self._files if path.exists()), None)
        if self._parent is not None and os.getppid() != self._parent:
            self._exit_code = 128 + signal.SIGTERM
            self._stop(trainer, "the end of the dvc process that started this stage")
        elif found is not None:
            self._stop(trainer, f"the stop file {found}")
        elif self._budget is not None and trainer.can_pause and self._budget.is_over(time.time(), self._longest_save(trainer)):
            kept = f"{self._budget.reserve_s:.0f} s of it are kept for another update and the checkpoint"
            self._stop(trainer, f"its time budget ({self._budget})", kept)

    def _longest_save(self, trainer: PeftTrainer) -> float | None:
        seen = [seconds for seconds in (self._save_s, trainer.checkpoint_manager.longest_save_s) if seconds is not None]
        return max(seen, default=None)

    def _stop(self, trainer: PeftTrainer, reason: str, *more: str) -> None:
        self._reason = reason
        below = "\n" if sys.stderr.isatty() else ""  # the progress bar
        # Answers that are sampled are trained on first: a run that goes on samples anew, with the weights of its checkpoint.
        when = "after this step" if trainer.can_pause else "after the last update of this rollout"
        print(below + "; ".join([f"{reason}: stopping {when}", *more]), file=sys.stderr, flush=True)
        trainer.request_stop()

    def raise_stopped(self, trainer: PeftTrainer) -> None:
        """Ends a run that was stopped.

        Raises:
          Stopped: its state is on disk; where there is time (no signal hurries), it was read back and is right.
          EnvironmentProblem: it could not be saved.
        """
        failure = trainer.checkpoint_manager.failure
        if failure is not None:
            raise EnvironmentProblem(f"stopped by {self._reason} after step {trainer.train_steps}, and {failure}")
        saved = "is saved"
        if self._exit_code == 75:
            if not trainer.verify_checkpoint():
                raise EnvironmentProblem(
                    f"stopped by {self._reason}, but the checkpoint of step {trainer.train_steps} is damaged"
                )
            saved = "is saved and verified"
        goes_on = f"`tunix-lab resume {self._run_id}` or the same command goes on"
        raise Stopped(f"stopped by {self._reason}: step {trainer.train_steps} {saved}; {goes_on}", self._exit_code)


class Budget:
    """A time limit that leaves room for the last update, its checkpoint, and a look at whether that is right.

    Args:
      seconds: of life.
      began: when life began, Unix time in seconds.
    """

    def __init__(self, seconds: float, began: float):
        self._seconds = seconds
        self._began = began
        self._last: float | None = None
        self.longest_s = 0.0
        self.reserve_s = 0.0

    def is_over(self, now: float, save_s: float | None) -> bool:
        """Whether another update might be one too many.

        Args:
          now: right after an update behind which training can pause, Unix time in seconds.
          save_s: the longest save so far; None if there was none.
        """
        if self._last is not None:  # the update itself, and whatever evaluation, samples or saving came with it
            self.saw(now - self._last)
        self._last = now
        self.reserve_s = 2 * self.longest_s + 2 * (FIRST_SAVE_S if save_s is None else save_s) + 2.0
        return now - self._began + self.reserve_s > self._seconds

    def saw(self, seconds: float) -> None:
        """Tells how long an update took."""
        self.longest_s = max(self.longest_s, seconds)

    def __str__(self) -> str:
        minutes, seconds = divmod(round(self._seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return "".join(f"{n}{unit}" for n, unit in ((hours, "h"), (minutes, "m"), (seconds, "s")) if n) or "0s"
