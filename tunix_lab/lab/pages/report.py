"""The page of one run: what it was, what it came to, and everything needed to judge or repeat it; one file, no network."""

import sys
from pathlib import Path
from typing import Any

from tunix_lab.errors import UserError
from tunix_lab.lab.pages.answers import over_steps
from tunix_lab.lab.pages.headline import THROUGHPUT, duration, headline_metrics, higher_is_better, is_typical, number, typical
from tunix_lab.lab.pages.page import write_page
from tunix_lab.lab.pages.plots import MAX_PANELS, Panel, Series, panel, to_svg
from tunix_lab.lab.pages.rollouts import last_rollout
from tunix_lab.lab.pages.run_view import RunView, leaves, read_run
from tunix_lab.lab.pages.timings import Timings, read_timings
from tunix_lab.lab.pages.verdict import verdict, warnings
from tunix_lab.lab.record.run_state import TRAJECTORIES, read_manifest
from tunix_lab.lab.tracking.checkpoints import short_name

REPORT = "report.html"
_MAX_PROMPTS = 12
_KNOWN_EVENTS = {"attempt", "ledger", "parameters", "checkpoint", "output", "finish", "resumed", TRAJECTORIES}
_NOT_DRAWN = ("train/empty_batches", "perf/wait_s", "perf/data_s")
_MODES = ("train", "eval")


def write_report(run_dir: Path, out: Path, *, ignore_lock: bool = False) -> None:
    """Writes the page of the run in `run_dir` to the file `out`; `ignore_lock` is for the one who holds the run's lock."""
    write_page(out, "report.html.jinja", **_content(read_run(run_dir, ignore_lock=ignore_lock)))


def write_report_at_end(run_dir: Path) -> None:
    """Writes report.html into the directory of a run whose outputs are there. The run is done: nothing here may undo that."""
    try:
        write_report(run_dir, run_dir / REPORT, ignore_lock=True)
    except Exception as error:  # whatever it is, a page is not worth a trained model
        print(f"{REPORT} could not be written ({type(error).__name__}: {error})", file=sys.stderr, flush=True)


def _content(view: RunView) -> dict[str, Any]:
    timings = read_timings(view)
    panels = _panels(view)
    steps, answers = over_steps(view)
    rollout, unreadable = last_rollout(view)
    return {
        "view": view,
        "manifest": view.manifest,
        "title": short_name(view.run_id),
        "verdict": verdict(view),
        "warnings": [*warnings(view), *([] if unreadable is None else [unreadable])],
        "tiles": _tiles(view, timings),
        "panels": [(drawn, _latest(view, drawn), to_svg(drawn)) for drawn in panels[:MAX_PANELS]],
        "not_drawn": [drawn.title for drawn in panels[MAX_PANELS:]],
        "metrics": _metric_rows(view),
        "sample_steps": steps,
        "answers": answers[:_MAX_PROMPTS],
        "n_answers": len(answers),
        "rollout": rollout,
        "sections": _sections(view),
        "lineage": _lineage(view),
        "timings": timings,
        "checkpoints": [event for event in view.events if event["kind"] == "checkpoint"],
        "outputs": [event for event in view.events if event["kind"] == "output"],
        "ledgers": [event for event in view.events if event["kind"] == "ledger"],
        "parameters": next((event for event in reversed(view.events) if event["kind"] == "parameters"), None),
        "other_events": [event for event in view.events if event["kind"] not in _KNOWN_EVENTS],
    }


def _tiles(view: RunView, timings: Timings) -> list[tuple[str, str, str]]:
    """(name, value, remark) of the numbers that a reader wants first."""
    tiles = []
    for name in [name for name in headline_metrics([view]) if name != THROUGHPUT][:4]:
        curve, higher = view.curves[name], higher_is_better(name, [view])
        best = None if higher is None else curve.best(higher)
        remark = "" if best is None or best[0] == curve.last else f"best {number(best[0])} at step {best[1]}"
        tiles.append((name, number(curve.last), remark))
    if timings.tokens_per_s is not None:
        tiles.append(("tokens/s", number(timings.tokens_per_s), f"{number(timings.step_s)} s an update"))
    if timings.active_s:
        tiles.append(
            ("time", duration(timings.active_s), f"{len(timings.attempts)} attempts" if len(timings.attempts) > 1 else "")
        )
    return tiles


