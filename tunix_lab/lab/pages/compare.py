"""Compares runs: their metrics, what they differ in, and their answers to the same prompts; repetitions may be grouped.

Pure functions of what `run_view` reads.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tunix_lab.lab.pages.answers import Answers, side_by_side
from tunix_lab.lab.pages.headline import chosen_metrics, higher_is_better, is_typical, typical
from tunix_lab.lab.pages.run_view import RunView, read_run
from tunix_lab.lab.record.run_state import find_one_training
from tunix_lab.lab.tracking.checkpoints import short_name

# Names and labels: two runs that differ in nothing else are the same experiment.
_NOT_COMPARED = ("name", "description", "tracking")
ABSENT = "–"


@dataclasses.dataclass(frozen=True)
class Column:
    """What stands beside what: a run, or the repetitions of one experiment.

    Attributes:
      label: short and unique.
      views: the runs; those of a group differ in the seed alone.
      counted: those of them that a mean is made of.
      notes: what a reader of the mean must know.
    """

    label: str
    views: tuple[RunView, ...]
    counted: tuple[RunView, ...]
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Number:
    """A value, or the mean of `n` values and their standard deviation (that of a sample, n-1; None for fewer than two)."""

    value: float
    std: float | None = None
    n: int = 1


@dataclasses.dataclass(frozen=True)
class Cell:
    """A metric in a column.

    Attributes:
      last: value of the last step; for what is timed the median over the run.
      best: best value over the run; None where it is not known which way is better.
      best_step: its step; None for a group.
      leads: whether no other column's last value is better.
    """

    last: Number
    best: Number | None = None
    best_step: int | None = None
    leads: bool = False


@dataclasses.dataclass(frozen=True)
class Difference:
    """A field in which columns differ, and its value in each of them."""

    name: str
    values: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
      columns: runs or groups, in the order they were named.
      metrics: by name, one cell per column; None where a column lacks the metric.
      settings: fields of the spec that differ.
      surroundings: data, starting weights, code and environment, where they differ.
      answers: the latest samples by prompt; those that tell most come first.
      caveats: why numbers must not be compared as they stand.
    """

    columns: tuple[Column, ...]
    metrics: dict[str, tuple[Cell | None, ...]]
    settings: tuple[Difference, ...]
    surroundings: tuple[Difference, ...]
    answers: tuple[Answers, ...]
    caveats: tuple[str, ...]

    @property
    def views(self) -> tuple[RunView, ...]:
        """All runs."""
        return tuple(view for column in self.columns for view in column.views)

    @property
    def is_grouped(self) -> bool:
        """Whether a column holds several runs."""
        return len(self.views) > len(self.columns)


def read_runs(home: Path, names: Sequence[str]) -> list[RunView]:
    """The runs that `names` name, each once.

    Raises:
      UserError: no run, or several, for a name.
    """
    return [read_run(run_dir) for run_dir in dict.fromkeys(find_one_training(home, name) for name in names)]


def compare(views: Sequence[RunView], *, metrics: Sequence[str] = (), group: bool = False) -> Comparison:
    """Puts runs side by side.

    Args:
      views: the runs.
      metrics: names of metrics; the headlines without any.
      group: whether runs that differ in the seed alone become one column.

    Raises:
      UserError: no run has a metric of this name.
    """
    columns = _grouped(views) if group else tuple(Column(label, (view,), (view,)) for label, view in _labelled(views))
    return Comparison(
        columns,
        {name: _cells(name, columns, views) for name in chosen_metrics(views, metrics)},
        _differences(columns, _settings),
        _differences(columns, surroundings),
        side_by_side([_representative(column) for column in columns]),
        tuple(_caveats(columns, views)),
    )


def _caveats(columns: Sequence[Column], views: Sequence[RunView]) -> Iterator[str]:
    algorithms = _algorithms(views)
    if len(algorithms) > 1:
        yield f"Their algorithms differ ({', '.join(algorithms)}): losses measure different things, so none leads."
    judged = {json.dumps(sorted(e["digest"] for e in _datasets(view) if e["context"] != "train")) for view in views}
    if len(judged) > 1:
        yield "They were evaluated on different data."
    for column in columns:
        if len(column.views) == 1 and column.views[0].state.status != "finished":
            state = column.views[0].state
            yield f"{column.label} is {state.status} at step {state.step}: its last values are not those of a whole run."


def _algorithms(views: Sequence[RunView]) -> list[str]:
    return list(dict.fromkeys(str(view.manifest.get("algorithm")) for view in views))


def _datasets(view: RunView) -> list[dict[str, Any]]:
    return view.manifest.get("datasets") or []


def surroundings(view: RunView) -> dict[str, Any]:
    """What a run met that its spec does not say: digests of its inputs, code, versions, devices."""
    manifest = view.manifest
    git = manifest.get("git") or {}
    found = {f"data.{entry['context']} ({entry['path']})": entry["digest"] for entry in _datasets(view)}
    tags = (
        "dvc.base",
        "lab.base_commit",
        "dvc.teacher",
        "lab.teacher_commit",
        "dvc.critic",
        "lab.critic_commit",
        "dvc.tokenizer",
        "lab.tokenizer",
        "lab.devices",
    )
    found |= {name: view.tags[name] for name in tags if name in view.tags}
    found |= {f"git.{name}": git[name] for name in ("commit", "dirty") if name in git}
    found |= {f"versions.{name}": version for name, version in (manifest.get("versions") or {}).items()}
    found |= {f"environment.{name}": value for name, value in (manifest.get("environment") or {}).items()}
    return found | ({"platform": manifest["platform"]} if "platform" in manifest else {})


