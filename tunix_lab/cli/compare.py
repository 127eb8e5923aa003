"""`tunix-lab compare`: runs side by side, read from their directories alone."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from tunix_lab.lab.pages.compare import Cell, Column, Comparison, Difference

_SAMPLES = 3
_ACROSS = 4  # columns that a terminal has room for; more runs become lines
_METRICS = 4  # of runs that are lines
_COLOURS = {"running": "cyan", "finished": "green", "failed": "red", "killed": "yellow"}


def compare(
    run_ids: Annotated[
        list[str], typer.Argument(metavar="RUN_ID...", help="Runs: ids, or their beginning or end.", show_default=False)
    ],
    metrics: Annotated[
        list[str], typer.Option("--metric", metavar="NAME", help="Only this metric; may be repeated.", show_default=False)
    ] = [],  # noqa: B006 (never changed)
    group: Annotated[
        bool, typer.Option("--group", help="Runs that differ in the seed alone become mean ± standard deviation.")
    ] = False,
    samples: Annotated[
        int | None, typer.Option(min=0, help=f"Prompts to show; {_SAMPLES} here, 16 on the page.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for compare.html and the curves as PNG.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Compare runs: metrics, what they differ in, curves, and answers to the same prompts."""
    from tunix_lab.cli._project import open_project
    from tunix_lab.lab.pages.compare import compare as compare_runs
    from tunix_lab.lab.pages.compare import read_runs

    comparison = compare_runs(read_runs(open_project().home, run_ids), metrics=metrics, group=group)
    console = Console()
    if as_json:
        from tunix_lab.lab.pages.compare_json import to_json

        typer.echo(json.dumps(to_json(comparison, samples), indent=1, allow_nan=False))
    else:
        _print(console, comparison, _SAMPLES if samples is None else samples)
    if out is not None:
        from tunix_lab.lab.pages.compare_page import SAMPLES, write_comparison

        page, *charts = write_comparison(comparison, out, metrics=tuple(metrics), samples=SAMPLES if samples is None else samples)
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"{page} and {len(charts)} PNG files", markup=False)


def _print(console: Console, comparison: "Comparison", samples: int) -> None:
    console.print(_metrics(comparison))
    console.print("[dim]last value; in brackets the best of the run and its step, where it differs; bold leads[/]")
    if left_out := [name for name in comparison.metrics if name not in _shown(comparison)]:
        console.print(f"[dim]not shown: {', '.join(left_out)} (--metric NAME, --json or --out DIR)[/]", highlight=False)
    notes = [*comparison.caveats, *(f"{column.label}: {note}" for column in comparison.columns for note in column.notes)]
    for note in notes:
        console.print(f"[yellow]{escape(note)}[/]", highlight=False)
    for title, found in (
        ("Differences of the specs", comparison.settings),
        ("Differences of data, weights, code and environment", comparison.surroundings),
    ):
        console.print()
        console.print(_differences(title, found, comparison) if found else f"{title}: none")
    if comparison.answers and samples:
        _print_answers(console, comparison, samples)


def _metrics(comparison: "Comparison") -> Table:
    """Metrics by run, or numbered runs by metric where there are too many to stand side by side."""
    from tunix_lab.lab.pages.headline import is_typical

    many = len(comparison.columns) > _ACROSS
    facts = [("status", "step", "time"), *(_facts(column) for column in comparison.columns)]
    labels = [f"{number} {column.label}" if many else column.label for number, column in _numbered(comparison)]
    grid = [["", *map(escape, labels)], *(list(row) for row in zip(*facts, strict=True))]
    for name, cells in _shown(comparison).items():
        head = f"{name} (median)" if is_typical(name) else name
        head = head.replace("/", "/\n").replace(" ", "\n") if many else head
        grid.append([head, *(_cell(cell, "\n" if many else " ") for cell in cells)])
    if many:
        grid = [list(row) for row in zip(*grid, strict=True)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, head in enumerate(grid[0]):
        table.add_column(head, justify="right" if index else "left", overflow="fold", no_wrap=not index)
    for row in grid[1:]:
        table.add_row(*row)
    return table


def _shown(comparison: "Comparison") -> "dict[str, tuple[Cell | None, ...]]":
    """The metrics that there is room for."""
    from tunix_lab.lab.pages.headline import THROUGHPUT

    if len(comparison.columns) <= _ACROSS:
        return comparison.metrics
    first = list(comparison.metrics)[:_METRICS]
    return {name: cells for name, cells in comparison.metrics.items() if name in (*first, THROUGHPUT)}


def _numbered(comparison: "Comparison") -> "enumerate[Column]":
    """The columns with the numbers that stand for them where names take too much room."""
    return enumerate(comparison.columns, 1)


def _facts(column: "Column") -> tuple[str, str, str]:
    """Status, step and time; of a group what its runs have in common."""
    from tunix_lab.lab.pages.headline import duration, number

    statuses = dict.fromkeys(view.state.status for view in column.views)
    status = " ".join(f"[{_COLOURS[name]}]{name}[/]" for name in statuses)
    steps = ", ".join(dict.fromkeys(number(view.state.step) for view in column.views))
    times = [view.duration_s for view in column.views if view.duration_s is not None]
    return status, steps, duration(sum(times) / len(times)) if times else "–"


def _cell(cell: "Cell | None", between: str) -> str:
    from tunix_lab.lab.pages.compare_page import cell_text

    last, best = cell_text(cell)
    value = f"[bold]{last}[/]" if cell is not None and cell.leads else last
    return f"{value}{between}[dim]{best}[/]" if best else value


def _differences(title: str, found: "tuple[Difference, ...]", comparison: "Comparison") -> Table:
    many = len(comparison.columns) > _ACROSS
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for head in ("", *(str(number) if many else column.label for number, column in _numbered(comparison))):
        table.add_column(escape(head), overflow="fold")
    for entry in found:
        table.add_row(escape(entry.name), *map(escape, entry.values))
    return table


def _print_answers(console: Console, comparison: "Comparison", samples: int) -> None:
    from tunix_lab.lab.pages.headline import number

    differing = sum(answers.differ for answers in comparison.answers)
    of_groups = " (of a group: those of one run)" if comparison.is_grouped else ""
    told = f"{differing} of {len(comparison.answers)} prompts are answered differently" if len(comparison.columns) > 1 else ""
    console.print(f"\n[bold]Samples[/]{of_groups}: {told}")
    for answers in comparison.answers[:samples]:
        console.print(f"\n{escape(_printable(answers.prompt))}", style="bold", highlight=False)
        table = Table(box=None, pad_edge=False, show_header=False)
        for column, row in zip(comparison.columns, answers.rows, strict=True):
            if row is None:
                table.add_row(escape(column.label), "", "[dim]–[/]")
                continue
            score = row.get("score")
            shown = "" if score is None else number(score) if isinstance(score, int | float) else str(score)
            table.add_row(escape(column.label), escape(shown), escape(_printable(str(row["completion"]))))
        console.print(table)


def _printable(text: str) -> str:
    """What a model says must not steer the terminal."""
    return "".join(character if character.isprintable() or character in "\n\t" else "\ufffd" for character in text)
