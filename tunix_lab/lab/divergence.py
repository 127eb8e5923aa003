"""Where two runs part: the first optimizer update whose fingerprints differ, what differs in it first, and by how much.

An update goes through four hands: rows are drawn, rows become arrays, arrays give a loss and gradients, gradients change the
parameters. The first hand whose result differs is the cause; everything after it differs as a consequence. Parameters may be
hashed every few updates only: where those before an update are not known to be the same, another loss or gradient in it can come
from an earlier update, and the cause is said to be one of the two.
"""

import dataclasses
import math
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Literal

from tunix_lab.lab.record.fingerprints import Fingerprint

Cause = Literal["data order", "rollout", "reward", "batch content", "gradient", "update", "update or gradient"]
"""A rollout is of reinforcement learning: its answers, and what they were worth; see `rollout_diff`."""

Fingerprints = Mapping[int, Fingerprint]
Metrics = Mapping[tuple[int, str], float]
"""Values by step and name."""


@dataclasses.dataclass(frozen=True)
class Gap:
    """A number of two runs.

    Attributes:
      a: of the first run.
      b: of the second run.
    """

    a: float
    b: float

    @property
    def relative(self) -> float:
        """|a - b| over the larger of |a| and |b|; 0 where both are the same bits, infinite where just one is a number."""
        if same_number(self.a, self.b) or self.a == self.b:
            return 0.0
        if not (math.isfinite(self.a) and math.isfinite(self.b)):
            return math.inf
        return abs(self.a - self.b) / max(abs(self.a), abs(self.b))


@dataclasses.dataclass(frozen=True)
class Divergence:
    """The first update that two runs do not share.

    Attributes:
      step: of the update.
      cause: the first thing in it that differs.
      detail: what exactly, in a few words.
      layers: names of the layers that differ, in depth order; empty where the cause lies before the layers, where only the
        optimizer's state differs, or where the step has no hashes of layers.
      loss: of both runs at that step.
      grad_norm: of both runs at that step.
      last_step: the last step that both runs have.
      last_loss: of both runs there.
      last_grad_norm: of both runs there.
      same_params_after: the last earlier step after which both runs are known to have the same parameters; None if none is
        known, as before the first update.
      first: whether no earlier update was compared, so that the runs may have begun with other parameters.
    """

    step: int
    cause: Cause
    detail: str
    layers: tuple[str, ...]
    loss: Gap
    grad_norm: Gap
    last_step: int
    last_loss: Gap
    last_grad_norm: Gap
    same_params_after: int | None
    first: bool


def first_divergence(a: Fingerprints, b: Fingerprints, same_data: bool, same_start: bool = True) -> Divergence | None:
    """The first update, among those that both runs have, in which they differ; None if there is none.

    Args:
      a: fingerprints of the first run by step.
      b: of the second run.
      same_data: whether both runs read the same data with the same tokenizer, so that other rows are another order of them.
      same_start: whether both runs began with the same parameters, as far as known.
    """
    common = sorted(a.keys() & b.keys())
    same_params_after = None
    for step in common:
        found = _difference(a, b, step, same_data)
        if found is None:
            same_params_after = step if a[step].params and b[step].params else same_params_after
            continue
        cause, detail, layers = found
        if cause in ("gradient", "update"):
            cause, detail = _blamed(cause, detail, step, 0 if same_params_after is None and same_start else same_params_after)
        last = common[-1]
        return Divergence(
            step=step,
            cause=cause,
            detail=detail,
            layers=layers,
            loss=Gap(a[step].loss, b[step].loss),
            grad_norm=Gap(a[step].grad_norm, b[step].grad_norm),
            last_step=last,
            last_loss=Gap(a[last].loss, b[last].loss),
            last_grad_norm=Gap(a[last].grad_norm, b[last].grad_norm),
            same_params_after=same_params_after,
            first=step == common[0],
        )
    return None


@dataclasses.dataclass(frozen=True)
class MetricGap:
    """A metric value in which two runs differ.

    Attributes:
      step: where it was measured.
      name: of the metric.
      gap: both values.
    """

    step: int
    name: str
    gap: Gap


def metric_gaps(a: Metrics, b: Metrics) -> list[MetricGap]:
    """The values, of those that both runs have, that are not the same bits; in the order of steps and names."""
    return [
        MetricGap(step, name, Gap(a[step, name], b[step, name]))
        for step, name in sorted(a.keys() & b.keys())
        if not same_number(a[step, name], b[step, name])
    ]


def same_number(a: float, b: float) -> bool:
    """Whether two numbers have the same bits, or both are no number."""
    return (math.isnan(a) and math.isnan(b)) or struct.pack("d", a) == struct.pack("d", b)