def _settings(view: RunView) -> dict[str, Any]:
    return {name: value for name, value in view.fields.items() if name.partition(".")[0] not in _NOT_COMPARED}


def _labelled(views: Sequence[RunView]) -> list[tuple[str, RunView]]:
    """Short names where they are unique, else whole run ids."""
    short = [short_name(view.run_id) for view in views]
    return [(name if short.count(name) == 1 else view.run_id, view) for name, view in zip(short, views, strict=True)]


def _grouped(views: Sequence[RunView]) -> tuple[Column, ...]:
    groups: dict[str, list[RunView]] = {}
    for view in views:
        groups.setdefault(view.tags.get("lab.group") or view.run_id, []).append(view)
    labels = {view.run_id: label for label, view in _labelled(views)}
    names = [str(members[0].manifest.get("name")) for members in groups.values()]
    columns = []
    for (key, members), name in zip(groups.items(), names, strict=True):
        if len(members) == 1:
            columns.append(Column(labels[members[0].run_id], tuple(members), tuple(members)))
        else:
            columns.append(_group(name if names.count(name) == 1 else f"{name} [{key[:6]}]", members))
    return tuple(columns)


def _group(label: str, members: Sequence[RunView]) -> Column:
    """The repetitions of an experiment. Unfinished ones, and a second run of a seed, would make a mean of what it is not."""
    finished = [view for view in members if view.state.status == "finished"]
    by_seed = {view.manifest.get("seed"): view for view in sorted(finished, key=lambda view: view.state.started_ms)}
    chosen = {view.run_id for view in by_seed.values()}
    counted = tuple(view for view in members if view.run_id in chosen)
    notes = []
    for view in members:
        name = short_name(view.run_id)
        if view.state.status != "finished":
            notes.append(f"{name} is {view.state.status} and not counted")
        elif view.run_id not in chosen:
            notes.append(f"{name} has the seed of a newer run ({view.manifest.get('seed')}) and is not counted")
    runs = tuple(Column(short_name(view.run_id), (view,), (view,)) for view in counted)
    notes += [f"its runs also differ in {difference.name}" for difference in _differences(runs, surroundings)]
    return Column(f"{label} ×{len(counted)}", tuple(members), counted, tuple(notes))


def _cells(name: str, columns: Sequence[Column], views: Sequence[RunView]) -> tuple[Cell | None, ...]:
    higher = None if is_typical(name) else higher_is_better(name, views)
    cells = [_cell(name, column, higher) for column in columns]
    if higher is None or (name.endswith("loss") and len(_algorithms(views)) > 1):
        return tuple(cells)
    sign = 1 if higher else -1
    finals = [-math.inf if cell is None or math.isnan(cell.last.value) else sign * cell.last.value for cell in cells]
    top = max(finals)
    leaders = [final == top and top > -math.inf for final in finals]
    contested = sum(cell is not None for cell in cells) > 1 and not all(leaders)
    return tuple(
        None if cell is None else dataclasses.replace(cell, leads=contested and leader)
        for cell, leader in zip(cells, leaders, strict=True)
    )


def _cell(name: str, column: Column, higher: bool | None) -> Cell | None:
    curves = [view.curves[name] for view in column.counted if name in view.curves]
    if not curves:
        return None
    last = mean([typical(curve) if is_typical(name) else curve.last for curve in curves])
    bests = [] if higher is None else [found for curve in curves if (found := curve.best(higher)) is not None]
    if not bests:
        return Cell(last)
    return Cell(last, mean([value for value, _ in bests]), bests[0][1] if len(column.views) == 1 else None)


def mean(values: Sequence[float]) -> Number:
    """Mean and standard deviation of a sample; what is not finite stays so."""
    n = len(values)
    average = sum(values) / n
    if n == 1:
        return Number(values[0])
    return Number(average, math.sqrt(sum((value - average) * (value - average) for value in values) / (n - 1)), n)


def _differences(columns: Sequence[Column], fields_of: Callable[[RunView], dict[str, Any]]) -> tuple[Difference, ...]:
    """The fields whose values are not the same in all columns; the values of a group stand behind one another."""
    fields = [[fields_of(view) for view in column.views] for column in columns]
    names = dict.fromkeys(name for column in fields for run in column for name in run)
    found = []
    for name in names:
        values = tuple(", ".join(dict.fromkeys(_text(run, name) for run in column)) for column in fields)
        if len(set(values)) > 1 or any(len({_text(run, name) for run in column}) > 1 for column in fields):
            found.append(Difference(name, values))
    return tuple(found)


def _text(fields: dict[str, Any], name: str) -> str:
    if name not in fields:
        return ABSENT
    value = fields[name]
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _representative(column: Column) -> RunView:
    """The run whose answers stand for a group: its first that counts."""
    return (column.counted or column.views)[0]
