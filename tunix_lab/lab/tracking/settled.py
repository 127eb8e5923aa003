"""Which metrics of a living run may be pushed: those of which it is known whether a checkpoint belongs to them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tunix_lab.lab.record.run_state import read_metric_lines

CHECKPOINT, FAILED = "checkpoint", "checkpoint_failed"


def settled_end(run_dir: Path, begin: int, known: int, events: Iterable[Mapping[str, Any]], every: int | None) -> int:
    """The byte of the metrics journal up to which a pass pushes while the run lives.

    A run evaluates, then saves in the background, and journals the checkpoint when it is complete. A value that was pushed
    before could never be shown beside its checkpoint. So a pass ends before the first line of an evaluation that waits:

    - where a checkpoint is due, until this checkpoint, a later one, or the failure of either is journaled;
    - elsewhere until the journal has metrics of a later step, since a run that is stopped saves where it stands.

    The curve is late by one save, or by one line of training. Once a run has ended nothing waits.

    Args:
      run_dir: the run directory.
      begin: where unpushed lines begin.
      known: the journal's size when the pass began; `events` were read after it.
      events: the run's events.
      every: steps between checkpoints; None if the manifest does not say.
    """
    saved = max((event["step"] for event in events if event["kind"] in (CHECKPOINT, FAILED)), default=-1)
    waiting: list[tuple[int, int]] = []  # where a line begins, and the step of its checkpoint
    for line in read_metric_lines(run_dir, begin):
        if line.end > known:
            break
        if any(not name.startswith("system/") for name in line.values):  # those count seconds, not steps
            waiting = [(at, step) for at, step in waiting if step >= line.step or _is_due(step, every)]
        if line.checkpoint is not None and line.checkpoint > saved:
            waiting.append((begin, line.checkpoint))
        begin = line.end
    return waiting[0][0] if waiting else begin


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step > 0 and step % every == 0