def by_depth(names: Sequence[str]) -> tuple[str, ...]:
    """Names of layers from the embedding to the head; numbers count as numbers, so that layer 10 comes after layer 9."""

    def key(name: str) -> tuple[int, list[tuple[int, str]]]:
        place = 0 if "embed" in name else 1 if re.match(r"layers?\b", name) else 2
        return place, [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]

    return tuple(sorted(names, key=key))


def _difference(a: Fingerprints, b: Fingerprints, step: int, same_data: bool) -> tuple[Cause, str, tuple[str, ...]] | None:
    """Cause, detail and layers of the first thing that differs in an update; None where all is the same."""
    one, two = a[step], b[step]
    if one.batch != two.batch or one.rows != two.rows:
        return *_batch(a, b, step, same_data), ()
    return _gradient(one, two) or _update(one, two)


def _batch(a: Fingerprints, b: Fingerprints, step: int, same_data: bool) -> tuple[Cause, str]:
    """Whether the same rows came in another order, or rows of other content."""
    one, two = a[step].rows, b[step].rows
    if one == two:
        return "batch content", "every row is the same, but the arrays differ in shape, type or grouping"
    if sorted(one) == sorted(two):
        return "data order", f"the same {len(one)} rows in another order"
    if not same_data:
        return "batch content", f"{_count(_unknown(one, two), one)} are not in the other run's update, and the data differ"
    # From here on both runs read the same files: a row that the other run meets too, at whatever step, was only drawn otherwise.
    pairs = [(x, y) for x, y in zip(one, two, strict=False) if x != y]
    seen_a, seen_b = _rows_of(a), _rows_of(b)
    moved = sum(x in seen_b for x, _ in pairs) + sum(y in seen_a for _, y in pairs)
    if len(one) != len(two):
        return "data order", f"{len(one)} rows against {len(two)}"
    if moved or (len(pairs) == len(one) and seen_a & seen_b):
        return "data order", f"{_count(_unknown(one, two), one)} are not in the other run's update; both read the same data"
    if len(pairs) < len(one):
        return "batch content", f"{len(pairs)} of {len(one)} rows have other content; the others stand in the same places"
    return "batch content", "no row of either run occurs in the other, although both read the same data"


def _gradient(one: Fingerprint, two: Fingerprint) -> tuple[Cause, str, tuple[str, ...]] | None:
    hashed = bool(one.grads and two.grads)
    layers = _layers(one.grads, two.grads) if hashed else ()
    loss_differs = not same_number(one.loss, two.loss)
    if not (layers or loss_differs or not same_number(one.grad_norm, two.grad_norm)):
        return None
    what = "the loss itself differs on the same batch" if loss_differs else "the same batch and loss, another gradient"
    return "gradient", what + _extent(layers, one.grads, hashed), layers


def _update(one: Fingerprint, two: Fingerprint) -> tuple[Cause, str, tuple[str, ...]] | None:
    layers = _layers(one.params, two.params) if one.params and two.params else ()
    if layers:
        return "update", "the same gradient, other parameters after it" + _extent(layers, one.params, True), layers
    if one.rest and two.rest and one.rest != two.rest:
        return "update", "the same gradient and parameters; the optimizer's state differs", ()
    return None


def _blamed(cause: Cause, detail: str, step: int, known: int | None) -> tuple[Cause, str]:
    """Cause and detail with what else can be to blame where the parameters before the update are not known to be the same.

    Args:
      cause: what would be to blame if they were.
      detail: in words.
      step: of the update.
      known: the last step after which both runs are known to have the same parameters; 0 is the start, None is not even that.
    """
    if known == step - 1 or step == 1:
        return cause, detail
    since = f"step {step - 1}" if known == step - 2 else f"a step from {(known or 0) + 1} to {step - 1}"
    start = "the parameters at the start, " if known is None else ""
    hashed = f"no parameters were hashed in both runs after step {known}" if known else "no parameters were hashed before it"
    if cause == "update":
        return cause, f"{detail}; {start}the update of this step or that of {since} differs, since {hashed}"
    return "update or gradient", f"{detail}; {start}the update of {since} or this gradient differs, since {hashed}"


def _layers(one: Mapping[str, str], two: Mapping[str, str]) -> tuple[str, ...]:
    """The layers whose hashes differ, or that only one run has."""
    return by_depth([name for name in one.keys() | two.keys() if one.get(name) != two.get(name)])


def _extent(layers: Sequence[str], every: Mapping[str, str], hashed: bool) -> str:
    if not hashed:
        return " (layers were not hashed at this step)"
    return f" ({len(layers)} of {len(every)} layers)" if layers else " (no layer's gradient differs)"


def _rows_of(fingerprints: Fingerprints) -> set[str]:
    return {row for fingerprint in fingerprints.values() for row in fingerprint.rows}


def _unknown(rows: Sequence[str], others: Sequence[str]) -> int:
    known = set(others)
    return sum(row not in known for row in rows)


def _count(number: int, rows: Sequence[str]) -> str:
    return f"{number} of {len(rows)} rows"
