"""What a sweep found: settings ranked by the mean of a metric over their seeds, as a table, as files and as a plot."""

import csv
import dataclasses
import io
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunix_lab.lab.record.jsonl import strict, write_atomically
from tunix_lab.lab.sweeps.queue import Entry
from tunix_lab.lab.sweeps.space import Axis, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

CSV, JSON, PLOT = "sweep.csv", "sweep.json", "sweep.png"


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Which metric ranks, and which way it improves."""

    metric: str
    higher_is_better: bool


@dataclasses.dataclass(frozen=True)
class SettingResult:
    """A setting with what its seeds gave.

    Attributes:
      setting: its number.
      values: text by field.
      entries: its trials.
      scores: the metric of each trial that finished and has it as a finite number.
    """

    setting: int
    values: dict[str, str]
    entries: tuple[Entry, ...]
    scores: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        """Of the scores; None without any."""
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation (n - 1); None of fewer than two scores."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None

    def count(self, *statuses: str) -> int:
        """Number of its trials in one of `statuses`."""
        return sum(entry.status in statuses for entry in self.entries)


def setting_results(entries: Sequence[Entry], metric: str) -> list[SettingResult]:
    """All settings in the order of their numbers."""
    groups: dict[int, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.trial.setting, []).append(entry)
    return [SettingResult(key, group[0].trial.values, tuple(group), _scores(group, metric)) for key, group in groups.items()]


def ranked(results: Sequence[SettingResult], ranking: Ranking) -> list[SettingResult]:
    """The best first; settings without a score last."""
    sign = -1 if ranking.higher_is_better else 1
    return sorted(results, key=lambda result: (result.mean is None, sign * (result.mean or 0.0), result.setting))


def table(results: Sequence[SettingResult], fields: Sequence[str], ranking: Ranking) -> "Table":
    """The ranking for a terminal."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold")
    for field in fields:
        made.add_column(field, overflow="fold")
    made.add_column(f"{ranking.metric} ({'higher' if ranking.higher_is_better else 'lower'} is better)", justify="right")
    for name in ("seeds", "trials"):
        made.add_column(name, justify="right")
    for result in ranked(results, ranking):
        seeds = f"{len(result.scores)}/{len(result.entries)}"
        numbers = ",".join(str(entry.trial.number) for entry in result.entries)
        cells = [*(result.values[field] for field in fields), score_text(result), seeds, numbers]
        made.add_row(*(Text(cell) for cell in cells))
    return made


def score_text(result: SettingResult) -> str:
    """ "0.5123 ± 0.01"; of a setting without a score, why."""
    if result.mean is None:
        return "failed" if result.count("failed") else "open" if result.count("waiting", "running") else "no value"
    return f"{result.mean:.4g}" + ("" if result.std is None else f" ± {result.std:.2g}")


def write_results(
    sweep_dir: Path, entries: Sequence[Entry], axes: Sequence[Axis], ranking: Ranking, title: str
) -> list[SettingResult]:
    """Writes sweep.csv, sweep.json and, where there is something to draw, sweep.png; returns the ranking."""
    results = ranked(setting_results(entries, ranking.metric), ranking)
    fields = [axis.field for axis in axes]
    write_atomically(sweep_dir / CSV, _csv(entries, fields).encode())
    write_atomically(sweep_dir / JSON, (json.dumps(_as_json(results, ranking), indent=1, allow_nan=False) + "\n").encode())
    if any(result.scores for result in results):
        picture = io.BytesIO()
        draw(results, axes, ranking, title).savefig(picture, format="png", dpi=120, metadata={"Software": None})
        write_atomically(sweep_dir / PLOT, picture.getvalue())
    return results


def draw(results: Sequence[SettingResult], axes: Sequence[Axis], ranking: Ranking, title: str) -> "Figure":
    """The metric over each field, and for two fields also as a map."""
    from matplotlib.figure import Figure

    scored = [result for result in results if result.scores]
    with_map = len(axes) == 2 and len(scored) > 2
    panels = max(1, len(axes)) + with_map
    figure = Figure(figsize=(4.5 * panels, 3.8), layout="constrained")
    figure.suptitle(title)
    places = figure.subplots(1, panels, squeeze=False)[0]
    for place, axis in zip(places, axes, strict=False):
        _draw_field(place, scored, axis, ranking.metric)
    if not axes:
        _draw_seeds(places[0], scored, ranking.metric)
    if with_map:
        _draw_map(figure, places[-1], scored, axes, ranking)
    return figure


def _draw_field(place: "Axes", results: Sequence[SettingResult], axis: Axis, metric: str) -> None:
    """Every trial as a dot, and the mean of each setting with its standard deviation."""
    at = _positions(place, "x", results, axis)
    for x, result in zip(at, results, strict=True):
        place.plot([x] * len(result.scores), result.scores, ".", color="#7F7F7F", markersize=5)
        place.errorbar(x, result.mean, yerr=result.std, fmt="o", color="#0072B2", capsize=3, markersize=6)
    place.set_xlabel(axis.field)
    place.set_ylabel(metric)