def _panels(view: RunView) -> list[Panel]:
    """The headlines first; training and evaluation of one quantity share a panel."""
    names = [name for name in view.curves if not name.startswith("system/") and name not in _NOT_DRAWN]
    ordered = dict.fromkeys([*headline_metrics([view]), *sorted(names, key=_rank)])
    panels: dict[str, Panel] = {}
    for name in ordered:
        group, _, metric = name.partition("/")
        title = metric if group in _MODES else name
        if title in panels:
            continue
        if title == name:
            panels[title] = panel(title, [Series(name, view.curves[name])])
            continue
        both = [("train", 0, False), ("eval", 1, True)]
        lines = [
            Series(f"{kind}/{metric}", view.curves[f"{kind}/{metric}"], colour, sparse)
            for kind, colour, sparse in both
            if f"{kind}/{metric}" in view.curves
        ]
        panels[title] = panel(title, lines)
    return [drawn for drawn in panels.values() if any(len(line.curve.steps) > 1 for line in drawn.series)]


def _rank(name: str) -> tuple[int, str]:
    order = ("eval/", "train/grad_norm", "train/learning_rate", "perf/", "train/")
    return next((rank for rank, start in enumerate(order) if name.startswith(start)), len(order)), name


def _latest(view: RunView, drawn: Panel) -> str:
    """The value that stands above a panel."""
    curve = view.curves[drawn.series[-1].label]
    return number(typical(curve) if is_typical(drawn.title) else curve.last)


def _metric_rows(view: RunView) -> list[tuple[str, str, str, str, str, str]]:
    """(name, first, last, lowest, highest, points) of every metric."""
    return [
        (
            name,
            number(curve.first),
            number(curve.last),
            *(f"{number(best[0])} @ {best[1]}" if (best := curve.best(higher)) else "–" for higher in (False, True)),
            number(len(curve.steps)),
        )
        for name, curve in view.curves.items()
    ]


def _sections(view: RunView) -> list[tuple[str, list[tuple[str, Any]]]]:
    """The resolved spec by section; what stands at its top level is a section of its own, without a name."""
    config = view.config or _nested(view.manifest.get("params") or {})
    top = [(name, value) for name, value in config.items() if not isinstance(value, dict | list)]
    nested = [(name, list(leaves(value))) for name, value in config.items() if isinstance(value, dict | list)]
    return [section for section in [("", top), *nested] if section[1]]


def _nested(params: dict[str, Any]) -> dict[str, Any]:
    """Dotted parameters by their first word."""
    found: dict[str, Any] = {}
    for name, value in params.items():
        section, _, rest = name.partition(".")
        if rest and isinstance(found.get(section, {}), dict):
            found.setdefault(section, {})[rest] = value
        else:
            found[name] = value
    return found


def _lineage(view: RunView) -> list[tuple[str, str]]:
    """(run id, what is known of it) from the run that began the line to this one's parent."""
    line: list[tuple[str, str]] = []
    parent = view.manifest.get("parent_run_id")
    while isinstance(parent, str) and parent not in (run_id for run_id, _ in line):
        manifest = _manifest_beside(view, parent)
        remark = (
            "its directory is not here" if manifest is None else str(manifest.get("description") or manifest.get("algorithm"))
        )
        line.append((parent, remark))
        parent = None if manifest is None else manifest.get("parent_run_id")
    return line[::-1]


def _manifest_beside(view: RunView, run_id: str) -> dict[str, Any] | None:
    try:
        return read_manifest(view.state.run_dir.absolute().parent / run_id)
    except UserError:
        return None
