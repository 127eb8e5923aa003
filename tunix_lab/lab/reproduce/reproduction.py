"""How well a run was made again: bit for bit, within a tolerance, or diverged, and then where."""

import dataclasses
import math
from typing import Any, Literal

from tunix_lab.lab.divergence import MetricGap
from tunix_lab.lab.run_diff import Difference, RunDiff

RECORD = "reproduction.json"
Grade = Literal["bit for bit", "within tolerance", "diverged"]


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """The outcome of making a run again.

    Attributes:
      reproduces: id of the run.
      run_id: id of the new run.
      grade: how close it came.
      verdict: the same as a sentence.
      tolerance: largest relative difference of a metric that is still close.
      largest: the metric that differs most; None where all are the same.
      diff: everything that the two runs have differently.
      notes: what was different about the attempt itself: files that could not be had, inputs that changed meanwhile.
    """

    reproduces: str
    run_id: str
    grade: Grade
    verdict: str
    tolerance: float
    largest: MetricGap | None
    diff: RunDiff
    notes: list[str]

    @property
    def succeeded(self) -> bool:
        """Whether the new run is the old one, or close enough."""
        return self.grade != "diverged"

    def as_data(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "reproduces": self.reproduces,
            "run_id": self.run_id,
            "grade": self.grade,
            "verdict": self.verdict,
            "tolerance": self.tolerance,
            "largest": None if self.largest is None else _gap(self.largest),
            "divergence": _divergence(self.diff),
            "environment": [dataclasses.asdict(entry) for entry in self.differences],
            "notes": self.notes,
        }

    @property
    def differences(self) -> list[Difference]:
        """What the surroundings and inputs of the two runs have differently."""
        return [*self.diff.data, *self.diff.configuration, *self.diff.environment]


def graded(diff: RunDiff, tolerance: float, notes: list[str]) -> Reproduction:
    """Grades a new run (`diff.b`) against the old one (`diff.a`); an old run that did not finish counts as far as it went."""
    largest = max(diff.metrics, key=lambda entry: (entry.gap.relative, -entry.step), default=None)
    worst = 0.0 if largest is None else largest.gap.relative
    if not diff.compared and diff.updates[0] is None and diff.params[0] is None:
        grade, verdict = "diverged", f"run {diff.a} left nothing to compare with"
    elif lacking := _lacking(diff):
        grade, verdict = "diverged", lacking
    elif not diff.diverged:
        grade, verdict = "bit for bit", f"reproduced bit for bit{_extent(diff)}"
    elif diff.compared and worst <= tolerance:
        grade, verdict = "within tolerance", f"reproduced within tolerance: {_largest(largest)}"
    else:
        grade, verdict = "diverged", _diverged(diff)
    return Reproduction(diff.a, diff.b, grade, verdict, tolerance, largest, diff, notes)


def _lacking(diff: RunDiff) -> str | None:
    """What the old run recorded and the new one, which is the same otherwise, did not; None if nothing."""
    old, new = diff.updates
    if diff.divergence is None and old is not None and new is not None and new[1] < old[1]:
        return f"diverged: the new run has {new[1]} of {old[1]} updates"
    if diff.only[0] and not diff.diverged:
        return f"diverged: {diff.only[0]} metric values of the run are missing from the new one"
    return None


def _extent(diff: RunDiff) -> str:
    steps = f"{diff.updates[0][1]} updates, " if diff.updates[0] and diff.updates[1] else ""
    params = "the final parameters" if diff.params[0] and diff.params[1] else "no final parameters, since the run left none"
    return f": {steps}{diff.compared:,} metric values, {params}"


def _largest(largest: MetricGap | None) -> str:
    if largest is None:
        return "every metric is the same, the parameters are not"
    return f"the largest relative difference is {largest.gap.relative:.2g}, of {largest.name} at step {largest.step}"


def _diverged(diff: RunDiff) -> str:
    if diff.divergence is not None:
        layers = f", {', '.join(diff.divergence.layers[:3])}" if diff.divergence.layers else ""
        more = f" and {len(diff.divergence.layers) - 3} more layers" if len(diff.divergence.layers) > 3 else ""
        return f"diverged at step {diff.divergence.step} in {diff.divergence.cause}{layers}{more}: {diff.divergence.detail}"
    if diff.metrics:
        first = diff.metrics[0]
        return f"diverged at step {first.step} in {first.name}: {first.gap.a:.6g} became {first.gap.b:.6g}"
    return "diverged in the final parameters, although every recorded update and metric is the same"


def _gap(entry: MetricGap) -> dict[str, Any]:
    numbers = {"a": entry.gap.a, "b": entry.gap.b, "relative": entry.gap.relative}
    return {"step": entry.step, "name": entry.name} | {k: v if math.isfinite(v) else str(v) for k, v in numbers.items()}


def _divergence(diff: RunDiff) -> dict[str, Any] | None:
    found = diff.divergence
    if found is None:
        return None
    return {"step": found.step, "cause": found.cause, "detail": found.detail, "layers": list(found.layers)}