def _draw_seeds(place: "Axes", results: Sequence[SettingResult], metric: str) -> None:
    for result in results:
        seeds = [str(entry.trial.seed) for entry in result.entries if score_of(entry, metric) is not None]
        place.plot(seeds, result.scores, "o", color="#0072B2")
    place.set_xlabel("seed")
    place.set_ylabel(metric)


def _draw_map(figure: "Figure", place: "Axes", results: Sequence[SettingResult], axes: Sequence[Axis], ranking: Ranking) -> None:
    xs, ys = _positions(place, "x", results, axes[0]), _positions(place, "y", results, axes[1])
    means = [result.mean for result in results]
    colours = "viridis" if ranking.higher_is_better else "viridis_r"  # bright is good
    columns, rows = sorted(set(xs)), sorted(set(ys))
    if len(columns) * len(rows) == len(results):  # a grid: cells, with their values
        cells = dict(zip(zip(xs, ys, strict=True), means, strict=True))
        place.set_xscale("linear")
        place.set_yscale("linear")
        image = place.imshow(
            [[cells[x, y] for x in columns] for y in rows], origin="lower", aspect="auto", cmap=colours, interpolation="nearest"
        )
        for part, values, side in ((place.xaxis, columns, 0), (place.yaxis, rows, 1)):
            part.set_ticks(range(len(values)), [_label(value, results, axes[side]) for value in values])
        place.set_xlim(-0.5, len(columns) - 0.5)
        place.set_ylim(-0.5, len(rows) - 0.5)
    else:
        image = place.scatter(xs, ys, c=means, cmap=colours, s=70, edgecolors="#444444", linewidths=0.5)
    place.set_xlabel(axes[0].field)
    place.set_ylabel(axes[1].field)
    figure.colorbar(image, ax=place, label=ranking.metric)


def _positions(place: "Axes", side: str, results: Sequence[SettingResult], axis: Axis) -> list[float]:
    """Where each setting stands along a field: by its number, or by its place among the texts."""
    texts = [result.values[axis.field] for result in results]
    numbers = [number(text) for text in texts]
    part = place.xaxis if side == "x" else place.yaxis
    if None not in numbers:
        (place.set_xscale if side == "x" else place.set_yscale)("log" if axis.is_log else "linear")
        return [float(value) for value in numbers]
    names = list(dict.fromkeys(texts))
    part.set_ticks(range(len(names)), names)
    return [float(names.index(text)) for text in texts]


def _label(position: float, results: Sequence[SettingResult], axis: Axis) -> str:
    texts = list(dict.fromkeys(result.values[axis.field] for result in results))
    return next((text for text in texts if number(text) == position), None) or texts[int(position)]


def score_of(entry: Entry, metric: str) -> float | None:
    """The metric of a finished trial; None where it is missing or no finite number."""
    value = None if entry.status != "finished" else entry.outcome.metrics.get(metric)
    return value if value is not None and math.isfinite(value) else None


def _scores(entries: Sequence[Entry], metric: str) -> tuple[float, ...]:
    return tuple(score for entry in entries if (score := score_of(entry, metric)) is not None)


def _csv(entries: Sequence[Entry], fields: Sequence[str]) -> str:
    """One line a trial, with every metric that any of them left."""
    names = sorted({name for entry in entries if entry.outcome is not None for name in entry.outcome.metrics})
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["trial", "setting", *fields, "seed", "status", "run_id", *names, "message"])
    for entry in entries:
        trial, outcome = entry.trial, entry.outcome
        values = [trial.values[field] for field in fields]
        left = [] if outcome is None else [outcome.metrics.get(name, "") for name in names]
        rest = [*([""] * len(names) if outcome is None else left), (outcome.message or "") if outcome else ""]
        run_id = (outcome.run_id or "") if outcome else ""
        seed = "" if trial.seed is None else trial.seed
        writer.writerow([trial.number, trial.setting, *values, seed, entry.status, run_id, *rest])
    return file.getvalue()


def _as_json(results: Sequence[SettingResult], ranking: Ranking) -> dict[str, Any]:
    return {
        "metric": ranking.metric,
        "higher_is_better": ranking.higher_is_better,
        "settings": [
            {
                "values": result.values,
                "mean": result.mean,
                "std": result.std,
                "n": len(result.scores),
                "trials": [_trial_json(entry) for entry in result.entries],
            }
            for result in results
        ],
    }


def _trial_json(entry: Entry) -> dict[str, Any]:
    outcome = entry.outcome
    described = {"number": entry.trial.number, "seed": entry.trial.seed, "status": entry.status}
    if outcome is None:
        return described
    metrics = {name: strict(value, null=True) for name, value in outcome.metrics.items()}
    return described | {"run_id": outcome.run_id, "exit_code": outcome.exit_code, "message": outcome.message, "metrics": metrics}
