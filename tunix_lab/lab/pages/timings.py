"""Where the time of a run went: its attempts, and the phases of each, from what the journal says and when."""

import dataclasses
import statistics
from typing import Any

from tunix_lab.lab.pages.headline import STEP_TIME, THROUGHPUT, typical
from tunix_lab.lab.pages.run_view import RunView
from tunix_lab.lab.record.run_state import MetricLine, read_metric_lines

_DATA, _MEMORY = "perf/data_s", "system/process_memory_usage_megabytes"


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One process that worked on the run.

    Attributes:
      number: from 1.
      started_ms: Unix time.
      seconds: until its last sign of life.
      first_step: first step that it trained; None if it never trained one.
      last_step: last step that it trained.
      resumed_from: step of the checkpoint that it went on from; None for a fresh start.
      end: how it ended.
      host: machine and process.
    """

    number: int
    started_ms: int
    seconds: float
    first_step: int | None
    last_step: int | None
    resumed_from: int | None
    end: str
    host: str


@dataclasses.dataclass(frozen=True)
class Timings:
    """The time of all attempts together.

    Attributes:
      attempts: in order.
      active_s: seconds that some attempt was alive.
      phases: seconds by phase; they add up to `active_s`.
      data_s: seconds that the host spent on reading and placing batches, mostly while the device computed; None: not measured.
      step_s: median seconds of an update.
      tokens_per_s: median throughput.
      memory_bytes: most memory that the process had in use.
    """

    attempts: tuple[Attempt, ...]
    active_s: float
    phases: dict[str, float]
    data_s: float | None
    step_s: float | None
    tokens_per_s: float | None
    memory_bytes: float | None


def read_timings(view: RunView) -> Timings:
    """The timings of a run, from its journal."""
    lines = list(read_metric_lines(view.state.run_dir))
    starts = [event for event in view.events if event["kind"] == "attempt"]
    attempts, phases, data = [], dict.fromkeys(("before the first update", "first update", "other updates", "the rest"), 0.0), []
    for index, start in enumerate(starts):
        until = starts[index + 1]["t"] if index + 1 < len(starts) else None
        own = [line for line in lines if line.t >= start["t"] and (until is None or line.t < until)]
        events = [event for event in view.events if event["t"] >= start["t"] and (until is None or event["t"] < until)]
        attempt = _attempt(start, own, events, view, is_last=until is None)
        attempts.append(attempt)
        for name, seconds in _phases(attempt, own).items():
            phases[name] += seconds
        data += [line.values[_DATA] for line in own if _DATA in line.values]
    memory = view.curves.get(_MEMORY)
    return Timings(
        tuple(attempts),
        sum(attempt.seconds for attempt in attempts),
        {name: seconds for name, seconds in phases.items() if seconds > 0},
        sum(data) * _thinning(lines) if data else None,
        typical(view.curves[STEP_TIME]) if STEP_TIME in view.curves else None,
        typical(view.curves[THROUGHPUT]) if THROUGHPUT in view.curves else None,
        max(memory.values) * 1e6 if memory else None,
    )


def _attempt(
    start: dict[str, Any], lines: list[MetricLine], events: list[dict[str, Any]], view: RunView, is_last: bool
) -> Attempt:
    trained = [line.step for line in lines if STEP_TIME in line.values or any(name.startswith("train/") for name in line.values)]
    resumed = [event["step"] for event in events if event["kind"] == "resumed"]
    finishes = [event for event in events if event["kind"] == "finish"]
    signs = [line.t for line in lines] + [event["t"] for event in events]
    if finishes:
        end = ": ".join(str(part) for part in (finishes[-1]["status"], finishes[-1].get("message")) if part)
    else:
        end = "running" if is_last and view.state.status == "running" else "gone without a word"
    return Attempt(
        start["attempt"],
        start["t"],
        (max(signs) - start["t"]) / 1000,
        trained[0] if trained else None,
        trained[-1] if trained else None,
        resumed[-1] if resumed else None,
        end,
        f"{start.get('host')}, pid {start.get('pid')}",
    )


def _phases(attempt: Attempt, lines: list[MetricLine]) -> dict[str, float]:
    """The seconds of an attempt by phase. Where only every n-th update is journaled, the others took as long on average."""
    timed = [line for line in lines if STEP_TIME in line.values]
    if not timed:
        return {"before the first update": attempt.seconds}
    first = timed[0].values[STEP_TIME]
    before = max(0.0, (timed[0].t - attempt.started_ms) / 1000 - first)
    others = sum(line.values[STEP_TIME] for line in timed[1:]) * _thinning(timed)
    rest = max(0.0, attempt.seconds - before - first - others)
    return {"before the first update": before, "first update": first, "other updates": others, "the rest": rest}


def _thinning(lines: list[MetricLine]) -> float:
    """How many updates a journaled one stands for."""
    steps = [line.step for line in lines if STEP_TIME in line.values]
    gaps = [after - before for before, after in zip(steps, steps[1:], strict=False) if after > before]
    return statistics.median(gaps) if gaps else 1.0
