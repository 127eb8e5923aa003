"""The page of a comparison, and its curves as files: tables, all runs overlaid, and their answers side by side."""

import re
from pathlib import Path

from tunix_lab.lab.pages.compare import Cell, Column, Comparison, Number
from tunix_lab.lab.pages.headline import is_typical, number
from tunix_lab.lab.pages.page import write_page
from tunix_lab.lab.pages.plots import COLOURS, MAX_PANELS, Panel, Series, panel, to_svg, write_png
from tunix_lab.lab.pages.run_view import RunView
from tunix_lab.lab.tracking.checkpoints import short_name

PAGE = "compare.html"
SAMPLES = 16
_NOT_DRAWN = ("system/", "perf/wait_s", "perf/data_s", "train/empty_batches")


def write_comparison(
    comparison: Comparison, folder: Path, *, metrics: tuple[str, ...] = (), samples: int = SAMPLES
) -> list[Path]:
    """Writes compare.html and a PNG for each of its charts into `folder`.

    Args:
      comparison: what is shown.
      folder: made if missing.
      metrics: the only ones to draw; without any the headlines and others, as many as fit.
      samples: most prompts to show.

    Returns:
      The files written.
    """
    panels = _panels(comparison, metrics)
    drawn = panels if metrics else panels[:MAX_PANELS]
    page = folder / PAGE
    write_page(
        page,
        "compare.html.jinja",
        title=", ".join(column.label for column in comparison.columns),
        comparison=comparison,
        cells={name: [cell_text(cell) for cell in cells] for name, cells in comparison.metrics.items()},
        colours_of={view.run_id: index for index, column in enumerate(comparison.columns) for view in column.views},
        grouped=comparison.is_grouped,
        panels=[(chart, to_svg(chart)) for chart in drawn],
        not_drawn=[chart.title for chart in panels[len(drawn) :]],
        answers=comparison.answers[:samples],
        n_differ=sum(answers.differ for answers in comparison.answers),
        is_typical=is_typical,
        n_colours=len(COLOURS),
    )
    files = [folder / (re.sub(r"[^\w.-]", "-", chart.title) + ".png") for chart in drawn]
    for chart, file in zip(drawn, files, strict=True):
        write_png(chart, file)
    return [page, *files]


def cell_text(cell: Cell | None) -> tuple[str, str]:
    """(value, its best in brackets) as people read it; the second is empty where it says nothing more."""
    if cell is None:
        return "–", ""
    last = number_text(cell.last)
    if cell.best is None:
        return last, ""
    at = "" if cell.best_step is None else f" @ {cell.best_step}"
    best = number_text(cell.best)
    return last, "" if best == last else f"({best}{at})"


def number_text(value: Number) -> str:
    """0.9 ± 0.01, or the number alone where there is no deviation."""
    return number(value.value) if value.std is None else f"{number(value.value)} ± {number(float(f'{value.std:.2g}'))}"


def _label(column: Column, view: RunView) -> str:
    return column.label if len(column.views) == 1 else short_name(view.run_id)


def _panels(comparison: Comparison, metrics: tuple[str, ...]) -> list[Panel]:
    """A panel for each metric, every run a line in the colour of its column; headlines first."""
    views = comparison.views
    others = sorted({name for view in views for name in view.curves if not name.startswith(_NOT_DRAWN)})
    names = metrics or tuple(dict.fromkeys([*comparison.metrics, *others]))
    found = []
    for name in names:
        lines = [
            Series(_label(column, view), view.curves[name], index, sparse=name.startswith("eval/"))
            for index, column in enumerate(comparison.columns)
            for view in column.views
            if name in view.curves
        ]
        if any(len(line.curve.steps) > 1 for line in lines):
            found.append(panel(name, lines))
    return found
