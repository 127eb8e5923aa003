"""Everything that the directory of a run says, read once for those who show it. What is missing or broken is told, not raised."""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tunix_lab.errors import UserError
from tunix_lab.lab.record.run_state import RunState, read_events, read_manifest, read_metric_lines, run_status

RESOLVED = "resolved.yaml"

Config = dict[str, Any]
Rows = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Curve:
    """The values of a metric by step, in the order of the steps; not all of them need be finite."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def first(self) -> float:
        """The value of the earliest step."""
        return self.values[0]

    @property
    def last(self) -> float:
        """The value of the latest step."""
        return self.values[-1]

    @property
    def nonfinite(self) -> list[int]:
        """Steps whose value is NaN or infinite."""
        return [step for step, value in zip(self.steps, self.values, strict=True) if not math.isfinite(value)]

    def best(self, higher_is_better: bool) -> tuple[float, int] | None:
        """The best finite value and the first step that has it; None where no value is finite."""
        finite = [(value, step) for step, value in zip(self.steps, self.values, strict=True) if math.isfinite(value)]
        if not finite:
            return None
        sign = -1 if higher_is_better else 1
        return min(finite, key=lambda point: (sign * point[0], point[1]))


@dataclasses.dataclass(frozen=True)
class RunView:
    """A run as its directory shows it.

    Attributes:
      state: status and progress.
      manifest: empty for a run that was killed before it was written.
      config: the resolved spec, as it was written.
      fields: its leaves under dotted names.
      curves: every metric.
      events: in the order of writing.
      samples: the rows of every step that has generations.
      problems: files that could not be read, and why.
    """

    state: RunState
    manifest: dict[str, Any]
    config: Config
    fields: Config
    curves: dict[str, Curve]
    events: list[dict[str, Any]]
    samples: dict[int, Rows]
    problems: tuple[str, ...] = ()

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return self.state.run_id

    @property
    def primary(self) -> str | None:
        """Its primary metric; None for a run that has none."""
        return self.manifest.get("primary_metric")

    @property
    def tags(self) -> dict[str, Any]:
        """The tags of its manifest."""
        return self.manifest.get("tags") or {}

    @property
    def duration_s(self) -> float | None:
        """From its first start to its end or last sign of life, in seconds; None if it never started."""
        end = self.state.ended_ms or self.state.updated_ms
        return max(0, end - self.state.started_ms) / 1000 if self.state.started_ms else None


def read_run(run_dir: Path, *, ignore_lock: bool = False) -> RunView:
    """Reads the directory of a run; `ignore_lock` is for the one who holds the lock."""
    problems: list[str] = []
    state = run_status(run_dir, ignore_lock=ignore_lock)
    try:
        manifest = read_manifest(run_dir)
    except UserError as error:
        manifest = {}
        problems.append(str(error).replace(f"{run_dir}/", ""))
    config = _read_config(run_dir, problems)
    return RunView(
        state=state,
        manifest=manifest,
        config=config,
        fields=dict(leaves(config)) or dict(manifest.get("params") or {}),
        curves=_read_curves(run_dir),
        events=list(read_events(run_dir)),
        samples=_read_samples(run_dir, problems),
        problems=tuple(problems),
    )


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of nested mappings and lists under its dotted name."""
    if isinstance(value, list):
        value = {str(index): item for index, item in enumerate(value)}
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _read_config(run_dir: Path, problems: list[str]) -> Config:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        config = YAML(typ="safe").load((run_dir / RESOLVED).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (YAMLError, ValueError) as error:
        problems.append(f"{RESOLVED}: not valid YAML: {' '.join(str(error).split())}")
        return {}
    return config if isinstance(config, dict) else {}


def _read_curves(run_dir: Path) -> dict[str, Curve]:
    points: dict[str, dict[int, float]] = {}
    for line in read_metric_lines(run_dir):
        for name, value in line.values.items():  # a step that a resumed run made again: the last writer wins
            points.setdefault(name, {})[line.step] = value
    return {name: _curve(points[name]) for name in sorted(points)}


def _curve(points: dict[int, float]) -> Curve:
    steps = sorted(points)
    return Curve(tuple(steps), tuple(points[step] for step in steps))


def _read_samples(run_dir: Path, problems: list[str]) -> dict[int, Rows]:
    """The rows by step; where there is only the latest table, that one."""
    found: dict[int, Rows] = {}
    for path in sorted((run_dir / "samples").glob("step-*.jsonl")):
        try:
            rows = [json.loads(line) for line in path.read_bytes().splitlines() if line]
            found[int(path.stem.removeprefix("step-"))] = _checked(rows)
        except ValueError as error:
            problems.append(f"samples/{path.name}: {error}")
    latest = run_dir / "samples" / "latest.json"
    if not found and latest.is_file():
        try:
            table = json.loads(latest.read_bytes())
            rows = _checked([dict(zip(table["columns"], row, strict=True)) for row in table["data"]])
            found[int(rows[0].get("step") or 0) if rows else 0] = rows
        except (ValueError, KeyError, TypeError) as error:
            problems.append(f"samples/latest.json: {error!r}")
    return dict(sorted(found.items()))


def _checked(rows: Sequence[Any]) -> Rows:
    if not all(isinstance(row, dict) and "completion" in row for row in rows):
        raise ValueError("a row has no completion")
    return [{key: _encodable(value) for key, value in row.items()} for row in rows]


def _encodable(value: Any) -> Any:
    """Half of a character, which a model may well end on, as a question mark: no file and no terminal takes it."""
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value
