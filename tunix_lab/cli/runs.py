"""`tunix-lab runs`: the runs of this project with status and headline metrics, read from their directories alone."""

import dataclasses
import json
import math
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from tunix_lab.lab.journal import RunState

_SHOWN = 20
_HEADLINES = ("eval/accuracy", "eval/loss", "train/loss")
_COLOURS = {"running": "cyan", "finished": "green", "failed": "red", "killed": "yellow"}


def runs(
    everything: Annotated[bool, typer.Option("--all", help=f"All runs, not only the newest {_SHOWN}.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array, for programs.")] = False,
) -> None:
    """List runs, newest first."""
    from tunix_lab.cli._project import open_project
    from tunix_lab.lab.journal import list_runs

    found = list_runs(open_project().home)
    shown = found if everything else found[:_SHOWN]
    rows = [_row(state) for state in shown]
    if as_json:
        typer.echo(json.dumps(rows, indent=1, allow_nan=False))
        return
    console = Console()
    if not rows:
        console.print("No runs yet. `tunix-lab run experiments/dpo_gemma.yaml` makes one.")
        return
    console.print(_table(rows))
    if len(shown) < len(found):
        console.print(f"{len(found) - len(shown)} older runs: tunix-lab runs --all")


def _row(state: "RunState") -> dict[str, Any]:
    """What is known about a run, as JSON values; a non-finite metric is null."""
    from tunix_lab.errors import UserError
    from tunix_lab.lab.journal import read_manifest

    try:
        manifest = read_manifest(state.run_dir)
    except UserError:  # killed before it was written
        manifest = {}
    end = state.ended_ms or time.time_ns() // 1_000_000
    row = {name: value for name, value in dataclasses.asdict(state).items() if name not in ("run_dir", "latest")}
    return row | {
        "kind": manifest.get("kind"),
        "name": manifest.get("name"),
        "experiment": manifest.get("experiment"),
        "primary_metric": manifest.get("primary_metric"),
        "duration_s": max(0, end - state.started_ms) / 1000 if state.started_ms else None,
        "metrics": {name: value if math.isfinite(value) else None for name, value in state.latest.items()},
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    primaries = dict.fromkeys(row["primary_metric"] for row in rows if row["primary_metric"])
    columns = [name for name in dict.fromkeys((*primaries, *_HEADLINES)) if any(name in row["metrics"] for row in rows)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", overflow="fold")
    for name in ("status", "kind"):
        table.add_column(name)
    for name in ("step", *columns, "duration"):
        table.add_column(name, justify="right")
    for row in rows:
        status = f"[{_COLOURS[row['status']]}]{row['status']}[/]"
        metrics = [_number(row["metrics"].get(name, "")) for name in columns]
        table.add_row(row["run_id"], status, row["kind"] or "?", f"{row['step']:,}", *metrics, _duration(row["duration_s"]))
    return table


def _number(value: float | str | None) -> str:
    if isinstance(value, str):
        return value
    return "nan" if value is None else f"{value:.4g}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
